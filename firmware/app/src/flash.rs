//! The flash port: NOR flash as the ring needs it.

/// Bytes in a page, the unit of erasing.
pub const PAGE: u32 = 4096;
/// Bytes in a word, the unit of writing.
pub const WORD: usize = 4;

/// NOR flash: an erased byte reads `0xff`, a write only clears bits, and a page is erased as a whole.
///
/// The ring writes each word once between two erasures, but for the words of a page header, which it overwrites with
/// zeros before it erases the page. (The nRF52 allows two writes per word, external NOR flash any number.)
pub trait Flash {
    /// What can go wrong.
    type Error: core::fmt::Debug;

    /// How many pages there are.
    fn pages(&self) -> u32;

    /// Reads from any address.
    fn read(&mut self, address: u32, into: &mut [u8]) -> Result<(), Self::Error>;

    /// Writes whole words at a word's address, in ascending order. On return they survive a loss of power.
    fn write(&mut self, address: u32, words: &[u8]) -> Result<(), Self::Error>;

    /// Erases one page.
    fn erase(&mut self, page: u32) -> Result<(), Self::Error>;

    /// Makes what is about to be written unreadable for who holds the chip, and what was read readable again: a key
    /// stream over the bytes, by a key of this device alone. No nonce is given for two different contents. Flash behind a
    /// closed debug port needs none.
    fn encipher(&mut self, nonce: &Nonce, bytes: &mut [u8]);
}

/// What a key stream begins with: a frame's identity.
pub type Nonce = [u8; 12];
