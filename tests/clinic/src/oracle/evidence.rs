//! What the oracle judges by: logs, the harness's own plan and fault log, and rows as they are in the database.

use std::collections::HashMap;

use uuid::Uuid;

use super::log::WearableLog;

/// From when on somebody wears a wearable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    /// From the first sample there is.
    Start,
    /// From this true time on.
    Time(i64),
    /// From this frame on, in the order of the wearable's log.
    Frame {
        /// Boot.
        epoch: u64,
        /// First frame that belongs to the new wearer.
        seq: u32,
    },
}

/// One stretch of the harness's assignment plan; it ends where the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// Where it begins.
    pub from: Boundary,
    /// Whose clinic.
    pub tenant: Uuid,
    /// Who wears it.
    pub user: Uuid,
}

/// Something the harness did that may cost samples, and how many at most. Written by the harness when it does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// The wearable lost its memory at `at_us`: samples not yet in flash may go, at most one frame age of them.
    Reset {
        /// True time of the reset.
        at_us: i64,
        /// The longest that a frame stayed open at that moment.
        frame_age_us: i64,
    },
    /// Nobody took the wearable's frames in this stretch, and its ring is small: the oldest may go, the newest
    /// `keeps` samples of the stretch may not.
    Overflow {
        /// First true time.
        from_us: i64,
        /// Last true time.
        to_us: i64,
        /// What a ring of that size holds in any case.
        keeps: usize,
    },
    /// The gateway's disk was full in this stretch: waveforms may go, nothing else.
    Quota {
        /// First true time.
        from_us: i64,
        /// Last true time.
        to_us: i64,
    },
    /// This wearer was erased: all that was theirs must go, nothing else may.
    Erased {
        /// Who.
        user: Uuid,
    },
    /// A gateway's database was deleted or replaced by an older copy: what it alone held may go. `(epoch, seq)` is the
    /// oldest frame that the wearable still kept at that moment: from it on nothing may be missing.
    GatewayLost {
        /// The copy's true time (the beginning of the run, when there was none).
        from_us: i64,
        /// When it was lost.
        to_us: i64,
        /// Boot of the oldest frame that the wearable still kept.
        epoch: u64,
        /// That frame.
        seq: u32,
    },
}

/// One wearable: what it produced and what the harness knows about it.
#[derive(Debug, Clone)]
pub struct Wearable {
    /// `kinara:` and the factory id.
    pub hardware: String,
    /// Its simulator's log.
    pub log: WearableLog,
    /// Who wore it, in order; the first begins at [`Boundary::Start`].
    pub plan: Vec<Assignment>,
    /// What the harness did to it.
    pub allowances: Vec<Allowance>,
    /// How wrong a time sync may be: 20 ms on the virtual radio, more where the gateway's own clock is worse.
    pub sync_bound_us: u64,
    /// The scenario that brought it.
    pub scenario: String,
    /// When all faults were over and everything was back: of what it produced since then, something must be stored.
    pub fresh_from_us: Option<i64>,
}

impl Wearable {
    /// Who of its wearers was erased.
    pub fn erased(&self) -> Option<Uuid> {
        self.allowances.iter().find_map(|allowance| match allowance {
            Allowance::Erased { user } => Some(*user),
            _ => None,
        })
    }

    /// Whose a sample is by the harness's plan, if it is in the frame of this epoch and seq.
    pub fn wearer_at(&self, utc_us: i64, (epoch, seq): (u64, u32)) -> Option<&Assignment> {
        self.plan.iter().rev().find(|assignment| match assignment.from {
            Boundary::Start => true,
            Boundary::Time(from_us) => utc_us >= from_us,
            Boundary::Frame { epoch: from, seq: first } => {
                (self.log.rank(epoch), seq) >= (self.log.rank(from), first)
            }
        })
    }

    /// Whether the harness filled a gateway's disk under it.
    pub fn may_meet_a_limit(&self) -> bool {
        self.allowances.iter().any(|allowance| matches!(allowance, Allowance::Quota { .. }))
    }
}

/// A row of readings (or one sample of a waveform's row).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Index into [`Evidence::wearables`].
    pub wearable: usize,
    /// Tenant's device row.
    pub device: Uuid,
    /// Whose clinic, as stored.
    pub tenant: Uuid,
    /// Whose reading, as stored.
    pub user: Uuid,
    /// Boot.
    pub epoch: u64,
    /// Frame.
    pub seq: u32,
    /// Place in the frame; a waveform's sample: its row's place, its place in the row.
    pub index: u64,
    /// Channel number.
    pub channel: u16,
    /// Stored time: a waveform's, of its row's first sample.
    pub time_us: i64,
    /// Ticks from there to this sample: 0 but in a waveform's row.
    pub offset_ticks: u64,
    /// Stored value, one number for each component.
    pub value: [f64; super::log::MAX_COMPONENTS],
    /// How many components.
    pub components: u8,
}

/// A row of `frame_times`: how these frames' times came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameTime {
    /// Index into [`Evidence::wearables`].
    pub wearable: usize,
    /// Boot.
    pub epoch: u64,
    /// Frames, inclusive ranges.
    pub seqs: Vec<(u32, u32)>,
    /// The fit's reference tick.
    pub ref_ticks: u64,
    /// The time of the reference tick.
    pub ref_utc_us: i64,
    /// Drift.
    pub rate_ppb: i64,
    /// Uncertainty at the reference tick.
    pub uncertainty_us: u64,
    /// How the uncertainty grows with the distance from it.
    pub growth_ppb: i64,
    /// No sync in this boot: the time is an interval.
    pub time_uncertain: bool,
}

impl FrameTime {
    /// Which tick a stored time is.
    pub fn ticks(&self, time_us: i64) -> Option<u64> {
        let slope = 1000.0 * (1.0 + self.rate_ppb as f64 * 1e-9);
        let ticks = self.ref_ticks as f64 + (time_us - self.ref_utc_us) as f64 / slope;
        (ticks > -0.5).then(|| ticks.round().max(0.0) as u64)
    }

    /// The time of a sample so many ticks after a stored time.
    pub fn later_us(&self, time_us: i64, ticks: u64) -> i64 {
        time_us + (ticks as f64 * 1000.0 * (1.0 + self.rate_ppb as f64 * 1e-9)).round() as i64
    }

    /// How wrong a time at this tick may be, as stated.
    pub fn uncertainty_us(&self, ticks: u64) -> f64 {
        self.uncertainty_us as f64
            + self.growth_ppb as f64 * 1e-9 * ticks.abs_diff(self.ref_ticks) as f64 * 1000.0
    }
}

/// A gap that is in force (not withdrawn).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Index into [`Evidence::wearables`].
    pub wearable: usize,
    /// Boot.
    pub epoch: u64,
    /// Frames, inclusive ranges, where the gap names frames.
    pub seqs: Option<Vec<(u32, u32)>>,
    /// Where it names ticks: the last tick that is in a frame, and the last that is missing.
    pub ticks: Option<(u64, u64)>,
    /// Why.
    pub reason: String,
}

impl Gap {
    /// Whether it tells that a sample is missing, of one of these frames or at this tick. Samples of several channels
    /// may share the last tick in flash, and not all of them be there.
    pub fn tells_of(&self, seqs: &[u32], ticks: u64) -> bool {
        match (&self.seqs, self.ticks) {
            (Some(missing), _) => seqs.iter().any(|seq| within(missing, *seq)),
            (None, Some((from, to))) => (from..=to).contains(&ticks),
            (None, None) => false,
        }
    }

    /// Whether it claims that a frame is missing, or that nothing was stored at this tick.
    pub fn denies(&self, seq: u32, ticks: u64) -> bool {
        match (&self.seqs, self.ticks) {
            (Some(missing), _) => within(missing, seq),
            (None, Some((from, to))) => from < ticks && ticks <= to,
            (None, None) => false,
        }
    }
}

/// Whether one of these inclusive ranges holds it.
pub fn within(ranges: &[(u32, u32)], seq: u32) -> bool {
    ranges.iter().any(|(first, last)| (*first..=*last).contains(&seq))
}

/// Everything the judgement of one clinic rests on.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Wearables of this run.
    pub wearables: Vec<Wearable>,
    /// Stored readings.
    pub readings: Vec<Reading>,
    /// Stored fits.
    pub frame_times: Vec<FrameTime>,
    /// Gaps in force.
    pub gaps: Vec<Gap>,
    /// Rows of devices that no wearable of this run is: hardware id and clinic → how many.
    pub strangers: HashMap<(String, Uuid), usize>,
}
