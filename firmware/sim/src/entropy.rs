//! Random bytes from the kernel, for what must not repeat: log ids, nonces, bonds.

use std::fs::File;
use std::io::{self, Read};

/// `N` random bytes.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A random number.
pub fn word() -> io::Result<u32> {
    bytes().map(u32::from_le_bytes)
}
