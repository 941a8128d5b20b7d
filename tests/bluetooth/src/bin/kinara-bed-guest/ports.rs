//! The machine's serial ports to the host, found by name.

use std::fs::{File, OpenOptions, read_dir, read_to_string};
use std::time::Duration;

/// Where the kernel lists them. Their names under `/dev/virtio-ports` are made by udev, which a bare init has not.
const LISTED: &str = "/sys/class/virtio-ports";
/// How long is waited between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Opens the port of this name; waits until there is one.
pub fn open(name: &str) -> File {
    loop {
        if let Some(port) = find(name) {
            return port;
        }
        kinara_clinic::process::pause(LOOK);
    }
}

fn find(name: &str) -> Option<File> {
    let device = read_dir(LISTED)
        .ok()?
        .flatten()
        .find(|entry| read_to_string(entry.path().join("name")).is_ok_and(|listed| listed.trim() == name))?;
    let path = std::path::Path::new("/dev").join(device.file_name());
    OpenOptions::new().read(true).write(true).open(path).ok()
}
