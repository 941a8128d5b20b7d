//! A clinic that attacks the others.

use super::Stage;
use crate::Result;
use crate::hostile::{self, attack::Attack};
use crate::oracle::witness::Witness;

/// The attack of `./kinara test hostile`, for a while, while the oracle counts the other clinic's readings.
pub fn hostile_clinic(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    stage.wearable(0, &[north], &["--prefill", "30m"])?;
    stage.wearable(0, &[north], &[])?;
    let from = stage.moment(3.0, 5.0);
    let seed = stage.moment(0.0, 1.0).to_bits();
    stage.at(from, "the other clinic attacks", move |stage| {
        let (party, target) = hostile::prepare(stage)?;
        stage.attack = Some(Attack::start(&party, &target, seed, super::utc_us)?);
        Ok(())
    });
    stage.at(from + 25.0, "the attack is over", |stage| {
        let Some(attack) = stage.attack.take() else { return Ok(()) };
        let tally = attack.end();
        eprintln!("          {} messages; refused: {:?}", tally.messages(), tally.refused);
        if tally.messages() > 0 {
            stage.saw(Witness::HostileSent);
        }
        if !tally.refused.is_empty() {
            stage.saw(Witness::HostileRefused);
        }
        Ok(())
    });
    Ok(())
}
