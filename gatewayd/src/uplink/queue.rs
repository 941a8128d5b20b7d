//! What waits for its turn on the line. Packets go out whole and one after another, so what is urgent waits for one
//! packet at most, however slow the line is.

use std::collections::{HashMap, VecDeque};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use tokio::time::{Duration, Instant};

use crate::store::Name;

/// Answers to commands that may wait; of more the oldest goes.
const ANSWERS: usize = 64;
/// A live message that has waited so long says nothing any more.
const LIVE_AGE: Duration = Duration::from_secs(5);

/// What is published, by what it means for the order.
#[derive(Debug)]
pub enum Item {
    /// An answer to a command.
    Answer(Publish),
    /// An event batch.
    Event(Name, Publish),
    /// The newest `state`: an older one that still waits is forgotten.
    State(Publish),
    /// The newest live values, likewise.
    Live(Publish),
    /// A batch.
    Batch(Name, Publish),
}

/// A packet whose turn it is.
#[derive(Debug)]
pub struct Turn {
    /// The packet.
    pub packet: Packet,
    /// The batch that it is.
    pub name: Option<Name>,
}

#[derive(Debug)]
struct Sent {
    name: Option<Name>,
    /// How much had gone out on the connection when it had.
    position: u64,
}

/// See the module. Used under a lock, by one connection.
#[derive(Debug, Default)]
pub struct Queue {
    control: VecDeque<Packet>,
    answers: VecDeque<Publish>,
    events: VecDeque<(Name, Publish)>,
    state: Option<Publish>,
    live: Option<(Publish, Instant)>,
    batches: VecDeque<(Name, Publish)>,
    /// A batch has gone since the last live message, so that live values never take the whole line.
    live_may: bool,
    /// Packets of QoS 1 that the broker has not answered.
    unanswered: HashMap<u16, Sent>,
    last_id: u16,
    /// What had gone out when the last answered packet had.
    answered_position: u64,
    closing: bool,
}

impl Queue {
    /// Something that the protocol needs.
    pub fn control(&mut self, packet: Packet) {
        self.control.push_back(packet);
    }

    /// Something to publish.
    pub fn push(&mut self, item: Item) {
        match item {
            Item::Answer(publish) => {
                if self.answers.len() == ANSWERS {
                    tracing::warn!("answers to commands pile up; the oldest is left out");
                    self.answers.pop_front();
                }
                self.answers.push_back(publish);
            }
            Item::Event(name, publish) => self.events.push_back((name, publish)),
            Item::State(publish) => self.state = Some(publish),
            Item::Live(publish) => self.live = Some((publish, Instant::now())),
            Item::Batch(name, publish) => self.batches.push_back((name, publish)),
        }
    }

    /// Whether the last live message has gone.
    pub fn wants_live(&self) -> bool {
        self.live.is_none()
    }

    /// Whether the last `state` has gone.
    pub fn wants_state(&self) -> bool {
        self.state.is_none()
    }

    /// Nothing but `state` and a goodbye goes out any more.
    pub fn close(&mut self) {
        self.closing = true;
        self.batches.clear();
        self.events.clear();
        self.live = None;
    }

    /// Whether all has been said.
    pub fn is_done(&self) -> bool {
        self.closing && self.control.is_empty() && self.answers.is_empty() && self.state.is_none()
    }

    /// What goes out next, when the broker takes so many unanswered packets of QoS 1.
    pub fn next(&mut self, in_flight: usize, now: Instant) -> Option<Turn> {
        if let Some(packet) = self.control.pop_front() {
            return Some(Turn { packet, name: None });
        }
        if self.live.as_ref().is_some_and(|(_, since)| now.saturating_duration_since(*since) > LIVE_AGE) {
            self.live = None;
        }
        let full = self.unanswered.len() >= in_flight;
        let may = |publish: &Publish| !full || publish.qos == QoS::AtMostOnce;
        if self.answers.front().is_some_and(may) {
            return self.answers.pop_front().map(|publish| self.turn(None, publish));
        }
        if self.events.front().is_some_and(|(_, publish)| may(publish)) {
            return self.events.pop_front().map(|(name, publish)| self.turn(Some(name), publish));
        }
        if self.state.as_ref().is_some_and(may) {
            return self.state.take().map(|publish| self.turn(None, publish));
        }
        if (self.live_may || self.batches.is_empty())
            && let Some((publish, _)) = self.live.take()
        {
            self.live_may = false;
            return Some(self.turn(None, publish));
        }
        if self.batches.front().is_some_and(|(_, publish)| may(publish)) {
            self.live_may = true;
            return self.batches.pop_front().map(|(name, publish)| self.turn(Some(name), publish));
        }
        None
    }

    fn turn(&mut self, name: Option<Name>, mut publish: Publish) -> Turn {
        if publish.qos != QoS::AtMostOnce {
            publish.pkid = self.free_id();
            self.unanswered.insert(publish.pkid, Sent { name, position: u64::MAX });
        }
        Turn { packet: Packet::Publish(publish), name }
    }

    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.unanswered.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// An identifier for a subscription.
    pub fn subscription_id(&mut self) -> u16 {
        self.free_id()
    }

    /// The packet with this identifier has left; so much has gone out with it.
    pub fn left(&mut self, id: u16, position: u64) {
        if let Some(sent) = self.unanswered.get_mut(&id) {
            sent.position = position;
        }
    }

    /// The broker has the packet with this identifier. Gives the batch that it was.
    pub fn answered(&mut self, id: u16) -> Option<Name> {
        let sent = self.unanswered.remove(&id)?;
        if sent.position != u64::MAX {
            self.heard(sent.position);
        }
        sent.name
    }

    /// The broker has had everything up to here.
    pub fn heard(&mut self, position: u64) {
        self.answered_position = self.answered_position.max(position);
    }

    /// Bytes of which it is not known whether the broker has them.
    pub fn unconfirmed(&self, sent: u64) -> u64 {
        sent.saturating_sub(self.answered_position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Kind;

    fn publish(topic: &str, qos: QoS) -> Publish {
        Publish::new(topic, qos, "x", None)
    }

    fn batch(sequence: u64) -> Item {
        let name = Name { kind: Kind::Batch, buffer: 1, sequence };
        Item::Batch(name, publish("batch", QoS::AtLeastOnce))
    }

    fn order(queue: &mut Queue, in_flight: usize) -> Vec<String> {
        std::iter::from_fn(|| queue.next(in_flight, Instant::now()))
            .map(|turn| match turn.packet {
                Packet::Publish(publish) => String::from_utf8(publish.topic.to_vec()).unwrap(),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn what_is_urgent_overtakes_batches_and_live_values_take_turns_with_them() {
        let mut queue = Queue::default();
        for sequence in 0..2 {
            queue.push(batch(sequence));
        }
        queue.push(Item::Live(publish("live", QoS::AtMostOnce)));
        queue.push(Item::State(publish("old state", QoS::AtLeastOnce)));
        queue.push(Item::State(publish("state", QoS::AtLeastOnce)));
        queue.push(Item::Answer(publish("answer", QoS::AtLeastOnce)));
        assert_eq!(order(&mut queue, 100), ["answer", "state", "batch", "live", "batch"]);
    }

    #[test]
    fn no_more_than_the_broker_takes_is_unanswered_and_identifiers_are_used_again() {
        let mut queue = Queue::default();
        for sequence in 0..3 {
            queue.push(batch(sequence));
        }
        assert_eq!(order(&mut queue, 2).len(), 2);
        queue.push(Item::Live(publish("live", QoS::AtMostOnce)));
        assert_eq!(order(&mut queue, 2), ["live"]);
        queue.left(1, 700);
        assert_eq!(queue.unconfirmed(1_000), 1_000);
        assert_eq!(queue.answered(1).map(|name| name.sequence), Some(0));
        assert_eq!(queue.unconfirmed(1_000), 300);
        assert_eq!(queue.answered(1), None);
        assert_eq!(order(&mut queue, 2), ["batch"]);
    }

    #[test]
    fn on_the_way_down_only_the_last_state_still_goes_out() {
        let mut queue = Queue::default();
        queue.push(batch(0));
        queue.push(Item::State(publish("state", QoS::AtLeastOnce)));
        queue.close();
        assert!(!queue.is_done());
        assert_eq!(order(&mut queue, 2), ["state"]);
        assert!(queue.is_done());
    }
}
