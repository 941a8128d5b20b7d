//! From publish to committed rows: twenty gateways' batches through the real broker and the real bridge.
//!
//! The batches are sealed beforehand by the gateway's own code, as it seals them online (5 s) and once more as full
//! ones. The clock runs from the first publish to the bridge's last acknowledgement; rows are counted by SQL after
//! that. The measure beside it is a bare binary COPY of the same rows into the same table with the same indexes and
//! settings, encoded beforehand, 10,000 rows a transaction, over one and over two connections (the better counts).
//! Both alternate; medians count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt, pin_mut};
use kinara_clock::{Clock, SystemClock};
use kinara_gatewayd::align::source::Known;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::status::{Board, ClockSource, Snapshot};
use kinara_gatewayd::store::{self, Settings, Store, StoreError};
use serde_json::{Value, json};
use tokio_postgres::NoTls;

use super::load::{Load, produce};
use super::machine::{Meter, peak_rss_mib};
use super::{gateway, median, peers, publisher, rounded, scale};
use crate::clinic::{self, Options, programs};
use crate::{Assignment, Clinic, ClinicError, GatewayPlan, Result};

const GATEWAYS: usize = 20;
const WEARABLES_EACH: usize = 10;
const HOURS: &str = "10m";
const SEED: u64 = 1000;
/// A gateway online seals after this.
const ONLINE_MS: u64 = 5_000;
const FRAME_AGE_MS: u64 = 1_000;
const ROUNDS: usize = 3;
const COPY_ROWS: usize = 10_000;

/// A batch that was sealed beforehand.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Which gateway publishes it.
    pub gateway: usize,
    /// Its name.
    pub buffer: u64,
    /// Its name.
    pub sequence: u64,
    /// What is published.
    pub payload: Bytes,
}

/// `./kinara bench ingest`.
pub fn run(rows_then: i64) -> Result<Value> {
    let folder = clinic::root().join(".kinara/bench/ingest");
    let count = GATEWAYS * WEARABLES_EACH;
    let loads = produce(&programs().join("kinara-wearable-sim"), &folder, count, HOURS, SEED)?;
    let readings: usize = loads.iter().map(|load| load.samples.len()).sum();
    eprintln!("{readings} readings of {count} wearables");
    let runtime = tokio::runtime::Runtime::new().map_err(ClinicError::file("the harness's runtime"))?;
    let mut clinic = Clinic::start(Options::for_test("bench-ingest"))?;
    let tenant = clinic.add_tenant("Bench", "bench", "Europe/Berlin")?;
    for gateway in 0..GATEWAYS {
        clinic.add_gateway(&tenant, GatewayPlan::named(format!("bench-{gateway}")))?;
        let wearer = clinic.add_wearer(&tenant, &format!("W-{gateway}"), &format!("Wearer {gateway}"))?;
        for load in &loads[gateway * WEARABLES_EACH..(gateway + 1) * WEARABLES_EACH] {
            let from = jiff::Timestamp::now() - Duration::from_hours(48);
            clinic.assign(&load.hardware, &wearer, Assignment { from, at_frame: None })?;
        }
    }
    let bridge = clinic.add_bridge()?;
    let [online, full] = [Some(ONLINE_MS), None].map(|slice| {
        let made = (0..GATEWAYS).map(|number| {
            let own = &loads[number * WEARABLES_EACH..(number + 1) * WEARABLES_EACH];
            let id = clinic.gateways[number].id;
            let dir = folder.join(format!("gateway-{number}"));
            let made = runtime.block_on(seal(own, slice, gateway::settings(&dir, id), number));
            made.map_err(|error| ClinicError::Answer { who: "store".to_owned(), what: error.to_string() })
        });
        made.collect::<Result<Vec<_>>>()
    });
    let (online, full) = (online?, full?);
    let batches = |all: &[Vec<Prepared>]| all.iter().map(Vec::len).sum::<usize>();
    eprintln!("{} batches as sealed online, {} full ones", batches(&online), batches(&full));
    let url = clinic.database.admin_url();
    let (mut as_online, mut as_full, mut copied) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cpu, mut blobs) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        for (kind, sealed, rates) in [("online", &online, &mut as_online), ("full", &full, &mut as_full)] {
            restart(&mut clinic, bridge)?;
            let meter = Meter::start(std::process::id());
            let seconds = runtime.block_on(publisher::publish(&clinic, sealed, None))?.seconds;
            if kind == "online" {
                cpu.extend(meter.and_then(|meter| meter.percent()));
            }
            let rows = rows(&clinic)?;
            if rows != readings {
                return Err(ClinicError::Answer {
                    who: "database".to_owned(),
                    what: format!("has {rows} rows of {readings} readings"),
                });
            }
            eprintln!("round {round}, {kind}: {:.0} readings/s", rows as f64 / seconds);
            rates.push(rows as f64 / seconds);
        }
        if blobs.is_empty() {
            blobs = runtime.block_on(encoded(&url)).map_err(database)?;
        }
        let mut best: f64 = 0.0;
        for connections in [1, 2] {
            empty(&clinic)?;
            let seconds = runtime.block_on(copy(&url, &blobs, connections)).map_err(database)?;
            let rate = rows(&clinic)? as f64 / seconds;
            eprintln!("round {round}, COPY over {connections} connections: {rate:.0} rows/s");
            best = best.max(rate);
        }
        copied.push(best);
    }
    let (online_rate, full_rate, copy_rate) = (median(as_online), median(as_full), median(copied));
    let full_rss = clinic.bridges[bridge].pid().and_then(peak_rss_mib).unwrap_or(0.0);
    // Half of what it can take.
    restart(&mut clinic, bridge)?;
    let pace = Duration::from_secs_f64(readings as f64 / (online_rate / 2.0));
    let mut waits = runtime.block_on(publisher::publish(&clinic, &online, Some(pace)))?.waits;
    waits.sort_by(f64::total_cmp);
    let p99 = waits[(waits.len() * 99 / 100).min(waits.len() - 1)] * 1e3;
    let rss = clinic.bridges[bridge].pid().and_then(peak_rss_mib).unwrap_or(0.0).max(full_rss);
    clinic.bridges[bridge].stop();
    let peers = runtime.block_on(peers::rates(&clinic, &loads))?;
    empty(&clinic)?;
    let (thousand, ten) = runtime.block_on(scale::costs(&clinic, &online, rows_then))?;
    Ok(json!({
        "readings_per_s": rounded(online_rate),
        "copy_rows_per_s": rounded(copy_rate),
        "ratio_to_copy": rounded(online_rate / copy_rate),
        "p99_publish_to_commit_ms": rounded(p99),
        "bridge_rss_mib": rounded(rss),
        "cost_1000gw_over_1gw": rounded(thousand),
        "cost_10x_rows": rounded(ten),
        "rows_then": rows_then,
        "peers": peers,
        "publisher_cpu": rounded(median(cpu)),
        "ratio_full_batches": rounded(full_rate / copy_rate),
        "readings_per_s_full_batches": rounded(full_rate),
        "readings": readings,
        "gateways": GATEWAYS,
        "wearables": count,
        "batches": batches(&online),
        "full_batches": batches(&full),
    }))
}

/// The gateway's own code makes the batches: the wearables' frames come slice by slice, each slice is sealed.
async fn seal(
    loads: &[Load],
    slice_ms: Option<u64>,
    settings: Settings,
    gateway: usize,
) -> std::result::Result<Vec<Prepared>, StoreError> {
    let dir = settings.dir.clone();
    // A bench that was cut short may have left another gateway's.
    let _ = std::fs::remove_dir_all(&dir);
    // Sealing happens when this function says so, and nobody waits for company.
    let settings = Settings {
        group_commit: Duration::from_millis(1),
        seal_after: Duration::from_hours(24),
        seal_bytes: u64::MAX / 8,
        seal_ahead: u64::MAX / 8,
        ..settings
    };
    let store = Store::open(settings, Arc::new(SystemClock), Board::new(Snapshot::default()))?;
    let boot = SystemClock.boottime_us();
    let known = Known {
        utc_minus_boot_us: SystemClock.utc_us() - boot,
        uncertainty_us: 1_000,
        source: ClockSource::TrustSystem,
        at_boot_us: boot,
    };
    store.clock_is(Some(known)).await?;
    store.set_online(true).await?;
    let frames: Vec<(HardwareId, Vec<(u64, Bytes)>)> = loads
        .iter()
        .map(|load| {
            let ticks = |bytes: &[u8]| {
                kinara_protocol::frame::FrameRef::parse(bytes).expect("an encoded frame").header().ticks.0
            };
            let frames = load.frames(FRAME_AGE_MS).into_iter();
            let hardware = HardwareId::parse(&load.hardware).expect("the harness's own hardware id");
            (hardware, frames.map(|(bytes, _)| (ticks(&bytes), Bytes::from(bytes))).collect())
        })
        .collect();
    let end =
        frames.iter().filter_map(|(_, frames)| frames.last()).map(|(ticks, _)| *ticks).max().unwrap_or(0);
    let slice = slice_ms.unwrap_or(end + 1);
    for from in (0..=end).step_by(slice as usize) {
        for (hardware, frames) in &frames {
            let first = frames.partition_point(|(ticks, _)| *ticks < from);
            let behind = frames.partition_point(|(ticks, _)| *ticks < from + slice);
            for some in frames[first..behind].chunks(256) {
                let some = some.iter().map(|(_, bytes)| bytes.clone()).collect();
                store.append(hardware.clone(), some).await?;
            }
        }
        store.seal_now().await?;
    }
    let sealed = store.waiting(store::Kind::Batch, Vec::new(), usize::MAX, usize::MAX).await?;
    store.stop().await;
    // A file that stays is only litter.
    let _ = std::fs::remove_dir_all(&dir);
    Ok(sealed
        .into_iter()
        .map(|batch| Prepared {
            gateway,
            buffer: batch.name.buffer,
            sequence: batch.name.sequence,
            payload: Bytes::from(batch.payload),
        })
        .collect())
}

/// As before the first batch: empty tables, a bridge that remembers nothing.
fn restart(clinic: &mut Clinic, bridge: usize) -> Result<()> {
    clinic.bridges[bridge].stop();
    empty(clinic)?;
    clinic.bridges[bridge].start()
}

pub(super) fn empty(clinic: &Clinic) -> Result<()> {
    clinic.database.sql(
        "TRUNCATE ts.readings, ts.waveforms, ts.stale, ts.written, ledger, ledger_claims, frame_times, wear, gaps, quarantine,
           gateway_buffers; CHECKPOINT",
    )?;
    Ok(())
}

fn rows(clinic: &Clinic) -> Result<usize> {
    let answer = clinic.database.sql("SELECT count(*) FROM ts.readings")?;
    answer.trim().parse().map_err(|_| ClinicError::Database(format!("a count of {answer:?}")))
}

/// The rows that the bridge wrote, as binary COPY takes them, 10,000 together.
async fn encoded(url: &str) -> std::result::Result<Vec<Vec<Bytes>>, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    client
        .batch_execute(
            "CREATE TEMP TABLE numbered AS SELECT row_number() OVER () AS n, r.* FROM ts.readings r",
        )
        .await?;
    client.batch_execute("CREATE INDEX ON numbered (n)").await?;
    let all: i64 = client.query_one("SELECT count(*) FROM numbered", &[]).await?.get(0);
    let mut blobs = Vec::new();
    for from in (0..all).step_by(COPY_ROWS) {
        let text = format!(
            "COPY (SELECT time, tenant_id, user_id, device_id, type, idx, epoch, seq, value, quality FROM numbered
             WHERE n > {from} AND n <= {} ORDER BY n) TO STDOUT (FORMAT binary)",
            from + COPY_ROWS as i64
        );
        let stream = client.copy_out(&text).await?;
        pin_mut!(stream);
        let mut blob = Vec::new();
        while let Some(part) = stream.try_next().await? {
            blob.extend_from_slice(&part);
        }
        // In pieces as large as a client's buffer would be.
        blobs.push(blob.chunks(64 << 10).map(Bytes::copy_from_slice).collect());
    }
    Ok(blobs)
}

async fn copy(
    url: &str,
    blobs: &[Vec<Bytes>],
    connections: usize,
) -> std::result::Result<f64, tokio_postgres::Error> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        clients.push(client);
    }
    let began = Instant::now();
    let work = clients.iter().enumerate().map(|(number, client)| async move {
        for blob in blobs.iter().skip(number).step_by(connections) {
            let sink = client
                .copy_in::<_, Bytes>(
                    "COPY ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value, quality)
                     FROM STDIN (FORMAT binary)",
                )
                .await?;
            pin_mut!(sink);
            for part in blob {
                sink.feed(part.clone()).await?;
            }
            sink.finish().await?;
        }
        Ok::<_, tokio_postgres::Error>(())
    });
    futures_util::future::try_join_all(work).await?;
    Ok(began.elapsed().as_secs_f64())
}

fn database(error: tokio_postgres::Error) -> ClinicError {
    ClinicError::Database(error.to_string())
}
