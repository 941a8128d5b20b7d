//! Unix sockets that threads wait at.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Connections to a socket at a time; one more is closed at once.
const MAX_CONNECTIONS: usize = 32;
const STACK_BYTES: usize = 128 * 1024;

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers on it.
    #[error("{0}: another wearable with this factory id is running")]
    Taken(String),
    /// The directory, the permissions, the length of the path.
    #[error("cannot listen on {path}")]
    Socket {
        /// Which socket.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Listens; what a killed process has left there is removed.
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let fail = |source| SocketError::Socket { path: path.display().to_string(), source };
    if UnixStream::connect(path).is_ok() {
        return Err(SocketError::Taken(path.display().to_string()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    UnixListener::bind(path).map_err(fail)
}

/// Starts a small thread.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(body).map(drop)
}

/// A place among a socket's connections; it is free again when the last holder is dropped.
pub struct Slot(Arc<AtomicUsize>);

impl Slot {
    /// A place, if there is one.
    pub fn take(open: &Arc<AtomicUsize>) -> Option<Self> {
        let taken = open.fetch_add(1, Ordering::SeqCst);
        let slot = Self(Arc::clone(open));
        (taken < MAX_CONNECTIONS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
