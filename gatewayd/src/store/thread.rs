//! The store's thread: jobs join a transaction, the transaction commits, then everybody hears of it.

use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::engine::Engine;
use super::{Job, Settings, StoreError, schema};
use crate::status::{Admission, Board};
use crate::vitals::Pulse;

/// Called once the transaction is on disk, or has failed.
pub type Finish = Box<dyn FnOnce(Result<(), Arc<str>>) + Send>;

/// How often the store looks after itself when nobody asks for anything.
const TICK: Duration = Duration::from_millis(200);

type Watches = (watch::Receiver<Admission>, watch::Receiver<u64>);

/// Opens the database on a new thread; returns when it is open or cannot be.
pub fn start(
    settings: Settings,
    clock: Arc<dyn Clock>,
    board: Board,
    queue: mpsc::Receiver<Job>,
) -> Result<Watches, StoreError> {
    let (opened, outcome) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name("store".to_owned()).spawn(move || {
        let mut thread = match Thread::open(settings, clock, board) {
            Ok(thread) => thread,
            Err(error) => {
                // The opener waits for exactly this.
                let _ = opened.send(Err(error));
                return;
            }
        };
        let _ = opened.send(Ok(thread.engine.watches()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        match runtime {
            Ok(runtime) => {
                let stopper = runtime.block_on(thread.run(queue));
                // The folder's lock goes first: who waits for the end may open it again at once.
                drop(thread);
                if let Some(done) = stopper {
                    // The stopper may have given up waiting.
                    let _ = done.send(());
                }
            }
            Err(error) => tracing::error!(%error, "the store's thread cannot start"),
        }
    })?;
    outcome.recv().map_err(|_| StoreError::Stopped)?
}

struct Thread {
    engine: Engine,
    pulse: Pulse,
    finishes: Vec<Finish>,
    waiting_frames: usize,
    deadline: Option<Instant>,
}

impl Thread {
    fn open(settings: Settings, clock: Arc<dyn Clock>, board: Board) -> Result<Self, StoreError> {
        let pulse = board.vitals().pulse("store");
        let engine = Engine::open(settings, clock, board)?;
        Ok(Self { engine, pulse, finishes: Vec::new(), waiting_frames: 0, deadline: None })
    }

    /// Works until it is stopped or nobody holds the store any more; gives who waits for the end.
    async fn run(&mut self, mut queue: mpsc::Receiver<Job>) -> Option<oneshot::Sender<()>> {
        let mut tick = Instant::now() + TICK;
        loop {
            self.pulse.beat();
            let until = self.deadline.unwrap_or(tick);
            let job = tokio::time::timeout_at(until, queue.recv()).await;
            match job {
                Ok(Some(Job::Read(read))) => read(&mut self.engine),
                Ok(Some(Job::Write { frames, write })) => self.write(frames, write),
                Ok(Some(Job::Stop(done))) => {
                    self.commit();
                    self.engine.close();
                    return Some(done);
                }
                Ok(None) => {
                    self.commit();
                    self.engine.close();
                    return None;
                }
                Err(_) => {}
            }
            let full = self.waiting_frames >= self.engine.settings().group_frames;
            if full || self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.commit();
            }
            if self.deadline.is_none() && Instant::now() >= tick {
                self.look_after();
                tick = Instant::now() + TICK;
            }
        }
    }

    fn write(&mut self, frames: usize, write: super::Write) {
        if self.deadline.is_none() {
            if let Err(error) = self.engine.begin() {
                self.failed(&error);
                return;
            }
            self.deadline = Some(Instant::now() + commit_delay(self.engine.settings()));
        }
        match write(&mut self.engine) {
            Ok(finish) => {
                self.waiting_frames = self.waiting_frames.saturating_add(frames);
                if crate::sabotage::is(crate::sabotage::Kind::AckBeforeCommit) {
                    finish(Ok(()));
                } else {
                    self.finishes.push(finish);
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    fn commit(&mut self) {
        if self.deadline.take().is_none() {
            return;
        }
        self.waiting_frames = 0;
        match self.engine.commit() {
            Ok(()) => {
                for finish in self.finishes.drain(..) {
                    finish(Ok(()));
                }
                self.engine.committed();
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Everything in this transaction is undone and everybody in it is told; the wearables will send again.
    fn failed(&mut self, error: &StoreError) {
        self.deadline = None;
        self.waiting_frames = 0;
        let why: Arc<str> = error.to_string().into();
        for finish in self.finishes.drain(..) {
            finish(Err(why.clone()));
        }
        if error.is_full() {
            tracing::error!(%error, "the disk is full: only events are taken until there is room");
        } else {
            tracing::error!(%error, "a transaction failed and was undone");
        }
        if let Err(error) = self.engine.recover(error) {
            tracing::error!(%error, "the store cannot be opened; trying again");
            #[allow(
                clippy::disallowed_methods,
                reason = "this thread is the store's own and has nothing to do"
            )]
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Sealing, packing, quotas, figures: in a transaction of their own.
    fn look_after(&mut self) {
        if let Err(error) = self.engine.look_after() {
            self.failed(&error);
        }
    }
}

fn commit_delay(settings: &Settings) -> Duration {
    if crate::sabotage::is(crate::sabotage::Kind::AckBeforeCommit) {
        Duration::from_secs(2)
    } else {
        settings.group_commit
    }
}

/// The database file of a data folder.
pub fn database(settings: &Settings) -> std::path::PathBuf {
    schema::with_suffix(&settings.dir.join("store"), ".db")
}
