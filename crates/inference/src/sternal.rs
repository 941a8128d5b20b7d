//! The sternal skin conductance rule for hot flashes.
//!
//! A hot flash is a rise of the sternal skin conductance by at least 2 µS within 30 s (Freedman RR, *Laboratory and
//! ambulatory monitoring of menopausal hot flashes*, Psychophysiology 1989; 26: 573-579; de Bakker IPM, Everaerd W,
//! *Measurement of menopausal hot flushes: validation and cross-validation*, Maturitas 1996; 25: 87-98). After an
//! onset, 20 minutes are locked out, as in the ambulatory studies that followed (Thurston RC et al., *Hot flashes and
//! cardiac vagal control*, Menopause 2010; 17: 456-461).
//!
//! What the rule is not: a rise of 2 µS found 32 % of reported flashes at a specificity of 97 % in women treated for
//! breast cancer (Savard MH et al., Menopause 2014; 21: 165-169), and it holds for the sternum only. Palms and fingers
//! rise as much at a thought. The electrode must sit where the literature had it.
//!
//! Gates: a device that is moved (exercise makes sweat too) or an electrode without contact says nothing. Contact and
//! artefacts after Kleckner IR et al., IEEE Trans Biomed Eng 2018; 65: 1460-1467: conductance within 0.05 to 60 µS,
//! changing by no more than 10 µS/s. Motion: at least moderate activity, 2,020 counts a minute (Troiano RP et al.,
//! Med Sci Sports Exerc 2008; 40: 181-188).

use crate::features::{Feature, Features, Rise, Seconds};
use crate::signal::Signal;
use crate::window::Window;

/// Name and version of the rule, as events carry it.
pub const PRODUCER: &str = "rule:sternal/1";

/// The rule and its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SternalRule {
    /// The rise that makes a hot flash, µS.
    pub rise_us: f64,
    /// Within how many seconds.
    pub within_s: usize,
    /// Activity counts a minute from which the window says nothing.
    pub motion_limit: f32,
    /// Conductance below which there is no contact, µS.
    pub contact_us: f64,
    /// Conductance above which the sensor is at its end, µS.
    pub ceiling_us: f64,
    /// Change from one second to the next above which it is an artefact, µS.
    pub jump_us: f64,
}

impl Default for SternalRule {
    fn default() -> Self {
        Self {
            rise_us: 2.0,
            within_s: 30,
            motion_limit: 2_020.0,
            contact_us: 0.05,
            ceiling_us: 60.0,
            jump_us: 10.0,
        }
    }
}

/// What the rule says of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Judgement {
    /// Too little of the EDA is there.
    NotEnoughSignal,
    /// Somebody moves.
    Motion,
    /// The electrode has no contact, or jumps.
    NoContact,
    /// Nothing of the kind.
    Quiet,
    /// The criterion is met.
    HotFlash(Rise),
}

impl SternalRule {
    /// Judges one window. It looks at rises that end in the window's last 30 s, each with its full 30 s before it.
    pub fn judge(&self, window: &Window<'_>, features: &Features) -> Judgement {
        let seconds = Seconds::of(window.samples(Signal::Eda), window.start, window.end);
        // Four of five seconds, and no hole in which a rise could hide.
        if seconds.present() * 5 < seconds.len() * 4 || seconds.longest_hole() > 5 {
            return Judgement::NotEnoughSignal;
        }
        let mut last: Option<f64> = None;
        for (_, value) in seconds.values() {
            let jumps = last.is_some_and(|last| (value - last).abs() > self.jump_us);
            if value < self.contact_us || value > self.ceiling_us || jumps {
                return Judgement::NoContact;
            }
            last = Some(value);
        }
        if features.get(Feature::Motion).is_some_and(|motion| motion >= self.motion_limit) {
            return Judgement::Motion;
        }
        let ending = seconds.len().saturating_sub(self.within_s).max(1);
        match seconds.greatest_rise(self.within_s, ending) {
            Some(rise) if rise.rise >= self.rise_us => Judgement::HotFlash(rise),
            _ => Judgement::Quiet,
        }
    }

    /// Where the greatest rise that ends in the window's last 30 s begins: the onset for producers that see a hot flash
    /// by other means. The window's start if there is no EDA.
    pub fn onset(&self, window: &Window<'_>) -> u64 {
        let seconds = Seconds::of(window.samples(Signal::Eda), window.start, window.end);
        let ending = seconds.len().saturating_sub(self.within_s).max(1);
        seconds.greatest_rise(self.within_s, ending).map_or(window.start, |rise| rise.from)
    }

    /// How far beyond the criterion a rise is, as 0.5 (just met) to 1 (twice the criterion or more). A scale for
    /// people to sort by, not a probability.
    pub fn confidence(&self, rise: f64) -> f32 {
        (rise / (2.0 * self.rise_us)).clamp(0.0, 1.0) as f32
    }
}
