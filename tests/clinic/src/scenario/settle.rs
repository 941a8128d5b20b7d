//! Waiting until nothing moves any more: wearables drained, gateways' buffers empty, the database quiet.

use std::time::{Duration, Instant};

use serde_json::json;

use super::Stage;
use super::sights::buffered;
use super::stage::utc_us;
use crate::Result;
use crate::oracle::database::Counts;
use crate::process::pause;

const LOOK: Duration = Duration::from_millis(500);
/// How often it is told what is waited for.
const TELL: Duration = Duration::from_secs(15);
/// How long a wearable may take to close a frame of fresh readings: several times the longest frame age.
const FRESH: Duration = Duration::from_secs(30);

/// How long may be waited.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// In all.
    pub deadline: Duration,
    /// So long must nothing have changed.
    pub quiet: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(100), quiet: Duration::from_secs(3) }
    }
}

impl Patience {
    /// For clinics with a planted fault, in which some things never settle.
    pub fn short() -> Self {
        Self { deadline: Duration::from_secs(15), quiet: Duration::from_secs(2) }
    }

    /// A deadline so many times as far away.
    #[must_use]
    pub fn times(self, factor: u32) -> Self {
        Self { deadline: self.deadline * factor, ..self }
    }
}

impl Stage {
    /// Brings back everything that a scenario took down, lets the wearables produce something fresh, close their last
    /// frame and stop producing, and waits. What has not arrived by the deadline is told, and then judged as lost.
    pub fn settle(&mut self, patience: Patience) -> Result<()> {
        self.bring_back()?;
        self.freshen()?;
        for wearable in &self.clinic.wearables {
            wearable.control(&json!({"do": "stop"}))?;
        }
        let started = Instant::now();
        let mut told = Duration::ZERO;
        let mut seen = Counts::default();
        let mut changed = Instant::now();
        loop {
            let counts = self.counts()?;
            if !counts.same_readings(seen) {
                (seen, changed) = (counts, Instant::now());
            }
            let mut missing = self.missing();
            if counts.open_gaps > 0 {
                missing.push(format!(
                    "{} gaps are open: somebody may still hold their frames",
                    counts.open_gaps
                ));
            }
            if missing.is_empty() && changed.elapsed() >= patience.quiet {
                eprintln!("quiet after {:.1} s: {counts:?}", started.elapsed().as_secs_f64());
                return Ok(());
            }
            if started.elapsed() >= told + TELL {
                told = started.elapsed();
                eprintln!(
                    "{:6.1} s  {} things are under way: {counts:?} {missing:?}",
                    told.as_secs_f64(),
                    missing.len()
                );
            }
            if started.elapsed() >= patience.deadline {
                eprintln!(
                    "not quiet after {:?} ({counts:?}); what is missing is judged as lost:",
                    patience.deadline
                );
                for line in missing {
                    eprintln!("  {line}");
                }
                return Ok(());
            }
            pause(LOOK);
        }
    }

    /// How much there is of what is judged. What another clinic's messages leave open about devices of its own is not.
    pub fn counts(&self) -> Result<Counts> {
        let judged = self.judged();
        self.look(|eye| async move { eye.counts(&judged).await })
    }

    fn bring_back(&mut self) -> Result<()> {
        let clinic = &mut self.clinic;
        for wearable in &mut clinic.wearables {
            wearable.process().spawn()?;
        }
        for gateway in &mut clinic.gateways {
            gateway.process().spawn()?;
        }
        for bridge in &mut clinic.bridges {
            bridge.spawn()?;
        }
        for wearable in &mut clinic.wearables {
            wearable.process().wait_ready()?;
            wearable.control(&json!({"do": "hear", "gateways": null}))?;
        }
        for gateway in &mut clinic.gateways {
            gateway.process().wait_ready()?;
        }
        for bridge in &mut clinic.bridges {
            bridge.wait_ready()?;
        }
        Ok(())
    }

    /// Has every wearable take and close a frame of readings after all faults.
    fn freshen(&mut self) -> Result<()> {
        let from_us = utc_us();
        let before: Vec<_> = (0..self.clinic.wearables.len())
            .map(|wearable| self.next_frame(wearable))
            .collect::<Result<_>>()?;
        let deadline = Instant::now() + FRESH;
        for (wearable, before) in before.into_iter().enumerate() {
            self.fresh_from(wearable, from_us);
            while self.next_frame(wearable)? == before && Instant::now() < deadline {
                pause(LOOK);
            }
        }
        Ok(())
    }

    /// What is still under way, in words.
    fn missing(&mut self) -> Vec<String> {
        let mut missing = Vec::new();
        for wearable in &self.clinic.wearables {
            let name = &wearable.plan.name;
            match wearable.status() {
                Ok(status) if status["unacknowledged"].as_u64() == Some(0) => {}
                Ok(status) => missing.push(format!("wearable {name} still keeps frames: {status}")),
                Err(error) => missing.push(format!("wearable {name}: {error}")),
            }
        }
        for gateway in &self.clinic.gateways {
            match gateway.metrics().and_then(|text| buffered(&text)) {
                Ok(0) => {}
                Ok(count) => {
                    missing.push(format!("gateway {} still holds {count} frames and batches", gateway.name));
                }
                Err(error) => missing.push(format!("gateway {}: {error}", gateway.name)),
            }
        }
        missing
    }
}
