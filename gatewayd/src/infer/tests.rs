use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use kinara_inference::detect::HOT_FLASH;
use kinara_protocol::channel::{self, ChannelId};

use super::*;
use crate::pipeline::{ChannelSamples, Fit, FrameSink};
use crate::status::Snapshot;

const EPOCH: u64 = 0x0000_00aa_0000_0001;

/// One wearable's frames of one second each: rest, and a hot flash after the published course at each of `flashes`.
fn frames(seconds: u64, flashes: &[u64]) -> Vec<StoredFrame> {
    let smooth = |t: f64, onset: f64, length: f64| {
        let x = ((t - onset) / length).clamp(0.0, 1.0);
        x * x * (3.0 - 2.0 * x)
    };
    let course = |t: f64, delay: f64, length: f64| -> f64 {
        // Up, then slowly down again.
        let one = |o: &u64| {
            let onset = *o as f64 + delay;
            smooth(t, onset, length) * (-((t - onset - length).max(0.0)) / 180.0).exp()
        };
        flashes.iter().map(one).sum()
    };
    let eda = |t: f64| 3.0 + 0.05 * (t / 7.0).sin() + 4.5 * course(t, 0.0, 45.0);
    let rate = |t: f64| 66.0 + 1.5 * (t / 11.0).sin() + 10.0 * course(t, 0.0, 40.0);
    let warmth = |t: f64| 33.2 + 0.8 * course(t, 5.0, 80.0);
    let mut next_beat = 0.0f64;
    (0..seconds)
        .map(|second| {
            let at = second as f64;
            let series = |channel: ChannelId, values: Vec<(u64, f64)>| {
                let step = channel::by_id(channel).unwrap().step;
                ChannelSamples {
                    channel: channel.0,
                    components: 1,
                    ticks: values.iter().map(|v| v.0).collect(),
                    values: values.iter().map(|v| (v.1 / step).round() as i32).collect(),
                }
            };
            let mut beats = Vec::new();
            while next_beat < at + 1.0 {
                let interval = 60.0 / rate(next_beat) + 0.02 * (next_beat * 1.6).sin();
                beats.push(((next_beat * 1000.0) as u64, interval * 1000.0));
                next_beat += interval;
            }
            let quarter = |q: u64| (second * 1000 + q * 250, eda(at + q as f64 / 4.0));
            let mut samples = vec![
                series(channel::EDA, (0..4).map(quarter).collect()),
                series(channel::HEART_RATE, vec![(second * 1000, rate(at))]),
                series(channel::RR_INTERVAL, beats),
                series(channel::SKIN_TEMPERATURE, vec![(second * 1000, warmth(at))]),
            ];
            if second % 30 == 29 {
                samples.push(series(channel::ACTIVITY_COUNTS, vec![(second * 1000, 12.0)]));
            }
            StoredFrame {
                hardware: HardwareId::kinara(7),
                epoch: EPOCH,
                seq: second as u32,
                ticks: second * 1000,
                samples,
                worn: None,
                fit: Some(Fit {
                    ref_ticks: 0,
                    ref_utc_us: 1_700_000_000_000_000,
                    rate_ppb: 0,
                    uncertainty_us: 5_000,
                    growth_ppb: 0,
                    time_uncertain: false,
                }),
            }
        })
        .collect()
}

type Key = (String, String, u64, u64);

/// An outbox in memory; it refuses the first `refuse` attempts.
#[derive(Default, Clone)]
struct Tray {
    events: Arc<Mutex<BTreeMap<Key, NewEvent>>>,
    doubles: Arc<AtomicU64>,
    refuse: Arc<AtomicU64>,
}

impl Outbox for Tray {
    async fn put(&self, event: NewEvent) -> Result<bool, StoreError> {
        if self.refuse.load(Ordering::Relaxed) > 0 {
            self.refuse.fetch_sub(1, Ordering::Relaxed);
            return Err(StoreError::NotCommitted("disk full".into()));
        }
        let key =
            (event.kind.clone(), event.producer.clone(), event.epoch, event.onset_ticks / event.grid_ticks);
        let new = self.events.lock().unwrap().insert(key, event).is_none();
        self.doubles.fetch_add(u64::from(!new), Ordering::Relaxed);
        Ok(new)
    }
}

impl Tray {
    fn keys(&self) -> BTreeSet<Key> {
        self.events.lock().unwrap().keys().cloned().collect()
    }

    fn of(&self, producer: &str) -> Vec<NewEvent> {
        self.events.lock().unwrap().values().filter(|e| e.producer.starts_with(producer)).cloned().collect()
    }
}

fn with_model(dir: &Path) -> Settings {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let given = std::env::var_os("KINARA_ONNXRUNTIME").map(PathBuf::from);
    let library = given.unwrap_or_else(|| root.join(".kinara/onnxruntime/libonnxruntime.so"));
    assert!(
        library.is_file(),
        "no ONNX Runtime at {}: run ./kinara test, which fetches it",
        library.display()
    );
    Settings {
        onnxruntime: Some(library),
        model: Some(root.join("models/hot_flash")),
        ..Settings::in_folder(dir)
    }
}

async fn look(settings: &Settings, frames: &[StoredFrame], outbox: &Tray) -> (Board, Arc<Counts>) {
    let (sink, receiver) = FrameSink::new(frames.len().max(1));
    for frame in frames {
        sink.offer(frame.clone());
    }
    drop(sink);
    let board = Board::new(Snapshot::default());
    let counts = Arc::new(Counts::default());
    let stop = CancellationToken::new();
    run(settings.clone(), receiver, outbox.clone(), board.clone(), counts.clone(), stop).await;
    (board, counts)
}

#[tokio::test]
async fn a_hot_flash_becomes_one_event_of_the_rule_and_one_of_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Tray::default();
    let (board, counts) = look(&with_model(dir.path()), &frames(900, &[400]), &outbox).await;
    assert!(board.now().alerts.is_empty(), "{:?}", board.now().alerts);
    assert_eq!(counts.model_loaded.load(Ordering::Relaxed), 1);
    assert!(counts.scored.load(Ordering::Relaxed) > 100);
    for producer in ["rule:sternal/1", "model:hot_flash/1.0.0+"] {
        let events = outbox.of(producer);
        assert_eq!(events.len(), 1, "{producer}: {events:?}");
        let event = &events[0];
        assert_eq!(event.kind, HOT_FLASH);
        assert!((380_000..=430_000).contains(&event.onset_ticks), "{event:?}");
        assert_eq!(u64::from(event.seq), event.onset_ticks / 1000, "the frame that holds the onset");
        assert!(event.fit.is_some() && event.confidence >= 0.5 && event.confidence <= 1.0);
        assert!(event.data["features"]["eda_rise"].as_f64().unwrap() > 1.0, "{}", event.data);
    }
}

#[tokio::test]
async fn rest_makes_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Tray::default();
    let (_, counts) = look(&with_model(dir.path()), &frames(1200, &[]), &outbox).await;
    assert!(outbox.keys().is_empty(), "{:?}", outbox.keys());
    assert!(counts.windows.load(Ordering::Relaxed) > 200);
}

#[tokio::test]
async fn the_same_frames_give_the_same_keys_in_any_order_and_after_a_restart() {
    let all = frames(1500, &[300, 1000]);
    let settings = |dir: &Path| Settings { refractory: Duration::from_mins(5), ..with_model(dir) };
    let dir = tempfile::tempdir().unwrap();
    let once = Tray::default();
    look(&settings(dir.path()), &all, &once).await;
    assert_eq!(once.of("rule").len(), 2);

    // Again, with the same memory: nothing new. With none: the same keys, which the outbox knows.
    look(&settings(dir.path()), &all, &once).await;
    let forgetful = tempfile::tempdir().unwrap();
    look(&settings(forgetful.path()), &all, &once).await;
    assert_eq!(once.keys().len(), 4, "{:?}", once.keys());
    assert_eq!(once.doubles.load(Ordering::Relaxed), 4);

    // Live frames first, the backlog between them.
    let (backlog, live) = all.split_at(1100);
    let mut shuffled: Vec<StoredFrame> = Vec::new();
    let mut live = live.iter();
    for chunk in backlog.chunks(5) {
        shuffled.extend(chunk.iter().cloned());
        shuffled.extend(live.next().cloned());
    }
    shuffled.extend(live.cloned());
    let other = tempfile::tempdir().unwrap();
    let mixed = Tray::default();
    look(&settings(other.path()), &shuffled, &mixed).await;
    assert_eq!(mixed.keys(), once.keys());
}

#[tokio::test]
async fn a_daemon_that_is_started_in_the_midst_of_an_episode_does_not_report_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let all = frames(900, &[400, 480]);
    let outbox = Tray::default();
    let settings = Settings::in_folder(dir.path());
    look(&settings, &all[..440], &outbox).await;
    assert_eq!(outbox.of("rule").len(), 1);
    look(&settings, &all[440..], &outbox).await;
    assert_eq!(outbox.of("rule").len(), 1, "the second rise is within the 20 minutes");
}

#[tokio::test]
async fn without_library_or_model_the_rule_goes_on_alone_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut without_library = with_model(dir.path());
    without_library.onnxruntime = Some(dir.path().join("libonnxruntime.so"));
    let mut without_package = with_model(dir.path());
    without_package.model = Some(dir.path().to_owned());
    // Another test of this process may have loaded a library already; that is said then.
    for (settings, said) in [
        (without_library, ["models/fetch-onnxruntime", "a process has one"]),
        (without_package, ["manifest.toml"; 2]),
        (Settings::in_folder(dir.path()), ["not configured"; 2]),
    ] {
        std::fs::remove_file(dir.path().join("infer.json")).ok();
        let outbox = Tray::default();
        let (board, counts) = look(&settings, &frames(700, &[400]), &outbox).await;
        let alert = board.now().alerts.get("inference").cloned().unwrap();
        let says_why = said.iter().any(|why| alert.contains(why));
        assert!(alert.contains("the rule alone runs") && says_why, "{alert}");
        assert_eq!(outbox.of("rule").len(), 1);
        assert_eq!(outbox.of("model").len(), 0);
        assert_eq!(counts.model_loaded.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test]
async fn a_library_that_is_another_than_was_meant_is_not_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("libonnxruntime.so");
    // It would be loaded, and refused as no library.
    std::fs::write(&library, "not what was put there").unwrap();
    let mut settings = with_model(dir.path());
    settings.onnxruntime = Some(library.clone());
    settings.library_digest = Some("00".repeat(32).try_into().unwrap());
    let alert = async |settings: &Settings| {
        let (board, _) = look(settings, &frames(1, &[]), &Tray::default()).await;
        board.now().alerts.get("inference").cloned().unwrap()
    };
    let found = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(std::fs::read(&library).unwrap()));
    let said = alert(&settings).await;
    assert!(
        said.contains("the rule alone runs") && said.contains(&found) && said.contains("not loaded"),
        "{said}"
    );
    settings.library_digest = Some(found.try_into().unwrap());
    let said = alert(&settings).await;
    assert!(!said.contains("infer.onnxruntime_sha256"), "{said}");
    assert!(LibraryDigest::try_from("12ab".to_owned()).is_err());
}

#[tokio::test]
async fn an_event_that_the_outbox_refuses_is_put_again_until_it_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Tray::default();
    outbox.refuse.store(5, Ordering::Relaxed);
    let settings = Settings { retry: Duration::from_millis(1), ..Settings::in_folder(dir.path()) };
    look(&settings, &frames(700, &[400]), &outbox).await;
    assert_eq!(outbox.of("rule").len(), 1);
}

#[tokio::test]
async fn a_missing_frame_makes_the_windows_cold_and_hides_what_lies_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Tray::default();
    let mut all = frames(700, &[400]);
    all.retain(|f| f.seq != 405);
    let (_, counts) = look(&Settings::in_folder(dir.path()), &all, &outbox).await;
    assert!(counts.cold_frames.load(Ordering::Relaxed) > 100);
    let seen = outbox.of("rule");
    assert!(seen.iter().all(|e| e.onset_ticks >= 406_000), "nothing across the hole: {seen:?}");
}

#[tokio::test]
async fn what_is_remembered_in_a_broken_file_is_set_aside_and_the_daemon_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("infer.json"), "{").unwrap();
    let outbox = Tray::default();
    look(&Settings::in_folder(dir.path()), &frames(700, &[400]), &outbox).await;
    assert_eq!(outbox.of("rule").len(), 1);
    assert!(dir.path().join("infer.json.broken").exists());
}
