//! What windows promise, over frames in every order.

use std::collections::BTreeMap;

use kinara_inference::window::Taken;
use kinara_inference::{DeviceWindows, FrameSamples, Sample, Signal, WindowConfig};
use proptest::prelude::*;

fn config() -> WindowConfig {
    WindowConfig { length: 60_000, step: 5_000, max_runs: 500, max_samples: 1_000_000 }
}

/// Frames of `frame_ms` each with EDA at 4 Hz and a heart rate each second.
fn frames(epoch: u64, first_tick: u64, frame_ms: u64, count: u32) -> Vec<FrameSamples> {
    (0..count)
        .map(|seq| {
            let from = first_tick + u64::from(seq) * frame_ms;
            let at = |signal, every: u64| {
                (from.div_ceil(every)..(from + frame_ms).div_ceil(every))
                    .map(move |n| (signal, Sample { ticks: n * every, value: (n % 1000) as f32 }))
            };
            FrameSamples {
                epoch,
                seq,
                ticks: from,
                samples: at(Signal::Eda, 250).chain(at(Signal::HeartRate, 1000)).collect(),
                worn: None,
            }
        })
        .collect()
}

type Seen = BTreeMap<(u64, u64), Vec<Sample>>;

fn offer(windows: &mut DeviceWindows, frame: &FrameSamples, seen: &mut Seen) -> Taken {
    windows.offer(frame, |w| {
        assert_eq!(w.end % 5_000, 0, "windows end on the grid");
        assert_eq!(w.end - w.start, 60_000);
        let eda = w.samples(Signal::Eda).to_vec();
        assert!(eda.iter().all(|s| w.start <= s.ticks && s.ticks < w.end));
        assert!(seen.insert((w.epoch, w.end), eda).is_none(), "window {} came twice", w.end);
    })
}

fn all(frames: &[FrameSamples]) -> Seen {
    let (mut windows, mut seen) = (DeviceWindows::new(config()), Seen::new());
    for frame in frames {
        offer(&mut windows, frame, &mut seen);
    }
    seen
}

#[test]
fn a_stretch_is_cold_until_it_is_a_window_long_and_then_gives_one_window_a_step() {
    let frames = frames(1, 1_234, 1_000, 200);
    let (mut windows, mut seen) = (DeviceWindows::new(config()), Seen::new());
    for frame in &frames {
        let taken = offer(&mut windows, frame, &mut seen);
        assert_eq!(taken == Taken::Warm, frame.ticks >= 61_234, "at {}", frame.ticks);
    }
    let ends: Vec<u64> = seen.keys().map(|k| k.1).collect();
    assert_eq!(ends.first(), Some(&65_000));
    assert_eq!(ends.last(), Some(&200_000));
    assert_eq!(ends.len(), 28);
    assert!(seen.values().all(|eda| eda.len() == 240));
}

#[test]
fn a_missing_frame_makes_what_follows_cold_and_its_late_arrival_gives_the_windows_after_all() {
    let frames = frames(1, 0, 1_000, 300);
    let (mut windows, mut seen) = (DeviceWindows::new(config()), Seen::new());
    for frame in frames.iter().filter(|f| f.seq != 150) {
        offer(&mut windows, frame, &mut seen);
    }
    assert!(!seen.keys().any(|&(_, end)| end > 150_000 && end < 211_000), "{:?}", seen.keys());
    offer(&mut windows, &frames[150], &mut seen);
    assert_eq!(seen, all(&frames));
}

#[test]
fn live_frames_before_the_backlog_give_the_same_windows_as_in_order() {
    let frames = frames(1, 0, 1_000, 600);
    let (mut windows, mut seen) = (DeviceWindows::new(config()), Seen::new());
    let mut live = frames[400..].iter();
    for backlog in frames[..400].chunks(4) {
        for frame in backlog.iter().chain(live.next()) {
            offer(&mut windows, frame, &mut seen);
        }
    }
    live.for_each(|frame| {
        offer(&mut windows, frame, &mut seen);
    });
    assert_eq!(seen, all(&frames));
}

#[test]
fn a_reboot_starts_cold_and_its_ticks_are_not_mixed_with_those_of_the_epoch_before() {
    let mut both = frames(1, 0, 1_000, 100);
    both.extend(frames(2, 0, 1_000, 100));
    let seen = all(&both);
    assert_eq!(seen.len(), 2 * all(&frames(1, 0, 1_000, 100)).len());
}

#[test]
fn a_change_of_wear_begins_a_new_stretch() {
    let mut frames = frames(1, 0, 1_000, 300);
    frames[100].worn = Some(true);
    let seen = all(&frames);
    assert!(seen.contains_key(&(1, 100_000)));
    assert!(!seen.keys().any(|&(_, end)| end > 100_000 && end < 160_000));
    assert!(seen.contains_key(&(1, 160_000)));
}

#[test]
fn what_a_device_says_while_it_is_not_worn_is_in_no_window() {
    let mut frames = frames(1, 0, 1_000, 300);
    frames[100].worn = Some(false);
    frames[200].worn = Some(true);
    let ends: Vec<u64> = all(&frames).keys().map(|k| k.1).collect();
    assert!(ends.contains(&100_000) && ends.contains(&260_000));
    assert!(!ends.iter().any(|end| (100_001..260_000).contains(end)), "{ends:?}");
}

#[test]
fn a_jump_of_the_ticks_costs_nothing_and_gives_no_empty_window() {
    let mut frames = frames(1, 0, 1_000, 100);
    for (n, frame) in frames.iter_mut().enumerate().skip(80) {
        let jump = (1 << 47) + n as u64 * 1_000;
        frame.ticks = jump;
        frame.samples = vec![(Signal::Eda, Sample { ticks: jump, value: 1.0 })];
    }
    let seen = all(&frames);
    assert!(seen.values().all(|eda| !eda.is_empty()));
    assert!(seen.len() < 40, "{}", seen.len());
}

#[test]
fn the_memory_of_a_device_is_bounded_whatever_it_sends() {
    let bounds = WindowConfig::default();
    let mut windows = DeviceWindows::new(bounds);
    for n in 0..20_000u32 {
        let seq = if n % 3 == 0 { n.wrapping_mul(2_654_435_761) } else { n };
        let samples = (0..60).map(|i| (Signal::Eda, Sample { ticks: 10 + i, value: 0.0 })).collect();
        // The ticks never move: nothing ever leaves a window by age.
        windows.offer(&FrameSamples { epoch: u64::from(n % 5), seq, ticks: 10, samples, worn: None }, |_| {
            panic!("no window is complete")
        });
        assert!(windows.held() <= bounds.max_samples + 128, "{}", windows.held());
    }
    assert!(windows.forgotten() > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The very same windows, each once, in whatever order and however often the frames come.
    #[test]
    fn any_order_and_any_doubles_give_the_windows_of_the_right_order(
        first_tick in 0u64..100_000,
        frame_ms in prop::sample::select(vec![700u64, 1_000, 3_300, 15_000, 60_000]),
        order in Just((0..150u32).collect::<Vec<_>>()).prop_shuffle(),
        near in any::<bool>(),
        doubles in prop::collection::vec(0u32..150, 0..20),
        wear in prop::option::of(0usize..150),
    ) {
        let mut frames = frames(3, first_tick, frame_ms, 150);
        if let Some(at) = wear {
            frames[at].worn = Some(true);
        }
        let mut order = order;
        if near {
            // A link that reorders, but not by much.
            order.sort_by_key(|n| n / 20);
        }
        let (mut windows, mut seen) = (DeviceWindows::new(config()), Seen::new());
        for n in order.iter().chain(&doubles) {
            offer(&mut windows, &frames[*n as usize], &mut seen);
        }
        prop_assert_eq!(seen, all(&frames));
    }
}
