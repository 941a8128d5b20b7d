//! Faults in a row: a wearable that fails at each start does not spend its battery and its flash on starting.

use kinara_protocol::frame::ResetReason;

/// After so many faults in a row it starts at once: it may be a day's only ones.
const FREE: u32 = 3;
const FIRST_PAUSE_MS: u64 = 1_000;
const LONGEST_PAUSE_MS: u64 = 600_000;
/// Once it has done all its work for so long, the faults before it are forgotten.
pub const HEALTHY_MS: u64 = 60_000;

/// How many faults in a row there are with this start. A supply that breaks down is one: whatever draws it down, the radio or
/// a sensor, does so at the next start too, and a weak cell recovers in a pause and not by starting.
pub fn counted(before: u32, reason: ResetReason) -> u32 {
    match reason {
        ResetReason::Fault | ResetReason::Watchdog | ResetReason::BrownOut => before.saturating_add(1),
        _ => 0,
    }
}

/// Whether the pause comes before everything else, also before anything is written: what ended the program may come again
/// wherever it is. (A watchdog's reset is waited for with the radio on: what blocks is the sensors' bus.)
pub fn pauses_first(reason: ResetReason) -> bool {
    matches!(reason, ResetReason::Fault | ResetReason::BrownOut)
}

/// How long to wait after so many of them.
pub fn pause_ms(faults: u32) -> u64 {
    match faults.checked_sub(FREE + 1) {
        None => 0,
        Some(more) => FIRST_PAUSE_MS.saturating_mul(1 << more.min(16)).min(LONGEST_PAUSE_MS),
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use kinara_protocol::channel::HEART_RATE;
    use kinara_protocol::control::{MAX_MESSAGE, Op, Request};
    use kinara_protocol::frame::{Body, Epoch, FrameRef, MAX_FRAME, Seq, Ticks};
    use kinara_protocol::gatt::Characteristic;

    use super::*;
    use crate::app::{App, DeviceIdentity, Recovered, Settings};
    use crate::framing::FrameAge;
    use crate::log::Witness;
    use crate::plan::Plan;
    use crate::testing::RamFlash;

    struct NothingIsLost;

    impl Witness for NothingIsLost {
        fn lost(&mut self, epoch: Epoch, first: Seq, last: Seq) {
            panic!("{epoch}: {first} to {last} were pushed out");
        }
    }

    fn start(flash: RamFlash, reason: ResetReason) -> App<RamFlash> {
        let settings = Settings {
            identity: DeviceIdentity { factory_id: 7, firmware: [0, 1, 0] },
            plan: Plan::default(),
            frame_age: FrameAge::default(),
        };
        App::new(Recovered::boot(flash, settings, reason, [3, 4], Ticks(0), &mut NothingIsLost).unwrap())
    }

    /// Every frame that it still holds.
    fn held(app: &mut App<RamFlash>) -> Vec<Vec<u8>> {
        app.connected();
        app.subscribe(Characteristic::Backlog, true);
        let mut frames: Vec<Vec<u8>> = vec![];
        let ask = |app: &mut App<RamFlash>, op| {
            let mut message = [0; MAX_MESSAGE];
            app.write(Request { id: 1, op }.encode(&mut message), Ticks(9), &mut NothingIsLost);
        };
        ask(app, Op::StartBacklog { window: 100 });
        let mut bytes = [0; MAX_FRAME];
        while let Some((characteristic, length)) =
            app.outgoing(Ticks(9), &mut bytes, &mut NothingIsLost).unwrap()
        {
            if characteristic != Characteristic::Backlog {
                continue;
            }
            frames.push(bytes[..length].to_vec());
            let header = FrameRef::parse(&bytes[..length]).unwrap().header();
            ask(app, Op::Ack { epoch: header.epoch, seq: header.seq });
        }
        frames
    }

    #[test]
    fn a_wearable_that_fails_at_each_start_keeps_every_reading_that_waits() {
        let mut app = start(RamFlash::new(8), ResetReason::PowerOn);
        for second in 0..200 {
            app.sample(HEART_RATE, Ticks(second * 1_000), &[700], &mut NothingIsLost).unwrap();
            app.close_frames(&mut NothingIsLost).unwrap();
        }
        let (first, stored) = (app.epoch(), app.unacknowledged());
        let mut flash = app.into_flash();
        for _ in 0..3_000 {
            flash = start(flash, ResetReason::Fault).into_flash();
        }
        // It is mended, and measures again.
        let mut app = start(flash, ResetReason::PowerOn);
        assert_eq!((app.unacknowledged(), app.next_seq()), (stored + 1, 0), "one anchor for all of them");
        app.sample(HEART_RATE, Ticks(5), &[700], &mut NothingIsLost).unwrap();
        app.close_frames(&mut NothingIsLost).unwrap();
        let epoch = app.epoch();
        let frames = held(&mut app);
        assert_eq!(frames.len() as u32, stored + 3);
        let last = FrameRef::parse(&frames[stored as usize + 1]).unwrap();
        assert_eq!((last.header().epoch, last.header().seq), (epoch, 0));
        let Body::BootAnchor(anchor) = last.body().unwrap() else { panic!("its first frame is its anchor") };
        let before = anchor.previous.unwrap();
        assert_eq!((before.epoch, before.next_seq), (Epoch(first.0 + 1), 1));
        assert_eq!(anchor.reason, ResetReason::PowerOn);
    }

    #[test]
    fn three_faults_cost_nothing_and_a_day_of_them_is_less_than_two_hundred_starts() {
        assert_eq!(
            [0, 1, 3, 4, 5, 13, 14, u32::MAX].map(pause_ms),
            [0, 0, 0, 1_000, 2_000, 512_000, 600_000, 600_000]
        );
        let (mut faults, mut starts, mut passed) = (0, 0, 0);
        while passed < 24 * 3_600_000 {
            faults = counted(faults, ResetReason::Fault);
            passed += pause_ms(faults);
            starts += 1;
        }
        assert!(starts < 200, "{starts}");
    }

    #[test]
    fn a_supply_that_breaks_down_at_each_start_is_waited_for_like_a_fault() {
        let mut faults = 0;
        for _ in 0..5 {
            faults = counted(faults, ResetReason::BrownOut);
        }
        assert_eq!((faults, pause_ms(faults)), (5, 2_000));
        assert!(pauses_first(ResetReason::BrownOut) && pauses_first(ResetReason::Fault));
        assert!(!pauses_first(ResetReason::Watchdog) && !pauses_first(ResetReason::PowerOn));
    }

    #[test]
    fn a_start_that_is_no_fault_begins_anew() {
        for fault in [ResetReason::Fault, ResetReason::Watchdog, ResetReason::BrownOut] {
            assert_eq!(counted(7, fault), 8);
        }
        for reason in [ResetReason::PowerOn, ResetReason::Requested] {
            assert_eq!(counted(7, reason), 0);
        }
    }
}
