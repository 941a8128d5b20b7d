//! The hand that the bed has in each machine: what can be asked of it, and the host's side of asking.

use crate::clock::utc_us;
use crate::{BedError, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the host wants done.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Run a command to its end.
    Run {
        /// Program and arguments.
        command: Vec<String>,
        /// Added to its environment.
        env: Vec<(String, String)>,
        /// Killed after so many seconds.
        within_s: f64,
    },
    /// Start a program that stays.
    Start {
        /// By which it is known from then on; one of this name that still runs is killed.
        name: String,
        /// Program and arguments.
        command: Vec<String>,
        /// Added to its environment.
        env: Vec<(String, String)>,
        /// Where its output goes (appended).
        log: String,
    },
    /// Send a signal to a program that was started.
    Signal {
        /// Which.
        name: String,
        /// `KILL`, `TERM`, `STOP`, …
        signal: String,
    },
    /// Wait for its end.
    End {
        /// Which.
        name: String,
        /// Killed after so many seconds.
        within_s: f64,
    },
    /// Whether it runs.
    Alive {
        /// Which.
        name: String,
    },
    /// Read a file.
    Read {
        /// Which.
        path: String,
    },
    /// Write a file and the folders above it.
    Write {
        /// Which.
        path: String,
        /// Its content.
        text: String,
        /// Its mode.
        mode: u32,
    },
    /// Set the clock.
    Shift {
        /// By so many microseconds.
        by_us: i64,
    },
    /// Tell the clock's time.
    Now,
}

/// A request and its number.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Repeated by the answer.
    pub id: u64,
    /// What is asked for.
    pub ask: Ask,
}

/// What came of a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// A command ended.
    Ended {
        /// Its exit status; -1 for a signal.
        status: i32,
        /// Its standard output.
        out: String,
        /// Its standard error.
        err: String,
    },
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
    /// Yes or no.
    Flag(bool),
}

/// An answer and the number of its request; 0 is what the hand says by itself when it has come up.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The request's.
    pub id: u64,
    /// What came of it, or why not.
    pub done: std::result::Result<Done, String>,
}

/// How long anything but a command may take: an emulated machine under load is slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a command said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its exit status; -1 for a signal.
    pub status: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Said {
    /// Its standard output, if it ended well.
    pub fn good(self) -> Result<String> {
        if self.status == 0 {
            Ok(self.out)
        } else {
            Err(BedError::Guest(format!(
                "ended with {}: {} {}",
                self.status,
                self.out.trim(),
                self.err.trim()
            )))
        }
    }
}

type Waiting = Arc<Mutex<HashMap<u64, Sender<std::result::Result<Done, String>>>>>;

/// The hand in one machine, for as long as this boot of it lasts.
#[derive(Debug)]
pub struct Hand {
    writer: Mutex<UnixStream>,
    waiting: Waiting,
    next: AtomicU64,
}

impl Hand {
    /// Takes the stream to a machine that starts; [`Hand::is_up`] tells when it answers.
    pub fn on(stream: UnixStream) -> std::io::Result<Self> {
        let waiting = Waiting::default();
        let reader = BufReader::new(stream.try_clone()?);
        let theirs = Arc::clone(&waiting);
        std::thread::Builder::new().name("hand".to_owned()).spawn(move || {
            for line in reader.lines().map_while(std::io::Result::ok) {
                if let Ok(answer) = serde_json::from_str::<Answer>(&line)
                    && let Some(sender) =
                        theirs.lock().unwrap_or_else(PoisonError::into_inner).remove(&answer.id)
                {
                    let _ = sender.send(answer.done);
                }
            }
            // The machine is gone: nobody waits for nothing.
            theirs.lock().unwrap_or_else(PoisonError::into_inner).clear();
        })?;
        Ok(Self { writer: Mutex::new(stream), waiting, next: AtomicU64::new(1) })
    }

    /// Whether the machine's hand answers within this time.
    pub fn is_up(&self, within: Duration) -> bool {
        self.ask(Ask::Now, within).is_ok()
    }

    fn ask(&self, ask: Ask, within: Duration) -> Result<Done> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let mut line = serde_json::to_vec(&Request { id, ask }).expect("a request is plain data");
        line.push(b'\n');
        self.writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(&line)
            .map_err(|error| BedError::Guest(format!("is not there ({error})")))?;
        match receiver.recv_timeout(within) {
            Ok(done) => done.map_err(BedError::Guest),
            Err(error) => {
                self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                Err(BedError::Guest(format!("did not answer ({error})")))
            }
        }
    }

    /// Runs a command to its end, at most so long.
    pub fn run_within(&self, within: Duration, command: &[&str]) -> Result<Said> {
        let command = command.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let told = command.join(" ");
        let ask = Ask::Run { command, env: Vec::new(), within_s: within.as_secs_f64() };
        match self.ask(ask, within + PATIENCE)? {
            Done::Ended { status, out, err } => Ok(Said { status, out, err }),
            other => Err(strange(&told, &other)),
        }
    }

    /// Runs a command to its end.
    pub fn run(&self, command: &[&str]) -> Result<Said> {
        self.run_within(PATIENCE, command)
    }

    /// Runs a line of shell, which must end well, and returns what it said.
    pub fn shell(&self, line: &str) -> Result<String> {
        self.run(&["sh", "-c", line])?.good().map_err(|error| BedError::Guest(format!("`{line}` {error}")))
    }

    /// Starts a program that stays; its output goes to `/run/bed-NAME.log`. Returns its process id.
    pub fn start(&self, name: &str, command: &[&str], env: &[(&str, &str)]) -> Result<i64> {
        let ask = Ask::Start {
            name: name.to_owned(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            log: log_of(name),
        };
        match self.ask(ask, PATIENCE)? {
            Done::Number(id) => Ok(id),
            other => Err(strange(name, &other)),
        }
    }

    /// Sends a signal to a program that was started.
    pub fn signal(&self, name: &str, signal: &str) -> Result<()> {
        self.ask(Ask::Signal { name: name.to_owned(), signal: signal.to_owned() }, PATIENCE).map(|_| ())
    }

    /// Waits for the end of a program that was started; its exit status (-1 for a signal).
    pub fn end(&self, name: &str, within: Duration) -> Result<i64> {
        match self
            .ask(Ask::End { name: name.to_owned(), within_s: within.as_secs_f64() }, within + PATIENCE)?
        {
            Done::Number(status) => Ok(status),
            other => Err(strange(name, &other)),
        }
    }

    /// Whether a program that was started still runs.
    pub fn alive(&self, name: &str) -> Result<bool> {
        match self.ask(Ask::Alive { name: name.to_owned() }, PATIENCE)? {
            Done::Flag(alive) => Ok(alive),
            other => Err(strange(name, &other)),
        }
    }

    /// What a program that was started has said.
    pub fn log(&self, name: &str) -> Result<String> {
        self.read(&log_of(name))
    }

    /// Reads a file.
    pub fn read(&self, path: &str) -> Result<String> {
        match self.ask(Ask::Read { path: path.to_owned() }, PATIENCE)? {
            Done::Text(text) => Ok(text),
            other => Err(strange(path, &other)),
        }
    }

    /// Writes a file and the folders above it.
    pub fn write(&self, path: &str, text: &str, mode: u32) -> Result<()> {
        self.ask(Ask::Write { path: path.to_owned(), text: text.to_owned(), mode }, PATIENCE).map(|_| ())
    }

    /// Sets the machine's clock to the host's, until it is seen to be there: the oracle takes what remains for an error of
    /// the gateway. How far off it may be at the most, microseconds.
    pub fn set_clock(&self) -> Result<i64> {
        /// Less than what a sync over Bluetooth can be uncertain by.
        const GOOD_US: i64 = 1_000;
        const TRIES: usize = 5;
        let off = |(ahead_us, uncertain_us): (i64, i64)| ahead_us.abs().saturating_add(uncertain_us);
        let mut measured = self.clock_offset()?;
        for _ in 0..TRIES {
            if off(measured) <= GOOD_US {
                break;
            }
            self.ask(Ask::Shift { by_us: -measured.0 }, PATIENCE)?;
            measured = self.clock_offset()?;
        }
        Ok(off(measured))
    }

    /// By how much the machine's clock is ahead of the host's, and how uncertain that is, microseconds. The shortest of
    /// many round trips counts: on a busy machine few of them are undisturbed.
    pub fn clock_offset(&self) -> Result<(i64, i64)> {
        const GOOD_US: i64 = 300;
        const PROBES: usize = 200;
        let mut best = (0, i64::MAX);
        for _ in 0..PROBES {
            let before = utc_us();
            let Done::Number(theirs) = self.ask(Ask::Now, PATIENCE)? else { continue };
            let after = utc_us();
            if (after - before) / 2 < best.1 {
                best = (theirs - before - (after - before) / 2, (after - before) / 2);
            }
            if best.1 <= GOOD_US {
                break;
            }
        }
        Ok(best)
    }
}

fn log_of(name: &str) -> String {
    format!("/run/bed-{name}.log")
}

fn strange(what: &str, done: &Done) -> BedError {
    BedError::Guest(format!("answered {done:?} to {what}"))
}
