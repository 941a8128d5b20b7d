//! Faults of what all wearables share: programs are killed, broker and database go away. None of them excuses a loss.

use super::Stage;
use super::stage::BRIDGE;
use crate::Result;

/// When faults begin and end, seconds after the start. Before, everybody connects; after, everything settles.
const FROM: f64 = 3.0;
const TO: f64 = 38.0;
/// How often each program is killed.
const KILLS: u32 = 2;

/// Hours of readings, so that large numbers are under way while the faults strike; both clinics have some.
pub fn backlog(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    let south = stage.usual_gateway(1)?;
    stage.wearable(0, &[north], &["--prefill", "2h"])?;
    stage.wearable(0, &[north], &["--prefill", "1h"])?;
    stage.wearable(1, &[south], &["--prefill", "2h"])?;
    Ok(())
}

/// Six wearables that bring a day each, while the bridge is killed twice.
pub fn large_table(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    for _ in 0..6 {
        stage.wearable(0, &[north], &["--prefill", "24h", "--ring-kib", "32768"])?;
    }
    for (down, up) in outages(stage) {
        kill_bridge_at(stage, 0, down, up);
    }
    Ok(())
}

/// So that a fault scenario that is run alone has something to lose.
fn somebody(stage: &mut Stage) -> Result<()> {
    if stage.clinic.wearables.is_empty() {
        let north = stage.usual_gateway(0)?;
        stage.wearable(0, &[north], &["--prefill", "30m"])?;
        stage.wearable(0, &[north], &[])?;
    }
    Ok(())
}

fn outages(stage: &mut Stage) -> Vec<(f64, f64)> {
    (0..KILLS)
        .map(|_| {
            let down = stage.moment(FROM, TO);
            (down, down + stage.moment(0.2, 2.5))
        })
        .collect()
}

pub fn kill_gateway(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    for gateway in 0..stage.clinic.gateways.len() {
        let name = stage.clinic.gateways[gateway].name.clone();
        for (down, up) in outages(stage) {
            stage.at(down, format!("kill -9 {name}"), move |stage| {
                stage.clinic.gateways[gateway].process().kill();
                Ok(())
            });
            stage.at(up, format!("{name} again"), move |stage| {
                stage.clinic.gateways[gateway].process().spawn()
            });
        }
    }
    Ok(())
}

pub fn kill_bridge(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    for (down, up) in outages(stage) {
        kill_bridge_at(stage, 0, down, up);
    }
    Ok(())
}

fn kill_bridge_at(stage: &mut Stage, bridge: usize, down: f64, up: f64) {
    stage.at(down, format!("kill -9 bridge {bridge}"), move |stage| {
        stage.clinic.bridges[bridge].kill();
        Ok(())
    });
    stage.at(up, format!("bridge {bridge} again"), move |stage| stage.clinic.bridges[bridge].spawn());
}

pub fn kill_api(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    stage.clinic.start_api()?;
    for (down, up) in outages(stage) {
        stage.at(down, "kill -9 api", |stage| {
            stage.clinic.api.iter_mut().for_each(crate::Process::kill);
            Ok(())
        });
        stage.at(up, "api again", |stage| match &mut stage.clinic.api {
            Some(api) => api.spawn(),
            None => Ok(()),
        });
    }
    Ok(())
}

pub fn kill_broker(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    for (down, up) in outages(stage) {
        stage.at(down, "kill -9 broker", |stage| {
            stage.clinic.broker.kill();
            Ok(())
        });
        stage.at(up, "broker again", |stage| stage.clinic.broker.start_again());
    }
    Ok(())
}

pub fn kill_database(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    for (down, up) in outages(stage) {
        stage.at(down, "kill -9 database", |stage| {
            stage.clinic.database.kill_hard();
            Ok(())
        });
        stage.at(up, "database again", |stage| stage.clinic.database.start_again());
    }
    Ok(())
}

pub fn broker_down(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    let down = stage.moment(FROM, TO - 8.0);
    stage.at(down, "the broker stops", |stage| {
        stage.clinic.broker.stop();
        Ok(())
    });
    stage.at(down + 6.0, "the broker is back", |stage| stage.clinic.broker.start_again());
    Ok(())
}

pub fn database_down(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    let down = stage.moment(FROM, TO - 8.0);
    stage.at(down, "the database stops", |stage| {
        stage.clinic.database.stop();
        Ok(())
    });
    stage.at(down + 6.0, "the database is back", |stage| stage.clinic.database.start_again());
    Ok(())
}

pub fn three_bridges(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    let (second, third) = (stage.clinic.add_bridge_with(BRIDGE)?, stage.clinic.add_bridge_with(BRIDGE)?);
    for bridge in [0, second, third] {
        for (down, up) in outages(stage) {
            kill_bridge_at(stage, bridge, down, up);
        }
    }
    Ok(())
}
