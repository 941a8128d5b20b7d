//! What inference costs on this machine: `cost [libonnxruntime.so]`. Without a library: the rule alone.
//!
//! Prints time per window (features and rule; features, rule and model) and the process's resident memory.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

use kinara_inference::{Features, Package, Runtime, Sample, Session, Signal, SternalRule, Window};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let at = |every: u64, value: f32| -> Vec<Sample> {
        (0..60_000 / every)
            .map(|i| Sample { ticks: i * every, value: value + (i % 7) as f32 * 0.01 })
            .collect()
    };
    let series = Signal::ALL.map(|signal| match signal {
        Signal::Eda => at(250, 3.0),
        Signal::HeartRate => at(1000, 70.0),
        Signal::RrInterval => at(850, 850.0),
        Signal::SkinTemperature => at(1000, 33.0),
        Signal::Activity => at(30_000, 40.0),
    });
    let frames = VecDeque::new();
    let window = Window::over(0, 60_000, 0, &series, &frames);
    let rule = SternalRule::default();
    println!("rss at start: {} KiB", resident());
    measure("features and rule", || {
        std::hint::black_box(rule.judge(&window, &Features::of(&window)));
    });
    println!("rss with the rule alone: {} KiB", resident());
    if let Some(library) = std::env::args().nth(1) {
        let runtime = Runtime::load(Path::new(&library))?;
        println!("rss with the library: {} KiB", resident());
        let package = Package::open(Path::new("models/hot_flash"), None)?;
        let mut session = Session::new(&runtime, package)?;
        println!("rss with a session: {} KiB", resident());
        let features = Features::of(&window);
        measure("model", || {
            std::hint::black_box(session.score(&features).is_ok());
        });
        measure("features, rule and model", || {
            let features = Features::of(&window);
            std::hint::black_box(rule.judge(&window, &features));
            std::hint::black_box(session.score(&features).is_ok());
        });
        println!("rss at the end: {} KiB", resident());
    }
    Ok(())
}

fn measure(what: &str, mut run: impl FnMut()) {
    let mut times: Vec<_> = (0..20_000)
        .map(|_| {
            let begin = Instant::now();
            run();
            begin.elapsed()
        })
        .collect();
    times.sort();
    println!("{what}: p50 {:?}, p99 {:?}", times[10_000], times[19_800]);
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
