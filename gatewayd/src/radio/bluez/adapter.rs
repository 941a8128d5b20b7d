//! One adapter: what is known of it across scans, links and lives of bluetoothd.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bluer::Address;
use tokio::sync::watch;
use tokio::time::Instant;
use zbus::zvariant::Value;

use super::Settings;
use super::bus::{ADAPTER, Bus, Objects, adapter_path};
use super::objects::{flag, text};
use super::slots::Slots;
use super::traps::Trouble;
use crate::radio::{AdapterId, Bond};

/// How long discovery may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// What is remembered of an adapter.
pub struct State {
    /// Its link budget.
    pub slots: Arc<Slots>,
    /// Connections and pairings under way; discovery rests meanwhile.
    pub busy: watch::Sender<usize>,
    /// Whether discovery runs.
    pub scanning: watch::Sender<bool>,
    /// Whether a person has a window open.
    pub window: watch::Sender<bool>,
    /// Per peer: how often in a row its link broke off while it was made.
    broken: Mutex<HashMap<Address, u32>>,
    /// Per bonded peer: when it was last heard or linked.
    near: Mutex<HashMap<Address, Instant>>,
    /// How many connections in a row bluetoothd said nothing of.
    unanswered: AtomicU32,
    /// The peers whose links this program holds. bluetoothd may have others: links outlive a client that was killed.
    held: Mutex<HashSet<Address>>,
}

/// Discovery rests as long as this lives.
pub struct Quiet<'a>(&'a State);

impl State {
    /// Nothing known yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            slots: Slots::new(settings.slots, settings.slots_relearn),
            busy: watch::Sender::new(0),
            scanning: watch::Sender::new(false),
            window: watch::Sender::new(false),
            broken: Mutex::default(),
            near: Mutex::default(),
            unanswered: AtomicU32::new(0),
            held: Mutex::default(),
        }
    }

    /// Counts a connection that bluetoothd said nothing of; one that it did say something of ends the row.
    pub fn answered(&self, answered: bool) {
        if answered {
            self.unanswered.store(0, Ordering::Relaxed);
        } else {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many there were in a row.
    pub fn unanswered(&self) -> u32 {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Lets discovery rest.
    pub fn quiet(&self) -> Quiet<'_> {
        self.busy.send_modify(|busy| *busy += 1);
        Quiet(self)
    }

    /// Counts a link that broke off while it was made; gives how many in a row.
    pub fn broke_off(&self, peer: Address) -> u32 {
        let mut broken = lock(&self.broken);
        let count = broken.entry(peer).or_default();
        *count = count.saturating_add(1);
        *count
    }

    /// A link came about, or the bond is gone.
    pub fn whole(&self, peer: Address) {
        lock(&self.broken).remove(&peer);
    }

    /// A link is held, or being made.
    pub fn hold(&self, peer: Address) {
        lock(&self.held).insert(peer);
    }

    /// It is not any more.
    pub fn release(&self, peer: Address) {
        lock(&self.held).remove(&peer);
    }

    /// Whether this program holds a link to this peer.
    pub fn holds(&self, peer: Address) -> bool {
        lock(&self.held).contains(&peer)
    }

    /// A bonded peer was heard.
    pub fn heard(&self, peer: Address) {
        lock(&self.near).insert(peer, Instant::now());
    }

    /// Whether a bonded peer that was heard within `lately` has no link now.
    pub fn awaited(&self, linked: &[Address], now: Instant, lately: Duration) -> bool {
        let near = lock(&self.near);
        near.iter().any(|(peer, heard)| now.duration_since(*heard) < lately && !linked.contains(peer))
    }

    /// A bond is gone.
    pub fn forget(&self, peer: Address) {
        self.whole(peer);
        lock(&self.near).remove(&peer);
    }
}

impl Quiet<'_> {
    /// Waits until discovery rests: a connection beside it breaks off while it is made. Where it does not end, the
    /// connection is tried all the same.
    pub async fn fallen(&self) {
        let mut scanning = self.0.scanning.subscribe();
        let _ended = tokio::time::timeout(ENDS_WITHIN, scanning.wait_for(|scanning| !scanning)).await;
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.0.busy.send_modify(|busy| *busy -= 1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An adapter as BlueZ lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub id: AdapterId,
    /// Its identity address.
    pub address: Address,
    /// Whether it is on.
    pub powered: bool,
    /// rfkill holds it off.
    pub blocked: bool,
}

/// The adapters among all objects.
pub fn listed(objects: &Objects) -> Vec<Listed> {
    let mut found: Vec<Listed> = objects
        .iter()
        .filter_map(|(path, interfaces)| {
            let properties = interfaces.get(ADAPTER)?;
            Some(Listed {
                id: AdapterId(path.as_str().strip_prefix("/org/bluez/")?.to_owned()),
                address: text(properties, "Address")?.parse().ok()?,
                powered: flag(properties, "Powered").unwrap_or(false),
                blocked: text(properties, "PowerState") == Some("off-blocked"),
            })
        })
        .collect();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    found
}

/// Switches an adapter on or off.
pub async fn power(bus: &Bus, adapter: &AdapterId, on: bool) -> Result<(), Trouble> {
    bus.set(&adapter_path(adapter), ADAPTER, "Powered", Value::from(on)).await
}

/// Lets the adapter bond, or not.
pub async fn pairable(bus: &Bus, adapter: &AdapterId, on: bool) -> Result<(), Trouble> {
    bus.set(&adapter_path(adapter), ADAPTER, "Pairable", Value::from(on)).await
}

/// Who a bond is with: `"<adapter address> <identity address> <public|random>"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The adapter that holds the keys.
    pub adapter: Address,
    /// The peer's identity address.
    pub peer: Address,
    /// Whether that is of the random kind.
    pub random: bool,
}

impl Identity {
    /// Reads a bond; `None` when another transport made it.
    pub fn of(bond: &Bond) -> Option<Self> {
        let text = std::str::from_utf8(&bond.0).ok()?;
        let mut words = text.split(' ');
        let (adapter, peer) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let random = match words.next()? {
            "random" => true,
            "public" => false,
            _ => return None,
        };
        words.next().is_none().then_some(Self { adapter, peer, random })
    }

    /// Its kind in a word.
    pub fn kind(&self) -> &'static str {
        if self.random { "random" } else { "public" }
    }

    /// As a bond.
    pub fn bond(&self) -> Bond {
        Bond(format!("{} {} {}", self.adapter, self.peer, self.kind()).into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bond_names_both_ends_and_comes_back_from_its_text() {
        let text = "F0:F1:F2:F3:F4:F5 C1:22:33:44:55:66 random";
        let identity = Identity::of(&Bond(text.as_bytes().to_vec())).unwrap();
        assert!(identity.random);
        assert_eq!(identity.bond().0, text.as_bytes());
        for other in ["", "1234567890123456", "F0:F1:F2:F3:F4:F5 C1:22:33:44:55:66", &format!("{text} x")] {
            assert_eq!(Identity::of(&Bond(other.as_bytes().to_vec())), None, "{other}");
        }
    }

    #[test]
    fn links_that_break_off_in_a_row_are_counted_per_peer_until_one_holds() {
        let state = State::new(&Settings::default());
        let (one, two) = (Address([1; 6]), Address([2; 6]));
        assert_eq!((state.broke_off(one), state.broke_off(one), state.broke_off(two)), (1, 2, 1));
        state.whole(one);
        assert_eq!(state.broke_off(one), 1);
    }
}
