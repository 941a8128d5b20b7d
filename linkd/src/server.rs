//! Answers on the Unix socket.
//!
//! The promise: only root, this program's own user and the socket's group are heard, whatever the file's mode has
//! become; nobody can make it hold more than a line of input or more than a few connections, or wait for a reader that
//! does not read.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::kernel::{Kernel, KernelError, Told};
use crate::protocol::{Answer, Ask, LONGEST_LINE, Problem};

/// Connections at once.
const MOST_CONNECTIONS: usize = 32;
/// How long a client may take to read a line.
const WRITE: Duration = Duration::from_secs(5);
/// Pause after a failed `accept` (no descriptors left).
const ACCEPT_AGAIN: Duration = Duration::from_millis(500);
/// Owner and group may connect.
const MODE: u32 = 0o660;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Its folder or the socket itself.
    #[error("cannot listen on {path}: {source}; check that the folder exists and this user may write to it")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What systemd passed is not a Unix socket that listens.
    #[error("the socket that systemd passed cannot be used: {0}; check kinara-linkd.socket")]
    Passed(io::Error),
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// This program's user.
    pub user: u32,
    /// The socket's group.
    pub group: u32,
}

impl Access {
    /// Whether a peer of this user and these groups is heard.
    pub fn admits(self, user: u32, groups: &[u32]) -> bool {
        user == 0 || user == self.user || groups.contains(&self.group)
    }
}

/// A bound socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    access: Access,
}

impl Server {
    /// The socket that systemd passed, if it passed one, else one of our own at `path`, which a former life may have
    /// left there.
    pub fn listen(path: &Path) -> Result<Self, ListenError> {
        let [pid, fds] = ["LISTEN_PID", "LISTEN_FDS"].map(|name| std::env::var(name).ok());
        if let Some(socket) = crate::sys::passed_socket(pid.as_deref(), fds.as_deref()) {
            return Self::adopt(std::os::unix::net::UnixListener::from(socket)).map_err(ListenError::Passed);
        }
        Self::bind(path).map_err(|source| ListenError::Bind { path: path.to_owned(), source })
    }

    fn adopt(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let path = address.as_pathname().ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self { access: access(path)?, listener: UnixListener::from_std(listener)? })
    }

    fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
        Ok(Self { access: access(path)?, listener })
    }

    /// Answers until it is dropped; its connections end with it.
    pub async fn run(self, kernel: Kernel) {
        let mut clients = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = clients.join_next() => continue,
            };
            match accepted {
                Ok(_) if clients.len() >= MOST_CONNECTIONS => {
                    tracing::warn!("more than {MOST_CONNECTIONS} connections; the newest is closed");
                }
                Ok((stream, _)) => {
                    let (kernel, access) = (kernel.clone(), self.access);
                    clients.spawn(async move {
                        if let Err(error) = attend(stream, kernel, access).await {
                            tracing::debug!(%error, "a client is gone");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was lost");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

fn access(path: &Path) -> io::Result<Access> {
    Ok(Access { user: std::fs::metadata("/proc/self")?.uid(), group: std::fs::metadata(path)?.gid() })
}

async fn attend(stream: UnixStream, kernel: Kernel, access: Access) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let mut groups = crate::sys::peer_groups(&stream)?;
    groups.push(peer.gid());
    let (reader, mut writer) = stream.into_split();
    if !access.admits(peer.uid(), &groups) {
        tracing::warn!(uid = peer.uid(), "refused: neither root nor in the socket's group");
        let text = "only root and the group of the socket may ask; add the user to group kinara-linkd";
        return send(&mut writer, &error(Problem::NotAllowed, text)).await;
    }
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut reader).take(LONGEST_LINE as u64).read_until(b'\n', &mut line).await?;
        if length == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let text = format!("a line is at most {LONGEST_LINE} bytes and ends with a line feed");
            return send(&mut writer, &error(Problem::BadRequest, &text)).await;
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(Ask::WatchKeys) => return watch(&mut reader, &mut writer, &kernel).await,
            Ok(ask) => answer(&kernel, ask).await,
            Err(why) => error(Problem::BadRequest, &format!("cannot read this: {why}")),
        };
        send(&mut writer, &answer).await?;
    }
}

async fn answer(kernel: &Kernel, ask: Ask) -> Answer {
    let done = match ask {
        Ask::Rssi { adapter, address, kind } => match address.parse() {
            Ok(address) => kernel.rssi(&adapter, address, kind).await.map(|rssi| Answer::Rssi { rssi }),
            Err(bad) => return error(Problem::BadRequest, &bad.to_string()),
        },
        Ask::Reset { adapter } => {
            tracing::warn!(adapter, "resetting the adapter");
            kernel.reset(&adapter).await.map(|()| Answer::Reset { reset: adapter })
        }
        Ask::Status => kernel.status().await.map(|(version, adapters)| Answer::Status { version, adapters }),
        Ask::WatchKeys => Ok(Answer::Watching { watching: true }),
    };
    done.unwrap_or_else(|KernelError { problem, text }| Answer::Error { error: problem, text })
}

/// Tells of keys until the client goes, or until one may have been missed.
async fn watch(
    reader: &mut BufReader<tokio::net::unix::OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    kernel: &Kernel,
) -> io::Result<()> {
    let mut told = kernel.watch();
    // Whoever is told that it watches must be able to rely on it.
    if let Err(KernelError { problem, text }) = kernel.status().await {
        return send(writer, &Answer::Error { error: problem, text }).await;
    }
    send(writer, &Answer::Watching { watching: true }).await?;
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            got = told.recv() => match got {
                Ok(Told::Key(key)) => send(writer, &Answer::Key { key }).await?,
                Ok(Told::Break) | Err(broadcast::error::RecvError::Lagged(_)) => {
                    let text = "keys may have been missed; watch again";
                    return send(writer, &error(Problem::Interrupted, text)).await;
                }
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
            got = reader.read(&mut ignored) => if got? == 0 {
                return Ok(());
            },
        }
    }
}

fn error(error: Problem, text: &str) -> Answer {
    Answer::Error { error, text: text.to_owned() }
}

async fn send(writer: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    timeout(WRITE, writer.write_all(&line)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_programs_own_user_and_the_sockets_group_are_heard_and_nobody_else() {
        let access = Access { user: 900, group: 901 };
        assert!(access.admits(0, &[0]));
        assert!(access.admits(900, &[]));
        assert!(access.admits(1000, &[1000, 901]));
        assert!(!access.admits(1000, &[1000, 900, 0]));
    }
}
