//! A real person's recorded signals instead of the simulated ones, in a loop.
//!
//! - `EDA`: µS where the header tells no resolution (or 0); else raw converter counts. The sensor is then biosignalsplux's or BITalino's; both give
//!   EDA (µS) = counts / 2^bits · 25 (biosignalsplux: VCC / 0.12 with VCC = 3 V; BITalino: VCC / 0.132 with
//!   VCC = 3.3 V).
//! - `RRI`: a list of intervals between beats in ms. They become `rr_interval` one after another, and `heart_rate`
//!   as the mean of the last six.
//! - `acc_x acc_y acc_z`: acceleration. The sample's header says m/s², its values are plainly in g (gravity is 1.0),
//!   and are taken as such. They become `activity_counts`.
//!
//! What a recording does not hold comes from the simulated body. Where the recording starts again its signal jumps.

pub mod format;

use std::path::Path;

use self::format::{Recorded, RecordingError, means};
use crate::body::Beat;

/// µS at the converter's full scale.
const EDA_FULL_SCALE_US: f64 = 25.0;
const EDA_HZ: f64 = 4.0;
/// More than any skin conducts, µS.
const NO_SKIN_US: f64 = 100.0;
const MIN_SAMPLES: usize = 16;
/// Counts for one g·s of deviation from gravity; the simulated body's scale.
const COUNTS_PER_G_S: f64 = 133.0;
const RATE_BEATS: usize = 6;

/// A recording, ready to be played.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recording {
    conductance_us: Vec<f64>,
    intervals_ms: Vec<f64>,
    /// Counts in each second.
    counts: Vec<f64>,
}

impl Recording {
    /// Reads a file, or all recordings of a directory.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let mut recording = Self::default();
        if path.is_dir() {
            for name in ["eda.txt", "rri.txt", "acc.txt"] {
                let file = path.join(name);
                if file.exists() {
                    recording.add(&Recorded::read(&file)?)?;
                }
            }
        } else {
            recording.add(&Recorded::read(path)?)?;
        }
        if recording == Self::default() {
            return Err(RecordingError::NoSignal(path.to_owned()));
        }
        Ok(recording)
    }

    fn add(&mut self, recorded: &Recorded) -> Result<(), RecordingError> {
        let enough = |samples: usize, needed| {
            if samples >= needed {
                return Ok(());
            }
            Err(RecordingError::TooShort { path: recorded.path.clone(), samples, needed })
        };
        match recorded.labels.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["EDA"] => {
                let values = conductance_us(recorded)?;
                self.conductance_us = means(&values, recorded.rate_hz, EDA_HZ);
                enough(self.conductance_us.len(), MIN_SAMPLES)
            }
            ["RRI"] => {
                let beats = recorded.samples.iter().map(|sample| sample[0]);
                self.intervals_ms = beats.filter(|rr| (200.0..3_000.0).contains(rr)).collect();
                enough(self.intervals_ms.len(), MIN_SAMPLES)
            }
            ["acc_x", "acc_y", "acc_z"] => {
                let size = |sample: &Vec<f64>| sample.iter().map(|x| x * x).sum::<f64>().sqrt();
                let deviation = |sample: &Vec<f64>| (size(sample) - 1.0).abs();
                let deviations: Vec<f64> = recorded.samples.iter().map(deviation).collect();
                let in_a_second = means(&deviations, recorded.rate_hz, 1.0);
                self.counts = in_a_second.iter().map(|mean| mean * COUNTS_PER_G_S).collect();
                enough(self.counts.len(), 1)
            }
            _ => Err(RecordingError::NoSignal(recorded.path.clone())),
        }
    }

    /// Starts playing at a true time.
    pub fn play(self, start_us: i64) -> Player {
        let first_us = self.intervals_ms.first().map_or(start_us, |rr| start_us + (rr * 1e3) as i64);
        Player {
            recording: self,
            start_us,
            next_beat: 0,
            next_beat_us: first_us,
            seconds_counted: 0,
            counts: 0.0,
        }
    }
}

fn conductance_us(recorded: &Recorded) -> Result<Vec<f64>, RecordingError> {
    let values = recorded.samples.iter().map(|sample| sample[0]);
    if let Some(bits) = recorded.resolution_bits {
        let scale = EDA_FULL_SCALE_US / f64::from(bits).exp2();
        return Ok(values.map(|counts| counts * scale).collect());
    }
    match values.clone().find(|value| value.abs() > NO_SKIN_US) {
        Some(value) => Err(RecordingError::NoSkin { path: recorded.path.clone(), value }),
        None => Ok(values.collect()),
    }
}

/// A recording that is being played.
#[derive(Debug, Clone)]
pub struct Player {
    recording: Recording,
    start_us: i64,
    next_beat: usize,
    next_beat_us: i64,
    seconds_counted: i64,
    counts: f64,
}

impl Player {
    /// Skin conductance at a true time, if it was recorded.
    pub fn conductance(&self, utc_us: i64) -> Option<f64> {
        let values = &self.recording.conductance_us;
        let index = ((utc_us - self.start_us) as f64 / 1e6 * EDA_HZ) as usize;
        values.get(index.checked_rem(values.len())?).copied()
    }

    /// The next recorded beat up to a true time, once.
    pub fn take_beat(&mut self, until_us: i64) -> Option<Beat> {
        let intervals = &self.recording.intervals_ms;
        if intervals.is_empty() || self.next_beat_us > until_us {
            return None;
        }
        let beat = Beat { utc_us: self.next_beat_us, rr_ms: intervals[self.next_beat % intervals.len()] };
        self.next_beat += 1;
        self.next_beat_us += (intervals[self.next_beat % intervals.len()] * 1e3) as i64;
        Some(beat)
    }

    /// Mean heart rate over the last recorded beats, bpm.
    pub fn heart_rate(&self) -> Option<f64> {
        let intervals = &self.recording.intervals_ms;
        let last = self.next_beat.max(1);
        let first = last.saturating_sub(RATE_BEATS);
        let sum: f64 =
            (first..last).map(|beat| intervals.get(beat % intervals.len().max(1))).sum::<Option<f64>>()?;
        Some(60_000.0 * (last - first) as f64 / sum)
    }

    /// Whether beats were recorded.
    pub fn has_beats(&self) -> bool {
        !self.recording.intervals_ms.is_empty()
    }

    /// Activity counts up to a true time, since the last call.
    pub fn take_counts(&mut self, utc_us: i64) -> Option<u32> {
        let counts = &self.recording.counts;
        if counts.is_empty() {
            return None;
        }
        let seconds = (utc_us - self.start_us) / 1_000_000;
        while self.seconds_counted < seconds {
            self.counts += counts[self.seconds_counted as usize % counts.len()];
            self.seconds_counted += 1;
        }
        let whole = self.counts.floor();
        self.counts -= whole;
        Some(whole as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> Recording {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/recordings/biosppy");
        Recording::open(&path).expect("the repository carries it")
    }

    #[test]
    fn the_shipped_recording_plays_a_persons_signals_in_a_loop() {
        let mut player = shipped().play(0);
        let mut beats = Vec::new();
        while let Some(beat) = player.take_beat(900_000_000) {
            beats.push(beat);
        }
        assert!((1_300..1_600).contains(&beats.len()), "{} beats in fifteen minutes", beats.len());
        assert!(beats.windows(2).all(|pair| {
            let apart = (pair[1].utc_us - pair[0].utc_us) as f64 / 1e3;
            (apart - pair[1].rr_ms).abs() < 0.01
        }));
        let rate = player.heart_rate().unwrap();
        assert!((60.0..140.0).contains(&rate), "{rate} bpm");
        for second in 0..900 {
            let conductance = player.conductance(second * 1_000_000).unwrap();
            assert!((13.0..17.0).contains(&conductance), "{conductance} µS");
        }
        assert_eq!(player.conductance(1_000_000), player.conductance(151_000_000));
        assert!(player.take_counts(30_000_000).unwrap() > 0);
    }

    /// A file of this header and these lines, played from 0 on.
    fn played(header: &str, lines: impl Iterator<Item = String>) -> Result<Player, RecordingError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signal.txt");
        let lines: String = lines.map(|line| line + "\n").collect();
        std::fs::write(&path, format!("# Simple Text Format\n{header}\n{lines}")).unwrap();
        Ok(Recording::open(&path)?.play(0))
    }

    #[test]
    fn conductance_in_microsiemens_is_played_as_it_is_and_counts_by_their_resolution() {
        let of = |resolution: &str, value: &str| {
            let header = format!("# Sampling Rate (Hz):= 4.00\n{resolution}# Labels:= EDA");
            played(&header, std::iter::repeat_n(value.to_owned(), 40))
        };
        for none in ["", "# Resolution:= 0\n"] {
            assert_eq!(of(none, "2.0").unwrap().conductance(5_000_000), Some(2.0));
            let error = of(none, "2048").unwrap_err();
            assert!(matches!(error, RecordingError::NoSkin { value: 2048.0, .. }), "{error}");
        }
        assert_eq!(of("# Resolution:= 12\n", "2048").unwrap().conductance(5_000_000), Some(12.5));
    }

    #[test]
    fn a_recording_of_another_rate_is_played_at_its_own_pace() {
        for hz in [1, 4, 10] {
            let header = format!("# Sampling Rate (Hz):= {hz}.00\n# Labels:= EDA");
            // 10 µS and a step to 20 µS after half a minute.
            let lines = (0..60 * hz).map(|at| if at < 30 * hz { "10" } else { "20" }.to_owned());
            let player = played(&header, lines).unwrap();
            let at = |second: i64| player.conductance(second * 1_000_000).unwrap();
            assert_eq!([29, 30, 59, 60].map(at).to_vec(), [10.0, 20.0, 20.0, 10.0], "{hz} Hz");
        }
    }

    #[test]
    fn a_single_file_replays_its_own_signal_and_nothing_else() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/recordings/biosppy/rri.txt");
        let mut player = Recording::open(&path).unwrap().play(0);
        assert!(player.has_beats() && player.conductance(0).is_none() && player.take_counts(10).is_none());
    }
}
