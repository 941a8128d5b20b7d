//! Bonds that do not serve any more: who takes their place, and who does not.

use std::path::Path;
use std::time::Duration;

use kinara_gatewayd::desk::{Desk, DeskError, Log, Why};
use kinara_gatewayd::hardware::HardwareId;
use serde_json::Value;

use super::air::{SECRET, Wearable, air};
use super::desk::{MINUTE, agreed, label, named, nearby, nurse, pair};
use super::line::{Daemon, until};

/// A worn wearable, drained.
async fn worn(dir: &Path, daemon: &Daemon, id: u64) -> (Wearable, HardwareId) {
    let worn = Wearable::start(&air(dir), id, 3);
    let hardware = pair(&daemon.desk).await;
    daemon.desk.bind(&nurse(), &hardware, named("Asha"), agreed(&daemon.desk), Log::Drain).await.unwrap();
    until("it is drained", || worn.is_drained()).await;
    (worn, hardware)
}

/// Somebody else's wearable says that it is this one: it is refused until a person takes that one back.
async fn refuses_an_impostor(dir: &Path, desk: &Desk, hardware: &HardwareId) {
    let id = hardware.factory_id().unwrap();
    let impostor = Wearable::start(&air(dir), id + 1, 3);
    impostor.lock().claims = id;
    desk.open_window(&nurse(), MINUTE).unwrap();
    let key = nearby(desk).await;
    let error = desk.pair(&nurse(), &key, label(SECRET)).await.unwrap_err();
    assert!(matches!(error, DeskError::Pairing(Why::Replaces)), "{error}");
    assert!(error.to_string().contains("take that one back from its wearer first"), "{error}");
    assert!(!impostor.is_drained(), "nothing of it is taken");
    desk.unbind(&nurse(), hardware).await.unwrap();
    desk.open_window(&nurse(), MINUTE).unwrap();
    let key = nearby(desk).await;
    assert_eq!(desk.pair(&nurse(), &key, label(SECRET)).await.unwrap(), *hardware, "a person decided so");
}

fn is_stale(desk: &Desk) -> bool {
    desk.devices().first().is_some_and(|device| device.stale)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worn_device_whose_bond_is_stale_is_guarded_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), 1, &[], "").await;
    let (worn, hardware) = worn(dir.path(), &daemon, 0xc1).await;
    worn.forgets();
    worn.lock().window_open = false;
    worn.lets_go();
    until("its bond is stale", || is_stale(&daemon.desk)).await;
    refuses_an_impostor(dir.path(), &daemon.desk, &hardware).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worn_device_whose_bond_is_gone_is_guarded_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), 1, &[], "").await;
    let (worn, hardware) = worn(dir.path(), &daemon, 0xc5).await;
    daemon.stop().await;
    worn.lock().window_open = false;
    // As when it proved to be none.
    let file = dir.path().join("data/devices.json");
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    kept["devices"][hardware.as_str()]["bond"] = Value::Null;
    std::fs::write(&file, kept.to_string()).unwrap();
    let daemon = Daemon::start(dir.path(), 1, &[], "").await;
    assert_eq!(daemon.desk.devices().first().map(|device| device.bonded), Some(false));
    refuses_an_impostor(dir.path(), &daemon.desk, &hardware).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bond_outlives_a_window_that_is_opened_for_another_box_at_the_edge_of_range() {
    let dir = tempfile::tempdir().unwrap();
    let wearable = Wearable::start(&air(dir.path()), 0xc9, 5);
    let daemon = Daemon::start(dir.path(), 1, &[0xc9], "").await;
    until("it is drained", || wearable.is_drained()).await;
    let links = wearable.lock().links;
    {
        let mut state = wearable.lock();
        (state.is_far, state.pairs_with_nobody) = (true, true);
    }
    wearable.lets_go();
    until("it does not seem to know us", || is_stale(&daemon.desk)).await;
    until("a pairing is tried", || wearable.lock().links > links).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(daemon.desk.devices()[0].bonded, "its successor does not stand");
    daemon.stop().await;
    {
        let mut state = wearable.lock();
        (state.is_far, state.window_open) = (false, false);
    }
    wearable.produce(5);
    let daemon = Daemon::start(dir.path(), 1, &[0xc9], "").await;
    until("it is served by the bond it always had", || wearable.is_drained() && !is_stale(&daemon.desk))
        .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wearable_that_was_reset_is_paired_again_in_its_window_and_the_new_bond_takes_the_old_ones_place() {
    let dir = tempfile::tempdir().unwrap();
    let wearable = Wearable::start(&air(dir.path()), 0xca, 5);
    let daemon = Daemon::start(dir.path(), 1, &[0xca], "").await;
    until("it is drained", || wearable.is_drained()).await;
    wearable.forgets();
    wearable.lets_go();
    wearable.produce(5);
    until("it is served again", || wearable.is_drained()).await;
    until("by a good bond", || !is_stale(&daemon.desk)).await;
    assert!(!wearable.has_no_bonds());
    daemon.stop().await;
}
