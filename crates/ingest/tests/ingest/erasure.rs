//! Who is erased does not come back; and what is there is what was written.

use std::time::Duration;

use crate::support::*;
use kinara_ingest::erase::{Again, erase, erase_again, restore, tombstones};
use kinara_ingest::reconcile::{Found, Span, reconcile};
use kinara_ingest::rollup::{Slice, roll_up};
use kinara_ingest::{Batch, batch, timestamp};
use kinara_protocol::channel::ACCELERATION;
use kinara_protocol::columns;
use kinara_protocol::frame::FrameRef;

fn batch_of(frames: &[Vec<u8>]) -> Batch {
    let refs = frames.iter().map(|bytes| FrameRef::parse(bytes).unwrap());
    let columns = stamped(columns::encode(HARDWARE, EPOCH, refs).unwrap(), fit());
    batch::from_envelope(envelope_of(GATEWAY, 0, vec![columns])).unwrap()
}

fn seconds(seqs: std::ops::Range<u32>) -> Batch {
    batch_of(&seqs.map(|seq| frame(EPOCH, seq)).collect::<Vec<_>>())
}

async fn compared(world: &World) -> Found {
    let span = Span { raw_from: timestamp(0), again_from: timestamp(0), patience: Duration::from_mins(1) };
    reconcile(&world.pool, &span).await.unwrap()
}

/// Alerts of what does not add up, and of which clinic.
async fn alerts(world: &World) -> String {
    world
        .text(
            "SELECT coalesce(string_agg(kind || ' ' || tenant_id, ', ' ORDER BY kind, subject), 'none')
             FROM alerts WHERE withdrawn_at IS NULL",
        )
        .await
}

async fn left(world: &World) -> i64 {
    world
        .number(&format!(
            "(SELECT count(*) FROM ts.readings WHERE user_id = '{USER}') + (SELECT count(*) FROM ts.waveforms WHERE user_id = '{USER}')
             + (SELECT count(*) FROM ts.readings_minute WHERE user_id = '{USER}')
             + (SELECT count(*) FROM ts.readings_daily WHERE user_id = '{USER}')
             + (SELECT count(*) FROM users WHERE id = '{USER}') + (SELECT count(*) FROM consents WHERE user_id = '{USER}')"
        ))
        .await
}

#[tokio::test]
async fn an_erased_person_is_gone_and_what_comes_late_does_not_bring_them_back() {
    let world = world().await;
    world.write(&[seconds(0..90)]).await;
    world.write(&[batch_of(&[frame_of(EPOCH, 200, ACCELERATION, &[1, 2, 3])])]).await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    // Another wearer's readings stay.
    world
        .run(&format!(
            "INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               SELECT time, tenant_id, '{SECOND_USER}', device_id, type, idx, epoch + 1, seq, value FROM ts.readings LIMIT 7"
        ))
        .await;
    let ledger = world.ledger().await;
    assert!(left(&world).await > 450);
    // No slip of a finger erases anybody: the tombstone comes first.
    assert!(erase(&world.pool, TENANT, USER).await.is_err());
    world.run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')")).await;
    assert_eq!(
        world
            .text(
                "SELECT string_agg(payload ->> 'id' || (run_at > now() + interval '9 minutes'), ' ' ORDER BY run_at)
                 FROM jobs._private_jobs WHERE payload ->> 'id' IS NOT NULL"
            )
            .await,
        format!("{USER}false {USER}true"),
        "at once, and again when no writer that had begun before can be left"
    );
    assert!(erase(&world.pool, TENANT, USER).await.unwrap() > 450);
    assert_eq!((left(&world).await, world.readings().await, world.ledger().await), (0, 7, ledger));
    assert_eq!(erase(&world.pool, TENANT, USER).await.unwrap(), 0);

    let counts = world.write(&[seconds(80..120)]).await;
    assert_eq!((counts[0].stored, counts[0].duplicate + counts[0].discarded), (0, 40));
    assert_eq!(left(&world).await, 0);
    assert!(world.gaps().await.contains("erased"));
}

#[tokio::test]
async fn tombstones_that_were_kept_elsewhere_are_put_back_after_a_restore() {
    let world = world().await;
    world.write(&[seconds(0..30)]).await;
    world.run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')")).await;
    let kept = tombstones(&world.pool).await.unwrap();
    let kept: Vec<_> = serde_json::from_str(&serde_json::to_string(&kept).unwrap()).unwrap();
    // The backup is from before: the person is there, and nobody knows that they should not be.
    world.run("DELETE FROM tombstones; DELETE FROM jobs._private_jobs").await;
    assert_eq!(restore(&world.pool, &kept).await.unwrap(), 1);
    assert_eq!(restore(&world.pool, &kept).await.unwrap(), 0);
    assert_eq!(world.number("SELECT count(*) FROM jobs._private_jobs").await, 2);
    let night = async |days: i64| {
        let now = timestamp(NOW_US + days * 86_400_000_000);
        erase_again(&world.pool, timestamp(NOW_US + (days - 30) * 86_400_000_000), now).await.unwrap()
    };
    world.run(&format!("UPDATE tombstones SET erased_at = to_timestamp({})", NOW_US / 1_000_000)).await;
    assert!(night(0).await.rows > 0);
    assert_eq!(left(&world).await, 0);
    // As a backup brings it back, on which the tombstone stands already: that is known within its time, or when it is said.
    let back = format!(
        "INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
           VALUES (to_timestamp({}), '{TENANT}', '{USER}', '{DEVICE}', 1, 0, 1, 0, 70);
         {DAYS}",
        BOOT_US / 1_000_000
    );
    world.run(&back).await;
    assert_eq!(night(29).await.rows, 1);
    world.run(&back).await;
    assert_eq!(night(300).await.rows, 1, "a day that is left says that something may be");
    assert_eq!(world.number("SELECT count(*) FROM ts.days").await, 0);
    let settled = "SELECT settled_at FROM tombstones";
    let before = world.text(settled).await;
    assert_eq!(night(301).await, Again::default());
    assert_eq!(world.text(settled).await, before, "who was erased long ago is not looked for every night");
    assert_eq!(restore(&world.pool, &kept).await.unwrap(), 1);
    world.run(&back).await;
    assert_eq!(night(302).await.rows, 1);
    assert_eq!(night(303).await, Again::default());
}

#[tokio::test]
async fn one_person_who_cannot_be_erased_stops_no_others() {
    let world = world().await;
    world.write(&[seconds(0..30)]).await;
    world
        .run(&format!(
            "INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               SELECT time, tenant_id, '{SECOND_USER}', device_id, type, idx, epoch + 1, seq, value FROM ts.readings;
             {DAYS};
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
             CREATE TRIGGER refuse BEFORE DELETE ON ts.readings FOR EACH ROW WHEN (OLD.user_id = '{USER}') EXECUTE FUNCTION refuse();
             INSERT INTO tombstones (tenant_id, user_id, erased_at) VALUES ('{TENANT}', '{USER}', 'epoch'),
               ('{TENANT}', '{SECOND_USER}', now())"
        ))
        .await;
    let night = async || erase_again(&world.pool, timestamp(NOW_US), timestamp(NOW_US)).await.unwrap();
    let first = night().await;
    assert_eq!((first.failed, first.rows > 150), (1, true));
    assert_eq!(world.number("SELECT count(DISTINCT user_id) FROM ts.readings").await, 1);
    world.run("DROP TRIGGER refuse ON ts.readings").await;
    assert_eq!((night().await.failed, world.readings().await), (0, 0));
}

#[tokio::test]
async fn every_night_the_rows_that_are_there_are_compared_with_those_that_were_written() {
    let world = world().await;
    world.write(&[seconds(0..60), seconds(30..90)]).await;
    let fine = compared(&world).await;
    assert_eq!((fine.frames.len(), fine.hours), (0, 0));
    assert!(fine.days > 0);
    for (fault, mend) in [
        (
            "CREATE TABLE aside AS SELECT * FROM ts.readings WHERE seq = 7; DELETE FROM ts.readings WHERE seq = 7",
            "INSERT INTO ts.readings SELECT * FROM aside",
        ),
        (
            "INSERT INTO ts.readings SELECT * FROM ts.readings WHERE seq = 8 AND type = 1",
            "DELETE FROM ts.readings WHERE ctid IN (SELECT max(ctid) FROM ts.readings WHERE seq = 8 AND type = 1)",
        ),
    ] {
        world.run(fault).await;
        assert_eq!(compared(&world).await.hours, 1, "{fault}");
        assert_eq!(alerts(&world).await, format!("rows {TENANT}"));
        world.run(mend).await;
        assert_eq!(compared(&world).await.hours, 0, "{mend}");
        assert_eq!(alerts(&world).await, "none");
    }
    // Erasing is no difference.
    world.run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')")).await;
    erase(&world.pool, TENANT, USER).await.unwrap();
    assert_eq!((world.readings().await, compared(&world).await.hours), (0, 0));
}

#[tokio::test]
async fn a_number_that_is_nowhere_or_twice_is_found() {
    let world = world().await;
    world.write(&[seconds(0..10), seconds(20..30)]).await;
    assert_eq!((world.gaps().await, compared(&world).await.frames.len()), ("late {[10,20)}".to_owned(), 0));
    world.run("UPDATE gaps SET seqs = '{[12,22)}'").await;
    let found = compared(&world).await;
    assert_eq!(
        found.frames.iter().map(|one| (one.nowhere.as_str(), one.twice.as_str())).collect::<Vec<_>>(),
        [("{[10,12)}", "{[20,22)}")]
    );
    // It is one alert, until it is mended.
    compared(&world).await;
    assert_eq!(alerts(&world).await, format!("frames {TENANT}"));
    world.run("UPDATE gaps SET seqs = '{[10,20)}'").await;
    assert_eq!((compared(&world).await.frames, alerts(&world).await), (vec![], "none".to_owned()));
}

#[tokio::test]
async fn a_frame_that_a_gateway_was_told_is_here_and_is_not_is_found() {
    let world = world().await;
    let tell = async |epoch: i64, seqs: &str| {
        world
            .run(&format!(
                "INSERT INTO gateway_delivered VALUES ('{GATEWAY}', '{HARDWARE_ROW}', {epoch}, '{seqs}', now())
                   ON CONFLICT (gateway_id, hardware, epoch) DO UPDATE SET seqs = excluded.seqs"
            ))
            .await;
    };
    world.write(&[seconds(0..10)]).await;
    tell(EPOCH.0 as i64, "{[0,10)}").await;
    assert_eq!(compared(&world).await.frames, []);
    // As after a restore: the database knows of no such frames, not even that there were any.
    tell(EPOCH.0 as i64, "{[0,20)}").await;
    tell(99, "{[0,3)}").await;
    let found = compared(&world).await.frames;
    let said: Vec<_> = found.iter().map(|one| (one.acknowledged.as_str(), one.nowhere.as_str())).collect();
    assert_eq!(said, [("{[0,3)}", "{}"), ("{[10,20)}", "{}")]);
    assert_eq!(alerts(&world).await, format!("frames {TENANT}, frames {TENANT}"));
    world.write(&[seconds(10..20)]).await;
    tell(99, "{}").await;
    assert_eq!((compared(&world).await.frames, alerts(&world).await), (vec![], "none".to_owned()));
}

#[tokio::test]
async fn what_is_compressed_is_erased_as_well() {
    let world = world().await;
    world
        .run(&format!(
            "SELECT ts.ensure_partitions(now() - interval '20 days', now() - interval '20 days');
             INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               SELECT date_bin('1 day', now(), 'epoch') - interval '20 days' + make_interval(secs => s), '{TENANT}', u, '{DEVICE}',
                 1, 0, 1, s, 70
               FROM generate_series(1, 80000) s, unnest(ARRAY['{USER}', '{SECOND_USER}']::uuid[]) u;
             {DAYS};
             INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')"
        ))
        .await;
    let mut compressed = 0;
    while world.number("SELECT ts.compress_closed()").await > 0 {
        compressed += 1;
    }
    assert_eq!(compressed > 0, world.text("SELECT kind FROM ts.storage").await == "timescale");
    assert!(erase(&world.pool, TENANT, USER).await.unwrap() >= 80_000);
    assert_eq!((left(&world).await, world.readings().await), (0, 80_000));
}
