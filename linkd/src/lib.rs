//! What only the kernel's Bluetooth management interface knows, for a daemon that has no capability of its own.
//!
//! The promise: a program in group `kinara-linkd` can learn how strong a link is and what kind of key a new bond has, and
//! can restart a controller that has gone deaf; and it can do nothing else with `CAP_NET_ADMIN`. No key ever leaves
//! the process: the parser steps over its bytes, and the buffer they came in is overwritten.
//!
//! * [`packet`] reads and writes the management packets: pure, bounded, never panics.
//! * [`kernel`] holds the one socket to the kernel, matches answers to questions, and tells of new keys.
//! * [`server`] answers [`protocol`], JSON lines on a Unix socket, to whom the kernel says is allowed.
//! * [`client`] is the other end, for `kinara-gatewayd` and `kinaractl`.
//!
//! # Unsafe code
//!
//! Only the private module `sys` may, and it holds five calls: `socket` and `bind` for an address family that neither
//! the standard library nor rustix speaks (`sockaddr_hci`), `getsockopt(SO_PEERGROUPS)` for the groups of a peer, the
//! adoption of the file descriptor that systemd passes as number 3, and tokio's registration of a descriptor, which must
//! stay open for as long as it is watched. The system calls work on values that live on the caller's stack for longer
//! than the call, each result is checked, and what comes back is at once an `OwnedFd` or a vector. Reading and writing
//! is done by safe code.

pub mod client;
pub mod kernel;
pub mod packet;
pub mod protocol;
pub mod server;
#[allow(unsafe_code, reason = "see the crate's documentation")]
mod sys;

pub use sys::open_management_socket;
