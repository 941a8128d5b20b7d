//! Whose reading is it.
//!
//! The promise: a frame is given to a wearer only where the assignments leave no doubt. A boundary that names a frame
//! decides by name; one known only as a time decides by the frame's first sample, unless the frame lies across it, or
//! its time is so uncertain that another wearer comes into question: then nobody gets it.

use kinara_protocol::frame::Epoch;
use uuid::Uuid;

/// An interval in which a device is one wearer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The wearer's clinic.
    pub tenant: Uuid,
    /// The wearer.
    pub user: Uuid,
    /// The clinic's own row for the device.
    pub device: Uuid,
    /// Where it begins: that moment, that frame, belong to it.
    pub from: Boundary,
    /// Where it ends, if it does: that moment, that frame, do not.
    pub to: Option<Boundary>,
    /// Whether the wearer agreed. A consent named by an assignment covers it from its beginning.
    pub consent: Consent,
    /// The wearer has been erased.
    pub erased: bool,
}

/// A wearer's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// None on record.
    Missing,
    /// Given and standing.
    Given,
    /// Withdrawn at this moment (microseconds since 1970).
    Withdrawn(i64),
}

/// An end of an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boundary {
    /// Microseconds since 1970.
    pub time_us: i64,
    /// The first frame after it, where the device was connected when the boundary was made.
    pub frame: Option<(Epoch, u32)>,
}

/// What is known of a frame when it is to be given to somebody.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The frame's epoch.
    pub epoch: Epoch,
    /// Its number.
    pub seq: u32,
    /// Its first sample's time.
    pub first_us: i64,
    /// Its last sample's time.
    pub last_us: i64,
    /// How far both may be from the truth.
    pub uncertainty_us: u64,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose<'a> {
    /// This assignment's.
    Of(&'a Assignment),
    /// No assignment covers it.
    Nobody,
    /// Its time leaves more than one wearer possible.
    Unsure,
    /// It lies across a boundary that is known only as a time.
    Straddles,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Before,
    After,
    Straddles,
    Unsure { after: bool },
}

impl Boundary {
    fn side(&self, moment: &Moment) -> Side {
        if let Some((epoch, seq)) = self.frame {
            if epoch == moment.epoch {
                return if moment.seq >= seq { Side::After } else { Side::Before };
            }
            // Boots of one log are in order; two logs know nothing of each other.
            if epoch.log_id() == moment.epoch.log_id() {
                return if moment.epoch.boot() > epoch.boot() { Side::After } else { Side::Before };
            }
        }
        let uncertainty = i64::try_from(moment.uncertainty_us).unwrap_or(i64::MAX);
        if moment.first_us >= self.time_us.saturating_add(uncertainty) {
            Side::After
        } else if moment.last_us < self.time_us.saturating_sub(uncertainty) {
            Side::Before
        } else if moment.first_us < self.time_us && self.time_us <= moment.last_us {
            Side::Straddles
        } else {
            Side::Unsure { after: moment.first_us >= self.time_us }
        }
    }
}

/// Finds the assignment that a frame belongs to, among all of its device.
pub fn whose<'a>(assignments: &'a [Assignment], moment: &Moment) -> Whose<'a> {
    let mut straddles = false;
    let mut estimate = None;
    let mut possible: Vec<&Assignment> = Vec::new();
    for assignment in assignments {
        let from = assignment.from.side(moment);
        let to = assignment.to.as_ref().map_or(Side::Before, |to| to.side(moment));
        match (from, to) {
            (Side::After, Side::Before) => return Whose::Of(assignment),
            (Side::Before, _) | (_, Side::After) => {}
            (Side::Straddles, _) | (_, Side::Straddles) => straddles = true,
            (from, to) => {
                let inside = !matches!(from, Side::Unsure { after: false })
                    && !matches!(to, Side::Unsure { after: true });
                if inside {
                    estimate = Some(assignment);
                }
                possible.push(assignment);
            }
        }
    }
    if straddles {
        return Whose::Straddles;
    }
    let one_wearer =
        possible.windows(2).all(|pair| (pair[0].tenant, pair[0].user) == (pair[1].tenant, pair[1].user));
    match estimate {
        _ if !one_wearer => Whose::Unsure,
        Some(assignment) => Whose::Of(assignment),
        None => Whose::Nobody,
    }
}

/// Whether frames from `first` to `last` can be a clinic's, and no other's: what `whose` would say of each of them.
/// Both moments carry the times of the whole.
pub fn all_of(assignments: &[Assignment], tenant: Uuid, first: &Moment, last: &Moment) -> bool {
    let mut ours = false;
    for assignment in assignments {
        let before = assignment.from.side(last) == Side::Before;
        let after = assignment.to.as_ref().is_some_and(|to| to.side(first) == Side::After);
        if before || after {
            continue;
        }
        if assignment.tenant != tenant {
            return false;
        }
        ours = true;
    }
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch::new(7, 3);

    fn assignment(user: u128, from: Boundary, to: Option<Boundary>) -> Assignment {
        Assignment {
            tenant: Uuid::from_u128(1),
            user: Uuid::from_u128(user),
            device: Uuid::from_u128(9),
            from,
            to,
            consent: Consent::Given,
            erased: false,
        }
    }

    fn at(time_us: i64) -> Boundary {
        Boundary { time_us, frame: None }
    }

    fn handed_over_at(boundary: Boundary) -> Vec<Assignment> {
        vec![assignment(10, at(0), Some(boundary)), assignment(11, boundary, None)]
    }

    fn user(whose: Whose<'_>) -> u128 {
        match whose {
            Whose::Of(assignment) => assignment.user.as_u128(),
            Whose::Nobody => 0,
            Whose::Unsure => 1,
            Whose::Straddles => 2,
        }
    }

    fn moment(seq: u32, first_us: i64, last_us: i64, uncertainty_us: u64) -> Moment {
        Moment { epoch: EPOCH, seq, first_us, last_us, uncertainty_us }
    }

    #[test]
    fn a_boundary_that_names_a_frame_decides_by_name_whatever_the_time_says() {
        let assignments = handed_over_at(Boundary { time_us: 1_000, frame: Some((EPOCH, 50)) });
        assert_eq!(user(whose(&assignments, &moment(49, 2_000, 3_000, 0))), 10);
        assert_eq!(user(whose(&assignments, &moment(50, 500, 900, 0))), 11);
        let later_boot = Moment { epoch: Epoch::new(7, 4), ..moment(0, 500, 900, 0) };
        assert_eq!(user(whose(&assignments, &later_boot)), 11);
        let other_log = Moment { epoch: Epoch::new(8, 0), ..moment(0, 500, 900, 0) };
        assert_eq!(user(whose(&assignments, &other_log)), 10);
    }

    #[test]
    fn a_frame_across_a_boundary_in_time_is_nobodys() {
        let assignments = handed_over_at(at(1_000));
        assert_eq!(user(whose(&assignments, &moment(1, 900, 1_100, 10))), 2);
        assert_eq!(user(whose(&assignments, &moment(1, 800, 900, 10))), 10);
        assert_eq!(user(whose(&assignments, &moment(1, 1_100, 1_200, 10))), 11);
    }

    #[test]
    fn a_time_that_leaves_two_wearers_possible_gives_the_frame_to_neither() {
        let assignments = handed_over_at(at(1_000));
        assert_eq!(user(whose(&assignments, &moment(1, 700, 750, 400))), 1);
        // The same wearer on both sides leaves no doubt.
        let mut same = assignments;
        same[1].user = same[0].user;
        assert_eq!(user(whose(&same, &moment(1, 700, 750, 400))), 10);
    }

    #[test]
    fn a_frame_before_the_first_assignment_is_nobodys() {
        let assignments = vec![assignment(10, at(1_000), Some(at(2_000)))];
        assert_eq!(user(whose(&assignments, &moment(1, 0, 10, 5))), 0);
        assert_eq!(user(whose(&assignments, &moment(1, 3_000, 3_010, 5))), 0);
        assert_eq!(user(whose(&assignments, &moment(1, 1_500, 1_510, 5_000))), 10);
        assert_eq!(user(whose(&[], &moment(1, 0, 10, 5))), 0);
    }
}
