//! The wearable's own sternal rule, in integers, says what the gateway's says.

use std::collections::VecDeque;

use kinara_firmware_app::signal::hot_flash;
use kinara_inference::{Features, Judgement, Sample, Signal, SternalRule, Window};
use kinara_protocol::frame::Ticks;
use proptest::prelude::*;

/// A minute of EDA: a level, a slope that begins and ends somewhere, seconds without a sample, and activity.
#[derive(Debug, Clone)]
struct Minute {
    level: i32,
    rise: i32,
    begins_s: u64,
    lasts_s: u64,
    missing: Vec<u64>,
    counts: i32,
}

fn minute() -> impl Strategy<Value = Minute> {
    let missing = proptest::collection::vec(0u64..60, 0..14);
    (0..62_000i32, -3_000..6_000i32, 0u64..55, 1u64..60, missing, 0..1_500i32).prop_map(
        |(level, rise, begins_s, lasts_s, missing, counts)| Minute {
            level,
            rise,
            begins_s,
            lasts_s,
            missing,
            counts,
        },
    )
}

impl Minute {
    fn at(&self, ticks: u64) -> Option<i32> {
        if self.missing.contains(&(ticks / 1_000)) {
            return None;
        }
        let into = ticks.saturating_sub(self.begins_s * 1_000).min(self.lasts_s * 1_000) as i64;
        Some((i64::from(self.level) + i64::from(self.rise) * into / (self.lasts_s as i64 * 1_000)) as i32)
    }
}

/// So near to a border that rounding decides, µS.
const BORDER: f64 = 1e-4;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]
    #[test]
    fn the_device_judges_as_the_gateway(minute in minute()) {
        let mut device = hot_flash::SternalRule::new();
        let mut series: [Vec<Sample>; 5] = Default::default();
        for ticks in (0..60_000).step_by(250) {
            if let Some(nanosiemens) = minute.at(ticks) {
                device.eda(Ticks(ticks), nanosiemens);
                let value = (f64::from(nanosiemens) * 0.001) as f32;
                series[Signal::Eda.index()].push(Sample { ticks, value });
            }
        }
        for ticks in [0, 30_000] {
            device.activity(Ticks(ticks), minute.counts);
            series[Signal::Activity.index()].push(Sample { ticks, value: minute.counts as f32 });
        }
        let frames = VecDeque::new();
        let window = Window::over(0, 60_000, 1, &series, &frames);
        let gateway = SternalRule::default().judge(&window, &Features::of(&window));
        let device = device.judge(Ticks(60_000));
        let near = match gateway {
            Judgement::HotFlash(rise) => rise.rise - 2.0 < BORDER,
            Judgement::Quiet => f64::from(minute.rise) > 1_900.0,
            Judgement::NoContact => true,
            _ => false,
        };
        match (gateway, device) {
            (Judgement::NotEnoughSignal, hot_flash::Judgement::NotEnoughSignal)
            | (Judgement::Motion, hot_flash::Judgement::Motion)
            | (Judgement::NoContact, hot_flash::Judgement::NoContact)
            | (Judgement::Quiet, hot_flash::Judgement::Quiet) => {}
            (Judgement::HotFlash(rise), hot_flash::Judgement::HotFlash { onset, rise_ns, new: true }) => {
                prop_assert!((rise.rise - f64::from(rise_ns) / 1_000.0).abs() < 0.002);
                // On a longer slope many rises are equal but for rounding.
                prop_assert!(onset.0 == rise.from || minute.lasts_s > 25);
            }
            _ => prop_assert!(near, "{gateway:?} {device:?}"),
        }
    }
}
