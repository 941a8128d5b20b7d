//! Hot flashes with the published course.
//!
//! - Sternal skin conductance rises by 2 µS or more within 30 s; this is the accepted marker (Freedman 1989,
//!   Psychophysiology 26:573; Freedman 2014, J Steroid Biochem Mol Biol 142:115). It falls back over minutes.
//! - Heart rate rises by about 5 to 15 bpm, beginning with the flash, for a few minutes (Kronenberg et al. 1984,
//!   Maturitas 6:31; Freedman 1998, Fertil Steril 70:332).
//! - Finger and chest skin warm by about one degree, later than the sweat, and cool again over many minutes
//!   (Kronenberg 1990, Ann N Y Acad Sci 592:52).

use crate::noise::Noise;

/// Flashes whose tails still matter; one more forgets the oldest.
const MAX_RUNNING: usize = 6;
/// After this long a flash is over.
const OVER_S: f64 = 3_000.0;
/// The first flash of a watched wearable comes after this share of the interval.
const FIRST: f64 = 0.3;

#[derive(Debug, Clone)]
struct Flash {
    onset_us: i64,
    conductance_us: f64,
    rise_s: f64,
    decay_s: f64,
    heart_rate_bpm: f64,
    skin_c: f64,
}

/// What flashes add to the body's signals.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Response {
    /// To skin conductance, µS.
    pub conductance_us: f64,
    /// To heart rate.
    pub heart_rate_bpm: f64,
    /// To skin temperature, °C.
    pub skin_temperature_c: f64,
}

impl Flash {
    fn draw(noise: &mut Noise, onset_us: i64) -> Self {
        Self {
            onset_us,
            conductance_us: noise.between(3.0, 5.5),
            rise_s: noise.between(14.0, 24.0),
            decay_s: noise.between(90.0, 160.0),
            heart_rate_bpm: noise.between(6.0, 14.0),
            skin_c: noise.between(0.6, 1.4),
        }
    }

    fn response(&self, now_us: i64) -> Response {
        let t = (now_us - self.onset_us) as f64 / 1e6;
        if t <= 0.0 {
            return Response::default();
        }
        let share = (t / self.rise_s).min(1.0);
        let plateau_s = self.rise_s + 15.0;
        let rise = share * share * (3.0 - 2.0 * share);
        let sweat = rise * (-(t - plateau_s).max(0.0) / self.decay_s).exp();
        // Gamma-shaped, with peaks at one and at four minutes.
        let bump = |peak_s: f64| t / peak_s * (1.0 - t / peak_s).exp();
        Response {
            conductance_us: self.conductance_us * sweat,
            heart_rate_bpm: self.heart_rate_bpm * bump(60.0),
            skin_temperature_c: self.skin_c * bump(240.0),
        }
    }
}

/// The wearer's flashes.
#[derive(Debug, Clone)]
pub struct HotFlashes {
    noise: Noise,
    every_us: Option<i64>,
    next_us: i64,
    running: Vec<Flash>,
}

impl HotFlashes {
    pub(super) fn new(seed: u64, every_us: Option<i64>, watched_from_us: i64) -> Self {
        let first = every_us.map_or(0, |every| (every as f64 * FIRST) as i64);
        Self {
            noise: Noise::new(seed, "hot flash"),
            every_us,
            next_us: watched_from_us + first,
            running: Vec::new(),
        }
    }

    pub(super) fn step(&mut self, now_us: i64) {
        self.running.retain(|flash| ((now_us - flash.onset_us) as f64) < OVER_S * 1e6);
        if let Some(every_us) = self.every_us
            && now_us >= self.next_us
        {
            self.start(now_us);
            self.next_us = now_us + (every_us as f64 * self.noise.between(0.85, 1.15)) as i64;
        }
    }

    pub(super) fn start(&mut self, now_us: i64) {
        if self.running.len() == MAX_RUNNING {
            self.running.remove(0);
        }
        let flash = Flash::draw(&mut self.noise, now_us);
        self.running.push(flash);
    }

    pub(super) fn response(&self, now_us: i64) -> Response {
        self.running.iter().map(|flash| flash.response(now_us)).fold(Response::default(), |sum, one| {
            Response {
                conductance_us: sum.conductance_us + one.conductance_us,
                heart_rate_bpm: sum.heart_rate_bpm + one.heart_rate_bpm,
                skin_temperature_c: sum.skin_temperature_c + one.skin_temperature_c,
            }
        })
    }
}
