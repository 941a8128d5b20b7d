//! Carries H4 packets between a virtual controller of this kernel (`/dev/vhci`) and the air on the host.
//!
//! The controller is there while the air says so: a packet of type 0xFF, which H4 leaves to vendors, plugs it in or
//! pulls it out; so does the end of the connection. Each packet is written to the kernel as one write, as it wants.
//!
//! The promise: what one side does never keeps the other from being heard. A port takes nothing while nobody is on the
//! host's side, and a controller's queue may be emptied between a look and a read; whoever waits in such a write or read
//! does not hear that the controller was pulled out. So neither file blocks, and both are tried at least every
//! [`LOOK`], whatever the kernel says of them.

use kinara_bluetooth_bed::h4::{self, Packets, Plug};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

const VHCI: &str = "/dev/vhci";
/// What tells the kernel to make a controller for an ordinary host.
const CREATE: [u8; 2] = [h4::VENDOR, 0];
/// How long is waited while nobody is on the other side.
const ALONE: Duration = Duration::from_millis(50);
/// How often both sides are tried though the kernel reports nothing.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// Carries packets until the machine ends.
pub fn run(mut air: File) {
    unblock(&air);
    let mut packets = Packets::default();
    let mut controller: Option<File> = None;
    // What the kernel said and the air has not taken yet: one packet, since no more is read meanwhile.
    let mut outgoing = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        wait(&air, controller.as_ref().filter(|_| outgoing.is_empty()), !outgoing.is_empty());
        if let Some(kernel) = controller.as_mut().filter(|_| outgoing.is_empty()) {
            match kernel.read(&mut buffer) {
                // The kernel's answer to CREATE is for us alone.
                Ok(length) if length > 0 && buffer[0] != h4::VENDOR => {
                    outgoing.extend_from_slice(&buffer[..length]);
                }
                Ok(length) if length > 0 => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => controller = None,
            }
        }
        if !outgoing.is_empty() {
            match air.write(&outgoing) {
                Ok(length) => drop(outgoing.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => controller = None,
            }
        }
        match air.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => {
                controller = None;
                packets = Packets::default();
                kinara_clinic::process::pause(ALONE);
            }
            Ok(length) => {
                packets.feed(&buffer[..length]);
                for packet in packets.by_ref() {
                    match Plug::of(&packet) {
                        Some(Plug::In) => controller = plug_in(),
                        Some(Plug::Out) => controller = None,
                        None => pass(&packet, controller.as_mut()),
                    }
                }
            }
        }
        if controller.is_none() {
            outgoing.clear();
        }
    }
}

fn unblock(file: &File) {
    let set = fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::NONBLOCK));
    if let Err(error) = set {
        eprintln!("bridge: a file that blocks: {error}");
    }
}

/// Waits until there is something to carry, or for [`LOOK`].
fn wait(air: &File, controller: Option<&File>, outgoing: bool) {
    let for_air = if outgoing { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    let mut watched = vec![PollFd::new(air, for_air)];
    if let Some(kernel) = controller {
        watched.push(PollFd::new(kernel, PollFlags::IN));
    }
    let _ = poll(&mut watched, Some(&LOOK));
}

fn plug_in() -> Option<File> {
    let opened = OpenOptions::new().read(true).write(true).open(VHCI).and_then(|mut file| {
        file.write_all(&CREATE)?;
        unblock(&file);
        Ok(file)
    });
    match opened {
        Ok(file) => Some(file),
        Err(error) => {
            eprintln!("bridge: no virtual controller ({VHCI}): {error}");
            None
        }
    }
}

fn pass(packet: &[u8], controller: Option<&mut File>) {
    if let Some(kernel) = controller
        && let Err(error) = kernel.write_all(packet)
    {
        eprintln!("bridge: the kernel did not take {} bytes: {error}", packet.len());
    }
}
