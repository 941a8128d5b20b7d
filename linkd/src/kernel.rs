//! The one socket to the kernel: questions go out, answers find their askers, new keys go to whoever watches.
//!
//! The promise: everything that is asked ends, with an answer or an error, within its time. When the socket breaks, or the
//! kernel has sent more than was read, watchers are told that a key may have been missed; none is ever made up.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::packet::{self, Address, AddressKind, Command, NO_ADAPTER, Packet};
use crate::protocol::{NewKey, Problem};

/// How long the kernel may take to answer a question that it needs the controller for.
const ANSWER: Duration = Duration::from_secs(2);
/// How long an adapter may take to go off or on; the kernel ends its links first, one after the other.
const POWER: Duration = Duration::from_secs(10);
/// How long an adapter stays off in a reset, so that its controller notices.
const OFF: Duration = Duration::from_millis(500);
/// How often an adapter that went off is asked to come on again.
const POWER_ON_TRIES: u32 = 3;
/// Pause before the socket is opened again.
const REOPEN: Duration = Duration::from_secs(2);
/// Questions that wait for the kernel at once.
const MOST_PENDING: usize = 32;
/// Keys that a slow watcher may fall behind by.
const KEYS: usize = 64;

/// Opens the socket: [`crate::open_management_socket`], or a test's.
pub type Opener = Box<dyn Fn() -> io::Result<OwnedFd> + Send>;

/// What watchers hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A new key.
    Key(NewKey),
    /// The socket broke: keys may have been missed.
    Break,
}

/// Why the kernel did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct KernelError {
    /// For programs.
    pub problem: Problem,
    /// For people.
    pub text: String,
}

impl KernelError {
    fn new(problem: Problem, text: impl Into<String>) -> Self {
        Self { problem, text: text.into() }
    }
}

/// A handle on the kernel's management interface. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Kernel {
    questions: mpsc::Sender<Question>,
    told: broadcast::Sender<Told>,
}

#[derive(Debug)]
struct Question {
    adapter: u16,
    command: Command,
    reply: oneshot::Sender<Result<Vec<u8>, KernelError>>,
}

impl Kernel {
    /// Starts the task that holds the socket; it ends with the last handle.
    pub fn start(open: Opener, clock: Arc<dyn Clock>) -> Self {
        let (questions, asked) = mpsc::channel(MOST_PENDING);
        let (told, _) = broadcast::channel(KEYS);
        tokio::spawn(hold(open, clock, asked, told.clone()));
        Self { questions, told }
    }

    /// Every key from now on.
    pub fn watch(&self) -> broadcast::Receiver<Told> {
        self.told.subscribe()
    }

    /// Signal strength of a link, dBm; `None` when the controller cannot tell.
    pub async fn rssi(
        &self,
        adapter: &str,
        address: Address,
        kind: AddressKind,
    ) -> Result<Option<i8>, KernelError> {
        let command = Command::GetConnectionInformation(address, kind);
        let body = self.ask(index(adapter)?, command, ANSWER).await?;
        packet::rssi_dbm(&body).ok_or_else(nonsense)
    }

    /// Powers an adapter off and on. Once it is off, coming on is tried several times.
    pub async fn reset(&self, adapter: &str) -> Result<(), KernelError> {
        let index = index(adapter)?;
        self.ask(index, Command::SetPowered(false), POWER).await?;
        let mut tries = 0;
        loop {
            sleep(OFF).await;
            tries += 1;
            match self.ask(index, Command::SetPowered(true), POWER).await {
                Ok(_) => return Ok(()),
                Err(KernelError { problem: Problem::Refused, .. }) if tries == POWER_ON_TRIES => {
                    // Which is how this kernel tells of rfkill, too.
                    let text = "the adapter is off and does not come on; if `rfkill list bluetooth` shows it blocked, \
                                run: rfkill unblock bluetooth; else plug it out and in";
                    return Err(KernelError::new(Problem::Refused, text));
                }
                Err(error) if tries == POWER_ON_TRIES => return Err(error),
                Err(error) => tracing::warn!(adapter, %error, "the adapter does not come on; trying again"),
            }
        }
    }

    /// Version of the interface, and the adapters there are.
    pub async fn status(&self) -> Result<(String, Vec<String>), KernelError> {
        let body = self.ask(NO_ADAPTER, Command::ReadVersion, ANSWER).await?;
        let (version, revision) = packet::version(&body).ok_or_else(nonsense)?;
        let body = self.ask(NO_ADAPTER, Command::ReadIndexList, ANSWER).await?;
        let adapters = packet::index_list(&body).ok_or_else(nonsense)?;
        Ok((format!("{version}.{revision}"), adapters.into_iter().map(name).collect()))
    }

    async fn ask(&self, adapter: u16, command: Command, limit: Duration) -> Result<Vec<u8>, KernelError> {
        let (reply, answer) = oneshot::channel();
        let late = || {
            let text = "the kernel did not answer in time; if that goes on, plug the adapter out and in, or restart the box";
            KernelError::new(Problem::Timeout, text)
        };
        self.questions.try_send(Question { adapter, command, reply }).map_err(|_| {
            KernelError::new(Problem::Busy, "too many questions at once; ask again in a second")
        })?;
        match timeout(limit, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(unavailable("the socket to the kernel broke")),
            Err(_) => Err(late()),
        }
    }
}

/// The index of `hci<N>`.
fn index(adapter: &str) -> Result<u16, KernelError> {
    let digits = adapter.strip_prefix("hci").filter(|digits| digits.len() <= 5);
    digits
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .filter(|index| *index != NO_ADAPTER)
        .ok_or_else(|| {
            KernelError::new(Problem::BadRequest, "an adapter is called hci and a number, for example hci0")
        })
}

fn name(index: u16) -> String {
    format!("hci{index}")
}

fn nonsense() -> KernelError {
    KernelError::new(Problem::Refused, "the kernel answered in a form that this version does not know")
}

fn unavailable(why: &str) -> KernelError {
    let advice =
        "check that the kernel has Bluetooth (modprobe bluetooth) and kinara-linkd has CAP_NET_ADMIN";
    KernelError::new(Problem::Unavailable, format!("{why}; {advice}"))
}

/// An error status of the interface (`doc/mgmt-protocol.rst`, "Error codes").
fn refused(status: u8) -> KernelError {
    let (problem, text) = match status {
        0x01 | 0x03 => (Problem::Refused, "the controller does not support it, or failed".to_owned()),
        0x02 => (Problem::NotConnected, "there is no link to this address".to_owned()),
        0x0a => (Problem::Busy, "the adapter is busy with another change; ask again in a second".to_owned()),
        0x11 => (Problem::NoAdapter, "there is no such adapter; plug it in".to_owned()),
        0x12 => (
            Problem::Rfkill,
            "the adapter is switched off by rfkill; run: rfkill unblock bluetooth".to_owned(),
        ),
        0x14 => return unavailable("the kernel does not permit it"),
        other => (Problem::Refused, format!("the kernel refused with status 0x{other:02x}")),
    };
    KernelError::new(problem, text)
}

/// Holds the socket, opens it again when it breaks, and answers for it meanwhile.
async fn hold(
    open: Opener,
    clock: Arc<dyn Clock>,
    mut asked: mpsc::Receiver<Question>,
    told: broadcast::Sender<Told>,
) {
    let mut last = String::new();
    loop {
        let why = match open().and_then(crate::sys::watch) {
            Ok(socket) => {
                last.clear();
                tracing::info!("the kernel's management interface is open");
                match converse(&socket, clock.as_ref(), &mut asked, &told).await {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        }
        .to_string();
        // Nobody may be watching.
        let _ = told.send(Told::Break);
        if why != last {
            tracing::warn!(why, "no management interface; trying again every {} s", REOPEN.as_secs());
            last.clone_from(&why);
        }
        let again = Instant::now() + REOPEN;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(again) => break,
                question = asked.recv() => {
                    let Some(question) = question else { return };
                    // The asker may have given up.
                    let _ = question.reply.send(Err(unavailable(&why)));
                }
            }
        }
    }
}

/// Ends with `Ok` when nobody holds a handle any more.
async fn converse(
    socket: &AsyncFd<File>,
    clock: &dyn Clock,
    asked: &mut mpsc::Receiver<Question>,
    told: &broadcast::Sender<Told>,
) -> io::Result<()> {
    let mut pending: VecDeque<Question> = VecDeque::new();
    let mut buffer = vec![0; packet::LONGEST];
    loop {
        tokio::select! {
            question = asked.recv() => {
                let Some(question) = question else { return Ok(()) };
                pending.retain(|old| !old.reply.is_closed());
                if pending.len() >= MOST_PENDING {
                    let busy = KernelError::new(Problem::Busy, "too many questions at once; ask again in a second");
                    let _ = question.reply.send(Err(busy));
                    continue;
                }
                let packet = question.command.encode(question.adapter);
                // Taken whole, at once, or not at all. The number that comes back means nothing: it is 0 for a command that
                // the kernel refuses outright, whose status comes as an event like any other.
                let _ = socket.get_ref().write(&packet)?;
                pending.push_back(question);
            }
            length = socket.async_io(tokio::io::Interest::READABLE, |mut file| file.read(&mut buffer)) => {
                let length = length?;
                if length == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let parsed = packet::parse(&buffer[..length]);
                // It may have held a key.
                buffer[..length].fill(0);
                match parsed {
                    Ok(Packet::Answer { adapter, opcode, status, body }) => {
                        answer(&mut pending, adapter, opcode, status, body);
                    }
                    Ok(Packet::NewKey { adapter, address, kind, key, key_bytes }) => {
                        let key = NewKey {
                            adapter: name(adapter),
                            address: address.to_string(),
                            kind,
                            authenticated: key.authenticated(),
                            secure_connections: key.secure_connections(),
                            key_bytes,
                            at_boot_us: clock.boottime_us(),
                        };
                        tracing::info!(
                            adapter = key.adapter,
                            address = key.address,
                            authenticated = key.authenticated,
                            secure_connections = key.secure_connections,
                            "a new key"
                        );
                        // Nobody may be watching.
                        let _ = told.send(Told::Key(key));
                    }
                    Ok(Packet::Other(_)) => {}
                    Err(error) => tracing::debug!(%error, "from the kernel"),
                }
            }
        }
    }
}

fn answer(pending: &mut VecDeque<Question>, adapter: u16, opcode: u16, status: u8, body: Vec<u8>) {
    let ours = pending.iter().position(|question| {
        question.adapter == adapter
            && question.command.opcode() == opcode
            && question.command.is_answered_by(&body)
    });
    if let Some(question) = ours.and_then(|at| pending.remove(at)) {
        // The asker may have given up.
        let _ = question.reply.send(if status == 0 { Ok(body) } else { Err(refused(status)) });
    }
}

#[cfg(test)]
mod tests;
