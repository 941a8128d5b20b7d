//! The two sockets of a wearable: the virtual radio's, and the one for commands.
//!
//! Threads wait for bytes, so that the wearable's own thread only ever waits for [`Event`]s. All queues are
//! bounded: a gateway that does not read its notifications fills its [`Outbox`], and then the wearable waits for
//! [`Event::Room`]; a gateway that writes too fast waits in its socket.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kinara_virtual_radio::{Decoder, FromWearable, Message, ToWearable};

use crate::commands;
use crate::socket::{self, Slot, SocketError, spawn};

/// Bytes that wait for a gateway to read them before the wearable waits.
const OUTBOX_BYTES: usize = 16 * 1024;
/// Events that wait for the wearable.
const MAX_EVENTS: usize = 1_024;
/// A gateway that reads nothing for so long has lost the link.
const SUPERVISION: Duration = Duration::from_secs(30);

/// What happens on the sockets.
#[derive(Debug)]
pub enum Event {
    /// Somebody connected to the radio socket.
    Opened(u64, Outbox),
    /// And sent a message.
    Message(u64, ToWearable),
    /// And is gone.
    Closed(u64),
    /// An outbox that was full has room.
    Room,
    /// A command, and where its answer goes.
    Command(serde_json::Value, SyncSender<serde_json::Value>),
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    closed: bool,
    asked_for_room: bool,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    stream: UnixStream,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A thread that panicked has left whole messages behind.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Messages on their way to one gateway.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Shared>);

impl Outbox {
    /// Adds a message.
    pub fn send(&self, message: &FromWearable) {
        message.encode(&mut self.0.lock().bytes);
        self.0.changed.notify_one();
    }

    /// Whether more should be sent. If not, [`Event::Room`] follows.
    pub fn has_room(&self) -> bool {
        let mut waiting = self.0.lock();
        let room = waiting.bytes.len() < OUTBOX_BYTES;
        waiting.asked_for_room |= !room;
        room
    }

    /// Closes the connection once what waits is sent.
    pub fn finish(&self) {
        self.0.lock().closed = true;
        self.0.changed.notify_one();
    }

    /// Closes the connection now, with what waits.
    pub fn cut(&self) {
        let mut waiting = self.0.lock();
        waiting.bytes.clear();
        waiting.closed = true;
        // It may be closed already.
        let _ = self.0.stream.shutdown(Shutdown::Both);
        self.0.changed.notify_one();
    }
}

/// Opens both sockets. Events come out of the receiver for as long as the program runs.
pub fn open(radio: &Path, control: &Path) -> Result<Receiver<Event>, SocketError> {
    let (events, receiver) = sync_channel(MAX_EVENTS);
    let radio_listener = socket::listen(radio)?;
    let control_listener = socket::listen(control)?;
    let fail = |source| SocketError::Socket { path: radio.display().to_string(), source };
    let radio_events = events.clone();
    spawn("radio", move || accept_radio(&radio_listener, &radio_events)).map_err(fail)?;
    let ask = move |command, answers| events.send(Event::Command(command, answers)).is_ok();
    commands::serve(control_listener, ask).map_err(fail)?;
    Ok(receiver)
}

fn accept_radio(listener: &UnixListener, events: &SyncSender<Event>) {
    let open = Arc::new(AtomicUsize::new(0));
    for (connection, stream) in (0..).zip(listener.incoming()) {
        let Some(slot) = Slot::take(&open) else { continue };
        let Ok(stream) = stream else { continue };
        // Out of threads or descriptors: the gateway sees the connection close and tries again.
        let _ = serve_radio(connection, stream, events, slot);
    }
}

fn serve_radio(
    connection: u64,
    stream: UnixStream,
    events: &SyncSender<Event>,
    slot: Slot,
) -> io::Result<()> {
    stream.set_write_timeout(Some(SUPERVISION))?;
    let writing = stream.try_clone()?;
    let reading = stream.try_clone()?;
    let shared = Arc::new(Shared { waiting: Mutex::default(), changed: Condvar::new(), stream });
    let outbox = Outbox(Arc::clone(&shared));
    let writer_events = events.clone();
    spawn("writer", move || write_all(&shared, writing, &writer_events))?;
    let reader_events = events.clone();
    spawn("reader", move || {
        let _slot = slot;
        if reader_events.send(Event::Opened(connection, outbox.clone())).is_ok() {
            read_all(connection, reading, &reader_events);
            outbox.cut();
            let _ = reader_events.send(Event::Closed(connection));
        }
    })
}

fn read_all(connection: u64, mut stream: UnixStream, events: &SyncSender<Event>) {
    let mut decoder = Decoder::default();
    let mut bytes = [0; 4_096];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        decoder.feed(&bytes[..count]);
        loop {
            match decoder.next::<ToWearable>() {
                Ok(Some(message)) => {
                    if events.send(Event::Message(connection, message)).is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    eprintln!("radio: a gateway sent {error}; its connection is closed");
                    return;
                }
            }
        }
    }
}

fn write_all(shared: &Shared, mut stream: UnixStream, events: &SyncSender<Event>) {
    let mut batch = Vec::new();
    loop {
        let (closed, asked_for_room) = {
            let mut waiting = shared.lock();
            while waiting.bytes.is_empty() && !waiting.closed {
                waiting = shared.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut batch, &mut waiting.bytes);
            (waiting.closed, std::mem::take(&mut waiting.asked_for_room))
        };
        // The event goes out before the bytes: the wearable fills the outbox while this batch is sent.
        if asked_for_room && events.send(Event::Room).is_err() {
            return;
        }
        if stream.write_all(&batch).is_err() || closed {
            // The reader sees it and tells.
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
        batch.clear();
    }
}
