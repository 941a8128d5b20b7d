//! Heart rate variability, from intervals in frames to the clinic's view.

use crate::support::*;
use kinara_ingest::enrich::enrich;
use kinara_ingest::rollup::{Slice, roll_up};
use kinara_ingest::{Batch, batch, timestamp};
use kinara_protocol::channel::RR_INTERVAL;
use kinara_protocol::columns;
use kinara_protocol::envelope::Fit;
use kinara_protocol::frame::{Epoch, FrameBuilder, FrameRef, Kind, MAX_FRAME, Ticks};

/// A real recording (BioSPPy's): 480 intervals in 299 s.
fn recorded() -> Vec<i32> {
    include_str!("../../../../tests/recordings/biosppy/rri.txt")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| line.split_whitespace().next().unwrap().parse::<f64>().unwrap().round() as i32)
        .collect()
}

/// Ten intervals a frame, the first beat at `from_us`.
fn beats(epoch: Epoch, from_us: i64, intervals: &[i32]) -> Batch {
    let mut ticks = 0;
    let mut frames = Vec::new();
    for (seq, part) in intervals.chunks(10).enumerate() {
        let mut builder = FrameBuilder::new();
        builder.begin(Kind::Scalar, epoch, Ticks(ticks));
        for rr in part {
            ticks += *rr as u64;
            builder.push(RR_INTERVAL, Ticks(ticks), &[*rr]).unwrap();
        }
        let mut out = [0; MAX_FRAME];
        let len = builder.finish(seq as u32, &mut out);
        frames.push(out[..len].to_vec());
    }
    let refs = frames.iter().map(|bytes| FrameRef::parse(bytes).unwrap());
    let fit = Fit { ref_utc_us: from_us, ..fit() };
    let columns = stamped(columns::encode(HARDWARE, epoch, refs).unwrap(), fit);
    batch::from_envelope(envelope_of(GATEWAY, 0, vec![columns])).unwrap()
}

async fn settle(world: &World) -> u64 {
    let slice = Slice { hours: 2, ..Slice::default() };
    roll_up(&world.pool, timestamp(NOW_US), &slice).await.unwrap();
    enrich(&world.pool, timestamp(NOW_US), &slice).await.unwrap()
}

#[tokio::test]
async fn a_window_is_what_its_intervals_make_it_however_late_they_come() {
    let world = world().await;
    let rr = recorded();
    let window = NOW_US - 1_800_000_000;
    // The first half in time, the other one late: it belongs into the same window.
    let half_ms: i32 = rr[..240].iter().sum();
    world.write(&[beats(Epoch::new(0xaa, 5), window, &rr[..240])]).await;
    settle(&world).await;
    let rows = "SELECT count(*) FROM ts.hrv";
    assert!(world.number(rows).await <= 1);
    world.write(&[beats(Epoch::new(0xaa, 6), window + i64::from(half_ms) * 1_000, &rr[240..])]).await;
    assert_eq!(settle(&world).await, 1);
    let told = world
        .text("SELECT intervals || ' ' || round(mean_nn_ms) || ' ' || (lf_ms2 > hf_ms2) FROM ts.hrv")
        .await;
    let nn: Vec<f64> = rr.iter().map(|rr| f64::from(*rr)).collect();
    let mean = nn.iter().sum::<f64>() / nn.len() as f64;
    assert_eq!(told, format!("480 {mean:.0} true"));
    assert_eq!(world.number("SELECT count(*) FROM ts.stale_hrv").await, 0);
    assert_eq!(settle(&world).await, 0, "nothing is computed twice");
    // Its clinic sees it, another one does not.
    world.run("CREATE ROLE api LOGIN PASSWORD 'api' IN ROLE kinara_app").await;
    for (tenant, expected) in [(TENANT, 1), (OTHER_TENANT, 0)] {
        world.run(&format!("SET ROLE api; SELECT set_config('kinara.tenant', '{tenant}', false)")).await;
        assert_eq!(world.number("SELECT count(*) FROM hrv").await, expected, "{tenant}");
        world.run("RESET ROLE").await;
    }
}

#[tokio::test]
async fn a_beat_on_the_border_is_of_the_window_it_begins_and_what_is_too_old_blocks_nothing() {
    let world = world().await;
    // Beats each 1,001 ms around a full hour, one of them exactly on it, in microseconds that no binary fraction is.
    let hour = NOW_US - 2 * 3_600_000_000;
    let before = 320;
    let rr = vec![1_001; 2 * before];
    world.write(&[beats(Epoch::new(0xaa, 5), hour - before as i64 * 1_001_000, &rr)]).await;
    world
        .run("INSERT INTO ts.stale_hrv SELECT tenant_id, user_id, '2001-01-01' FROM ts.readings LIMIT 1")
        .await;
    settle(&world).await;
    settle(&world).await;
    assert_eq!(world.number("SELECT count(*) FROM ts.stale_hrv").await, 0);
    let border = world
        .text(&format!(
            "SELECT string_agg(extract(epoch FROM bucket)::int8 - {} || ' ' || intervals, ', ' ORDER BY bucket) FROM ts.hrv",
            hour / 1_000_000
        ))
        .await;
    assert_eq!(border, "-300 299, 0 300");
}

#[tokio::test]
async fn a_window_with_too_few_beats_is_none_and_one_that_lost_them_goes() {
    let world = world().await;
    let rr = recorded();
    let window = NOW_US - 1_800_000_000;
    world.write(&[beats(Epoch::new(0xaa, 5), window, &rr)]).await;
    assert_eq!(settle(&world).await, 1);
    // They move to another wearer.
    world
        .run(&format!(
            "INSERT INTO moves (id, tenant_id, from_user, to_user) VALUES ('{TENANT}', '{TENANT}', '{USER}', '{SECOND_USER}')"
        ))
        .await;
    world.number(&format!("SELECT ts.move('{TENANT}', 2)")).await;
    assert_eq!(settle(&world).await, 1);
    assert_eq!(
        world.text("SELECT string_agg(user_id::text, ' ') FROM ts.hrv").await,
        SECOND_USER.to_string()
    );
    world.write(&[beats(Epoch::new(0xaa, 7), window - 3_600_000_000, &rr[..100])]).await;
    assert_eq!(settle(&world).await, 0);
}

#[tokio::test]
async fn of_two_wearables_on_one_wearer_the_better_covered_one_gives_the_window() {
    let world = world().await;
    let rr = recorded();
    let window = NOW_US - 1_800_000_000;
    world.write(&[beats(Epoch::new(0xaa, 5), window, &rr)]).await;
    assert_eq!(settle(&world).await, 1);
    let told =
        "SELECT intervals || ' ' || round(covered_ms) || ' ' || round(rmssd_ms::numeric, 6) FROM ts.hrv";
    let alone = world.text(told).await;
    // The second one's backlog: half of the window, its beats between those of the first.
    world
        .run(&format!(
            "INSERT INTO ts.readings SELECT time + interval '300 ms', tenant_id, user_id, '{SECOND_USER}', type, idx, epoch + 1, seq, value
               FROM ts.readings WHERE type = 2 AND time < to_timestamp({});
             INSERT INTO ts.stale SELECT DISTINCT tenant_id, user_id, type, date_bin('1 hour', time, 'epoch') FROM ts.readings",
            window / 1_000_000 + 150
        ))
        .await;
    assert_eq!(settle(&world).await, 1);
    assert_eq!(world.text(told).await, alone);
}

#[tokio::test]
async fn a_device_with_more_beats_than_a_heart_makes_silences_no_other_one_of_its_wearer() {
    let world = world().await;
    let window = NOW_US - 1_800_000_000;
    world.write(&[beats(Epoch::new(0xaa, 5), window, &recorded())]).await;
    assert_eq!(settle(&world).await, 1);
    let told = "SELECT string_agg(intervals || ' ' || round(covered_ms), ' ') FROM ts.hrv";
    let alone = world.text(told).await;
    let broken = async |first: i64, last: i64| {
        world
            .run(&format!(
                "INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
                   SELECT to_timestamp({}) + make_interval(secs => n / 1000.0), '{TENANT}', '{USER}', '{SECOND_USER}', 2, 0, 9, n, 800
                   FROM generate_series({first}, {last}) n;
                 INSERT INTO ts.stale_hrv VALUES ('{TENANT}', '{USER}', date_bin('1 hour', to_timestamp({0}), 'epoch'))",
                window / 1_000_000
            ))
            .await;
        enrich(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    };
    broken(1, 50_000).await;
    assert_eq!(world.text(told).await, alone);
    // All of them together are looked at as far as ten hearts' would go.
    broken(50_001, 200_000).await;
    assert_eq!(world.number("SELECT count(*) FROM ts.hrv").await, 0);
}
