//! A network of the tests' own: a network namespace with a loopback and one line that leads out of it.
//!
//! What runs in it, a program ([`Launch::network`](crate::process::Launch)) or a thread ([`Network::inside`]), can reach
//! nothing else, and nothing reaches it: addresses in it are nobody's outside. A socket belongs to the network it was made
//! in, whoever uses it, so a thread that was inside for a moment brings one out.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime::Handle;
use tokio_tun::Tun;

/// What the line is called inside.
const LINE: &str = "line";
/// Who is reached over it.
const NEIGHBOURS: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// The longest packet on it.
pub const MTU: usize = 1_400;

/// See the module. It goes with this and with the last program in it.
#[derive(Debug)]
pub struct Network {
    namespace: File,
}

impl Network {
    /// Makes one whose line has this address and reaches its neighbours (/24); the line's other end is what is returned
    /// beside it, for this runtime: packets are read from it and written to it. Needs root and `/dev/net/tun`.
    pub fn make(address: Ipv4Addr, runtime: &Handle) -> io::Result<(Self, Tun)> {
        // The thread's end takes nothing with it: the namespace lives by its file.
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let namespace = File::open("/proc/thread-self/ns/net")?;
            bring_up_loopback()?;
            let _here = runtime.enter();
            let line = Tun::builder().name(LINE).mtu(MTU as i32).address(address).netmask(NEIGHBOURS);
            let ends = line.up().close_on_exec().build().map_err(io::Error::other)?;
            let end = ends.into_iter().next().ok_or(io::ErrorKind::NotFound)?;
            Ok((Self { namespace }, end))
        })
    }

    /// Does this on a thread inside; threads that it starts are inside, too.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        in_thread(|| {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// Where a program that this one starts finds it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd()).into()
    }
}

fn in_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let outcome = thread::scope(|scope| scope.spawn(work).join());
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Of the thread's network.
fn bring_up_loopback() -> io::Result<()> {
    let output = Command::new("ip").args(["link", "set", "lo", "up"]).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("ip: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
