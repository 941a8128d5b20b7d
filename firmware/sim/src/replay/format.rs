//! Reading recordings: BioSPPy's "Simple Text Format".
//!
//! Lines that begin with `#` are the header (`# Sampling Rate (Hz):= 1000.00`, `# Resolution:= 12`, `# Labels:= EDA`);
//! each other line is one sample, its columns separated by white space.

use std::path::{Path, PathBuf};

/// Why a recording cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not what the format says.
    #[error("{path}, line {line}: {what}")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is expected there.
        what: &'static str,
    },
    /// The header does not say what the numbers are.
    #[error("{path}: the header has no line \"# {key}:= …\"")]
    Header {
        /// Which file.
        path: PathBuf,
        /// What is missing.
        key: &'static str,
    },
    /// Nothing in it that a wearable measures.
    #[error("{0}: no signal that can be replayed; eda.txt, rri.txt and acc.txt of BioSPPy's format can")]
    NoSignal(PathBuf),
    /// Conductance without a resolution that no skin has.
    #[error(
        "{path}: without \"# Resolution:= …\" the values are µS, and {value} µS is no skin's; counts need their resolution"
    )]
    NoSkin {
        /// Which file.
        path: PathBuf,
        /// The value.
        value: f64,
    },
    /// Too short to loop.
    #[error("{path}: {samples} samples are too few; at least {needed} are needed")]
    TooShort {
        /// Which file.
        path: PathBuf,
        /// How many there are.
        samples: usize,
        /// How many it takes.
        needed: usize,
    },
}

/// A recording as it stands in its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// Where it came from, for messages.
    pub path: PathBuf,
    /// Samples per second.
    pub rate_hz: f64,
    /// Bits of the converter; none where the values have a unit.
    pub resolution_bits: Option<u32>,
    /// The columns' labels.
    pub labels: Vec<String>,
    /// Samples; each has as many values as there are labels.
    pub samples: Vec<Vec<f64>>,
}

impl Recorded {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, RecordingError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| RecordingError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, RecordingError> {
        let bad = |line: usize, what| RecordingError::Line { path: path.to_owned(), line: line + 1, what };
        let (mut rate_hz, mut resolution_bits, mut labels) = (None, None, None);
        let mut samples = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if let Some(header) = line.strip_prefix('#') {
                let Some((key, value)) = header.split_once(":=") else { continue };
                let value = value.trim();
                match key.trim() {
                    "Sampling Rate (Hz)" => {
                        let rate: f64 = value.parse().map_err(|_| bad(number, "a sampling rate in Hz"))?;
                        if !(0.01..=100_000.0).contains(&rate) {
                            return Err(bad(number, "a sampling rate of 0.01 to 100,000 Hz"));
                        }
                        rate_hz = Some(rate);
                    }
                    "Resolution" => {
                        let bits: u32 = value.parse().map_err(|_| bad(number, "a number of bits"))?;
                        if bits > 32 {
                            return Err(bad(number, "a resolution of at most 32 bits"));
                        }
                        resolution_bits = (bits > 0).then_some(bits);
                    }
                    "Labels" => {
                        let names: Vec<_> = value.split_whitespace().map(str::to_owned).collect();
                        labels = Some(names);
                    }
                    _ => {}
                }
            } else if !line.trim().is_empty() {
                let values: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
                let values = values.map_err(|_| bad(number, "numbers"))?;
                if !values.iter().all(|value| value.is_finite()) {
                    return Err(bad(
                        number,
                        "numbers that are finite; cut the recording where its sensor failed",
                    ));
                }
                if labels.as_ref().is_none_or(|labels| labels.len() != values.len()) {
                    return Err(bad(number, "as many numbers as the header has labels"));
                }
                samples.push(values);
            }
        }
        let missing = |key| RecordingError::Header { path: path.to_owned(), key };
        Ok(Self {
            path: path.to_owned(),
            rate_hz: rate_hz.ok_or_else(|| missing("Sampling Rate (Hz)"))?,
            resolution_bits,
            labels: labels.ok_or_else(|| missing("Labels"))?,
            samples,
        })
    }
}

/// Values of one rate as means over the intervals of another, by time: each value lasts until the next one. A lower rate so
/// holds no folded noise, and whatever the two rates, the signal is as long as it was.
pub fn means(values: &[f64], from_hz: f64, to_hz: f64) -> Vec<f64> {
    // A hair more: 0.1 s is no whole number.
    let whole = (values.len() as f64 * to_hz / from_hz + 1e-6) as usize;
    let each = from_hz / to_hz;
    (0..whole).map(|at| mean_between(values, at as f64 * each, (at + 1) as f64 * each)).collect()
}

/// The mean between two places, which may lie within a value.
fn mean_between(values: &[f64], from: f64, to: f64) -> f64 {
    let last = (to.ceil() as usize).min(values.len());
    let lasting = |at: usize| (to.min((at + 1) as f64) - from.max(at as f64)).max(0.0);
    let (sum, length) = (from as usize..last)
        .fold((0.0, 0.0), |(sum, length), at| (sum + values[at] * lasting(at), length + lasting(at)));
    sum / length
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDA: &str = "# Simple Text Format\n# Sampling Rate (Hz):= 8.00\n# Resolution:= 12\n# Labels:= EDA\n\
        2000.0\n2002.0\n2100.0\n2102.0\n";

    #[test]
    fn a_recording_is_read_and_brought_to_a_lower_rate_by_means() {
        let recorded = Recorded::parse(Path::new("eda.txt"), EDA).unwrap();
        assert_eq!((recorded.rate_hz, recorded.resolution_bits), (8.0, Some(12)));
        let values: Vec<f64> = recorded.samples.iter().map(|sample| sample[0]).collect();
        assert_eq!(means(&values, recorded.rate_hz, 4.0), [2001.0, 2101.0]);
    }

    #[test]
    fn whatever_its_rate_a_signal_lasts_as_long_as_it_was_recorded() {
        for from_hz in [0.5, 1.0, 3.0, 4.0, 10.0, 64.0, 1_000.0] {
            // A ramp: its value is its time, a minute long.
            let ramp: Vec<f64> =
                (0..(60.0 * from_hz) as usize).map(|at| (at as f64 + 0.5) / from_hz).collect();
            let played = means(&ramp, from_hz, 4.0);
            assert_eq!(played.len(), 240, "{from_hz} Hz");
            for (at, value) in played.iter().enumerate() {
                let time = (at as f64 + 0.5) / 4.0;
                assert!((value - time).abs() <= 0.5 / from_hz, "{from_hz} Hz: {value} at {time} s");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_refused_with_its_line() {
        for word in ["nan", "NaN", "inf", "-inf", "1e999"] {
            let text = EDA.replace("2100.0", word);
            let error = Recorded::parse(Path::new("eda.txt"), &text).unwrap_err().to_string();
            assert!(error.starts_with("eda.txt, line 7: numbers that are finite"), "{word}: {error}");
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        let text = EDA.replace("2100.0", "21x0.0");
        let error = Recorded::parse(Path::new("eda.txt"), &text).unwrap_err().to_string();
        assert_eq!(error, "eda.txt, line 7: numbers");
        let error = Recorded::parse(Path::new("eda.txt"), "1.0\n").unwrap_err().to_string();
        assert_eq!(error, "eda.txt, line 1: as many numbers as the header has labels");
    }
}
