//! Windows, nonces, bonds and introductions, with a clock and randomness of the test's own.

use std::collections::HashSet;
use std::rc::Rc;
use std::vec::Vec;

use core::cell::{Cell, RefCell};

use proptest::{prop_assert, proptest};
use rand_core::Error;

use super::*;

/// A disk that outlives the wearable, and can be full.
#[derive(Clone, Default)]
struct Disk {
    image: Rc<RefCell<Vec<u8>>>,
    full: Rc<Cell<bool>>,
}

impl Storage for Disk {
    type Error = ();

    fn load(&mut self, into: &mut [u8; MAX_IMAGE]) -> Result<usize, ()> {
        let image = self.image.borrow();
        into[..image.len()].copy_from_slice(&image);
        Ok(image.len())
    }

    fn save(&mut self, image: &[u8]) -> Result<(), ()> {
        if self.full.get() {
            return Err(());
        }
        *self.image.borrow_mut() = image.to_vec();
        Ok(())
    }
}

/// Numbers that do not repeat.
struct Counter(u64);

impl RngCore for Counter {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (self.0 ^ (self.0 >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        rand_core::impls::fill_bytes_via_next(self, bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl CryptoRng for Counter {}

type Tested = Pairing<Disk, Counter>;

const K: [u8; 16] = [9; 16];
const DAY_S: u32 = 86_400;

fn secret() -> LabelSecret {
    LabelSecret::from_bytes([7; 10])
}

fn at(seconds: u64) -> Instant {
    Instant::from_secs(seconds)
}

fn boot(disk: &Disk, seed: u64, now: Instant) -> Tested {
    Pairing::open(disk.clone(), Counter(seed), Proof::Label(secret()), now).map_err(|_| ()).unwrap()
}

fn bond(number: u8) -> Bond {
    Bond { peer: Peer { random: false, address: [number; 6] }, irk: None, ltk: [number; 16] }
}

fn pair(pairing: &mut Tested, number: u8, now: Instant) {
    pairing.press_button(now);
    let offered = pairing.offering(now).unwrap().offer;
    pairing.paired(bond(number), offered, now).unwrap();
}

fn nonce(pairing: &Tested, now: Instant) -> [u8; 8] {
    match pairing.offering(now).unwrap().offer {
        Offer::Label { nonce } => nonce,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_can_pair_before_the_button_is_pressed_or_two_minutes_after() {
    let mut pairing = boot(&Disk::default(), 1, at(0));
    assert_eq!(pairing.offering(at(0)), None);
    assert_eq!(pairing.changes_at(at(0)), None);
    pairing.press_button(at(10));
    assert!(pairing.offering(at(10)).is_some() && pairing.offering(at(129)).is_some());
    assert_eq!(pairing.changes_at(at(10)), Some(at(130)));
    assert_eq!(pairing.offering(at(130)), None);
}

#[test]
fn the_passkey_is_the_labels_for_the_nonce_that_is_advertised() {
    let mut pairing = boot(&Disk::default(), 1, at(0));
    pairing.press_button(at(0));
    let offering = pairing.offering(at(0)).unwrap();
    assert_eq!(offering.passkey, Some(secret().passkey(&nonce(&pairing, at(0)))));
}

#[test]
fn a_display_offers_no_nonce_and_leaves_the_passkey_to_the_host() {
    let mut pairing =
        Pairing::open(Disk::default(), Counter(1), Proof::Display, at(0)).unwrap_or_else(|_| panic!());
    pairing.press_button(at(0));
    assert_eq!(pairing.offering(at(0)), Some(Offering { offer: Offer::Display, passkey: None }));
}

#[test]
fn every_attempt_has_its_own_nonce_and_the_fifth_failure_closes_the_window() {
    let mut pairing = boot(&Disk::default(), 1, at(0));
    let mut nonces = HashSet::new();
    pairing.press_button(at(0));
    for _ in 0..MAX_ATTEMPTS {
        assert!(nonces.insert(nonce(&pairing, at(1))));
        pairing.attempt_failed(at(1));
    }
    assert_eq!(pairing.offering(at(1)), None);
    pairing.press_button(at(2));
    assert!(nonces.insert(nonce(&pairing, at(2))), "the next window has another one too");
}

#[test]
fn an_attempt_that_ends_after_its_window_has_still_used_up_its_nonce() {
    let mut pairing = boot(&Disk::default(), 1, at(0));
    pairing.press_button(at(0));
    let used = nonce(&pairing, at(119));
    pairing.attempt_failed(at(121));
    pairing.press_button(at(122));
    assert_ne!(nonce(&pairing, at(122)), used);
}

#[test]
fn a_pairing_closes_the_window_and_its_bond_survives_a_reset() {
    let disk = Disk::default();
    let mut pairing = boot(&disk, 1, at(0));
    let identity = pairing.identity();
    pair(&mut pairing, 1, at(5));
    assert_eq!(pairing.offering(at(5)), None);
    let again = boot(&disk, 2, at(0));
    assert_eq!(again.bonds(), [bond(1)]);
    assert!(again.identity() == identity, "its gateways know it again");
    assert_eq!(again.offering(at(0)), None, "a reset opens no window");
}

#[test]
fn a_bond_that_cannot_be_stored_is_no_bond() {
    let disk = Disk::default();
    let mut pairing = boot(&disk, 1, at(0));
    pairing.press_button(at(0));
    let offered = pairing.offering(at(0)).unwrap().offer;
    disk.full.set(true);
    assert_eq!(pairing.paired(bond(1), offered, at(0)), Err(NotKept::Storage(())));
    assert!(pairing.bonds().is_empty());
    assert_ne!(
        pairing.offering(at(0)).map(|now| now.offer),
        Some(offered),
        "its nonce is used up all the same"
    );
}

#[test]
fn eight_gateways_are_bonded_at_once_and_a_ninth_displaces_the_one_away_the_longest() {
    let disk = Disk::default();
    let mut pairing = boot(&disk, 1, at(0));
    for number in 0..8 {
        pair(&mut pairing, number, at(u64::from(number)));
    }
    assert_eq!(pairing.bonds().len(), 8);
    pairing.connected(bond(0).peer);
    pair(&mut pairing, 8, at(20));
    assert!(pairing.knows(bond(0).peer) && !pairing.knows(bond(1).peer));
    assert_eq!(boot(&disk, 2, at(0)).bonds().len(), 8);
}

#[test]
fn a_gateway_that_pairs_again_has_one_bond_the_new_one() {
    let mut pairing = boot(&Disk::default(), 1, at(0));
    pair(&mut pairing, 1, at(0));
    pairing.press_button(at(1));
    let offered = pairing.offering(at(1)).unwrap().offer;
    let renewed = Bond { ltk: [99; 16], ..bond(1) };
    pairing.paired(renewed, offered, at(1)).unwrap();
    assert_eq!(pairing.bonds(), [renewed]);
}

#[test]
fn an_introduction_opens_a_window_whenever_a_gateways_link_ends_and_serves_once() {
    let disk = Disk::default();
    let mut pairing = boot(&disk, 1, at(0));
    pair(&mut pairing, 1, at(0));
    pairing.admit(K, DAY_S, at(10)).unwrap();
    assert_eq!(pairing.offering(at(10)), None, "not while the link is up");
    pairing.disconnected(at(20));
    let Offering { offer: Offer::Introduction { nonce, tag }, passkey } = pairing.offering(at(21)).unwrap()
    else {
        panic!("an introduction");
    };
    let secret = IntroductionSecret::from_bytes(K);
    assert_eq!((tag, passkey), (secret.tag(&nonce), Some(secret.passkey(&nonce))));
    assert_eq!(pairing.offering(at(140)), None, "for two minutes");
    pairing.disconnected(at(1_000));
    let offered = pairing.offering(at(1_001)).unwrap().offer;
    assert_ne!(offered, Offer::Introduction { nonce, tag }, "each time with a fresh nonce");
    pairing.paired(bond(2), offered, at(1_001)).unwrap();
    pairing.disconnected(at(2_000));
    assert_eq!(pairing.offering(at(2_001)), None);
    assert_eq!(boot(&disk, 2, at(0)).offering(at(1)), None, "after a reset neither");
}

#[test]
fn an_introduction_dies_of_age_also_over_resets() {
    let disk = Disk::default();
    let mut pairing = boot(&disk, 1, at(0));
    pairing.admit(K, 300, at(0)).unwrap();
    pairing.disconnected(at(100));
    assert!(pairing.offering(at(101)).is_some());
    // 200 s were left when it was written last.
    let mut pairing = boot(&disk, 2, at(0));
    assert!(pairing.offering(at(1)).is_some(), "a reset ends the link as well");
    pairing.disconnected(at(190));
    assert_eq!(pairing.changes_at(at(190)), Some(at(200)));
    assert_eq!(pairing.offering(at(200)), None);
    pairing.disconnected(at(300));
    assert_eq!(boot(&disk, 3, at(0)).offering(at(1)), None);
}

#[test]
fn wrong_passkeys_close_an_introductions_window_and_in_the_end_the_introduction() {
    let disk = Disk::default();
    let mut pairing = boot(&disk, 1, at(0));
    pairing.admit(K, DAY_S, at(0)).unwrap();
    let mut attempts = 0;
    for round in 1..100 {
        let now = at(round * 1_000);
        pairing.disconnected(now);
        while pairing.offering(now).is_some() {
            pairing.attempt_failed(now);
            attempts += 1;
            assert!(attempts % MAX_ATTEMPTS != 0 || pairing.offering(now).is_none());
        }
    }
    assert_eq!(attempts, MAX_INTRODUCTION_ATTEMPTS);
    assert_eq!(boot(&disk, 2, at(0)).offering(at(1)), None);
}

#[test]
fn a_person_at_the_button_goes_before_an_introduction() {
    let mut pairing = boot(&Disk::default(), 1, at(0));
    pairing.admit(K, DAY_S, at(0)).unwrap();
    pairing.disconnected(at(10));
    pairing.press_button(at(11));
    assert!(matches!(pairing.offering(at(12)).unwrap().offer, Offer::Label { .. }));
}

#[test]
fn with_eight_bonds_an_introduction_is_refused() {
    let mut pairing = boot(&Disk::default(), 1, at(0));
    for number in 0..8 {
        pair(&mut pairing, number, at(0));
    }
    assert_eq!(pairing.admit(K, DAY_S, at(0)), Err(NotKept::OutOfSlots));
}

#[test]
fn a_revoked_gateway_stays_forgotten_and_one_that_is_unknown_is_no_error() {
    let disk = Disk::default();
    let mut pairing = boot(&disk, 1, at(0));
    pair(&mut pairing, 1, at(0));
    pair(&mut pairing, 2, at(0));
    pairing.revoke([1; 6], at(1)).unwrap();
    pairing.revoke([1; 6], at(1)).unwrap();
    assert!(!pairing.knows(bond(1).peer) && pairing.knows(bond(2).peer));
    assert_eq!(boot(&disk, 2, at(0)).bonds(), [bond(2)]);
    disk.full.set(true);
    assert!(pairing.revoke([2; 6], at(1)).is_err());
    assert!(pairing.knows(bond(2).peer), "a revocation that would not survive is not claimed");
}

#[test]
fn a_memory_that_is_no_image_is_left_alone() {
    let disk = Disk::default();
    *disk.image.borrow_mut() = b"of another version".to_vec();
    let opened = Pairing::open(disk.clone(), Counter(1), Proof::Display, at(0));
    assert_eq!(opened.err(), Some(OpenError::BadImage));
    assert_eq!(*disk.image.borrow(), b"of another version");
}

proptest! {
    #[test]
    fn whatever_happens_no_nonce_serves_twice_and_no_window_outlives_its_time(
        steps in proptest::collection::vec((0u8..7, 0u64..90), 1..120)
    ) {
        let disk = Disk::default();
        let mut pairing = boot(&disk, 1, at(0));
        let (mut now, mut opened, mut seed) = (0, None, 1);
        let mut used = HashSet::new();
        for (step, pause) in steps {
            now += pause;
            let moment = at(now);
            match step {
                0 => {
                    pairing.press_button(moment);
                    opened = Some(now);
                }
                1 => {
                    if let Some(offering) = pairing.offering(moment) {
                        prop_assert!(used.insert(offering.offer), "a nonce came twice");
                        pairing.attempt_failed(moment);
                    }
                }
                2 => {
                    if let Some(offering) = pairing.offering(moment) {
                        prop_assert!(used.insert(offering.offer), "a nonce came twice");
                        // An introduction with eight bonds is refused.
                        let _ = pairing.paired(bond(now as u8), offering.offer, moment);
                    }
                }
                3 => {
                    pairing.disconnected(moment);
                    opened = Some(now);
                }
                4 => { let _ = pairing.admit(K, 600, moment); }
                5 => pairing.revoke([now as u8; 6], moment).unwrap(),
                _ => {
                    seed += 1;
                    pairing = boot(&disk, seed, moment);
                    opened = Some(now);
                }
            }
            prop_assert!(pairing.bonds().len() <= MAX_BONDS);
            if pairing.offering(moment).is_some() {
                prop_assert!(opened.is_some_and(|opened| now < opened + WINDOW.as_secs()));
                prop_assert!(pairing.changes_at(moment).is_some_and(|change| change > moment));
            }
        }
    }
}
