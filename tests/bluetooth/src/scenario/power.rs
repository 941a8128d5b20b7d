//! Power cuts, and the judgement of everything.

use super::{Day, LINK};
use crate::{BedError, Result};
use kinara_clinic::process::pause;
use rand::Rng;
use std::time::Duration;

/// So often is the power cut (`long`: LONG_CUTS).
const CUTS: u32 = 5;
const LONG_CUTS: u32 = 50;
/// How long everything may take to arrive at the end.
const SETTLE: Duration = Duration::from_mins(5);

pub fn the_machine_is_cut_from_power(day: &mut Day) -> Result<()> {
    let cuts = if day.long { LONG_CUTS } else { CUTS };
    let known = day.known.clone();
    for cut in 1..=cuts {
        // Somewhere between a commit, its acknowledgement and the batch's way up.
        let streams = Duration::from_secs_f64(day.ward.stage.rng.random_range(0.5..4.0));
        pause(streams);
        day.ward.cut_power(day.machine);
        pause(Duration::from_secs(1));
        day.ward.bed.boot_with_bluetooth(day.machine)?;
        day.ward.start_gateway(day.gateway)?;
        // All of them at the end; some of them is enough for the next cut.
        let some = if cut == cuts { &known[..] } else { &known[..2] };
        let took = day.all_flow(some, LINK)?;
        eprintln!("      cut {cut} of {cuts}: readings again after {:.0} s", took.as_secs_f64());
    }
    day.note("power_cuts", cuts);
    Ok(())
}

pub fn nothing_is_lost_or_double(day: &mut Day) -> Result<()> {
    day.ward.bring_back()?;
    let (ahead_us, uncertain_us) = day.ward.hand(day.gateway)?.clock_offset()?;
    eprintln!("      the machine's clock is ahead by {ahead_us} µs ± {uncertain_us}");
    day.ward.settle(SETTLE)?;
    let verdict = day.ward.judge()?;
    for (name, value) in [
        ("produced", verdict.produced),
        ("stored", verdict.stored),
        ("lost", verdict.lost),
        ("double", verdict.double),
    ] {
        day.note(name, value);
    }
    if verdict.passed() {
        Ok(())
    } else {
        Err(BedError::Broken(format!("the promise was broken: {verdict}")))
    }
}
