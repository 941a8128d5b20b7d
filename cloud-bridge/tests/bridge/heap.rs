//! What the allocator keeps of what was freed.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kinara_cloud_bridge::heap::SETTINGS;
use kinara_protocol::channel::HEART_RATE;
use kinara_protocol::envelope;
use kinara_protocol::frame::{Epoch, FrameBuilder, Kind, MAX_FRAME, Ticks};

use crate::support::*;

const THREADS: usize = 12;
const ROUNDS: usize = 3;
/// How this program is told to be the one that reads.
const READS: &str = "KINARA_TEST_READS";

/// Memory that this program has now, KiB.
fn rss_kib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Sixty heart rates, a millisecond apart.
fn crowded(seq: u32) -> Vec<u8> {
    let mut builder = FrameBuilder::new();
    let from = u64::from(seq) * 1_000;
    builder.begin(Kind::Scalar, Epoch::new(1, 1), Ticks(from));
    for tick in 0..60 {
        builder.push(HEART_RATE, Ticks(from + tick), &[700]).unwrap();
    }
    let mut out = [0; MAX_FRAME];
    let len = builder.finish(seq, &mut out);
    out[..len].to_vec()
}

/// A batch that takes ten megabytes once it is read.
fn costly() -> Vec<u8> {
    let frames: Vec<Vec<u8>> = (0..7_000).map(crowded).collect();
    envelope::seal(&envelope_of(GATEWAY, 0, vec![columns_of("bt:nobody", &frames)]))
}

/// Reads on threads, of which each keeps a little, as a program does that goes on; gives what it has more than before, KiB.
fn read_on_threads(payload: &[u8]) -> i64 {
    let before = rss_kib();
    let mut kept: Vec<String> = Vec::new();
    for _ in 0..ROUNDS {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|number| {
                    scope.spawn(move || {
                        let batch = kinara_ingest::decode(payload).unwrap();
                        format!("{number}: {} frames", batch.frames())
                    })
                })
                .collect();
            kept.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
        });
    }
    assert_eq!(kept.len(), ROUNDS * THREADS);
    rss_kib() - before
}

#[test]
fn what_large_messages_took_goes_back_to_the_system() {
    if std::env::var_os(READS).is_some() {
        println!("kept {} KiB", read_on_threads(&costly()));
        return;
    }
    let myself = std::env::current_exe().unwrap();
    let name = "heap::what_large_messages_took_goes_back_to_the_system";
    let output = Command::new(myself)
        .args(["--exact", name, "--nocapture"])
        .env(READS, "1")
        .envs(SETTINGS)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let kept: i64 =
        text.split("kept ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    assert!(kept < 16 * 1024, "{kept} KiB are kept");
}

#[tokio::test]
async fn the_bridge_begins_with_an_allocator_that_gives_back() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("bridge.toml");
    let text = "[database]\nurl = \"postgres://nobody:none@127.0.0.1:1/none\"\n\
                [broker]\nhost = \"127.0.0.1\"\nport = 1\ntls = false\n[metrics]\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kinara-cloud-bridge"));
    command.arg("--config").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
    for (name, _) in SETTINGS {
        command.env_remove(name);
    }
    let mut bridge = command.env_remove("GLIBC_TUNABLES").spawn().unwrap();
    let environment = || std::fs::read(format!("/proc/{}/environ", bridge.id())).unwrap_or_default();
    let is_told = |(name, value): &(&str, &str)| {
        let wanted = format!("{name}={value}");
        environment().split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !SETTINGS.iter().all(is_told) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let all = SETTINGS.iter().all(is_told);
    let running = bridge.try_wait().unwrap().is_none();
    bridge.kill().unwrap();
    bridge.wait().unwrap();
    assert!(all && running, "{all} {running}");
}
