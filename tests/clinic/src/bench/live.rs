//! From the moment a sample was taken to the moment the page shows it, in a real browser.

use std::process::Command;

use serde_json::{Value, json};

use crate::clinic::{self, Models, Options};
use crate::process;
use crate::{Assignment, Clinic, ClinicError, GatewayPlan, Result, WearablePlan};

const WEARABLES: u64 = 4;

/// `./kinara bench live`: watches the page for so many seconds.
pub fn run(seconds: u32, models: Option<Models>) -> Result<Value> {
    let mut clinic = Clinic::start(Options { models, ..Options::for_test("bench-live") })?;
    let tenant = clinic.add_tenant("Bench", "bench", "Europe/Berlin")?;
    let login = clinic.add_member(&tenant, "bench@example.test", "admin")?;
    clinic.add_bridge()?;
    let address = clinic.start_api()?;
    let gateway = clinic.add_gateway(&tenant, GatewayPlan::named("bench"))?;
    for number in 1..=WEARABLES {
        let wearable =
            clinic.add_wearable(WearablePlan::new(0xbe00 + number, format!("bench-{number}"), number))?;
        let wearer = clinic.add_wearer(&tenant, &format!("W-{number}"), &format!("Wearer {number}"))?;
        let from = jiff::Timestamp::now() - std::time::Duration::from_hours(1);
        let hardware = clinic.wearables[wearable].hardware_id.clone();
        clinic.assign(&hardware, &wearer, Assignment { from, at_frame: None })?;
        clinic.introduce(gateway, wearable)?;
        clinic.wearables[wearable].process().start()?;
    }
    clinic.gateways[gateway].process().start()?;
    eprintln!("the page is at http://{address}; watching it for {seconds} s");
    let mut command = Command::new("node");
    command
        .current_dir(clinic::root().join("cloud-api/dashboard"))
        .args(["e2e/latency.mjs", "--url", &format!("http://{address}")])
        .args(["--email", &login.email, "--password", &login.password])
        .args(["--seconds", &seconds.to_string()]);
    let printed = process::run(command, "the page in Chromium", None)?;
    let line = printed.lines().rfind(|line| line.starts_with('{')).unwrap_or_default();
    let seen: Value = serde_json::from_str(line).map_err(|_| ClinicError::Answer {
        who: "e2e/latency.mjs".to_owned(),
        what: format!("printed {printed:?}"),
    })?;
    Ok(json!({
        "sample_to_screen_p95_ms": seen["p95_ms"],
        "sample_to_screen_p50_ms": seen["p50_ms"],
        "sample_to_screen_max_ms": seen["max_ms"],
        "samples": seen["samples"],
        "wearables": WEARABLES,
        "seconds": seconds,
    }))
}
