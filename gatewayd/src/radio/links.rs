//! Who holds which wearable on this box, over all adapters, and the way to ask something of one that is connected.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kinara_protocol::control::{Op, Outcome};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{AdapterId, RadioError};
use crate::hardware::HardwareId;

/// Orders that may wait for one wearable.
const ORDERS: usize = 8;

/// Something that a connected wearable is to be asked, for somebody who waits for the answer.
#[derive(Debug)]
pub struct Order {
    /// What.
    pub op: Op,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Outcome, RadioError>>,
}

/// One wearable with a link, or on its way to one.
#[derive(Debug, Clone)]
pub struct Held {
    /// Which.
    pub hardware: HardwareId,
    /// By which adapter.
    pub adapter: AdapterId,
    /// Since when.
    pub since: Instant,
    /// Ends it in order.
    pub cancel: CancellationToken,
}

#[derive(Debug)]
struct Entry {
    held: Held,
    orders: mpsc::Sender<Order>,
    /// Since when it has said who it is and takes orders.
    greeted: Option<Instant>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<HardwareId, Entry>,
    /// Nobody connects to these before that.
    not_before: HashMap<HardwareId, Instant>,
}

/// All links of this box; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Links {
    inner: Arc<Mutex<Inner>>,
}

/// The right to connect to a wearable. It ends when this is dropped.
#[derive(Debug)]
pub struct Claim {
    links: Links,
    hardware: HardwareId,
    /// What the wearable is to be asked.
    pub orders: mpsc::Receiver<Order>,
    /// Somebody wants the link to end.
    pub cancel: CancellationToken,
}

impl Links {
    /// Claims a wearable; `None` when somebody has it, or nobody may connect to it yet. `parent` ends the claim too.
    pub fn claim(
        &self,
        hardware: &HardwareId,
        adapter: &AdapterId,
        parent: &CancellationToken,
    ) -> Option<Claim> {
        let mut inner = self.lock();
        let now = Instant::now();
        inner.not_before.retain(|_, until| *until > now);
        if inner.entries.contains_key(hardware) || inner.not_before.contains_key(hardware) {
            return None;
        }
        let (sender, orders) = mpsc::channel(ORDERS);
        let cancel = parent.child_token();
        let held =
            Held { hardware: hardware.clone(), adapter: adapter.clone(), since: now, cancel: cancel.clone() };
        inner.entries.insert(hardware.clone(), Entry { held, orders: sender, greeted: None });
        Some(Claim { links: self.clone(), hardware: hardware.clone(), orders, cancel })
    }

    /// Whether somebody has it, or nobody may connect to it yet.
    pub fn is_taken(&self, hardware: &HardwareId) -> bool {
        let inner = self.lock();
        let now = Instant::now();
        inner.entries.contains_key(hardware)
            || inner.not_before.get(hardware).is_some_and(|until| *until > now)
    }

    /// The wearables that an adapter holds.
    pub fn of(&self, adapter: &AdapterId) -> Vec<Held> {
        let inner = self.lock();
        let held = inner.entries.values().map(|entry| &entry.held);
        held.filter(|held| held.adapter == *adapter).cloned().collect()
    }

    /// Whether it is connected and takes orders.
    pub fn is_connected(&self, hardware: &HardwareId) -> bool {
        self.connected_since(hardware).is_some()
    }

    /// Since when it is connected and takes orders: another connection has another time.
    pub fn connected_since(&self, hardware: &HardwareId) -> Option<Instant> {
        self.lock().entries.get(hardware)?.greeted
    }

    /// Asks a connected wearable.
    pub async fn ask(&self, hardware: &HardwareId, op: Op, limit: Duration) -> Result<Outcome, RadioError> {
        let gone = || RadioError::Gone("it is not connected".to_owned());
        let orders = self
            .lock()
            .entries
            .get(hardware)
            .filter(|entry| entry.greeted.is_some())
            .map(|e| e.orders.clone());
        let orders = orders.ok_or_else(gone)?;
        let (reply, answer) = oneshot::channel();
        let asked = async {
            orders.send(Order { op, reply }).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        tokio::time::timeout(limit, asked).await.unwrap_or(Err(RadioError::Timeout("reply")))
    }

    /// Ends a link, if there is one, and lets nobody connect for a while.
    pub fn let_go(&self, hardware: &HardwareId, pause: Duration) {
        let mut inner = self.lock();
        inner.not_before.insert(hardware.clone(), Instant::now() + pause);
        if let Some(entry) = inner.entries.get(hardware) {
            entry.held.cancel.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Which wearable.
    pub fn hardware(&self) -> &HardwareId {
        &self.hardware
    }

    /// It is connected and has said who it is: orders are taken from now on.
    pub fn greeted(&self) {
        if let Some(entry) = self.links.lock().entries.get_mut(&self.hardware) {
            entry.greeted = Some(Instant::now());
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.links.lock().entries.remove(&self.hardware);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter() -> AdapterId {
        AdapterId("hci0".to_owned())
    }

    #[tokio::test]
    async fn a_wearable_is_claimed_once_and_after_it_was_let_go_only_after_the_pause() {
        let (links, root) = (Links::default(), CancellationToken::new());
        let hardware = HardwareId::kinara(1);
        let claim = links.claim(&hardware, &adapter(), &root).unwrap();
        assert!(links.claim(&hardware, &AdapterId("hci1".to_owned()), &root).is_none());
        assert_eq!(links.of(&adapter()).len(), 1);
        links.let_go(&hardware, Duration::from_millis(100));
        assert!(claim.cancel.is_cancelled());
        drop(claim);
        assert!(links.is_taken(&hardware) && links.claim(&hardware, &adapter(), &root).is_none());
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert!(links.claim(&hardware, &adapter(), &root).is_some());
    }

    #[tokio::test]
    async fn an_order_reaches_a_connected_wearable_and_fails_in_words_otherwise() {
        let (links, root) = (Links::default(), CancellationToken::new());
        let hardware = HardwareId::kinara(1);
        let limit = Duration::from_secs(1);
        let mut claim = links.claim(&hardware, &adapter(), &root).unwrap();
        assert!(matches!(links.ask(&hardware, Op::Identify, limit).await, Err(RadioError::Gone(_))));
        claim.greeted();
        let asking = tokio::spawn({
            let (links, hardware) = (links.clone(), hardware.clone());
            async move { links.ask(&hardware, Op::Identify, limit).await }
        });
        let order = claim.orders.recv().await.unwrap();
        assert_eq!(order.op, Op::Identify);
        order.reply.send(Ok(Outcome::Ok)).unwrap();
        assert_eq!(asking.await.unwrap(), Ok(Outcome::Ok));
        let limit = Duration::from_millis(20);
        assert_eq!(links.ask(&hardware, Op::Identify, limit).await, Err(RadioError::Timeout("reply")));
    }
}
