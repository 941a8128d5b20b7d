//! Numbers that are names: what comes over HTTP skips as many as it likes, and none of them is missing.

use std::time::Duration;

use crate::support::*;
use kinara_ingest::erase::erase;
use kinara_ingest::reconcile::{Span, Unaccounted, reconcile};
use kinara_ingest::sweep::{Policy, sweep};
use kinara_ingest::timestamp;

#[tokio::test]
async fn numbers_that_a_source_over_http_never_used_are_not_missing() {
    let world = world().await;
    world.write(&[over_http(&[0, 2, 4])]).await;
    world.write(&[over_http(&[100])]).await;
    assert_eq!(world.gaps().await, "none");
    assert_eq!(unaccounted(&world).await, []);
    // Of a wearable's they are.
    world.write(&[batch_of(GATEWAY, &seconds(0..3)), batch_of(GATEWAY, &seconds(5..6))]).await;
    assert_eq!(world.gaps().await, "late {[3,5)}");
}

pub(crate) async fn unaccounted(world: &World) -> Vec<Unaccounted> {
    let span = Span { raw_from: timestamp(0), again_from: timestamp(0), patience: Duration::from_mins(1) };
    reconcile(&world.pool, &span).await.unwrap().frames
}

/// From when on the wearer has the device, in days from now.
async fn is_worn_from(world: &World, days: i32) {
    let from = format!("to_timestamp({}) + make_interval(days => {days})", NOW_US / 1_000_000);
    world.run(&format!("UPDATE device_assignments SET valid_from = {from}")).await;
}

#[tokio::test]
async fn readings_over_http_that_are_not_kept_leave_no_gap_of_numbers_that_nobody_used() {
    let world = world().await;
    world.run("UPDATE device_assignments SET consent_id = NULL").await;
    world.write(&[over_http(&[1_000])]).await;
    world.write(&[over_http(&[2_000])]).await;
    assert_eq!(world.gaps().await, "no_consent {[1000,1001)}, no_consent {[2000,2001)}");
    assert_eq!(unaccounted(&world).await, []);
}

#[tokio::test]
async fn readings_over_http_that_leave_the_quarantine_leave_no_gap_of_numbers_that_nobody_used() {
    let world = world().await;
    is_worn_from(&world, 10).await;
    world.write(&[over_http(&[1_000])]).await;
    world.write(&[over_http(&[2_000])]).await;
    assert_eq!(world.quarantine().await, "no_assignment 1000, no_assignment 2000");
    world.clock.advance_us(91 * 86_400_000_000);
    assert_eq!(sweep(&world.pool, world.clock.as_ref(), &Policy::default()).await.unwrap().expired, 2);
    assert_eq!(world.gaps().await, "expired {[1000,1001),[2000,2001)}");
    assert_eq!(unaccounted(&world).await, []);
    assert_eq!(world.number("SELECT count(*) FROM alerts").await, 0);
}

#[tokio::test]
async fn readings_over_http_that_are_erased_leave_no_gap_of_numbers_that_nobody_used() {
    let world = world().await;
    is_worn_from(&world, 10).await;
    world.write(&[over_http(&[1_000])]).await;
    world.write(&[over_http(&[2_000])]).await;
    is_worn_from(&world, -10).await;
    world.run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')")).await;
    erase(&world.pool, TENANT, USER).await.unwrap();
    assert_eq!(world.gaps().await, "erased {[1000,1001),[2000,2001)}");
    assert_eq!(unaccounted(&world).await, []);
}

#[tokio::test]
async fn a_wearables_numbers_stay_counted_whatever_comes_over_http_under_its_name() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3))]).await;
    world.write(&[over_http_of(EPOCH, &[3])]).await;
    world.write(&[batch_of(GATEWAY, &seconds(5..6))]).await;
    assert_eq!(world.gaps().await, "late {[4,5)}");
}

#[tokio::test]
async fn gaps_that_were_left_among_names_are_withdrawn_when_the_next_one_comes() {
    let world = world().await;
    // As it was before the ledger knew.
    world.run("UPDATE device_assignments SET consent_id = NULL").await;
    world.write(&[over_http(&[1_000])]).await;
    world.run("UPDATE ledger SET named = false").await;
    world
        .run(&format!(
            "INSERT INTO gaps (hardware, epoch, seqs, reason) VALUES ('{HARDWARE_ROW}', 9, '{{[0,1000)}}', 'late')"
        ))
        .await;
    world.write(&[over_http(&[2_000])]).await;
    assert_eq!(world.gaps().await, "no_consent {[1000,1001)}, no_consent {[2000,2001)}");
}

#[tokio::test]
async fn gaps_that_were_left_among_names_are_withdrawn_when_a_refused_one_expires() {
    let world = world().await;
    is_worn_from(&world, 10).await;
    world.write(&[over_http(&[1_000])]).await;
    // As a box told of that epoch before anybody knew what its numbers are.
    world
        .run(&format!(
            "INSERT INTO ledger (hardware, epoch, highest) VALUES ('{HARDWARE_ROW}', 9, 899);
             INSERT INTO gaps (hardware, epoch, seqs, reason) VALUES ('{HARDWARE_ROW}', 9, '{{[0,900)}}', 'late')"
        ))
        .await;
    world.clock.advance_us(91 * 86_400_000_000);
    assert_eq!(sweep(&world.pool, world.clock.as_ref(), &Policy::default()).await.unwrap().expired, 1);
    assert_eq!(world.gaps().await, "expired {[1000,1001)}");
    assert_eq!(unaccounted(&world).await, []);
}
