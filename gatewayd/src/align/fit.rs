//! From anchors of one epoch to the fit of a frame.
//!
//! Between two anchors the line through both; outside them a line through the nearest one, whose slope is that of
//! the longest stretch of anchors where this is worth more than assuming a perfect crystal. The uncertainty is that
//! of the anchors plus 5 ppm of the distance between two anchors, or plus 45 ppm outside them (a crystal's ± 40 ppm
//! with room for temperature).

use crate::pipeline::Fit;

/// Growth of the uncertainty between two anchors.
pub const INSIDE_PPB: u32 = 5_000;
/// Growth of the uncertainty beyond the first or last anchor.
pub const OUTSIDE_PPB: u32 = 45_000;
/// What no crystal does: two anchors that ask for more contradict each other.
const IMPOSSIBLE_PPB: i128 = 100_000;
/// A slope is used for extrapolation when its own error is below this.
const WORTHWHILE_PPB: i128 = 10_000;

/// A time sync: at `ticks` it was `utc_us`, give or take `uncertainty_us`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// The wearable's time.
    pub ticks: u64,
    /// UTC in microseconds.
    pub utc_us: i64,
    /// Half the round trip and the gateway's own uncertainty.
    pub uncertainty_us: u64,
}

impl Anchor {
    /// How far UTC runs ahead of the ticks between two anchors, and how well this is known; both in microseconds.
    fn lead_us(&self, later: &Self) -> (i128, i128) {
        let ticks_us = (i128::from(later.ticks) - i128::from(self.ticks)) * 1000;
        let utc_us = i128::from(later.utc_us) - i128::from(self.utc_us);
        (utc_us - ticks_us, i128::from(self.uncertainty_us) + i128::from(later.uncertainty_us))
    }

    fn agrees_with(&self, later: &Self) -> bool {
        let distance_us = i128::from(later.ticks.saturating_sub(self.ticks)) * 1000;
        let (lead, doubt) = self.lead_us(later);
        lead.abs() <= doubt + 1_000 + distance_us * IMPOSSIBLE_PPB / 1_000_000_000
    }
}

/// The anchors to believe, in the order of their ticks.
///
/// Where two contradict each other, the gateway's clock jumped between them, and the later one is believed: it was
/// made by a clock that had had more time to be set right.
pub fn believable(anchors: &[Anchor]) -> Vec<Anchor> {
    let mut kept: Vec<Anchor> = Vec::with_capacity(anchors.len());
    for anchor in anchors.iter().rev() {
        if kept.last().is_none_or(|later| later.ticks > anchor.ticks && anchor.agrees_with(later)) {
            kept.push(*anchor);
        }
    }
    kept.reverse();
    kept
}

fn rate_ppb(from: &Anchor, to: &Anchor) -> i32 {
    let distance_us = (i128::from(to.ticks) - i128::from(from.ticks)) * 1000;
    if distance_us <= 0 {
        return 0;
    }
    (from.lead_us(to).0 * 1_000_000_000 / distance_us).clamp(i32::MIN.into(), i32::MAX.into()) as i32
}

/// The slope to extrapolate with: over the longest stretch, when it is known better than the crystal is.
fn outside_rate(anchors: &[Anchor]) -> i32 {
    let (Some(first), Some(last)) = (anchors.first(), anchors.last()) else { return 0 };
    let distance_us = (i128::from(last.ticks) - i128::from(first.ticks)) * 1000;
    let doubt = first.lead_us(last).1;
    if distance_us > 0 && doubt * 1_000_000_000 / distance_us < WORTHWHILE_PPB {
        rate_ppb(first, last).clamp(-40_000, 40_000)
    } else {
        0
    }
}

/// The fit for samples from `first_ticks` to `last_ticks`, or `None` without an anchor. `anchors` are
/// [`believable`].
pub fn fit(anchors: &[Anchor], first_ticks: u64, last_ticks: u64) -> Option<Fit> {
    let after = anchors.partition_point(|anchor| anchor.ticks <= first_ticks);
    if let (Some(before), Some(behind)) = (after.checked_sub(1).map(|i| anchors[i]), anchors.get(after))
        && last_ticks <= behind.ticks
    {
        return Some(Fit {
            ref_ticks: before.ticks,
            ref_utc_us: before.utc_us,
            rate_ppb: rate_ppb(&before, behind),
            uncertainty_us: before.uncertainty_us.max(behind.uncertainty_us) + 1,
            growth_ppb: INSIDE_PPB,
            time_uncertain: false,
        });
    }
    let distance =
        |anchor: &&Anchor| anchor.ticks.abs_diff(first_ticks).max(anchor.ticks.abs_diff(last_ticks));
    let nearest = anchors.iter().min_by_key(distance)?;
    Some(Fit {
        ref_ticks: nearest.ticks,
        ref_utc_us: nearest.utc_us,
        rate_ppb: outside_rate(anchors),
        uncertainty_us: nearest.uncertainty_us + 1,
        growth_ppb: OUTSIDE_PPB,
        time_uncertain: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A crystal with an offset, a drift and a slow wander, and a gateway that syncs with an error.
    struct Crystal {
        boot_utc_us: i64,
        drift_ppb: i64,
        wander_ppb: i64,
    }

    impl Crystal {
        fn utc_us(&self, ticks: u64) -> i64 {
            let us = i128::from(ticks) * 1000;
            // The wander swings once in four hours.
            let phase = (ticks as f64 / 14_400_000.0 * std::f64::consts::TAU).sin();
            let wander = phase * 14_400_000_000.0 / std::f64::consts::TAU * self.wander_ppb as f64 * 1e-9;
            self.boot_utc_us + (us + us * i128::from(self.drift_ppb) / 1_000_000_000) as i64 + wander as i64
        }
    }

    proptest! {
        #[test]
        fn the_error_is_never_larger_than_the_stated_uncertainty(
            drift in -38_000i64..38_000,
            wander in -2_000i64..2_000,
            syncs in prop::collection::btree_map(0u64..40_000_000, (-9_000i64..9_000, 0u64..1_000), 1..12),
            frames in prop::collection::vec((0u64..60_000_000, 0u64..60_000), 1..40),
        ) {
            let crystal = Crystal { boot_utc_us: 1_790_000_000_000_000, drift_ppb: drift, wander_ppb: wander };
            let anchors: Vec<Anchor> = syncs.iter().map(|(&ticks, &(error, slack))| Anchor {
                ticks,
                utc_us: crystal.utc_us(ticks) + error,
                uncertainty_us: error.unsigned_abs() + slack,
            }).collect();
            let kept = believable(&anchors);
            prop_assert_eq!(kept.len(), anchors.len());
            for (first, length) in frames {
                let fit = fit(&kept, first, first + length).unwrap();
                for ticks in [first, first + length] {
                    let error = fit.utc_us(ticks).abs_diff(crystal.utc_us(ticks));
                    prop_assert!(
                        error <= fit.uncertainty_at(ticks) + 2,
                        "off by {error} µs at {ticks}, said {}", fit.uncertainty_at(ticks)
                    );
                }
            }
        }

        #[test]
        fn anchors_made_before_the_clock_was_set_are_not_believed(
            drift in -38_000i64..38_000,
            early in prop::collection::btree_set(0u64..10_000_000, 1..4),
            late in prop::collection::btree_set(10_000_001u64..20_000_000, 1..4),
            at in 0u64..20_000_000,
        ) {
            let crystal = Crystal { boot_utc_us: 1_790_000_000_000_000, drift_ppb: drift, wander_ppb: 0 };
            let wrong = |&ticks: &u64| Anchor { ticks, utc_us: (ticks * 1000) as i64, uncertainty_us: 2_000 };
            let right = |&ticks: &u64| Anchor { ticks, utc_us: crystal.utc_us(ticks), uncertainty_us: 2_000 };
            let anchors: Vec<Anchor> = early.iter().map(wrong).chain(late.iter().map(right)).collect();
            let kept = believable(&anchors);
            prop_assert_eq!(kept.len(), late.len());
            let fit = fit(&kept, at, at).unwrap();
            prop_assert!(fit.utc_us(at).abs_diff(crystal.utc_us(at)) <= fit.uncertainty_at(at) + 2);
        }
    }

    #[test]
    fn without_an_anchor_there_is_no_fit() {
        assert_eq!(fit(&[], 0, 10), None);
    }

    #[test]
    fn a_frame_that_straddles_the_last_of_two_close_anchors_is_not_stamped_with_their_slope() {
        let anchor =
            |ticks, error| Anchor { ticks, utc_us: ticks as i64 * 1000 + error, uncertainty_us: 9_000 };
        let anchors = [anchor(1_000, -9_000), anchor(2_000, 9_000)];
        let fit = fit(&anchors, 1_500, 62_000).unwrap();
        assert!(fit.utc_us(62_000).abs_diff(62_000_000) <= fit.uncertainty_at(62_000));
    }
}
