//! The last step of an update: the image goes where it is started from, and is judged there.
//!
//! **Promise.** An image is handed to the bootloader only when what lies where it will run is signed by its maker, made for
//! this board, newer than what runs, and whole. The slot that it came into may be a chip that anybody can clip on to, so
//! nothing that the slot says of itself (that it was verified) is believed, and nothing is read from it again once it was
//! judged.

use kinara_protocol::control::Refusal;
use kinara_protocol::image::Header;

use super::{Failure, Tried, Updater, is_payload_of};
use crate::flash::{Flash, PAGE};

/// Where an image is started from: the chip's own flash, which only the firmware writes.
pub trait Target {
    /// Why it could not.
    type Error;

    /// Writes a page of the payload; the last one is padded.
    fn write(&mut self, at: u32, page: &[u8; PAGE as usize]) -> Result<(), Self::Error>;

    /// Reads what was written.
    fn read(&mut self, at: u32, into: &mut [u8]) -> Result<(), Self::Error>;
}

/// What became of the image that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// None waited.
    None,
    /// It is in its place and may be started. Then the slot is to be [cleared](Updater::clear).
    Ready(Header),
    /// It is not what this wearable takes. The slot is cleared.
    Refused(Refusal),
    /// Its place could not be written. It is not tried again: the slot is cleared.
    Failed,
}

impl<F: Flash> Updater<F> {
    /// Copies the image that waits to where it is started from, and judges it there.
    pub fn install(&mut self, target: &mut impl Target) -> Tried<Installed, F> {
        let Some(size) = self.verified_size()? else { return Ok(Installed::None) };
        // Read once: the slot may say something else the next time.
        let header = match self.header() {
            Ok(header) => header,
            Err(Failure::Refused(refusal)) => return self.not_installed(Installed::Refused(refusal)),
            Err(failure) => return Err(failure),
        };
        if let Err(refusal) = self.accepts.judge(&header, size) {
            return self.not_installed(Installed::Refused(refusal));
        }
        if !self.copy(&header, target)? {
            return self.not_installed(Installed::Failed);
        }
        if is_payload_of(&header, &mut |at, into| target.read(at, into).is_ok()) {
            Ok(Installed::Ready(header))
        } else {
            self.not_installed(Installed::Refused(Refusal::BadImage))
        }
    }

    fn not_installed(&mut self, why: Installed) -> Tried<Installed, F> {
        self.clear()?;
        Ok(why)
    }

    /// Whether the target took all of it.
    fn copy(&mut self, header: &Header, target: &mut impl Target) -> Tried<bool, F> {
        let mut page = [0; PAGE as usize];
        let mut at = 0;
        while at < header.payload {
            let length = PAGE.min(header.payload - at);
            page.fill(0xff);
            self.read_payload(at, &mut page[..length as usize])?;
            if target.write(at, &page).is_err() {
                return Ok(false);
            }
            at += length;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use ed25519_dalek::SigningKey;
    use kinara_protocol::image::Board;

    use super::super::tests::{RUNS, accepts, image, maker, payload, send};
    use super::super::{RECORD, page_mark, verified_mark};
    use super::*;
    use crate::flash::WORD;
    use crate::testing::RamFlash;

    /// What is in the place that images are started from.
    #[derive(Default)]
    struct Place {
        bytes: Vec<u8>,
        fails: bool,
        /// A bit turns while it is written.
        turns_a_bit: bool,
    }

    impl Target for Place {
        type Error = ();

        fn write(&mut self, at: u32, page: &[u8; PAGE as usize]) -> Result<(), ()> {
            self.bytes.resize(at as usize, 0);
            self.bytes.extend(page);
            self.bytes[at as usize] ^= u8::from(self.turns_a_bit);
            if self.fails { Err(()) } else { Ok(()) }
        }

        fn read(&mut self, at: u32, into: &mut [u8]) -> Result<(), ()> {
            into.copy_from_slice(&self.bytes[at as usize..][..into.len()]);
            Ok(())
        }
    }

    /// Somebody with a clip writes into the slot's chip: an image, and that it was verified.
    fn slipped_in(image: &[u8]) -> Updater<RamFlash> {
        let mut slot = RamFlash::new(8);
        let size = image.len() as u32;
        let mut record = [0; RECORD];
        record[16..20].copy_from_slice(&size.to_le_bytes());
        record[20..].copy_from_slice(&(!size).to_le_bytes());
        slot.write(0, &record).unwrap();
        for page in 0..size.div_ceil(PAGE) {
            slot.write(page_mark(page), &[0; WORD]).unwrap();
        }
        slot.write(verified_mark(size), &[0; WORD]).unwrap();
        let mut words = image.to_vec();
        words.resize(image.len().next_multiple_of(WORD), 0xff);
        slot.write(PAGE, &words).unwrap();
        Updater::new(slot, accepts())
    }

    #[test]
    fn an_image_that_was_taken_is_installed_byte_for_byte() {
        let payload = payload(10_001);
        let mut updater = Updater::new(RamFlash::new(8), accepts());
        send(&mut updater, &image(&maker(), Board::SIMULATOR, [0, 2, 0], &payload));
        let mut place = Place::default();
        let installed = updater.install(&mut place).unwrap();
        assert!(
            matches!(installed, Installed::Ready(header) if header.version == [0, 2, 0]),
            "{installed:?}"
        );
        assert_eq!(place.bytes[..payload.len()], payload);
        updater.clear().unwrap();
        assert_eq!(updater.install(&mut place).unwrap(), Installed::None);
    }

    #[test]
    fn what_lies_behind_a_verified_mark_and_is_not_signed_is_refused_where_it_is_installed() {
        let stranger = SigningKey::from_bytes(&[8; 32]);
        let good = image(&maker(), Board::SIMULATOR, [9, 9, 9], &payload(9_000));
        let (mut unsigned, mut other_payload, mut longer, mut nothing) =
            (good.clone(), good.clone(), good.clone(), good.clone());
        unsigned[44..108].fill(0);
        other_payload[5_000] ^= 1;
        longer.extend([0; 4]);
        nothing[..108].fill(0xff);
        for (what, image, refusal) in [
            ("not signed", unsigned, Refusal::BadImage),
            ("another payload", other_payload, Refusal::BadImage),
            ("another length", longer, Refusal::BadImage),
            ("no header", nothing, Refusal::BadImage),
            ("a stranger's", image(&stranger, Board::SIMULATOR, [9, 9, 9], b"x"), Refusal::BadImage),
            ("another board's", image(&maker(), Board::NRF52840, [9, 9, 9], b"x"), Refusal::BadImage),
            ("the same version", image(&maker(), Board::SIMULATOR, RUNS, b"x"), Refusal::NotNewer),
            ("an older version", image(&maker(), Board::SIMULATOR, [0, 0, 9], b"x"), Refusal::NotNewer),
        ] {
            let mut updater = slipped_in(&image);
            assert!(updater.verified_size().unwrap().is_some(), "{what}");
            assert_eq!(
                updater.install(&mut Place::default()).unwrap(),
                Installed::Refused(refusal),
                "{what}"
            );
            assert_eq!(updater.verified_size().unwrap(), None, "{what}: it is forgotten");
        }
        // The same way in, with what may run: the refusals are not the way's.
        assert!(matches!(slipped_in(&good).install(&mut Place::default()).unwrap(), Installed::Ready(_)));
    }

    #[test]
    fn it_is_what_was_written_that_is_judged_not_what_the_slot_says() {
        let good = image(&maker(), Board::SIMULATOR, [0, 2, 0], &vec![3; 9_000]);
        let mut turns = Place { turns_a_bit: true, ..Place::default() };
        let refused = Installed::Refused(Refusal::BadImage);
        assert_eq!(slipped_in(&good).install(&mut turns).unwrap(), refused);
        let mut fails = Place { fails: true, ..Place::default() };
        assert_eq!(slipped_in(&good).install(&mut fails).unwrap(), Installed::Failed);
    }
}
