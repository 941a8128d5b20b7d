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
    /// Bits of the converter; 0 where the values have a unit.
    pub resolution_bits: u32,
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
        let (mut rate_hz, mut resolution_bits, mut labels) = (None, 0, None);
        let mut samples = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if let Some(header) = line.strip_prefix('#') {
                let Some((key, value)) = header.split_once(":=") else { continue };
                let value = value.trim();
                match key.trim() {
                    "Sampling Rate (Hz)" => {
                        let rate: f64 = value.parse().map_err(|_| bad(number, "a sampling rate in Hz"))?;
                        if !(rate.is_finite() && rate > 0.0) {
                            return Err(bad(number, "a sampling rate above 0"));
                        }
                        rate_hz = Some(rate);
                    }
                    "Resolution" => {
                        resolution_bits = value.parse().map_err(|_| bad(number, "a number of bits"))?;
                        if resolution_bits > 32 {
                            return Err(bad(number, "a resolution of at most 32 bits"));
                        }
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

    /// Means over windows of `1 / rate_hz`, so that a slower channel holds no folded noise.
    pub fn at_rate(&self, rate_hz: f64) -> Vec<Vec<f64>> {
        let window = ((self.rate_hz / rate_hz).round() as usize).max(1);
        self.samples
            .chunks_exact(window)
            .map(|chunk| {
                let mean = |column: usize| chunk.iter().map(|s| s[column]).sum::<f64>() / chunk.len() as f64;
                (0..self.labels.len()).map(mean).collect()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDA: &str = "# Simple Text Format\n# Sampling Rate (Hz):= 8.00\n# Resolution:= 12\n# Labels:= EDA\n\
        2000.0\n2002.0\n2100.0\n2102.0\n";

    #[test]
    fn a_recording_is_read_and_brought_to_a_lower_rate_by_means() {
        let recorded = Recorded::parse(Path::new("eda.txt"), EDA).unwrap();
        assert_eq!((recorded.rate_hz, recorded.resolution_bits), (8.0, 12));
        assert_eq!(recorded.at_rate(4.0), [[2001.0], [2101.0]]);
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
