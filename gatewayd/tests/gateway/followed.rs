//! What the cloud says of what was decided at the box, and what the box says in words that the cloud takes.

use std::time::Duration;

use kinara_gatewayd::desk::{ConsentGiven, Log};
use kinara_protocol::envelope::{Config, RosterEntry, decision};

use super::air::{Wearable, air};
use super::bridge::Bridge;
use super::broker::Broker;
use super::desk::{agreed, decided, named, nurse, pair, start};
use super::line::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asked_for_a_consent_is_a_name_that_the_cloud_takes_whichever_door_it_comes_by() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let _wearable = Wearable::start(&air(dir.path()), 0xa7, 5);
    let daemon = start(dir.path(), broker.port).await;
    let hardware = pair(&daemon.desk).await;
    let bind = async |asked_by: &str| {
        let given = ConsentGiven { asked_by: asked_by.to_owned(), ..agreed(&daemon.desk) };
        daemon.desk.bind(&nurse(), &hardware, named("Asha"), given, Log::Drain).await
    };
    for wrong in ["m".repeat(256).as_str(), "\u{200B}", "", "Me\u{1b}era", "Me\nera"] {
        assert_eq!(bind(wrong).await.unwrap_err().code(), "bad_name", "{wrong:?}");
    }
    assert_eq!(daemon.desk.devices()[0].wearer, None);
    bind(" Meera \u{a0} K ").await.unwrap();
    until("it goes up", || decided(&bridge) == ["paired", "added", "consent", "assigned"]).await;
    let consent = bridge.lock().decisions[2].clone();
    let Some(decision::What::ConsentRecorded(consent)) = consent.what else { panic!("{consent:?}") };
    assert_eq!(consent.asked_by, "Meera K");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_wearer_in_the_cloud_is_followed_also_when_it_could_not_be_kept_at_first() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let _wearable = Wearable::start(&air(dir.path()), 0xa8, 5);
    let daemon = start(dir.path(), broker.port).await;
    let desk = &daemon.desk;
    let hardware = pair(desk).await;
    desk.bind(&nurse(), &hardware, named("Asha"), agreed(desk), Log::Drain).await.unwrap();
    until("it goes up", || decided(&bridge) == ["paired", "added", "consent", "assigned"]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut config = Config { version: 1, ..Config::default() };
    let wearer = || desk.devices()[0].wearer.clone().map(|wearer| wearer.1);
    // What cannot be written: who wears what here, what was decided here, the configuration itself.
    let files = ["devices.new", "people.new", "config.new"];
    for (version, (name, file)) in ["Bela", "Chand", "Devi"].into_iter().zip(files).enumerate() {
        config.config_version = 3 + version as u64;
        config.roster = vec![RosterEntry {
            user_id: vec![7 + version as u8; 16],
            display_name: name.to_owned(),
            hardware_id: hardware.to_string(),
            ..RosterEntry::default()
        }];
        if file == "people.new" {
            // So that there is something to forget.
            let added = desk.roster().borrow().wearers.iter().find(|wearer| wearer.provisional).cloned();
            config.roster.push(RosterEntry {
                user_id: added.unwrap().user.as_bytes().to_vec(),
                display_name: "Asha".to_owned(),
                ..RosterEntry::default()
            });
        }
        // A folder in its way stands for a disk that takes nothing.
        let blocked = dir.path().join("data").join(file);
        std::fs::create_dir(&blocked).unwrap();
        desk.take_config(&config).await.unwrap_err();
        until("people are told", || daemon.board.now().alerts.contains_key("config")).await;
        std::fs::remove_dir(&blocked).unwrap();
        until(name, || wearer().as_deref() == Some(name)).await;
        until("all is well", || !daemon.board.now().alerts.contains_key("config")).await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_was_made_before_the_cloud_heard_of_a_decision_never_undoes_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let _wearable = Wearable::start(&air(dir.path()), 0xa9, 5);
    let daemon = start(dir.path(), broker.port).await;
    let desk = &daemon.desk;
    let hardware = pair(desk).await;
    until("it goes up", || decided(&bridge) == ["paired"]).await;
    broker.kill();
    desk.bind(&nurse(), &hardware, named("Asha"), agreed(desk), Log::Drain).await.unwrap();
    let bela = RosterEntry {
        user_id: vec![7; 16],
        display_name: "Bela".to_owned(),
        hardware_id: hardware.to_string(),
        ..RosterEntry::default()
    };
    desk.take_config(&Config { version: 1, config_version: 3, roster: vec![bela], ..Config::default() })
        .await
        .unwrap();
    broker.start_again();
    until("it goes up", || decided(&bridge) == ["paired", "added", "consent", "assigned"]).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(desk.devices()[0].wearer.clone().unwrap().1, "Asha");
    daemon.stop().await;
}
