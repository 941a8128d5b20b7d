//! What the store knows of time: syncs of our own, the moment our clock becomes known or jumps, and the floor below which
//! nothing is believed.

use kinara_protocol::frame::Epoch;
use rusqlite::{Row, params};

use super::damage::{BrokenRow, Damage, broken_anchor, cell};
use super::engine::Engine;
use super::{OwnSync, StoreError, piece};
use crate::align::fit::Anchor;
use crate::align::floor::Floor;
use crate::align::source::Known;
use crate::hardware::HardwareId;

/// A sync of this boot that is further off than this by our clock as it is now is judged anew.
const JUMP_US: i64 = 100_000;
/// What says that it is this much later than now comes from a clock that was wrong: one that is right is never so far ahead
/// of another one, nor of itself a while later.
const AHEAD_US: i64 = 3_600_000_000;
/// Under this name a version before this one kept the last time known.
const UNCONFIRMED: &str = "last_utc_us";
/// The floor: where it is, where it was, for how long it has settled, and where this boot began.
const FLOOR: [&str; 3] = ["floor_us", "floor_former_us", "floor_settled_us"];
const FLOOR_BASE: [&str; 2] = ["floor_base_us", "floor_base_boot_us"];
/// The boot that the base is of, as a number.
const FLOOR_BOOT: &str = "floor_boot";

impl Engine {
    /// Keeps a sync; without a known clock it waits for one, by boot time.
    pub(super) fn own_sync(&mut self, hardware: &HardwareId, sync: OwnSync) -> Result<(), StoreError> {
        let known = self.known;
        let boot_id = self.boot_id().to_owned();
        self.meet(hardware, sync.epoch)?;
        let device = self.device(hardware)?;
        let anchor = known.map(|known| sync.anchor(&known));
        if let Some(anchor) = anchor {
            device.timeline.sync(sync.epoch, anchor);
        }
        let id = device.id;
        self.db
            .prepare_cached(
                "INSERT OR REPLACE INTO anchors (device, epoch, ticks, utc_us, uncertainty_us, boot_us, boot_id)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                id,
                piece::epoch_to_sql(sync.epoch),
                sync.ticks as i64,
                anchor.map(|anchor| anchor.utc_us),
                anchor.map_or(sync.uncertainty_us, |anchor| anchor.uncertainty_us) as i64,
                sync.boot_us,
                boot_id
            ])?;
        Ok(())
    }

    /// Takes what our clock is where nothing has to be written for it: it goes on as before, or is not known any more.
    /// False when it became known or jumped; then [`clock_is`](Self::clock_is) has to follow.
    pub(super) fn clock_goes_on(&mut self, known: Option<Known>) -> bool {
        let goes_on = known.is_none_or(|now| {
            self.known
                .is_some_and(|before| (before.utc_minus_boot_us - now.utc_minus_boot_us).abs() <= JUMP_US)
        });
        if goes_on {
            self.known = known;
        }
        goes_on
    }

    /// Our clock became known, or changed.
    pub(super) fn clock_is(&mut self, known: Known) -> Result<(), StoreError> {
        self.known = Some(known);
        self.resolve(&known)
    }

    /// Gives UTC to the syncs of this boot that wait for it, and judges the others by what our clock is now: it may have
    /// been set right since they were made, by this run of the daemon or by one before it.
    pub(super) fn resolve(&mut self, known: &Known) -> Result<(), StoreError> {
        let mut changed = Vec::new();
        let (own_anchors, broken) = self.own_anchors()?;
        self.set_rows_aside(&broken)?;
        for own in own_anchors {
            if let Some(anchor) = own.judged(known) {
                changed.push((own.device, own.epoch, anchor));
            }
        }
        for (device, epoch, anchor) in &changed {
            self.db
                .prepare_cached(
                    "UPDATE anchors SET utc_us = ?4, uncertainty_us = ?5 WHERE device = ?1 AND epoch = ?2 AND ticks = ?3",
                )?
                .execute(params![
                    device,
                    piece::epoch_to_sql(*epoch),
                    anchor.ticks as i64,
                    anchor.utc_us,
                    anchor.uncertainty_us as i64
                ])?;
        }
        if !changed.is_empty() {
            tracing::info!(
                syncs = changed.len(),
                "time syncs made before the clock was right have their time now"
            );
        }
        for (device, epoch, anchor) in changed {
            let device = self.hardware.get(&device).and_then(|hardware| self.devices.get_mut(hardware));
            if let Some(device) = device {
                device.timeline.correct(epoch, anchor);
            }
        }
        // Our clock may have been behind when some were left out.
        self.read_anchors_again()?;
        self.forget_anchors_of_the_future();
        Ok(())
    }

    /// Takes anchors out of use that say that it is later than it is. They are kept: it may be our clock that is wrong.
    pub(super) fn forget_anchors_of_the_future(&mut self) {
        let Some(latest_us) = self.latest_us() else { return };
        for (hardware, device) in &mut self.devices {
            let anchors = device.timeline.forget_after(latest_us);
            if anchors > 0 {
                tracing::warn!(%hardware, anchors, "time syncs of a gateway whose clock was ahead are not believed");
            }
        }
    }

    /// Later than this nothing has happened, by any clock that is right.
    pub(super) fn latest_us(&self) -> Option<i64> {
        self.known_us().map(|now_us| now_us.saturating_add(AHEAD_US))
    }

    /// The syncs that this gateway made in this boot, and those that cannot be read.
    fn own_anchors(&self) -> Result<(Vec<OwnAnchor>, Vec<BrokenRow>), StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT device, epoch, ticks, utc_us, uncertainty_us, boot_us FROM anchors
             WHERE boot_id = ?1 AND boot_us IS NOT NULL",
        )?;
        let (mut own, mut broken) = (Vec::new(), Vec::new());
        let mut rows = select.query([self.boot_id()])?;
        while let Some(row) = rows.next()? {
            match OwnAnchor::read(row) {
                Ok(anchor) => own.push(anchor),
                Err(damage) => broken.push(broken_anchor(row, damage)?),
            }
        }
        Ok((own, broken))
    }

    /// The floor as it was kept.
    pub(super) fn floor(&self) -> Floor {
        let boot_us = self.clock.boottime_us();
        let number = |key| self.meta(key).ok().flatten();
        let [Some(at), Some(former), Some(settled)] = FLOOR.map(number) else {
            return number(UNCONFIRMED)
                .map_or_else(|| Floor::new(boot_us), |last| Floor::unconfirmed(last, boot_us));
        };
        let base = match FLOOR_BASE.map(number) {
            [Some(us), Some(at)] if number(FLOOR_BOOT) == Some(self.boot_number()) => Some((us, at)),
            _ => None,
        };
        Floor::kept([at, former, settled], base, boot_us)
    }

    /// Keeps the floor.
    pub(super) fn keep_floor(&mut self, floor: &Floor) -> Result<(), StoreError> {
        let values = [floor.at_us, floor.former_us, floor.settled_us];
        for (key, value) in FLOOR.into_iter().zip(values) {
            self.set_meta(key, value)?;
        }
        for (key, value) in FLOOR_BASE.into_iter().zip([floor.base_us, floor.base_boot_us]) {
            self.set_meta(key, value)?;
        }
        self.set_meta(FLOOR_BOOT, self.boot_number())?;
        self.db.prepare_cached("DELETE FROM meta WHERE key = ?1")?.execute([UNCONFIRMED])?;
        Ok(())
    }

    /// This boot's id as a number.
    fn boot_number(&self) -> i64 {
        let digits: String = self.boot_id().chars().filter(char::is_ascii_hexdigit).take(15).collect();
        i64::from_str_radix(&digits, 16).unwrap_or(0)
    }
}

/// A sync of ours as it is kept; without UTC it waits for the clock.
struct OwnAnchor {
    device: i64,
    epoch: Epoch,
    ticks: u64,
    utc_us: Option<i64>,
    uncertainty_us: u64,
    boot_us: i64,
}

impl OwnAnchor {
    fn read(row: &Row<'_>) -> Result<Self, Damage> {
        Ok(Self {
            device: cell(row, 0)?,
            epoch: Epoch(cell::<i64>(row, 1)? as u64),
            ticks: cell::<i64>(row, 2)? as u64,
            utc_us: cell(row, 3)?,
            uncertainty_us: cell::<i64>(row, 4)? as u64,
            boot_us: cell(row, 5)?,
        })
    }

    /// The anchor by the clock as it is known now, where that is not what is kept. Its uncertainty is that of the clock
    /// at the moment of the sync, on top of its own.
    fn judged(&self, known: &Known) -> Option<Anchor> {
        let (utc_us, clock_us) = (known.utc_us(self.boot_us), known.uncertainty_us_at(self.boot_us));
        if let Some(kept_us) = self.utc_us {
            let off_us = kept_us.abs_diff(utc_us);
            // A worse source that does not contradict what a better one said changes nothing.
            let worse = clock_us >= self.uncertainty_us && off_us <= clock_us + self.uncertainty_us;
            if off_us <= JUMP_US.unsigned_abs() || worse {
                return None;
            }
        }
        Some(Anchor { ticks: self.ticks, utc_us, uncertainty_us: self.uncertainty_us + clock_us })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use bytes::Bytes;
    use kinara_clock::{Clock, SystemClock};
    use kinara_protocol::frame::{MAX_FRAME, SyncAnchor, Ticks, encode_sync_anchor};
    use kinara_protocol::topic::GatewayId;
    use tracing::{Level, Metadata, Subscriber, span};

    use super::super::Settings;
    use super::*;
    use crate::align::timeline::Stamp;
    use crate::status::{Board, ClockSource, Snapshot};

    /// Counts what is written into a journal of warnings.
    #[derive(Clone, Default)]
    struct Warnings(Arc<AtomicU32>);

    impl Subscriber for Warnings {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= Level::WARN
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    fn settings(dir: &std::path::Path) -> Settings {
        Settings {
            dir: dir.to_owned(),
            gateway: GatewayId(uuid::Uuid::nil()),
            group_commit: Duration::ZERO,
            group_frames: 1,
            wearable_commit: Duration::ZERO,
            queue: 1,
            soft_limit: 1 << 40,
            hard_limit: 1 << 40,
            reserve: 0,
            seal_after: Duration::ZERO,
            seal_bytes: 1,
            full_bytes: 1,
            seal_ahead: 1,
            unstamped_wait: Duration::ZERO,
            check_below: 0,
        }
    }

    #[test]
    fn a_log_full_of_syncs_of_the_future_is_not_believed_and_fills_no_journal() {
        let dir = tempfile::tempdir().unwrap();
        let board = Board::new(Snapshot::default());
        let clock = SystemClock;
        let mut engine = Engine::open(settings(dir.path()), Arc::new(clock), board).unwrap();
        engine.reopen().unwrap();
        let (now_us, at_boot_us) = (clock.utc_us(), clock.boottime_us());
        engine.begin().unwrap();
        engine
            .clock_is(Known {
                utc_minus_boot_us: now_us - at_boot_us,
                uncertainty_us: 1_000,
                source: ClockSource::TrustSystem,
                at_boot_us,
            })
            .unwrap();
        let (hardware, epoch) = (HardwareId::kinara(1), Epoch::new(7, 1));
        let frames: Vec<Bytes> = (0..100)
            .map(|seq| {
                let (ticks, utc_us) =
                    (Ticks(u64::from(seq) * 1_000), now_us + 86_400_000_000 * (2 + i64::from(seq)));
                let mut out = [0; MAX_FRAME];
                let anchor = SyncAnchor { ticks, utc_us, uncertainty_us: 1_000 };
                let len = encode_sync_anchor(epoch, seq, &anchor, &mut out);
                Bytes::copy_from_slice(&out[..len])
            })
            .collect();
        let warnings = Warnings::default();
        tracing::subscriber::with_default(warnings.clone(), || engine.append(&hardware, &frames).unwrap());
        engine.commit().unwrap();
        assert_eq!(warnings.0.load(Ordering::Relaxed), 0);
        assert_eq!(engine.devices[&hardware].timeline.stamp(epoch, 0, 1, now_us, true), Stamp::Wait);
    }
}
