//! The time domain.

/// What the intervals between normal beats say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeDomain {
    /// Their mean, ms.
    pub mean_nn_ms: f64,
    /// Their sample standard deviation, ms.
    pub sdnn_ms: f64,
    /// The root of the mean of the squared differences between successive ones, ms.
    pub rmssd_ms: f64,
    /// How many of 100 intervals differ by more than 50 ms from the one before.
    pub pnn50: f64,
}

/// Of stretches of intervals; between two stretches there is no difference. None without two intervals in a row.
pub fn of(runs: &[Vec<f64>]) -> Option<TimeDomain> {
    let all = || runs.iter().flatten().copied();
    let differences = || runs.iter().flat_map(|run| run.windows(2).map(|pair| pair[1] - pair[0]));
    let (n, pairs) = (all().count(), differences().count());
    if n < 2 || pairs == 0 {
        return None;
    }
    let mean = all().sum::<f64>() / n as f64;
    let squares: f64 = all().map(|nn| (nn - mean).powi(2)).sum();
    let steps: f64 = differences().map(|step| step * step).sum();
    Some(TimeDomain {
        mean_nn_ms: mean,
        sdnn_ms: (squares / (n - 1) as f64).sqrt(),
        rmssd_ms: (steps / pairs as f64).sqrt(),
        pnn50: differences().filter(|step| step.abs() > 50.0).count() as f64 * 100.0 / n as f64,
    })
}
