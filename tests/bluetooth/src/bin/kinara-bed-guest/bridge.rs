//! Carries H4 packets between a virtual controller of this kernel (`/dev/vhci`) and the air on the host.
//!
//! The controller is there while the air says so: a packet of type 0xFF, which H4 leaves to vendors, plugs it in or
//! pulls it out; so does the end of the connection. Each packet is written to the kernel as one write, as it wants.

use kinara_bluetooth_bed::h4::{self, Packets, Plug};
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::time::Duration;

const VHCI: &str = "/dev/vhci";
/// What tells the kernel to make a controller for an ordinary host.
const CREATE: [u8; 2] = [h4::VENDOR, 0];
/// How long is waited while nobody is on the other side.
const ALONE: Duration = Duration::from_millis(50);

/// Carries packets until the machine ends.
pub fn run(mut air: File) {
    let mut packets = Packets::default();
    let mut controller: Option<File> = None;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (from_air, from_kernel) = wait(&air, controller.as_ref());
        if from_kernel && let Some(kernel) = &mut controller {
            match kernel.read(&mut buffer) {
                Ok(0) | Err(_) => controller = None,
                // The kernel's answer to CREATE is for us alone.
                Ok(length) if buffer[0] != h4::VENDOR => {
                    if air.write_all(&buffer[..length]).is_err() {
                        controller = None;
                    }
                }
                Ok(_) => {}
            }
        }
        if from_air {
            match air.read(&mut buffer) {
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
        }
    }
}

fn wait(air: &File, controller: Option<&File>) -> (bool, bool) {
    let mut watched = vec![PollFd::new(air, PollFlags::IN)];
    if let Some(kernel) = controller {
        watched.push(PollFd::new(kernel, PollFlags::IN));
    }
    if poll(&mut watched, None).is_err() {
        return (false, false);
    }
    let ready = |index: usize| watched.get(index).is_some_and(|fd| !fd.revents().is_empty());
    (ready(0), ready(1))
}

fn plug_in() -> Option<File> {
    let opened = OpenOptions::new().read(true).write(true).open(VHCI).and_then(|mut file| {
        file.write_all(&CREATE)?;
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
