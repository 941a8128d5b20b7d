//! An update over the air, on the wearable's side: takes an image in pieces, verifies it, says that it may be installed.
//!
//! **Promise.** An image is handed to be installed only when it is whole, made for this board, signed by its maker, and
//! of a version above the one that runs. Pieces that came before a reset or another gateway need not come again. What
//! cannot be installed is refused as soon as that is known: with the header, before the rest is sent.
//!
//! The slot is NOR flash. Its first page is the record: which image, how large, and a word for each page of data that is
//! whole (cleared when it is); the word after them says that all is verified. A page is erased when its first byte comes,
//! so a page that a reset has cut begins anew.
//!
//! Whoever installs (a bootloader, by the platform) tries the image once, and goes back where it does not prove itself. What
//! the slot says of itself counts for nothing then: [`install`] judges again, where the image is to run.

pub mod install;

use ed25519_dalek::{Signature, VerifyingKey};
use kinara_protocol::control::{Chunk, Outcome, Refusal};
use kinara_protocol::image::{Board, HEADER_LEN, Header};
use sha2::{Digest, Sha256};

use crate::flash::{Flash, PAGE, WORD};

/// What a gateway asks about an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// See `Op::UpdateStart`.
    Start {
        /// Bytes of the image.
        size: u32,
        /// Its number.
        image: [u8; 16],
    },
    /// See `Op::UpdateData`.
    Data {
        /// Where it is.
        offset: u32,
        /// What it is.
        bytes: Chunk,
    },
    /// See `Op::UpdateFinish`.
    Finish,
}

/// What this wearable takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepts {
    /// What it is.
    pub board: Board,
    /// What runs on it.
    pub version: [u8; 3],
    /// The Ed25519 key of who makes its images.
    pub maker: [u8; 32],
}

impl Accepts {
    /// Whether an image of this header and of so many bytes in all may run here, if its payload is the one that was signed.
    #[inline(never)]
    fn judge(&self, header: &Header, size: u32) -> Result<(), Refusal> {
        let maker = VerifyingKey::from_bytes(&self.maker).ok();
        let signature = Signature::from_bytes(&header.signature);
        let signed = maker.is_some_and(|maker| maker.verify_strict(&header.signed(), &signature).is_ok());
        let fits = header.payload.checked_add(HEADER_LEN as u32) == Some(size);
        if !signed || !fits || header.board != self.board {
            Err(Refusal::BadImage)
        } else if header.version <= self.version {
            Err(Refusal::NotNewer)
        } else {
            Ok(())
        }
    }
}

/// Whether this is the payload that the header is of; what cannot be read is not. (By reference: once in an image.)
fn is_payload_of(header: &Header, read: &mut dyn FnMut(u32, &mut [u8]) -> bool) -> bool {
    let mut digest = Sha256::new();
    let mut at = 0;
    let mut piece = [0; 256];
    while at < header.payload {
        let length = piece.len().min((header.payload - at) as usize);
        if !read(at, &mut piece[..length]) {
            return false;
        }
        digest.update(&piece[..length]);
        at += length as u32;
    }
    digest.finalize().as_slice() == header.digest
}

/// The image that is being taken.
#[derive(Debug, Clone, Copy)]
struct Going {
    size: u32,
    /// Bytes that are there.
    at: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Updater<F> {
    slot: F,
    accepts: Accepts,
    going: Option<Going>,
}

/// In the record: the image's number, its size, its size inverted.
const RECORD: usize = 24;
/// Where the words of the pages begin.
const MARKS: u32 = 64;

type Tried<T, F> = Result<T, Failure<<F as Flash>::Error>>;

/// Why an image is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure<E> {
    /// The slot's flash failed.
    Flash(E),
    /// What the gateway is told.
    Refused(Refusal),
}

impl<E> From<E> for Failure<E> {
    fn from(error: E) -> Self {
        Self::Flash(error)
    }
}

impl<F: Flash> Updater<F> {
    /// A slot, and what may go into it.
    pub fn new(slot: F, accepts: Accepts) -> Self {
        Self { slot, accepts, going: None }
    }

    /// Another version runs now.
    pub fn runs(&mut self, version: [u8; 3]) {
        self.accepts.version = version;
    }

    /// Answers a gateway. The flag says that a verified image waits to be installed, once the answer has gone.
    pub fn answer(&mut self, ask: &Ask) -> (Outcome, bool) {
        let done = match ask {
            Ask::Start { size, image } => self.start(*size, image).map(Outcome::UpdateAt),
            Ask::Data { offset, bytes } => self.data(*offset, bytes.as_bytes()).map(Outcome::UpdateAt),
            Ask::Finish => self.finish().map(|()| Outcome::Ok),
        };
        match done {
            Ok(outcome) => (outcome, outcome == Outcome::Ok),
            Err(Failure::Refused(refusal)) => (Outcome::Refused(refusal), false),
            Err(Failure::Flash(_)) => (Outcome::Refused(Refusal::Storage), false),
        }
    }

    /// The header of an image that was verified and waits, by the slot's own word.
    pub fn waiting(&mut self) -> Tried<Option<Header>, F> {
        if self.verified_size()?.is_some() { Ok(Some(self.header()?)) } else { Ok(None) }
    }

    /// How large the image is that was verified and waits, by the slot's own word.
    fn verified_size(&mut self) -> Tried<Option<u32>, F> {
        let Some((_, size)) = self.record()? else { return Ok(None) };
        let mut word = [0; WORD];
        self.slot.read(verified_mark(size), &mut word)?;
        Ok((word == [0; WORD]).then_some(size))
    }

    /// Reads the payload of the image that waits.
    fn read_payload(&mut self, at: u32, into: &mut [u8]) -> Tried<(), F> {
        Ok(self.slot.read(PAGE + HEADER_LEN as u32 + at, into)?)
    }

    /// It is installed, or shall not be.
    pub fn clear(&mut self) -> Tried<(), F> {
        self.going = None;
        Ok(self.slot.erase(0)?)
    }

    fn start(&mut self, size: u32, image: &[u8; 16]) -> Tried<u32, F> {
        let room = (self.slot.pages() - 1) * PAGE;
        if size as usize <= HEADER_LEN || size > room {
            return Err(Failure::Refused(Refusal::BadField));
        }
        if self.record()? != Some((*image, size)) {
            self.slot.erase(0)?;
            let mut record = [0; RECORD];
            record[..16].copy_from_slice(image);
            record[16..20].copy_from_slice(&size.to_le_bytes());
            record[20..].copy_from_slice(&(!size).to_le_bytes());
            self.slot.write(0, &record)?;
        }
        let mut at = 0;
        while at < size && self.is_whole(at / PAGE)? {
            at += PAGE;
        }
        let at = at.min(size);
        self.going = Some(Going { size, at });
        Ok(at)
    }

    fn data(&mut self, offset: u32, bytes: &[u8]) -> Tried<u32, F> {
        let Some(going) = self.going else { return Err(Failure::Refused(Refusal::NotInLog)) };
        if offset != going.at {
            // Something was lost, or comes twice.
            return Ok(going.at);
        }
        let end = offset.checked_add(bytes.len() as u32).filter(|end| *end <= going.size);
        let Some(end) = end.filter(|end| end.is_multiple_of(WORD as u32) || *end == going.size) else {
            return Err(Failure::Refused(Refusal::BadField));
        };
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            if at.is_multiple_of(PAGE) {
                self.slot.erase(1 + at / PAGE)?;
            }
            let room = (PAGE - at % PAGE) as usize;
            let (part, after) = rest.split_at(rest.len().min(room));
            self.write(at, part)?;
            at += part.len() as u32;
            rest = after;
            if at.is_multiple_of(PAGE) || at == going.size {
                self.slot.write(page_mark((at - 1) / PAGE), &[0; WORD])?;
            }
        }
        self.going = Some(Going { at: end, ..going });
        if offset < HEADER_LEN as u32 && end >= HEADER_LEN as u32 {
            self.judge_header(going.size)?;
        }
        Ok(end)
    }

    fn finish(&mut self) -> Tried<(), F> {
        let Some(going) = self.going.filter(|going| going.at == going.size) else {
            return Err(Failure::Refused(Refusal::NotInLog));
        };
        let header = self.judge_header(going.size)?;
        let mut failed = Ok(());
        let is_whole = is_payload_of(&header, &mut |at, into| {
            failed = self.read_payload(at, into);
            failed.is_ok()
        });
        failed?;
        if !is_whole {
            return Err(self.give_up(Refusal::BadImage)?);
        }
        self.slot.write(verified_mark(going.size), &[0; WORD])?;
        Ok(())
    }

    /// Refuses what will never be installed, and forgets it.
    fn judge_header(&mut self, size: u32) -> Tried<Header, F> {
        let header = match self.header() {
            Ok(header) => header,
            Err(Failure::Refused(refusal)) => return Err(self.give_up(refusal)?),
            Err(failure) => return Err(failure),
        };
        match self.accepts.judge(&header, size) {
            Ok(()) => Ok(header),
            Err(refusal) => Err(self.give_up(refusal)?),
        }
    }

    fn give_up(&mut self, refusal: Refusal) -> Tried<Failure<F::Error>, F> {
        self.clear()?;
        Ok(Failure::Refused(refusal))
    }

    fn header(&mut self) -> Tried<Header, F> {
        let mut bytes = [0; HEADER_LEN];
        self.slot.read(PAGE, &mut bytes)?;
        Header::decode(&bytes).ok_or(Failure::Refused(Refusal::BadImage))
    }

    /// The number and size of the image that is in the slot, or on its way into it.
    fn record(&mut self) -> Tried<Option<([u8; 16], u32)>, F> {
        let mut record = [0; RECORD];
        self.slot.read(0, &mut record)?;
        let word =
            |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
        let (size, inverted) = (word(16), word(20));
        let mut image = [0; 16];
        image.copy_from_slice(&record[..16]);
        Ok((size == !inverted && size <= (self.slot.pages() - 1) * PAGE).then_some((image, size)))
    }

    fn is_whole(&mut self, page: u32) -> Tried<bool, F> {
        let mut word = [0; WORD];
        self.slot.read(page_mark(page), &mut word)?;
        Ok(word == [0; WORD])
    }

    /// Writes into the slot; the last word of the image is padded.
    fn write(&mut self, at: u32, bytes: &[u8]) -> Tried<(), F> {
        let whole = bytes.len() / WORD * WORD;
        self.slot.write(PAGE + at, &bytes[..whole])?;
        if whole < bytes.len() {
            let mut word = [0xff; WORD];
            word[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.slot.write(PAGE + at + whole as u32, &word)?;
        }
        Ok(())
    }
}

fn page_mark(page: u32) -> u32 {
    MARKS + page * WORD as u32
}

fn verified_mark(size: u32) -> u32 {
    page_mark(size.div_ceil(PAGE))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::vec;
    use std::vec::Vec;

    use ed25519_dalek::{Signer, SigningKey};
    use kinara_protocol::control::UPDATE_CHUNK;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::RamFlash;

    pub(super) const RUNS: [u8; 3] = [0, 1, 0];

    pub(super) fn maker() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    pub(super) fn accepts() -> Accepts {
        Accepts { board: Board::SIMULATOR, version: RUNS, maker: maker().verifying_key().to_bytes() }
    }

    pub(super) fn image(key: &SigningKey, board: Board, version: [u8; 3], payload: &[u8]) -> Vec<u8> {
        let mut header = Header::of(board, version, payload).unwrap();
        header.signature = key.sign(&header.signed()).to_bytes();
        [header.encode().as_slice(), payload].concat()
    }

    fn number(image: &[u8]) -> [u8; 16] {
        *Sha256::digest(image).first_chunk().unwrap()
    }

    /// Sends an image from where it is wanted on; the last outcome, and how many bytes were sent.
    pub(super) fn send(updater: &mut Updater<RamFlash>, image: &[u8]) -> (Outcome, bool, usize) {
        let start = Ask::Start { size: image.len() as u32, image: number(image) };
        let (mut outcome, _) = updater.answer(&start);
        let mut sent = 0;
        while let Outcome::UpdateAt(at) = outcome {
            let rest = &image[at as usize..];
            if rest.is_empty() {
                let (outcome, installs) = updater.answer(&Ask::Finish);
                return (outcome, installs, sent);
            }
            let bytes = &rest[..rest.len().min(UPDATE_CHUNK)];
            sent += bytes.len();
            (outcome, _) = updater.answer(&Ask::Data { offset: at, bytes: Chunk::new(bytes).unwrap() });
        }
        (outcome, false, sent)
    }

    pub(super) fn payload(length: usize) -> Vec<u8> {
        (0..length).map(|place| (place * 31 % 251) as u8).collect()
    }

    #[test]
    fn a_signed_newer_image_is_taken_and_handed_over_whole() {
        let payload = payload(10_001);
        let image = image(&maker(), Board::SIMULATOR, [0, 2, 0], &payload);
        let mut updater = Updater::new(RamFlash::new(8), accepts());
        assert_eq!(updater.waiting().unwrap(), None);
        assert_eq!(send(&mut updater, &image), (Outcome::Ok, true, image.len()));
        let header = updater.waiting().unwrap().unwrap();
        assert_eq!(header.version, [0, 2, 0]);
        let mut read = vec![0; payload.len()];
        updater.read_payload(0, &mut read).unwrap();
        assert_eq!(read, payload);
        updater.clear().unwrap();
        assert_eq!(updater.waiting().unwrap(), None);
    }

    #[test]
    fn what_will_never_be_installed_is_refused_with_its_header() {
        let payload = payload(9_000);
        let stranger = SigningKey::from_bytes(&[8; 32]);
        for (image, refusal) in [
            (image(&stranger, Board::SIMULATOR, [0, 2, 0], &payload), Refusal::BadImage),
            (image(&maker(), Board::NRF52840, [0, 2, 0], &payload), Refusal::BadImage),
            (image(&maker(), Board::SIMULATOR, RUNS, &payload), Refusal::NotNewer),
            (image(&maker(), Board::SIMULATOR, [0, 0, 9], &payload), Refusal::NotNewer),
        ] {
            let mut updater = Updater::new(RamFlash::new(8), accepts());
            let (outcome, installs, sent) = send(&mut updater, &image);
            assert_eq!((outcome, installs), (Outcome::Refused(refusal), false));
            assert!(sent <= UPDATE_CHUNK, "{sent} bytes were sent for nothing");
        }
    }

    #[test]
    fn an_image_that_is_too_large_or_asked_for_in_no_order_is_refused() {
        let mut updater = Updater::new(RamFlash::new(8), accepts());
        let start = |size| Ask::Start { size, image: [1; 16] };
        let refused = |refusal| (Outcome::Refused(refusal), false);
        assert_eq!(updater.answer(&start(7 * PAGE + 1)), refused(Refusal::BadField));
        assert_eq!(updater.answer(&start(HEADER_LEN as u32)), refused(Refusal::BadField));
        let bytes = Chunk::new(&[0; 8]).unwrap();
        assert_eq!(updater.answer(&Ask::Data { offset: 0, bytes }), refused(Refusal::NotInLog));
        assert_eq!(updater.answer(&Ask::Finish), refused(Refusal::NotInLog));
        assert_eq!(updater.answer(&start(5_000)), (Outcome::UpdateAt(0), false));
        assert_eq!(updater.answer(&Ask::Data { offset: 8, bytes }), (Outcome::UpdateAt(0), false));
        let odd = Chunk::new(&[0; 7]).unwrap();
        assert_eq!(updater.answer(&Ask::Data { offset: 0, bytes: odd }), refused(Refusal::BadField));
        assert_eq!(updater.answer(&Ask::Finish), refused(Refusal::NotInLog));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_flipped_bit_is_never_installed(bit: usize) {
            let good = image(&maker(), Board::SIMULATOR, [0, 2, 0], &payload(5_000));
            let mut bad = good;
            let bit = bit % (bad.len() * 8);
            bad[bit / 8] ^= 1 << (bit % 8);
            let mut updater = Updater::new(RamFlash::new(8), accepts());
            let (outcome, installs, _) = send(&mut updater, &bad);
            prop_assert!(!installs && matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
            prop_assert_eq!(updater.waiting().unwrap(), None);
        }

        #[test]
        fn wherever_the_power_is_cut_it_goes_on_and_never_installs_a_part(cuts in proptest::collection::vec(0u64..4_000, 1..6)) {
            let payload = payload(20_000);
            let image = image(&maker(), Board::SIMULATOR, [1, 0, 0], &payload);
            let mut flash = RamFlash::new(8);
            for cut in cuts {
                flash.left = cut;
                let mut updater = Updater::new(flash, accepts());
                let _ = send(&mut updater, &image);
                flash = updater.slot;
                flash.left = u64::MAX;
                let mut updater = Updater::new(flash, accepts());
                if let Some(header) = updater.waiting().unwrap() {
                    let mut read = vec![0; header.payload as usize];
                    updater.read_payload(0, &mut read).unwrap();
                    prop_assert_eq!(&read, &payload);
                }
                flash = updater.slot;
            }
            let mut updater = Updater::new(flash, accepts());
            let (outcome, installs, _) = send(&mut updater, &image);
            prop_assert_eq!((outcome, installs), (Outcome::Ok, true));
        }
    }

    #[test]
    fn what_came_before_a_reset_does_not_come_again() {
        let image = image(&maker(), Board::SIMULATOR, [1, 0, 0], &payload(20_000));
        let mut flash = RamFlash::new(8);
        // Some 12 KiB of words, and their pages' erasures.
        flash.left = 3_100;
        let mut updater = Updater::new(flash, accepts());
        let (outcome, ..) = send(&mut updater, &image);
        assert_eq!(outcome, Outcome::Refused(Refusal::Storage));
        let mut flash = updater.slot;
        flash.left = u64::MAX;
        let mut updater = Updater::new(flash, accepts());
        let (outcome, installs, sent) = send(&mut updater, &image);
        assert_eq!((outcome, installs), (Outcome::Ok, true));
        assert!(sent <= image.len() - 2 * PAGE as usize, "{sent}");
    }
}
