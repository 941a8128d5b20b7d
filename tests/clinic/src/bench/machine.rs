//! What a process costs, read from `/proc`.

use std::time::{Duration, Instant};

/// Clock ticks in a second: 100 on every Linux that Debian builds.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time that a process has used so far, its own threads only.
pub fn cpu(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks; the fields after its bracket are fixed.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let user: f64 = fields.get(11)?.parse().ok()?;
    let system: f64 = fields.get(12)?.parse().ok()?;
    Some(Duration::from_secs_f64((user + system) / TICKS_PER_SECOND))
}

/// The most memory that a process ever had resident, MiB.
pub fn peak_rss_mib(pid: u32) -> Option<f64> {
    status_mib(pid, "VmHWM:")
}

/// The memory that a process has resident now, MiB.
pub fn rss_mib(pid: u32) -> Option<f64> {
    status_mib(pid, "VmRSS:")
}

fn status_mib(pid: u32, name: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kib: f64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

/// CPU use of a process over a stretch.
#[derive(Debug)]
pub struct Meter {
    pid: u32,
    cpu: Duration,
    since: Instant,
}

impl Meter {
    /// From now on.
    pub fn start(pid: u32) -> Option<Self> {
        Some(Self { pid, cpu: cpu(pid)?, since: Instant::now() })
    }

    /// Percent of one CPU until now.
    pub fn percent(&self) -> Option<f64> {
        let used = cpu(self.pid)?.saturating_sub(self.cpu);
        Some(100.0 * used.as_secs_f64() / self.since.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_process_has_memory_and_uses_cpu() {
        let pid = std::process::id();
        assert!(peak_rss_mib(pid).unwrap() > 0.5);
        let meter = Meter::start(pid).unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(120) {
            std::hint::black_box(began.elapsed());
        }
        assert!(meter.percent().unwrap() > 1.0);
    }
}
