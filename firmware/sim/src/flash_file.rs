//! The wearable's flash as a file.
//!
//! **Promise.** What a write or an erasure has returned from survives the end of this process, however it ends. (It
//! is not forced to the disk: it is the wearable that is simulated, not this machine.)
//!
//! The file holds each byte inverted, so that a hole in it reads as erased flash, and it takes no more room than what was
//! written. One page is kept for reading, because the ring reads records one after another.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kinara_firmware_app::flash::{Flash, Nonce, PAGE};

/// Why the image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was made for another ring size.
    #[error("{path} is a flash of {found} KiB, not {wanted}; give its size or remove it")]
    Size {
        /// Which.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The one asked for.
        wanted: u64,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct FlashFile {
    file: File,
    pages: u32,
    cached: Option<u32>,
    cache: Box<[u8; PAGE as usize]>,
}

impl FlashFile {
    /// Opens an image, or makes a blank one. The flag says whether it is new.
    pub fn open(path: &Path, pages: u32) -> Result<(Self, bool), ImageError> {
        let fail = |source| ImageError::Open { path: path.to_owned(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fail)?;
        let size = u64::from(pages) * u64::from(PAGE);
        let found = file.metadata().map_err(fail)?.len();
        if found == 0 {
            file.set_len(size).map_err(fail)?;
        } else if found != size {
            return Err(ImageError::Size { path: path.to_owned(), found: found / 1024, wanted: size / 1024 });
        }
        Ok((Self { file, pages, cached: None, cache: Box::new([0; PAGE as usize]) }, found == 0))
    }

    fn page(&mut self, page: u32) -> io::Result<&mut [u8; PAGE as usize]> {
        if self.cached != Some(page) {
            self.cached = None;
            self.file.read_exact_at(&mut self.cache[..], u64::from(page) * u64::from(PAGE))?;
            for byte in &mut self.cache[..] {
                *byte = !*byte;
            }
            self.cached = Some(page);
        }
        Ok(&mut self.cache)
    }
}

impl Flash for FlashFile {
    type Error = io::Error;

    fn pages(&self) -> u32 {
        self.pages
    }

    fn read(&mut self, address: u32, into: &mut [u8]) -> io::Result<()> {
        let mut at = address;
        let mut rest = into;
        while !rest.is_empty() {
            let offset = (at % PAGE) as usize;
            let len = rest.len().min(PAGE as usize - offset);
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&self.page(at / PAGE)?[offset..offset + len]);
            rest = later;
            at += len as u32;
        }
        Ok(())
    }

    fn write(&mut self, address: u32, words: &[u8]) -> io::Result<()> {
        let inverted: Vec<u8> = words.iter().map(|byte| !byte).collect();
        self.file.write_all_at(&inverted, u64::from(address))?;
        let offset = (address % PAGE) as usize;
        if self.cached == Some(address / PAGE) {
            self.cache[offset..offset + words.len()].copy_from_slice(words);
        }
        Ok(())
    }

    fn erase(&mut self, page: u32) -> io::Result<()> {
        if self.cached == Some(page) {
            self.cached = None;
        }
        self.file.write_all_at(&[0; PAGE as usize], u64::from(page) * u64::from(PAGE))
    }

    /// A file of a test: there is nobody to hide it from.
    fn encipher(&mut self, _: &Nonce, _: &mut [u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_image_is_erased_and_what_is_written_is_there_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flash.img");
        let (mut flash, new) = FlashFile::open(&path, 8).unwrap();
        assert!(new);
        let mut bytes = [0; 8];
        flash.read(4_092, &mut bytes).unwrap();
        assert_eq!(bytes, [0xff; 8]);
        flash.write(4_096, b"kina").unwrap();
        drop(flash);
        let (mut flash, new) = FlashFile::open(&path, 8).unwrap();
        assert!(!new);
        flash.read(4_092, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\xff\xff\xff\xffkina");
        flash.erase(1).unwrap();
        flash.read(4_096, &mut bytes).unwrap();
        assert_eq!(bytes, [0xff; 8]);
        assert!(matches!(FlashFile::open(&path, 9), Err(ImageError::Size { .. })));
    }
}
