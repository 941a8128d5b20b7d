//! How often wearables measure, as people set it at the box.

use std::time::Duration;

use kinara_gatewayd::desk::Log;
use kinara_gatewayd::status::Measures;
use kinara_protocol::channel::{EDA, HEART_RATE, RR_INTERVAL, SPO2};
use kinara_protocol::envelope::{Config, RosterEntry};
use kinara_protocol::frame::{Body, DeviceEventKind, FrameRef};
use kinara_protocol::intervals::Intervals;

use super::air::{Wearable, air};
use super::bridge::Bridge;
use super::broker::Broker;
use super::desk::{agreed, named, nurse, pair};
use super::line::{Daemon, until};

/// What the bridge was told of intervals, and how far apart the samples of the newest frame of samples are, seconds.
fn heard(bridge: &Bridge) -> (Vec<(u16, u32)>, Option<u64>) {
    let (mut said, mut apart) = (Vec::new(), None);
    for bytes in bridge.lock().frames.values() {
        match FrameRef::parse(bytes).unwrap().body().unwrap() {
            Body::DeviceEvents(events) => said.extend(events.iter().filter_map(|event| match event.kind {
                DeviceEventKind::Interval { channel, every_ms } => Some((channel.0, every_ms)),
                _ => None,
            })),
            Body::Samples(samples) => {
                let block = samples.blocks().next().unwrap();
                let ticks: Vec<u64> = block.samples().take(2).map(|sample| sample.ticks.0).collect();
                apart = Some((ticks[1] - ticks[0]) / 1_000);
            }
            _ => {}
        }
    }
    (said, apart)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interval_that_is_set_at_the_box_reaches_the_wearable_at_once_and_again_after_a_reset() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xc1, 5);
    let daemon = Daemon::start(dir.path(), broker.port, &[], "").await;
    let desk = &daemon.desk;
    let hardware = pair(desk).await;
    until("its log is fetched", || wearable.is_drained()).await;
    assert_eq!(heard(&bridge).0, [], "nobody has set anything");

    let measures = desk.set_intervals(&nurse(), &hardware, &[(HEART_RATE, 5)]).await.unwrap();
    let Measures::SoSince(since_us) = measures else { panic!("{measures:?}") };
    assert!(since_us > 0);
    wearable.produce(3);
    until("frames at the new interval", || heard(&bridge) == (vec![(1, 5_000)], Some(5))).await;

    // A reset brings the reference plan back; the box does not leave it at that.
    wearable.boot();
    assert_eq!(wearable.lock().intervals, Intervals::REFERENCE);
    wearable.lets_go();
    until("it is told again", || wearable.lock().intervals.of(HEART_RATE) == Some(5)).await;
    daemon.stop().await;

    // So does a box that starts again, and what is set while the wearable is away waits for it.
    wearable.lock().hangs = true;
    wearable.lock().intervals = Intervals::REFERENCE;
    let daemon = Daemon::start(dir.path(), broker.port, &[], "").await;
    let measures = daemon.desk.set_intervals(&nurse(), &hardware, &[(EDA, 10)]).await.unwrap();
    assert_eq!(measures, Measures::Waits);
    wearable.lock().hangs = false;
    until("it is told of both", || {
        let wearable = wearable.lock();
        wearable.intervals.of(HEART_RATE) == Some(5) && wearable.intervals.of(EDA) == Some(10)
    })
    .await;
    until("and that is known", || {
        matches!(daemon.desk.intervals(&hardware).unwrap().1, Measures::SoSince(_))
    })
    .await;

    daemon.desk.set_intervals(&nurse(), &hardware, &[(HEART_RATE, 0), (EDA, 0)]).await.unwrap();
    assert_eq!(wearable.lock().intervals, Intervals::REFERENCE);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_set_is_refused_in_words_that_say_what_can_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let wearable = Wearable::start(&air(dir.path()), 0xc2, 1);
    let daemon = Daemon::start(dir.path(), 1, &[], "").await;
    let desk = &daemon.desk;
    let hardware = pair(desk).await;
    let beats = desk.set_intervals(&nurse(), &hardware, &[(EDA, 10), (RR_INTERVAL, 10)]).await.unwrap_err();
    assert_eq!(beats.code(), "bad_interval");
    assert!(beats.to_string().contains("rr_interval comes cannot be changed"), "{beats}");
    assert!(beats.to_string().contains("spo2 (10 to 300 s)"), "{beats}");
    let short = desk.set_intervals(&nurse(), &hardware, &[(SPO2, 1)]).await.unwrap_err();
    assert_eq!(short.to_string(), "The interval of spo2 is 10 to 300 seconds.");
    assert!(desk.intervals(&hardware).unwrap().0.iter().all(|setting| setting.seconds.is_none()));

    // Kept all the same for the day of its update.
    wearable.lock().is_old = true;
    until("it is connected", || desk.devices()[0].link.connected()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let old = desk.set_intervals(&nurse(), &hardware, &[(EDA, 10)]).await.unwrap_err();
    assert_eq!(old.code(), "old_firmware");
    let (settings, measures) = desk.intervals(&hardware).unwrap();
    assert!(settings.iter().any(|setting| setting.seconds == Some(10)));
    assert!(matches!(measures, Measures::Not(_)), "{measures:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_wearers_time_begins_with_how_her_wearable_measures() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xc3, 1);
    let daemon = Daemon::start(dir.path(), broker.port, &[], "").await;
    let desk = &daemon.desk;
    let hardware = pair(desk).await;
    until("it is connected", || desk.devices()[0].link.connected()).await;
    desk.set_intervals(&nurse(), &hardware, &[(HEART_RATE, 5)]).await.unwrap();
    until("it measures so", || wearable.lock().intervals.of(HEART_RATE) == Some(5)).await;
    until("the cloud hears of it", || !heard(&bridge).0.is_empty()).await;
    let before = heard(&bridge).0.len();
    desk.bind(&nurse(), &hardware, named("Asha"), agreed(desk), Log::Drain).await.unwrap();
    until("it is told in her time too", || heard(&bridge).0.len() > before).await;
    assert!(heard(&bridge).0.iter().all(|said| *said == (1, 5_000)));

    // And who is given it in the cloud.
    desk.unbind(&nurse(), &hardware).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = heard(&bridge).0.len();
    let bela = RosterEntry {
        user_id: vec![7; 16],
        display_name: "Bela".to_owned(),
        hardware_id: hardware.to_string(),
        ..RosterEntry::default()
    };
    let config = Config { version: 1, config_version: 3, roster: vec![bela], ..Config::default() };
    desk.take_config(&config).await.unwrap();
    until("it is told in her time too", || heard(&bridge).0.len() > before).await;
    daemon.stop().await;
}
