//! A process that is killed, and files that are torn.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::SystemClock;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::store::Store;
use kinara_protocol::frame::Epoch;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::frames::{board, drain, known, open, scalar, settings, synchronise};

const CHILD: &str = "KINARA_TEST_STORE_CHILD";
const EPOCH: Epoch = Epoch::new(3, 1);

/// Not a test by itself: the process that is killed. It says each frame that it has been told is safe, and each batch
/// frame that it has seen acknowledged out of the store.
#[tokio::test]
async fn child_that_stores_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let store = open(settings(dir.as_ref()));
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    let tasks: Vec<_> = (0..3u64)
        .map(|device| {
            let store = store.clone();
            tokio::spawn(async move {
                let hardware = HardwareId::kinara(device);
                synchronise(&store, &hardware, EPOCH).await;
                let start = store.first_missing(hardware.clone(), EPOCH, 0).await.unwrap().unwrap();
                for first in (start..).step_by(5) {
                    let frames = (first..first + 5).map(|seq| scalar(EPOCH, seq)).collect();
                    store.append(hardware.clone(), frames).await.unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "\nsafe {device} {}", first + 4).unwrap();
                    out.flush().unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[test]
fn what_was_said_to_be_stored_is_there_after_the_process_is_killed_at_any_moment() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut safe: HashMap<u64, u32> = HashMap::new();
    for _ in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child_that_stores_until_it_is_killed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.filter(|line| line.starts_with("safe ")).collect::<Vec<_>>()
        });
        #[allow(clippy::disallowed_methods, reason = "a plain test")]
        std::thread::sleep(Duration::from_millis(random.random_range(150..700)));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            let mut words = line.split(' ').skip(1);
            let (Some(device), Some(seq)) = (words.next(), words.next()) else { continue };
            let (Ok(device), Ok(seq)) = (device.parse::<u64>(), seq.parse::<u32>()) else { continue };
            let last = safe.entry(device).or_default();
            *last = seq.max(*last);
        }
    }
    assert!(safe.values().sum::<u32>() > 100, "the child did nothing: {safe:?}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = open(settings(dir.path()));
        let frames = drain(&store).await;
        for (device, last) in safe {
            let hardware = HardwareId::kinara(device).to_string();
            for seq in 0..=last {
                let stored = frames.get(&(hardware.clone(), EPOCH.0, seq));
                assert_eq!(stored, Some(&scalar(EPOCH, seq).to_vec()), "{hardware} {seq}, seed {seed}");
            }
        }
        store.stop().await;
    });
}

#[tokio::test]
async fn a_torn_database_is_set_aside_and_the_gateway_works_on_without_anybody() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let hardware = HardwareId::kinara(1);
        let store = open(settings(dir.path()));
        synchronise(&store, &hardware, EPOCH).await;
        for first in (0..1_000).step_by(50) {
            let frames = (first..first + 50).map(|seq| scalar(EPOCH, seq)).collect();
            store.append(hardware.clone(), frames).await.unwrap();
        }
        let (_, _, id) = store.identity().await.unwrap();
        store.stop().await;
        let path = dir.path().join("store.db");
        let mut bytes = std::fs::read(&path).unwrap();
        match round % 3 {
            0 => bytes.truncate(random.random_range(1..bytes.len())),
            1 => {
                let at = random.random_range(0..bytes.len() - 4_096);
                random.fill(&mut bytes[at..at + 4_096]);
            }
            _ => bytes = b"this is not a database, not even nearly".repeat(200),
        }
        std::fs::write(&path, &bytes).unwrap();
        // It opens, in place or anew, and takes frames either way.
        let store = open(settings(dir.path()));
        synchronise(&store, &hardware, EPOCH).await;
        let frames = (1_000..1_010).map(|seq| scalar(EPOCH, seq)).collect();
        let fates = store.append(hardware.clone(), frames).await;
        let fates = if let Ok(fates) = fates {
            fates
        } else {
            // Damage that only showed when written to: set aside then, and the wearable sends again.
            let frames = (1_000..1_010).map(|seq| scalar(EPOCH, seq)).collect();
            store.append(hardware.clone(), frames).await.unwrap()
        };
        assert!(fates.iter().all(|fate| fate.outcome.is_safe()), "round {round}, seed {seed}");
        let (_, _, new_id) = store.identity().await.unwrap();
        let aside = std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("broken"))
            .count();
        assert_eq!(aside > 0, new_id != id, "a new store has a new id; round {round}, seed {seed}");
        assert!(round % 3 != 2 || aside > 0);
        store.stop().await;
    }
}

/// The folder as a kill would leave it.
pub fn copy_of_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Opens what is left of a folder and looks at what it says of its database.
async fn a_database_that_is_gone(lose: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let (data, left) = (dir.path().join("data"), dir.path().join("left"));
    let hardware = HardwareId::kinara(1);
    let store = open(settings(&data));
    synchronise(&store, &hardware, EPOCH).await;
    store.append(hardware.clone(), (0..50).map(|seq| scalar(EPOCH, seq)).collect()).await.unwrap();
    std::fs::write(data.join("devices.json"), "{}").unwrap();
    copy_of_folder(&data, &left);
    store.stop().await;
    lose(&left);
    let wal = std::fs::read(left.join("store.db-wal")).unwrap();
    assert!(!wal.is_empty());
    let board = board();
    let store = Store::open(settings(&left), Arc::new(SystemClock), board.clone()).unwrap();
    assert!(store.wanted(hardware.clone()).await.unwrap().everything);
    let start = std::time::Instant::now();
    while !board.now().alerts.contains_key("damaged") {
        assert!(start.elapsed() < Duration::from_secs(10), "nobody is told");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let names = std::fs::read_dir(&left).unwrap().map(|entry| entry.unwrap().path());
    let mut aside = names
        .filter(|path| path.to_string_lossy().contains("broken") && path.to_string_lossy().ends_with("-wal"));
    assert_eq!(std::fs::read(aside.next().expect("its log is kept")).unwrap(), wal);
    store.stop().await;
    // A clean stop, and nothing more is lost by the next start.
    let store = open(settings(&left));
    assert!(store.wanted(hardware).await.unwrap().everything);
    store.stop().await;
}

#[tokio::test]
async fn a_database_of_no_bytes_is_gone_its_log_is_kept_and_everything_is_asked_for_again() {
    a_database_that_is_gone(|left| std::fs::write(left.join("store.db"), "").unwrap()).await;
}

#[tokio::test]
async fn a_database_that_is_missing_is_told_of_and_its_log_is_kept() {
    a_database_that_is_gone(|left| std::fs::remove_file(left.join("store.db")).unwrap()).await;
}
