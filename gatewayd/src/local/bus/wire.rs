//! What goes over the bus, and what `kinaractl --json` prints: the same structures, so the fields here are a promise.
//!
//! On the bus a value that may be missing is an array of none or one; in JSON it is null.

use kinara_clock::Clock as MachineClock;
use serde::{Deserialize, Serialize};
use zbus::zvariant::Type;

use crate::align::source::shown;
use crate::card;
use crate::desk::DeviceView;
use crate::radio::window;
use crate::radio::{Offer, SensorKind};
use crate::roster::{self, Roster};
use crate::status::{Admission, ClockState, Snapshot};
use crate::store;

/// How the box does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct Status {
    /// The gateway's id.
    pub gateway_id: String,
    /// Its name.
    pub gateway_name: String,
    /// The clinic's name; empty when not known yet.
    pub clinic_name: String,
    /// The daemon's version.
    pub version: String,
    /// UTC at which the daemon started, microseconds.
    pub started_us: i64,
    /// Devices that are connected.
    pub connected: u32,
    /// Devices that this box serves.
    pub devices: u32,
    /// Frames not yet sealed into a batch.
    pub frames: u64,
    /// Batches that the cloud has not confirmed.
    pub batches: u64,
    /// Events that the cloud has not confirmed.
    pub events: u64,
    /// Batches that the cloud could not read.
    pub parked: u64,
    /// Bytes of all that on disk.
    pub bytes: u64,
    /// Bytes free on the disk.
    pub disk_free_bytes: u64,
    /// UTC at which the oldest of it came, microseconds.
    pub oldest_us: Option<i64>,
    /// What is still taken: `everything`, `no_waveforms`, `events_only`.
    pub admission: String,
    /// Where the time comes from; `unknown` when nowhere.
    pub clock_source: String,
    /// How far off the clock may be, microseconds.
    pub clock_uncertainty_us: u64,
    /// Whether the broker is reached.
    pub cloud_connected: bool,
    /// Why not; empty when it is.
    pub cloud_trouble: String,
    /// UTC of the last confirmation, microseconds.
    pub last_ack_us: Option<i64>,
    /// The pairing window: `closed`, `open`, `pairing`, `paired`, `failed`.
    pub window: String,
    /// The radio's adapters.
    pub adapters: Vec<Adapter>,
    /// What a person should know.
    pub alerts: Vec<Alert>,
    /// How the card that holds the data is worn.
    pub card: Card,
}

/// How the card that holds the data is worn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct Card {
    /// What it bears, GB written, as configured.
    pub endurance_gb: u64,
    /// Who counts what is written: `device` (the kernel, of the block device below the file system; the whole card where that
    /// is a partition), `daemon` (the kernel, of this daemon alone), `nobody`.
    pub counted_by: String,
    /// For how long it was watched, seconds; a week at most.
    pub watched_s: u64,
    /// Bytes written a day at that pace; not known before it was watched for an hour.
    pub bytes_per_day: Option<u64>,
    /// How many years a new card lasts at that pace.
    pub years: Option<f64>,
}

impl From<&card::Card> for Card {
    fn from(card: &card::Card) -> Self {
        Self {
            endurance_gb: card.endurance_bytes / 1_000_000_000,
            counted_by: card.counter.as_str().to_owned(),
            watched_s: card.watched_s,
            bytes_per_day: card.bytes_per_day,
            years: card.years(),
        }
    }
}

/// What time it is, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Clock {
    /// Whether the time is known.
    pub known: bool,
    /// By whom; `unknown` when by nobody.
    pub source: String,
    /// How far off it may be, microseconds.
    pub uncertainty_us: u64,
    /// Whether two kinds of source, or a cloud that proved who it is, say the same.
    pub confirmed: bool,
    /// What is wrong; empty when nothing is.
    pub trouble: String,
    /// What the machine's own clock shows, UTC microseconds.
    pub machine_us: i64,
    /// Nothing before this is believed.
    pub floor_us: i64,
    /// Certificates are judged from here on while the time is not known.
    pub former_floor_us: i64,
    /// One source alone is not believed after this.
    pub ceiling_us: i64,
    /// What each source says.
    pub words: Vec<TimeWord>,
}

/// What a source says of the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct TimeWord {
    /// Which.
    pub source: String,
    /// UTC by its word, microseconds.
    pub utc_us: i64,
    /// How far off it may be, microseconds.
    pub uncertainty_us: u64,
    /// Whether it is believed.
    pub believed: bool,
}

impl Clock {
    /// As the board has it.
    pub fn of(clock: &ClockState) -> Self {
        let word = |word: &crate::status::Word| TimeWord {
            source: word.source.as_str().to_owned(),
            utc_us: word.utc_us,
            uncertainty_us: word.uncertainty_us,
            believed: word.believed,
        };
        Self {
            known: clock.unknown_since_us.is_none(),
            source: clock.source.as_str().to_owned(),
            uncertainty_us: clock.uncertainty_us,
            confirmed: clock.confirmed,
            trouble: clock.trouble.clone(),
            machine_us: clock.machine_us,
            floor_us: clock.floor_us,
            former_floor_us: clock.former_floor_us,
            ceiling_us: clock.ceiling_us,
            words: clock.words.iter().map(word).collect(),
        }
    }

    /// For `kinaractl doctor`.
    pub fn finding(&self) -> Finding {
        let floor = format!("sure of {} last", shown(self.floor_us));
        let (state, text, advice) = if !self.trouble.is_empty() {
            (if self.known { "warn" } else { "fail" }, self.trouble.clone(), "look: kinaractl clock")
        } else if self.known {
            ("ok", format!("known by {}; {floor}", self.source), "")
        } else {
            let advice = "give the box a network with NTP, or a way to the cloud; look: kinaractl clock";
            ("fail", format!("not known; {floor}, and the machine shows {}", shown(self.machine_us)), advice)
        };
        Finding { check: "time".to_owned(), state: state.to_owned(), text, advice: advice.to_owned() }
    }
}

/// A radio adapter of this box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Adapter {
    /// The system's name for it (`hci0`).
    pub name: String,
    /// Its address: what wearables know this box by.
    pub address: String,
    /// Whether it can be used.
    pub powered: bool,
    /// Links that it can hold, as far as learnt.
    pub slots: u32,
    /// Links that it holds.
    pub links: u32,
}

/// What a person should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Alert {
    /// About what.
    pub subject: String,
    /// What, and what to do.
    pub text: String,
}

impl Status {
    /// The status by the board, the roster and the window.
    pub fn of(now: &Snapshot, roster: &Roster, window: &window::Window, clock: &dyn MachineClock) -> Self {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            gateway_id: now.gateway_id.clone(),
            gateway_name: now.gateway_name.clone(),
            clinic_name: roster.clinic_name.clone(),
            version: now.version.clone(),
            started_us: now.started_us,
            connected: count(now.devices.values().filter(|device| device.link.connected()).count()),
            devices: count(now.devices.len()),
            frames: now.buffer.frames,
            batches: now.buffer.batches,
            events: now.buffer.events,
            parked: now.buffer.parked,
            bytes: now.buffer.bytes,
            disk_free_bytes: now.buffer.disk_free_bytes,
            oldest_us: some_time(now.buffer.oldest_us),
            admission: match now.buffer.admission {
                Admission::Everything => "everything",
                Admission::NoWaveforms => "no_waveforms",
                Admission::EventsOnly => "events_only",
            }
            .to_owned(),
            clock_source: now.clock.source.as_str().to_owned(),
            clock_uncertainty_us: now.clock.uncertainty_us,
            cloud_connected: now.uplink.connected,
            cloud_trouble: now.uplink.trouble.clone(),
            last_ack_us: some_time(now.uplink.last_ack_us),
            window: Window::of(window, clock).state,
            adapters: now
                .adapters
                .iter()
                .map(|(name, adapter)| Adapter {
                    name: name.clone(),
                    address: adapter.address.clone(),
                    powered: adapter.powered,
                    slots: count(adapter.slots),
                    links: count(adapter.links),
                })
                .collect(),
            alerts: now
                .alerts
                .iter()
                .map(|(subject, text)| Alert { subject: subject.clone(), text: text.clone() })
                .collect(),
            card: Card::from(&now.card),
        }
    }
}

/// A device of this box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Device {
    /// `kinara:…` or `bt:…`.
    pub hardware: String,
    /// The name it advertised.
    pub name: String,
    /// `away`, `pairing`, `connecting`, `draining`, `live`.
    pub link: String,
    /// Whether this box has a bond with it.
    pub bonded: bool,
    /// One side has forgotten the bond: forget it and pair it again.
    pub stale: bool,
    /// Its label came with the configuration file.
    pub configured: bool,
    /// Who wears it.
    pub wearer_id: Option<String>,
    /// As the clinic calls them, and its number for them.
    pub wearer_name: Option<String>,
    /// Battery, percent.
    pub battery_percent: Option<u8>,
    /// Whether it is worn.
    pub worn: Option<bool>,
    /// Signal strength, dBm.
    pub rssi_dbm: Option<i16>,
    /// Firmware version.
    pub firmware: String,
    /// Frames still on the device.
    pub behind_frames: u64,
    /// Frames on this box that the cloud has not confirmed.
    pub buffered_frames: u64,
    /// UTC of the last frame, microseconds.
    pub last_frame_us: Option<i64>,
    /// Why there is no link, and what to do; empty when all is well.
    pub trouble: String,
}

impl From<DeviceView> for Device {
    fn from(view: DeviceView) -> Self {
        let (wearer_id, wearer_name) = view.wearer.map(|(id, name)| (id.to_string(), name)).unzip();
        Self {
            hardware: view.hardware.to_string(),
            name: view.name,
            link: view.link.as_str().to_owned(),
            bonded: view.bonded,
            stale: view.stale,
            configured: view.configured,
            wearer_id,
            wearer_name,
            battery_percent: view.battery_percent,
            worn: view.worn,
            rssi_dbm: view.rssi_dbm,
            firmware: view.firmware,
            behind_frames: view.behind_frames,
            buffered_frames: view.buffered_frames,
            last_frame_us: some_time(view.last_frame_us),
            trouble: view.trouble,
        }
    }
}

/// The pairing window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Window {
    /// `closed`, `open`, `pairing`, `paired`, `failed`.
    pub state: String,
    /// Seconds until it closes, while it is open.
    pub seconds_left: Option<u32>,
    /// Codes that were not right; the third one closes the window.
    pub wrong_codes: u8,
    /// What is being paired.
    pub key: Option<String>,
    /// The device shows a number that has to be typed now.
    pub wants_passkey: bool,
    /// What has been paired.
    pub hardware: Option<String>,
    /// Why it failed, or closed.
    pub why: Option<Why>,
}

/// Why a pairing did not come about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Why {
    /// For programs.
    pub code: String,
    /// What happened.
    pub text: String,
    /// What to do.
    pub advice: String,
}

impl From<&window::Why> for Why {
    fn from(why: &window::Why) -> Self {
        Self { code: why.code().to_owned(), text: why.text(), advice: why.advice().to_owned() }
    }
}

impl Window {
    /// As the desk has it.
    pub fn of(window: &window::Window, clock: &dyn MachineClock) -> Self {
        let nothing = Self {
            state: "closed".to_owned(),
            seconds_left: None,
            wrong_codes: 0,
            key: None,
            wants_passkey: false,
            hardware: None,
            why: None,
        };
        match window {
            window::Window::Closed { why } => Self { why: why.as_ref().map(Why::from), ..nothing },
            window::Window::Open { until_boot_us, wrong_codes, .. } => {
                let left_s = (until_boot_us - clock.boottime_us()).max(0) / 1_000_000;
                Self {
                    state: "open".to_owned(),
                    seconds_left: Some(u32::try_from(left_s).unwrap_or(u32::MAX)),
                    wrong_codes: *wrong_codes,
                    ..nothing
                }
            }
            window::Window::Pairing { key, wants_passkey } => Self {
                state: "pairing".to_owned(),
                key: Some(key.clone()),
                wants_passkey: *wants_passkey,
                ..nothing
            },
            window::Window::Paired { hardware } => {
                Self { state: "paired".to_owned(), hardware: Some(hardware.to_string()), ..nothing }
            }
            window::Window::Failed { why } => {
                Self { state: "failed".to_owned(), why: Some(why.into()), ..nothing }
            }
        }
    }
}

/// Something near that can be paired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Nearby {
    /// By which it is chosen, while the window is open.
    pub key: String,
    /// The name it advertises.
    pub name: String,
    /// Signal strength, dBm.
    pub rssi_dbm: i16,
    /// How it is paired: `label`, `display`, `introduction` (by itself), `sensor`.
    pub offer: String,
    /// What a sensor measures: `heart_rate`, `health_thermometer`, `pulse_oximeter`.
    pub sensor: Option<String>,
    /// Milliseconds since it was last heard.
    pub seen_ms_ago: u64,
    /// The adapter that hears it best.
    pub adapter: String,
}

impl From<&window::Nearby> for Nearby {
    fn from(near: &window::Nearby) -> Self {
        let (offer, sensor) = match &near.offer {
            Offer::Label { .. } => ("label", None),
            Offer::Display => ("display", None),
            Offer::Introduction { .. } => ("introduction", None),
            Offer::Sensor(kind) => ("sensor", Some(sensor_word(*kind).to_owned())),
        };
        Self {
            key: near.key.clone(),
            name: near.name.clone(),
            rssi_dbm: near.rssi_dbm,
            offer: offer.to_owned(),
            sensor,
            seen_ms_ago: near.seen_ms_ago,
            adapter: near.adapter.to_string(),
        }
    }
}

fn sensor_word(kind: SensorKind) -> &'static str {
    match kind {
        SensorKind::HeartRate => "heart_rate",
        SensorKind::HealthThermometer => "health_thermometer",
        SensorKind::PulseOximeter => "pulse_oximeter",
    }
}

/// Somebody who wears, or may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Wearer {
    /// Id.
    pub user: String,
    /// As the clinic calls them.
    pub display_name: String,
    /// The clinic's own number; may be empty.
    pub external_id: String,
    /// Added here, not yet confirmed by the cloud.
    pub provisional: bool,
    /// What they wear.
    pub hardware: Vec<String>,
    /// The version of the consent in force.
    pub consent_version: Option<String>,
}

impl From<&roster::WearerEntry> for Wearer {
    fn from(entry: &roster::WearerEntry) -> Self {
        Self {
            user: entry.user.to_string(),
            display_name: entry.display_name.clone(),
            external_id: entry.external_id.clone(),
            provisional: entry.provisional,
            hardware: entry.hardware.iter().map(ToString::to_string).collect(),
            consent_version: entry.consent_version.clone(),
        }
    }
}

/// A text that wearers are asked to agree to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ConsentText {
    /// Version.
    pub version: String,
    /// `en`, `hi`.
    pub language: String,
    /// The text.
    pub text: String,
}

impl From<&roster::ConsentText> for ConsentText {
    fn from(text: &roster::ConsentText) -> Self {
        Self { version: text.version.clone(), language: text.language.clone(), text: text.text.clone() }
    }
}

/// A batch that the cloud could not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Parked {
    /// `batch` or `event`.
    pub kind: String,
    /// The run of the daemon that sealed it.
    pub buffer: u64,
    /// Its number in that run.
    pub sequence: u64,
    /// Frames in it.
    pub frames: u64,
    /// Its size.
    pub bytes: u64,
    /// What the bridge said.
    pub reason: String,
}

impl From<store::Parked> for Parked {
    fn from(parked: store::Parked) -> Self {
        Self {
            kind: kind_word(parked.name.kind).to_owned(),
            buffer: parked.name.buffer,
            sequence: parked.name.sequence,
            frames: parked.frames.values().sum(),
            bytes: parked.bytes,
            reason: parked.reason,
        }
    }
}

fn kind_word(kind: store::Kind) -> &'static str {
    match kind {
        store::Kind::Batch => "batch",
        store::Kind::Event => "event",
    }
}

/// The kind that is meant by a word.
pub fn kind_of(word: &str) -> Option<store::Kind> {
    [store::Kind::Batch, store::Kind::Event].into_iter().find(|kind| kind_word(*kind) == word)
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Finding {
    /// What was looked at: `adapter`, `clock`, …
    pub check: String,
    /// `ok`, `warn`, `fail`, or `skip` where it could not be looked at.
    pub state: String,
    /// What is so.
    pub text: String,
    /// What to do; empty when nothing is to be done.
    pub advice: String,
}

/// The board has 0 where there is no time.
fn some_time(us: i64) -> Option<i64> {
    (us != 0).then_some(us)
}

#[cfg(test)]
mod tests {
    use kinara_clock::ManualClock;

    use super::*;

    #[test]
    fn the_signatures_are_those_that_were_promised() {
        assert_eq!(Status::SIGNATURE.to_string(), "(ssssxuuttttttaxsstbsaxsa(ssbuu)a(ss)(tstatad))");
        assert_eq!(Device::SIGNATURE.to_string(), "(sssbbbasasayabansttaxs)");
        assert_eq!(Window::SIGNATURE.to_string(), "(sauyasbasa(sss))");
        assert_eq!(Nearby::SIGNATURE.to_string(), "(ssnsasts)");
        assert_eq!(Wearer::SIGNATURE.to_string(), "(sssbasas)");
        assert_eq!(Finding::SIGNATURE.to_string(), "(ssss)");
    }

    #[test]
    fn what_is_missing_is_null_in_json_and_an_empty_array_on_the_bus() {
        let clock = ManualClock::new(0, 1_000_000);
        let open = window::Window::Open { until_boot_us: 61_500_000, nearby: Vec::new(), wrong_codes: 1 };
        let shown = Window::of(&open, &clock);
        let json = serde_json::to_value(&shown).unwrap();
        assert_eq!(json["seconds_left"], 60);
        assert!(json["why"].is_null() && json["hardware"].is_null());
        let context = zbus::zvariant::serialized::Context::new_dbus(zbus::zvariant::LE, 0);
        let bytes = zbus::zvariant::to_bytes(context, &shown).unwrap();
        let (back, _): (Window, _) = bytes.deserialize().unwrap();
        assert_eq!(back, shown);
    }
}
