//! Requests on `control` and their replies, beside everything else that arrives on a link.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use kinara_protocol::control::{MAX_MESSAGE, Op, Outcome, Reply, Request};
use kinara_protocol::gatt::Characteristic;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::{Connection, Link, LinkEvent, RadioError};

/// What may arrive while a reply is awaited; far more than the wearable's window.
const INBOX: usize = 8192;

/// A link on which requests are numbered and replies found.
pub struct Requests {
    link: Box<dyn Link>,
    events: mpsc::Receiver<LinkEvent>,
    inbox: VecDeque<LinkEvent>,
    unanswered: HashMap<u16, Instant>,
    next_id: u16,
    timeout: Duration,
}

impl Requests {
    /// A request may take `timeout`.
    pub fn new(connection: Connection, timeout: Duration) -> Self {
        Self {
            link: connection.link,
            events: connection.events,
            inbox: VecDeque::new(),
            unanswered: HashMap::new(),
            next_id: 0,
            timeout,
        }
    }

    /// The link itself.
    pub fn link(&mut self) -> &mut dyn Link {
        self.link.as_mut()
    }

    /// Sends a request whose reply only has to come some time.
    pub async fn tell(&mut self, op: Op) -> Result<u16, RadioError> {
        self.next_id = self.next_id.wrapping_add(1);
        let id = self.next_id;
        self.unanswered.insert(id, Instant::now() + self.timeout);
        let mut buffer = [0; MAX_MESSAGE];
        self.link.write_control(Request { id, op }.encode(&mut buffer)).await?;
        Ok(id)
    }

    /// Sends a request and waits for its reply; what arrives meanwhile is kept for [`next`](Self::next).
    pub async fn ask(&mut self, op: Op) -> Result<Outcome, RadioError> {
        let id = self.tell(op).await?;
        let deadline = Instant::now() + self.timeout;
        loop {
            let event = timeout_at(deadline, self.events.recv())
                .await
                .map_err(|_| RadioError::Timeout("reply"))?
                .ok_or_else(|| RadioError::Gone("while waiting for a reply".to_owned()))?;
            if event.characteristic == Characteristic::Control {
                if let Some(reply) = self.reply(&event.bytes)
                    && reply.id == id
                {
                    return Ok(reply.outcome);
                }
            } else if self.inbox.len() < INBOX {
                self.inbox.push_back(event);
            }
        }
    }

    /// Reads a reply and ticks off its request.
    pub fn reply(&mut self, bytes: &Bytes) -> Option<Reply> {
        let reply = Reply::decode(bytes).ok()?;
        self.unanswered.remove(&reply.id);
        Some(reply)
    }

    /// The next thing that arrived; `None` when the link has ended. Safe to cancel.
    pub async fn next(&mut self) -> Option<LinkEvent> {
        match self.inbox.pop_front() {
            Some(event) => Some(event),
            None => self.events.recv().await,
        }
    }

    /// The next thing that is there already.
    pub fn next_now(&mut self) -> Option<LinkEvent> {
        self.inbox.pop_front().or_else(|| self.events.try_recv().ok())
    }

    /// Whether a reply is overdue: the wearable hangs.
    pub fn is_overdue(&self) -> bool {
        let now = Instant::now();
        self.unanswered.values().any(|deadline| *deadline < now)
    }
}
