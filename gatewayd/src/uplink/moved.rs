//! A line under which the machine's network has changed.
//!
//! It may lead to the broker as before, or nowhere: a modem that dialled anew has another address, and nobody tells the
//! connections of the old one. So the broker is asked at once, and has to answer soon: within what the bytes on the way
//! need. Where the line's own address is gone from the machine nothing comes back, and they do not count.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use tokio::time::Instant;

use super::line::on_the_way;

/// So long the answer may take beyond what lies before the question.
const ANSWER: Duration = Duration::from_secs(5);

/// Since when it is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    since: Instant,
}

impl Moved {
    /// The network has changed.
    pub fn new(since: Instant) -> Self {
        Self { since }
    }

    /// Whether the broker has still to be asked.
    pub fn asks(&self, asked: Option<Instant>) -> bool {
        asked.is_none_or(|at| at < self.since)
    }

    /// Whether something has come since it was asked. What came before may have lain in the kernel.
    pub fn is_answered(&self, asked: Option<Instant>, heard: Option<Instant>) -> bool {
        !self.asks(asked) && heard > asked
    }

    /// Whether no answer can come any more to what was asked then.
    pub fn is_over(
        &self,
        (now, asked): (Instant, Option<Instant>),
        from: Option<IpAddr>,
        unconfirmed: u64,
        rate: Option<u64>,
    ) -> bool {
        let Some(asked) = asked.filter(|at| *at >= self.since) else { return false };
        let waited = now.saturating_duration_since(asked);
        waited > ANSWER
            && (waited > ANSWER + on_the_way(unconfirmed, rate) || from.is_some_and(|from| !is_here(from)))
    }
}

/// Whether this machine has the address: nothing can be bound to another one. Whatever else fails says nothing.
fn is_here(address: IpAddr) -> bool {
    !UdpSocket::bind((address, 0)).is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::{Packet, PingReq, Publish};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::super::dial::Stream;
    use super::super::line::{Incoming, Line, LineError, Patience, greet};
    use super::super::meter::{Meter, Metered};
    use super::super::queue::Item;
    use super::*;

    const WELCOME: [u8; 5] = [0x20, 3, 0, 0, 0];
    const PING: [u8; 2] = [0xc0, 0];
    const PONG: [u8; 2] = [0xd0, 0];

    /// A line whose end is at this address, and the broker's end of it.
    async fn line(from: &str) -> (Line, DuplexStream) {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let meter = Meter::new(Instant::now());
        let stream = Stream {
            duplex: Box::new(Metered::new(ours, meter.clone())),
            meter,
            at: "broker:1883".to_owned(),
            from: Some(from.parse().unwrap()),
        };
        theirs.write_all(&WELCOME).await.unwrap();
        // What is said first does not matter to this broker.
        let greeted = greet(stream, Packet::PingReq(PingReq), Duration::from_secs(5)).await.unwrap();
        theirs.read_exact(&mut [0; 2]).await.unwrap();
        let patience = Patience { silence: Duration::from_secs(30), keep_alive: Duration::from_mins(1) };
        (Line::start(greeted, patience), theirs)
    }

    async fn ended(line: &mut Line, within: Duration) -> Option<LineError> {
        let end = async {
            loop {
                match line.incoming.recv().await {
                    Some(Incoming::Ended(error)) => return Some(error),
                    Some(_) => {}
                    None => return None,
                }
            }
        };
        tokio::time::timeout(within, end).await.ok().flatten()
    }

    fn a_message(bytes: usize) -> Item {
        Item::Answer(Publish::new("t", QoS::AtMostOnce, Bytes::from(vec![0; bytes]), None))
    }

    #[tokio::test]
    async fn a_line_that_leads_nowhere_since_the_network_changed_ends_within_six_seconds() {
        // An idle one whose address is still there, and one with bytes on the way whose address is gone.
        for (from, bytes) in [("127.0.0.1", 0), ("192.0.2.7", 60_000)] {
            let (mut line, _theirs) = line(from).await;
            if bytes > 0 {
                assert!(line.publish(a_message(bytes)));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            line.network_has_changed();
            let error = ended(&mut line, Duration::from_secs(6)).await;
            assert!(matches!(error, Some(LineError::Moved)), "{from}: {error:?}");
        }
    }

    #[tokio::test]
    async fn a_slow_line_whose_address_is_still_there_has_the_time_that_its_bytes_need() {
        let (mut line, _theirs) = line("127.0.0.1").await;
        assert!(line.publish(a_message(60_000)));
        tokio::time::sleep(Duration::from_millis(100)).await;
        line.network_has_changed();
        assert!(ended(&mut line, Duration::from_secs(8)).await.is_none());
    }

    #[tokio::test]
    async fn a_line_that_leads_to_the_broker_as_before_is_asked_at_once_and_stays() {
        let (mut line, mut theirs) = line("127.0.0.1").await;
        for _ in 0..2 {
            line.network_has_changed();
            let mut asked = [0; 2];
            let question = tokio::time::timeout(Duration::from_secs(3), theirs.read_exact(&mut asked)).await;
            assert!(question.is_ok_and(|read| read.is_ok()) && asked == PING);
            theirs.write_all(&PONG).await.unwrap();
            assert!(ended(&mut line, Duration::from_secs(8)).await.is_none());
        }
    }

    #[test]
    fn an_address_that_the_machine_does_not_have_is_known_as_gone() {
        assert!(is_here("127.0.0.1".parse().unwrap()));
        assert!(!is_here("192.0.2.7".parse().unwrap()));
    }
}
