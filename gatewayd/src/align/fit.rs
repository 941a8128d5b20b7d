//! From anchors of one epoch to the fit of a frame.
//!
//! Between two anchors the line through both; outside them a line through the nearest one, whose slope is that of
//! the longest stretch of anchors where this is worth more than assuming a perfect crystal. The uncertainty is that
//! of the anchors plus 5 ppm of the distance between two anchors, or plus 45 ppm outside them (a crystal's ± 40 ppm
//! with room for temperature).
//!
//! Anchors that contradict each other were made by gateways whose clocks were wrong. The largest set that agrees is
//! believed, the newest where two are as large, and what was left out widens the uncertainty: the less, the more anchors
//! outvote it.

use super::source::BUILD_DATE_US;
use crate::pipeline::Fit;

/// Growth of the uncertainty between two anchors.
pub const INSIDE_PPB: u32 = 5_000;
/// Growth of the uncertainty beyond the first or last anchor.
pub const OUTSIDE_PPB: u32 = 45_000;
/// What no crystal does: two anchors that ask for more contradict each other.
const IMPOSSIBLE_PPB: i128 = 100_000;
/// So many anchors of an epoch are kept, the newest. A log may hold any number of them.
pub const MOST_ANCHORS: usize = 512;
/// Whether an anchor agrees is looked up in so many before it: what more of them contradict is not believed.
const LOOKED_BACK: usize = 64;
/// A slope is used for extrapolation when its own error is below this.
const WORTHWHILE_PPB: i128 = 10_000;

/// No gateway is at work after this, the year 2200; nor does a wearable take a later time.
pub(super) const LATEST_US: i64 = 7_258_118_400_000_000;
/// What contradicts widens a time by more than this: it is marked as uncertain.
const DOUBTFUL_US: u64 = 1_000_000;

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

/// Anchors that agree, in the order of their ticks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Believed {
    anchors: Vec<Anchor>,
    /// Others say something else, and are not outvoted by enough.
    doubtful: bool,
}

impl Believed {
    /// The anchors.
    pub fn anchors(&self) -> &[Anchor] {
        &self.anchors
    }
}

/// The anchors to believe. `anchors` are in the order of their ticks, each tick once.
pub fn believable(anchors: &[Anchor]) -> Believed {
    // No gateway has ever been right with a time before this, or after that.
    let is_possible = |anchor: &Anchor| (BUILD_DATE_US..LATEST_US).contains(&anchor.utc_us);
    let possible: Vec<Anchor> = anchors.iter().copied().filter(is_possible).collect();
    let agree = possible.windows(2).all(|pair| pair[0].agrees_with(&pair[1]));
    if agree {
        return Believed { anchors: possible, doubtful: false };
    }
    let mut kept = longest_chain(&possible);
    let is_kept = |anchor: &Anchor| kept.binary_search_by_key(&anchor.ticks, |kept| kept.ticks).is_ok();
    let others: Vec<Anchor> = possible.iter().filter(|anchor| !is_kept(anchor)).copied().collect();
    let widest = others.iter().map(|other| distance_us(&kept, other)).max().unwrap_or(0);
    // Each anchor by which they are outvoted halves what they may be right by.
    let votes = (kept.len() - others.len().min(kept.len())).min(63);
    let doubt_us = widest >> votes;
    for anchor in &mut kept {
        anchor.uncertainty_us = anchor.uncertainty_us.saturating_add(doubt_us);
    }
    Believed { anchors: kept, doubtful: doubt_us > DOUBTFUL_US }
}

/// The longest sequence in which each agrees with the next; of several the one that ends last.
fn longest_chain(anchors: &[Anchor]) -> Vec<Anchor> {
    let mut chains: Vec<(usize, Option<usize>)> = Vec::with_capacity(anchors.len());
    for (at, anchor) in anchors.iter().enumerate() {
        let before =
            (at.saturating_sub(LOOKED_BACK)..at).filter(|&earlier| anchors[earlier].agrees_with(anchor));
        let best = before.max_by_key(|&earlier| (chains[earlier].0, earlier));
        chains.push((best.map_or(1, |earlier| chains[earlier].0 + 1), best));
    }
    let mut at = (0..anchors.len()).max_by_key(|&last| (chains[last].0, last));
    let mut kept = Vec::new();
    while let Some(place) = at {
        kept.push(anchors[place]);
        at = chains[place].1;
    }
    kept.reverse();
    kept
}

/// How far an anchor is from where the nearest one that is believed has it.
fn distance_us(kept: &[Anchor], other: &Anchor) -> u64 {
    let behind = kept.partition_point(|anchor| anchor.ticks < other.ticks);
    let beside = behind.saturating_sub(1)..kept.len().min(behind + 1);
    let nearest = kept[beside].iter().min_by_key(|anchor| anchor.ticks.abs_diff(other.ticks));
    nearest.map_or(0, |anchor| u64::try_from(anchor.lead_us(other).0.unsigned_abs()).unwrap_or(u64::MAX))
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

/// The fit for samples from `first_ticks` to `last_ticks`, or `None` without an anchor.
pub fn fit(believed: &Believed, first_ticks: u64, last_ticks: u64) -> Option<Fit> {
    let Believed { anchors, doubtful } = believed;
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
            time_uncertain: *doubtful,
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
        time_uncertain: *doubtful,
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
            let crystal = Crystal { boot_utc_us: 1_850_000_000_000_000, drift_ppb: drift, wander_ppb: wander };
            let anchors: Vec<Anchor> = syncs.iter().map(|(&ticks, &(error, slack))| Anchor {
                ticks,
                utc_us: crystal.utc_us(ticks) + error,
                uncertainty_us: error.unsigned_abs() + slack,
            }).collect();
            let kept = believable(&anchors);
            prop_assert_eq!(kept.anchors(), &anchors[..]);
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
        fn the_largest_set_of_anchors_that_agree_wins_wherever_the_wrong_ones_lie(
            drift in -38_000i64..38_000,
            syncs in prop::collection::btree_map(0u64..20_000_000, any::<prop::sample::Index>(), 3..40),
            wrong in 1usize..20,
            off_s in prop_oneof![-40_000_000i64..-3_000, 3_000i64..40_000_000],
            at in 0u64..20_000_000,
        ) {
            let crystal = Crystal { boot_utc_us: 1_850_000_000_000_000, drift_ppb: drift, wander_ppb: 0 };
            // Any minority of them was made by a gateway whose clock was off.
            let mut by_chance: Vec<(usize, u64)> =
                syncs.iter().map(|(&ticks, chance)| (chance.index(1_000_000), ticks)).collect();
            by_chance.sort_unstable();
            let minority = wrong.min((syncs.len() - 1) / 2);
            let wrong: Vec<u64> = by_chance[..minority].iter().map(|(_, ticks)| *ticks).collect();
            let anchors: Vec<Anchor> = syncs.keys().map(|&ticks| Anchor {
                ticks,
                utc_us: crystal.utc_us(ticks) + if wrong.contains(&ticks) { off_s * 1_000_000 } else { 0 },
                uncertainty_us: 2_000,
            }).collect();
            let kept = believable(&anchors);
            prop_assert_eq!(kept.anchors().len(), syncs.len() - wrong.len());
            let fit = fit(&kept, at, at).unwrap();
            prop_assert!(fit.utc_us(at).abs_diff(crystal.utc_us(at)) <= fit.uncertainty_at(at) + 2);
        }

        #[test]
        fn where_as_many_contradict_the_newest_is_believed_and_the_truth_lies_inside_what_is_stated(
            drift in -38_000i64..38_000,
            count in 1u64..6,
            off_s in prop_oneof![-4_000_000i64..-3_000, 3_000i64..4_000_000],
            newest_is_right in any::<bool>(),
        ) {
            let crystal = Crystal { boot_utc_us: 1_850_000_000_000_000, drift_ppb: drift, wander_ppb: 0 };
            let anchor = |ticks: u64, right: bool| Anchor {
                ticks,
                utc_us: crystal.utc_us(ticks) + if right { 0 } else { off_s * 1_000_000 },
                uncertainty_us: 2_000,
            };
            let early = (0..count).map(|at| anchor(at * 1_000, !newest_is_right));
            let late = (count..2 * count).map(|at| anchor(at * 1_000, newest_is_right));
            let kept = believable(&early.chain(late).collect::<Vec<_>>());
            let at = count * 1_000;
            let fit = fit(&kept, at, at).unwrap();
            prop_assert!(fit.time_uncertain);
            let newest = crystal.utc_us(at) + if newest_is_right { 0 } else { off_s * 1_000_000 };
            prop_assert!(fit.utc_us(at).abs_diff(newest) < 10_000, "the newest");
            prop_assert!(fit.utc_us(at).abs_diff(crystal.utc_us(at)) <= fit.uncertainty_at(at) + 10_000);
        }
    }

    #[test]
    fn one_wrong_last_anchor_does_not_outvote_twenty_four_right_ones() {
        let right = |hour: u64| Anchor {
            ticks: hour * 3_600_000,
            utc_us: BUILD_DATE_US + hour as i64 * 3_600_000_000,
            uncertainty_us: 2_000,
        };
        let mut anchors: Vec<Anchor> = (0..24).map(right).collect();
        anchors.push(Anchor { utc_us: BUILD_DATE_US + 40 * 86_400_000_000, ..right(24) });
        let kept = believable(&anchors);
        assert_eq!(kept.anchors().len(), 24);
        let fit = fit(&kept, 24 * 3_600_000, 24 * 3_600_000).unwrap();
        assert!(!fit.time_uncertain);
        assert!(fit.uncertainty_us > 2_001, "what contradicts shows");
        assert!(fit.utc_us(24 * 3_600_000).abs_diff(right(24).utc_us) < 1_000);
    }

    #[test]
    fn an_anchor_before_any_gateway_was_made_has_no_vote() {
        let anchor = |ticks: u64, utc_us| Anchor { ticks, utc_us, uncertainty_us: 2_000 };
        let wrong = (0..5u64).map(|at| anchor(at * 1_000, at as i64 * 1_000_000));
        let anchors: Vec<Anchor> = wrong.chain([anchor(9_000, BUILD_DATE_US + 9_000_000)]).collect();
        let kept = believable(&anchors);
        assert_eq!(kept.anchors(), &anchors[5..]);
        assert!(!fit(&kept, 0, 0).unwrap().time_uncertain);
    }

    #[test]
    fn without_an_anchor_there_is_no_fit() {
        assert_eq!(fit(&Believed::default(), 0, 10), None);
    }

    #[test]
    fn a_frame_that_straddles_the_last_of_two_close_anchors_is_not_stamped_with_their_slope() {
        let anchor =
            |ticks, error| Anchor { ticks, utc_us: ticks as i64 * 1000 + error, uncertainty_us: 9_000 };
        let anchors = vec![anchor(1_000, -9_000), anchor(2_000, 9_000)];
        let fit = fit(&Believed { anchors, doubtful: false }, 1_500, 62_000).unwrap();
        assert!(fit.utc_us(62_000).abs_diff(62_000_000) <= fit.uncertainty_at(62_000));
    }
}
