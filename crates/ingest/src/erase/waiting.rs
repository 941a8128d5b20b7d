//! What came over HTTP of a person and is not written yet, whether it waits or nobody takes it any more.
//!
//! A request holds many people's readings: those of this person go, or may be this person's, and the others' stay and are written
//! as they would have been.

use std::sync::Arc;

use kinara_protocol::envelope;
use kinara_store::Pool;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Gone, tell};
use crate::assign::{Moment, possible};
use crate::batch::{self, Content, DeviceBatch, Frame, canonical};
use crate::directory::{ALL, Directory, Hardware, SOME};
use crate::ledger::is_name;
use crate::plan::Key;
use crate::requests::UNPACKED;
use crate::{Error, items};

const DEVICES: &str = "
    SELECT DISTINCT h.hardware_id FROM device_assignments a JOIN hardware h ON h.id = a.hardware_id
    WHERE a.tenant_id = $1 AND a.user_id = $2";
const REQUESTS: &str =
    "SELECT id FROM ingest_requests WHERE tenant_id = $1 AND finished_at IS NULL AND payload IS NOT NULL";
const PAYLOAD: &str =
    "SELECT payload FROM ingest_requests WHERE id = $1 AND finished_at IS NULL AND payload IS NOT NULL";
/// Not where it was written, or cut by somebody else's erasure, meanwhile.
const CUT: &str = "
    UPDATE ingest_requests SET payload = $2 WHERE id = $1 AND finished_at IS NULL AND sha256(payload) = $3";

/// Whose readings are looked for, and what is known of the devices that they had.
struct Sought {
    tenant: Uuid,
    user: Uuid,
    directory: Directory,
}

/// Takes a wearer's readings out of a clinic's requests; gives how many frames that were.
pub(super) async fn take_out(pool: &Pool, tenant: Uuid, user: Uuid) -> Result<u64, Error> {
    let mut client = pool.get().await?;
    let tx = client.transaction().await?;
    let rows = tx.query(DEVICES, &[&tenant, &user]).await?;
    let devices: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    tx.commit().await?;
    drop(client);
    let mut total = 0;
    for some in devices.chunks(SOME) {
        total += take_out_of(pool, tenant, user, some).await?;
    }
    Ok(total)
}

/// Takes out those of some of their devices.
async fn take_out_of(pool: &Pool, tenant: Uuid, user: Uuid, devices: &[&str]) -> Result<u64, Error> {
    let mut client = pool.get().await?;
    let tx = client.transaction().await?;
    let directory = Directory::load(&tx, &[], devices, ALL).await?;
    tx.commit().await?;
    let requests = client.query(REQUESTS, &[&tenant]).await?;
    drop(client);
    let sought = Arc::new(Sought { tenant, user, directory });
    let mut total = 0;
    for row in requests {
        total += cut(pool, &sought, row.get(0)).await?;
    }
    Ok(total)
}

/// Takes them out of one request, again where it was changed meanwhile.
async fn cut(pool: &Pool, sought: &Arc<Sought>, request: Uuid) -> Result<u64, Error> {
    loop {
        let client = pool.get().await?;
        let Some(row) = client.query_opt(PAYLOAD, &[&request]).await? else { return Ok(0) };
        drop(client);
        let packed: Vec<u8> = row.get(0);
        let digest = Sha256::digest(&packed).to_vec();
        let sought = Arc::clone(sought);
        // Off the threads that everybody shares: it may be a second's work.
        let read = tokio::task::spawn_blocking(move || sought.without(&packed)).await.ok().flatten();
        let rest = read.unwrap_or_else(|| {
            // Nobody can say what is in it, nor write it.
            tracing::warn!(%request, "a request that cannot be read is emptied, since somebody is erased");
            Rest { batches: Vec::new(), gone: Vec::new(), is_cut: true }
        });
        if !rest.is_cut {
            return Ok(0);
        }
        let frames = rest.gone.len() as u64;
        let mut client = pool.get().await?;
        let tx = client.transaction().await?;
        if tx.execute(CUT, &[&request, &items::pack(&rest.batches), &digest]).await? == 1 {
            tell(&tx, rest.gone).await?;
            tx.commit().await?;
            return Ok(frames);
        }
    }
}

/// A request without somebody's readings.
struct Rest {
    batches: Vec<envelope::Batch>,
    gone: Vec<Gone>,
    is_cut: bool,
}

impl Sought {
    fn without(&self, packed: &[u8]) -> Option<Rest> {
        let mut rest = Rest { batches: items::unpack(packed, UNPACKED)?, gone: Vec::new(), is_cut: false };
        for batch in &mut rest.batches {
            for columns in std::mem::take(&mut batch.devices) {
                let mut hardware_id = columns.hardware_id.clone();
                canonical(&mut hardware_id);
                let Some(hardware) = self.directory.hardware(&hardware_id) else {
                    batch.devices.push(columns);
                    continue;
                };
                // What cannot be read of their devices goes: it may be theirs.
                let Ok(device) = batch::device(columns.clone()) else {
                    rest.is_cut = true;
                    continue;
                };
                let (theirs, others): (Vec<&Frame>, Vec<&Frame>) =
                    device.frames.iter().partition(|frame| self.may_be_theirs(hardware, &device, frame));
                if theirs.is_empty() {
                    batch.devices.push(columns);
                    continue;
                }
                rest.is_cut = true;
                rest.gone.extend(theirs.iter().map(|frame| {
                    let key = Key { hardware: hardware.id, epoch: device.epoch.0 as i64 };
                    Gone {
                        // A damaged frame's number may be any.
                        frame: (is_known(frame) && frame.is_named()).then_some((key, u64::from(frame.seq))),
                        named: device.fit(frame).is_some_and(is_name),
                        moment: moment(&device, frame),
                    }
                }));
                if !others.is_empty() {
                    batch.devices.push(device.columns_of(others.into_iter()));
                }
            }
        }
        Some(rest)
    }

    fn may_be_theirs(&self, hardware: &Hardware, device: &DeviceBatch, frame: &Frame) -> bool {
        let possible = || possible(&hardware.assignments, &moment(device, frame));
        !is_known(frame)
            || possible().iter().any(|one| one.erased && (one.tenant, one.user) == (self.tenant, self.user))
    }
}

/// Whether a frame's name and time can be believed.
fn is_known(frame: &Frame) -> bool {
    frame.fit.is_some() && !matches!(frame.content, Content::Refused("damaged" | "no_time", _))
}

fn moment(device: &DeviceBatch, frame: &Frame) -> Moment {
    Moment {
        epoch: device.epoch,
        seq: frame.seq,
        first_us: frame.first_us,
        last_us: frame.last_us,
        uncertainty_us: frame.uncertainty_us,
    }
}
