//! The system calls that safe Rust has no words for; why this is sound stands in the crate's documentation.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

/// `BTPROTO_HCI` of `<bluetooth/bluetooth.h>`.
const BTPROTO_HCI: libc::c_int = 1;
/// `HCI_DEV_NONE` of `<bluetooth/hci.h>`.
const HCI_DEV_NONE: u16 = 0xffff;
/// `HCI_CHANNEL_CONTROL` of `<bluetooth/hci.h>`.
const HCI_CHANNEL_CONTROL: u16 = 3;
/// `SO_PEERGROUPS` of `<asm-generic/socket.h>`.
const SO_PEERGROUPS: libc::c_int = 59;
/// Supplementary groups that a peer is believed to have at most.
const MOST_GROUPS: usize = 1024;
/// `SD_LISTEN_FDS_START` of `<systemd/sd-daemon.h>`.
const FIRST_PASSED_FD: libc::c_int = 3;

/// `struct sockaddr_hci` of `<bluetooth/hci.h>`.
#[repr(C)]
struct SockaddrHci {
    family: libc::sa_family_t,
    device: u16,
    channel: u16,
}

/// A non-blocking socket of the kernel's Bluetooth management interface. Without `CAP_NET_ADMIN` the kernel gives a
/// socket too, and refuses the commands.
pub fn open_management_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers; a negative result is checked before it is used.
    let socket = unsafe { libc::socket(libc::AF_BLUETOOTH, kind, BTPROTO_HCI) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let address = SockaddrHci {
        family: libc::AF_BLUETOOTH as libc::sa_family_t,
        device: HCI_DEV_NONE,
        channel: HCI_CHANNEL_CONTROL,
    };
    // SAFETY: `address` is a whole `sockaddr_hci` of the length given, alive for the call, and only read.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<SockaddrHci>() as libc::socklen_t,
        )
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// The socket, watched by tokio.
pub fn watch(socket: OwnedFd) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` owns its descriptor, which is open and stays the same until the file is dropped; it is dropped with
    // the `AsyncFd` and never replaced in it.
    let watched = unsafe { AsyncFd::register(File::from(socket)) };
    watched.map_err(Into::into)
}

/// The supplementary groups that the peer of a Unix socket had when it connected.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; MOST_GROUPS];
    let mut length = (groups.len() * size_of::<u32>()) as libc::socklen_t;
    // SAFETY: the buffer is as long as `length` says and outlives the call; the kernel writes at most that, whole
    // `gid_t`s (32 bits on Linux), and says in `length` how much.
    let got = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(length as usize / size_of::<u32>());
    Ok(groups)
}

/// The socket that systemd passes, when the environment of this very process says that it passed one.
pub fn passed_socket(listen_pid: Option<&str>, listen_fds: Option<&str>) -> Option<OwnedFd> {
    if listen_pid?.parse() != Ok(std::process::id()) || listen_fds? != "1" {
        return None;
    }
    // SAFETY: by the protocol of socket activation descriptor 3 is open and handed over to this process for good; this
    // is called once, at the start of `main`, before anything else opens or closes descriptors.
    Some(unsafe { OwnedFd::from_raw_fd(FIRST_PASSED_FD) })
}
