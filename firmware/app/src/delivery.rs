//! What is sent on `backlog` and `stream`, and when.
//!
//! The log is one stream: `backlog` carries it from the oldest frame that is not acknowledged, in order, with at most
//! `window` frames sent and not acknowledged; caught up, it goes on with each frame as it closes. While the backlog is
//! more than a window behind, `stream` carries each newly closed frame at once as well, so that live values are fresh
//! during a long drain; the gateway sees by the identity that it has a frame already. Only what is in flash is sent.

use kinara_protocol::frame::{FrameRef, MAX_FRAME};
use kinara_protocol::gatt::Characteristic;

use crate::flash::Flash;
use crate::log::Log;
use crate::queue::Queue;
use crate::ring::{Entry, Identity, NeverStored, Position, RingError};

/// Frames that wait for `stream`. The oldest gives way: it comes with the backlog.
const MAX_STREAM: usize = 16;
/// The largest window.
pub const MAX_WINDOW: u8 = 100;

/// What there is to do for a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Send this many bytes there.
    Send(Characteristic, usize),
    /// This frame's turn has come, and flash has not kept it.
    Damaged(Identity),
    /// Nothing now.
    Nothing,
}

/// The state of one link's delivery.
#[derive(Debug, Default)]
pub struct Delivery {
    stream_subscribed: bool,
    stream_on: bool,
    backlog_subscribed: bool,
    /// 0 until the gateway has asked for the backlog.
    window: u8,
    cursor: Option<Position>,
    in_flight: u32,
    reclaimed: u32,
    stream: Queue<Position, MAX_STREAM>,
}

impl Delivery {
    /// A link begins or has ended: nothing is subscribed.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// The gateway switches notifications of a characteristic.
    pub fn subscribe(&mut self, characteristic: Characteristic, on: bool) {
        match characteristic {
            Characteristic::Stream => {
                self.stream_subscribed = on;
                self.stream_on = on;
            }
            Characteristic::Backlog => self.backlog_subscribed = on,
            Characteristic::Control | Characteristic::Status => {}
        }
    }

    /// The gateway asks for live frames, or for no more of them.
    pub fn set_stream(&mut self, on: bool) {
        self.stream_on = on;
        if !on {
            self.stream.clear();
        }
    }

    /// Whether somebody watches, so that frames close every second.
    pub fn is_live(&self) -> bool {
        self.stream_on
    }

    /// Starts the backlog at the oldest frame that is not acknowledged.
    pub fn start<F: Flash>(&mut self, log: &mut Log<F>, window: u8) {
        self.window = window.min(MAX_WINDOW);
        self.cursor = Some(log.ring().acknowledged());
        self.in_flight = 0;
        self.reclaimed = log.reclaimed();
    }

    /// Goes on with the backlog at another frame. `false`: the log does not hold it.
    pub fn resend<F: Flash>(
        &mut self,
        log: &mut Log<F>,
        from: Identity,
    ) -> Result<bool, RingError<F::Error>> {
        let at = log.ring().seek(from)?;
        let found = log.ring().entry_at(at)?.is_some_and(|entry| entry.id == from);
        if found {
            self.cursor = Some(at);
            self.recount(log)?;
        }
        Ok(found)
    }

    /// Takes an acknowledgement of everything up to `id`.
    pub fn acknowledge<F: Flash>(
        &mut self,
        log: &mut Log<F>,
        id: Identity,
    ) -> Result<Result<(), NeverStored>, RingError<F::Error>> {
        self.notice_reclaimed(log)?;
        let before = log.ring().acknowledged();
        let cursor = self.cursor.unwrap_or(before);
        let mut answered = 0;
        let taken = log.acknowledge(id, |at| answered += u32::from(at < cursor))?;
        self.in_flight = self.in_flight.saturating_sub(answered);
        let after = log.ring().acknowledged();
        if cursor >= before && cursor < after && self.cursor.is_some() {
            // The gateway has frames already that this link has not sent.
            self.cursor = Some(after);
            self.in_flight = 0;
        }
        Ok(taken)
    }

    /// Looks at what the log has stored since the last call: what goes on `stream`?
    pub fn notice_stored<F: Flash>(&mut self, log: &mut Log<F>) {
        while let Some(at) = log.take_fresh() {
            let behind = log.unacknowledged().saturating_sub(self.in_flight);
            let backlog_runs = self.window > 0 && self.backlog_subscribed;
            let lags = !backlog_runs || behind > u32::from(self.window);
            if self.stream_subscribed && self.stream_on && lags {
                if self.stream.is_full() {
                    self.stream.pop();
                }
                self.stream.push(at).expect("a place was made");
            }
        }
    }

    /// The next thing to do for the link.
    pub fn next<F: Flash>(
        &mut self,
        log: &mut Log<F>,
        into: &mut [u8; MAX_FRAME],
    ) -> Result<Next, RingError<F::Error>> {
        self.notice_reclaimed(log)?;
        while let Some(at) = self.stream.pop() {
            let entry = log.ring().entry_at(at)?.filter(|entry| entry.at == at);
            if let Some(entry) = entry
                && let Some(len) = read_whole(log, &entry, into)?
            {
                return Ok(Next::Send(Characteristic::Stream, len));
            }
        }
        if self.backlog_subscribed
            && self.in_flight < u32::from(self.window)
            && let Some(cursor) = self.cursor
            && let Some(entry) = log.ring().entry_at(cursor)?
        {
            self.cursor = Some(entry.end);
            if entry.at >= log.ring().acknowledged() {
                self.in_flight += 1;
            }
            return Ok(match read_whole(log, &entry, into)? {
                Some(len) => Next::Send(Characteristic::Backlog, len),
                None => Next::Damaged(entry.id),
            });
        }
        Ok(Next::Nothing)
    }

    fn notice_reclaimed<F: Flash>(&mut self, log: &mut Log<F>) -> Result<(), RingError<F::Error>> {
        if self.reclaimed != log.reclaimed() {
            self.reclaimed = log.reclaimed();
            self.recount(log)?;
        }
        Ok(())
    }

    fn recount<F: Flash>(&mut self, log: &mut Log<F>) -> Result<(), RingError<F::Error>> {
        self.in_flight = match self.cursor {
            Some(cursor) => {
                let acknowledged = log.ring().acknowledged();
                log.ring().count_from(acknowledged, cursor)?
            }
            None => 0,
        };
        Ok(())
    }
}

fn read_whole<F: Flash>(
    log: &mut Log<F>,
    entry: &Entry,
    into: &mut [u8; MAX_FRAME],
) -> Result<Option<usize>, RingError<F::Error>> {
    let bytes = log.ring().read(entry, into)?;
    Ok(FrameRef::parse(bytes).is_ok().then_some(bytes.len()))
}
