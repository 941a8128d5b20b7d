//! Enrich: what the database knows of the gateways and devices that a transaction is about.

use std::collections::HashMap;

use jiff::Timestamp;
use kinara_protocol::frame::Epoch;
use kinara_store::Transaction;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::Error;
use crate::assign::{Assignment, Boundary, Consent};
use crate::batch::Sender;

/// Gateways and devices, as of one transaction.
#[derive(Debug, Default)]
pub struct Directory {
    gateways: HashMap<Uuid, Uuid>,
    devices: HashMap<String, Hardware>,
}

/// A device and whose it was when.
#[derive(Debug)]
pub struct Hardware {
    /// Its row.
    pub id: Uuid,
    /// All its assignments, in order.
    pub assignments: Vec<Assignment>,
}

impl Hardware {
    /// Whether more than one clinic has had it.
    pub fn is_shared(&self) -> bool {
        self.assignments.windows(2).any(|pair| pair[0].tenant != pair[1].tenant)
    }
}

/// A retired gateway is a stranger: nothing of it is taken any more.
const GATEWAYS: &str = "SELECT id, tenant_id FROM gateways WHERE id = ANY($1) AND retired_at IS NULL";
macro_rules! hardware {
    ($those:literal, $most:literal) => {
        concat!(
            "SELECT h.hardware_id, h.id, a.tenant_id, a.user_id, a.device_id, a.valid_from, a.from_epoch, a.from_seq,
               a.valid_to, a.to_epoch, a.to_seq, c.id IS NOT NULL, c.withdrawn_at, t.user_id IS NOT NULL,
               a.id, a.first_epoch, a.first_seq
             FROM hardware h LEFT JOIN device_assignments a ON a.hardware_id = h.id ",
            $those,
            " LEFT JOIN consents c ON c.id = a.consent_id
               LEFT JOIN tombstones t ON t.tenant_id = a.tenant_id AND t.user_id = a.user_id
             WHERE h.hardware_id = ANY($1) ",
            $most
        )
    };
}
// Put in order here: the server would have to read all before it gave the first.
const HARDWARE: &str = hardware!("", "LIMIT $2");
const HARDWARE_AT: &str = hardware!("AND a.valid_from <= $2 AND (a.valid_to IS NULL OR a.valid_to > $2)", "");

/// Devices that are looked up at once where the work is nobody's who waits.
pub(crate) const SOME: usize = 16;
/// As many assignments as there are.
pub(crate) const ALL: i64 = i64::MAX;

impl Directory {
    /// Looks up gateways by id and devices by hardware id. [`Error::TooWide`]: more devices than one have more than `most`
    /// assignments together; boxes make a thousand for a device, and a batch may name a thousand devices.
    pub async fn load(
        tx: &Transaction<'_>,
        gateways: &[Uuid],
        hardware: &[&str],
        most: i64,
    ) -> Result<Self, Error> {
        let most = if hardware.len() > 1 { most } else { ALL };
        let (by_id, by_hardware) = (tx.prepare_cached(GATEWAYS).await?, tx.prepare_cached(HARDWARE).await?);
        let room = most.saturating_add(1);
        let (gateways, hardware): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 2]) =
            ([&gateways], [&hardware, &room]);
        let (gateways, rows) =
            futures_util::try_join!(tx.query(&by_id, &gateways), tx.query(&by_hardware, &hardware))?;
        if rows.len() as i64 > most {
            return Err(Error::TooWide);
        }
        Ok(Self::of(&gateways, &rows))
    }

    /// Looks up a gateway, and who has these devices at a time: of each no other assignment.
    pub async fn at(
        tx: &Transaction<'_>,
        gateway: Uuid,
        hardware: &[&str],
        time: Timestamp,
    ) -> Result<Self, Error> {
        let (by_id, by_hardware) =
            (tx.prepare_cached(GATEWAYS).await?, tx.prepare_cached(HARDWARE_AT).await?);
        let gateways = tx.query(&by_id, &[&[gateway].as_slice()]).await?;
        Ok(Self::of(&gateways, &tx.query(&by_hardware, &[&hardware, &time]).await?))
    }

    fn of(gateways: &[Row], rows: &[Row]) -> Self {
        let mut out = Self {
            gateways: gateways.iter().map(|row| (row.get(0), row.get(1))).collect(),
            devices: HashMap::new(),
        };
        for row in rows {
            let device = out
                .devices
                .entry(row.get(0))
                .or_insert_with(|| Hardware { id: row.get(1), assignments: Vec::new() });
            let Some(tenant) = row.get::<_, Option<Uuid>>(2) else { continue };
            let frame = |epoch: Option<i64>, seq: Option<i64>| {
                epoch.zip(seq).map(|(epoch, seq)| (Epoch(epoch as u64), seq as u32))
            };
            let boundary = |time: Timestamp, epoch: Option<i64>, seq: Option<i64>| Boundary {
                time_us: time.as_microsecond(),
                frame: frame(epoch, seq),
            };
            let consent = match (row.get(11), row.get::<_, Option<Timestamp>>(12)) {
                (false, _) => Consent::Missing,
                (true, None) => Consent::Given,
                (true, Some(at)) => Consent::Withdrawn(at.as_microsecond()),
            };
            device.assignments.push(Assignment {
                id: row.get(14),
                tenant,
                user: row.get(3),
                device: row.get(4),
                from: boundary(row.get(5), row.get(6), row.get(7)),
                to: row.get::<_, Option<Timestamp>>(8).map(|time| boundary(time, row.get(9), row.get(10))),
                first: frame(row.get(15), row.get(16)),
                consent,
                erased: row.get(13),
            });
        }
        for device in out.devices.values_mut() {
            let to = |one: &Assignment| one.to.map_or(i64::MAX, |to| to.time_us);
            device.assignments.sort_by_key(|one| (one.from.time_us, to(one)));
        }
        out
    }

    /// The clinic of who brought something.
    pub fn tenant_of(&self, sender: Sender) -> Option<Uuid> {
        match sender {
            Sender::Gateway(gateway) => self.gateways.get(&gateway).copied(),
            Sender::Clinic(tenant) => Some(tenant),
        }
    }

    /// A device.
    pub fn hardware(&self, hardware_id: &str) -> Option<&Hardware> {
        self.devices.get(hardware_id)
    }
}
