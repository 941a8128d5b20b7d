//! Samples of one epoch stay in their order, whatever becomes of the clock between two seals.
//!
//! The promise: of two samples of an epoch and class (scalars, waveforms: frames of one class follow each other) the one with
//! the later tick never has the earlier time, in however many batches and in whatever order they are sealed. What was
//! sealed is not changed; a fit that would reach back before it is bent: it goes on from the sealed line, and a
//! share of what is between them goes in each second (one in `CATCH_UP_S`), never slower than at half speed. How far it
//! is bent is added to its uncertainty.

use crate::pipeline::Fit;

/// The share of its lead that a bent fit loses in a second.
const CATCH_UP_S: i64 = 600;
/// A fit that is bent by more is marked as uncertain.
const UNCERTAIN_US: u64 = 5_000_000;
/// Stretches of one fit that are remembered; beyond it the two oldest become one.
const STRETCHES: usize = 128;
const PPB: i128 = 1_000_000_000;

/// Ticks that were sealed by one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    from: u64,
    to: u64,
    fit: Fit,
}

impl Stretch {
    fn is_line_of(&self, fit: &Fit) -> bool {
        let line = |fit: &Fit| (fit.ref_ticks, fit.ref_utc_us, fit.rate_ppb);
        line(&self.fit) == line(fit)
    }
}

/// What of an epoch and class was sealed, and by which lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    stretches: Vec<Stretch>,
}

impl Order {
    /// The fit for samples from `first` to `last`, bent where what was sealed wants it.
    pub fn bend(&self, fit: Fit, first: u64, last: u64) -> Fit {
        let next = self.stretches.partition_point(|stretch| stretch.from <= first);
        let before = next.checked_sub(1).map(|at| self.stretches[at]);
        if let Some(around) = before.filter(|stretch| last <= stretch.to) {
            return moved(fit, around.fit, first, last);
        }
        let floor_us = before.map_or(i64::MIN, |stretch| stretch.fit.utc_us(stretch.to.min(first)));
        let ceiling_us =
            self.stretches.get(next).map_or(i64::MAX, |stretch| stretch.fit.utc_us(stretch.from));
        let (own_first, own_last) = (fit.utc_us(first), fit.utc_us(last));
        if own_first >= floor_us && own_last <= ceiling_us {
            return fit;
        }
        // From where the sealed line has this tick, back towards its own.
        let begin = match before {
            Some(stretch) if own_first < floor_us => stretch.fit.utc_us(first).max(floor_us),
            _ => own_first,
        };
        let begin = begin.min(ceiling_us);
        let lead_us = (begin - own_first).max(0);
        let length_us = ((last - first) as i64).saturating_mul(1_000);
        let back_us = (i128::from(length_us) * i128::from(lead_us) / i128::from(CATCH_UP_S * 1_000_000))
            .min(i128::from(length_us / 2)) as i64;
        let end = (begin + (own_last - own_first) - back_us.min(lead_us)).min(ceiling_us).max(begin);
        moved(fit, line(first, begin, last, end), first, last)
    }

    /// Notes that samples from `first` to `last` were sealed by a fit.
    pub fn sealed(&mut self, fit: &Fit, first: u64, last: u64) {
        let next = self.stretches.partition_point(|stretch| stretch.from <= first);
        if let Some(before) = next.checked_sub(1).map(|at| &mut self.stretches[at])
            && (before.is_line_of(fit) || last <= before.to)
        {
            before.to = before.to.max(last);
        } else {
            self.stretches.insert(next, Stretch { from: first, to: last, fit: *fit });
        }
        if self.stretches.len() > STRETCHES {
            let (old, next) = (self.stretches.remove(0), self.stretches[0]);
            let fit = line(old.from, old.fit.utc_us(old.from), next.to, next.fit.utc_us(next.to));
            self.stretches[0] = Stretch { from: old.from, to: next.to, fit };
        }
    }

    /// For the store: five numbers a stretch.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.stretches.len() * 36);
        for Stretch { from, to, fit } in &self.stretches {
            bytes.extend(from.to_le_bytes());
            bytes.extend(to.to_le_bytes());
            bytes.extend(fit.ref_ticks.to_le_bytes());
            bytes.extend(fit.ref_utc_us.to_le_bytes());
            bytes.extend(fit.rate_ppb.to_le_bytes());
        }
        bytes
    }

    /// From the store; `None` if that is not what lies there.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (rows, rest) = bytes.as_chunks::<36>();
        if !rest.is_empty() {
            return None;
        }
        let number = |row: &[u8; 36], at: usize| row[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let mut stretches = Vec::with_capacity(rows.len());
        for row in rows {
            let fit = Fit {
                ref_ticks: number(row, 16)?,
                ref_utc_us: number(row, 24)?.cast_signed(),
                rate_ppb: i32::from_le_bytes(row[32..].try_into().ok()?),
                uncertainty_us: 0,
                growth_ppb: 0,
                time_uncertain: false,
            };
            stretches.push(Stretch { from: number(row, 0)?, to: number(row, 8)?, fit });
        }
        stretches.is_sorted_by_key(|stretch| stretch.from).then_some(Self { stretches })
    }
}

/// The line through two points; flat where they are one.
fn line(first: u64, begin_us: i64, last: u64, end_us: i64) -> Fit {
    let length_us = i128::from(last - first) * 1_000;
    let rate = if length_us == 0 { 0 } else { (i128::from(end_us - begin_us) - length_us) * PPB / length_us };
    Fit {
        ref_ticks: first,
        ref_utc_us: begin_us,
        rate_ppb: rate.clamp(-PPB, i128::from(i32::MAX)) as i32,
        uncertainty_us: 0,
        growth_ppb: 0,
        time_uncertain: false,
    }
}

/// A fit along another line: as uncertain as it was, and by how far it was moved.
fn moved(fit: Fit, line: Fit, first: u64, last: u64) -> Fit {
    let by_us = [first, last].map(|ticks| line.utc_us(ticks).abs_diff(fit.utc_us(ticks)));
    let by_us = by_us[0].max(by_us[1]);
    let stated = fit.uncertainty_at(first).max(fit.uncertainty_at(last));
    if by_us == 0 {
        return fit;
    }
    Fit {
        ref_ticks: line.ref_ticks,
        ref_utc_us: line.ref_utc_us,
        rate_ppb: line.rate_ppb,
        uncertainty_us: stated + by_us + 1,
        growth_ppb: 0,
        time_uncertain: fit.time_uncertain || by_us > UNCERTAIN_US,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: i64 = 1_800_000_000_000_000;

    /// A gateway's idea of the time that is `off_us` from the true one.
    fn off(off_us: i64) -> Fit {
        Fit {
            ref_ticks: 0,
            ref_utc_us: START + off_us,
            rate_ppb: 0,
            uncertainty_us: off_us.unsigned_abs(),
            growth_ppb: 5_000,
            time_uncertain: false,
        }
    }

    #[test]
    fn after_a_clock_that_was_ahead_is_set_back_time_goes_on_from_what_was_sealed_and_comes_back() {
        let mut order = Order::default();
        let ahead = off(800_000);
        order.sealed(&order.bend(ahead, 0, 10_000), 0, 10_000);
        let right = off(0);
        let bent = order.bend(right, 10_250, 11_250);
        assert!(bent.utc_us(10_250) >= ahead.utc_us(10_000));
        assert!(!bent.time_uncertain && bent.uncertainty_at(11_250) >= 790_000);
        let mut ticks = 10_250;
        while ticks < 10_250 + 800_000 {
            let bent = order.bend(right, ticks, ticks + 1_000);
            order.sealed(&bent, ticks, ticks + 1_000);
            ticks += 1_250;
        }
        assert_eq!(order.bend(right, ticks, ticks + 1_000), right, "it has come back");
        // Set forward there is nothing to bend.
        assert_eq!(order.bend(off(900_000), ticks, ticks + 1_000), off(900_000));
    }

    #[test]
    fn a_clock_that_was_hours_ahead_leaves_times_that_say_that_they_are_uncertain() {
        let mut order = Order::default();
        order.sealed(&off(7_200_000_000), 0, 10_000);
        let bent = order.bend(off(0), 10_000, 12_000);
        assert!(bent.time_uncertain && bent.uncertainty_at(12_000) > 7_000_000_000);
        assert!(bent.utc_us(10_000) >= off(7_200_000_000).utc_us(10_000));
        assert!(bent.utc_us(12_000) > bent.utc_us(10_000), "half speed at the least");
    }

    #[test]
    fn a_hole_in_a_sealed_stretch_is_filled_by_its_line() {
        let mut order = Order::default();
        order.sealed(&off(700_000), 0, 10_000);
        order.sealed(&off(700_000), 50_000, 60_000);
        let filled = order.bend(off(0), 20_000, 30_000);
        assert_eq!(filled.utc_us(20_000), off(700_000).utc_us(20_000));
        assert!(filled.uncertainty_at(30_000) >= 700_000);
    }

    proptest! {
        #[test]
        fn samples_of_an_epoch_are_never_reordered_in_whatever_order_frames_are_sealed(
            lengths in prop::collection::vec((0u64..5_000, 1u64..3_000), 2..60),
            shuffle in prop::collection::vec(any::<u32>(), 60),
            offs in prop::collection::vec(prop_oneof![-2_000_000i64..2_000_000, -10_000_000_000i64..10_000_000_000], 60),
        ) {
            let mut frames = Vec::new();
            let mut ticks = 0;
            for (length, pause) in lengths {
                frames.push((ticks, ticks + length));
                ticks += length + pause;
            }
            let mut by_chance: Vec<usize> = (0..frames.len()).collect();
            by_chance.sort_by_key(|at| shuffle[*at]);
            let mut order = Order::default();
            let mut sealed = Vec::new();
            for (at, off_us) in by_chance.into_iter().zip(offs) {
                let (first, last) = frames[at];
                let fit = order.bend(off(off_us), first, last);
                order.sealed(&fit, first, last);
                for ticks in [first, u64::midpoint(first, last), last] {
                    let moved_us = fit.utc_us(ticks).abs_diff(off(off_us).utc_us(ticks));
                    prop_assert!(moved_us <= fit.uncertainty_at(ticks));
                    sealed.push((ticks, fit.utc_us(ticks)));
                }
                let bytes = order.to_bytes();
                let kept = Order::from_bytes(&bytes).unwrap();
                prop_assert_eq!(kept.to_bytes(), bytes);
            }
            sealed.sort_by_key(|(ticks, _)| *ticks);
            for pair in sealed.windows(2) {
                // Lines are kept to the nanosecond in a second: a microsecond is their rounding.
                prop_assert!(pair[0].1 <= pair[1].1 + 1 + 5, "{pair:?}");
            }
        }
    }
}
