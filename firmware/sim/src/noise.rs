//! Random numbers of our own, so that a seed gives the same signals in every version of every dependency.

use std::f64::consts::TAU;

/// xoshiro256++ (Blackman and Vigna, 2019), seeded by splitmix64.
#[derive(Debug, Clone)]
pub struct Noise {
    state: [u64; 4],
    spare: Option<f64>,
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Noise {
    /// The stream `name` of a seed: each organ draws from its own, so that one does not disturb another.
    pub fn new(seed: u64, name: &str) -> Self {
        let mut mixed = name.bytes().fold(seed ^ 0x6b69_6e61_7261, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { state: std::array::from_fn(|_| splitmix(&mut mixed)), spare: None }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform between two bounds.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let angle = TAU * self.unit();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// Whether something that happens `per_second` times a second on average happens within `dt` seconds.
    pub fn happens(&mut self, per_second: f64, dt: f64) -> bool {
        self.unit() < -(-per_second * dt).exp_m1()
    }
}

/// A quantity that wanders around zero and returns (Ornstein and Uhlenbeck).
#[derive(Debug, Clone)]
pub struct Wander {
    value: f64,
    keep: f64,
    kick: f64,
}

impl Wander {
    /// `deviation` in the long run, with a memory of `memory_s`, stepped every `dt` seconds.
    pub fn new(deviation: f64, memory_s: f64, dt: f64) -> Self {
        let keep = (-dt / memory_s).exp();
        Self { value: 0.0, keep, kick: deviation * (1.0 - keep * keep).sqrt() }
    }

    /// One step on; gives the new value.
    pub fn step(&mut self, noise: &mut Noise) -> f64 {
        self.value = self.value * self.keep + self.kick * noise.normal();
        self.value
    }

    /// The value.
    pub fn value(&self) -> f64 {
        self.value
    }
}

/// Moves `value` towards `target` with time constant `tau_s`.
pub fn relax(value: &mut f64, target: f64, tau_s: f64, dt: f64) {
    *value += (target - *value) * -(-dt / tau_s).exp_m1();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_mean_zero_and_deviation_one() {
        let mut noise = Noise::new(3, "test");
        let drawn: Vec<f64> = (0..40_000).map(|_| noise.normal()).collect();
        let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
        let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / drawn.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }

    #[test]
    fn streams_of_one_seed_differ_by_name_and_repeat_by_name() {
        let draw = |name| Noise::new(9, name).bits();
        assert_eq!(draw("heart"), draw("heart"));
        assert_ne!(draw("heart"), draw("skin"));
    }
}
