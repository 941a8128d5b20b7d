//! Random bytes from the kernel, for what must not repeat: log ids, nonces, bonds.

use std::fs::File;
use std::io::{self, Read};

use rand_core::{CryptoRng, RngCore};

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

/// The kernel's random numbers as the firmware takes them.
#[derive(Debug)]
pub struct Kernel(File);

impl Kernel {
    /// Opens the source.
    pub fn open() -> io::Result<Self> {
        File::open("/dev/urandom").map(Self)
    }
}

impl RngCore for Kernel {
    fn next_u32(&mut self) -> u32 {
        rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.read_exact(bytes).expect("an open /dev/urandom never ends and never fails");
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl CryptoRng for Kernel {}
