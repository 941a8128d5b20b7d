//! Faults of what all wearables share: programs are killed, broker and database go away. None of them excuses a loss.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use super::Stage;
use super::sights::{metrics_at, number};
use super::stage::BRIDGE;
use crate::oracle::witness::Witness;
use crate::process::http_get;
use crate::{ClinicError, Result};

/// When faults begin and end, seconds after the start. Before, everybody connects; after, everything settles.
const FROM: f64 = 3.0;
const TO: f64 = 38.0;
/// After all of them, and how long there may be nothing to strike then.
const LAST: f64 = TO + 8.0;
const CALM: Duration = Duration::from_secs(30);
/// How often each program is killed.
const KILLS: u32 = 2;

/// Hours of readings, so that large numbers are under way while the faults strike; both clinics have some.
pub fn backlog(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    let south = stage.usual_gateway(1)?;
    stage.wearable(0, &[north], &["--prefill", "2h"])?;
    stage.wearable(0, &[north], &["--prefill", "1h"])?;
    stage.wearable(1, &[south], &["--prefill", "2h"])?;
    see_backlog(stage);
    Ok(())
}

/// Before the gateways start: what the flash holds then is a backlog.
fn see_backlog(stage: &mut Stage) {
    const MANY_FRAMES: u64 = 50;
    let mine: Vec<usize> = stage.own_wearables();
    stage.at(0.1, "wearables have a backlog", move |stage| {
        stage.await_sight_for(Duration::from_secs(30), Witness::BacklogHeld, &mut |stage| {
            mine.iter().all(|wearable| stage.unacknowledged(*wearable) >= MANY_FRAMES)
        });
        Ok(())
    });
}

/// Six wearables that bring a day each, while the bridge is killed twice.
pub fn large_table(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    for _ in 0..6 {
        stage.wearable(0, &[north], &["--prefill", "24h", "--ring-kib", "32768"])?;
    }
    see_backlog(stage);
    kill_one_bridge(stage, 0);
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

/// Kills something at random moments, each time when there is something to hit if that comes soon. Other scenarios' faults
/// may keep it from coming: if no kill has bitten by the end, there is one more when there is.
fn kill_at_random(
    stage: &mut Stage,
    what: &str,
    witness: Witness,
    open: impl Fn(&Stage) -> bool + Copy + 'static,
    kill: impl Fn(&mut Stage) + Copy + 'static,
    again: impl Fn(&mut Stage) -> Result<()> + Copy + 'static,
) {
    for (down, up) in outages(stage) {
        stage.at(down, format!("kill -9 {what}"), move |stage| {
            stage.await_sight(witness, |stage| open(stage));
            kill(stage);
            Ok(())
        });
        stage.at(up, format!("{what} again"), again);
    }
    stage.at(LAST, format!("has any kill of {what} bitten?"), move |stage| {
        if !stage.has_seen(witness) {
            stage.await_sight_for(CALM, witness, &mut |stage| open(stage));
            kill(stage);
            again(stage)?;
        }
        Ok(())
    });
}

pub fn kill_gateway(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    for gateway in 0..stage.clinic.gateways.len() {
        let name = stage.clinic.gateways[gateway].name.clone();
        kill_at_random(
            stage,
            &name,
            Witness::GatewayKilledHolding,
            move |stage| stage.holds(gateway) > 0,
            move |stage| stage.clinic.gateways[gateway].process().kill(),
            move |stage| stage.clinic.gateways[gateway].process().spawn(),
        );
    }
    Ok(())
}

pub fn kill_bridge(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    kill_one_bridge(stage, 0);
    Ok(())
}

fn kill_one_bridge(stage: &mut Stage, bridge: usize) {
    kill_at_random(
        stage,
        &format!("bridge {bridge}"),
        Witness::BridgeKilledInFlight,
        move |stage| stage.clinic.bridges[bridge].pid().is_some() && stage.batch_in_flight(),
        move |stage| stage.clinic.bridges[bridge].kill(),
        move |stage| stage.clinic.bridges[bridge].spawn(),
    );
}

pub fn kill_api(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    stage.clinic.start_api()?;
    for (down, up) in outages(stage) {
        stage.at(down, "kill -9 api", |stage| {
            let asked = half_a_request(stage);
            if asked.is_some() {
                stage.saw(Witness::ApiKilledInRequest);
            }
            stage.clinic.api.iter_mut().for_each(crate::Process::kill);
            Ok(())
        });
        stage.at(up, "api again", |stage| match &mut stage.clinic.api {
            Some(api) => api.spawn(),
            None => Ok(()),
        });
    }
    stage.afterwards("the API answers", api_answers);
    Ok(())
}

/// Begins to ask the API something, and leaves it at that.
fn half_a_request(stage: &Stage) -> Option<TcpStream> {
    let address = stage.clinic.api.as_ref()?.address()?;
    let mut asked = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    asked.write_all(b"GET /healthz HTTP/1.1\r\nHost: here\r\n").ok()?;
    Some(asked)
}

fn api_answers(stage: &mut Stage) -> Result<()> {
    let Some(api) = &mut stage.clinic.api else { return Ok(()) };
    api.wait_ready()?;
    let answer = api.address().map(|address| http_get(address, "/healthz"));
    match answer {
        Some(Ok((200, _))) => Ok(()),
        other => Err(ClinicError::Answer { who: "api".to_owned(), what: format!("/healthz: {other:?}") }),
    }
}

pub fn kill_broker(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    kill_at_random(
        stage,
        "broker",
        Witness::BrokerKilledInFlight,
        Stage::batch_in_flight,
        |stage| stage.clinic.broker.kill(),
        |stage| stage.clinic.broker.start_again(),
    );
    Ok(())
}

pub fn kill_database(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    kill_at_random(
        stage,
        "database",
        Witness::DatabaseKilledInFlight,
        |stage| stage.clinic.database.is_up() && stage.batch_in_flight(),
        |stage| stage.clinic.database.kill_hard(),
        |stage| stage.clinic.database.start_again(),
    );
    Ok(())
}

pub fn broker_down(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    let down = stage.moment(FROM, TO - 8.0);
    stage.at(down, "the broker stops", |stage| {
        stage.clinic.broker.stop();
        Ok(())
    });
    stage.at(down + 6.0, "the broker is back", |stage| {
        stage.await_sight(Witness::GatheredWithoutBroker, |stage| stage.anybody_holds());
        stage.clinic.broker.start_again()
    });
    Ok(())
}

pub fn database_down(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    let down = stage.moment(FROM, TO - 8.0);
    stage.at(down, "the database stops", |stage| {
        stage.clinic.database.stop();
        Ok(())
    });
    stage.at(down + 6.0, "the database is back", |stage| {
        stage.await_sight(Witness::GatheredWithoutDatabase, |stage| stage.anybody_holds());
        stage.clinic.database.start_again()
    });
    Ok(())
}

pub fn three_bridges(stage: &mut Stage) -> Result<()> {
    somebody(stage)?;
    let (second, third) = (stage.clinic.add_bridge_with(BRIDGE)?, stage.clinic.add_bridge_with(BRIDGE)?);
    let bridges = [0, second, third];
    stage.at(FROM, "all three are there", move |stage| {
        // Before the first kill, or soon after it: a bridge counts anew after each start.
        stage.await_sight(Witness::BridgesShared, |stage| shared(stage, &bridges));
        Ok(())
    });
    for bridge in bridges {
        kill_one_bridge(stage, bridge);
    }
    Ok(())
}

/// Whether two of these bridges or more have written something since they were started.
fn shared(stage: &Stage, bridges: &[usize]) -> bool {
    let wrote = bridges.iter().filter(|bridge| {
        let metrics = metrics_at(stage.clinic.bridges[**bridge].address());
        number(&metrics, "kinara_bridge_stored_total").unwrap_or(0.0) > 0.0
    });
    wrote.count() >= 2
}
