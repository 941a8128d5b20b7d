//! The store's thread: jobs join a transaction, the transaction commits, then everybody hears of it.

use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::engine::Engine;
use super::{Haste, Job, Settings, StoreError, schema};
use crate::sabotage::{self, Kind};
use crate::status::{Admission, Board};
use crate::vitals::Pulse;

/// Called once the transaction is on disk, or has failed.
pub type Finish = Box<dyn FnOnce(Result<(), Arc<str>>) + Send>;

/// How often the store looks after itself when nobody asks for anything.
const TICK: Duration = Duration::from_millis(200);
/// How often a store that cannot keep anything tries again.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// A rescue that fails each time is tried again after this, doubled so often at most: it writes each time.
const RESCUES_DOUBLED: u32 = 5;
/// So long it may fail before the watchdog hears of it.
const PATIENCE: Duration = Duration::from_mins(1);

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
    /// Since when nothing could be written or read, and when it was last tried.
    failing: Option<Failing>,
}

#[derive(Debug, Clone)]
struct Failing {
    since: Instant,
    tried: Instant,
    why: Arc<str>,
}

impl Thread {
    fn open(settings: Settings, clock: Arc<dyn Clock>, board: Board) -> Result<Self, StoreError> {
        let pulse = board.vitals().pulse("store");
        let engine = Engine::open(settings, clock, board)?;
        let mut thread =
            Self { engine, pulse, finishes: Vec::new(), waiting_frames: 0, deadline: None, failing: None };
        match thread.engine.reopen() {
            Ok(()) => {}
            // Until it can be opened the gateway says so, and tries again.
            Err(error) if error.is_outside() => thread.is_failing(&error),
            Err(error) => return Err(error),
        }
        Ok(thread)
    }

    /// Works until it is stopped or nobody holds the store any more; gives who waits for the end.
    async fn run(&mut self, mut queue: mpsc::Receiver<Job>) -> Option<oneshot::Sender<()>> {
        let mut tick = Instant::now() + TICK;
        loop {
            if self.failing.as_ref().is_none_or(|failing| failing.since.elapsed() < PATIENCE) {
                self.pulse.beat();
            }
            let until = self.deadline.map_or(tick, |deadline| deadline.min(tick));
            let job = tokio::time::timeout_at(until, queue.recv()).await;
            match job {
                Ok(Some(Job::Tell(tell))) => tell(&mut self.engine),
                Ok(Some(Job::Read(read))) => self.read(read),
                Ok(Some(Job::Write { haste, frames, write })) => self.write(haste, frames, write),
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
            self.commit_if_due();
            if Instant::now() >= tick {
                self.look_after();
                tick = Instant::now() + TICK;
            }
        }
    }

    /// Why no job can be done: the database is not open.
    fn closed(&self) -> Option<Arc<str>> {
        let why = || self.failing.as_ref().map_or_else(|| "not open".into(), |failing| failing.why.clone());
        (!self.engine.is_open).then(why)
    }

    fn read(&mut self, read: super::Read) {
        let engine = match self.closed() {
            Some(why) => Err(why),
            None => Ok(&mut self.engine),
        };
        if let Some(error) = read(engine) {
            self.failed(&error);
        }
    }

    fn write(&mut self, haste: Haste, frames: usize, write: super::Write) {
        if let Some(why) = self.closed() {
            drop(write(Err(why)));
            return;
        }
        if let Err(error) = self.engine.begin() {
            drop(write(Err(error.to_string().into())));
            self.failed(&error);
            return;
        }
        let due = Instant::now() + commit_delay(self.engine.settings(), haste);
        self.deadline = Some(self.deadline.map_or(due, |deadline| deadline.min(due)));
        match write(Ok(&mut self.engine)) {
            Ok(finish) => {
                if haste == Haste::Prompt {
                    self.waiting_frames = self.waiting_frames.saturating_add(frames);
                }
                if haste == Haste::Told || is_told_too_soon(haste) {
                    finish(Ok(()));
                } else {
                    self.finishes.push(finish);
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    fn commit_if_due(&mut self) {
        if std::mem::take(&mut self.engine.urgent) {
            let soon = Instant::now() + self.engine.settings().group_commit;
            self.deadline = Some(self.deadline.map_or(soon, |deadline| deadline.min(soon)));
        }
        let full = self.waiting_frames >= self.engine.settings().group_frames || self.engine.staged.is_full();
        if full || self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.commit();
        }
    }

    /// Commits what is there, and, as it goes to the disk anyway, seals what is due or nearly.
    fn commit(&mut self) {
        if self.deadline.is_none() && !self.engine.in_transaction {
            return;
        }
        let engine = &mut self.engine;
        match engine.begin().and_then(|()| engine.seal_due()).and_then(|()| engine.commit()) {
            Ok(()) => self.durable(),
            Err(error) => self.failed(&error),
        }
    }

    /// Everything so far is on disk.
    fn durable(&mut self) {
        self.deadline = None;
        self.waiting_frames = 0;
        for finish in self.finishes.drain(..) {
            finish(Ok(()));
        }
        self.engine.committed();
        if self.failing.take().is_some() {
            tracing::warn!("the store works again");
            self.engine.in_order(None);
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
        let full = self.engine.is_disk_full(error);
        if full {
            tracing::error!(%error, "the disk is full: only events are taken until there is room");
        } else {
            tracing::error!(%error, "a transaction failed and was undone");
        }
        match self.engine.recover(error) {
            Ok(()) if full || error.is_corrupt() => {}
            Ok(()) => self.is_failing(error),
            Err(error) => self.is_failing(&error),
        }
    }

    /// Says that nothing can be kept, until something can.
    fn is_failing(&mut self, error: &StoreError) {
        // Also where it was full before anything could be opened: the reserve is what there is to begin with.
        if self.engine.is_disk_full(error) {
            self.engine.disk_is_full();
        }
        let (now, why) = (Instant::now(), Arc::from(error.to_string()));
        let since = self.failing.as_ref().map_or(now, |failing| failing.since);
        self.failing = Some(Failing { since, tried: now, why: Arc::clone(&why) });
        self.engine.in_order(Some(&why));
    }

    /// Sealing, packing, quotas, figures.
    fn look_after(&mut self) {
        if let Some(failing) = &mut self.failing {
            let doubled = self.engine.rescues_failed.min(RESCUES_DOUBLED);
            if failing.tried.elapsed() < TRY_EVERY * (1 << doubled) {
                return;
            }
            failing.tried = Instant::now();
            self.try_again();
            return;
        }
        match self.engine.look_after() {
            Ok(()) if std::mem::take(&mut self.engine.urgent) => self.commit(),
            Ok(()) if !self.engine.in_transaction => self.durable(),
            Ok(()) => {}
            Err(error) => self.failed(&error),
        }
    }

    /// Opens the database if it is not open, and writes something: a disk that can be read only is of no use.
    fn try_again(&mut self) {
        let engine = &mut self.engine;
        let reopened =
            if engine.is_open { Ok(()) } else { engine.reopen().and_then(|()| engine.resolve_again()) };
        match reopened.and_then(|()| engine.write_something()) {
            Ok(()) => self.durable(),
            Err(error) if self.engine.is_open => self.failed(&error),
            Err(error) => {
                tracing::error!(%error, "the store cannot be opened; trying again");
                self.is_failing(&error);
            }
        }
    }
}

/// Only where that is planted.
fn is_told_too_soon(haste: Haste) -> bool {
    sabotage::is(Kind::AckBeforeCommit) || haste == Haste::MayWait && sabotage::is(Kind::AckInWait)
}

fn commit_delay(settings: &Settings, haste: Haste) -> Duration {
    if sabotage::is(Kind::AckBeforeCommit) {
        return Duration::from_secs(2);
    }
    match haste {
        Haste::Prompt => settings.group_commit,
        Haste::MayWait | Haste::Told => settings.wearable_commit.max(settings.group_commit),
    }
}

/// The database file of a data folder.
pub fn database(settings: &Settings) -> std::path::PathBuf {
    schema::with_suffix(&settings.dir.join("store"), ".db")
}
