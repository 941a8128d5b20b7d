//! Addresses: of networks that an operator names, and of clients behind proxies.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::HeaderMap;
use serde::Deserialize;

/// A network, or one address: `10.1.0.0/16`, `192.0.2.7`, `fd00::/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    first: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let apart = u32::from(first) ^ u32::from(address);
                apart.checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let apart = u128::from(first) ^ u128::from(address);
                apart.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address and no network, such as 192.0.2.7 or 10.1.0.0/16");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let first = address.trim().parse::<IpAddr>().map_err(|_| wrong())?.to_canonical();
        let all = if first.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(all);
        if bits > all { Err(wrong()) } else { Ok(Self { first, bits }) }
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// An entry of `X-Forwarded-For`: an address, with or without a port or brackets.
fn hop(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|both| both.ip()));
    address.map(|address| address.to_canonical())
}

/// Says a thing once in a program's life.
#[derive(Debug, Default)]
struct Once(AtomicBool);

impl Once {
    fn first(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}

/// The proxies whose word is believed.
#[derive(Debug, Default)]
pub struct Proxies {
    trusted: Vec<Network>,
    unreadable: Once,
    untrusted: Once,
}

impl Proxies {
    /// These.
    pub fn new(trusted: Vec<Network>) -> Self {
        Self { trusted, ..Self::default() }
    }

    /// Whether this is one of them.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// The address a request came from: a trusted proxy's word for it, or the connection's.
    pub fn client(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        let mut address = peer?.ip().to_canonical();
        // The last entry was written by the proxy nearest to us; ones further left are only as good as who wrote them.
        let said: Vec<&str> = headers
            .get_all("x-forwarded-for")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .collect();
        if !said.is_empty() && !self.trusts(address) && self.untrusted.first() {
            tracing::warn!(
                from = %address,
                "a request has X-Forwarded-For, and trusted_proxies does not name who sent it: if that is your proxy, \
                 all its visitors count as one, and one of them can close the login for all; name it there"
            );
        }
        for entry in said.into_iter().rev() {
            if !self.trusts(address) {
                break;
            }
            let Some(before) = hop(entry) else {
                if self.unreadable.first() {
                    tracing::warn!(proxy = %address, entry, "an X-Forwarded-For of a trusted proxy holds no address");
                }
                break;
            };
            address = before;
        }
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        for (network, inside, outside) in [
            ("10.1.0.0/16", "10.1.255.7", "10.2.0.1"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("0.0.0.0/0", "203.0.113.9", "::1"),
            ("fd00::/8", "fd12::1", "fe80::1"),
            ("::ffff:127.0.0.1", "127.0.0.1", "127.0.0.2"),
        ] {
            let network: Network = network.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{network:?} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{network:?} {outside}");
        }
        for wrong in ["", "10.0.0.0/33", "proxy.example", "10.0.0.0/x", "::/129"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_proxys_word_is_read_with_a_port_and_brackets_and_only_from_a_proxy() {
        let proxies = Proxies::new(vec!["127.0.0.1".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
        let client = |peer: &str, said: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", said.parse().unwrap());
            proxies.client(Some(peer.parse().unwrap()), &headers).unwrap().to_string()
        };
        for (said, from) in [
            ("203.0.113.5:41234", "203.0.113.5"),
            ("203.0.113.5", "203.0.113.5"),
            ("[2001:db8::7]:443", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("2001:db8::7", "2001:db8::7"),
            ("1.2.3.4, 203.0.113.5:1, 10.9.9.9:2", "203.0.113.5"),
            ("unknown", "127.0.0.1"),
        ] {
            assert_eq!(client("127.0.0.1:5000", said), from, "{said}");
        }
        assert_eq!(client("198.51.100.1:5000", "203.0.113.5"), "198.51.100.1");
    }
}
