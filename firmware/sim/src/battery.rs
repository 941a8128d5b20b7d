//! The battery: a level that falls over days and is charged again, the same at the same time whatever was restarted.

use crate::noise::Noise;

const DAY_US: f64 = 86_400e6;

/// Charge over true time.
#[derive(Debug, Clone)]
pub struct Battery {
    // All in µs.
    life: f64,
    charge: f64,
    phase: f64,
}

impl Battery {
    /// The battery of a seed: three to six days from full to empty.
    pub fn new(seed: u64) -> Self {
        let mut noise = Noise::new(seed, "battery");
        let life = noise.between(3.0, 6.0) * DAY_US;
        let charge = noise.between(1.0, 1.6) * 3_600e6;
        Self { life, charge, phase: noise.unit() * (life + charge) }
    }

    /// Percent at a true time.
    pub fn percent(&self, utc_us: i64) -> f64 {
        let at = (utc_us as f64 + self.phase).rem_euclid(self.life + self.charge);
        if at < self.life {
            // The wearer charges it at a few percent.
            100.0 - 93.0 * at / self.life
        } else {
            7.0 + 93.0 * (at - self.life) / self.charge
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_for_days_and_is_charged_and_never_leaves_its_range() {
        let battery = Battery::new(1);
        let levels: Vec<f64> = (0..2_000).map(|hour| battery.percent(hour * 3_600_000_000)).collect();
        assert!(levels.iter().all(|level| (0.0..=100.0).contains(level)));
        assert!(levels.iter().any(|&level| level < 15.0) && levels.iter().any(|&level| level > 90.0));
    }
}
