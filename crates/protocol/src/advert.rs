//! What a wearable says on the air before anybody is connected.
//!
//! Outside every window it advertises flags and nothing else, at a private address that rotates: nothing identifies
//! its maker, its wearer or its purpose. In a window ([`Offer`]) the advertising data name the Kinara service and a
//! short name for people, and the scan response carries the offer as service data of the Kinara service.
//!
//! Both fit legacy advertising to the byte: 31 bytes each.

use crate::gatt;

/// Bytes that legacy advertising has room for, in the advertising data and in the scan response each.
pub const MAX_DATA: usize = 31;
/// Bytes of the name that a wearable shows in a window; a longer one is cut.
pub const MAX_NAME: usize = 8;
/// Bytes of the longest encoded offer.
pub const MAX_OFFER: usize = 13;

// Types of advertising data: Bluetooth Assigned Numbers, 2.3.
const AD_FLAGS: u8 = 0x01;
const AD_COMPLETE_SERVICES_128: u8 = 0x07;
const AD_SHORTENED_NAME: u8 = 0x08;
const AD_SERVICE_DATA_128: u8 = 0x21;
/// LE general discoverable, no BR/EDR. Also outside the windows: a host drops what is not discoverable before it
/// asks whether the address is that of a bonded device.
const FLAGS: u8 = 0x06;

const MODE_LABEL: u8 = 1;
const MODE_INTRODUCTION: u8 = 2;
const MODE_DISPLAY: u8 = 3;

/// How the wearable offers to pair. Each attempt has a nonce of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Offer {
    /// By its label: the passkey is `LabelSecret::passkey(nonce)`.
    Label {
        /// This attempt's.
        nonce: [u8; 8],
    },
    /// By an introduction: the passkey is `IntroductionSecret::passkey(nonce)`.
    Introduction {
        /// This attempt's.
        nonce: [u8; 6],
        /// `IntroductionSecret::tag(nonce)`, by which the introduced gateway knows whom it has before it.
        tag: [u8; 6],
    },
    /// By a random passkey that its display shows once pairing has begun.
    Display,
}

/// Service data of the Kinara service that are no offer of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(thiserror::Error))]
#[cfg_attr(feature = "std", error("the advertised offer is not one of this version"))]
pub struct BadOffer;

impl Offer {
    /// Encodes into `out`; gives the written bytes.
    pub fn encode<'a>(&self, out: &'a mut [u8; MAX_OFFER]) -> &'a [u8] {
        match self {
            Self::Label { nonce } => {
                out[0] = MODE_LABEL;
                out[1..9].copy_from_slice(nonce);
                &out[..9]
            }
            Self::Introduction { nonce, tag } => {
                out[0] = MODE_INTRODUCTION;
                out[1..7].copy_from_slice(nonce);
                out[7..].copy_from_slice(tag);
                out
            }
            Self::Display => {
                out[0] = MODE_DISPLAY;
                &out[..1]
            }
        }
    }

    /// Decodes the service data of the Kinara service. What is longer or shorter than its mode says is refused.
    pub fn decode(service_data: &[u8]) -> Result<Self, BadOffer> {
        match service_data {
            [MODE_LABEL, nonce @ ..] => Ok(Self::Label { nonce: nonce.try_into().map_err(|_| BadOffer)? }),
            [MODE_INTRODUCTION, rest @ ..] => {
                let (nonce, tag) = rest.split_first_chunk().ok_or(BadOffer)?;
                Ok(Self::Introduction { nonce: *nonce, tag: tag.try_into().map_err(|_| BadOffer)? })
            }
            [MODE_DISPLAY] => Ok(Self::Display),
            _ => Err(BadOffer),
        }
    }
}

/// Up to 31 bytes of advertising data or of a scan response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdvertisingData {
    bytes: [u8; MAX_DATA],
    len: usize,
}

impl AdvertisingData {
    const fn empty() -> Self {
        Self { bytes: [0; MAX_DATA], len: 0 }
    }

    /// Outside every window: flags.
    pub fn anonymous() -> Self {
        let mut data = Self::empty();
        data.push(AD_FLAGS, &[&[FLAGS]]);
        data
    }

    /// In a window: flags, the Kinara service, and the name for people, of which the first [`MAX_NAME`] bytes (whole
    /// characters) go on the air.
    pub fn in_window(name: &str) -> Self {
        let mut data = Self::anonymous();
        data.push(AD_COMPLETE_SERVICES_128, &[&gatt::SERVICE.to_le_bytes()]);
        let end = (0..=MAX_NAME.min(name.len())).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
        data.push(AD_SHORTENED_NAME, &[&name.as_bytes()[..end]]);
        data
    }

    /// The scan response of a window.
    pub fn scan_response(offer: &Offer) -> Self {
        let mut data = Self::empty();
        let mut encoded = [0; MAX_OFFER];
        data.push(AD_SERVICE_DATA_128, &[&gatt::SERVICE.to_le_bytes(), offer.encode(&mut encoded)]);
        data
    }

    /// The bytes, as they go into the HCI command.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Appends a structure. The callers' fit: 3 + 18 + 10, or 18 + 13 bytes.
    fn push(&mut self, kind: u8, parts: &[&[u8]]) {
        let content: usize = parts.iter().map(|part| part.len()).sum();
        let header = [content as u8 + 1, kind];
        for part in [&header[..]].iter().chain(parts) {
            self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
            self.len += part.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Type and content of each structure.
    fn structures(data: &AdvertisingData) -> Vec<(u8, Vec<u8>)> {
        let mut rest = data.as_bytes();
        let mut all = Vec::new();
        while let Some((&len, tail)) = rest.split_first() {
            let (one, tail) = tail.split_at(usize::from(len));
            all.push((one[0], one[1..].to_vec()));
            rest = tail;
        }
        all
    }

    fn any_offer() -> impl Strategy<Value = Offer> {
        prop_oneof![
            any::<[u8; 8]>().prop_map(|nonce| Offer::Label { nonce }),
            any::<([u8; 6], [u8; 6])>().prop_map(|(nonce, tag)| Offer::Introduction { nonce, tag }),
            Just(Offer::Display),
        ]
    }

    #[test]
    fn outside_a_window_nothing_but_flags_is_advertised() {
        assert_eq!(AdvertisingData::anonymous().as_bytes(), [2, 1, 6]);
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        for (name, shown) in [("K-3F2A", "K-3F2A"), ("Kinara-0042", "Kinara-0"), ("किनारा", "कि"), ("", "")]
        {
            let all = structures(&AdvertisingData::in_window(name));
            assert_eq!(all[2], (AD_SHORTENED_NAME, shown.as_bytes().to_vec()));
        }
    }

    proptest! {
        #[test]
        fn every_offer_fits_a_scan_response_and_comes_back(offer in any_offer()) {
            let all = structures(&AdvertisingData::scan_response(&offer));
            let [(AD_SERVICE_DATA_128, content)] = &all[..] else { panic!("{all:?}") };
            prop_assert_eq!(&content[..16], gatt::SERVICE.to_le_bytes());
            prop_assert_eq!(Offer::decode(&content[16..]), Ok(offer));
        }

        #[test]
        fn any_name_fits_beside_the_service(name: String) {
            let data = AdvertisingData::in_window(&name);
            let all = structures(&data);
            prop_assert_eq!(&all[1], &(AD_COMPLETE_SERVICES_128, gatt::SERVICE.to_le_bytes().to_vec()));
            prop_assert!(name.as_bytes().starts_with(&all[2].1) && std::str::from_utf8(&all[2].1).is_ok());
        }

        #[test]
        fn any_service_data_are_refused_or_an_offer_that_encodes_to_them(
            bytes in proptest::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..40)
        ) {
            if let Ok(offer) = Offer::decode(&bytes) {
                let mut out = [0; MAX_OFFER];
                prop_assert_eq!(offer.encode(&mut out), &bytes[..]);
            }
        }
    }
}
