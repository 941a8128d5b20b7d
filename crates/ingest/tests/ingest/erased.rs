//! Whoever is erased is nowhere any more: proved by walking every table there is, in whatever order people merge, correct and erase.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::desk::*;
use crate::support::*;
use kinara_ingest::erase::{KEPT, erase, tombstones};
use kinara_ingest::rollup::{Slice, roll_up};
use kinara_ingest::upkeep::{self, Bounds};
use kinara_ingest::{Name, batch, events, timestamp};
use kinara_protocol::columns;
use kinara_protocol::envelope::{self, ENVELOPE_VERSION, Event, EventBatch};
use kinara_protocol::frame::FrameRef;
use proptest::prelude::*;
use serde_json::{Map, Value};
use uuid::Uuid;

/// Her, as the clinic knows her; and the provisional wearer of a box who turns out to be her.
const HERS: [Uuid; 2] = [USER, PATIENT];
const HER_WORDS: [&str; 4] = ["Anna Unverkennbar", "ANNA-4711", "anna@unverkennbar.example", "New Patient"];
/// When she had something that somebody dealt with.
const HER_MOMENT: &str = "2026-01-01T23:00:10.047Z";
/// Her heart rate, which nobody else has.
const HER_RATE: i32 = 1234;

/// A device that nobody of the story has.
const NOBODYS: &str = "kinara:00000000000000c3";

/// What may happen before she is erased, in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    SheIsMeasured,
    AnotherIsMeasured,
    HandedOverLate,
    FramesArePutAside,
    ABoxTakesHerIn,
    ABoxIsRefused,
    TheyAreMerged,
    RollUp,
    Noted,
    DealtWith,
}

const ALL: [Happening; 10] = [
    Happening::SheIsMeasured,
    Happening::AnotherIsMeasured,
    Happening::HandedOverLate,
    Happening::FramesArePutAside,
    Happening::ABoxTakesHerIn,
    Happening::ABoxIsRefused,
    Happening::TheyAreMerged,
    Happening::RollUp,
    Happening::Noted,
    Happening::DealtWith,
];

/// Frames of so many seconds after the boot with a rate, of a device.
fn measured(gateway: Uuid, hardware: &str, range: std::ops::Range<u32>, rate: i32) -> kinara_ingest::Batch {
    let frames: Vec<Vec<u8>> =
        range.map(|seq| frame_with(EPOCH, seq, u64::from(seq) * 1_000, rate)).collect();
    batch::from_envelope(envelope_of(gateway, 0, vec![columns_of(hardware, &frames)])).unwrap()
}

/// Frames whose times are as uncertain as that.
fn unsure(
    hardware: &str,
    range: std::ops::Range<u32>,
    rate: i32,
    uncertainty_us: u64,
) -> kinara_ingest::Batch {
    let frames: Vec<Vec<u8>> =
        range.map(|seq| frame_with(EPOCH, seq, u64::from(seq) * 1_000, rate)).collect();
    let refs = frames.iter().map(|bytes| FrameRef::parse(bytes).unwrap());
    let mut fit = fit();
    fit.uncertainty_us = uncertainty_us;
    let columns = stamped(columns::encode(hardware, EPOCH, refs).unwrap(), fit);
    batch::from_envelope(envelope_of(GATEWAY, 0, vec![columns])).unwrap()
}

/// At so many seconds after the boot.
pub fn hot_flash(second: u64, gateway: Uuid) -> events::Events {
    let event = Event {
        hardware_id: HARDWARE.to_owned(),
        kind: "hot_flash".to_owned(),
        producer: "rule:sternal/1".to_owned(),
        epoch: EPOCH.0,
        onset_ticks: second * 1_000,
        grid_ms: 30_000,
        onset_utc_us: BOOT_US + second as i64 * 1_000_000,
        uncertainty_us: 5_000,
        severity: "info".to_owned(),
        confidence: 0.5,
        data_json: format!(r#"{{"rate":{HER_RATE}}}"#),
        onset_seq: second as u32,
    };
    let batch = EventBatch {
        version: ENVELOPE_VERSION,
        name: Some(Name { gateway, buffer: 7, sequence: 0 }.into()),
        sealed_at_us: NOW_US,
        events: vec![event],
        ..EventBatch::default()
    };
    events::decode(&envelope::seal(&batch)).unwrap()
}

/// She has the device until second 100, by time alone; then it is the second wearer's.
async fn happen(world: &World, desk: &Desk, what: Happening) {
    let second = |s: i64| (BOOT_US / 1_000_000) + s;
    match what {
        Happening::SheIsMeasured => {
            world.write(&[measured(GATEWAY, HARDWARE, 0..20, HER_RATE)]).await;
            world.writer().write_events(&hot_flash(10, GATEWAY)).await.unwrap();
        }
        Happening::AnotherIsMeasured => {
            world.write(&[measured(GATEWAY, HARDWARE, 110..130, 700)]).await;
        }
        Happening::HandedOverLate => {
            // Stored under her, and not hers from 100 on.
            world.write(&[measured(SECOND_GATEWAY, HARDWARE, 101..105, 800)]).await;
            desk.says(world, &[desk.decide(100, assigned(HARDWARE, SECOND_USER, Some(SECOND_USER), None))])
                .await;
        }
        Happening::FramesArePutAside => {
            world.write(&[measured(FOREIGN_GATEWAY, HARDWARE, 30..33, HER_RATE)]).await;
            world.write(&[unsure(HARDWARE, 98..99, HER_RATE, 400_000_000)]).await;
            world.writer().write_events(&hot_flash(40, FOREIGN_GATEWAY)).await.unwrap();
            // The second wearer's, refused too: not hers to take along.
            world.write(&[measured(FOREIGN_GATEWAY, HARDWARE, 150..153, 900)]).await;
            world.write(&[measured(FOREIGN_GATEWAY, NOBODYS, 500..503, 900)]).await;
        }
        Happening::ABoxTakesHerIn => {
            desk.says(world, &desk.takes_in(200, Some(boundary(200)))).await;
            world.write(&[measured(GATEWAY, NEW, 200..210, HER_RATE)]).await;
        }
        Happening::ABoxIsRefused => {
            let stranger = Desk::new(GATEWAY, 9);
            let other = Desk::new(FOREIGN_GATEWAY, 8);
            for box_ in [&stranger, &other] {
                box_.says(
                    world,
                    &[box_.decide(3, added(PATIENT)), box_.decide(4, assigned(NEW, USER, None, None))],
                )
                .await;
            }
        }
        Happening::TheyAreMerged => {
            // As cloud-api/src/resources/provisional.rs does it.
            world
                .run(&format!(
                    "DO $$ BEGIN IF (SELECT count(*) FROM users WHERE id IN ('{USER}', '{PATIENT}')) = 2 THEN
                       UPDATE users SET merged_into = '{USER}', merged_at = now() WHERE id = '{PATIENT}';
                       UPDATE device_assignments SET user_id = '{USER}' WHERE user_id = '{PATIENT}';
                       UPDATE consents SET user_id = '{USER}' WHERE user_id = '{PATIENT}';
                       UPDATE devices SET user_id = '{USER}' WHERE user_id = '{PATIENT}';
                       INSERT INTO moves (tenant_id, from_user, to_user, asked_at) VALUES ('{TENANT}', '{PATIENT}', '{USER}', now());
                       INSERT INTO audit_log (tenant_id, actor, action, target, detail)
                         VALUES ('{TENANT}', 'm', 'wearer.merge', 'user:{PATIENT}', '{{\"into\": \"{USER}\"}}');
                     END IF; END $$"
                ))
                .await;
        }
        Happening::RollUp => {
            roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
            upkeep::keep(&world.writer(), &world.pool, world.clock.as_ref(), &Bounds::default())
                .await
                .unwrap();
        }
        Happening::DealtWith => dealt_with(world).await,
        Happening::Noted => {
            world
                .run(&format!(
                    "INSERT INTO alert_rules (tenant_id, name, severity, type, above, minutes, created_at, user_id)
                       SELECT '{TENANT}', 'Anna Unverkennbar', 'warning', 1, 100, 1, 'epoch', id FROM users WHERE id = '{USER}';
                     INSERT INTO audit_log (tenant_id, actor, action, target, detail)
                       SELECT '{TENANT}', 'm', 'alert_rule.add', 'alert_rule:' || id, '{{\"name\": \"Anna Unverkennbar\"}}'
                       FROM alert_rules WHERE user_id = '{USER}';
                     INSERT INTO audit_log (tenant_id, actor, action, target, detail) SELECT '{TENANT}', 'operator', 'admin.wearer',
                       'user:{USER}', '{{\"external_id\": \"ANNA-4711\"}}' WHERE EXISTS (SELECT FROM users WHERE id = '{USER}');
                     INSERT INTO alerts (tenant_id, kind, user_id, title, severity, from_time, to_time)
                       SELECT '{TENANT}', 'reading', id, 'Anna Unverkennbar', 'info', to_timestamp({0}), to_timestamp({0})
                       FROM users WHERE id = '{USER}';
                     INSERT INTO wear SELECT hardware_id, 1, to_timestamp({1}), true FROM device_assignments
                       WHERE user_id = '{USER}' AND valid_from <= to_timestamp({1})
                       ON CONFLICT DO NOTHING;
                     INSERT INTO ts.hrv SELECT '{TENANT}', id, to_timestamp({0}), 400, 0, 3e5, 750, 50, 40, 10, 900, 800
                       FROM users WHERE id = '{USER}' ON CONFLICT DO NOTHING;
                     INSERT INTO ts.alert_notes SELECT '{TENANT}', id, 1, to_timestamp({0}) FROM users WHERE id = '{USER}';
                     INSERT INTO ts.inference_notes SELECT '{TENANT}', id, to_timestamp({0}) FROM users WHERE id = '{USER}'",
                    second(0),
                    second(5)
                ))
                .await;
        }
    }
}

/// Somebody of the clinic deals with an event of hers, as cloud-api/src/resources/events.rs notes it.
async fn dealt_with(world: &World) {
    world
        .run(&format!(
            "INSERT INTO audit_log (tenant_id, actor, action, target, detail)
               SELECT '{TENANT}', 'm', 'event.acknowledge', 'event:' || id, jsonb_build_object('user_id', id,
                 'event_type', 'hot_flash', 'time', '{HER_MOMENT}', 'severity', 'info') FROM users WHERE id = '{USER}'"
        ))
        .await;
}

/// Every row of every table, as JSON, by the table's name.
async fn rows(world: &World) -> BTreeMap<String, Vec<Map<String, Value>>> {
    let tables = world
        .admin
        .query(
            "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
               AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
               AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')",
            &[],
        )
        .await
        .unwrap();
    let mut out = BTreeMap::new();
    for table in tables {
        let name: String = table.get(0);
        let rows = world.admin.query(&format!("SELECT to_jsonb(t) FROM {name} t"), &[]).await.unwrap();
        let rows = rows.iter().map(|row| row.get::<_, Value>(0).as_object().unwrap().clone()).collect();
        out.insert(name, rows);
    }
    assert!(out.len() > 40, "the walk found too little");
    out
}

/// What names or measures her: her numbers and words as they are written, and as they are in bytes; her frames.
fn needles(hers: &[Uuid]) -> BTreeSet<String> {
    let mut out: BTreeSet<String> = HER_WORDS
        .iter()
        .filter(|word| hers.contains(&PATIENT) || **word != "New Patient")
        .flat_map(|word| [(*word).to_owned(), hex::encode(word)])
        .collect();
    out.extend(hers.iter().flat_map(|id| [id.to_string(), id.simple().to_string()]));
    let seconds = (0..20).chain(30..33).chain(98..99).chain(200..210);
    out.extend(seconds.map(|seq| hex::encode(frame_with(EPOCH, seq, u64::from(seq) * 1_000, HER_RATE))));
    out.insert(hex::encode(format!(r#"{{"rate":{HER_RATE}}}"#)));
    out.insert(HER_MOMENT.to_owned());
    out
}

/// Her readings have no number of their own to look for: what was measured at her rate is hers, and whether it was worn is told of
/// her alone.
fn measures_her(row: &Map<String, Value>) -> bool {
    if row.contains_key("worn") && row.contains_key("at") {
        return true;
    }
    row.get("value")
        .and_then(Value::as_f64)
        .is_some_and(|value| (value - f64::from(HER_RATE) / 10.0).abs() < 1e-9)
}

fn text(table: &str, row: &Map<String, Value>, without_kept: bool) -> String {
    let kept = |column: &str| without_kept && KEPT.iter().any(|(t, c, _)| *t == table && *c == column);
    let said: Map<String, Value> =
        row.iter().filter(|(column, _)| !kept(column)).map(|(k, v)| (k.clone(), v.clone())).collect();
    Value::Object(said).to_string()
}

/// Tables that account for everybody together, whose rows change when somebody is erased.
const ACCOUNTS: [&str; 8] = [
    "ts.quarantine_changes",
    "ts.quarantine_sizes",
    "public.ledger",
    "public.gaps",
    "public.replays",
    "ts.written",
    "ts.stale",
    "kinara.migrations",
];

/// Rows that are of others and nobody's business of hers.
fn of_others(
    all: &BTreeMap<String, Vec<Map<String, Value>>>,
    needles: &BTreeSet<String>,
) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for (table, rows) in all {
        if ACCOUNTS.contains(&table.as_str()) || table.starts_with("jobs.") || table == "public.moves" {
            continue;
        }
        for row in rows {
            let said = text(table, row, false);
            if !measures_her(row) && !needles.iter().any(|needle| said.contains(needle)) {
                // Under whom a reading is stored may be corrected by the same boundaries.
                out.insert(format!("{table} {said}"));
            }
        }
    }
    out
}

async fn erase_everybody(world: &World) {
    for stone in tombstones(&world.pool).await.unwrap() {
        erase(&world.pool, stone.tenant, stone.user).await.unwrap();
    }
}

async fn story(happenings: Vec<Happening>, erased_at: usize, which: usize) {
    let world = world().await;
    world
        .run(&format!(
            "UPDATE users SET display_name = '{}', external_id = '{}', email = '{}' WHERE id = '{USER}'",
            HER_WORDS[0], HER_WORDS[1], HER_WORDS[2]
        ))
        .await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    for (index, happening) in happenings.iter().enumerate() {
        if index == erased_at {
            world
                .run(&format!(
                    "INSERT INTO tombstones (tenant_id, user_id) SELECT tenant_id, id FROM users WHERE id = '{}'",
                    HERS[which]
                ))
                .await;
            // The job may be quicker or slower than what comes next.
            if index % 2 == 0 {
                erase_everybody(&world).await;
            }
        }
        happen(&world, &desk, *happening).await;
        world.days_are_known().await;
    }
    world
        .run(&format!(
            "INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}') ON CONFLICT DO NOTHING"
        ))
        .await;
    let hers: Vec<Uuid> = tombstones(&world.pool).await.unwrap().iter().map(|stone| stone.user).collect();
    let needles = needles(&hers);
    let before = of_others(&rows(&world).await, &needles);
    // At once, and ten minutes later.
    erase_everybody(&world).await;
    erase_everybody(&world).await;
    let after = rows(&world).await;
    let mut found = Vec::new();
    let numbers: BTreeSet<String> =
        hers.iter().flat_map(|id| [id.to_string(), id.simple().to_string()]).collect();
    for (table, rows) in &after {
        for row in rows {
            let said = text(table, row, true);
            // Of somebody of whom nobody knows that they are her, it is not hers.
            let of_another = row.get("user_id").and_then(Value::as_str) == Some(&PATIENT.to_string());
            // What is kept of her is a number, and no more.
            let kept = text(table, row, false);
            let names = needles.iter().any(|needle| said.contains(needle))
                || needles.difference(&numbers).any(|needle| kept.contains(needle));
            if names || (measures_her(row) && !of_another) {
                found.push(format!("{table}: {kept}"));
            }
        }
    }
    assert!(found.is_empty(), "of her: {found:#?}");
    let after = of_others(&after, &needles);
    let lost: Vec<&String> = before.difference(&after).collect();
    assert!(lost.is_empty(), "of others: {lost:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn nothing_names_or_measures_an_erased_person_and_nothing_of_others_is_gone(
        happenings in Just(ALL.to_vec()).prop_shuffle(), erased_at in 0usize..11, which in 0usize..2,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(story(happenings, erased_at, which));
    }
}

/// The order of the review: merged first, then the one into whom they were merged is erased.
#[tokio::test]
async fn whoever_was_merged_into_an_erased_person_is_erased_too() {
    for which in [0, 1] {
        let mut happenings = ALL.to_vec();
        happenings.sort_unstable();
        story(happenings, ALL.len(), which).await;
    }
    let mut merged_after = ALL.to_vec();
    merged_after.retain(|one| *one != Happening::TheyAreMerged);
    merged_after.push(Happening::TheyAreMerged);
    story(merged_after, 8, 1).await;
}

#[tokio::test]
async fn what_was_refused_goes_with_whom_it_was_made_of_whenever_it_came() {
    let world = world().await;
    let at = BOOT_US / 1_000_000 + 100;
    world
        .run(&format!(
            "UPDATE device_assignments SET valid_to = to_timestamp({at});
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from)
               VALUES ('{HARDWARE_ROW}', '{TENANT}', '{SECOND_USER}', '{DEVICE}', to_timestamp({at}))"
        ))
        .await;
    // Both are refused by the database, long after the hand-over.
    let aside = |seq: u32| {
        let bytes = hex::encode(frame(EPOCH, seq));
        let fit = serde_json::json!({ "ref_ticks": 0, "ref_utc_us": BOOT_US, "rate_ppb": 0, "uncertainty_us": 5000,
            "growth_ppb": 5000, "time_uncertain": false });
        format!(
            "INSERT INTO quarantine (tenant_id, gateway_id, what, hardware_id, epoch, seq, reason, payload, digest, fit, received_at)
               VALUES ('{TENANT}', '{GATEWAY}', 'frame', '{HARDWARE}', {}, {seq}, 'database', '\\x{bytes}', sha256('{seq}'), '{fit}',
                 to_timestamp({}))",
            EPOCH.0 as i64,
            NOW_US / 1_000_000
        )
    };
    world.run(&format!("{};{}", aside(20), aside(120))).await;
    world.run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')")).await;
    erase(&world.pool, TENANT, USER).await.unwrap();
    assert_eq!(world.quarantine().await, "database 120");
    assert!(world.gaps().await.contains("erased {[20,21)}"), "{}", world.gaps().await);
    world
        .run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{SECOND_USER}')"))
        .await;
    erase(&world.pool, TENANT, SECOND_USER).await.unwrap();
    assert_eq!(world.quarantine().await, "none");
    assert!(world.gaps().await.contains("erased {[120,121)}"), "{}", world.gaps().await);
}

/// The step that a database goes through which has lines of before.
const AGAIN: &str = include_str!("../../../store/migrations/0034_rules_follow.sql");

#[tokio::test]
async fn what_an_erased_wearer_had_and_when_is_in_no_line_of_the_log_that_an_older_release_wrote() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO audit_log (tenant_id, actor, action, target, detail)
               SELECT '{TENANT}', 'm', 'event.acknowledge', 'event:' || id || ':hot_flash:{HER_MOMENT}', '{{\"severity\": \"info\"}}'
               FROM users;
             INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')"
        ))
        .await;
    world.run(AGAIN).await;
    let line = |user: Uuid| format!("SELECT detail FROM audit_log WHERE target = 'event:{user}'");
    let erased = |user: Uuid| format!(r#"{{"erased": true, "user_id": "{user}"}}"#);
    assert_eq!(world.text(&line(USER)).await, erased(USER));
    let told = world.text(&line(SECOND_USER)).await;
    assert!(told.contains(&format!(r#""time": "{HER_MOMENT}""#)) && told.contains("hot_flash"), "{told}");
    world
        .run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{SECOND_USER}')"))
        .await;
    erase(&world.pool, TENANT, SECOND_USER).await.unwrap();
    assert_eq!(world.text(&line(SECOND_USER)).await, erased(SECOND_USER));
}
