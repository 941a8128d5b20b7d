//! Numbers from a window.
//!
//! Each feature is defined here in words, because the script that trains a model computes the same ones in another
//! language; a golden file shows that both agree.
//!
//! EDA is first averaged over whole seconds of the window. Heart-rate variability follows the Task Force of the ESC
//! and NASPE (Circulation 1996; 93: 1043-1065): RMSSD, SDNN and pNN50 over normal-to-normal intervals; an interval
//! outside 300 to 2,000 ms, or more than 20 % away from the one before it, is not taken as normal. The Task Force
//! asks for five minutes; a window is shorter, so these are ultra-short estimates, fit for a trend within one wearer
//! and not for comparison with norms. Responses in EDA are counted from 0.05 µS on (Boucsein et al., Psychophysiology
//! 2012; 49: 1017-1034).

use crate::signal::{Sample, Signal};
use crate::window::Window;

/// The least rise that is a response: 0.05 µS, less what single precision loses of a rise of exactly that.
const RESPONSE_US: f64 = 0.049_99;

/// Smaller falls are rounding: a mean of four samples has steps of 0.00025 µS.
const LEVEL_US: f64 = 0.000_1;

/// A number computed from a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Feature {
    /// Mean of the EDA over the window, µS.
    EdaLevel,
    /// Slope of the least-squares line through the last 30 s of EDA, µS/s.
    EdaSlope,
    /// Greatest rise of the EDA from an earlier to a later second within the last 30 s, µS.
    EdaRise,
    /// Rises of the EDA from a local minimum to the next local maximum by at least 0.05 µS.
    ScrCount,
    /// Mean heart rate, bpm.
    HeartRateMean,
    /// Mean heart rate of the last 15 s less that of the first 15 s, bpm.
    HeartRateChange,
    /// Root mean square of successive differences of normal intervals, ms.
    Rmssd,
    /// Standard deviation of normal intervals, ms.
    Sdnn,
    /// Share of successive differences of normal intervals above 50 ms, 0 to 1.
    Pnn50,
    /// Mean skin temperature, °C.
    TemperatureLevel,
    /// Slope of the least-squares line through the skin temperature, °C/min.
    TemperatureSlope,
    /// Mean activity counts per minute.
    Motion,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::EdaLevel,
        Self::EdaSlope,
        Self::EdaRise,
        Self::ScrCount,
        Self::HeartRateMean,
        Self::HeartRateChange,
        Self::Rmssd,
        Self::Sdnn,
        Self::Pnn50,
        Self::TemperatureLevel,
        Self::TemperatureSlope,
        Self::Motion,
    ];

    /// The name in manifests and in an event's data.
    pub fn name(self) -> &'static str {
        match self {
            Self::EdaLevel => "eda_level",
            Self::EdaSlope => "eda_slope",
            Self::EdaRise => "eda_rise",
            Self::ScrCount => "scr_count",
            Self::HeartRateMean => "heart_rate_mean",
            Self::HeartRateChange => "heart_rate_change",
            Self::Rmssd => "rmssd",
            Self::Sdnn => "sdnn",
            Self::Pnn50 => "pnn50",
            Self::TemperatureLevel => "temperature_level",
            Self::TemperatureSlope => "temperature_slope",
            Self::Motion => "motion",
        }
    }

    /// The feature of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }
}

/// The features of a window. One that the window has not enough signal for is absent, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Features([Option<f32>; 12]);

impl Features {
    /// Computes all of them.
    pub fn of(window: &Window<'_>) -> Self {
        let mut all = Self::default();
        all.eda(window);
        all.heart(window);
        all.variability(window);
        all.temperature(window);
        let activity = window.samples(Signal::Activity);
        // The channel counts over 30 s; twice its mean is counts a minute.
        all.set(Feature::Motion, mean(activity.iter().map(|s| f64::from(s.value))).map(|m| m * 2.0));
        all
    }

    /// One feature, when the window had enough signal for it.
    pub fn get(&self, feature: Feature) -> Option<f32> {
        self.0[feature as usize]
    }

    /// Those that are there, by name.
    pub fn present(&self) -> impl Iterator<Item = (Feature, f32)> + '_ {
        Feature::ALL.into_iter().filter_map(|f| self.get(f).map(|v| (f, v)))
    }

    fn set(&mut self, feature: Feature, value: Option<f64>) {
        self.0[feature as usize] = value.filter(|v| v.is_finite()).map(|v| v as f32);
    }

    fn eda(&mut self, window: &Window<'_>) {
        let seconds = Seconds::of(window.samples(Signal::Eda), window.start, window.end);
        if seconds.present() * 5 < seconds.len() * 4 {
            return;
        }
        let recent = seconds.last(30);
        self.set(Feature::EdaLevel, mean(seconds.values().map(|(_, v)| v)));
        self.set(Feature::EdaSlope, slope(recent.values()));
        self.set(Feature::EdaRise, recent.greatest_rise(30, recent.len()).map(|r| r.rise));
        self.set(Feature::ScrCount, Some(responses(seconds.values().map(|(_, v)| v)) as f64));
    }

    fn heart(&mut self, window: &Window<'_>) {
        let rate = window.samples(Signal::HeartRate);
        let span = (window.end - window.start) as f64 / 1000.0;
        // The plan has one a second; half of that still carries a mean.
        if (rate.len() as f64) < span * 0.5 {
            return;
        }
        let within = |from: u64, to: u64| {
            mean(rate.iter().filter(|s| s.ticks >= from && s.ticks < to).map(|s| f64::from(s.value)))
        };
        self.set(Feature::HeartRateMean, within(window.start, window.end));
        let first = within(window.start, window.start + 15_000);
        let last = within(window.end.saturating_sub(15_000), window.end);
        self.set(Feature::HeartRateChange, first.zip(last).map(|(first, last)| last - first));
    }

    fn variability(&mut self, window: &Window<'_>) {
        let (intervals, differences) = normal_intervals(window.samples(Signal::RrInterval));
        // Under 20 differences one artefact decides the value.
        if differences.len() < 20 {
            return;
        }
        let count = differences.len() as f64;
        let square = differences.iter().map(|d| d * d).sum::<f64>() / count;
        self.set(Feature::Rmssd, Some(square.sqrt()));
        self.set(Feature::Pnn50, Some(differences.iter().filter(|d| d.abs() > 50.0).count() as f64 / count));
        let centre = intervals.iter().sum::<f64>() / intervals.len() as f64;
        let spread = intervals.iter().map(|i| (i - centre) * (i - centre)).sum::<f64>();
        self.set(Feature::Sdnn, Some((spread / (intervals.len() - 1) as f64).sqrt()));
    }

    fn temperature(&mut self, window: &Window<'_>) {
        let samples = window.samples(Signal::SkinTemperature);
        let span = (window.end - window.start) as f64 / 1000.0;
        if (samples.len() as f64) < span * 0.5 {
            return;
        }
        let points = samples.iter().map(|s| ((s.ticks - window.start) as f64 / 1000.0, f64::from(s.value)));
        self.set(Feature::TemperatureLevel, mean(points.clone().map(|(_, v)| v)));
        self.set(Feature::TemperatureSlope, slope(points).map(|s| s * 60.0));
    }
}

/// Means of a signal over whole seconds; a second without a sample is empty.
#[derive(Debug, Clone)]
pub struct Seconds {
    /// Tick at which the first second begins.
    start: u64,
    means: Vec<Option<f64>>,
}

/// A rise of a signal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rise {
    /// How much.
    pub rise: f64,
    /// The tick at which the second begins from which it rises.
    pub from: u64,
    /// The tick at which the second begins to which it rises.
    pub to: u64,
}

impl Seconds {
    /// Averages `samples` over the seconds from `start` to `end`.
    pub fn of(samples: &[Sample], start: u64, end: u64) -> Self {
        let mut sums = vec![(0.0f64, 0u32); ((end - start) / 1000) as usize];
        for sample in samples {
            if let Some(cell) =
                sample.ticks.checked_sub(start).and_then(|t| sums.get_mut((t / 1000) as usize))
            {
                cell.0 += f64::from(sample.value);
                cell.1 += 1;
            }
        }
        Self { start, means: sums.into_iter().map(|(sum, n)| (n > 0).then(|| sum / f64::from(n))).collect() }
    }

    /// How many seconds there are, with and without samples.
    pub fn len(&self) -> usize {
        self.means.len()
    }

    /// Whether there is no second.
    pub fn is_empty(&self) -> bool {
        self.means.is_empty()
    }

    /// How many have a sample.
    pub fn present(&self) -> usize {
        self.means.iter().flatten().count()
    }

    /// The longest stretch of seconds without a sample.
    pub fn longest_hole(&self) -> usize {
        self.means.split(Option::is_some).map(<[_]>::len).max().unwrap_or(0)
    }

    /// The last `count` of them.
    #[must_use]
    pub fn last(&self, count: usize) -> Self {
        let skipped = self.means.len().saturating_sub(count);
        Self { start: self.start + skipped as u64 * 1000, means: self.means[skipped..].to_vec() }
    }

    /// Seconds from the start, and mean, of those that have one.
    pub fn values(&self) -> impl Iterator<Item = (f64, f64)> + Clone + '_ {
        self.means.iter().enumerate().filter_map(|(i, m)| m.map(|m| (i as f64, m)))
    }

    /// The greatest rise from one second to a later one at most `within` seconds away, which ends in the last
    /// `ending` of them. Of equal ones the earliest.
    pub fn greatest_rise(&self, within: usize, ending: usize) -> Option<Rise> {
        let mut best: Option<Rise> = None;
        for to in self.means.len().saturating_sub(ending)..self.means.len() {
            let Some(high) = self.means[to] else { continue };
            let lows = (to.saturating_sub(within)..=to).filter_map(|from| Some((from, self.means[from]?)));
            let Some((from, low)) = lows.min_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))) else {
                continue;
            };
            if best.is_none_or(|b| high - low > b.rise) {
                let tick = |second: usize| self.start + second as u64 * 1000;
                best = Some(Rise { rise: high - low, from: tick(from), to: tick(to) });
            }
        }
        best
    }
}

/// Intervals that may count as normal, and the differences between those of them that follow one another.
fn normal_intervals(samples: &[Sample]) -> (Vec<f64>, Vec<f64>) {
    let mut normal = Vec::with_capacity(samples.len());
    let mut differences = Vec::with_capacity(samples.len());
    let mut before: Option<f64> = None;
    let mut before_was_normal = false;
    for sample in samples {
        let interval = f64::from(sample.value);
        if !(300.0..=2000.0).contains(&interval) {
            before = None;
            before_was_normal = false;
            continue;
        }
        let close = before.is_none_or(|b| (interval - b).abs() <= 0.2 * b);
        if close {
            if let (Some(b), true) = (before, before_was_normal) {
                differences.push(interval - b);
            }
            normal.push(interval);
        }
        before = Some(interval);
        before_was_normal = close;
    }
    (normal, differences)
}

/// Rises from a local minimum to the next local maximum by at least 0.05 µS.
fn responses(values: impl Iterator<Item = f64>) -> usize {
    let mut count = 0;
    let mut low = f64::INFINITY;
    let mut last = f64::INFINITY;
    for value in values {
        if value < last - LEVEL_US {
            // The rise that ended at `last` is over.
            count += usize::from(last - low >= RESPONSE_US);
            low = value;
        } else {
            low = low.min(value);
        }
        last = value;
    }
    count + usize::from(last - low >= RESPONSE_US)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), v| (sum + v, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// Slope of the least-squares line.
fn slope(points: impl Iterator<Item = (f64, f64)> + Clone) -> Option<f64> {
    let centre_x = mean(points.clone().map(|(x, _)| x))?;
    let centre_y = mean(points.clone().map(|(_, y)| y))?;
    let (cross, square) = points.fold((0.0, 0.0), |(cross, square), (x, y)| {
        (cross + (x - centre_x) * (y - centre_y), square + (x - centre_x) * (x - centre_x))
    });
    (square > 0.0).then(|| cross / square)
}
