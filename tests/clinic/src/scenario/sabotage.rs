//! Faults planted in the product (test builds only), each of which the oracle must find.
//!
//! The smallest clinic that must catch each one: a verdict without findings of the right kind means that the oracle is
//! blind there, and that is the failure.

use super::{Patience, Stage, attack, deliveries, gateways, parked, people, store_damage};
use crate::Result;
use crate::clinic::Options;
use crate::oracle::verdict::{Kind, Verdict};

/// A fault that can be planted.
#[derive(Debug, Clone, Copy)]
pub struct Sabotage {
    /// As `KINARA_SABOTAGE` names it.
    pub name: &'static str,
    /// What the oracle must find.
    pub finds: Kind,
    agenda: fn(&mut Stage) -> Result<()>,
}

/// All there are.
pub const ALL: &[Sabotage] = &[
    Sabotage { name: "lose-frame", finds: Kind::Lost, agenda: plain },
    Sabotage { name: "double-batch", finds: Kind::Double, agenda: plain },
    Sabotage { name: "ack-before-commit", finds: Kind::Lost, agenda: kills },
    Sabotage { name: "ledger-off", finds: Kind::Double, agenda: again },
    Sabotage { name: "swap-wearer", finds: Kind::WrongWearer, agenda: plain },
    Sabotage { name: "shift-clock", finds: Kind::WrongTime, agenda: plain },
    Sabotage { name: "reverse-frame", finds: Kind::WrongValue, agenda: plain },
    Sabotage { name: "ack-in-wait", finds: Kind::Lost, agenda: gateways::kill_waiting },
    Sabotage { name: "never-ask-again", finds: Kind::Lost, agenda: store_damage::page },
    Sabotage { name: "forget-parked", finds: Kind::Lost, agenda: parked::parked },
    Sabotage { name: "move-nothing", finds: Kind::WrongWearer, agenda: people::late_assignment },
    Sabotage { name: "erase-nothing", finds: Kind::NotErased, agenda: people::erasure },
    Sabotage { name: "take-erased", finds: Kind::NotErased, agenda: people::erasure },
    Sabotage { name: "take-foreign", finds: Kind::Invented, agenda: attack::hostile_clinic },
];

/// Finds one by name.
pub fn named(name: &str) -> Option<Sabotage> {
    ALL.iter().copied().find(|sabotage| sabotage.name == name)
}

/// Two wearers with an hour or less each: enough for every 50th frame to matter.
fn plain(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    stage.wearable(0, &[north], &["--prefill", "20m"])?;
    stage.wearable(0, &[north], &["--prefill", "20m"])?;
    stage.at(6.0, "all has gone its way", |_| Ok(()));
    Ok(())
}

/// Both programs that acknowledge are killed while they are busy.
fn kills(stage: &mut Stage) -> Result<()> {
    plain(stage)?;
    for at in [1.6, 3.2, 5.0, 7.0] {
        stage.at(at, "kill -9 of gateway and bridge", |stage| {
            stage.clinic.gateways[0].process().kill();
            stage.clinic.bridges[0].kill();
            stage.clinic.gateways[0].process().spawn()?;
            stage.clinic.bridges[0].spawn()
        });
    }
    // What comes after the last of them arrives late, and is not lost.
    stage.at(13.0, "all has gone its way", |_| Ok(()));
    Ok(())
}

fn again(stage: &mut Stage) -> Result<()> {
    plain(stage)?;
    deliveries::again(stage, 8.0)
}

impl Sabotage {
    /// Runs the smallest clinic with this fault in it and returns what the oracle says.
    pub fn run(self, options: Options, seed: u64) -> Result<Verdict> {
        let options = Options { sabotage: Some(self.name.to_owned()), ..options };
        let mut stage = Stage::open(options, seed)?;
        stage.enter("sabotage", &[]);
        (self.agenda)(&mut stage)?;
        stage.play()?;
        stage.settle(Patience::short())?;
        let mut verdict = stage.judge()?;
        verdict.seed = seed;
        verdict.scenarios = vec![format!("sabotage {}", self.name)];
        Ok(verdict)
    }

    /// Whether the oracle saw it for what it is. A clinic in which nothing arrives at all proves nothing.
    pub fn is_found_by(self, verdict: &Verdict) -> bool {
        verdict.of(self.finds) > 0 && verdict.stored > 0
    }
}
