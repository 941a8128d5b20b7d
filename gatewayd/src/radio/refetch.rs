//! Frames that were here and are lost, and that the wearable still holds though it was told that it may forget them.
//!
//! They are asked for at the beginning of a link, the first of them first. Between two of them there may be many that
//! are here: then the log goes on behind those.
//!
//! The wearable's flash may have lost some of them too. It says so with an event at the end of its log, hours away; so
//! what does not come when it is asked for once more is gone, and a frame that it refuses to send costs itself alone. It
//! has its gap already where this box knew of it, and gets one by that event where it did not.

use std::collections::BTreeMap;

use kinara_protocol::control::{Op, Outcome, Refusal};
use kinara_protocol::frame::{Epoch, Seq};

use super::RadioError;
use super::cursor::Cursor;
use super::requests::Requests;
use crate::hardware::HardwareId;
use crate::store::{SeqSet, Store};

/// A gateway that has lost its copy asks for frames in the middle of what it has; further on than this it says so.
const WORTH_A_LEAP: u32 = 256;

/// So many frames that the wearable does not hold are passed before other things get their turn.
pub const PASSED_AT_ONCE: usize = 32;

/// Frames of an epoch that a run that was killed may have had and its database has not, at most: what a write-ahead log holds
/// between two checkpoints. Holes further back were there before: another box has those frames.
const FORGOTTEN: u32 = 20_000;

/// Boots that are asked for behind the newest one that is known: a wearable names its boot, and may name any.
const MOST_BOOTS: u32 = 4_096;

type Place = (Epoch, Seq);

/// Frames are being sent again.
#[derive(Debug)]
pub struct Refetch {
    /// The last one that came in the log's order.
    last: Place,
    /// The hole that was asked for once more, and whether the wearable has gone back since.
    asked: Option<(Place, bool)>,
    /// The log has still to be asked for from the next wanted frame on: those before it were refused.
    pub asks: bool,
    /// Nothing is known to be lost: it is what may have come at the end of a run that was killed.
    pub follows: bool,
}

impl Refetch {
    /// Takes note of a frame that came in the log's order.
    pub fn came(&mut self, frame: Place) {
        if let Some((_, went_back)) = &mut self.asked {
            *went_back |= frame <= self.last;
        }
        self.last = frame;
    }

    /// Whether a hole that still stands has been sent for in vain: asked for once more, and the log has come from there
    /// again. What comes late, because it waited for the disk, is no sign of that.
    pub fn is_gone(&mut self, hole: Place) -> bool {
        match self.asked {
            Some((asked, went_back)) if asked == hole => went_back,
            _ => {
                self.asked = Some((hole, false));
                false
            }
        }
    }

    /// Whether the log has to be asked for from `next` on, because much lies between it and what comes now.
    pub fn leaps_to(&mut self, next: Place) -> bool {
        let last = self.last;
        let leaps = next.0 > last.0 || next.0 == last.0 && next.1.saturating_sub(last.1) > WORTH_A_LEAP;
        if leaps {
            self.last = next;
        }
        leaps
    }
}

/// Asks for the first frame that was here, is lost, and is still held by the wearable. Gives the way through those
/// frames to the oldest one that nobody has acknowledged; none where there is nothing to ask for. Firmware that does not
/// know the question is none the worse.
pub async fn begin(
    store: &Store,
    hardware: &HardwareId,
    requests: &mut Requests,
    oldest: Place,
) -> Result<Option<(Refetch, Cursor)>, RadioError> {
    let mut wanted = match store.wanted(hardware.clone()).await {
        Ok(wanted) => wanted,
        Err(error) => {
            tracing::warn!(%hardware, %error, "what was lost here is not asked for now");
            return Ok(None);
        }
    };
    if let Some(received) = &wanted.behind {
        match follow(received, hardware, requests, oldest).await? {
            Followed::Begun(begun) => return Ok(Some(begun)),
            Followed::Nothing => followed(store, hardware).await,
            Followed::NotNow => {}
        }
    }
    if !wanted.everything && wanted.frames.is_empty() {
        return Ok(None);
    }
    let Outcome::OldestHeld { epoch, seq } = requests.ask(Op::OldestHeld).await? else {
        return Ok(None);
    };
    if !wanted.everything {
        forget(store, hardware, (epoch, seq)).await;
        wanted.frames.retain(|of, _| *of >= epoch && of.log_id() == epoch.log_id());
        if let Some(seqs) = wanted.frames.get_mut(&epoch) {
            *seqs = seqs.without(0, i64::from(seq) - 1);
        }
    }
    let cursor = if wanted.everything {
        Some(Cursor::new((epoch, seq)))
    } else {
        Cursor::through(&wanted.frames, oldest)
    };
    let Some(mut cursor) = cursor.filter(|cursor| cursor.next() < oldest) else {
        forget(store, hardware, oldest).await;
        return Ok(None);
    };
    for _ in 0..PASSED_AT_ONCE {
        let (epoch, seq) = cursor.next();
        if (epoch, seq) >= oldest {
            forget(store, hardware, oldest).await;
            return Ok(None);
        }
        match requests.ask(Op::ResendFrom { epoch, seq }).await? {
            Outcome::Ok => {
                tracing::warn!(
                    %hardware, %epoch, seq,
                    "frames that were here are lost; the wearable still holds them and sends them again"
                );
                return Ok(Some((
                    Refetch { last: (epoch, seq), asked: None, asks: false, follows: false },
                    cursor,
                )));
            }
            Outcome::Refused(Refusal::NotInLog) => {
                tracing::debug!(%hardware, %epoch, seq, "lost here, and the wearable does not hold it either");
                cursor = behind(cursor, wanted.everything, requests).await?;
            }
            other => {
                tracing::debug!(%hardware, ?other, %epoch, seq, "what was lost here is not asked for now");
                return Ok(None);
            }
        }
    }
    Ok(Some((Refetch { last: cursor.next(), asked: None, asks: true, follows: false }, cursor)))
}

/// What came of asking for what a run that was killed may have forgotten.
enum Followed {
    /// The wearable sends it.
    Begun((Refetch, Cursor)),
    /// It holds none of it.
    Nothing,
    /// It does not say.
    NotNow,
}

/// Asks for what a run that was killed may have forgotten. What is known to be lost has its turn at the next link.
async fn follow(
    received: &BTreeMap<Epoch, SeqSet>,
    hardware: &HardwareId,
    requests: &mut Requests,
    oldest: Place,
) -> Result<Followed, RadioError> {
    let places = places_in_doubt(received, oldest);
    if places.is_empty() {
        return Ok(Followed::Nothing);
    }
    // Older firmware does not know the question; then the place itself is asked for.
    let held = match requests.ask(Op::OldestHeld).await? {
        Outcome::OldestHeld { epoch, seq } => (epoch, seq),
        _ => (Epoch(0), 0),
    };
    let mut tries = 0;
    for (place, end) in places {
        // What the wearable has overwritten since costs no question.
        let mut first = if held.0.log_id() == place.0.log_id() { place.max(held) } else { place };
        // A frame that is damaged there is refused; those behind it are not.
        while first < end && tries < PASSED_AT_ONCE {
            tries += 1;
            match requests.ask(Op::ResendFrom { epoch: first.0, seq: first.1 }).await? {
                Outcome::Ok => {
                    tracing::warn!(
                        %hardware, epoch = %first.0, seq = first.1,
                        "the box was killed; what it may have forgotten is fetched again from the wearable"
                    );
                    let refetch = Refetch { last: first, asked: None, asks: false, follows: true };
                    return Ok(Followed::Begun((refetch, Cursor::new(first))));
                }
                Outcome::Refused(Refusal::NotInLog) => first.1 = first.1.saturating_add(1),
                other => {
                    tracing::debug!(%hardware, ?other, "what may have been forgotten is not asked for now");
                    return Ok(Followed::NotNow);
                }
            }
        }
    }
    Ok(Followed::Nothing)
}

/// Where a run that was killed may have forgotten something that came before the oldest frame that nobody has acknowledged, the
/// first place first, and where each ends. What came live lies far ahead of a log that drains, so a hole counts from its
/// beginning: lately, of the newest epoch that is known; where that has nothing from its beginning on, also of the one before;
/// and the epochs behind it, of which nothing is known. How far an earlier epoch went is not known: one frame is asked for.
fn places_in_doubt(received: &BTreeMap<Epoch, SeqSet>, oldest: Place) -> Vec<(Place, Place)> {
    let none = SeqSet::default();
    let mut places = Vec::new();
    let known = received.range(..=oldest.0).rev().map(|(epoch, seqs)| (*epoch, seqs));
    let mut known: Vec<_> = known.filter(|(epoch, _)| epoch.log_id() == oldest.0.log_id()).collect();
    if known.is_empty() {
        known.push((oldest.0, &none));
    }
    let newest = known[0].0;
    for (epoch, seqs) in known {
        let end = if epoch == oldest.0 {
            oldest.1
        } else {
            seqs.ranges().last().map_or(0, |(_, last)| last.saturating_add(1))
        };
        let first = seqs.first_missing_from(end.saturating_sub(FORGOTTEN)).unwrap_or(Seq::MAX);
        if epoch == oldest.0 && first < end {
            places.push(((epoch, first), (epoch, end)));
        } else if epoch < oldest.0 {
            places.push(((epoch, first), (epoch, first.saturating_add(1).max(end))));
        }
        if first > 0 {
            break;
        }
    }
    places.reverse();
    let from = newest.boot().max(oldest.0.boot().saturating_sub(MOST_BOOTS));
    let boots = (from..oldest.0.boot()).map(|boot| Epoch::new(newest.log_id(), boot + 1));
    places.extend(boots.map(|epoch| ((epoch, 0), if epoch == oldest.0 { oldest } else { (epoch, 1) })));
    places.retain(|(first, _)| *first < oldest);
    places
}

/// What may have been forgotten is here.
pub async fn followed(store: &Store, hardware: &HardwareId) {
    if let Err(error) = store.followed(hardware.clone()).await {
        tracing::warn!(%hardware, %error, "what may have been forgotten is asked for once more");
    }
}

/// A wearable was paired. One of which nothing is known here had nothing from this box that a run that was killed could have
/// forgotten; what it holds, others may have.
pub async fn is_new(store: &Store, hardware: &HardwareId) {
    let wanted = store.wanted(hardware.clone()).await;
    if wanted.is_ok_and(|wanted| wanted.behind.is_some_and(|received| received.is_empty())) {
        followed(store, hardware).await;
    }
}

/// The way on behind a frame that was refused. Who asks for everything asks where the log begins now: it may have turned
/// over since.
async fn behind(mut cursor: Cursor, everything: bool, requests: &mut Requests) -> Result<Cursor, RadioError> {
    if everything
        && let Outcome::OldestHeld { epoch, seq } = requests.ask(Op::OldestHeld).await?
        && (epoch, seq) > cursor.next()
    {
        return Ok(Cursor::new((epoch, seq)));
    }
    cursor.pass();
    Ok(cursor)
}

/// Nothing before this frame is wanted any more.
pub async fn forget(store: &Store, hardware: &HardwareId, before: Place) {
    if let Err(error) = store.no_longer_wanted(hardware.clone(), before).await {
        tracing::warn!(%hardware, %error, "what was lost here is asked for once more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_forgotten_begins_with_the_first_late_hole_or_with_a_later_boot() {
        let at = |boot, seq| (Epoch::new(1, boot), seq);
        let received = |ranges: &[(u32, u32, u32)]| {
            let mut received: BTreeMap<Epoch, SeqSet> = BTreeMap::new();
            for (boot, first, last) in ranges {
                received.entry(Epoch::new(1, *boot)).or_default().insert_range(*first, *last);
            }
            received
        };
        let places = |received: &BTreeMap<Epoch, SeqSet>, oldest: Place| {
            places_in_doubt(received, oldest).into_iter().map(|(first, _)| first).collect::<Vec<_>>()
        };
        let of_one = received(&[(3, 0, 40)]);
        assert!(places(&of_one, at(3, 41)).is_empty());
        assert!(places(&of_one, at(3, 20)).is_empty());
        assert_eq!(places(&of_one, at(3, 50)), [at(3, 41)]);
        assert_eq!(places(&of_one, at(4, 0)), [at(3, 41)]);
        assert_eq!(places(&of_one, at(5, 7)), [at(3, 41), at(4, 0), at(5, 0)]);
        // What came live lies behind the oldest frame, or far ahead of what was drained and acknowledged since: it hides no hole.
        assert_eq!(places(&received(&[(3, 0, 40), (3, 90, 99)]), at(3, 60)), [at(3, 41)]);
        assert_eq!(places(&received(&[(3, 0, 40), (3, 500, 503)]), at(3, 601)), [at(3, 41)]);
        assert_eq!(places(&received(&[(3, 0, 40), (4, 500, 503)]), at(4, 601)), [at(3, 41), at(4, 0)]);
        // A hole from long before is another box's.
        assert_eq!(places(&received(&[(3, 0, 9), (3, 20, 90_000)]), at(3, 90_010)), [at(3, 90_001)]);
        // Another log, or none, says nothing.
        assert_eq!(places(&of_one, (Epoch::new(2, 9), 2)), [(Epoch::new(2, 9), 0)]);
        assert_eq!(places(&BTreeMap::new(), at(1, 50_000)), [at(1, 30_000)]);
        assert!(places(&BTreeMap::new(), at(1, 0)).is_empty());
    }

    #[test]
    fn a_hole_is_gone_only_when_the_log_came_from_there_once_more() {
        let at = |seq| (Epoch::new(1, 1), seq);
        let mut refetch = Refetch { last: at(0), asked: None, asks: false, follows: false };
        refetch.came(at(8));
        assert!(!refetch.is_gone(at(7)), "nobody has asked for it again");
        refetch.came(at(9));
        assert!(!refetch.is_gone(at(7)), "this was sent before the wearable heard of it");
        refetch.came(at(8));
        assert!(!refetch.is_gone(at(5)), "another one");
        refetch.came(at(6));
        assert!(refetch.is_gone(at(5)));
    }
}
