//! Whose reading is it.
//!
//! The promise: a frame is given to a wearer only where the assignments leave no doubt. A boundary that names a frame
//! decides by name; one known only as a time decides by the frame's first sample, unless the frame lies across it, or
//! its time is so uncertain that another wearer comes into question: then nobody gets it. Names come first: a frame
//! whose name puts it behind a boundary, or behind a frame that is stored for a later wearer, is not an earlier
//! wearer's, whatever its box says of the time.

use std::cmp::Ordering;

use kinara_protocol::frame::Epoch;
use uuid::Uuid;

/// An interval in which a device is one wearer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Its row.
    pub id: Uuid,
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
    /// The lowest frame stored for it, kept where `from` names none.
    pub first: Option<(Epoch, u32)>,
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
    /// Its time says one wearer, and its name another.
    Contradicts,
}

impl Whose<'_> {
    /// Why a frame is put aside of which this is said; of one that is somebody's, what its owner's others are told.
    pub(crate) const fn word(&self) -> &'static str {
        match self {
            Self::Of(_) | Self::Nobody => "no_assignment",
            Self::Unsure => "unsure",
            Self::Straddles => "straddle",
            Self::Contradicts => "order",
        }
    }
}

/// Which of two frames of one device comes first by their names, where names tell: boots of one log are in order, two
/// logs know nothing of each other.
pub fn order_of_names(one: (Epoch, u32), other: (Epoch, u32)) -> Option<Ordering> {
    (one.0.log_id() == other.0.log_id()).then(|| (one.0.boot(), one.1).cmp(&(other.0.boot(), other.1)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Before,
    After,
    Straddles,
    Unsure { after: bool },
}

impl Boundary {
    /// Whether a frame is after this boundary by its name, where that tells.
    fn named(&self, moment: &Moment) -> Option<bool> {
        order_of_names((moment.epoch, moment.seq), self.frame?).map(Ordering::is_ge)
    }

    fn side(&self, moment: &Moment) -> Side {
        if let Some(after) = self.named(moment) {
            return if after { Side::After } else { Side::Before };
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

/// Which of the assignments, which are in order, a frame's name leaves possible.
fn named(assignments: &[Assignment], moment: &Moment) -> std::ops::Range<usize> {
    let mut range = 0..assignments.len();
    for (index, assignment) in assignments.iter().enumerate() {
        let from = assignment.from.named(moment);
        let to = assignment.to.as_ref().and_then(|to| to.named(moment));
        // Frames before the lowest stored one may be this assignment's all the same: they come as they come.
        let first = assignment.first.and_then(|first| order_of_names((moment.epoch, moment.seq), first));
        if from == Some(true) || first.is_some_and(Ordering::is_ge) {
            range.start = range.start.max(index);
        }
        if from == Some(false) {
            range.end = range.end.min(index);
        }
        match to {
            Some(true) => range.start = range.start.max(index + 1),
            Some(false) => range.end = range.end.min(index + 1),
            None => {}
        }
    }
    range
}

/// Finds the assignment that a frame belongs to, among all of its device, which are in order.
pub fn whose<'a>(assignments: &'a [Assignment], moment: &Moment) -> Whose<'a> {
    let possible_by_name = named(assignments, moment);
    let mut straddles = false;
    let mut contradicts = false;
    let mut estimate = None;
    // Its time is most likely before this one, but may be in it.
    let mut begins_later = None;
    let mut possible: Vec<&Assignment> = Vec::new();
    for (index, assignment) in assignments.iter().enumerate() {
        let from = assignment.from.side(moment);
        let to = assignment.to.as_ref().map_or(Side::Before, |to| to.side(moment));
        let by_name = possible_by_name.contains(&index);
        match (from, to) {
            (Side::After, Side::Before) if by_name => return Whose::Of(assignment),
            (Side::After, Side::Before) => contradicts = true,
            (Side::Before, _) | (_, Side::After) => {}
            _ if !by_name => {}
            (Side::Straddles, _) | (_, Side::Straddles) => straddles = true,
            (from, to) => {
                let early = matches!(from, Side::Unsure { after: false });
                let late = matches!(to, Side::Unsure { after: true });
                if !early && !late {
                    estimate = Some(assignment);
                } else if early && !late && begins_later.is_none() {
                    begins_later = Some(assignment);
                }
                possible.push(assignment);
            }
        }
    }
    if contradicts {
        return Whose::Contradicts;
    }
    if straddles {
        return Whose::Straddles;
    }
    let one_wearer =
        possible.windows(2).all(|pair| (pair[0].tenant, pair[0].user) == (pair[1].tenant, pair[1].user));
    if !one_wearer {
        return Whose::Unsure;
    }
    // A first epoch without an anchor may have begun before its wearer had the device, but nobody else ever had it.
    estimate.or(begins_later).map_or(Whose::Nobody, Whose::Of)
}

/// The assignments that a frame may belong to: the one that it belongs to, or, where that is in doubt, all that neither its
/// name nor its time rules out.
pub fn possible<'a>(assignments: &'a [Assignment], moment: &Moment) -> Vec<&'a Assignment> {
    let by_name = named(assignments, moment);
    let by_time = |assignment: &Assignment| {
        assignment.from.side(moment) != Side::Before
            && assignment.to.as_ref().is_none_or(|to| to.side(moment) != Side::After)
    };
    let found = whose(assignments, moment);
    let may = |(index, assignment): &(usize, &'a Assignment)| match found {
        Whose::Of(owner) => owner.id == assignment.id,
        Whose::Nobody => false,
        Whose::Unsure | Whose::Straddles => by_name.contains(index) && by_time(assignment),
        Whose::Contradicts => by_name.contains(index) || by_time(assignment),
    };
    assignments.iter().enumerate().filter(may).map(|(_, assignment)| assignment).collect()
}

/// Whether a frame in doubt may be of a clinic at all. To one that cannot have it no more is said than of another's device, or
/// else whoever names a device learns when others had it.
pub(crate) fn may_be_of(assignments: &[Assignment], moment: &Moment, tenant: Uuid) -> bool {
    possible(assignments, moment).iter().any(|one| one.tenant == tenant)
}

/// The word that a clinic is told of a frame in doubt: what its own assignments say. That others had the device, and which of its
/// numbers, is not told; what the clinic would have without them is refused as what it has no assignment for.
pub(crate) fn told(assignments: &[Assignment], moment: &Moment, tenant: Uuid) -> &'static str {
    let own: Vec<Assignment> = assignments.iter().filter(|one| one.tenant == tenant).cloned().collect();
    whose(&own, moment).word()
}

/// Whether a frame in doubt may be of an erased wearer of a clinic: then it is not kept for anybody.
pub(crate) fn may_be_erased(assignments: &[Assignment], moment: &Moment, tenant: Uuid) -> bool {
    possible(assignments, moment).iter().any(|one| one.erased && one.tenant == tenant)
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
            id: Uuid::from_u128(user),
            tenant: Uuid::from_u128(1),
            user: Uuid::from_u128(user),
            device: Uuid::from_u128(9),
            from,
            to,
            first: None,
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
            Whose::Contradicts => 3,
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
    fn a_frame_named_after_one_of_a_later_wearer_is_not_an_earlier_ones_whatever_its_time() {
        let mut assignments = handed_over_at(at(1_000));
        assert_eq!(user(whose(&assignments, &moment(60, 500, 600, 0))), 10);
        assignments[1].first = Some((EPOCH, 50));
        assert_eq!(user(whose(&assignments, &moment(60, 500, 600, 0))), 3);
        assert_eq!(user(whose(&assignments, &moment(49, 500, 600, 0))), 10);
        assert_eq!(user(whose(&assignments, &moment(45, 1_500, 1_600, 0))), 11);
        // One that names its first frame closes the gap before it, too.
        let mut gap = vec![assignment(10, at(0), Some(at(1_000))), assignment(11, at(2_000), None)];
        gap[1].from.frame = Some((EPOCH, 50));
        assert_eq!(user(whose(&gap, &moment(60, 500, 600, 0))), 11);
        assert_eq!(user(whose(&gap, &moment(40, 500, 600, 0))), 10);
        assert_eq!(user(whose(&gap, &moment(40, 1_500, 1_600, 0))), 0);
    }

    #[test]
    fn an_epoch_of_uncertain_time_before_the_first_assignment_is_its_wearers_when_nobody_else_is_possible() {
        let assignments = vec![assignment(10, at(1_000), None)];
        assert_eq!(user(whose(&assignments, &moment(1, 500, 600, 5_000))), 10);
        let assignments = handed_over_at(at(2_000));
        assert_eq!(user(whose(&assignments, &moment(1, 1_500, 1_600, 50))), 10);
        let mut two = handed_over_at(at(2_000));
        two[0].from = at(1_000);
        assert_eq!(user(whose(&two, &moment(1, 500, 600, 5_000))), 1);
        // After the end it stays nobody's.
        let ended = vec![assignment(10, at(1_000), Some(at(2_000)))];
        assert_eq!(user(whose(&ended, &moment(1, 2_100, 2_200, 5_000))), 0);
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
    fn a_frame_in_doubt_may_be_of_those_whom_neither_name_nor_time_rules_out() {
        let users = |assignments: &[Assignment], moment: &Moment| -> Vec<u128> {
            possible(assignments, moment).iter().map(|one| one.user.as_u128()).collect()
        };
        let mut assignments = handed_over_at(at(1_000));
        assignments.push(assignment(12, at(9_000), None));
        assignments[1].to = Some(at(9_000));
        assert_eq!(users(&assignments, &moment(1, 700, 750, 0)), [10]);
        assert_eq!(users(&assignments, &moment(1, 700, 750, 400)), [10, 11]);
        assert_eq!(users(&assignments, &moment(1, 900, 1_100, 10)), [10, 11]);
        assignments[1].first = Some((EPOCH, 50));
        assert_eq!(users(&assignments, &moment(60, 500, 600, 0)), [10, 11, 12]);
        assert_eq!(users(&assignments[..0], &moment(60, 500, 600, 0)), []);
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
