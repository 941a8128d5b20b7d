//! Reads what is stored, by SQL of the oracle's own, as the database's superuser.
//!
//! Nothing of `kinara-store` is used: views, roles and queries of the product are what is being tested.

use std::collections::HashMap;

use futures_util::{TryStreamExt, pin_mut};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use super::evidence::{Evidence, FrameTime, Gap, Reading, Wearable};
use super::log::MAX_COMPONENTS;

const NO_PARAMETERS: [&(dyn ToSql + Sync); 0] = [];

/// A connection for looking, not for changing.
#[derive(Debug)]
pub struct Eye {
    client: Client,
}

/// What is judged, and so what is waited for.
#[derive(Debug, Clone, Default)]
pub struct Judged {
    /// The hardware of the oracle's own wearables: all that is stored of these, whose ever it is.
    pub own: Vec<String>,
    /// Clinics whose other devices are their own business.
    pub ignored: Vec<Uuid>,
}

/// Counts of what is judged, by which one sees whether a clinic still moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows of readings and waveforms, strangers' included.
    pub rows: i64,
    /// Frames of own wearables that the ledger has.
    pub frames: i64,
    /// Gaps of own wearables in force.
    pub gaps: i64,
    /// Of these, those that somebody may still fill.
    pub open_gaps: i64,
}

/// Rows of strangers are judged, so they are counted; strangers' frames and gaps are not.
const COUNTS: &str = "
    with own as (select id from hardware where hardware_id = any($1)),
      ours as (select id from devices where hardware_id = any($1))
    select
      (select count(*) from ts.readings where tenant_id <> all($2) or device_id in (select id from ours))
        + (select count(*) from ts.waveforms where tenant_id <> all($2) or device_id in (select id from ours)),
      (select coalesce(sum(upper(r) - lower(r)), 0)::int8 from frames_in f, unnest(f.seqs) r
       where f.hardware in (select id from own)),
      (select count(*) from gaps where withdrawn_at is null and hardware in (select id from own)),
      (select count(*) from gaps
       where withdrawn_at is null and reason = 'late' and hardware in (select id from own))";

impl Counts {
    /// Whether nothing was stored or lost in between. Frames may have come: where wearables take turns, each turn begins with
    /// a time sync, which is a frame without a reading, for ever.
    pub fn same_readings(self, other: Self) -> bool {
        Self { frames: 0, ..self } == Self { frames: 0, ..other }
    }
}

impl Eye {
    /// Opens it. `superuser` is a connection string.
    pub async fn open(superuser: &str) -> Result<Self, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(superuser, NoTls).await?;
        // It ends with the client; an error reaches whoever queries next.
        tokio::spawn(connection);
        Ok(Self { client })
    }

    /// How much there is now of what is judged.
    pub async fn counts(&self, judged: &Judged) -> Result<Counts, tokio_postgres::Error> {
        let row = self.client.query_one(COUNTS, &[&judged.own, &judged.ignored]).await?;
        Ok(Counts { rows: row.get(0), frames: row.get(1), gaps: row.get(2), open_gaps: row.get(3) })
    }

    /// The frames of one wearable that the ledger has, by epoch, as inclusive ranges.
    pub async fn ledger(
        &self,
        hardware: &str,
    ) -> Result<HashMap<u64, Vec<(u32, u32)>>, tokio_postgres::Error> {
        let rows = self
            .client
            .query(
                "select l.epoch, lower(r), upper(r) from frames_in l join hardware h on h.id = l.hardware,
                 unnest(l.seqs) r where h.hardware_id = $1",
                &[&hardware],
            )
            .await?;
        let mut all: HashMap<u64, Vec<(u32, u32)>> = HashMap::new();
        for row in rows {
            all.entry(row.get::<_, i64>(0) as u64).or_default().push(inclusive(row.get(1), row.get(2)));
        }
        Ok(all)
    }

    /// Frames of this hardware that are put aside, and were not taken since.
    pub async fn put_aside(&self, hardware: &str) -> Result<i64, tokio_postgres::Error> {
        let sql = "select count(*) from quarantine where hardware_id = $1 and replayed_at is null";
        Ok(self.client.query_one(sql, &[&hardware]).await?.get(0))
    }

    /// Readings that are stored for this wearer from this time on.
    pub async fn stored_since(&self, user: Uuid, utc_us: i64) -> Result<i64, tokio_postgres::Error> {
        let sql = "select count(*) from ts.readings
                   where user_id = $1 and extract(epoch from time) * 1000000 >= $2::int8";
        Ok(self.client.query_one(sql, &[&user, &utc_us]).await?.get(0))
    }

    /// Quarantined frames by reason: what is not in the database for a reason worth telling.
    pub async fn quarantine(&self) -> Result<Vec<(String, i64)>, tokio_postgres::Error> {
        let rows = self.client.query("select reason::text, count(*) from quarantine group by 1", &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// How long the oldest statement has been running, seconds.
    pub async fn longest_statement_s(&self) -> Result<f64, tokio_postgres::Error> {
        let row = self
            .client
            .query_one(
                "select coalesce(extract(epoch from max(clock_timestamp() - query_start)), 0)::float8
                 from pg_stat_activity
                 where state = 'active' and backend_type = 'client backend' and pid <> pg_backend_pid()",
                &[],
            )
            .await?;
        Ok(row.get(0))
    }

    /// What a clinic has that is not of its `own` hardware, and what others have of that: what, how many.
    pub async fn crossed(
        &self,
        tenant: Uuid,
        own: &[String],
    ) -> Result<Vec<(&'static str, i64)>, tokio_postgres::Error> {
        const LOOKS: [(&str, &str); 4] = [
            (
                "devices of nobody's in the clinic",
                "select count(*) from devices
                 where tenant_id = $1 and coalesce(hardware_id, '') <> all($2)",
            ),
            (
                "assignments of the clinic's hardware elsewhere",
                "select count(*) from device_assignments a join devices d on d.id = a.device_id
                 where d.hardware_id = any($2) and a.tenant_id <> $1",
            ),
            (
                "events in the clinic that no box of it told",
                "select count(*) from ts.events e
                 where e.tenant_id = $1 and e.device_id not in
                   (select id from devices where tenant_id = $1 and hardware_id = any($2))",
            ),
            (
                "alerts in the clinic, which has no rule",
                "select count(*) from alerts where tenant_id = $1 and cardinality($2::text[]) >= 0",
            ),
        ];
        let mut all = Vec::new();
        for (what, sql) in LOOKS {
            all.push((what, self.client.query_one(sql, &[&tenant, &own]).await?.get(0)));
        }
        Ok(all)
    }

    /// All there is to judge `wearables` by.
    pub async fn evidence(&self, wearables: Vec<Wearable>) -> Result<Evidence, tokio_postgres::Error> {
        let by_hardware: HashMap<&str, usize> = wearables
            .iter()
            .enumerate()
            .map(|(index, wearable)| (wearable.hardware.as_str(), index))
            .collect();
        let mut evidence = Evidence::default();
        self.readings(&by_hardware, &mut evidence).await?;
        self.waveforms(&by_hardware, &mut evidence).await?;
        evidence.frame_times = self.frame_times(&by_hardware).await?;
        evidence.gaps = self.gaps(&by_hardware).await?;
        evidence.wearables = wearables;
        Ok(evidence)
    }

    async fn devices(&self) -> Result<HashMap<Uuid, String>, tokio_postgres::Error> {
        let rows = self.client.query("select id, coalesce(hardware_id, '') from devices", &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    async fn readings(
        &self,
        by_hardware: &HashMap<&str, usize>,
        evidence: &mut Evidence,
    ) -> Result<(), tokio_postgres::Error> {
        let devices = self.devices().await?;
        let rows = self
            .client
            .query_raw(
                "select device_id, tenant_id, user_id, epoch, seq, idx::int4, type,
                        (extract(epoch from time) * 1000000)::int8, value from ts.readings",
                NO_PARAMETERS,
            )
            .await?;
        pin_mut!(rows);
        while let Some(row) = rows.try_next().await? {
            let device: Uuid = row.get(0);
            let hardware = devices.get(&device).map_or("a device that is not there", String::as_str);
            let Some(wearable) = by_hardware.get(hardware) else {
                *evidence.strangers.entry((hardware.to_owned(), row.get(1))).or_default() += 1;
                continue;
            };
            evidence.readings.push(Reading {
                wearable: *wearable,
                device,
                tenant: row.get(1),
                user: row.get(2),
                epoch: row.get::<_, i64>(3) as u64,
                seq: row.get::<_, i64>(4) as u32,
                index: row.get::<_, i32>(5) as u64,
                channel: row.get::<_, i16>(6) as u16,
                time_us: row.get(7),
                offset_ticks: 0,
                value: [row.get(8), 0.0, 0.0, 0.0],
                components: 1,
            });
        }
        Ok(())
    }

    async fn frame_times(
        &self,
        by_hardware: &HashMap<&str, usize>,
    ) -> Result<Vec<FrameTime>, tokio_postgres::Error> {
        let rows = self
            .client
            .query(
                "select h.hardware_id, t.epoch, array_agg(lower(r)), array_agg(upper(r)), t.ref_ticks::int8,
                        t.ref_utc_us::int8, t.rate_ppb::int8, t.uncertainty_us::int8, t.growth_ppb::int8,
                        t.time_uncertain
                 from frame_fits t join hardware h on h.id = t.hardware, unnest(t.seqs) r
                 group by 1, 2, 5, 6, 7, 8, 9, 10",
                &[],
            )
            .await?;
        let mut all = Vec::new();
        for row in rows {
            let Some(wearable) = by_hardware.get(row.get::<_, &str>(0)) else { continue };
            all.push(FrameTime {
                wearable: *wearable,
                epoch: row.get::<_, i64>(1) as u64,
                seqs: ranges(row.get(2), row.get(3)),
                ref_ticks: row.get::<_, i64>(4) as u64,
                ref_utc_us: row.get(5),
                rate_ppb: row.get(6),
                uncertainty_us: row.get::<_, i64>(7) as u64,
                growth_ppb: row.get(8),
                time_uncertain: row.get(9),
            });
        }
        Ok(all)
    }

    async fn gaps(&self, by_hardware: &HashMap<&str, usize>) -> Result<Vec<Gap>, tokio_postgres::Error> {
        let rows = self
            .client
            .query(
                "select h.hardware_id, g.epoch,
                        (select array_agg(lower(r)) from unnest(g.seqs) r),
                        (select array_agg(upper(r)) from unnest(g.seqs) r),
                        g.from_ticks::int8, g.to_ticks::int8, g.reason::text
                 from gaps g join hardware h on h.id = g.hardware where g.withdrawn_at is null",
                &[],
            )
            .await?;
        let mut all = Vec::new();
        for row in rows {
            let Some(wearable) = by_hardware.get(row.get::<_, &str>(0)) else { continue };
            let seqs: Option<Vec<i64>> = row.get(2);
            let ends: Option<Vec<i64>> = row.get(3);
            let from: Option<i64> = row.get(4);
            let to: Option<i64> = row.get(5);
            all.push(Gap {
                wearable: *wearable,
                epoch: row.get::<_, i64>(1) as u64,
                seqs: seqs.zip(ends).map(|(from, to)| ranges(from, to)),
                ticks: from.map(|from| (from as u64, to.map_or(u64::MAX, |to| to as u64))),
                reason: row.get(6),
            });
        }
        Ok(all)
    }

    async fn waveforms(
        &self,
        by_hardware: &HashMap<&str, usize>,
        evidence: &mut Evidence,
    ) -> Result<(), tokio_postgres::Error> {
        let devices = self.devices().await?;
        let rows = self
            .client
            .query_raw(
                "select device_id, tenant_id, user_id, epoch, seq, idx::int4, type,
                        (extract(epoch from time) * 1000000)::int8, interval_ms, ticks, scale, components, data
                 from ts.waveforms",
                NO_PARAMETERS,
            )
            .await?;
        pin_mut!(rows);
        while let Some(row) = rows.try_next().await? {
            let device: Uuid = row.get(0);
            let hardware = devices.get(&device).map_or("a device that is not there", String::as_str);
            let Some(wearable) = by_hardware.get(hardware) else {
                *evidence.strangers.entry((hardware.to_owned(), row.get(1))).or_default() += 1;
                continue;
            };
            let interval: Option<f64> = row.get(8);
            let ticks: Option<Vec<i64>> = row.get(9);
            let scale: f64 = row.get(10);
            let components = row.get::<_, i16>(11).clamp(1, MAX_COMPONENTS as i16) as usize;
            let data: &[u8] = row.get(12);
            for (place, sample) in data.chunks_exact(4 * components).enumerate() {
                let mut value = [0.0; MAX_COMPONENTS];
                for (value, bytes) in value.iter_mut().zip(sample.chunks_exact(4)) {
                    *value = f64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])) * scale;
                }
                let offset_ticks = match &ticks {
                    Some(ticks) => {
                        ticks.get(place).zip(ticks.first()).map_or(0, |(at, first)| (at - first) as u64)
                    }
                    None => (interval.unwrap_or(0.0) * place as f64).round() as u64,
                };
                evidence.readings.push(Reading {
                    wearable: *wearable,
                    device,
                    tenant: row.get(1),
                    user: row.get(2),
                    epoch: row.get::<_, i64>(3) as u64,
                    seq: row.get::<_, i64>(4) as u32,
                    index: (row.get::<_, i32>(5) as u64) << 32 | place as u64,
                    channel: row.get::<_, i16>(6) as u16,
                    time_us: row.get(7),
                    offset_ticks,
                    value,
                    components: components as u8,
                });
            }
        }
        Ok(())
    }
}

fn inclusive(lower: i64, upper: i64) -> (u32, u32) {
    (lower as u32, (upper - 1).clamp(0, i64::from(u32::MAX)) as u32)
}

fn ranges(lower: Vec<i64>, upper: Vec<i64>) -> Vec<(u32, u32)> {
    lower.into_iter().zip(upper).map(|(lower, upper)| inclusive(lower, upper)).collect()
}

#[cfg(test)]
mod tests {
    use kinara_store::migrate;
    use kinara_test_postgres::{Options, PREPARED, Postgres};

    use super::*;

    /// Two clinics, of which the second attacks. Each has a device; that of the first is `own`, and the second one's gateway has
    /// spoken of it too.
    const TWO_CLINICS: &str = "
        insert into tenants (id, name, slug) values
          ('00000000-0000-0000-0000-000000000001', 'Works', 'works'),
          ('00000000-0000-0000-0000-000000000002', 'Attacks', 'attacks');
        insert into users (id, tenant_id) select id, id from tenants;
        insert into hardware (id, hardware_id) values
          ('00000000-0000-0000-0000-00000000000a', 'own'), ('00000000-0000-0000-0000-00000000000b', 'theirs');
        insert into devices (id, tenant_id, hardware_id) values
          ('00000000-0000-0000-0000-0000000000a1', '00000000-0000-0000-0000-000000000001', 'own'),
          ('00000000-0000-0000-0000-0000000000a2', '00000000-0000-0000-0000-000000000002', 'own'),
          ('00000000-0000-0000-0000-0000000000b1', '00000000-0000-0000-0000-000000000002', 'theirs'),
          ('00000000-0000-0000-0000-0000000000c1', '00000000-0000-0000-0000-000000000001', 'nobody''s');
        select ts.ensure_partitions(now(), now());
        insert into gaps (hardware, epoch, seqs, reason, withdrawn_at)
          select h.id, 7, '{[1,3)}', r.reason, r.gone
          from hardware h, (values ('late', null), ('late', now()), ('reset', null)) as r (reason, gone);
        insert into ledger (hardware, epoch, seqs) select id, 7, '{[0,1),[3,5)}' from hardware;
        insert into named_frames (hardware, epoch, part, seqs) select id, 7, 1, '{[1024,1025)}' from hardware;";

    async fn two_clinics() -> (Postgres, Eye) {
        let migrated = async |url: String| migrate(&url).await.map(drop);
        let server = Postgres::prepared(Options::fast(), &migrate::digest(), migrated).await.unwrap();
        let eye = Eye::open(&server.superuser_url(PREPARED)).await.unwrap();
        eye.client.batch_execute(TWO_CLINICS).await.unwrap();
        (server, eye)
    }

    async fn add_row(eye: &Eye, device: &str) {
        let sql = format!(
            "insert into ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value, quality)
             select now(), d.tenant_id, d.tenant_id, d.id, 1, 0, 7, 0, 1, 1 from devices d
             where d.id = '00000000-0000-0000-0000-0000000000{device}'"
        );
        eye.client.batch_execute(&sql).await.unwrap();
    }

    #[tokio::test]
    async fn an_attacker_s_gaps_and_rows_are_not_waited_for_and_all_of_an_own_wearable_s_are() {
        let (_server, eye) = two_clinics().await;
        let works = Judged { own: vec!["own".to_owned()], ignored: vec![Uuid::from_u128(2)] };
        let at_first = Counts { rows: 0, frames: 4, gaps: 2, open_gaps: 1 };
        assert_eq!(eye.counts(&works).await.unwrap(), at_first);
        add_row(&eye, "b1").await;
        assert_eq!(eye.counts(&works).await.unwrap(), at_first, "an attacker's own device");
        // A row of an own wearable is judged in whichever clinic it lies, and one of nobody's in a clinic that works.
        for (device, rows) in [("a1", 1), ("a2", 2), ("c1", 3)] {
            add_row(&eye, device).await;
            assert_eq!(eye.counts(&works).await.unwrap(), Counts { rows, ..at_first }, "{device}");
        }
        // Where both devices are the oracle's, both are waited for.
        let own = ["own", "theirs"].map(str::to_owned).to_vec();
        let both = Judged { own, ignored: Vec::new() };
        let all = Counts { rows: 4, frames: 8, gaps: 4, open_gaps: 2 };
        assert_eq!(eye.counts(&both).await.unwrap(), all);
    }

    #[test]
    fn a_clinic_whose_wearables_only_sync_their_clocks_is_quiet() {
        let counts = Counts { rows: 7, frames: 100, gaps: 1, open_gaps: 0 };
        assert!(counts.same_readings(Counts { frames: 180, ..counts }));
        assert!(!counts.same_readings(Counts { rows: 8, ..counts }));
        assert!(!counts.same_readings(Counts { open_gaps: 1, ..counts }));
    }
}
