//! Frames that did not come in their turn: asked for again, or passed where the wearable does not hold them.
//!
//! A wearable whose flash has lost bits may not hold a frame, and not know it; firmware before it looked for that may even
//! say a number that no frame has. So a frame that it refuses, though it has sent later ones, is passed with a gap; and
//! what it says that it begins with is believed only until it sends something that lies before.

use kinara_protocol::control::{Op, Outcome, Refusal};
use kinara_protocol::frame::{Epoch, Seq};
use kinara_protocol::status::Status;
use tokio::time::Instant;

use super::Session;
use crate::radio::RadioError;
use crate::radio::cursor::Cursor;
use crate::radio::refetch;

type Place = (Epoch, Seq);

impl Session<'_> {
    /// Takes note of a frame that came in the log's order. The first one of a link is where the log begins, whatever the
    /// wearable has said.
    pub(super) fn walk(&mut self, place: Place) {
        let begins = self.walked.is_none() && self.refetching.is_none();
        let (epoch, seq) = self.hello.oldest;
        if begins && (!same_log(place.0, epoch) || place < (epoch, seq)) {
            tracing::warn!(
                hardware = %self.hardware, %epoch, seq, from_epoch = %place.0, from_seq = place.1,
                "the wearable names an oldest frame that it does not hold; its log begins with another one"
            );
            (self.seen, self.safe) = (Cursor::new(place), Cursor::new(place));
        }
        self.walked = self.walked.max(Some(place));
    }

    /// Whether the wearable can hold the frame that it says its log begins with.
    pub(super) fn begins_in_its_log(&self) -> bool {
        can_be_held(self.hello.oldest, (self.hello.epoch, self.hello.next_seq))
    }

    /// Asks for what is missing, or passes it where that is in vain.
    pub(super) async fn fill_hole(&mut self) -> Result<(), RadioError> {
        let hole = self.seen.next();
        let is_gone = self.refetching.as_mut().is_some_and(|refetch| refetch.is_gone(hole));
        if is_gone && self.pass_lost_hole() { Ok(()) } else { self.resend().await }
    }

    /// Passes a hole in what is fetched again. False where the hole is in what nobody has yet: that is waited for.
    fn pass_lost_hole(&mut self) -> bool {
        let hole = self.refetching.as_ref().and_then(|_| self.seen.hole_before(self.hello.oldest));
        let Some((from, to)) = hole else { return false };
        tracing::warn!(hardware = %self.hardware, ?from, ?to, "lost here, and the wearable has not kept it either");
        self.pass(from, to);
        self.hole_since = None;
        true
    }

    /// Asks for the log again from the first hole. What the wearable has not got any more is skipped; of what is fetched
    /// again, and of what it has passed itself, one frame at a time, for it may hold the next one.
    pub(super) async fn resend(&mut self) -> Result<(), RadioError> {
        for _ in 0..refetch::PASSED_AT_ONCE {
            let (epoch, seq) = self.seen.next();
            self.hole_since = None;
            tracing::debug!(hardware = %self.hardware, %epoch, seq, "asking for the log again from here");
            match self.requests.ask(Op::ResendFrom { epoch, seq }).await? {
                Outcome::Ok => return Ok(()),
                Outcome::Refused(Refusal::NotInLog) if self.pass_refused() => {
                    if self.seen.next() >= self.hello.oldest {
                        // It goes on where it was.
                        return Ok(());
                    }
                }
                Outcome::Refused(reason) => {
                    if !self.go_on_with_the_oldest(reason).await? {
                        return Ok(());
                    }
                }
                other => return Err(RadioError::Nonsense(format!("{other:?} to a resend"))),
            }
        }
        match &mut self.refetching {
            Some(refetch) => refetch.asks = true,
            None => self.hole_since = Some(Instant::now()),
        }
        Ok(())
    }

    /// The wearable does not send from where it was asked. What is fetched again waits for the next link. True where the
    /// next frame has still to be asked for.
    async fn go_on_with_the_oldest(&mut self, reason: Refusal) -> Result<bool, RadioError> {
        let bytes = self.requests.link().read_status().await?;
        let status =
            Status::decode(&bytes).map_err(|error| RadioError::Nonsense(format!("status: {error}")))?;
        if reason != Refusal::NotInLog {
            self.refetching = None;
        }
        let (epoch, seq) = self.seen.next();
        let is_held = can_be_held(status.oldest, (status.epoch, status.next_seq));
        if is_held && self.seen.skip_to(status.oldest) {
            let (to_epoch, to_seq) = status.oldest;
            tracing::warn!(
                hardware = %self.hardware, ?reason, %epoch, seq, %to_epoch, to_seq,
                "the wearable's log has been overwritten; going on with its oldest frame"
            );
            self.safe.skip_to(status.oldest);
        } else if reason == Refusal::NotInLog && self.walked.is_some_and(|walked| walked > (epoch, seq)) {
            return self.pass_what_it_has_passed().await;
        }
        let (epoch, seq) = self.seen.next();
        // It may be at the end of its log; then there is nothing to send again.
        self.requests.tell(Op::ResendFrom { epoch, seq }).await?;
        Ok(false)
    }

    /// The wearable has sent later frames, and does not hold this one: it will not come. The gap is on disk before
    /// anything behind it is acknowledged. True where another hole is left.
    async fn pass_what_it_has_passed(&mut self) -> Result<bool, RadioError> {
        let hole = self.walked.and_then(|walked| self.seen.one_before(walked));
        let Some((from, to)) = hole else { return Ok(false) };
        tracing::warn!(hardware = %self.hardware, ?from, ?to, "the wearable has passed this, and does not hold it");
        let first = if from.0 == to.0 { from.1 } else { 0 };
        let gap = self.context.store.give_up(self.hardware.clone(), to.0, (first, to.1), None).await;
        if let Err(error) = gap {
            tracing::warn!(hardware = %self.hardware, %error, "the gap was not stored; trying again");
            self.hole_since = Some(Instant::now());
            return Ok(false);
        }
        self.pass(from, to);
        // Its window may be closed: then no frame comes whose fate would bring the next acknowledgement.
        self.acknowledge().await?;
        Ok(self.walked.is_some_and(|walked| self.seen.hole_before(walked).is_some()))
    }

    /// Passes the frame that was just refused, where it is one that is fetched again.
    fn pass_refused(&mut self) -> bool {
        let hole = self.refetching.as_ref().and_then(|_| self.seen.one_before(self.hello.oldest));
        let Some((from, to)) = hole else { return false };
        tracing::warn!(hardware = %self.hardware, ?from, ?to, "lost here, and the wearable does not hold it either");
        self.pass(from, to);
        true
    }

    fn pass(&mut self, from: Place, to: Place) {
        self.seen.gone(from, to);
        self.safe.gone(from, to);
    }
}

fn same_log(one: Epoch, other: Epoch) -> bool {
    one.log_id() == other.log_id()
}

/// Whether a log that goes on with `next` can hold `oldest`.
fn can_be_held(oldest: Place, next: Place) -> bool {
    same_log(oldest.0, next.0) && oldest <= next
}
