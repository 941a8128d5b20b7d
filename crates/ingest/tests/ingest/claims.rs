//! A clinic that had a device uses numbers that the device's frames have under the next clinic: none of these is lost, none is there
//! twice, and what one clinic has is no other's.

use std::sync::atomic::Ordering;

use crate::names::unaccounted;
use crate::support::desk::{CONSENT, Desk, added, assigned, consents, unassigned};
use crate::support::*;
use kinara_ingest::boundary::{self, Edge, Gift, Word};
use kinara_ingest::erase::erase;
use kinara_ingest::upkeep::{self, Bounds};
use kinara_ingest::{Batch, Counts, Name, batch, events, timestamp};
use kinara_protocol::channel::ACCELERATION;
use kinara_protocol::columns;
use kinara_protocol::envelope::{self, ENVELOPE_VERSION, Event, EventBatch, Fit};
use kinara_protocol::frame::{DeviceEventKind, Epoch, FrameRef};
use uuid::Uuid;

/// The device's next boot.
pub(crate) const NEXT: Epoch = Epoch::new(0xaa, 2);
/// When that was, seconds after the boot before, and when the device went to the second clinic.
pub(crate) const REBOOT: i64 = 200;
pub(crate) const GIVEN: i64 = 100;
/// The wearers of the second clinic and of a third one.
pub(crate) const OTHERS: Uuid = Uuid::from_u128(0x2001);
const THIRDS: Uuid = Uuid::from_u128(0x3001);
const THIRD_TENANT: Uuid = Uuid::from_u128(0x3);
const THIRD_GATEWAY: Uuid = Uuid::from_u128(0x33);

fn stored(stored: u64) -> Counts {
    Counts { stored, ..Counts::default() }
}

fn duplicate(duplicate: u64) -> Counts {
    Counts { duplicate, ..Counts::default() }
}

/// Tick 0 was so many seconds after the first boot.
pub(crate) fn began(second: i64) -> Fit {
    Fit { ref_utc_us: BOOT_US + second * 1_000_000, ..fit() }
}

pub(crate) fn brings(gateway: Uuid, frames: &[Vec<u8>], fit: Fit) -> Batch {
    brings_of(HARDWARE, gateway, frames, fit)
}

fn brings_of(hardware: &str, gateway: Uuid, frames: &[Vec<u8>], fit: Fit) -> Batch {
    let columns = stamped(columns_of(hardware, frames), fit);
    batch::from_envelope(envelope_of(gateway, 0, vec![columns])).unwrap()
}

/// What the wearable measures: no two frames alike.
fn real(epoch: Epoch, seq: u32) -> Vec<u8> {
    frame_with(epoch, seq, u64::from(seq) * 1_000 + 137, 600 + seq as i32 * 7 % 311)
}

pub(crate) fn reals(epoch: Epoch, range: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    range.map(|seq| real(epoch, seq)).collect()
}

/// What somebody makes up.
fn made_up(epoch: Epoch, range: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    range.map(|seq| frame(epoch, seq)).collect()
}

/// The device goes to a clinic at that second, by time.
pub(crate) async fn goes_to(world: &World, tenant: Uuid, user: Uuid, second: i64) {
    let at = BOOT_US / 1_000_000 + second;
    world
        .run(&format!(
            "INSERT INTO users (id, tenant_id) VALUES ('{user}', '{tenant}');
             INSERT INTO consents (id, tenant_id, user_id, version) VALUES ('{user}', '{tenant}', '{user}', 'v1');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{user}', '{tenant}', '{HARDWARE}');
             UPDATE device_assignments SET valid_to = to_timestamp({at}) WHERE valid_to IS NULL;
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
               VALUES ('{HARDWARE_ROW}', '{tenant}', '{user}', '{user}', '{user}', to_timestamp({at}))"
        ))
        .await;
}

async fn with_a_third_clinic() -> World {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO tenants (id, name, slug) VALUES ('{THIRD_TENANT}', 'Three', 'three');
             INSERT INTO gateways (id, tenant_id, name) VALUES ('{THIRD_GATEWAY}', '{THIRD_TENANT}', 'D')"
        ))
        .await;
    world
}

/// The second clinic gets the device from that second on by an operator's word, with all that is stored from then on. Gives from whom.
async fn given_with_what_is_stored(world: &mut World, second: i64) -> Vec<Uuid> {
    let gift = Gift {
        hardware_id: HARDWARE,
        hardware: HARDWARE_ROW,
        tenant: OTHER_TENANT,
        user: OTHERS,
        device: OTHERS,
        consent: Some(OTHERS),
        from: Edge { at: timestamp(BOOT_US + second * 1_000_000), frame: None },
        word: Word::Operator { take_stored: true },
    };
    let tx = world.admin.transaction().await.unwrap();
    let given = boundary::give(&tx, &gift, timestamp(NOW_US)).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    given.taken_from
}

/// Readings of a clinic, how many names they have, and how many of them are certain.
async fn of(world: &World, tenant: Uuid) -> (i64, i64, i64) {
    let rows = format!("FROM ts.readings WHERE tenant_id = '{tenant}'");
    (
        world.number(&format!("SELECT count(*) {rows}")).await,
        world.number(&format!("SELECT count(DISTINCT (device_id, epoch, seq, idx)) {rows}")).await,
        world.number(&format!("SELECT count(*) {rows} AND quality > 0")).await,
    )
}

async fn keep(world: &World) {
    upkeep::keep(&world.writer(), &world.pool, world.clock.as_ref(), &Bounds::default()).await.unwrap();
}

pub(crate) async fn write(world: &World, batch: Batch) -> Counts {
    world.write(&[batch]).await[0]
}

#[tokio::test]
async fn numbers_that_a_clinic_used_before_a_device_was_handed_over_are_the_next_clinics_all_the_same() {
    let world = world().await;
    let ours = Desk::known(&world, GATEWAY, 1).await;
    let theirs = Desk::known(&world, FOREIGN_GATEWAY, 2).await;
    assert_eq!(write(&world, brings(GATEWAY, &reals(EPOCH, 0..10), fit())).await, stored(10));
    // The next boot's numbers, as of now: its first twenty, and one far ahead.
    let ahead = [made_up(NEXT, 0..20), made_up(NEXT, 4_000_000_000..4_000_000_001)].concat();
    let now = Fit { ref_ticks: 4_000_000_000_000, ..began(30) };
    assert_eq!(write(&world, brings(GATEWAY, &ahead[..20], began(30))).await, stored(20));
    assert_eq!(write(&world, brings(GATEWAY, &ahead[20..], now)).await, stored(1));
    let gaps = world.gaps().await;
    ours.says(&world, &[ours.decide(GIVEN, unassigned(HARDWARE, None))]).await;
    let gift = [
        theirs.decide(GIVEN + 1, added(OTHERS)),
        theirs.decide(GIVEN + 2, consents(CONSENT, OTHERS)),
        theirs.decide(GIVEN + 3, assigned(HARDWARE, OTHERS, Some(CONSENT), None)),
    ];
    theirs.says(&world, &gift).await;
    // The device boots, and its frames come.
    let anchor = boot(NEXT, Some((EPOCH, 10, 10_000)));
    let frames = [vec![anchor], reals(NEXT, 1..30)].concat();
    let writer = world.writer();
    let send = async |part: &[Vec<u8>]| {
        counts(writer.write(&[brings(FOREIGN_GATEWAY, part, began(REBOOT))]).await.unwrap())[0]
    };
    assert_eq!(send(&frames[..15]).await, stored(15));
    assert_eq!(send(&frames).await, Counts { stored: 15, duplicate: 15, ..Counts::default() });
    assert_eq!(send(&frames).await, duplicate(30));
    // Frames of samples: what the wearable said of its boot is not counted as numbers taken.
    assert_eq!(writer.apart.load(Ordering::Relaxed), 19);
    // None of them contradicts the time of what was made up.
    assert_eq!(of(&world, OTHER_TENANT).await, (29 * 5, 29 * 5, 29 * 5));
    assert_eq!(of(&world, TENANT).await.0, 31 * 5);
    let theirs =
        format!("SELECT count(*) FROM ts.readings WHERE tenant_id = '{OTHER_TENANT}' AND epoch = {}", NEXT.0);
    assert_eq!(world.number(&theirs).await, 29 * 5);
    // What the boot said is known, and nothing was invented but what the clinic before brought about.
    let end = format!("SELECT end_seq FROM ledger WHERE epoch = {}", EPOCH.0);
    assert_eq!(world.number(&end).await, 10);
    assert_eq!(world.number("SELECT count(*) FROM gaps WHERE reason = 'reset'").await, 1);
    assert_eq!(gaps, "late {[20,4000000000)}");
    assert_eq!(world.gaps().await, "late {[30,4000000000)}, reset -");
    assert_eq!((world.quarantine().await.as_str(), unaccounted(&world).await), ("none", Vec::new()));
}

#[tokio::test]
async fn a_frame_that_two_clinics_boxes_stamp_on_two_sides_of_a_boundary_stays_one() {
    let world = world().await;
    let wave = |seq: u32| frame_of(EPOCH, seq, ACCELERATION, &[3, -4, 5 + seq as i32]);
    let all: Vec<Vec<u8>> =
        (0..60).map(|seq| if seq % 5 == 3 { wave(seq) } else { real(EPOCH, seq) }).collect();
    assert_eq!(write(&world, brings(GATEWAY, &all[..50], fit())).await, stored(50));
    goes_to(&world, OTHER_TENANT, OTHERS, 50).await;
    // By the other box's clock, which is four seconds ahead of what it says: what the first box had already comes again, and the rest for the first time.
    let late = Fit { uncertainty_us: 900_000, ..began(4) };
    let counts = write(&world, brings(FOREIGN_GATEWAY, &all[47..], late)).await;
    assert_eq!(counts, Counts { stored: 10, duplicate: 3, ..Counts::default() });
    assert_eq!(write(&world, brings(FOREIGN_GATEWAY, &all[47..], late)).await, duplicate(13));
    assert_eq!(write(&world, brings(GATEWAY, &all[..50], fit())).await, duplicate(50));
    let (scalars, waves) =
        (|range: std::ops::Range<i64>| range.filter(|seq| seq % 5 != 3).count() as i64 * 5, 12);
    assert_eq!(of(&world, TENANT).await.0, scalars(0..50));
    assert_eq!(of(&world, OTHER_TENANT).await, (scalars(50..60), scalars(50..60), scalars(50..60)));
    assert_eq!(world.number("SELECT count(*) FROM ts.waveforms").await, waves);
    assert_eq!(world.number("SELECT count(alias) FROM ledger_claims").await, 0);
    assert_eq!((world.gaps().await.as_str(), unaccounted(&world).await), ("none", Vec::new()));
}

#[tokio::test]
async fn numbers_ahead_in_the_epoch_that_goes_on_are_told_from_those_that_were_there() {
    let world = world().await;
    assert_eq!(write(&world, brings(GATEWAY, &reals(EPOCH, 0..50), fit())).await, stored(50));
    // By the clock that is right, and by one in which time stands still.
    let still = Fit { rate_ppb: -1_000_000_000, ..began(49) };
    assert_eq!(write(&world, brings(GATEWAY, &made_up(EPOCH, 50..60), began(-20))).await.stored, 10);
    assert_eq!(write(&world, brings(GATEWAY, &reals(EPOCH, 60..70), still)).await.stored, 10);
    goes_to(&world, OTHER_TENANT, OTHERS, 50).await;
    let counts = write(
        &world,
        brings(FOREIGN_GATEWAY, &reals(EPOCH, 49..75), Fit { uncertainty_us: 100, ..began(1) }),
    )
    .await;
    assert_eq!(counts, Counts { stored: 25, duplicate: 1, ..Counts::default() });
    assert_eq!(of(&world, OTHER_TENANT).await, (125, 125, 125));
    assert_eq!(of(&world, TENANT).await.0, 350);
    assert_eq!((world.gaps().await.as_str(), unaccounted(&world).await), ("none", Vec::new()));
}

#[tokio::test]
async fn a_frame_that_comes_again_after_what_is_stored_was_given_to_the_next_clinic_is_not_there_twice() {
    let mut world = world().await;
    write(&world, brings(GATEWAY, &reals(EPOCH, 0..50), fit())).await;
    // Numbers that somebody made up go along by the operator's word, as all does.
    write(&world, brings(GATEWAY, &made_up(EPOCH, 50..55), fit())).await;
    world
        .run(&format!(
            "INSERT INTO users (id, tenant_id) VALUES ('{OTHERS}', '{OTHER_TENANT}');
             INSERT INTO consents (id, tenant_id, user_id, version) VALUES ('{OTHERS}', '{OTHER_TENANT}', '{OTHERS}', 'v1');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{OTHERS}', '{OTHER_TENANT}', '{HARDWARE}')"
        ))
        .await;
    assert_eq!(given_with_what_is_stored(&mut world, 20).await, [TENANT]);
    let again = || brings(FOREIGN_GATEWAY, &reals(EPOCH, 20..50), fit());
    // Before anything has moved, and after all has.
    assert_eq!(write(&world, again()).await, duplicate(30));
    keep(&world).await;
    assert_eq!(of(&world, OTHER_TENANT).await.0, 35 * 5);
    assert_eq!(write(&world, again()).await, duplicate(30));
    for _ in 0..3 {
        world.clock.advance_us(120_000_000);
        keep(&world).await;
    }
    assert_eq!(world.number("SELECT count(*) FROM moves WHERE settled_at IS NULL").await, 0);
    assert_eq!(write(&world, again()).await, duplicate(30));
    assert_eq!(of(&world, TENANT).await.0, 20 * 5);
    // What the device measured under these numbers is there, too.
    assert_eq!(write(&world, brings(FOREIGN_GATEWAY, &reals(EPOCH, 50..60), fit())).await, stored(10));
    assert_eq!(write(&world, again()).await, duplicate(30));
    assert_eq!(of(&world, OTHER_TENANT).await.0, (35 + 10) * 5);
}

#[tokio::test]
async fn of_three_clinics_in_a_row_none_takes_numbers_from_another() {
    let world = with_a_third_clinic().await;
    write(&world, brings(GATEWAY, &made_up(NEXT, 0..40), began(0))).await;
    goes_to(&world, OTHER_TENANT, OTHERS, 100).await;
    // The second has the device for its first frames, and makes up more. Of these, twenty are what the first made up, value for value.
    let second = || brings(FOREIGN_GATEWAY, &reals(NEXT, 0..20), began(200));
    assert_eq!(write(&world, second()).await, stored(20));
    let more = write(&world, brings(FOREIGN_GATEWAY, &made_up(NEXT, 20..60), began(150))).await;
    assert_eq!(more, Counts { stored: 20, duplicate: 20, ..Counts::default() });
    goes_to(&world, THIRD_TENANT, THIRDS, 220).await;
    let late = Fit { uncertainty_us: 500, ..began(202) };
    let third = |from| brings(THIRD_GATEWAY, &reals(NEXT, from..70), late);
    // The last of the second's comes once more, from the third.
    assert_eq!(write(&world, third(19)).await, Counts { stored: 50, duplicate: 1, ..Counts::default() });
    assert_eq!(write(&world, third(19)).await, duplicate(51));
    assert_eq!(write(&world, second()).await, duplicate(20));
    assert_eq!(of(&world, THIRD_TENANT).await, (250, 250, 250));
    assert_eq!(of(&world, OTHER_TENANT).await.0, 40 * 5);
    assert_eq!(of(&world, TENANT).await.0, 40 * 5);
    let rows = "SELECT count(*) FROM ledger_claims WHERE alias IS NOT NULL";
    assert_eq!(world.number(rows).await, 2);
    assert_eq!((world.gaps().await.as_str(), unaccounted(&world).await), ("none", Vec::new()));
}

#[tokio::test]
async fn what_a_third_clinic_had_and_an_operator_gave_back_is_not_there_twice_though_lower_numbers_were_taken()
 {
    let mut world = with_a_third_clinic().await;
    write(&world, brings(GATEWAY, &reals(EPOCH, 0..50), fit())).await;
    write(&world, brings(GATEWAY, &made_up(EPOCH, 50..55), began(-20))).await;
    goes_to(&world, OTHER_TENANT, OTHERS, 50).await;
    assert_eq!(write(&world, brings(FOREIGN_GATEWAY, &reals(EPOCH, 50..60), fit())).await, stored(10));
    assert_eq!(world.number("SELECT count(alias) FROM ledger_claims").await, 1, "some numbers were taken");
    goes_to(&world, THIRD_TENANT, THIRDS, 80).await;
    assert_eq!(write(&world, brings(THIRD_GATEWAY, &reals(EPOCH, 100..150), fit())).await, stored(50));
    assert_eq!(given_with_what_is_stored(&mut world, 110).await, [THIRD_TENANT]);
    // From the second clinic's box, before anything has moved and after all has.
    let again = || brings(FOREIGN_GATEWAY, &reals(EPOCH, 111..150), fit());
    assert_eq!(write(&world, again()).await, duplicate(39));
    for _ in 0..4 {
        keep(&world).await;
        world.clock.advance_us(120_000_000);
    }
    assert_eq!(world.number("SELECT count(*) FROM moves WHERE settled_at IS NULL").await, 0);
    assert_eq!(write(&world, again()).await, duplicate(39));
    // The tenth second's frame begins after the boundary, too.
    assert_eq!(of(&world, OTHER_TENANT).await.0, (10 + 40) * 5);
    assert_eq!(of(&world, THIRD_TENANT).await.0, 10 * 5);
}

#[tokio::test]
async fn a_name_of_the_next_clinic_takes_no_number_of_a_frame_that_comes_late_to_the_clinic_before() {
    let world = world().await;
    assert_eq!(write(&world, brings(GATEWAY, &reals(EPOCH, 0..20), fit())).await, stored(20));
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    let name = || http(OTHER_TENANT, EPOCH, &[(25, 110, 650)]);
    assert_eq!(write(&world, name()).await, stored(1));
    // Whatever lies beside: what is skipped is missing, and what is stored is in no gap.
    assert_eq!(write(&world, brings(GATEWAY, &reals(EPOCH, 20..25), fit())).await, stored(5));
    assert_eq!(write(&world, brings(GATEWAY, &reals(EPOCH, 26..31), fit())).await, stored(5));
    assert_eq!(world.gaps().await, "late {[25,26)}");
    assert_eq!(write(&world, brings(GATEWAY, &reals(EPOCH, 25..26), fit())).await, stored(1));
    assert_eq!((world.gaps().await.as_str(), unaccounted(&world).await), ("none", Vec::new()));
    assert_eq!(write(&world, brings(GATEWAY, &reals(EPOCH, 0..31), fit())).await, duplicate(31));
    assert_eq!(write(&world, name()).await, duplicate(1));
    assert_eq!((of(&world, TENANT).await.0, of(&world, OTHER_TENANT).await.0), (31 * 5, 5));
}

#[tokio::test]
async fn frames_that_another_clinic_has_are_duplicates_in_however_many_epochs_they_come() {
    const EPOCHS: u64 = 300;
    let world = world().await;
    let all = |gateway, fit: Fit| {
        let of_epoch = |n: u64| {
            let epoch = Epoch(EPOCH.0 + n);
            stamped(columns_of(HARDWARE, &[frame_with(epoch, 0, 98_137, 600 + n as i32)]), fit)
        };
        batch::from_envelope(envelope_of(gateway, 0, (0..EPOCHS).map(of_epoch).collect())).unwrap()
    };
    assert_eq!(write(&world, all(GATEWAY, fit())).await, stored(EPOCHS));
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    // The next clinic's box puts them behind the boundary. That is more than one transaction looks at.
    assert_eq!(write(&world, all(FOREIGN_GATEWAY, began(3))).await, duplicate(EPOCHS));
    assert_eq!((of(&world, TENANT).await.0, of(&world, OTHER_TENANT).await.0), (EPOCHS as i64 * 5, 0));
}

#[tokio::test]
async fn two_clinics_frames_of_one_number_in_one_transaction_are_both_stored() {
    let world = world().await;
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    let both = || {
        [
            brings(GATEWAY, &made_up(NEXT, 0..5), began(0)),
            brings(FOREIGN_GATEWAY, &reals(NEXT, 0..8), began(REBOOT)),
        ]
    };
    assert_eq!(world.write(&both()).await, [stored(5), stored(8)]);
    assert_eq!(world.write(&both()).await, [duplicate(5), duplicate(8)]);
    assert_eq!(of(&world, OTHER_TENANT).await, (40, 40, 40));
    assert_eq!(world.quarantine().await, "none");
}

#[tokio::test]
async fn a_clinic_after_it_takes_no_numbers_of_frames_that_the_clinic_before_still_holds() {
    let world = world().await;
    write(&world, brings(GATEWAY, &reals(EPOCH, 0..10), fit())).await;
    goes_to(&world, OTHER_TENANT, OTHERS, 50).await;
    // In a time so uncertain that it says nothing of where the boundary lies among the frames.
    let uncertain = Fit { time_uncertain: true, uncertainty_us: 1_000_000, ..began(100) };
    assert_eq!(write(&world, brings(FOREIGN_GATEWAY, &made_up(EPOCH, 10..45), uncertain)).await, stored(35));
    assert_eq!(write(&world, brings(GATEWAY, &reals(EPOCH, 10..49), fit())).await, stored(39));
    assert_eq!(write(&world, brings(GATEWAY, &reals(EPOCH, 0..49), fit())).await, duplicate(49));
    assert_eq!(of(&world, TENANT).await, (245, 245, 245));
}

/// Readings over HTTP: number, second, tenths of a beat.
fn http(tenant: Uuid, epoch: Epoch, readings: &[(u32, i64, i32)]) -> Batch {
    let ticks = |second: i64| ((BOOT_US + second * 1_000_000) / 1_000).unsigned_abs();
    let frames: Vec<Vec<u8>> =
        readings.iter().map(|(seq, second, rate)| frame_with(epoch, *seq, ticks(*second), *rate)).collect();
    let refs = frames.iter().map(|bytes| FrameRef::parse(bytes).unwrap());
    let fit = Fit { ref_utc_us: 0, growth_ppb: 0, ..fit() };
    let columns = stamped(columns::encode(HARDWARE, epoch, refs).unwrap(), fit);
    batch::from_envelope(envelope_of(Uuid::nil(), 0, vec![columns])).unwrap().of_clinic(tenant)
}

#[tokio::test]
async fn names_that_a_clinic_used_over_http_are_the_next_clinics_all_the_same() {
    let world = world().await;
    let theirs: Vec<(u32, i64, i32)> = (0..50).map(|n| (60 * n, 110 + i64::from(n), 650)).collect();
    let made_up: Vec<(u32, i64, i32)> = (0..40).map(|n| (60 * n, i64::from(n), 650)).collect();
    assert_eq!(write(&world, http(TENANT, NAMES, &made_up)).await, stored(40));
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    assert_eq!(write(&world, http(OTHER_TENANT, NAMES, &theirs[..45])).await, stored(45));
    let counts = write(&world, http(OTHER_TENANT, NAMES, &theirs)).await;
    assert_eq!(counts, Counts { stored: 5, duplicate: 45, ..Counts::default() });
    assert_eq!(write(&world, http(OTHER_TENANT, NAMES, &theirs)).await, duplicate(50));
    assert_eq!(write(&world, http(TENANT, NAMES, &made_up)).await, duplicate(40));
    assert_eq!(of(&world, OTHER_TENANT).await, (250, 250, 250));
    // However many there are, the claim's row stays as it is.
    assert_eq!(world.text("SELECT seqs FROM ledger_claims").await, "{}");
    assert_eq!((world.gaps().await.as_str(), unaccounted(&world).await), ("none", Vec::new()));
}

#[tokio::test]
async fn a_wearables_numbers_that_were_used_as_names_before_and_names_among_a_wearables_numbers_are_stored_once()
 {
    let world = world().await;
    let made_up: Vec<(u32, i64, i32)> = (0..20).map(|n| (n, i64::from(n), 650)).collect();
    assert_eq!(write(&world, http(TENANT, NEXT, &made_up)).await, stored(20));
    write(&world, brings(GATEWAY, &seconds(0..20), fit())).await;
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    let wearable = || brings(FOREIGN_GATEWAY, &reals(NEXT, 0..30), began(REBOOT));
    let source: Vec<(u32, i64, i32)> = (0..30).map(|n| (2 * n, 300 + i64::from(n), 651)).collect();
    assert_eq!(write(&world, wearable()).await, stored(30));
    assert_eq!(write(&world, http(OTHER_TENANT, EPOCH, &source)).await, stored(30));
    assert_eq!(write(&world, wearable()).await, duplicate(30));
    assert_eq!(write(&world, http(OTHER_TENANT, EPOCH, &source)).await, duplicate(30));
    assert_eq!(of(&world, OTHER_TENANT).await, (300, 300, 300));
    // A gateway is told that the bridge has them all.
    world
        .run(&format!(
            "INSERT INTO gateway_delivered VALUES ('{FOREIGN_GATEWAY}', '{HARDWARE_ROW}', {}, '{{[0,30)}}', now())",
            NEXT.0
        ))
        .await;
    assert_eq!((world.gaps().await.as_str(), unaccounted(&world).await), ("none", Vec::new()));
}

#[tokio::test]
async fn names_that_were_not_kept_at_first_are_in_no_gap_once_they_are_beside() {
    let world = world().await;
    write(&world, http(TENANT, NAMES, &[(5, 1, 650)])).await;
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    world.run(&format!("UPDATE device_assignments SET consent_id = NULL WHERE user_id = '{OTHERS}'")).await;
    let theirs = || http(OTHER_TENANT, NAMES, &[(7, 110, 650)]);
    assert_eq!(write(&world, theirs()).await.discarded, 1);
    assert_eq!(world.gaps().await, "no_consent {[7,8)}");
    world
        .run(&format!("UPDATE device_assignments SET consent_id = user_id WHERE user_id = '{OTHERS}'"))
        .await;
    assert_eq!(write(&world, theirs()).await, stored(1));
    assert_eq!(world.gaps().await, "none");
    world.run(&format!("UPDATE consents SET withdrawn_at = '2000-01-01' WHERE user_id = '{OTHERS}'")).await;
    assert_eq!(write(&world, theirs()).await.discarded, 1);
    assert_eq!(world.gaps().await, "none");
}

#[tokio::test]
async fn a_number_that_lies_beside_and_is_in_a_gap_is_found() {
    let world = world().await;
    write(&world, http(TENANT, NAMES, &[(5, 1, 650)])).await;
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    assert_eq!(write(&world, http(OTHER_TENANT, NAMES, &[(7, 110, 650)])).await, stored(1));
    assert_eq!(unaccounted(&world).await, Vec::new());
    world
        .run(&format!(
            "INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time)
               VALUES ('{HARDWARE_ROW}', {}, '{{[6,9)}}', 'late', to_timestamp({1}), to_timestamp({1}))",
            NAMES.0 as i64,
            BOOT_US / 1_000_000 + 110
        ))
        .await;
    let found = unaccounted(&world).await;
    assert_eq!(found.iter().map(|one| one.twice.as_str()).collect::<Vec<_>>(), ["{[7,8)}"]);
}

#[tokio::test]
async fn what_lies_beside_an_epoch_tells_whose_numbers_may_be_of_it() {
    let world = world().await;
    write(&world, brings(GATEWAY, &made_up(NEXT, 0..20), began(30))).await;
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    let possible = format!(
        "SELECT coalesce(string_agg(possible::text, ' '), 'none') FROM ts.numbers_of('{HARDWARE_ROW}', {}, now())
           WHERE clinic = '{OTHER_TENANT}'",
        NEXT.0 as i64
    );
    assert_eq!(world.text(&possible).await, "none");
    // All of them lie beside: the epoch's own row knows the first clinic's time alone.
    assert_eq!(write(&world, brings(FOREIGN_GATEWAY, &reals(NEXT, 0..10), began(REBOOT))).await, stored(10));
    assert_eq!(world.text(&possible).await, "{[0,4294967296)}");
}

async fn tells(world: &World, gateway: Uuid, events: Vec<Event>) -> Counts {
    let batch = EventBatch {
        version: ENVELOPE_VERSION,
        name: Some(Name { gateway, buffer: 7, sequence: 0 }.into()),
        sealed_at_us: NOW_US,
        events,
        gaps: Vec::new(),
        decisions: Vec::new(),
    };
    let batch = events::decode(&envelope::seal(&batch)).unwrap();
    counts(vec![world.writer().write_events(&batch).await.unwrap()])[0]
}

#[tokio::test]
async fn events_whose_keys_a_clinic_used_before_are_the_next_clinics_all_the_same() {
    let world = world().await;
    let flash = |second: u64, began: i64| Event {
        hardware_id: HARDWARE.to_owned(),
        epoch: NEXT.0,
        onset_ticks: second * 1_000,
        grid_ms: 1_000,
        onset_utc_us: BOOT_US + (began + second as i64) * 1_000_000,
        uncertainty_us: 5_000,
        kind: "hot_flash".to_owned(),
        producer: "m 1".to_owned(),
        severity: String::new(),
        confidence: 0.5,
        ..Event::default()
    };
    let low = |seq: u32| device_event(NEXT, seq, u64::from(seq) * 1_000, DeviceEventKind::BatteryLow(9));
    let lows = |gateway, began_at| brings(gateway, &(0..10).map(low).collect::<Vec<_>>(), began(began_at));
    assert_eq!(tells(&world, GATEWAY, (0..10).map(|n| flash(n, 0)).collect()).await, stored(10));
    assert_eq!(write(&world, lows(GATEWAY, 0)).await, stored(10));
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    let theirs = || (0..12).map(|n| flash(n, REBOOT)).collect::<Vec<_>>();
    assert_eq!(tells(&world, FOREIGN_GATEWAY, theirs()).await, stored(12));
    assert_eq!(tells(&world, FOREIGN_GATEWAY, theirs()).await, duplicate(12));
    assert_eq!(write(&world, lows(FOREIGN_GATEWAY, REBOOT)).await, stored(10));
    assert_eq!(write(&world, lows(FOREIGN_GATEWAY, REBOOT)).await, duplicate(10));
    let by_clinic = "SELECT string_agg(tenant_id || event_type || n, ' ' ORDER BY tenant_id, event_type)
      FROM (SELECT tenant_id, event_type, count(*) AS n FROM ts.events GROUP BY 1, 2) c";
    let expected = format!(
        "{TENANT}battery_low10 {TENANT}hot_flash10 {OTHER_TENANT}battery_low10 {OTHER_TENANT}hot_flash12"
    );
    assert_eq!(world.text(by_clinic).await, expected);
    // The two sides of a boundary stay one event.
    let other = |second, began| Event { producer: "m 2".to_owned(), ..flash(second, began) };
    let at = |millis: i64| Event { onset_utc_us: BOOT_US + millis * 1_000, ..other(99, 0) };
    assert_eq!(tells(&world, GATEWAY, vec![at(99_900)]).await, stored(1));
    assert_eq!(tells(&world, FOREIGN_GATEWAY, vec![at(100_100)]).await, duplicate(1));
}

#[tokio::test]
async fn what_is_worn_is_known_of_frames_that_lie_beside_as_of_the_others() {
    let world = world().await;
    write(&world, brings(GATEWAY, &made_up(NEXT, 0..10), began(0))).await;
    // What somebody says of a boot before it is no word of it.
    let said = device_event(NEXT, 4_000, 4_000, DeviceEventKind::NotWorn);
    write(&world, brings(GATEWAY, &[said], began(0))).await;
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    let not_worn = device_event(NEXT, 5, 5_000, DeviceEventKind::NotWorn);
    let frames = [reals(NEXT, 0..5), vec![not_worn], reals(NEXT, 6..20)].concat();
    assert_eq!(write(&world, brings(FOREIGN_GATEWAY, &frames, began(REBOOT))).await, stored(20));
    let worn = format!(
        "SELECT count(*) FROM ts.readings WHERE tenant_id = '{OTHER_TENANT}' AND type = 1 AND quality > 0"
    );
    assert_eq!(world.number(&worn).await, 5);
    assert_eq!(write(&world, brings(FOREIGN_GATEWAY, &frames, began(REBOOT))).await, duplicate(20));
}

#[tokio::test]
async fn what_was_erased_at_the_clinic_before_comes_to_nobody_and_hides_nothing_of_the_next_one() {
    let world = world().await;
    write(&world, brings(GATEWAY, &reals(EPOCH, 0..50), fit())).await;
    write(&world, brings(GATEWAY, &made_up(EPOCH, 50..60), began(-20))).await;
    goes_to(&world, OTHER_TENANT, OTHERS, 50).await;
    world.run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')")).await;
    erase(&world.pool, TENANT, USER).await.unwrap();
    assert_eq!(world.readings().await, 0);
    // Her last frame, as the other box stamps it; and what the device measured later.
    let late = Fit { uncertainty_us: 900_000, ..began(4) };
    let counts = write(&world, brings(FOREIGN_GATEWAY, &reals(EPOCH, 49..70), late)).await;
    assert_eq!(counts, Counts { stored: 20, duplicate: 1, ..Counts::default() });
    assert_eq!(of(&world, OTHER_TENANT).await.0, 100);
}

#[tokio::test]
async fn an_epoch_that_an_older_release_wrote_is_its_clinics_where_no_other_had_the_device_and_else_nobodys()
{
    let world = world().await;
    let older = "UPDATE ledger SET tenant = NULL";
    write(&world, brings(GATEWAY, &reals(EPOCH, 0..10), fit())).await;
    world.run(older).await;
    write(&world, brings(GATEWAY, &made_up(EPOCH, 10..20), fit())).await;
    assert_eq!(world.text("SELECT tenant FROM ledger").await, TENANT.to_string());
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    assert_eq!(
        write(&world, brings(FOREIGN_GATEWAY, &reals(EPOCH, 10..21), began(REBOOT))).await,
        stored(11)
    );
    world.run(older).await;
    assert_eq!(write(&world, brings(FOREIGN_GATEWAY, &reals(EPOCH, 15..22), began(REBOOT))).await.stored, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_bridges_that_find_the_same_numbers_taken_store_each_frame_once_and_never_lock_each_other_out() {
    const WEARABLES: u64 = 8;
    let world = world().await;
    second_wearer(&world).await;
    for which in 0..WEARABLES {
        handed_over(&world, which).await;
        write(&world, brings_of(&name_of(which), GATEWAY, &made_up(NEXT, 0..40), began(0))).await;
    }
    let sealed = |backwards: bool, round: u32| {
        let mut order: Vec<u64> = (0..WEARABLES).collect();
        if backwards {
            order.reverse();
        }
        order.rotate_left(round as usize % WEARABLES as usize);
        let frames = reals(NEXT, round * 5..round * 5 + 8);
        let devices = order.iter().map(|which| stamped(columns_of(&name_of(*which), &frames), began(REBOOT)));
        batch::from_envelope(envelope_of(FOREIGN_GATEWAY, u64::from(round), devices.collect())).unwrap()
    };
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    let before = world.number(deadlocks).await;
    let bridge = async |backwards: bool| {
        let writer = world.writer();
        let mut stored = 0;
        for round in 0..10 {
            stored += counts(writer.write(&[sealed(backwards, round)]).await.unwrap())[0].stored;
        }
        stored
    };
    let (one, two) = tokio::join!(bridge(false), bridge(true));
    let frames = WEARABLES * (9 * 5 + 8);
    assert_eq!(one + two, frames);
    let theirs = frames as i64 * 5;
    assert_eq!(of(&world, OTHER_TENANT).await, (theirs, theirs, theirs));
    // The statistics come a moment later.
    world.run("SELECT pg_stat_clear_snapshot(), pg_sleep(1)").await;
    assert_eq!(world.number(deadlocks).await, before);
}

/// Numbers drawn by lot.
struct Lot(u64);

impl Lot {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn some(&mut self, most: u32) -> Vec<u32> {
        let share = 1 + self.below(4);
        (0..most).filter(|_| self.below(4) < share).collect()
    }
}

/// Most frames of a story.
const LAST: u32 = 24;

fn name_of(which: u64) -> String {
    format!("kinara:00000000000{which:05}")
}

/// A device that went from the first clinic to the second; its row.
async fn handed_over(world: &World, which: u64) -> Uuid {
    let (hardware, row) = (name_of(which), Uuid::from_u128(0x7000 + u128::from(which)));
    let at = BOOT_US / 1_000_000 + GIVEN;
    world
        .run(&format!(
            "INSERT INTO hardware (id, hardware_id) VALUES ('{row}', '{hardware}');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES (gen_random_uuid(), '{TENANT}', '{hardware}'),
               ('{row}', '{OTHER_TENANT}', '{hardware}');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from, valid_to)
               SELECT '{row}', '{TENANT}', '{USER}', id, '{USER}', to_timestamp({at} - 86400), to_timestamp({at})
               FROM devices WHERE tenant_id = '{TENANT}' AND hardware_id = '{hardware}';
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
               VALUES ('{row}', '{OTHER_TENANT}', '{OTHERS}', '{row}', '{OTHERS}', to_timestamp({at}))"
        ))
        .await;
    row
}

/// The second clinic has a wearer who agreed.
async fn second_wearer(world: &World) {
    world
        .run(&format!(
            "INSERT INTO users (id, tenant_id) VALUES ('{OTHERS}', '{OTHER_TENANT}');
             INSERT INTO consents (id, tenant_id, user_id, version) VALUES ('{OTHERS}', '{OTHER_TENANT}', '{OTHERS}', 'v1')"
        ))
        .await;
}

/// One device that goes from the first clinic to the second, whatever the first one's box sends, and in whatever order.
async fn story(world: &World, lot: &mut Lot, which: u64) {
    let hardware = name_of(which);
    let row = handed_over(world, which).await;
    let seen = |seq: &u32| real(NEXT, *seq);
    let mut honest: Vec<u32> = Vec::new();
    for step in 0..6 + lot.below(8) {
        let seqs = lot.some(LAST);
        if seqs.is_empty() {
            continue;
        }
        if lot.below(2) == 0 && step > 0 {
            let frames: Vec<Vec<u8>> = seqs.iter().map(seen).collect();
            let counts = write(world, brings_of(&hardware, FOREIGN_GATEWAY, &frames, began(REBOOT))).await;
            let new = seqs.iter().filter(|seq| !honest.contains(seq)).count() as u64;
            assert_eq!((counts.stored, counts.quarantined), (new, 0), "{which}, step {step}");
            honest.extend(seqs);
            continue;
        }
        // Made up: other values at the same ticks, the same at others, both; under clocks of all kinds.
        let kind = lot.below(3);
        let frames: Vec<Vec<u8>> = seqs
            .iter()
            .map(|seq| {
                let (mut ticks, mut rate) = (u64::from(*seq) * 1_000 + 137, 600 + *seq as i32 * 7 % 311);
                if kind != 0 {
                    ticks += 1 + lot.below(900);
                }
                if kind != 1 {
                    rate += 1;
                }
                frame_with(NEXT, *seq, ticks, rate)
            })
            .collect();
        let rate_ppb = [0, 40_000, -900_000_000, -1_000_000_000][lot.below(4) as usize];
        let uncertainty_us = [100, 5_000, 3_000_000][lot.below(3) as usize];
        let fit = Fit { rate_ppb, uncertainty_us, ..began(lot.below(60) as i64) };
        write(world, brings_of(&hardware, GATEWAY, &frames, fit)).await;
    }
    let all: Vec<Vec<u8>> = (0..LAST).map(|seq| seen(&seq)).collect();
    for _ in 0..2 {
        write(world, brings_of(&hardware, FOREIGN_GATEWAY, &all, began(REBOOT))).await;
    }
    let rows = format!(
        "SELECT string_agg(seq || ':' || round(value * 10), ' ' ORDER BY seq) FROM ts.readings
         WHERE tenant_id = '{OTHER_TENANT}' AND device_id = '{row}' AND type = 1"
    );
    let expected: Vec<String> =
        (0..LAST).map(|seq| format!("{seq}:{}", 600 + seq as i32 * 7 % 311)).collect();
    assert_eq!(world.text(&rows).await, expected.join(" "), "{which}");
    let certain = format!("SELECT count(*) FROM ts.readings WHERE device_id = '{row}' AND quality > 0");
    assert_eq!(world.number(&certain).await, i64::from(LAST) * 5, "{which}");
}

#[tokio::test]
async fn whatever_a_clinic_sends_before_each_frame_of_the_next_one_is_stored_once() {
    let world = world().await;
    second_wearer(&world).await;
    let cases: u64 = std::env::var("KINARA_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    let mut lot = Lot(38);
    for which in 0..cases.min(200) {
        story(&world, &mut lot, which).await;
    }
    assert_eq!(unaccounted(&world).await, []);
}
