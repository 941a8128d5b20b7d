//! Asking `kinara-linkd`.
//!
//! Every question has a limit in time and a connection of its own or one that is known to be in step: after any failure
//! the connection is dropped and the next question opens a new one, so an answer can never be taken for another's.
//!
//! To prove a new bond's key: [`Client::watch_keys`] *before* pairing (an error means that nothing can be proven, and
//! says what to do), then [`KeyWatch::key_of`] after it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use crate::packet::AddressKind;
use crate::protocol::{Answer, Ask, LONGEST_LINE, NewKey, Problem};

/// Where the socket is unless the configuration says otherwise.
pub const SOCKET: &str = "/run/kinara/linkd.sock";
/// How long a question may take; the kernel itself is given two seconds.
pub const ASKING: Duration = Duration::from_secs(4);
/// How long a reset may take: off, and several tries to come on again.
pub const RESETTING: Duration = Duration::from_secs(45);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkdError {
    /// Nobody listens on the socket, or it broke.
    #[error("kinara-linkd does not answer on {path}: {why}; start it: systemctl start kinara-linkd")]
    Away {
        /// The socket.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// It answered that it cannot.
    #[error("{text}")]
    Refused {
        /// For programs.
        problem: Problem,
        /// For people.
        text: String,
    },
    /// No key of this peer came in time.
    #[error("the kernel told of no new key for {address} in time; pair again")]
    NoKey {
        /// Whose.
        address: String,
    },
}

impl LinkdError {
    /// What the helper said, if it answered.
    pub fn problem(&self) -> Option<Problem> {
        match self {
            Self::Refused { problem, .. } => Some(*problem),
            Self::Away { .. } | Self::NoKey { .. } => None,
        }
    }
}

type Line = BufReader<UnixStream>;

/// A client. Cheap to clone; nothing is opened before something is asked.
#[derive(Debug, Clone)]
pub struct Client {
    path: Arc<Path>,
    asking: Duration,
    kept: Arc<Mutex<Option<Line>>>,
}

impl Client {
    /// A client of the socket at `path`, with [`ASKING`] as its patience.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::with_patience(path, ASKING)
    }

    /// A client with another patience.
    pub fn with_patience(path: impl Into<PathBuf>, asking: Duration) -> Self {
        Self { path: path.into().into(), asking, kept: Arc::default() }
    }

    /// Signal strength of a link in dBm; `None` when the controller cannot tell. `address` is the identity address of a
    /// bonded peer.
    pub async fn rssi(
        &self,
        adapter: &str,
        address: &str,
        kind: AddressKind,
    ) -> Result<Option<i8>, LinkdError> {
        let ask = Ask::Rssi { adapter: adapter.to_owned(), address: address.to_owned(), kind };
        match self.ask_kept(&ask).await? {
            Answer::Rssi { rssi } => Ok(rssi),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Powers an adapter off and on.
    pub async fn reset(&self, adapter: &str) -> Result<(), LinkdError> {
        // On a line of its own: it takes long, and RSSI must not wait behind it.
        let mut line = self.open().await?;
        match self.ask(&mut line, &Ask::Reset { adapter: adapter.to_owned() }, RESETTING).await? {
            Answer::Reset { .. } => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Version of the kernel's management interface, and the adapters it has.
    pub async fn status(&self) -> Result<(String, Vec<String>), LinkdError> {
        match self.ask_kept(&Ask::Status).await? {
            Answer::Status { version, adapters } => Ok((version, adapters)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Watches for new keys from the moment it returns.
    pub async fn watch_keys(&self) -> Result<KeyWatch, LinkdError> {
        let mut line = self.open().await?;
        match self.ask(&mut line, &Ask::WatchKeys, self.asking).await? {
            Answer::Watching { .. } => Ok(KeyWatch { client: self.clone(), line }),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Asks on the kept line; a line that the helper has closed since (it was restarted) is opened once more.
    async fn ask_kept(&self, ask: &Ask) -> Result<Answer, LinkdError> {
        let mut kept = self.kept.lock().await;
        // Taken out: whatever goes wrong, or whoever cancels this, leaves no line behind that is out of step.
        if let Some(mut line) = kept.take() {
            match self.ask(&mut line, ask, self.asking).await {
                Err(LinkdError::Away { .. }) => {}
                answered => {
                    *kept = Some(line);
                    return answered;
                }
            }
        }
        let mut line = self.open().await?;
        let answered = self.ask(&mut line, ask, self.asking).await;
        if !matches!(answered, Err(LinkdError::Away { .. })) {
            *kept = Some(line);
        }
        answered
    }

    async fn open(&self) -> Result<Line, LinkdError> {
        match timeout(self.asking, UnixStream::connect(&*self.path)).await {
            Ok(Ok(stream)) => Ok(BufReader::new(stream)),
            Ok(Err(error)) => Err(self.away(&error.to_string())),
            Err(_) => Err(self.away("it does not accept connections")),
        }
    }

    async fn ask(&self, line: &mut Line, ask: &Ask, patience: Duration) -> Result<Answer, LinkdError> {
        let asked = timeout(patience, async {
            let mut text = serde_json::to_vec(ask)?;
            text.push(b'\n');
            line.write_all(&text).await?;
            receive(line).await
        });
        self.judge(asked.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())))
    }

    fn judge(&self, received: std::io::Result<Answer>) -> Result<Answer, LinkdError> {
        match received {
            Ok(Answer::Error { error, text }) => Err(LinkdError::Refused { problem: error, text }),
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.away(&error.to_string())),
        }
    }

    fn away(&self, why: &str) -> LinkdError {
        LinkdError::Away { path: self.path.to_path_buf(), why: why.to_owned() }
    }

    fn unexpected(&self, answer: &Answer) -> LinkdError {
        self.away(&format!("it answered something else than asked ({answer:?})"))
    }
}

/// A running watch. Keys wait in it, bounded by the socket, until they are asked for.
#[derive(Debug)]
pub struct KeyWatch {
    client: Client,
    line: Line,
}

impl KeyWatch {
    /// The next key of any peer. An error ends the watch: keys may have been missed since.
    pub async fn next(&mut self) -> Result<NewKey, LinkdError> {
        let received = receive(&mut self.line).await;
        match self.client.judge(received)? {
            Answer::Key { key } => Ok(key),
            other => Err(self.client.unexpected(&other)),
        }
    }

    /// The key that this peer got since the watch began; `within` is the longest wait for it. When several came (the
    /// first try was of another kind), the last one that is already here counts.
    pub async fn key_of(
        &mut self,
        adapter: &str,
        address: &str,
        within: Duration,
    ) -> Result<NewKey, LinkdError> {
        /// Two keys of one pairing (legacy pairing makes one for each side) come right after each other.
        const TOGETHER: Duration = Duration::from_millis(200);
        let mut until = Instant::now() + within;
        let mut found = None;
        loop {
            match timeout_at(until, self.next()).await {
                Ok(key) => {
                    let key = key?;
                    if key.adapter == adapter && key.address.eq_ignore_ascii_case(address) {
                        until = Instant::now() + TOGETHER;
                        found = Some(worse(found, key));
                    }
                }
                Err(_) => return found.ok_or_else(|| LinkdError::NoKey { address: address.to_owned() }),
            }
        }
    }
}

/// Of the keys of one pairing the weaker one decides.
fn worse(former: Option<NewKey>, key: NewKey) -> NewKey {
    match former {
        Some(former) if !former.is_good() => former,
        _ => key,
    }
}

async fn receive(line: &mut Line) -> std::io::Result<Answer> {
    let mut text = Vec::new();
    line.take(LONGEST_LINE as u64).read_until(b'\n', &mut text).await?;
    if text.last() != Some(&b'\n') {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&text)?)
}
