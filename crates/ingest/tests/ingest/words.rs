//! What a clinic says of a device's other epochs reaches into none that another clinic has.

use crate::claims::{GIVEN, NEXT, OTHERS, REBOOT, began, brings, goes_to, reals, write};
use crate::support::*;
use kinara_protocol::frame::Epoch;

/// The boot after the next one.
const LATER: Epoch = Epoch::new(0xaa, 3);

/// Resets of an epoch: from which to which second after the first boot.
async fn resets(world: &World, epoch: Epoch) -> String {
    let second = |column: &str| format!("extract(epoch FROM {column})::int8 - {}", BOOT_US / 1_000_000);
    world
        .text(&format!(
            "SELECT string_agg({} || '-' || {}, ', ' ORDER BY to_time) FROM gaps WHERE reason = 'reset' AND epoch = {}",
            second("from_time"),
            second("to_time"),
            epoch.0
        ))
        .await
}

#[tokio::test]
async fn what_a_clinic_said_of_a_boot_to_come_hides_no_loss_of_the_clinic_after_it() {
    let world = world().await;
    write(&world, brings(GATEWAY, &reals(EPOCH, 0..10), fit())).await;
    // As of now: how the device's next boot ends, to the millisecond.
    let made_up = boot(LATER, Some((NEXT, 20, 19_000)));
    write(&world, brings(GATEWAY, &[made_up], began(50))).await;
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    let next = [vec![boot(NEXT, Some((EPOCH, 10, 9_000)))], reals(NEXT, 1..20)].concat();
    write(&world, brings(FOREIGN_GATEWAY, &next, began(REBOOT))).await;
    let later = boot(LATER, Some((NEXT, 20, 19_000)));
    write(&world, brings(FOREIGN_GATEWAY, &[later], began(REBOOT + 60))).await;
    // The clinic's own loss is there; it begins where the clinic got the device, by a clock that nobody has to believe.
    assert_eq!(resets(&world, NEXT).await, "19-50, 100-260");
}

#[tokio::test]
async fn what_a_clinic_says_of_epochs_of_the_clinic_before_it_makes_no_loss_there_and_hides_none() {
    let world = world().await;
    write(&world, brings(GATEWAY, &reals(EPOCH, 0..50), fit())).await;
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    let words = [boot(NEXT, Some((EPOCH, u32::MAX, 10_000))), overflow(NEXT, 1, EPOCH, 0, u32::MAX)];
    write(&world, brings(FOREIGN_GATEWAY, &words, began(REBOOT))).await;
    assert_eq!((world.gaps().await.as_str(), resets(&world, EPOCH).await.as_str()), ("reset -", "100-200"));
    // What the former clinic's box still brings, with a hole.
    write(&world, brings(GATEWAY, &reals(EPOCH, 55..60), fit())).await;
    assert_eq!(world.gaps().await, "late {[50,55)}, reset -");
    // Of its own epoch the clinic is believed.
    write(&world, brings(FOREIGN_GATEWAY, &reals(NEXT, 2..10), began(REBOOT))).await;
    let words = [boot(LATER, Some((NEXT, 20, 19_000))), overflow(LATER, 1, NEXT, 12, 14)];
    write(&world, brings(FOREIGN_GATEWAY, &words, began(REBOOT + 60))).await;
    assert_eq!(
        world.gaps().await,
        "late {[10,12)}, late {[15,20)}, late {[50,55)}, overflow {[12,15)}, reset -, reset -"
    );
}

#[tokio::test]
async fn a_clinic_is_believed_about_its_own_part_of_an_epoch_in_which_it_got_the_device() {
    let world = world().await;
    write(&world, brings(GATEWAY, &reals(EPOCH, 0..50), fit())).await;
    goes_to(&world, OTHER_TENANT, OTHERS, GIVEN).await;
    // In one transaction with the first that it has of it.
    let both = [
        brings(FOREIGN_GATEWAY, &reals(EPOCH, 110..120), fit()),
        brings(FOREIGN_GATEWAY, &[boot(NEXT, Some((EPOCH, 125, 124_000)))], began(REBOOT)),
    ];
    world.write(&both).await;
    assert_eq!(world.gaps().await, "late {[120,125)}, late {[50,110)}, reset -");
    assert_eq!(resets(&world, EPOCH).await, "124-200");
}
