//! What the radio remembers over a reset: who it is, its bonds, an introduction that still lives.
//!
//! It is written as a whole, with a checksum: an image that a reset has cut in the middle is no image. A [`Storage`]
//! therefore keeps the previous one until the next is written.

use heapless::Vec;
use kinara_protocol::frame::checksum;
use rand_core::{CryptoRng, RngCore};

/// Bonds held.
pub const MAX_BONDS: usize = 8;
/// Bytes of the longest image.
pub const MAX_IMAGE: usize = 1 + 6 + 16 + 1 + 16 + 4 + 1 + MAX_BONDS * BOND_BYTES + CHECKSUM_BYTES;

const VERSION: u8 = 1;
const BOND_BYTES: usize = 1 + 6 + 1 + 16 + 16;
const CHECKSUM_BYTES: usize = 4;

/// The identity address of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Whether it is a static random address; else a public one.
    pub random: bool,
    /// Most significant byte first, as it is written for people.
    pub address: [u8; 6],
}

/// A gateway that has paired.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bond {
    /// Who.
    pub peer: Peer,
    /// The key that resolves its private addresses, least significant byte first; none if it has none.
    pub irk: Option<[u8; 16]>,
    /// The long-term key, least significant byte first. Always an authenticated one of LE Secure Connections.
    pub ltk: [u8; 16],
}

impl core::fmt::Debug for Bond {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Bond").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The wearable's own identity. It is what gateways hold, so it stays for the life of the memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// A static random address, most significant byte first. It is never on the air while private addresses are on.
    pub address: [u8; 6],
    /// Makes and resolves its private addresses, least significant byte first.
    pub irk: [u8; 16],
}

impl Identity {
    /// Draws an identity.
    pub fn draw(entropy: &mut (impl RngCore + CryptoRng)) -> Self {
        let mut identity = Self { address: [0; 6], irk: [0; 16] };
        entropy.fill_bytes(&mut identity.address);
        // Both top bits set: a static random address (Core, Vol 6, Part B, 1.3.2.1).
        identity.address[0] |= 0xc0;
        // An address part or a key of nothing but zeros or ones is not one.
        while identity.irk == [0; 16] {
            entropy.fill_bytes(&mut identity.irk);
        }
        identity
    }
}

/// An introduction as it is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeptIntroduction {
    /// K.
    pub secret: [u8; 16],
    /// Seconds it had left when it was written.
    pub left_s: u32,
}

/// See the module's text.
#[derive(Clone, PartialEq, Eq)]
pub struct Memory {
    /// Who this is.
    pub identity: Identity,
    /// The bonds, that of the gateway connected last at the end.
    pub bonds: Vec<Bond, MAX_BONDS>,
    /// The introduction that lives.
    pub introduction: Option<KeptIntroduction>,
}

/// Bytes that are no image of this version, or not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadImage;

/// Where an image is kept.
pub trait Storage {
    /// What can go wrong.
    type Error: core::fmt::Debug;

    /// Reads the image that was saved last; 0 bytes when there is none.
    fn load(&mut self, into: &mut [u8; MAX_IMAGE]) -> Result<usize, Self::Error>;

    /// Replaces the image. On return it survives a loss of power; a loss before leaves the previous one.
    fn save(&mut self, image: &[u8]) -> Result<(), Self::Error>;
}

impl Memory {
    /// The memory of a wearable that nobody has paired with.
    pub fn blank(identity: Identity) -> Self {
        Self { identity, bonds: Vec::new(), introduction: None }
    }

    /// Encodes into `out`; gives the written bytes.
    pub fn encode<'a>(&self, out: &'a mut [u8; MAX_IMAGE]) -> &'a [u8] {
        let mut image: Vec<u8, MAX_IMAGE> = Vec::new();
        let mut put = |bytes: &[u8]| image.extend_from_slice(bytes).expect("MAX_IMAGE counts every field");
        put(&[VERSION]);
        put(&self.identity.address);
        put(&self.identity.irk);
        let kept = self.introduction.unwrap_or(KeptIntroduction { secret: [0; 16], left_s: 0 });
        put(&[u8::from(self.introduction.is_some())]);
        put(&kept.secret);
        put(&kept.left_s.to_le_bytes());
        put(&[self.bonds.len() as u8]);
        for bond in &self.bonds {
            put(&[u8::from(bond.peer.random)]);
            put(&bond.peer.address);
            put(&[u8::from(bond.irk.is_some())]);
            put(&bond.irk.unwrap_or_default());
            put(&bond.ltk);
        }
        let sum = checksum(&image).to_le_bytes();
        image.extend_from_slice(&sum).expect("MAX_IMAGE counts every field");
        let written = &mut out[..image.len()];
        written.copy_from_slice(&image);
        written
    }

    /// Decodes.
    pub fn decode(image: &[u8]) -> Result<Self, BadImage> {
        let (body, sum) = image.split_last_chunk::<CHECKSUM_BYTES>().ok_or(BadImage)?;
        if checksum(body) != u32::from_le_bytes(*sum) {
            return Err(BadImage);
        }
        let mut rest = body;
        if take::<1>(&mut rest)? != [VERSION] {
            return Err(BadImage);
        }
        let identity = Identity { address: take(&mut rest)?, irk: take(&mut rest)? };
        let [lives] = take(&mut rest)?;
        let kept =
            KeptIntroduction { secret: take(&mut rest)?, left_s: u32::from_le_bytes(take(&mut rest)?) };
        let mut memory = Self { identity, bonds: Vec::new(), introduction: (lives == 1).then_some(kept) };
        let [count] = take(&mut rest)?;
        for _ in 0..count {
            let [random] = take(&mut rest)?;
            let peer = Peer { random: random == 1, address: take(&mut rest)? };
            let [resolvable] = take(&mut rest)?;
            let irk = take(&mut rest)?;
            let bond = Bond { peer, irk: (resolvable == 1).then_some(irk), ltk: take(&mut rest)? };
            memory.bonds.push(bond).map_err(|_| BadImage)?;
        }
        if rest.is_empty() { Ok(memory) } else { Err(BadImage) }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], BadImage> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(BadImage)?;
    *rest = tail;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_bond() -> impl Strategy<Value = Bond> {
        any::<(bool, [u8; 6], Option<[u8; 16]>, [u8; 16])>().prop_map(|(random, address, irk, ltk)| Bond {
            peer: Peer { random, address },
            irk,
            ltk,
        })
    }

    proptest! {
        #[test]
        fn a_memory_comes_back_whole_or_not_at_all(
            address: [u8; 6], irk: [u8; 16], introduction: Option<([u8; 16], u32)>,
            bonds in proptest::collection::vec(any_bond(), 0..=MAX_BONDS), cut: usize, flipped: usize,
        ) {
            let memory = Memory {
                identity: Identity { address, irk },
                bonds: bonds.into_iter().collect(),
                introduction: introduction.map(|(secret, left_s)| KeptIntroduction { secret, left_s }),
            };
            let mut out = [0; MAX_IMAGE];
            let image = memory.encode(&mut out);
            prop_assert!(Memory::decode(image) == Ok(memory));
            prop_assert!(Memory::decode(&image[..cut % image.len()]).is_err());
            let mut damaged = image.to_vec();
            let bit = flipped % (damaged.len() * 8);
            damaged[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Memory::decode(&damaged).is_err());
        }
    }
}
