//! A line to a broker that is slow, far, silent or cut: a TCP proxy of the tests' own.
//!
//! It holds next to nothing itself: what it has not passed on yet waits with the sender, as on a slow line.

#![allow(clippy::disallowed_methods, reason = "the threads that sleep are the proxy's own")]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// What the proxy's sockets hold.
const BUFFER: usize = 4 * 1024;
/// No limit.
pub const FAST: u64 = u64::MAX;
/// How long a thread waits before it looks whether it should go on.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    up_per_s: AtomicU64,
    latency_ms: AtomicU64,
    /// Connections are taken and nothing passes.
    silent: AtomicBool,
    /// Connections are refused.
    shut: AtomicBool,
    ended: AtomicBool,
    connections: AtomicU64,
    up: AtomicU64,
    links: Mutex<Vec<(TcpStream, TcpStream)>>,
}

/// See the module. It ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.cut();
    }
}

impl Proxy {
    /// A fast line to this port of 127.0.0.1.
    pub fn start(target: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // Those that it accepts inherit it.
        socket.set_recv_buffer_size(BUFFER)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        socket.listen(16)?;
        Self::on(socket.into(), target)
    }

    /// A fast line from where this listens to this port of 127.0.0.1, in the network of the thread that calls.
    pub fn on(listener: TcpListener, target: u16) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            target: SocketAddr::from((Ipv4Addr::LOCALHOST, target)),
            up_per_s: AtomicU64::new(FAST),
            latency_ms: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            shut: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            up: AtomicU64::new(0),
            links: Mutex::default(),
        });
        let of_thread = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &of_thread));
        Ok(Self { port, shared })
    }

    /// The port where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// So many bytes a second go up from now on.
    pub fn rate(&self, bytes_per_s: u64) {
        self.shared.up_per_s.store(bytes_per_s, Ordering::Relaxed);
    }

    /// Every byte is under way for so long, each way. Counts for connections that are made from now on.
    pub fn latency(&self, latency: Duration) {
        self.shared.latency_ms.store(latency.as_millis() as u64, Ordering::Relaxed);
    }

    /// Connections stay, and nothing passes; or it does again.
    pub fn silent(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::Relaxed);
    }

    /// Connections are closed as soon as they are made, and there are none; or there are again.
    pub fn shut(&self, shut: bool) {
        self.shared.shut.store(shut, Ordering::Relaxed);
        if shut {
            self.cut();
        }
    }

    /// Ends the connections that there are.
    pub fn cut(&self) {
        let mut links = self.shared.links.lock().unwrap_or_else(PoisonError::into_inner);
        for (near, far) in links.drain(..) {
            // It may have ended by itself.
            let _ = near.shutdown(Shutdown::Both);
            let _ = far.shutdown(Shutdown::Both);
        }
    }

    /// How many connections were taken.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Bytes that went up.
    pub fn up(&self) -> u64 {
        self.shared.up.load(Ordering::Relaxed)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.ended.load(Ordering::Relaxed) {
        let Ok((near, _)) = listener.accept() else {
            thread::sleep(LOOK);
            continue;
        };
        if shared.shut.load(Ordering::Relaxed) {
            continue;
        }
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            // A broker that is away is a line that breaks.
            let _ = link(near, &shared);
        });
    }
}

fn link(near: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    near.set_nonblocking(false)?;
    wait_while_silent(shared);
    let far = TcpStream::connect(shared.target)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ends = (near.try_clone()?, far.try_clone()?);
    shared.links.lock().unwrap_or_else(PoisonError::into_inner).push(ends);
    for (from, to, is_up) in
        [(near.try_clone()?, far.try_clone()?, true), (far.try_clone()?, near.try_clone()?, false)]
    {
        // As much as is under way on a line of that length, and a little.
        let latency = Duration::from_millis(shared.latency_ms.load(Ordering::Relaxed));
        let held = if latency.is_zero() { 1 } else { 4_096 };
        let (sender, receiver) = sync_channel(held);
        let (reading, writing) = (Arc::clone(shared), Arc::clone(shared));
        thread::spawn(move || {
            // Either end may go at any time; that is what lines do.
            let _ = take(from, &sender, &reading, latency);
        });
        thread::spawn(move || {
            let _ = give(&to, &receiver, &writing, is_up);
            // On a line that is silent one end does not hear that the other has gone.
            wait_while_silent(&writing);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

fn wait_while_silent(shared: &Shared) {
    while shared.silent.load(Ordering::Relaxed) && !shared.ended.load(Ordering::Relaxed) {
        thread::sleep(LOOK);
    }
}

type Parcel = (Instant, Vec<u8>);

fn take(
    mut from: TcpStream,
    sender: &SyncSender<Parcel>,
    shared: &Shared,
    latency: Duration,
) -> io::Result<()> {
    let mut bytes = [0; 1_024];
    loop {
        wait_while_silent(shared);
        let rate = shared.up_per_s.load(Ordering::Relaxed);
        let most = (rate / 10).clamp(64, bytes.len() as u64) as usize;
        let count = from.read(&mut bytes[..most])?;
        if count == 0 || sender.send((Instant::now() + latency, bytes[..count].to_vec())).is_err() {
            return Ok(());
        }
    }
}

fn give(mut to: &TcpStream, receiver: &Receiver<Parcel>, shared: &Shared, is_up: bool) -> io::Result<()> {
    while let Ok((due, bytes)) = receiver.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let rate = shared.up_per_s.load(Ordering::Relaxed);
        if is_up && rate != FAST {
            thread::sleep(Duration::from_secs_f64(bytes.len() as f64 / rate.max(1) as f64));
        }
        wait_while_silent(shared);
        to.write_all(&bytes)?;
        if is_up {
            shared.up.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}
