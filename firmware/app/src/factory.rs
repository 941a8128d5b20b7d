//! Factory reset: everything of a wearer goes, and with it the key that it was enciphered by.
//!
//! **Promise.** What is numbered anew is of a new key, wherever the power is cut. The key goes first, then the pages, and the
//! new key comes last; a wearable that starts without a key erases everything before it draws one. So no nonce ever
//! serves twice with one key, and nothing that an older key has enciphered is left for the new one to be read by.

/// Where a board keeps its key and what it enciphers.
pub trait Vault {
    /// The key.
    type Key;
    /// What can go wrong.
    type Error;

    /// The key that is kept, if there is a whole one.
    fn key(&mut self) -> Option<Self::Key>;

    /// Makes that nobody finds the key any more.
    fn forget_key(&mut self);

    /// Erases all that a key of this board has enciphered.
    fn erase_all(&mut self) -> Result<(), Self::Error>;

    /// Draws a key and keeps it.
    fn draw_key(&mut self) -> Self::Key;
}

/// The key for this start. `resets`: a person asks for a factory reset. One that was cut goes on here.
pub fn key_of<V: Vault>(vault: &mut V, resets: bool) -> Result<V::Key, V::Error> {
    if !resets && let Some(key) = vault.key() {
        return Ok(key);
    }
    vault.forget_key();
    vault.erase_all()?;
    Ok(vault.draw_key())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The power is gone.
    #[derive(Debug, PartialEq)]
    struct Cut;

    const PAGES: usize = 5;

    /// A board whose power fails after so many of its doings; what it does then does not happen.
    #[derive(Debug, Clone)]
    struct Board {
        left: u32,
        key: Option<u32>,
        drawn: u32,
        /// By which key each page was enciphered.
        pages: [Option<u32>; PAGES],
    }

    impl Board {
        fn worn() -> Self {
            Self { left: u32::MAX, key: Some(1), drawn: 1, pages: [Some(1); PAGES] }
        }

        fn works(&mut self) -> bool {
            let works = self.left > 0;
            self.left = self.left.saturating_sub(1);
            works
        }

        fn starts(&mut self, resets: bool) -> Result<u32, Cut> {
            let key = key_of(self, resets)?;
            if self.left == 0 { Err(Cut) } else { Ok(key) }
        }
    }

    impl Vault for Board {
        type Key = u32;
        type Error = Cut;

        fn key(&mut self) -> Option<u32> {
            self.key
        }

        fn forget_key(&mut self) {
            if self.works() {
                self.key = None;
            }
        }

        fn erase_all(&mut self) -> Result<(), Cut> {
            for page in 0..PAGES {
                if !self.works() {
                    return Err(Cut);
                }
                self.pages[page] = None;
            }
            Ok(())
        }

        fn draw_key(&mut self) -> u32 {
            if self.works() {
                self.drawn += 1;
                self.key = Some(self.drawn);
            }
            self.drawn
        }
    }

    #[test]
    fn wherever_the_power_is_cut_in_a_factory_reset_what_begins_anew_is_of_a_new_key() {
        for cut in 0.. {
            let mut board = Board { left: cut, ..Board::worn() };
            let done = board.starts(true).is_ok();
            let has_begun = board.pages.contains(&None);
            assert!(
                !has_begun || board.key != Some(1),
                "cut after {cut}: pages are gone, and the old key is not"
            );
            board.left = u32::MAX;
            let key = board.starts(false).unwrap();
            if key == 1 {
                assert_eq!((cut, board.pages), (0, [Some(1); PAGES]), "nothing had happened");
            } else {
                assert_eq!(board.pages, [None; PAGES], "cut after {cut}: something of the old key is left");
            }
            if done {
                break;
            }
        }
    }

    #[test]
    fn a_start_without_a_reset_keeps_the_key_and_everything_of_it() {
        let mut board = Board::worn();
        assert_eq!(board.starts(false), Ok(1));
        assert_eq!(board.pages, [Some(1); PAGES]);
    }
}
