//! What the daemon knows about itself: one value, watched by the local page and by `state` on its way to the cloud.

use std::collections::BTreeMap;
use std::sync::Arc;

use kinara_protocol::frame::Epoch;
use tokio::sync::watch;

use crate::card::Card;
use crate::hardware::HardwareId;
use crate::store::SeqSet;
use crate::vitals::Vitals;

/// Where a wearable's link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Link {
    /// Not in range, or not tried yet.
    #[default]
    Away,
    /// In its pairing window; we are pairing.
    Pairing,
    /// A connection is being made.
    Connecting,
    /// Connected; its log is being drained.
    Draining,
    /// Connected and caught up.
    Live,
}

impl Link {
    /// A word for pages and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Pairing => "pairing",
            Self::Connecting => "connecting",
            Self::Draining => "draining",
            Self::Live => "live",
        }
    }

    /// Whether there is a link at all.
    pub fn connected(self) -> bool {
        matches!(self, Self::Draining | Self::Live)
    }
}

/// Whether a wearable measures at the intervals that were set for it here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Measures {
    /// It has not been told yet, or nothing was set.
    #[default]
    Waits,
    /// It said so at this time, UTC microseconds.
    SoSince(i64),
    /// It does not; why, for people.
    Not(String),
}

impl Measures {
    /// A word for programs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Waits => "waits",
            Self::SoSince(_) => "in_force",
            Self::Not(_) => "refused",
        }
    }
}

/// One wearable, as this gateway sees it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Device {
    /// The link.
    pub link: Link,
    /// The name it advertised, if it did.
    pub name: String,
    /// Firmware version from its Hello.
    pub firmware: String,
    /// The epoch in which it said so.
    pub epoch: Option<Epoch>,
    /// Battery in percent, when told.
    pub battery_percent: Option<u8>,
    /// Whether it is worn, when told.
    pub worn: Option<bool>,
    /// Signal strength of the link or of the last advertisement.
    pub rssi_dbm: Option<i16>,
    /// Frames the wearable still holds that we have not acknowledged.
    pub behind_frames: u64,
    /// Frames of this wearable on our disk that the cloud has not acknowledged.
    pub buffered_frames: u64,
    /// Of one of its epochs: the frames that the cloud has, or knows that it will not get.
    pub delivered: Option<(Epoch, SeqSet)>,
    /// Frames received since the daemon started, doubles included.
    pub received_frames: u64,
    /// UTC of the last frame received, microseconds; 0 for never.
    pub last_frame_us: i64,
    /// Newest value by channel number, in units of the channel's step.
    pub latest: BTreeMap<u16, i32>,
    /// Why the last attempt failed, for people; empty when all is well.
    pub trouble: String,
    /// Values of another maker's sensor that were not taken since the daemon started.
    pub left_out: u64,
    /// Why the last of them was not.
    pub left_out_why: String,
    /// The epoch whose start it was asked about.
    pub started: Option<Epoch>,
    /// Whether it measures as was set here.
    pub measures: Measures,
}

impl Device {
    /// What is wrong with it, for people; empty when all is well.
    pub fn problem(&self) -> String {
        if self.left_out == 0 || !self.trouble.is_empty() {
            return self.trouble.clone();
        }
        format!("{} of its values were left out; the last one: {}", self.left_out, self.left_out_why)
    }
}

/// A radio adapter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Adapter {
    /// Its address, `AA:BB:CC:DD:EE:FF`: what wearables know this box by.
    pub address: String,
    /// Whether it can be used.
    pub powered: bool,
    /// Links that it can hold, as far as learnt.
    pub slots: usize,
    /// Links that it holds.
    pub links: usize,
}

/// What the store holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Buffer {
    /// The store's id (new when a corrupt database was set aside).
    pub store_id: String,
    /// This run's buffer id.
    pub buffer_id: String,
    /// Frames not yet sealed into a batch.
    pub frames: u64,
    /// Sealed batches that the cloud has not acknowledged.
    pub batches: u64,
    /// Events that the cloud has not acknowledged.
    pub events: u64,
    /// Batches the cloud refused to read; kept for a person to look at.
    pub parked: u64,
    /// Frames whose identity was taken by another content.
    pub quarantined: u64,
    /// Records that could not be read any more and were set aside.
    pub damaged: u64,
    /// Bytes that all of it takes on disk.
    pub bytes: u64,
    /// Bytes free on the disk, as far as known.
    pub disk_free_bytes: u64,
    /// UTC at which the oldest of it was received, microseconds; 0 when empty.
    pub oldest_us: i64,
    /// What is still admitted.
    pub admission: Admission,
    /// Why nothing can be kept now; empty when all is well.
    pub trouble: String,
}

/// What the store takes, by how full it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub enum Admission {
    /// Everything.
    #[default]
    Everything,
    /// Over the soft limit: no waveforms.
    NoWaveforms,
    /// Over the hard limit: events only.
    EventsOnly,
}

/// Where the gateway's idea of UTC comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockSource {
    /// Not known; frames wait unstamped.
    #[default]
    Unknown,
    /// systemd's timedate1 says that NTP is in step.
    Timedate,
    /// The kernel says that its clock is in step.
    Kernel,
    /// The bridge told the time over MQTT.
    Bridge,
    /// A server of the web told the time.
    Https,
    /// The configuration says to trust the machine's clock.
    TrustSystem,
}

impl ClockSource {
    /// A word for pages, metrics and `state`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Timedate => "timedate1",
            Self::Kernel => "kernel",
            Self::Bridge => "bridge",
            Self::Https => "https",
            Self::TrustSystem => "trust_system",
        }
    }
}

/// What a source says of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// Which.
    pub source: ClockSource,
    /// UTC by its word, microseconds.
    pub utc_us: i64,
    /// How far off it may be.
    pub uncertainty_us: u64,
    /// Whether it is believed.
    pub believed: bool,
}

/// The clock.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClockState {
    /// The source in use.
    pub source: ClockSource,
    /// Its uncertainty in microseconds.
    pub uncertainty_us: u64,
    /// Since when (boottime, microseconds) the clock has been unknown; `None` when it is known.
    pub unknown_since_us: Option<i64>,
    /// Whether two kinds of source, or a bridge that proved who it is, say the same.
    pub confirmed: bool,
    /// Which source is not believed, or which two differ; empty when all is well.
    pub trouble: String,
    /// Before this nothing is believed.
    pub floor_us: i64,
    /// By this certificates are judged while the time is not known.
    pub former_floor_us: i64,
    /// After this one source alone is not believed.
    pub ceiling_us: i64,
    /// What the machine's clock shows.
    pub machine_us: i64,
    /// What each source says.
    pub words: Vec<Word>,
}

impl ClockState {
    /// Whether nothing differs but times, which always do.
    pub fn is_like(&self, other: &Self) -> bool {
        let of = |state: &Self| (state.source, state.uncertainty_us, state.unknown_since_us, state.confirmed);
        of(self) == of(other)
    }
}

/// The way to the cloud.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Uplink {
    /// Connected to the broker.
    pub connected: bool,
    /// Why not, for people.
    pub trouble: String,
    /// Batches the bridge has acknowledged since the daemon started.
    pub acknowledged_batches: u64,
    /// Batches published again.
    pub republished: u64,
    /// UTC of the last acknowledgement, microseconds; 0 for never.
    pub last_ack_us: i64,
    /// Somebody watches: live values are published.
    pub live: bool,
}

/// Everything at once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// The gateway's id.
    pub gateway_id: String,
    /// The gateway's name.
    pub gateway_name: String,
    /// Program version.
    pub version: String,
    /// UTC at which the daemon started, as the machine's clock had it, microseconds.
    pub started_us: i64,
    /// Wearables, by hardware id.
    pub devices: BTreeMap<HardwareId, Device>,
    /// Radio adapters, by name (`hci0`).
    pub adapters: BTreeMap<String, Adapter>,
    /// The store.
    pub buffer: Buffer,
    /// The clock.
    pub clock: ClockState,
    /// The uplink.
    pub uplink: Uplink,
    /// How the card that holds the data is worn.
    pub card: Card,
    /// What a person should know, by subject; an entry goes when its cause has gone.
    pub alerts: BTreeMap<String, String>,
}

/// The shared board on which each part writes its share of the [`Snapshot`].
#[derive(Debug, Clone)]
pub struct Board {
    sender: Arc<watch::Sender<Snapshot>>,
    vitals: Vitals,
}

impl Board {
    /// A board that shows `first`.
    pub fn new(first: Snapshot) -> Self {
        Self { sender: Arc::new(watch::channel(first).0), vitals: Vitals::default() }
    }

    /// Changes the snapshot; watchers wake when `change` says that something is different.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot) -> bool) {
        self.sender.send_if_modified(change);
    }

    /// Changes one wearable's entry.
    pub fn device(&self, hardware: &HardwareId, change: impl FnOnce(&mut Device)) {
        self.sender.send_modify(|snapshot| change(snapshot.devices.entry(hardware.clone()).or_default()));
    }

    /// Takes a wearable off the board.
    pub fn remove_device(&self, hardware: &HardwareId) {
        self.update(|snapshot| snapshot.devices.remove(hardware).is_some());
    }

    /// Raises an alert, or takes it away when `text` is `None`.
    pub fn alert(&self, subject: &str, text: Option<String>) {
        self.update(|snapshot| match text {
            Some(text) => snapshot.alerts.insert(subject.to_owned(), text.clone()) != Some(text),
            None => snapshot.alerts.remove(subject).is_some(),
        });
    }

    /// Which of the daemon's loops turn.
    pub fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// A watcher.
    pub fn watch(&self) -> watch::Receiver<Snapshot> {
        self.sender.subscribe()
    }

    /// The snapshot now.
    pub fn now(&self) -> Snapshot {
        self.sender.borrow().clone()
    }
}
