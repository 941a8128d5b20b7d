//! Everything this gateway has taken over and the cloud has not confirmed.
//!
//! The promise: when [`Store::append`] says that a frame is stored, the transaction that holds it is on disk
//! (`synchronous = FULL`), and it stays there until the bridge acknowledges, with name and digest, the batch it went
//! out in. A frame is stored once, however often it comes; a frame with a known identity and other content is put
//! aside and never takes the place of the first. Waveforms give way when the disk fills; scalars and events that
//! were acknowledged to a wearable never do. A row that cannot be read is set aside alone; a database that SQLite
//! itself cannot read is set aside whole, and what can be read of it comes over into a new one, because a gateway
//! that waits for a person loses more than it holds. A disk that cannot be written is tried again each second, and seen.
//!
//! SQLite lives on a thread of its own. Work comes in over a bounded queue and joins a transaction, which commits
//! after [`Settings::group_commit`] or [`Settings::group_frames`], whichever is first; nobody hears of success before.
//! Frames that their wearable keeps until they are acknowledged may wait longer, [`Settings::wearable_commit`]: written
//! together they cost the card a tenth. What has no second copy never waits for that.

mod append;
mod clock;
mod damage;
mod delivered;
mod engine;
mod events;
mod figures;
mod held;
mod load;
mod lock;
mod order;
mod outbox;
mod pack;
mod parked;
mod piece;
mod prune;
mod quota;
mod ranges;
mod rescue;
mod salvage;
mod schema;
mod seal;
mod sensors;
mod stage;
mod thread;
mod unnamed;
mod wanted;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kinara_clock::Clock;
use kinara_protocol::frame::{Epoch, Seq};
use kinara_protocol::topic::GatewayId;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::align::fit::Anchor;
use crate::align::floor::Floor;
use crate::align::source::Known;
use crate::hardware::HardwareId;
use crate::pipeline::{Fit, NewEvent};
use crate::status::{Admission, Board};

pub use engine::Engine;
pub use outbox::{Kind, Name, Sealed};
pub use parked::Parked;
pub use ranges::SeqSet;
pub use thread::database;
pub use wanted::Wanted;

/// How the store works. Built from the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder; the database is `store.db` in it.
    pub dir: PathBuf,
    /// Whose batches.
    pub gateway: GatewayId,
    /// Commit at the latest this long after the first write.
    pub group_commit: Duration,
    /// Commit as soon as this many frames wait.
    pub group_frames: usize,
    /// Frames that their wearable keeps meanwhile may wait so long for the commit.
    pub wearable_commit: Duration,
    /// Jobs that may wait for the thread.
    pub queue: usize,
    /// From here on no waveforms, bytes.
    pub soft_limit: u64,
    /// From here on nothing but events, bytes.
    pub hard_limit: u64,
    /// Kept free for events, gaps and SQLite itself, bytes.
    pub reserve: u64,
    /// Seal this long after the first unsealed frame.
    pub seal_after: Duration,
    /// Seal as soon as this many frame bytes wait.
    pub seal_bytes: u64,
    /// Pack up to this many frame bytes into a batch when more wait than the online limit.
    pub full_bytes: u64,
    /// Sealed batches that may wait for the bridge; beyond it frames stay frames.
    pub seal_ahead: u64,
    /// How long a frame waits for an anchor that may still come.
    pub unstamped_wait: Duration,
    /// Check the whole database at start when it is not larger than this, bytes.
    pub check_below: u64,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// On disk now.
    Stored,
    /// It was there already.
    Duplicate,
    /// Its identity is taken by another content; this copy is in quarantine.
    Collision,
    /// A waveform that is not kept, because the disk is nearly full. Its loss is on disk as a gap.
    Dropped,
    /// Not taken: the disk is too full for its class. It must not be acknowledged.
    Refused,
}

impl Outcome {
    /// Whether the wearable may forget it.
    pub fn is_safe(self) -> bool {
        !matches!(self, Self::Refused)
    }
}

/// What became of a frame, and how to stamp it if that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its fate.
    pub outcome: Outcome,
    /// Its time.
    pub fit: Option<Fit>,
}

/// A sync that this gateway made.
#[derive(Debug, Clone, Copy)]
pub struct OwnSync {
    /// The wearable's epoch.
    pub epoch: Epoch,
    /// The wearable's ticks.
    pub ticks: u64,
    /// Our boot time at that moment.
    pub boot_us: i64,
    /// Half the round trip.
    pub uncertainty_us: u64,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("the gateway's database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file system said no.
    #[error("the gateway's data folder: {0}; check that it exists and may be written")]
    Io(#[from] std::io::Error),
    /// The database is not one any more.
    #[error("the gateway's database is damaged: {0}")]
    Corrupt(String),
    /// A damaged database does not give out any more.
    #[error("a damaged database: {0}")]
    Unreadable(String),
    /// A later version of this program wrote it.
    #[error(
        "the gateway's database is of version {0}, newer than this program; install the newer program again"
    )]
    Newer(usize),
    /// Another daemon has it.
    #[error("another kinara-gatewayd works in {0}; stop it first, or give this one another data_dir")]
    Taken(PathBuf),
    /// The transaction failed for another job's sake, or the disk is full.
    #[error("not committed: {0}")]
    NotCommitted(Arc<str>),
    /// The thread has ended.
    #[error("the store has been stopped")]
    Stopped,
}

/// What an error says about the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fullness {
    /// It is full.
    Said,
    /// It may be: a failed write of the journal has no other name.
    Maybe,
    /// Nothing.
    Not,
}

impl StoreError {
    fn code(&self) -> Option<rusqlite::ffi::Error> {
        match self {
            Self::Sqlite(rusqlite::Error::SqliteFailure(error, _)) => Some(*error),
            _ => None,
        }
    }

    fn fullness(&self) -> Fullness {
        use rusqlite::ErrorCode::{DiskFull, SystemIoFailure};
        match (self, self.code().map(|error| error.code)) {
            (_, Some(DiskFull)) => Fullness::Said,
            (_, Some(SystemIoFailure)) => Fullness::Maybe,
            (Self::Io(error), _) if error.kind() == std::io::ErrorKind::StorageFull => Fullness::Said,
            _ => Fullness::Not,
        }
    }

    /// Whether the database has to be set aside: SQLite, or the disk below a page of it, says so.
    pub fn is_corrupt(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        use rusqlite::ffi::{SQLITE_IOERR_CORRUPTFS, SQLITE_IOERR_READ, SQLITE_IOERR_SHORT_READ};
        match (self, self.code()) {
            (Self::Corrupt(_), _) => true,
            (_, Some(error)) => {
                matches!(error.code, DatabaseCorrupt | NotADatabase)
                    || [SQLITE_IOERR_READ, SQLITE_IOERR_SHORT_READ, SQLITE_IOERR_CORRUPTFS]
                        .contains(&error.extended_code)
            }
            _ => false,
        }
    }

    /// Whether the cause lies outside of the database, so that another one would fare no better.
    fn is_outside(&self) -> bool {
        use rusqlite::ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory, PermissionDenied, ReadOnly,
            SystemIoFailure,
        };
        match self.code() {
            Some(error) => {
                !self.is_corrupt()
                    && matches!(
                        error.code,
                        CannotOpen
                            | DatabaseBusy
                            | DatabaseLocked
                            | DiskFull
                            | OutOfMemory
                            | PermissionDenied
                            | ReadOnly
                            | SystemIoFailure
                    )
            }
            None => matches!(self, Self::Io(_)),
        }
    }
}

type Read = Box<dyn FnOnce(Result<&mut Engine, Arc<str>>) -> Option<StoreError> + Send>;
type Write = Box<dyn FnOnce(Result<&mut Engine, Arc<str>>) -> Result<thread::Finish, StoreError> + Send>;

/// How long a write may wait for its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Haste {
    /// As long as others may join it.
    Prompt,
    /// As long as [`Settings::wearable_commit`]: somebody else keeps it meanwhile.
    MayWait,
    /// As long, and nobody has to wait for it: undone, it is done again.
    Told,
}

enum Job {
    /// Of what is in memory only: done whether the database is open or not.
    Tell(Box<dyn FnOnce(&mut Engine) + Send>),
    Read(Read),
    Write {
        haste: Haste,
        frames: usize,
        write: Write,
    },
    Stop(oneshot::Sender<()>),
}

/// A handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    admission: watch::Receiver<Admission>,
    outbox: watch::Receiver<u64>,
}

impl Store {
    /// Opens the store and starts its thread. A damaged database is set aside.
    pub fn open(settings: Settings, clock: Arc<dyn Clock>, board: Board) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel(settings.queue);
        let (admission, outbox) = thread::start(settings, clock, board, queue)?;
        Ok(Self { jobs, admission, outbox })
    }

    /// One that has ended, for tests of what needs none.
    #[cfg(test)]
    pub(crate) fn stopped() -> Self {
        let (jobs, _) = mpsc::channel(1);
        Self { jobs, admission: watch::channel(Admission::Everything).1, outbox: watch::channel(0).1 }
    }

    /// Stores frames of one wearable; returns when they are on disk. Frames must have been parsed before; one that
    /// does not parse is left out and comes back as refused.
    pub async fn append(
        &self,
        hardware: HardwareId,
        frames: Vec<Bytes>,
    ) -> Result<Vec<Appended>, StoreError> {
        self.append_with(Haste::Prompt, hardware, frames).await
    }

    /// As [`append`](Self::append), and says how long the commit may wait.
    pub async fn append_with(
        &self,
        haste: Haste,
        hardware: HardwareId,
        frames: Vec<Bytes>,
    ) -> Result<Vec<Appended>, StoreError> {
        let count = frames.len();
        self.write(haste, count, move |engine| engine.append(&hardware, &frames)).await
    }

    /// Commits what waits, soon.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.write(Haste::Prompt, 0, |_| Ok(())).await
    }

    /// Remembers a sync that this gateway made with a wearable.
    pub async fn own_sync(&self, hardware: HardwareId, sync: OwnSync) -> Result<(), StoreError> {
        self.own_syncs(hardware, vec![sync]).await
    }

    /// Remembers several, or none of them.
    pub async fn own_syncs(&self, hardware: HardwareId, syncs: Vec<OwnSync>) -> Result<(), StoreError> {
        self.write(Haste::Prompt, syncs.len(), move |engine| {
            syncs.iter().try_for_each(|sync| engine.own_sync(&hardware, *sync))
        })
        .await
    }

    /// Tells what the clock is, or that it is not known. It is told every few seconds: one that goes on as it did costs no
    /// commit, which would take along all that may wait for one.
    pub async fn clock_is(&self, known: Option<Known>) -> Result<(), StoreError> {
        let goes_on = self.read(move |engine| engine.clock_goes_on(known)).await?;
        match known {
            Some(known) if !goes_on => {
                self.write(Haste::Prompt, 0, move |engine| engine.clock_is(known)).await
            }
            _ => Ok(()),
        }
    }

    /// Puts an event into the outbox; false when it was there (or sent) already.
    pub async fn put_event(&self, event: NewEvent) -> Result<bool, StoreError> {
        self.write(Haste::Prompt, usize::MAX, move |engine| engine.put_event(&event)).await
    }

    /// Puts signed decisions into the outbox, all or none; on return they are on disk.
    pub async fn put_decisions(&self, decisions: Vec<(Uuid, Vec<u8>)>) -> Result<(), StoreError> {
        self.write(Haste::Prompt, usize::MAX, move |engine| engine.put_decisions(&decisions)).await
    }

    /// Whether a decision has not been acknowledged by the bridge yet.
    pub async fn decision_waits(&self, id: Uuid) -> Result<bool, StoreError> {
        self.ask(move |engine| engine.decision_waits(id)).await
    }

    /// Records that frames of an epoch, from `oldest` on and below `next`, will not come, except for those that are
    /// here: their log is to be formatted, at `ticks` of that epoch where that is known.
    pub async fn give_up(
        &self,
        hardware: HardwareId,
        epoch: Epoch,
        (oldest, next): (Seq, Seq),
        ticks: Option<u64>,
    ) -> Result<(), StoreError> {
        self.write(Haste::Prompt, usize::MAX, move |engine| {
            engine.give_up(&hardware, epoch, oldest, next, ticks)
        })
        .await
    }

    /// Whether the bridge can be reached: batches are sealed only then. A store that cannot be opened yet remembers it;
    /// an error means that there is none any more.
    pub async fn set_online(&self, online: bool) -> Result<(), StoreError> {
        self.tell(move |engine| engine.set_online(online)).await
    }

    /// The broker does not take this batch for its size: while this connection lasts others are sealed in its stead.
    pub async fn leave_out(&self, name: Name) -> Result<(), StoreError> {
        self.tell(move |engine| engine.leave_out(name)).await
    }

    /// The oldest sealed batches (or event batches) that wait for the bridge and are not in `except`, up to `count`
    /// and `bytes`, but at least one.
    pub async fn waiting(
        &self,
        kind: Kind,
        except: Vec<Name>,
        count: usize,
        bytes: usize,
    ) -> Result<Vec<Sealed>, StoreError> {
        self.ask(move |engine| engine.waiting(kind, &except, count, bytes)).await
    }

    /// Deletes what the bridge has acknowledged; not on disk yet, for what comes back goes out again. False when there is no such batch, or the digest is another's.
    pub async fn acknowledged(&self, name: Name, sha256: [u8; 32]) -> Result<bool, StoreError> {
        self.write(Haste::Told, 0, move |engine| engine.acknowledged(name, &sha256)).await
    }

    /// Keeps a batch that the bridge cannot read, out of the way. False as in [`acknowledged`](Self::acknowledged).
    pub async fn park(&self, name: Name, sha256: [u8; 32], reason: String) -> Result<bool, StoreError> {
        self.write(Haste::Prompt, 0, move |engine| engine.park(name, &sha256, &reason)).await
    }

    /// The batches that are parked, oldest first.
    pub async fn parked(&self) -> Result<Vec<Parked>, StoreError> {
        self.read(|engine| engine.parked()).await?
    }

    /// What would be published of a parked batch.
    pub async fn parked_payload(&self, name: Name) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(move |engine| engine.parked_payload(name)).await?
    }

    /// Puts all parked batches back into the outbox. Gives how many.
    pub async fn retry_parked(&self) -> Result<usize, StoreError> {
        self.write(Haste::Prompt, 0, Engine::retry_parked).await
    }

    /// Seals what there is now, regardless of age (a clean stop, benches). Gives how many batches were made.
    pub async fn seal_now(&self) -> Result<usize, StoreError> {
        self.write(Haste::Prompt, usize::MAX, Engine::seal_everything).await
    }

    /// What of an epoch has been received.
    pub async fn received(&self, hardware: HardwareId, epoch: Epoch) -> Result<SeqSet, StoreError> {
        self.read(move |engine| engine.received(&hardware, epoch)).await
    }

    /// What of a wearable was here, is lost, and is in no other gateway's hands as far as this one knows.
    pub async fn wanted(&self, hardware: HardwareId) -> Result<Wanted, StoreError> {
        self.ask(move |engine| engine.wanted(&hardware)).await
    }

    /// The wearable has nothing before this frame any more, or has sent it all: nothing before it is wanted.
    pub async fn no_longer_wanted(
        &self,
        hardware: HardwareId,
        before: (Epoch, Seq),
    ) -> Result<(), StoreError> {
        self.write(Haste::Prompt, 0, move |engine| engine.no_longer_wanted(&hardware, before)).await
    }

    /// What may have come at the end of a run that was killed is here, or is held by nobody.
    pub async fn followed(&self, hardware: HardwareId) -> Result<(), StoreError> {
        self.write(Haste::Prompt, 0, move |engine| engine.followed(&hardware)).await
    }

    /// The first seq from `seq` on that has not been received.
    pub async fn first_missing(
        &self,
        hardware: HardwareId,
        epoch: Epoch,
        seq: Seq,
    ) -> Result<Option<Seq>, StoreError> {
        self.read(move |engine| engine.received(&hardware, epoch).first_missing_from(seq)).await
    }

    /// The time before which nothing is believed, as it was kept.
    pub async fn floor(&self) -> Result<Floor, StoreError> {
        self.read(|engine| engine.floor()).await
    }

    /// Keeps it.
    pub async fn keep_floor(&self, floor: Floor) -> Result<(), StoreError> {
        self.write(Haste::MayWait, 0, move |engine| engine.keep_floor(&floor)).await
    }

    /// This run's buffer id, the one before it, and the store's id; 0 while none could be opened yet. An error means that
    /// there is none any more.
    pub async fn identity(&self) -> Result<(u64, u64, u64), StoreError> {
        self.tell(|engine| engine.identity()).await
    }

    /// A number kept under a name.
    pub async fn note(&self, key: &'static str) -> Result<Option<i64>, StoreError> {
        self.ask(move |engine| engine.meta(key)).await
    }

    /// Keeps a number under a name.
    pub async fn set_note(&self, key: &'static str, value: i64) -> Result<(), StoreError> {
        self.write(Haste::Prompt, 0, move |engine| engine.set_meta(key, value)).await
    }

    /// What is admitted now; changes as the disk fills and empties.
    pub fn admission(&self) -> watch::Receiver<Admission> {
        self.admission.clone()
    }

    /// Batches that are sealed from now on hold no more frame bytes than this: what the line carries well.
    pub fn pack_at_most(&self, bytes: u64) {
        // Where the queue is full a batch is as big as before; the next word comes soon.
        let _ = self.jobs.try_send(Job::Tell(Box::new(move |engine| engine.pack_at_most = bytes)));
    }

    /// Wakes when something new waits in the outbox.
    pub fn outbox_changed(&self) -> watch::Receiver<u64> {
        self.outbox.clone()
    }

    /// Commits, checkpoints and ends the thread.
    pub async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        if self.jobs.send(Job::Stop(done)).await.is_ok() {
            // An error means that it had stopped already.
            let _ = stopped.await;
        }
    }

    async fn tell<T: Send + 'static>(
        &self,
        tell: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, heard) = oneshot::channel();
        let job = Job::Tell(Box::new(move |engine| {
            // The teller may have gone.
            drop(reply.send(tell(engine)));
        }));
        self.jobs.send(job).await.map_err(|_| StoreError::Stopped)?;
        heard.await.map_err(|_| StoreError::Stopped)
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(|engine| Ok(read(engine))).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Engine) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Job::Read(Box::new(move |engine| {
            let (told, error) = match engine.map(read) {
                Ok(Ok(value)) => (Ok(value), None),
                Ok(Err(error)) => (Err(StoreError::NotCommitted(error.to_string().into())), Some(error)),
                Err(why) => (Err(StoreError::NotCommitted(why)), None),
            };
            // The asker may have gone; then nobody needs the answer.
            let _ = reply.send(told);
            error
        }));
        self.jobs.send(job).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    async fn write<T: Send + 'static>(
        &self,
        haste: Haste,
        frames: usize,
        write: impl FnOnce(&mut Engine) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let write: Write = Box::new(move |engine| match engine.map(write) {
            Ok(Ok(value)) => Ok(Box::new(move |committed| {
                let _ = reply.send(match committed {
                    Ok(()) => Ok(value),
                    Err(why) => Err(StoreError::NotCommitted(why)),
                });
            })),
            Ok(Err(error)) => {
                let text: Arc<str> = error.to_string().into();
                let _ = reply.send(Err(StoreError::NotCommitted(text)));
                Err(error)
            }
            Err(why) => {
                let _ = reply.send(Err(StoreError::NotCommitted(why.clone())));
                Err(StoreError::NotCommitted(why))
            }
        });
        self.jobs.send(Job::Write { haste, frames, write }).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }
}

impl OwnSync {
    /// As an anchor, once UTC is known.
    pub fn anchor(&self, known: &Known) -> Anchor {
        Anchor {
            ticks: self.ticks,
            utc_us: known.utc_us(self.boot_us),
            uncertainty_us: self.uncertainty_us + known.uncertainty_us_at(self.boot_us),
        }
    }
}
