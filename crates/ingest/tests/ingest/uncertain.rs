//! What is said at a time that nobody knows: it is kept, and nothing is derived of it.

use crate::support::*;
use kinara_ingest::{Batch, Counts, batch};
use kinara_protocol::channel::HEART_RATE;
use kinara_protocol::envelope::Fit;
use kinara_protocol::frame::{DeviceEventKind, Epoch};

/// An epoch of which nobody knows when it was, or of which somebody does.
const BOOT: Epoch = Epoch::new(0xaa, 2);

/// A boot, and all that a wearable may say of itself.
fn words(time_uncertain: bool) -> Batch {
    let said = |seq: u32, kind: DeviceEventKind| device_event(BOOT, seq, u64::from(seq) * 1_000, kind);
    let frames = [
        boot(BOOT, None),
        said(1, DeviceEventKind::BatteryLow(9)),
        said(2, DeviceEventKind::NotWorn),
        said(3, DeviceEventKind::Interval { channel: HEART_RATE, every_ms: 60_000 }),
    ];
    let uncertainty_us = if time_uncertain { 6 * 3_600_000_000 } else { 5_000 };
    let fit = Fit { time_uncertain, uncertainty_us, ..fit() };
    batch::from_envelope(envelope_of(GATEWAY, 0, vec![stamped(columns_of(HARDWARE, &frames), fit)])).unwrap()
}

/// How many there are of what is derived of a wearable's words.
async fn derived(world: &World) -> [i64; 5] {
    let mut out = [0; 5];
    for (count, what) in out.iter_mut().zip([
        "wear",
        "ts.events",
        "device_intervals",
        "ts.interval_looks",
        "devices WHERE NOT worn OR last_seen_at IS NOT NULL",
    ]) {
        *count = world.number(&format!("SELECT count(*) FROM {what}")).await;
    }
    out
}

#[tokio::test]
async fn of_a_word_that_a_wearable_said_nobody_knows_when_nothing_is_derived() {
    for (time_uncertain, expected) in [(true, [0; 5]), (false, [1, 1, 2, 1, 1])] {
        let world = world().await;
        world
            .run(&format!(
                "UPDATE device_assignments SET valid_from = '2025-12-01';
                 INSERT INTO alert_rules (tenant_id, name, severity, type, above, minutes, created_at)
                   VALUES ('{TENANT}', 'fast', 'warning', 1, 120, 3, 'epoch')"
            ))
            .await;
        let counts = world.write(&[words(time_uncertain)]).await;
        assert_eq!(counts, [Counts { stored: 4, ..Counts::default() }]);
        assert_eq!(derived(&world).await, expected, "uncertain: {time_uncertain}");
        // Nor does it say anything of what is known for certain.
        world.write(&[batch_of(GATEWAY, &[frame(BOOT, 60)])]).await;
        let good = "SELECT count(*) FROM ts.readings WHERE quality > 0 AND type = 1";
        assert_eq!(world.number(good).await, i64::from(time_uncertain));
    }
}
