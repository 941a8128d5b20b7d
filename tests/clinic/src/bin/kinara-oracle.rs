//! `./kinara test oracle`: runs the scenarios and judges what is stored by what was produced.
//!
//! The last line is one JSON object. The exit status is 0 when the promise held, 1 when the oracle found something,
//! 2 when it could not judge. With `--sabotage` a 1 is what one wants to see; `--sabotage all` turns it round and
//! exits 0 only if each planted fault was found for what it is.

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use kinara_clinic::clinic::Options;
use kinara_clinic::oracle::verdict::Verdict;
use kinara_clinic::scenario::sabotage::{self, Sabotage};
use kinara_clinic::scenario::{self, Patience, Scenario};
use serde_json::json;

/// Every reading that the wearables stored, once, where it belongs: or the oracle says what is not.
#[derive(Parser)]
#[command(name = "kinara-oracle", version)]
struct Arguments {
    /// How often all scenarios run, each time with the next seed.
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// Where all randomness comes from.
    #[arg(long, default_value_t = 20_261_123)]
    seed: u64,
    /// Only these scenarios, in a clinic of their own (may be given more than once).
    #[arg(long)]
    scenario: Vec<String>,
    /// Plants a fault that must be found (test builds only): its name, or `all`.
    #[arg(long)]
    sabotage: Option<String>,
    /// Progress goes to standard error in any case; this keeps everything but the JSON line from standard output.
    #[arg(long)]
    json: bool,
    /// Names the scenarios and the faults that can be planted.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    // Once in a program; a second time would be another library's wish, and as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("the oracle could not judge: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        for scenario in scenario::ALL {
            println!("{:<20} {}", scenario.name, scenario.about);
            for witness in scenario.must_see {
                println!("{:<20}   must be seen: {}", "", witness.sentence());
            }
        }
        for sabotage in sabotage::ALL {
            println!("--sabotage {:<20} must be found as {:?}", sabotage.name, sabotage.finds);
        }
        return Ok(true);
    }
    match arguments.sabotage.as_deref() {
        Some("all") => all_sabotage(arguments),
        Some(name) => {
            let names: Vec<_> = sabotage::ALL.iter().map(|sabotage| sabotage.name).collect();
            let sabotage = sabotage::named(name).with_context(|| {
                format!("no fault {name:?} can be planted; there are {}", names.join(", "))
            })?;
            let verdict = plant(sabotage, arguments.seed)?;
            report(arguments, &verdict)?;
            Ok(verdict.passed())
        }
        None => rounds(arguments),
    }
}

fn rounds(arguments: &Arguments) -> Result<bool> {
    let groups: Vec<Vec<Scenario>> = if arguments.scenario.is_empty() {
        scenario::groups()
    } else {
        let mut chosen = Vec::new();
        for name in &arguments.scenario {
            chosen.push(scenario::named(name).with_context(|| format!("no scenario {name:?}; see --list"))?);
        }
        vec![chosen]
    };
    let mut all = Verdict { seed: arguments.seed, ..Verdict::default() };
    for round in 0..arguments.rounds {
        let seed = arguments.seed.wrapping_add(round);
        for group in &groups {
            let names: Vec<_> = group.iter().map(|scenario| scenario.name).collect();
            eprintln!("round {} of {}, seed {seed}: {}", round + 1, arguments.rounds, names.join(", "));
            let verdict = scenario::run(Options::for_test("oracle"), group, seed, Patience::default())
                .with_context(|| format!("seed {seed}"))?;
            eprintln!("{verdict}");
            if !verdict.passed() {
                eprintln!("again with: ./kinara test oracle --seed {seed}");
            }
            all.join(verdict);
        }
    }
    all.scenarios.dedup();
    report(arguments, &all)?;
    Ok(all.passed())
}

fn plant(sabotage: Sabotage, seed: u64) -> Result<Verdict> {
    let began = Instant::now();
    let verdict = sabotage.run(Options::for_test(sabotage.name), seed)?;
    eprintln!("{} after {:.1} s: {verdict}", sabotage.name, began.elapsed().as_secs_f64());
    if verdict.passed() {
        eprintln!("nothing found: were the programs built with the feature `sabotage`?");
    }
    Ok(verdict)
}

/// Small clinics, a few side by side: they mostly wait. The longest are the last of the list, and begin.
fn all_sabotage(arguments: &Arguments) -> Result<bool> {
    const SIDE_BY_SIDE: usize = 4;
    let left = Mutex::new(sabotage::ALL.to_vec());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        std::iter::from_fn(next)
            .map(|sabotage| (sabotage, plant(sabotage, arguments.seed)))
            .collect::<Vec<_>>()
    };
    let verdicts = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..SIDE_BY_SIDE).map(|_| scope.spawn(work)).collect();
        runs.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    let mut found = serde_json::Map::new();
    let mut all_found = true;
    for verdicts in verdicts {
        let Ok(verdicts) = verdicts else { bail!("a clinic panicked") };
        for (sabotage, verdict) in verdicts {
            let verdict = verdict.with_context(|| sabotage.name.to_owned())?;
            let is_found = sabotage.is_found_by(&verdict);
            if !is_found {
                eprintln!("{}: NOT found as {:?}", sabotage.name, sabotage.finds);
            }
            all_found &= is_found;
            let counts = json!({
                "found": is_found, "as": sabotage.finds, "produced": verdict.produced, "lost": verdict.lost,
                "double": verdict.double, "wrong_wearer": verdict.wrong_wearer, "wrong_time": verdict.wrong_time,
            });
            found.insert(sabotage.name.to_owned(), counts);
        }
    }
    println!("{}", json!({ "sabotage": found, "seed": arguments.seed, "all_found": all_found }));
    Ok(all_found)
}

fn report(arguments: &Arguments, verdict: &Verdict) -> Result<()> {
    if !arguments.json {
        println!("{}", if verdict.passed() { "the promise held" } else { "THE PROMISE WAS BROKEN" });
    }
    println!("{}", serde_json::to_string(verdict)?);
    Ok(())
}
