//! From when until when a certificate counts: as much of X.509 as that takes (RFC 5280, 4.1), and no more.
//!
//! The dates are shown to a person; whether a certificate is believed is rustls's to say. Never panics, allocates nothing.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const SEQUENCE: u8 = 0x30;
const EXPLICIT_VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When a certificate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Not before.
    pub from: Timestamp,
    /// Not after.
    pub until: Timestamp,
}

/// Reads the dates out of a certificate in DER.
pub fn validity(der: &[u8]) -> Option<Validity> {
    let (certificate, _) = expect(der, SEQUENCE)?;
    let (body, _) = expect(certificate, SEQUENCE)?;
    // Version (may be absent), serial number, signature algorithm, issuer, then what we want.
    let (first, _, after_first) = element(body)?;
    let rest = if first == EXPLICIT_VERSION { element(after_first)?.2 } else { after_first };
    let (_, rest) = expect(rest, SEQUENCE)?;
    let (_, rest) = expect(rest, SEQUENCE)?;
    let (dates, _) = expect(rest, SEQUENCE)?;
    let (tag, from, rest) = element(dates)?;
    let from = time(tag, from)?;
    let (tag, until, _) = element(rest)?;
    Some(Validity { from, until: time(tag, until)? })
}

/// Tag, content, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 3 {
            return None;
        }
        let (digits, rest) = rest.split_at_checked(count)?;
        (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn expect(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = element(bytes)?;
    (tag == wanted).then_some((content, rest))
}

fn time(tag: u8, text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match tag {
        UTC_TIME if text.len() == 12 => {
            let year: i16 = text[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        GENERALIZED_TIME if text.len() == 14 => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let two = |at: usize| rest[at..at + 2].parse::<i8>().ok();
    let civil = DateTime::new(year, two(0)?, two(2)?, two(4)?, two(6)?, two(8)?, 0).ok()?;
    Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(from: i32, until: i32) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["box".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 2, 3);
        params.not_after = date_time_ymd(until, 12, 31);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_dates_of_a_certificate_are_read_in_both_of_their_forms() {
        let both = validity(&certificate(2025, 2075)).unwrap();
        assert_eq!(both.from, "2025-02-03T00:00:00Z".parse().unwrap());
        assert_eq!(both.until, "2075-12-31T00:00:00Z".parse().unwrap());
        assert!(validity(&certificate(1999, 2049)).unwrap().from < both.from);
    }

    #[test]
    fn a_certificate_that_was_cut_short_has_no_dates() {
        let der = certificate(2025, 2030);
        for length in 0..60 {
            assert_eq!(validity(&der[..length]), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = validity(&bytes);
        }

        #[test]
        fn no_damage_makes_it_panic(at in 0usize..200, byte in any::<u8>()) {
            let mut der = certificate(2025, 2030);
            der[at] = byte;
            let _ = validity(&der);
        }
    }
}
