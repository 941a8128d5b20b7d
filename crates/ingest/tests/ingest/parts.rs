//! Numbers that are names lie in parts: what is in is known whatever part it is in, and a write costs the same after any history.

use crate::housekeeping::event_batch;
use crate::names::unaccounted;
use crate::support::desk::*;
use crate::support::*;
use kinara_ingest::erase::erase;
use kinara_ingest::retention::{Retention, forget};
use kinara_ingest::upkeep::{self, Bounds};
use kinara_ingest::{Counts, timestamp};
use kinara_protocol::envelope::Gap;
use kinara_protocol::frame::Epoch;
use kinara_test_postgres::Options;

/// Numbers at the ends of parts and far from each other.
const SCATTERED: [u32; 8] = [0, 1_023, 1_024, 1_025, 70_000, 1_000_000_000, u32::MAX - 1, u32::MAX];

fn stored(n: u64) -> Counts {
    Counts { stored: n, ..Counts::default() }
}

fn duplicate(n: u64) -> Counts {
    Counts { duplicate: n, ..Counts::default() }
}

/// What the ledger's own rows hold.
async fn whole(world: &World) -> String {
    world.text("SELECT coalesce(string_agg(seqs::text, ' ' ORDER BY epoch), 'empty') FROM ledger").await
}

/// How the times of an epoch's frames came about: numbers by uncertainty.
async fn uncertainties(world: &World, table: &str) -> String {
    world
        .text(&format!(
            "SELECT coalesce(string_agg(uncertainty_us || ' ' || seqs, ', ' ORDER BY uncertainty_us), 'none')
             FROM (SELECT uncertainty_us, range_agg(seqs) AS seqs FROM {table} GROUP BY 1) t"
        ))
        .await
}

/// The same, in words that do not say in how many ranges.
fn set(seqs: &[u32]) -> String {
    let mut seqs = seqs.to_vec();
    seqs.sort_unstable();
    let set: kinara_ingest::seqs::SeqSet = seqs.into_iter().map(u64::from).collect();
    set.to_string()
}

#[tokio::test]
async fn names_are_in_once_in_whichever_parts_they_lie_and_however_often_they_come() {
    let world = world().await;
    assert_eq!(world.write(&[over_http(&SCATTERED)]).await, [stored(8)]);
    assert_eq!(world.write(&[over_http(&SCATTERED)]).await, [duplicate(8)]);
    // Some of them with others, in parts that are there and in new ones, twice in one transaction.
    let more = [1_022, 1_023, 1_026, 5_000, 70_000];
    let counts = world.write(&[over_http(&more), over_http(&more)]).await;
    assert_eq!(counts, [Counts { stored: 3, duplicate: 2, ..Counts::default() }, duplicate(5)]);
    assert_eq!(world.readings().await, 11 * 5);
    let all: Vec<u32> = SCATTERED.into_iter().chain([1_022, 1_026, 5_000]).collect();
    assert_eq!((world.ledger().await, whole(&world).await), (set(&all), "{}".to_owned()));
    assert_eq!(world.number("SELECT highest FROM ledger").await, i64::from(u32::MAX));
    assert_eq!(world.number("SELECT count(*) FROM named_frames").await, 6);
    assert_eq!(unaccounted(&world).await, []);
    assert_eq!(world.gaps().await, "none");
}

#[tokio::test]
async fn two_bridges_that_are_given_the_same_names_write_them_once() {
    let world = world().await;
    let (one, two) = (world.writer(), world.writer());
    let batches: Vec<_> =
        (0..20).map(|n| over_http(&[n * 500, n * 500 + 3, n * 500 + 1_400, n * 500 + 90_000])).collect();
    let write = async |writer: kinara_ingest::Writer| {
        let mut sum = 0;
        for batch in &batches {
            let outcomes = writer.write(std::slice::from_ref(batch)).await.unwrap();
            sum += counts(outcomes).iter().map(|counts| counts.stored).sum::<u64>();
        }
        sum
    };
    let (first, second) = tokio::join!(write(one), write(two));
    let frames = world.number("SELECT sum(upper(r) - lower(r)) FROM named_frames, unnest(seqs) r").await;
    assert_eq!(first + second, frames.unsigned_abs());
    assert_eq!(world.readings().await, frames * 5);
}

#[tokio::test]
async fn each_reading_over_http_keeps_how_uncertain_its_time_is() {
    let world = world().await;
    world
        .write(&[over_http_within(NAMES, &[1, 5, 2_000], 7_000), over_http_within(NAMES, &[2, 6], 9_000)])
        .await;
    world.write(&[over_http_within(NAMES, &[3], 7_000), over_http_within(NAMES, &[3, 4], 11_000)]).await;
    let expected = "7000 {[1,2),[3,4),[5,6),[2000,2001)}, 9000 {[2,3),[6,7)}, 11000 {[4,5)}";
    assert_eq!(uncertainties(&world, "frame_fits").await, expected);
    assert_eq!(uncertainties(&world, "frame_times").await, "none");
}

#[tokio::test]
async fn a_wearables_frames_in_an_epoch_of_names_are_in_parts_and_their_times_where_boundaries_look() {
    let world = world().await;
    world.write(&[over_http_of(EPOCH, &[3, 1_500])]).await;
    assert_eq!(
        world.write(&[batch_of(GATEWAY, &seconds(0..5))]).await,
        [Counts { stored: 4, duplicate: 1, ..Counts::default() }]
    );
    assert_eq!(world.write(&[batch_of(GATEWAY, &seconds(0..5))]).await, [duplicate(5)]);
    assert_eq!((world.ledger().await.as_str(), whole(&world).await.as_str()), ("{[0,5),[1500,1501)}", "{}"));
    assert_eq!(uncertainties(&world, "frame_times").await, "5000 {[0,3),[4,5)}");
    assert_eq!(uncertainties(&world, "frame_fits").await, "5000 {[0,5),[1500,1501)}");
    // What follows a name is in order all the same.
    let first = "SELECT min(ref_utc_us) FROM frame_times WHERE ref_utc_us > 0";
    assert_eq!(world.number(first).await, BOOT_US);
}

#[tokio::test]
async fn what_is_in_of_an_erased_persons_names_stays_known_in_all_parts() {
    let world = world().await;
    world.write(&[over_http(&[10, 2_000, 3_000])]).await;
    world.run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')")).await;
    erase(&world.pool, TENANT, USER).await.unwrap();
    assert_eq!((world.readings().await, world.ledger().await), (0, set(&[10, 2_000, 3_000])));
    // What comes again is not kept, and only what never was in is a gap.
    let counts = world.write(&[over_http(&[10, 2_000, 3_000, 4_000])]).await;
    assert_eq!((counts[0].stored, counts[0].duplicate + counts[0].discarded), (0, 4));
    assert_eq!((world.readings().await, world.gaps().await.as_str()), (0, "erased {[4000,4001)}"));
    assert_eq!(unaccounted(&world).await, []);
}

#[tokio::test]
async fn names_that_go_to_another_wearer_by_a_late_boundary_are_in_as_before() {
    let world = world().await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    let names = over_http(&[10, 1_100, 2_100]);
    world.write(std::slice::from_ref(&names)).await;
    // Told late: taken back after 1,000 s, and the second wearer's from then on.
    desk.says(&world, &[desk.decide(1_000, unassigned(HARDWARE, None))]).await;
    desk.says(&world, &[desk.decide(1_001, assigned(HARDWARE, SECOND_USER, Some(SECOND_USER), None))]).await;
    for _ in 0..3 {
        upkeep::keep(&world.writer(), &world.pool, world.clock.as_ref(), &Bounds::default()).await.unwrap();
        world.clock.advance_us(120_000_000);
    }
    let theirs = format!("SELECT count(*) FROM ts.readings WHERE user_id = '{SECOND_USER}'");
    assert_eq!(world.number(&theirs).await, 10);
    assert_eq!(world.write(&[names]).await, [duplicate(3)]);
    assert_eq!((world.readings().await, world.ledger().await), (15, set(&[10, 1_100, 2_100])));
    assert_eq!(world.write(&[over_http(&[1_101, 2_101])]).await, [stored(2)]);
    assert_eq!(world.number(&theirs).await, 20);
}

#[tokio::test]
async fn what_is_said_to_be_lost_among_names_is_a_gap_less_what_is_in_any_part() {
    let world = world().await;
    world.write(&[over_http(&[10, 2_000, 3_000])]).await;
    // A wearable says that it overwrote them.
    world.write(&[batch_of(GATEWAY, &[overflow(EPOCH, 0, NAMES, 0, 4_095)])]).await;
    let gap = "{[0,10),[11,2000),[2001,3000),[3001,4096)}";
    assert_eq!(world.gaps().await, format!("overflow {gap}"));
    world.run("DELETE FROM gaps").await;
    // A gateway says that it lost them.
    let lost = Gap {
        hardware_id: HARDWARE.to_owned(),
        epoch: NAMES.0,
        seq_ranges: vec![0, 4_096],
        reason: "gateway_lost".to_owned(),
        ..Gap::default()
    };
    world.writer().write_events(&event_batch(GATEWAY, Vec::new(), vec![lost])).await.unwrap();
    assert_eq!(world.gaps().await, format!("gateway_lost {gap}"));
    // And the one that comes after all is taken out of it.
    world.write(&[over_http(&[20, 2_000])]).await;
    assert_eq!(world.gaps().await, "gateway_lost {[0,10),[11,20),[21,2000),[2001,3000),[3001,4096)}");
    assert_eq!(unaccounted(&world).await, []);
}

#[tokio::test]
async fn a_name_that_is_in_and_in_a_gap_and_one_that_was_acknowledged_and_is_nowhere_are_found_in_any_part() {
    let world = world().await;
    world.write(&[over_http(&[10, 2_000, 3_000])]).await;
    let delivered = |seqs: &str| {
        format!(
            "INSERT INTO gateway_delivered VALUES ('{GATEWAY}', '{HARDWARE_ROW}', {}, '{seqs}', now())",
            NAMES.0
        )
    };
    world.run(&delivered("{[10,11),[2000,2001)}")).await;
    assert_eq!(unaccounted(&world).await, []);
    world
        .run(&format!(
            "INSERT INTO gaps (hardware, epoch, seqs, reason)
               VALUES ('{HARDWARE_ROW}', {}, '{{[2000,2001),[2500,2501)}}', 'expired')",
            NAMES.0
        ))
        .await;
    world.run("UPDATE gateway_delivered SET seqs = '{[10,12),[2000,2001),[2500,2501),[3000,3002)}'").await;
    let found = unaccounted(&world).await;
    let told = |of: fn(&kinara_ingest::reconcile::Unaccounted) -> &str| {
        found.iter().map(of).filter(|seqs| *seqs != "{}").collect::<Vec<_>>().join(" ")
    };
    assert_eq!(told(|one| &one.twice), "{[2000,2001)}");
    assert_eq!(told(|one| &one.acknowledged), "{[11,12),[3001,3002)}");
    assert_eq!(told(|one| &one.nowhere), "");
}

#[tokio::test]
async fn how_the_times_of_names_came_about_is_forgotten_and_what_is_in_is_not() {
    let world = world().await;
    world.write(&[over_http(&[10, 2_000])]).await;
    let days = |days: i64| timestamp(NOW_US + days * 86_400_000_000);
    let keep = Retention::default();
    assert_eq!(forget(&world.pool, days(keep.frame_times_days - 1), &keep).await.1, 0);
    assert_eq!(uncertainties(&world, "frame_fits").await, "5000 {[10,11),[2000,2001)}");
    // One of its parts got another name since.
    world
        .run("UPDATE named_frame_times SET updated_at = updated_at + interval '10 days' WHERE part = 1")
        .await;
    assert_eq!(forget(&world.pool, days(keep.frame_times_days + 1), &keep).await.1, 0);
    assert_eq!(uncertainties(&world, "frame_fits").await, "5000 {[2000,2001)}");
    assert_eq!(world.write(&[over_http(&[10, 2_000])]).await, [duplicate(2)]);
}

/// What the former release left: all of it in one row, and in one of `frame_times` for each way in which times came about.
async fn as_the_former_release_left_it(world: &World) {
    world
        .run(
            "SET session_replication_role = replica;
             UPDATE ledger l SET seqs = (SELECT range_agg(f.seqs) FROM named_frames f
               WHERE f.hardware = l.hardware AND f.epoch = l.epoch) WHERE l.named;
             RESET session_replication_role;
             INSERT INTO frame_times (hardware, epoch, seqs, ref_ticks, ref_utc_us, rate_ppb, uncertainty_us, growth_ppb, time_uncertain)
               SELECT hardware, epoch, range_agg(seqs), 0, 0, rate_ppb, uncertainty_us, growth_ppb, time_uncertain
               FROM named_frame_times GROUP BY hardware, epoch, rate_ppb, uncertainty_us, growth_ppb, time_uncertain;
             DELETE FROM named_frames; DELETE FROM named_frame_times",
        )
        .await;
}

#[tokio::test]
async fn what_an_older_release_wrote_counts_before_and_while_it_is_brought_into_parts() {
    let world = world().await;
    let more: Vec<u32> = (0..40).map(|n| 100_000 + n * 600).collect();
    world.write(&[over_http_within(NAMES, &SCATTERED, 7_000), over_http_within(NAMES, &more, 9_000)]).await;
    world.write(&[over_http_of(Epoch::new(0, 10), &[5, 6]), batch_of(GATEWAY, &seconds(0..3))]).await;
    let fits = uncertainties(&world, "frame_fits").await;
    as_the_former_release_left_it(&world).await;
    assert_eq!(world.number("SELECT count(*) FROM frames_in WHERE NOT isempty(seqs)").await, 3);
    let mut all: Vec<u32> = SCATTERED.into_iter().chain(more).collect();
    let (mut steps, mut added) = (0, Vec::new());
    loop {
        // Everything that came before is known, and what is new is written, wherever the rest lies by now.
        let counts = world.write(&[over_http_within(NAMES, &SCATTERED, 7_000)]).await;
        assert_eq!(counts, [duplicate(8)], "after {steps} steps");
        if steps < 10 {
            let new = 200_000 + steps * 7;
            assert_eq!(world.write(&[over_http_within(NAMES, &[new], 11_000)]).await, [stored(1)]);
            added.push(new);
        }
        if world.number("SELECT ts.part_named(5)").await == 0 {
            break;
        }
        steps += 1;
        assert!(steps < 100, "it comes to its end");
    }
    assert!(steps > 5, "slice by slice: {steps}");
    all.extend(&added);
    all.sort_unstable();
    assert_eq!(world.ledger().await, format!("{} {{[5,7)}} {{[0,3)}}", set(&all)));
    assert_eq!(whole(&world).await, "{} {} {[0,3)}");
    assert_eq!(uncertainties(&world, "frame_fits").await, format!("{fits}, 11000 {}", set(&added)));
    assert_eq!(uncertainties(&world, "frame_times").await, "5000 {[0,3)}", "a wearable's stay");
    assert_eq!(unaccounted(&world).await, []);
}

#[tokio::test]
async fn a_bridge_of_an_older_release_is_refused_names_and_nothing_else() {
    let world = world().await;
    world.write(&[over_http(&[10]), batch_of(GATEWAY, &seconds(0..3))]).await;
    // As it writes: into the row, which it found empty.
    let update = |epoch: Epoch, seqs: &str, named: bool| {
        format!(
            "UPDATE ledger l SET seqs = l.seqs + '{seqs}', named = l.named OR {named} WHERE l.epoch = {}",
            epoch.0 as i64
        )
    };
    let client = world.pool.get().await.unwrap();
    for (epoch, named) in [(NAMES, false), (NAMES, true)] {
        let error = client.batch_execute(&update(epoch, "{[10,11)}", named)).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "55000");
        assert_eq!(kinara_ingest::Error::from(error).last_remedy(), kinara_ingest::Remedy::Later);
    }
    client.batch_execute(&update(EPOCH, "{[3,5)}", false)).await.unwrap();
    assert_eq!(whole(&world).await, "{} {[0,5)}");
}

/// A server on which nothing is written but by the test.
async fn quiet() -> World {
    let options = Options::new()
        .setting("autovacuum", "off")
        .setting("full_page_writes", "off")
        .setting("fsync", "off")
        .setting("checkpoint_timeout", "1h")
        .setting("max_wal_size", "4GB");
    world_on(options).await
}

/// Bytes that each of these readings writes, each by itself: the middle of them.
async fn each_writes(world: &World, seqs: impl Iterator<Item = u32>) -> i64 {
    let writer = world.writer();
    let mut each = Vec::new();
    for seq in seqs {
        let at = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn";
        let before = world.number(at).await;
        assert_eq!(counts(writer.write(&[over_http(&[seq])]).await.unwrap()), [stored(1)]);
        each.push(world.number(at).await - before);
    }
    each.sort_unstable();
    each[each.len() / 2]
}

#[tokio::test]
async fn a_sources_ten_thousandth_reading_writes_little_more_than_its_first_did() {
    let world = quiet().await;
    // Every ten seconds, counted in seconds.
    let number = |reading: u32| reading * 10;
    world.write(&[over_http(&[number(0)])]).await;
    let first = each_writes(&world, (1..20).map(number)).await;
    let between: Vec<u32> = (20..9_980).map(number).collect();
    for seqs in between.chunks(2_500) {
        world.write(&[over_http(seqs)]).await;
    }
    let later = each_writes(&world, (9_980..10_000).map(number)).await;
    println!("the first readings write {first} bytes each, the ten-thousandth {later}");
    // Half a part of other numbers, twice: the frames' and how their times came about. A tenth of the numbers is used, 21 bytes each.
    assert!(later < first + 3 * 1_024, "{first} bytes, then {later}");
}

#[tokio::test]
async fn the_worst_numbers_that_a_source_can_use_write_no_more_than_a_part_each() {
    let world = quiet().await;
    // Every other one: a part holds no more ranges.
    let number = |reading: u32| reading * 2;
    world.write(&[over_http(&[number(0)])]).await;
    let first = each_writes(&world, (1..20).map(number)).await;
    for from in [20, 2_520, 5_020] {
        let seqs: Vec<u32> = (from..from + 2_500).map(number).collect();
        world.write(&[over_http(&seqs)]).await;
    }
    // The last ones of a part.
    let full: Vec<u32> = (7_520..8_192).map(number).collect();
    world.write(&[over_http(&full[..650])]).await;
    let later = each_writes(&world, full[650..].iter().copied()).await;
    println!("the first readings write {first} bytes each, those that fill a part {later}");
    assert!(later < first + 32 * 1_024, "{first} bytes, then {later}");
    assert!(world.number("SELECT max(pg_column_size(seqs)) FROM named_frames").await < 12 * 1_024);
    assert_eq!(world.number("SELECT count(*) FROM named_frames").await, 16);
}
