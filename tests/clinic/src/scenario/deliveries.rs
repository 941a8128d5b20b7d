//! What was sent once arrives twice, late, or out of order.

use std::time::Duration;

use serde_json::json;

use super::Stage;
use super::postbox::Postbox;
use crate::Result;
use crate::oracle::witness::Witness;

/// Notifications are lost, reordered and stalled, links drop; and whatever batch a gateway has published is published
/// again, out of order, while it is being written and long after.
pub fn prepare(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    let wearable = stage.wearable(0, &[north], &["--prefill", "30m"])?;
    for (from, to, command) in [
        (1.0, 3.0, json!({"do": "reorder", "notifications": 20})),
        (3.0, 6.0, json!({"do": "lose", "notifications": 3})),
        (6.0, 9.0, json!({"do": "drop"})),
        (9.0, 12.0, json!({"do": "stall", "seconds": 3})),
        (14.0, 18.0, json!({"do": "reorder", "notifications": 8})),
        (18.0, 22.0, json!({"do": "lose", "notifications": 1})),
        (24.0, 28.0, json!({"do": "drop"})),
    ] {
        let at = stage.moment(from, to);
        let what = command["do"].as_str().unwrap_or_default().to_owned();
        let witness = if what == "drop" { Witness::LinkDropped } else { Witness::LinkDisturbed };
        stage.at(at, what, move |stage| {
            stage.await_sight(witness, |stage| stage.linked(wearable).is_some());
            stage.tell(wearable, &command).map(|_| ())
        });
    }
    again(stage, 40.0)
}

const FOR_AN_ANSWER: Duration = Duration::from_secs(15);

/// Publishes what was heard again, every few seconds until `to`.
pub fn again(stage: &mut Stage, to: f64) -> Result<()> {
    let postbox = Postbox::open(stage)?;
    stage.postbox = Some(postbox);
    let mut at = 2.0;
    while at < to {
        at += stage.moment(2.0, 4.0);
        stage.at(at, "batches come again", |stage| {
            let Stage { postbox, rng, .. } = stage;
            if let Some(postbox) = postbox {
                let count = postbox.publish_again(rng);
                eprintln!("          {count} batches published again");
            }
            Ok(())
        });
    }
    stage.at(to, "batches that came again were answered as duplicates", |stage| {
        stage.await_sight_for(FOR_AN_ANSWER, Witness::DuplicateDelivered, &mut |stage| {
            stage.postbox.as_ref().is_some_and(|postbox| postbox.duplicates() > 0)
        });
        Ok(())
    });
    Ok(())
}
