//! Small batches that wait are read some at once: what is wrong with one of them is its own.

use crate::ground::*;
use crate::support::*;
use kinara_protocol::envelope::{self, Ack, ack};
use kinara_protocol::topic::Leaf;
use kinara_test_postgres::Options;

/// Batches that wait while the first one is written: several turns of reading.
const BATCHES: u64 = 50;

fn is_unreadable(sequence: u64) -> bool {
    sequence % 10 == 7
}

fn is_anothers(sequence: u64) -> bool {
    sequence % 20 == 13
}

fn waiting(sequence: u64) -> Vec<u8> {
    let first = u32::try_from(sequence).unwrap() * 2;
    match sequence {
        _ if is_unreadable(sequence) => format!("no batch {sequence}").into_bytes(),
        _ if is_anothers(sequence) => payload(SECOND_GATEWAY, sequence, first..first + 2),
        _ => payload(GATEWAY, sequence, first..first + 2),
    }
}

fn sequence_of(ack: &Ack) -> u64 {
    ack.name.as_ref().unwrap().sequence
}

#[tokio::test]
async fn of_small_batches_that_wait_each_is_answered_by_its_own_name_and_digest_in_the_order_they_came() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    let bridge = Bridge::start(&world, &certificates, &broker, "[limits]\nwriters = 1\n").await;
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &[]).await;
    // The first one waits for the ledger, and the others for the writer.
    world.run("BEGIN; LOCK TABLE ledger IN EXCLUSIVE MODE").await;
    let blocked = "SELECT count(*) FROM pg_locks WHERE relation = 'ledger'::regclass AND NOT granted";
    gateway.publish(Leaf::Batch, waiting(0), Some((7, 0)));
    gateway.sent().await;
    until("the first batch is not being written", async || world.number(blocked).await > 0).await;
    for sequence in 1..BATCHES {
        gateway.publish(Leaf::Batch, waiting(sequence), Some((7, sequence)));
        gateway.sent().await;
    }
    let received = format!("\nkinara_bridge_batches_total {BATCHES}\n");
    until("the bridge has all of them", async || figures(&certificates).await.contains(&received)).await;
    world.run("COMMIT").await;
    let mut acks = Vec::new();
    for _ in 0..BATCHES {
        acks.push(gateway.ack().await);
    }
    for ack in &acks {
        assert_eq!(ack.sha256, envelope::digest(&waiting(sequence_of(ack))), "{ack:?}");
    }
    let (good, bad): (Vec<&Ack>, Vec<&Ack>) =
        acks.iter().partition(|ack| matches!(ack.outcome, Some(ack::Outcome::Done(_))));
    assert!(good.iter().all(|ack| done(ack) == (2, 0)));
    assert!(bad.iter().all(|ack| matches!(ack.outcome, Some(ack::Outcome::Refused(_)))), "{bad:?}");
    let is_bad = |sequence: &u64| is_unreadable(*sequence) || is_anothers(*sequence);
    let (refused, stored): (Vec<u64>, Vec<u64>) = (0..BATCHES).partition(is_bad);
    assert_eq!(good.into_iter().map(sequence_of).collect::<Vec<_>>(), stored);
    assert_eq!(bad.into_iter().map(sequence_of).collect::<Vec<_>>(), refused);
    assert_eq!(world.readings().await, stored.len() as i64 * 2 * 5);
    bridge.stop().await;
}
