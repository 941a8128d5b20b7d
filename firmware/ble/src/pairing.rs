//! When somebody may pair, and by which passkey; the bonds and introductions that come of it.
//!
//! **Promise.** A passkey serves one attempt: secure connections leak a bit of it per try, so the nonce, and the passkey
//! with it, is new after every attempt, however it ended. Nobody can pair but in a window. A bond that is not stored is
//! no bond, and what a revocation or a window's end has taken away does not come back with a reset.
//!
//! There are two kinds of windows. The **label window** opens for two minutes when a person presses the button, and
//! closes with a pairing or after five failed attempts; in it the wearable offers its label secret, or its display.
//! The **introduction window** opens for two minutes whenever a gateway's link ends (and at a start, which ends it as
//! well) while an introduction secret lives; it stands back while a label window is open. Time is an argument
//! everywhere: the embassy clock's on a wearable, the test's in a test.

use embassy_time::{Duration, Instant};
use heapless::Vec;
use kinara_protocol::advert::Offer;
use kinara_protocol::label::{IntroductionSecret, LabelSecret};
use rand_core::{CryptoRng, RngCore};

use crate::memory::{Bond, Identity, KeptIntroduction, MAX_BONDS, MAX_IMAGE, Memory, Peer, Storage};

/// How long a window stays open.
pub const WINDOW: Duration = Duration::from_secs(120);
/// Failed attempts that close a window.
pub const MAX_ATTEMPTS: u8 = 5;
/// Failed attempts that end an introduction: with a million passkeys, one in 40,000 to guess it. Links break off in the
/// middle of pairing, so it is more than one window's.
pub const MAX_INTRODUCTION_ATTEMPTS: u8 = 25;

/// How a person proves to have this wearable in their hand.
#[derive(Debug, Clone)]
pub enum Proof {
    /// They read its label.
    Label(LabelSecret),
    /// They read its display.
    Display,
}

/// What is offered for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offering {
    /// What is advertised.
    pub offer: Offer,
    /// The passkey that the other side has to know; none: the host draws it, and the display shows it.
    pub passkey: Option<u32>,
}

/// Why a bond or an introduction does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotKept<E> {
    /// It could not be stored.
    Storage(E),
    /// Eight gateways are bonded already.
    OutOfSlots,
}

/// Why pairing cannot start at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError<E> {
    /// The memory cannot be read or written.
    Storage(E),
    /// The memory holds something that is not an image. It is not overwritten: bonds may be in it.
    BadImage,
}

/// A window that is open.
#[derive(Debug, Clone, Copy)]
struct Window {
    until: Instant,
    failed: u8,
}

impl Window {
    fn open(now: Instant) -> Self {
        Self { until: now + WINDOW, failed: 0 }
    }

    fn is_open(window: Option<Self>, now: Instant) -> bool {
        window.is_some_and(|window| now < window.until && window.failed < MAX_ATTEMPTS)
    }
}

/// An introduction that lives.
#[derive(Debug, Clone, Copy)]
struct Introduction {
    secret: IntroductionSecret,
    until: Instant,
    failed: u8,
    window: Option<Window>,
}

/// Which of the windows an attempt belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Label,
    Introduction,
}

/// See the module's text.
pub struct Pairing<S, R> {
    storage: S,
    entropy: R,
    proof: Proof,
    identity: Identity,
    bonds: Vec<Bond, MAX_BONDS>,
    nonce: [u8; 8],
    label: Option<Window>,
    introduction: Option<Introduction>,
}

impl<S: Storage, R: RngCore + CryptoRng> Pairing<S, R> {
    /// Reads the memory, or begins one.
    pub fn open(
        mut storage: S,
        mut entropy: R,
        proof: Proof,
        now: Instant,
    ) -> Result<Self, OpenError<S::Error>> {
        let mut image = [0; MAX_IMAGE];
        let len = storage.load(&mut image).map_err(OpenError::Storage)?;
        let memory = if len == 0 {
            let memory = Memory::blank(Identity::draw(&mut entropy));
            storage.save(memory.encode(&mut image)).map_err(OpenError::Storage)?;
            memory
        } else {
            image.get(..len).and_then(|image| Memory::decode(image).ok()).ok_or(OpenError::BadImage)?
        };
        let introduction = memory.introduction.map(|kept| Introduction {
            secret: IntroductionSecret::from_bytes(kept.secret),
            until: now + Duration::from_secs(kept.left_s.into()),
            failed: 0,
            window: Some(Window::open(now)),
        });
        let mut pairing = Self {
            storage,
            entropy,
            proof,
            identity: memory.identity,
            bonds: memory.bonds,
            nonce: [0; 8],
            label: None,
            introduction,
        };
        pairing.draw_nonce();
        Ok(pairing)
    }

    /// Who this wearable is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The bonds.
    pub fn bonds(&self) -> &[Bond] {
        &self.bonds
    }

    /// Whether this is the identity of a bonded gateway.
    pub fn knows(&self, peer: Peer) -> bool {
        self.bonds.iter().any(|bond| bond.peer == peer)
    }

    /// Whether the display shows the passkey.
    pub fn has_display(&self) -> bool {
        matches!(self.proof, Proof::Display)
    }

    /// Somebody pressed the button.
    pub fn press_button(&mut self, now: Instant) {
        self.label = Some(Window::open(now));
        self.draw_nonce();
    }

    /// Whether a person has opened a window, and it is still open.
    pub fn label_window_is_open(&self, now: Instant) -> bool {
        Window::is_open(self.label, now)
    }

    /// What is offered for the next attempt; none outside of all windows.
    pub fn offering(&self, now: Instant) -> Option<Offering> {
        match (self.kind(now)?, &self.proof, &self.introduction) {
            (Kind::Label, Proof::Label(secret), _) => {
                let offer = Offer::Label { nonce: self.nonce };
                Some(Offering { offer, passkey: Some(secret.passkey(&self.nonce)) })
            }
            (Kind::Label, Proof::Display, _) => Some(Offering { offer: Offer::Display, passkey: None }),
            (Kind::Introduction, _, introduction) => {
                let secret = introduction.as_ref()?.secret;
                let nonce = *self.nonce.first_chunk().expect("8 bytes hold 6");
                let offer = Offer::Introduction { nonce, tag: secret.tag(&nonce) };
                Some(Offering { offer, passkey: Some(secret.passkey(&nonce)) })
            }
        }
    }

    /// A passkey that nobody is told: for attempts that nobody was offered.
    pub fn unknowable_passkey(&mut self) -> u32 {
        self.entropy.next_u32() % 1_000_000
    }

    /// The next moment at which what is offered changes by itself.
    pub fn changes_at(&self, now: Instant) -> Option<Instant> {
        match self.kind(now)? {
            Kind::Label => self.label.map(|window| window.until),
            Kind::Introduction => {
                let introduction = self.introduction?;
                Some(introduction.window?.until.min(introduction.until))
            }
        }
    }

    /// An attempt failed, or its link ended in the middle of it.
    pub fn attempt_failed(&mut self, now: Instant) {
        match self.kind(now) {
            Some(Kind::Label) => self.label.iter_mut().for_each(|window| window.failed += 1),
            Some(Kind::Introduction) => {
                if let Some(introduction) = &mut self.introduction {
                    introduction.failed += 1;
                    introduction.window.iter_mut().for_each(|window| window.failed += 1);
                }
                if self.introduction.is_some_and(|one| one.failed >= MAX_INTRODUCTION_ATTEMPTS) {
                    self.introduction = None;
                    // Should it not be stored, a reset gives it as many attempts again, and no more.
                    let _ = self.save(now);
                }
            }
            // It began in a window that has closed meanwhile.
            None => {}
        }
        self.draw_nonce();
    }

    /// A gateway has paired with the passkey that was offered. Its bond counts once this has returned without an error;
    /// a person's ninth takes the place of the gateway that was away the longest.
    ///
    /// `offered` is what was offered for this attempt: the window may have closed since.
    pub fn paired(&mut self, bond: Bond, offered: Offer, now: Instant) -> Result<(), NotKept<S::Error>> {
        self.draw_nonce();
        let before = self.bonds.clone();
        let introduction = self.introduction;
        self.bonds.retain(|known| known.peer != bond.peer);
        if self.bonds.is_full() {
            if matches!(offered, Offer::Introduction { .. }) {
                return Err(NotKept::OutOfSlots);
            }
            self.bonds.remove(0);
        }
        self.bonds.push(bond).map_err(|_| NotKept::OutOfSlots)?;
        match offered {
            Offer::Introduction { .. } => self.introduction = None,
            Offer::Label { .. } | Offer::Display => self.label = None,
        }
        self.save(now).map_err(|error| {
            self.bonds = before;
            self.introduction = introduction;
            NotKept::Storage(error)
        })
    }

    /// A bonded gateway has the link: it is the last to give way to a ninth one.
    pub fn connected(&mut self, peer: Peer) {
        if let Some(at) = self.bonds.iter().position(|bond| bond.peer == peer) {
            // Not worth a write of its own: it goes with the next one.
            self.bonds[at..].rotate_left(1);
        }
    }

    /// A gateway's link has ended: while an introduction lives, its window opens.
    pub fn disconnected(&mut self, now: Instant) {
        if let Some(introduction) = &mut self.introduction {
            introduction.window = Some(Window::open(now));
            self.draw_nonce();
            // So that a reset does not give back what has passed since; if it fails, it does.
            let _ = self.save(now);
        }
    }

    /// Lets another gateway pair by this introduction, which takes the place of one that lives.
    pub fn admit(&mut self, secret: [u8; 16], lives_s: u32, now: Instant) -> Result<(), NotKept<S::Error>> {
        if self.bonds.is_full() {
            return Err(NotKept::OutOfSlots);
        }
        let before = self.introduction.replace(Introduction {
            secret: IntroductionSecret::from_bytes(secret),
            until: now + Duration::from_secs(lives_s.into()),
            failed: 0,
            window: None,
        });
        self.save(now).map_err(|error| {
            self.introduction = before;
            NotKept::Storage(error)
        })
    }

    /// Forgets the gateway of this address. One that is not known is forgotten already.
    pub fn revoke(&mut self, address: [u8; 6], now: Instant) -> Result<(), S::Error> {
        let before = self.bonds.clone();
        self.bonds.retain(|bond| bond.peer.address != address);
        if self.bonds.len() == before.len() {
            return Ok(());
        }
        self.save(now).inspect_err(|_| self.bonds = before)
    }

    fn kind(&self, now: Instant) -> Option<Kind> {
        if Window::is_open(self.label, now) {
            return Some(Kind::Label);
        }
        let introduction = self.introduction?;
        (now < introduction.until && Window::is_open(introduction.window, now)).then_some(Kind::Introduction)
    }

    fn draw_nonce(&mut self) {
        self.entropy.fill_bytes(&mut self.nonce);
    }

    fn save(&mut self, now: Instant) -> Result<(), S::Error> {
        let introduction = self.introduction.filter(|introduction| now < introduction.until);
        let memory = Memory {
            identity: self.identity,
            bonds: self.bonds.clone(),
            introduction: introduction.map(|introduction| KeptIntroduction {
                secret: introduction.secret.to_bytes(),
                left_s: (introduction.until - now).as_secs() as u32,
            }),
        };
        let mut image = [0; MAX_IMAGE];
        self.storage.save(memory.encode(&mut image))
    }
}

#[cfg(test)]
mod tests;
