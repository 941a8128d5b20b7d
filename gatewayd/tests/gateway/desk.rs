//! What people do at the box, over the virtual radio and a real broker: pairing, binding, forgetting, and what the
//! cloud hears of it.

use std::path::Path;
use std::time::Duration;

use kinara_gatewayd::desk::{Actor, Code, ConsentGiven, Desk, DeskError, Log, Wearer, Why, Window};
use kinara_gatewayd::hardware::HardwareId;
use kinara_protocol::envelope::{self, Config, Decision, RosterEntry, Staff, decision};
use kinara_protocol::topic::{self, Leaf};
use ring::signature::{ED25519, UnparsedPublicKey};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use rusqlite::Connection;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::air::{SECRET, Wearable, air};
use super::bridge::Bridge;
use super::broker::Broker;
use super::frames::GATEWAY;
use super::line::{Daemon, all_there, until};

pub const MINUTE: Duration = Duration::from_mins(1);
const WRONG: &str = "BBBBBBBBBBBBBBBB";

pub fn nurse() -> Actor {
    Actor::Staff { name: "Meera".to_owned(), member: Some(Uuid::from_u128(5)) }
}

pub fn label(text: &str) -> Code {
    Code::Label(text.parse().unwrap())
}

/// Waits until something is near, and gives its key.
pub async fn nearby(desk: &Desk) -> String {
    let mut window = desk.window();
    let near = window.wait_for(|window| matches!(window, Window::Open { nearby, .. } if !nearby.is_empty()));
    let shown = tokio::time::timeout(Duration::from_secs(20), near).await.unwrap().unwrap().clone();
    let Window::Open { nearby, .. } = shown else { unreachable!() };
    nearby[0].key.clone()
}

pub async fn pair(desk: &Desk) -> HardwareId {
    desk.open_window(&nurse(), MINUTE).unwrap();
    let key = nearby(desk).await;
    desk.pair(&nurse(), &key, label(SECRET)).await.unwrap()
}

pub fn agreed(desk: &Desk) -> ConsentGiven {
    let text = desk.roster().borrow().consent_texts[0].clone();
    ConsentGiven {
        text_sha256: text.sha256(),
        version: text.version,
        language: text.language,
        asked_by: "Meera".to_owned(),
    }
}

pub fn named(name: &str) -> Wearer {
    Wearer::Provisional { display_name: name.to_owned() }
}

/// The kinds of decisions that the bridge has, each with a good signature.
pub fn decided(bridge: &Bridge) -> Vec<&'static str> {
    let seen = bridge.lock();
    let key = seen.states.iter().rev().find(|state| !state.signing_key.is_empty());
    let Some(key) = key.map(|state| state.signing_key.clone()) else { return Vec::new() };
    let kind = |decision: &Decision| {
        let text = decision.signed_bytes(GATEWAY.0);
        UnparsedPublicKey::new(&ED25519, &key).verify(&text, &decision.signature).unwrap();
        match decision.what.as_ref().unwrap() {
            decision::What::WearerAdded(_) => "added",
            decision::What::ConsentRecorded(_) => "consent",
            decision::What::ConsentWithdrawn(_) => "withdrawn",
            decision::What::Assigned(_) => "assigned",
            decision::What::Unassigned(_) => "unassigned",
            decision::What::Paired(_) => "paired",
            decision::What::Forgotten(_) => "forgotten",
        }
    };
    seen.decisions.iter().map(kind).collect()
}

/// The cloud publishes a configuration, retained.
async fn publish(port: u16, config: &Config) {
    let (client, mut events) = AsyncClient::new(MqttOptions::new("cloud", "127.0.0.1", port), 8);
    let topic = topic::of(GATEWAY, Leaf::Config);
    client.publish(topic, QoS::AtLeastOnce, true, envelope::seal(config)).await.unwrap();
    while !matches!(events.poll().await.unwrap(), Event::Incoming(Packet::PubAck(_))) {}
}

pub async fn start(dir: &Path, port: u16) -> Daemon {
    Daemon::start(dir, port, &[], "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wizard_brings_a_new_wearables_readings_to_the_cloud_with_who_wears_it_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xa1, 30);
    let daemon = start(dir.path(), broker.port).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(wearable.lock().links, 0, "outside the window nobody touches it");

    let hardware = pair(&daemon.desk).await;
    assert_eq!(hardware, HardwareId::kinara(0xa1));
    assert!(matches!(*daemon.desk.window().borrow(), Window::Paired { .. }));
    let user =
        daemon.desk.bind(&nurse(), &hardware, named("Asha"), agreed(&daemon.desk), Log::Drain).await.unwrap();
    let view = daemon.desk.devices()[0].clone();
    assert_eq!((view.wearer, view.bonded), (Some((user, "Asha".to_owned())), true));
    until("the bridge has its log", || all_there(&bridge, &wearable)).await;
    until("and what was decided", || decided(&bridge) == ["paired", "added", "consent", "assigned"]).await;
    let assigned = bridge.lock().decisions[3].clone();
    let Some(decision::What::Assigned(assigned)) = assigned.what else { panic!("{assigned:?}") };
    let from = assigned.from.unwrap();
    let epoch = u64::from(0xa1u32) << 32 | 1;
    assert_eq!(from.epoch, epoch);
    assert!(from.seq >= 31, "what was logged before is not hers: {}", from.seq);
    daemon.stop().await;

    // Another life of the daemon, with no broker: bond and wearer are still there.
    drop(broker);
    let daemon = start(dir.path(), 1).await;
    wearable.produce(5);
    until("it is served again", || wearable.is_drained()).await;
    assert_eq!(daemon.desk.devices()[0].wearer, Some((user, "Asha".to_owned())));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_wrong_codes_close_the_window_and_each_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let wearable = Wearable::start(&air(dir.path()), 0xa2, 1);
    let daemon = start(dir.path(), 1).await;
    let desk = &daemon.desk;
    let not_open = desk.pair(&nurse(), "any", label(SECRET)).await.unwrap_err();
    assert_eq!(not_open.code(), "not_open");
    desk.open_window(&nurse(), MINUTE).unwrap();
    assert_eq!(desk.pair(&nurse(), "any", label(SECRET)).await.unwrap_err().code(), "not_near");
    for _ in 0..3 {
        let key = nearby(desk).await;
        assert_eq!(desk.pair(&nurse(), &key, Code::JustWorks).await.unwrap_err().code(), "other_code");
        let error = desk.pair(&nurse(), &key, label(WRONG)).await.unwrap_err();
        assert!(matches!(error, DeskError::Pairing(Why::WrongCode)), "{error}");
        assert!(error.to_string().contains("Compare the 16 characters"), "{error}");
    }
    assert_eq!(*desk.window().borrow(), Window::Closed { why: Some(Why::TooManyWrongCodes) });
    assert_eq!(desk.pair(&nurse(), "any", label(SECRET)).await.unwrap_err().code(), "not_open");
    assert!(wearable.lock().links >= 3 && desk.devices().is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_claims_to_be_one_that_is_worn_is_not_paired_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let worn = Wearable::start(&air(dir.path()), 0xb1, 3);
    let daemon = start(dir.path(), 1).await;
    let desk = &daemon.desk;
    let hardware = pair(desk).await;
    let user = desk.bind(&nurse(), &hardware, named("Asha"), agreed(desk), Log::Drain).await.unwrap();
    until("it is drained", || worn.is_drained()).await;
    let impostor = Wearable::start(&air(dir.path()), 0xb2, 3);
    impostor.lock().claims = 0xb1;
    desk.open_window(&nurse(), MINUTE).unwrap();
    let key = nearby(desk).await;
    let error = desk.pair(&nurse(), &key, label(SECRET)).await.unwrap_err();
    assert!(matches!(error, DeskError::Pairing(Why::Replaces)), "{error}");
    let view = desk.devices()[0].clone();
    assert_eq!((view.wearer, view.bonded, view.stale), (Some((user, "Asha".to_owned())), true, false));
    worn.produce(5);
    until("the one that is worn is served", || worn.is_drained()).await;
    assert!(!impostor.is_drained(), "nothing of the other one was taken");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pairing_number_that_was_used_once_gets_no_second_passkey() {
    let dir = tempfile::tempdir().unwrap();
    let wearable = Wearable::start(&air(dir.path()), 0xb3, 1);
    wearable.lock().repeats_nonce = true;
    let daemon = start(dir.path(), 1).await;
    let desk = &daemon.desk;
    desk.open_window(&nurse(), MINUTE).unwrap();
    let key = nearby(desk).await;
    let error = desk.pair(&nurse(), &key, label(WRONG)).await.unwrap_err();
    assert!(matches!(error, DeskError::Pairing(Why::WrongCode)), "{error}");
    let key = nearby(desk).await;
    let error = desk.pair(&nurse(), &key, label(WRONG)).await.unwrap_err();
    assert!(matches!(error, DeskError::Pairing(Why::NonceSpent)), "{error}");
    wearable.lock().nonce += 1;
    let key = nearby(desk).await;
    desk.pair(&nurse(), &key, label(SECRET)).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_closes_while_a_wearable_is_asked_who_it_is_leaves_no_bond() {
    let dir = tempfile::tempdir().unwrap();
    let wearable = Wearable::start(&air(dir.path()), 0xae, 1);
    wearable.lock().hangs = true;
    let daemon = start(dir.path(), 1).await;
    let desk = daemon.desk.clone();
    desk.open_window(&nurse(), MINUTE).unwrap();
    let key = nearby(&desk).await;
    let pairs = desk.clone();
    let pairing = tokio::spawn(async move { pairs.pair(&nurse(), &key, label(SECRET)).await });
    until("it has bonded, and is asked", || wearable.lock().links >= 2).await;
    desk.close_window(&nurse());
    wearable.lock().hangs = false;
    let error = pairing.await.unwrap().unwrap_err();
    assert!(matches!(error, DeskError::Pairing(Why::WindowClosed)), "{error}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(desk.devices().is_empty(), "nobody is known");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wearable_is_not_paired_while_its_bond_could_not_be_kept() {
    let dir = tempfile::tempdir().unwrap();
    let wearable = Wearable::start(&air(dir.path()), 0xa8, 1);
    let daemon = start(dir.path(), 1).await;
    // Stands for a full disk: the place of the new file is taken.
    let taken = dir.path().join("data/devices.new");
    std::fs::create_dir_all(&taken).unwrap();
    daemon.desk.open_window(&nurse(), MINUTE).unwrap();
    let key = nearby(&daemon.desk).await;
    let refused = daemon.desk.pair(&nurse(), &key, label(SECRET)).await.unwrap_err();
    assert!(matches!(refused, DeskError::Pairing(Why::NotKept)), "{refused}");
    assert!(wearable.has_no_bonds(), "nobody could ever link to it again");
    std::fs::remove_dir(&taken).unwrap();
    assert_eq!(pair(&daemon.desk).await, HardwareId::kinara(0xa8));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_wearable_is_left_alone_by_both_sides_until_somebody_pairs_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xa3, 10);
    let daemon = start(dir.path(), broker.port).await;
    let desk = &daemon.desk;
    let hardware = pair(desk).await;
    desk.bind(&nurse(), &hardware, named("Asha"), agreed(desk), Log::Drain).await.unwrap();
    until("its log is drained", || wearable.is_drained()).await;
    desk.forget(&nurse(), &hardware).await.unwrap();
    assert_eq!(desk.forget(&nurse(), &hardware).await.unwrap_err().code(), "unknown_device");
    assert!(wearable.has_no_bonds() && desk.devices().is_empty());
    let links = wearable.lock().links;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(wearable.lock().links, links, "nobody connects to it");
    until("the cloud hears of it", || decided(&bridge).ends_with(&["unassigned", "forgotten"])).await;
    assert_eq!(pair(desk).await, hardware);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_wearer_waits_for_the_log_of_the_one_before_or_somebody_accepts_its_loss() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xa4, 10);
    let daemon = start(dir.path(), broker.port).await;
    let desk = &daemon.desk;
    let hardware = pair(desk).await;
    let asha = desk.bind(&nurse(), &hardware, named("Asha"), agreed(desk), Log::Drain).await.unwrap();
    until("her log is drained", || wearable.is_drained()).await;

    wearable.lock().holds_back = true;
    wearable.produce(20);
    let error = desk.bind(&nurse(), &hardware, named("Bela"), agreed(desk), Log::Drain).await.unwrap_err();
    assert!(matches!(error, DeskError::NotDrained { frames: 20.. }), "{error}");
    assert_eq!(desk.devices()[0].wearer.as_ref().unwrap().0, asha);

    let bela = desk.bind(&nurse(), &hardware, named("Bela"), agreed(desk), Log::Format).await.unwrap();
    assert_eq!(desk.devices()[0].wearer.as_ref().unwrap().0, bela);
    until("what was lost has a gap", || {
        let seen = bridge.lock();
        seen.gaps.iter().any(|gap| gap.hardware_id == hardware.as_str() && gap.reason == "overflow")
    })
    .await;
    until("the cloud hears of both", || {
        decided(&bridge).ends_with(&["added", "consent", "unassigned", "assigned"])
    })
    .await;
    let last = bridge.lock().decisions.last().unwrap().clone();
    let Some(decision::What::Assigned(assigned)) = last.what else { panic!("{last:?}") };
    let from = assigned.from.unwrap();
    assert_eq!((from.epoch >> 32, from.seq), (0xa5, 0), "the new log is all hers");
    daemon.stop().await;
}

/// The first frame of the last assignment that the cloud heard of.
fn assigned_from(bridge: &Bridge) -> (u64, u32) {
    let last = bridge.lock().decisions.last().unwrap().clone();
    let Some(decision::What::Assigned(assigned)) = last.what else { panic!("{last:?}") };
    let from = assigned.from.unwrap();
    (from.epoch, from.seq)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_closes_just_after_the_boundary_is_the_new_wearers() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xac, 10);
    let daemon = start(dir.path(), broker.port).await;
    let desk = &daemon.desk;
    let hardware = pair(desk).await;
    desk.bind(&nurse(), &hardware, named("Asha"), agreed(desk), Log::Drain).await.unwrap();
    until("her log is drained", || wearable.is_drained()).await;
    wearable.lock().closes_at_once = true;
    let next = wearable.log().len() as u32;
    desk.bind(&nurse(), &hardware, named("Bela"), agreed(desk), Log::Drain).await.unwrap();
    until("the cloud hears of it", || decided(&bridge).ends_with(&["unassigned", "assigned"])).await;
    assert_eq!(assigned_from(&bridge).1, next);
    assert!(wearable.log().len() as u32 > next, "a frame did close");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wearable_of_before_the_one_question_is_handed_over_with_two() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xad, 10);
    wearable.lock().is_old = true;
    let daemon = start(dir.path(), broker.port).await;
    let desk = &daemon.desk;
    let hardware = pair(desk).await;
    desk.bind(&nurse(), &hardware, named("Asha"), agreed(desk), Log::Drain).await.unwrap();
    until("her log is drained", || wearable.is_drained()).await;
    let next = wearable.log().len() as u32;
    desk.bind(&nurse(), &hardware, named("Bela"), agreed(desk), Log::Drain).await.unwrap();
    until("the cloud hears of it", || decided(&bridge).ends_with(&["unassigned", "assigned"])).await;
    assert_eq!(assigned_from(&bridge).1, next);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_outlives_a_wearable_that_goes_and_a_box_that_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xa6, 10);
    let daemon = start(dir.path(), broker.port).await;
    let hardware = pair(&daemon.desk).await;
    let asha = daemon.desk.bind(&nurse(), &hardware, named("Asha"), agreed(&daemon.desk), Log::Drain).await;
    let asha = asha.unwrap();
    until("her log is drained", || wearable.is_drained()).await;
    wearable.lock().holds_back = true;
    wearable.lock().goes_at_format = true;
    wearable.produce(20);
    let (desk, of, consent) = (daemon.desk.clone(), hardware.clone(), agreed(&daemon.desk));
    let binding =
        tokio::spawn(async move { desk.bind(&nurse(), &of, named("Bela"), consent, Log::Format).await });
    until("it was told and has gone", || wearable.lock().hangs).await;
    until("her time has ended before it", || decided(&bridge).ends_with(&["added", "consent", "unassigned"]))
        .await;
    let wearer = daemon.desk.devices()[0].wearer.clone().unwrap();
    assert!(wearer.0 != asha && wearer.1 == "Bela", "{wearer:?}");
    binding.abort();
    daemon.stop().await;

    wearable.lock().hangs = false;
    wearable.boot();
    let daemon = start(dir.path(), broker.port).await;
    until("the new log is given", || decided(&bridge).ends_with(&["unassigned", "assigned"])).await;
    let decisions = bridge.lock().decisions.clone();
    let [.., before, last] = decisions.as_slice() else { panic!("{decisions:?}") };
    let Some(decision::What::Unassigned(unassigned)) = before.what.clone() else { panic!("{before:?}") };
    let Some(decision::What::Assigned(assigned)) = last.what.clone() else { panic!("{last:?}") };
    let (to, from) = (unassigned.to.unwrap(), assigned.from.unwrap());
    assert_eq!(to.epoch >> 32, 0xa6, "her time ends in the old log");
    assert_eq!(
        (from.epoch, from.seq),
        (0xa7 << 32, 0),
        "the new log is all the new wearer's, from its first boot"
    );
    assert_eq!(daemon.desk.devices()[0].wearer, Some(wearer));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_wearers_of_one_name_are_told_apart_wherever_a_device_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let [one, other] = [1u64, 2].map(|number| RosterEntry {
        hardware_id: HardwareId::kinara(number).to_string(),
        user_id: Uuid::from_u128(number.into()).as_bytes().to_vec(),
        display_name: "Anjali Verma".to_owned(),
        external_id: format!("V{number}"),
        ..RosterEntry::default()
    });
    publish(broker.port, &Config { config_version: 1, roster: vec![one, other], ..Config::default() }).await;
    let daemon = Daemon::start(dir.path(), broker.port, &[1, 2], "").await;
    let called = || -> Vec<String> {
        daemon.desk.devices().into_iter().filter_map(|device| Some(device.wearer?.1)).collect()
    };
    until("the roster is here", || called().len() == 2).await;
    assert_eq!(called(), ["Anjali Verma (V1)", "Anjali Verma (V2)"]);
    daemon.stop().await;
}

/// A wearable that has begun its new log and is linked: what is decided now waits until the database is let go of.
async fn new_log_that_is_being_given(dir: &Path, wearable: &Wearable, desk: &Desk) -> Connection {
    let hardware = pair(desk).await;
    desk.bind(&nurse(), &hardware, named("Asha"), agreed(desk), Log::Drain).await.unwrap();
    until("her log is drained", || wearable.is_drained()).await;
    wearable.lock().goes_at_format = true;
    let (bound, consent) = (desk.clone(), agreed(desk));
    let binding =
        tokio::spawn(
            async move { bound.bind(&nurse(), &hardware, named("Bela"), consent, Log::Format).await },
        );
    until("it was told and has gone", || wearable.lock().hangs).await;
    binding.abort();
    let links = wearable.lock().links;
    wearable.lock().hangs = false;
    until("it is back", || wearable.lock().links > links && wearable.is_drained()).await;
    let db = Connection::open(dir.join("data/store.db")).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    // By now everybody who looks after hand-overs has looked.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    db
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_taken_back_while_it_is_given_a_new_log_is_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xac, 5);
    let daemon = start(dir.path(), broker.port).await;
    let db = new_log_that_is_being_given(dir.path(), &wearable, &daemon.desk).await;
    let desk = daemon.desk.clone();
    let unbinding = tokio::spawn(async move { desk.unbind(&nurse(), &HardwareId::kinara(0xac)).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    db.execute_batch("ROLLBACK").unwrap();
    unbinding.await.unwrap().unwrap();
    until("the cloud hears of it", || decided(&bridge).ends_with(&["assigned", "unassigned"])).await;
    assert_eq!(daemon.desk.devices()[0].wearer, None);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_log_is_given_once_whoever_looks_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xae, 5);
    let daemon = start(dir.path(), broker.port).await;
    let stop = CancellationToken::new();
    let others: Vec<_> = (0..3).map(|_| tokio::spawn(daemon.desk.clone().run(stop.clone()))).collect();
    let db = new_log_that_is_being_given(dir.path(), &wearable, &daemon.desk).await;
    db.execute_batch("ROLLBACK").unwrap();
    until("the new log is given", || decided(&bridge).ends_with(&["unassigned", "assigned"])).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let given = decided(&bridge).into_iter().filter(|kind| *kind == "assigned").count();
    assert_eq!(given, 2, "once to each of the two wearers: {:?}", decided(&bridge));
    stop.cancel();
    for other in others {
        other.await.unwrap();
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_epoch_that_goes_with_a_formatted_log_has_its_gap() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xa8, 5);
    let daemon = start(dir.path(), broker.port).await;
    let desk = &daemon.desk;
    let hardware = pair(desk).await;
    desk.bind(&nurse(), &hardware, named("Asha"), agreed(desk), Log::Drain).await.unwrap();
    until("her log is drained", || wearable.is_drained()).await;

    // Four resets with nobody near: the frames of five epochs lie in its log.
    wearable.lock().holds_back = true;
    for frames in [3, 1, 7, 2] {
        wearable.produce(frames);
        wearable.boot();
    }
    wearable.produce(4);
    let links = wearable.lock().links;
    wearable.lets_go();
    until("it is linked again", || wearable.lock().links > links).await;
    let held: std::collections::BTreeSet<(u64, u32)> = wearable.held();
    assert!(held.iter().map(|(epoch, _)| epoch).collect::<std::collections::BTreeSet<_>>().len() == 5);
    desk.bind(&nurse(), &hardware, named("Bela"), agreed(desk), Log::Format).await.unwrap();
    until("each frame that went has a gap", || {
        let seen = bridge.lock();
        let gaps = seen.gaps.iter().filter(|gap| gap.hardware_id == hardware.as_str());
        let told: std::collections::BTreeSet<(u64, u32)> = gaps
            .flat_map(|gap| gap.seq_ranges.chunks(2).map(|range| (gap.epoch, range[0], range[1])))
            .flat_map(|(epoch, from, count)| (from..from + count).map(move |seq| (epoch, seq)))
            .collect();
        held.is_subset(&told)
    })
    .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clouds_roster_is_there_without_the_cloud_and_what_it_revokes_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xa6, 5);
    let asha = Uuid::from_u128(7);
    let mut config = Config {
        version: 1,
        config_version: 3,
        clinic_name: "North".to_owned(),
        roster: vec![RosterEntry {
            user_id: asha.as_bytes().to_vec(),
            display_name: "Asha".to_owned(),
            ..RosterEntry::default()
        }],
        staff: vec![Staff {
            member_id: vec![5; 16],
            name: "Meera".to_owned(),
            pin_verifier: "$argon2id$…".to_owned(),
        }],
        ..Config::default()
    };
    publish(broker.port, &config).await;
    let daemon = start(dir.path(), broker.port).await;
    until("the roster is there", || daemon.desk.roster().borrow().version == 3).await;
    daemon.stop().await;

    broker.kill();
    let daemon = start(dir.path(), broker.port).await;
    let roster = daemon.desk.roster().borrow().clone();
    assert_eq!((roster.clinic_name.as_str(), roster.staff.len()), ("North", 1));
    let hardware = pair(&daemon.desk).await;
    let given = agreed(&daemon.desk);
    let nobody = Wearer::Known(Uuid::from_u128(8));
    let error = daemon.desk.bind(&nurse(), &hardware, nobody, given.clone(), Log::Drain).await.unwrap_err();
    assert_eq!(error.code(), "unknown_wearer");
    let other_text = ConsentGiven { text_sha256: [0; 32], ..given.clone() };
    let error = daemon.desk.bind(&nurse(), &hardware, Wearer::Known(asha), other_text, Log::Drain).await;
    assert_eq!(error.unwrap_err().code(), "other_consent_text");
    daemon.desk.bind(&nurse(), &hardware, Wearer::Known(asha), given, Log::Drain).await.unwrap();

    broker.start_again();
    until("what was decided offline goes up", || decided(&bridge) == ["paired", "consent", "assigned"]).await;
    let adapter =
        bridge.lock().states.iter().rev().find_map(|state| state.adapters.first().cloned()).unwrap();
    config.config_version = 4;
    config.revocations =
        vec![envelope::Revocation { hardware_id: hardware.to_string(), bond: adapter.address }];
    publish(broker.port, &config).await;
    until("this box has been taken off", || wearable.has_no_bonds() && daemon.desk.devices().is_empty())
        .await;
    until("and says so", || decided(&bridge).ends_with(&["unassigned", "forgotten"])).await;
    daemon.stop().await;
}
