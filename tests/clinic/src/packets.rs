//! A line on which packets are lost and late: a relay of IP packets between two networks of the tests' own.
//!
//! A TCP proxy ([`crate::proxy`]) can be slow and silent, but it ends the connection of the program under test. Here that
//! connection goes the whole way: it is the kernel that sends again, waits longer each time and shrinks its window, and the
//! program that has to bear it. Which packets are lost comes from a seed; what arrives keeps its order.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_tun::Tun;

use crate::network::{MTU, Network};
use crate::proxy::Proxy;

/// The gateway's end.
const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The broker's end: a name of its certificate.
pub const THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The broker's port there.
pub const PORT: u16 = 8_883;
/// So many packets may be under way, each way; what comes beyond is lost, as in any router.
const UNDER_WAY: usize = 1_024;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// How many of all are lost, each way.
    pub loss: f64,
    /// How long the others are under way, each way.
    pub delay: Duration,
}

#[derive(Debug, Default)]
struct Counts {
    lost: AtomicU64,
    passed: AtomicU64,
}

/// See the module. It ends when it is dropped.
#[derive(Debug)]
pub struct PacketLine {
    here: Network,
    counts: Arc<Counts>,
    /// By it the gateway's own page is reached from outside.
    _door: Proxy,
    _relay: JoinSet<()>,
}

impl PacketLine {
    /// Lays a line at whose end ([`THERE`], [`PORT`]) the broker of this port of 127.0.0.1 answers; the port `page` of
    /// 127.0.0.1 leads to the same one inside the gateway's network. What has come over the line is seen at the proxy.
    pub fn lay(
        weather: Weather,
        seed: u64,
        (broker, page): (u16, u16),
        runtime: &Handle,
    ) -> io::Result<(Self, Proxy)> {
        let (here, near) = Network::make(HERE, runtime)?;
        let (there, far) = Network::make(THERE, runtime)?;
        let listener = there.inside(|| TcpListener::bind((THERE, PORT)))?;
        let arrived = Proxy::on(listener, broker)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, page))?;
        let door = here.inside(|| Proxy::on(listener, page))?;
        let counts = Arc::new(Counts::default());
        let (near, far) = (Arc::new(near), Arc::new(far));
        let mut relay = JoinSet::new();
        for (from, to, seed) in [(&near, &far, seed), (&far, &near, !seed)] {
            let (sender, receiver) = mpsc::channel(UNDER_WAY);
            let chance = StdRng::seed_from_u64(seed);
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            relay.spawn_on(take(from, sender, weather, chance, Arc::clone(&counts)), runtime);
            relay.spawn_on(give(to, receiver, Arc::clone(&counts)), runtime);
        }
        Ok((Self { here, counts, _door: door, _relay: relay }, arrived))
    }

    /// The network in which the gateway is to run.
    pub fn network(&self) -> &Network {
        &self.here
    }

    /// Packets that were lost, both ways.
    pub fn lost(&self) -> u64 {
        self.counts.lost.load(Ordering::Relaxed)
    }

    /// Packets that passed, both ways, each as late as the line is long.
    pub fn passed(&self) -> u64 {
        self.counts.passed.load(Ordering::Relaxed)
    }
}

type Parcel = (Instant, Vec<u8>);

/// Takes packets from one end. What is lost never sets out.
async fn take(
    from: Arc<Tun>,
    sender: mpsc::Sender<Parcel>,
    weather: Weather,
    mut chance: StdRng,
    counts: Arc<Counts>,
) {
    let mut packet = [0; MTU];
    while let Ok(length) = from.recv(&mut packet).await {
        // What an interface says by itself (IPv6) is no traffic, and draws no lot.
        if packet[0] >> 4 != 4 {
            continue;
        }
        let parcel = (Instant::now() + weather.delay, packet[..length].to_vec());
        if chance.random_bool(weather.loss) || sender.try_send(parcel).is_err() {
            counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Gives packets to the other end when they are due.
async fn give(to: Arc<Tun>, mut receiver: mpsc::Receiver<Parcel>, counts: Arc<Counts>) {
    while let Some((due, packet)) = receiver.recv().await {
        sleep_until(due).await;
        // One that the other end has no room for is lost, too.
        let counter = if to.send(&packet).await.is_ok() { &counts.passed } else { &counts.lost };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether such lines must work here: where nobody is at hand who would read that something was skipped, and the machine
/// has what they need.
pub fn must_work() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
        && std::path::Path::new("/dev/net/tun").exists()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::thread;

    use super::*;

    #[test]
    fn packets_are_lost_on_the_way_and_a_connection_over_it_still_brings_everything() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let broker = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let ports = (broker.local_addr().unwrap().port(), crate::ports::free());
        let weather = Weather { loss: 0.1, delay: Duration::from_millis(20) };
        let (line, arrived) = match PacketLine::lay(weather, 7, ports, runtime.handle()) {
            Ok(laid) => laid,
            Err(error) => {
                assert!(!must_work(), "{error}");
                eprintln!("skipped: needs root, /dev/net/tun and `ip`: {error}");
                return;
            }
        };
        let brought = thread::spawn(move || {
            let mut bytes = Vec::new();
            broker.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let sent: Vec<u8> = (0..60_000u32).map(|n| n as u8).collect();
        let began = std::time::Instant::now();
        let mut connection = line.network().inside(|| TcpStream::connect((THERE, PORT))).unwrap();
        assert!(began.elapsed() >= 2 * weather.delay, "an answer takes as long as the line is");
        connection.write_all(&sent).unwrap();
        drop(connection);
        assert_eq!(brought.join().unwrap(), sent);
        assert!(line.lost() > 0 && line.passed() > line.lost());
        assert_eq!((arrived.connections(), arrived.up()), (1, 60_000));
    }
}
