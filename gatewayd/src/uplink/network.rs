//! Whether the machine's network has changed: then the next attempt need not wait, and a standing line is looked at.

use std::hash::{DefaultHasher, Hasher};
use std::path::Path;
use std::time::Duration;

/// Routes and addresses as the kernel lists them for this process.
const TABLES: [&str; 3] = ["/proc/self/net/route", "/proc/self/net/ipv6_route", "/proc/self/net/if_inet6"];
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Returns once routes or addresses are others than at the call.
pub async fn changed() {
    let tables = TABLES.map(Path::new);
    let before = fingerprint(&tables);
    loop {
        tokio::time::sleep(LOOK).await;
        if fingerprint(&tables) != before {
            return;
        }
    }
}

/// Of the words in these tables only those count that name something: a route's references and uses change all the time.
fn fingerprint(tables: &[&Path]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for table in tables {
        let counters = if table.ends_with("route") {
            4..6
        } else if table.ends_with("ipv6_route") {
            6..8
        } else {
            0..0
        };
        let text = std::fs::read_to_string(table).unwrap_or_default();
        for line in text.lines() {
            let words = line.split_ascii_whitespace().enumerate();
            for (_, word) in words.filter(|(column, _)| !counters.contains(column)) {
                hasher.write(word.as_bytes());
                hasher.write_u8(b' ');
            }
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_route_is_a_change_and_a_use_of_an_old_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("route");
        let with = |text: &str| {
            std::fs::write(&path, text).unwrap();
            fingerprint(&[&path])
        };
        let before = with("eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\n");
        assert_eq!(with("eth0\t00000000\t0100A8C0\t0003\t7\t9\t100\n"), before);
        assert_ne!(with("eth0\t00000000\t0200A8C0\t0003\t0\t0\t100\n"), before);
        assert_ne!(with(""), before);
    }
}
