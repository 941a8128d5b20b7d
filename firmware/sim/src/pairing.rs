//! Pairing by the label secret, and the bonds that come of it.
//!
//! In its window the wearable advertises a nonce and expects the passkey HMAC-SHA-256(S, N) mod 10^6. The nonce changes
//! after every attempt; five failed attempts close the window. Bonds survive a restart.
//!
//! The window opens when a person presses the button, for two minutes. A simulated wearable has a person who presses it
//! when a gateway scans that has no bond ([`Button::Pressed`]), or nobody does ([`Button::Manual`]: by command only).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kinara_protocol::label::LabelSecret;
use kinara_virtual_radio::Bond;

use crate::entropy;

/// How long the window stays open.
const WINDOW: Duration = Duration::from_mins(2);
/// Failed attempts that close the window.
const MAX_ATTEMPTS: u32 = 5;
/// How long nobody presses the button after that.
const PAUSE: Duration = Duration::from_mins(2);
/// Bonds held; one more forgets the oldest.
const MAX_BONDS: usize = 8;

/// Who presses the pairing button.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Button {
    /// Somebody, whenever a gateway without a bond scans.
    Pressed,
    /// Nobody, but for the command `button`.
    Manual,
}

/// See the module's text.
#[derive(Debug)]
pub struct Pairing {
    secret: LabelSecret,
    button: Button,
    nonce: [u8; 8],
    open_until: Option<Instant>,
    attempts: u32,
    paused_until: Option<Instant>,
    path: PathBuf,
    bonds: Vec<(Bond, String)>,
}

impl Pairing {
    /// Reads the bonds from the state directory.
    pub fn open(secret: LabelSecret, button: Button, state: &Path) -> io::Result<Self> {
        let path = state.join("bonds");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let bonds = text.lines().filter_map(parse_bond).collect();
        Ok(Self {
            secret,
            button,
            nonce: entropy::bytes()?,
            open_until: None,
            attempts: 0,
            paused_until: None,
            path,
            bonds,
        })
    }

    /// The button is pressed.
    pub fn press_button(&mut self, now: Instant) {
        self.open_until = Some(now + WINDOW);
        self.attempts = 0;
    }

    /// A gateway scans. Gives whether the window is open, and the nonce of the next attempt.
    pub fn scanned(&mut self, gateway: &str, now: Instant) -> (bool, [u8; 8]) {
        let bonded = self.bonds.iter().any(|(_, name)| name == gateway);
        let paused = self.paused_until.is_some_and(|until| now < until);
        if self.button == Button::Pressed && !bonded && !paused && !self.is_open(now) {
            self.press_button(now);
        }
        (self.is_open(now), self.nonce)
    }

    /// Whether the window is open.
    pub fn is_open(&self, now: Instant) -> bool {
        self.open_until.is_some_and(|until| now < until)
    }

    /// Whether a bond is one of ours.
    pub fn knows(&self, bond: &Bond) -> bool {
        self.bonds.iter().any(|(known, _)| known == bond)
    }

    /// An attempt to pair. Gives the bond if the passkey is right.
    pub fn attempt(&mut self, gateway: &str, passkey: u32, now: Instant) -> io::Result<Option<Bond>> {
        if !self.is_open(now) {
            return Ok(None);
        }
        let right = passkey == self.secret.passkey(&self.nonce);
        self.nonce = entropy::bytes()?;
        if !right {
            self.attempts += 1;
            if self.attempts >= MAX_ATTEMPTS {
                self.open_until = None;
                self.paused_until = Some(now + PAUSE);
            }
            return Ok(None);
        }
        let bond = entropy::bytes()?;
        self.bonds.retain(|(_, name)| name != gateway);
        if self.bonds.len() == MAX_BONDS {
            self.bonds.remove(0);
        }
        self.bonds.push((bond, gateway.to_owned()));
        self.save()?;
        self.open_until = None;
        Ok(Some(bond))
    }

    fn save(&self) -> io::Result<()> {
        let text: String =
            self.bonds.iter().map(|(bond, name)| [&to_hex(bond), " ", name, "\n"].concat()).collect();
        let partial = self.path.with_extension("new");
        fs::write(&partial, text)?;
        fs::rename(&partial, &self.path)
    }
}

fn to_hex(bond: &Bond) -> String {
    format!("{:032x}", u128::from_be_bytes(*bond))
}

fn parse_bond(line: &str) -> Option<(Bond, String)> {
    let (hex, name) = line.split_once(' ')?;
    let bits = (hex.len() == 32).then(|| u128::from_str_radix(hex, 16).ok()).flatten()?;
    Some((bits.to_be_bytes(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> LabelSecret {
        LabelSecret::from_bytes([7; 10])
    }

    fn open(dir: &Path, button: Button) -> Pairing {
        Pairing::open(secret(), button, dir).unwrap()
    }

    #[test]
    fn the_right_passkey_gives_a_bond_that_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let now = Instant::now();
        let mut pairing = open(dir.path(), Button::Pressed);
        let (window, nonce) = pairing.scanned("A", now);
        assert!(window);
        let bond =
            pairing.attempt("A", secret().passkey(&nonce), now).unwrap().expect("the passkey is right");
        assert!(!pairing.is_open(now), "a pairing closes the window");
        assert!(open(dir.path(), Button::Manual).knows(&bond));
    }

    #[test]
    fn every_attempt_has_its_own_nonce_and_five_close_the_window() {
        let dir = tempfile::tempdir().unwrap();
        let now = Instant::now();
        let mut pairing = open(dir.path(), Button::Pressed);
        let mut nonces = std::collections::HashSet::new();
        for _ in 0..5 {
            let (window, nonce) = pairing.scanned("A", now);
            assert!(window && nonces.insert(nonce));
            let wrong = (secret().passkey(&nonce) + 1) % 1_000_000;
            assert_eq!(pairing.attempt("A", wrong, now).unwrap(), None);
        }
        let (window, nonce) = pairing.scanned("A", now);
        assert!(!window);
        assert_eq!(pairing.attempt("A", secret().passkey(&nonce), now).unwrap(), None);
        assert!(pairing.scanned("A", now + PAUSE).0, "somebody presses it again later");
    }

    #[test]
    fn the_window_closes_by_itself_and_nobody_presses_a_manual_button() {
        let dir = tempfile::tempdir().unwrap();
        let now = Instant::now();
        let mut pairing = open(dir.path(), Button::Manual);
        assert!(!pairing.scanned("A", now).0);
        pairing.press_button(now);
        assert!(pairing.scanned("A", now + Duration::from_secs(119)).0);
        assert!(!pairing.scanned("A", now + WINDOW).0);
    }

    #[test]
    fn eight_gateways_are_bonded_at_once_and_the_ninth_displaces_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let now = Instant::now();
        let mut pairing = open(dir.path(), Button::Pressed);
        let mut bonds = Vec::new();
        for gateway in 0..9 {
            let name = format!("G{gateway}");
            let (_, nonce) = pairing.scanned(&name, now);
            bonds.push(pairing.attempt(&name, secret().passkey(&nonce), now).unwrap().unwrap());
        }
        assert!(!pairing.knows(&bonds[0]));
        assert!(bonds[1..].iter().all(|bond| pairing.knows(bond)));
    }
}
