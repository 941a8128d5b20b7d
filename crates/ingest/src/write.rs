//! The write: many batches, one transaction.
//!
//! The promise: readings, ledger, frame times, gaps and quarantine are committed together or not at all, and the answer to
//! a batch is given after the commit. A transaction that fails on its data is tried again batch by batch, then by halves,
//! until the frame that does it stands alone and is put aside. However many such frames a batch has, so many halvings
//! are made for it and no more. What is slow or in the way for one batch is that batch's own: the others are answered.
//!
//! What has to be there before a transaction (a day's partition, a channel's name) is made before it, and only for frames
//! that will be written: what a frame of nobody claims makes nothing.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt as _;
use jiff::Timestamp;
use kinara_clock::Clock;
use kinara_protocol::frame::Epoch;
use kinara_store::{Pool, Transaction};
use uuid::Uuid;

use crate::Work;
use crate::assign::order_of_names;
use crate::batch::{Batch, Content, Frame, Sender, Wave};
use crate::claims;
use crate::copy::{ReadingTemplate, Rows, pg_time};
use crate::decide::decide;
use crate::device_events;
use crate::directory::{self, Directory};
use crate::error::{Error, Remedy};
use crate::gaps::{self, Findings};
use crate::intervals;
use crate::ledger::{self, Entry};
use crate::parts;
use crate::plan::{self, Aside, Key, NOT_BEFORE_US, Plan, Taken, Window};
use crate::quarantine::{self, Refused};
use crate::rollup;
use crate::stages::{Passage, Stage, Stages};
use crate::timestamp;
use crate::touch::Touched;
use crate::wear::{self, Wear};
use crate::words::Believed;

pub(crate) const DAY_US: i64 = 86_400_000_000;

/// What a writer holds itself to.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Raw readings are kept this long; older ones are acknowledged and not kept.
    pub retention_days: i64,
    /// A sample from further ahead than this is a wrong clock.
    pub ahead_s: i64,
    /// How often a transaction that was in another's way is tried again.
    pub tries: u32,
    /// How long a gateway that is not enrolled should wait.
    pub unknown_gateway_s: u32,
    /// How long a batch should wait that could not be written though the database is there, nor be put aside.
    pub unwritable_s: u32,
    /// How long a batch should wait whose group was cut short by an error.
    pub cut_short_s: u32,
    /// A device's row is touched at most this often for its readings.
    pub device_status_s: u64,
    /// How often a batch that the database refuses is halved to find the frame that does it; what is left then is put
    /// aside as it is.
    pub halvings: u32,
    /// Readings and frames in one transaction of a request that came over HTTP.
    pub piece: usize,
    /// Channels beyond the registry that one clinic may bring.
    pub foreign_channels: i64,
    /// Assignments of all devices of a transaction that are looked at together; those of one device are in any case.
    pub assignments: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            retention_days: 730,
            ahead_s: 86_400,
            tries: 5,
            unknown_gateway_s: 300,
            unwritable_s: 3_600,
            cut_short_s: 5,
            device_status_s: 10,
            halvings: 64,
            piece: 20_000,
            foreign_channels: 16,
            assignments: 20_000,
        }
    }
}

/// What became of a batch's frames (or of an event batch's events).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Written now.
    pub stored: u64,
    /// In already.
    pub duplicate: u64,
    /// Put aside.
    pub quarantined: u64,
    /// Not kept, for want of consent.
    pub discarded: u64,
    /// Not kept, for their age.
    pub expired: u64,
}

impl Counts {
    fn add_all(&mut self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            if let Outcome::Done(counts) = outcome {
                self.add(*counts);
            }
        }
    }

    /// Adds another's.
    pub fn add(&mut self, other: Self) {
        self.stored += other.stored;
        self.duplicate += other.duplicate;
        self.quarantined += other.quarantined;
        self.discarded += other.discarded;
        self.expired += other.expired;
    }
}

/// The answer to a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Committed.
    Done(Counts),
    /// Not now.
    RetryAfter {
        /// When.
        seconds: u32,
        /// Why.
        reason: String,
    },
}

/// Writes batches. Any number of writers work side by side, in one process or in many.
#[derive(Debug)]
pub struct Writer {
    pub(crate) pool: Pool,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
    /// Days (since 1970) whose partitions are known to be there.
    days: Mutex<HashSet<i64>>,
    /// Channels beyond the registry that have a row.
    channels: Mutex<HashSet<i16>>,
    touched: Touched,
    /// Where the time goes.
    pub stages: Stages,
    /// Frames that were stored though another clinic has their numbers.
    pub apart: AtomicU64,
    #[cfg(feature = "sabotage")]
    sabotage: Option<crate::sabotage::Sabotage>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded here is a cache: good even if a holder panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// A writer on a pool of `kinara_ingest` connections.
    pub fn new(pool: Pool, clock: Arc<dyn Clock>, limits: Limits) -> Self {
        Self {
            pool,
            clock,
            limits,
            days: Mutex::default(),
            channels: Mutex::default(),
            touched: Touched::default(),
            stages: Stages::default(),
            apart: AtomicU64::new(0),
            #[cfg(feature = "sabotage")]
            sabotage: crate::sabotage::Sabotage::from_env(),
        }
    }

    /// A writer with a planted fault.
    #[cfg(feature = "sabotage")]
    #[must_use]
    pub fn sabotaged(mut self, sabotage: crate::sabotage::Sabotage) -> Self {
        self.sabotage = Some(sabotage);
        self
    }

    pub(crate) fn window(&self) -> Window {
        let now = self.clock.utc_us();
        Window {
            oldest_us: now - self.limits.retention_days * DAY_US,
            newest_us: now + self.limits.ahead_s * 1_000_000,
        }
    }

    /// Writes batches in one transaction, and answers each. An error means that no batch has an answer and that the
    /// database is not there: the batches are to come again later.
    pub async fn write(&self, batches: &[Batch]) -> Result<Vec<Outcome>, Error> {
        self.write_watched(batches, &mut Passage::default()).await
    }

    /// [`Writer::write`], noting when the transaction passed its stages.
    pub fn write_watched<'a>(
        &'a self,
        batches: &'a [Batch],
        passage: &'a mut Passage,
    ) -> Work<'a, Result<Vec<Outcome>, Error>> {
        Box::pin(self.write_all(batches, passage))
    }

    async fn write_all(&self, batches: &[Batch], passage: &mut Passage) -> Result<Vec<Outcome>, Error> {
        let error = match self.tries(batches, passage).await {
            Ok(outcomes) => return Ok(outcomes),
            Err(error) if error.last_remedy() == Remedy::Later => return Err(error),
            Err(error) => error,
        };
        if !error.is_too_wide() {
            tracing::warn!(%error, batches = batches.len(), "a transaction failed: finding the batch that does it");
        }
        let mut outcomes = Vec::with_capacity(batches.len());
        let mut wide = Vec::new();
        for batch in batches {
            match self.alone(batch, passage, &mut wide).await {
                Ok(mut outcome) => outcomes.append(&mut outcome),
                Err(error) if outcomes.is_empty() => return Err(error),
                Err(error) => {
                    // What is committed keeps its answer; the rest comes again.
                    tracing::warn!(%error, answered = outcomes.len(), "a group was cut short");
                    outcomes.resize_with(batches.len(), || Outcome::RetryAfter {
                        seconds: self.limits.cut_short_s,
                        reason: "the database went away".to_owned(),
                    });
                    break;
                }
            }
        }
        Ok(outcomes)
    }

    /// Writes one batch. One that the database refuses however it is cut gets an answer of its own, so that it does
    /// not stand in the others' way. `wide`: who had one here already with more assignments than are looked at at once;
    /// what else of theirs is here comes again.
    async fn alone(
        &self,
        batch: &Batch,
        passage: &mut Passage,
        wide: &mut Vec<Sender>,
    ) -> Result<Vec<Outcome>, Error> {
        if wide.contains(&batch.sender) {
            let reason = "the devices of an earlier batch have many assignments".to_owned();
            return Ok(vec![Outcome::RetryAfter { seconds: self.limits.cut_short_s, reason }]);
        }
        let error = match self.tries(std::slice::from_ref(batch), passage).await {
            Err(error) if error.last_remedy() == Remedy::Split => {
                if error.is_too_wide() {
                    wide.push(batch.sender);
                }
                match self.by_halves(batch, passage).await {
                    Ok(counts) => return Ok(vec![Outcome::Done(counts)]),
                    Err(error) => error,
                }
            }
            Err(error) => error,
            done => return done,
        };
        let (seconds, reason) = match error.last_remedy() {
            Remedy::Later => return Err(error),
            Remedy::Again => (self.limits.cut_short_s, "the database was too busy for this batch"),
            Remedy::Split => (self.limits.unwritable_s, "the database refuses this batch"),
        };
        tracing::error!(%error, name = ?batch.name, seconds, "a batch can be neither written nor put aside now");
        Ok(vec![Outcome::RetryAfter { seconds, reason: reason.to_owned() }])
    }

    async fn tries(&self, batches: &[Batch], passage: &mut Passage) -> Result<Vec<Outcome>, Error> {
        let mut left = self.limits.tries;
        loop {
            passage.0.clear();
            match self.transaction(batches, passage).await {
                Err(error) if error.remedy() == Remedy::Again && left > 1 => {
                    left -= 1;
                    lock(&self.days).clear();
                    tracing::debug!(%error, "trying again");
                }
                other => return other,
            }
        }
    }

    /// Halves what the database refuses, until it takes the rest or one frame is left, which is put aside.
    async fn by_halves(&self, batch: &Batch, passage: &mut Passage) -> Result<Counts, Error> {
        let mut total = Counts::default();
        if !batch.unreadable.is_empty() {
            total.add_all(&self.tries(&[batch.unreadable_alone()], passage).await?);
        }
        // The whole has just failed.
        let middle = batch.len() / 2;
        let mut open = vec![middle..batch.len(), 0..middle];
        let mut left = self.limits.halvings;
        while let Some(range) = open.pop() {
            if range.is_empty() {
                continue;
            }
            let part = batch.part(range.clone());
            match self.tries(std::slice::from_ref(&part), passage).await {
                Ok(outcomes) => total.add_all(&outcomes),
                Err(error) if error.is_worth_halving(range.len(), &mut left) => {
                    let middle = range.start + range.len() / 2;
                    open.extend([middle..range.end, range.start..middle]);
                }
                Err(error) if error.last_remedy() == Remedy::Split => {
                    total.quarantined += self.refuse(&part, &error).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    /// Puts all frames of a part aside, for what the database said about it.
    async fn refuse(&self, part: &Batch, error: &Error) -> Result<u64, Error> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let gateways = part.sender.gateway();
        let directory = Directory::load(&tx, gateways.as_slice(), &[], directory::ALL).await?;
        let mut refused = Vec::new();
        for device in &part.devices {
            for (frame, kept) in device.frames.iter().zip(device.kept(device.frames.iter())) {
                refused.push(Refused {
                    what: kept.what,
                    tenant: directory.tenant_of(part.sender),
                    gateway: part.sender.gateway(),
                    hardware_id: &device.hardware_id,
                    epoch: device.epoch.0,
                    seq: Some(frame.seq),
                    reason: "database",
                    detail: error.to_string(),
                    payload: kept.bytes,
                    fit: device.fit(frame),
                });
            }
        }
        quarantine::keep(&tx, &refused, timestamp(self.clock.utc_us())).await?;
        tx.commit().await?;
        Ok(refused.len() as u64)
    }

    async fn transaction(&self, batches: &[Batch], passage: &mut Passage) -> Result<Vec<Outcome>, Error> {
        let mut passed = |stage, from| {
            let now = self.stages.passed(stage, from);
            passage.0.push((stage, from, now));
            now
        };
        let window = self.window();
        let now = timestamp(self.clock.utc_us());
        let mut client = self.pool.get().await?;
        self.prepare(&mut client, batches, window).await?;
        let tx = client.transaction().await?;
        let began = Instant::now();
        let directory = self.look_up(&tx, batches).await?;
        let began = passed(Stage::Enrich, began);
        let mut plan = Plan::default();
        plan::plan(&mut plan, batches, &directory, window);
        self.hold_back(&mut plan);

        // Sent together: neither waits for the other's answer.
        let (mut entries, mut wear) = futures_util::try_join!(
            ledger::lock(&tx, plan.keys.keys().copied()),
            Wear::around(&tx, &plan.take)
        )?;
        parts::look_up(&tx, &mut entries, || plan.numbers()).await?;
        for (key, heard) in &plan.keys {
            entries.entry(*key).or_default().hear(heard);
        }
        #[cfg(feature = "sabotage")]
        if self.sabotage == Some(crate::sabotage::Sabotage::LedgerOff) {
            for entry in entries.values_mut() {
                entry.seqs = crate::seqs::SeqSet::new();
            }
        }
        let verdicts = claims::sort_out(&tx, &plan, &directory, &mut entries, window).await?;
        let mut counts = vec![Counts::default(); batches.len()];
        let new = decide(&mut plan, &mut entries, &verdicts, &mut counts);
        // At an honest boundary both boxes may have the same word of the wearable; samples they never have both.
        let apart = new
            .iter()
            .filter(|taken| taken.row != taken.key && matches!(taken.frame.content, Content::Samples))
            .count();
        let believed = Believed::ask(&tx, &plan, &directory, &new, &entries).await?;
        let findings = findings(&plan, &new, &mut entries, &believed);

        let began = passed(Stage::Decide, began);
        wear.hear(&tx, &new).await?;
        device_events::write(&tx, &new).await?;
        intervals::hear(&tx, &new).await?;
        let rows = self.rows(&new, &wear);
        self.copy(&tx, rows).await?;
        let began = passed(Stage::Write, began);
        rollup::note(&tx, &new).await?;
        ledger::update(&tx, &entries, now).await?;
        ledger::frame_times(&tx, &entries).await?;
        parts::write(&tx, &entries, now).await?;
        claims::write(&tx, &entries).await?;
        name_first_frames(&tx, &new).await?;
        gaps::withdraw(&tx, &entries, now).await?;
        put_aside(&tx, &plan, batches, &directory, &mut counts, now).await?;
        gaps::record(&tx, findings, &entries, now).await?;
        notify(&tx, &new).await?;
        #[cfg(feature = "sabotage")]
        if self.sabotage == Some(crate::sabotage::Sabotage::AckBeforeCommit) {
            tokio::time::sleep(crate::sabotage::DELAY).await;
        }
        let began = passed(Stage::Account, began);
        tx.commit().await?;
        passed(Stage::Commit, began);
        self.apart.fetch_add(apart as u64, Ordering::Relaxed);

        let wait = Duration::from_secs(self.limits.device_status_s);
        if let Err(error) = self.touched.update(&client, &new, wait, now).await {
            tracing::warn!(%error, "the devices' status was not updated");
        }
        Ok(batches
            .iter()
            .zip(counts)
            .map(|(batch, counts)| match directory.tenant_of(batch.sender) {
                Some(_) => Outcome::Done(counts),
                None => Outcome::RetryAfter {
                    seconds: self.limits.unknown_gateway_s,
                    reason: "this gateway is not enrolled".to_owned(),
                },
            })
            .collect())
    }

    /// What is known of the gateways and devices of these batches.
    async fn look_up(&self, tx: &Transaction<'_>, batches: &[Batch]) -> Result<Directory, Error> {
        let mut gateways: Vec<Uuid> = batches.iter().filter_map(|batch| batch.sender.gateway()).collect();
        gateways.sort_unstable();
        gateways.dedup();
        let mut hardware: Vec<&str> =
            batches.iter().flat_map(|b| &b.devices).map(|device| device.hardware_id.as_str()).collect();
        hardware.sort_unstable();
        hardware.dedup();
        Directory::load(tx, &gateways, &hardware, self.limits.assignments).await
    }

    /// Makes what the transaction will need: partitions and names of channels. Whose the frames are is asked twice where
    /// something is missing, which is seldom.
    async fn prepare(
        &self,
        client: &mut kinara_store::Client,
        batches: &[Batch],
        window: Window,
    ) -> Result<(), Error> {
        if self.has_all(batches, window) {
            return Ok(());
        }
        let tx = client.transaction().await?;
        let directory = self.look_up(&tx, batches).await?;
        tx.commit().await?;
        let mut plan = Plan::default();
        plan::plan(&mut plan, batches, &directory, window);
        let times: Vec<i64> = plan.take.iter().flat_map(|taken| ends(taken.frame)).collect();
        self.make_room(client, times.into_iter(), window).await?;
        self.name_channels(client, &plan.take).await
    }

    /// Whether every day and channel of these batches is known to be there.
    fn has_all(&self, batches: &[Batch], window: Window) -> bool {
        let devices = || batches.iter().flat_map(|batch| &batch.devices);
        let times = devices().flat_map(|device| &device.frames).flat_map(ends);
        let foreign = devices()
            .filter(|device| device.foreign_channels)
            .flat_map(|device| device.frames.iter().flat_map(move |frame| device.foreign_channels(frame)));
        self.missing_days(times, window).is_empty() && self.nameless(foreign).is_empty()
    }

    /// Days that have frames and, as far as is known here, no partitions.
    fn missing_days(&self, times: impl Iterator<Item = i64>, window: Window) -> Vec<i64> {
        let known = lock(&self.days);
        let mut missing: Vec<i64> = times
            .filter(|time| (window.oldest_us.max(NOT_BEFORE_US)..=window.newest_us).contains(time))
            .map(|time| time.div_euclid(DAY_US))
            .filter(|day| !known.contains(day))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        missing
    }

    /// Makes sure that there are partitions for these times. Outside the transaction that needs them: making one must
    /// not be undone with it.
    pub(crate) async fn make_room(
        &self,
        client: &kinara_store::Client,
        times: impl Iterator<Item = i64>,
        window: Window,
    ) -> Result<(), Error> {
        for day in self.missing_days(times, window) {
            let statement = client.prepare_cached("SELECT ts.ensure_partitions($1, $1)").await?;
            client.query_one(&statement, &[&timestamp(day * DAY_US)]).await?;
            lock(&self.days).insert(day);
        }
        Ok(())
    }

    /// Channels beyond the registry that, as far as is known here, have no row.
    fn nameless(&self, channels: impl Iterator<Item = i16>) -> Vec<i16> {
        let known = lock(&self.channels);
        let mut nameless: Vec<i16> = channels.filter(|kind| !known.contains(kind)).collect();
        nameless.sort_unstable();
        nameless.dedup();
        nameless
    }

    /// Gives channels beyond the registry a row, so that views show their readings under a name: a few for each clinic.
    async fn name_channels(&self, client: &kinara_store::Client, take: &[Taken<'_>]) -> Result<(), Error> {
        let mut of_clinics: BTreeMap<Uuid, Vec<i16>> = BTreeMap::new();
        for taken in take.iter().filter(|taken| taken.device.foreign_channels) {
            let kinds = taken.device.foreign_channels(taken.frame);
            of_clinics.entry(taken.assignment.tenant).or_default().extend(kinds);
        }
        for (tenant, kinds) in of_clinics {
            let kinds = self.nameless(kinds.into_iter());
            if kinds.is_empty() {
                continue;
            }
            let statement = client.prepare_cached(NAME_CHANNELS).await?;
            client.execute(&statement, &[&kinds, &tenant, &self.limits.foreign_channels]).await?;
            let statement = client.prepare_cached("SELECT type FROM channels WHERE type = ANY($1)").await?;
            let named = client.query(&statement, &[&kinds]).await?;
            if named.len() < kinds.len() {
                tracing::warn!(%tenant, channels = kinds.len() - named.len(),
                    "a clinic brings more channels beyond the registry than it may; their frames are put aside");
            }
            lock(&self.channels).extend(named.iter().map(|row| row.get::<_, i16>(0)));
        }
        Ok(())
    }

    /// Puts frames aside whose channels have no row: their readings would be seen by nobody.
    fn hold_back(&self, plan: &mut Plan<'_>) {
        if !plan.take.iter().any(|taken| taken.device.foreign_channels) {
            return;
        }
        let named = lock(&self.channels);
        let (take, held): (Vec<_>, Vec<_>) = std::mem::take(&mut plan.take)
            .into_iter()
            .partition(|taken| taken.device.foreign_channels(taken.frame).all(|kind| named.contains(&kind)));
        plan.take = take;
        for Taken { batch, device, frame, key, .. } in held {
            plan.keys.entry(key).or_default().seqs.insert(u64::from(frame.seq));
            plan.aside.push(Aside { batch, device, frame, reason: "channel", detail: "" });
        }
    }

    #[cfg_attr(
        not(feature = "sabotage"),
        expect(clippy::unused_self, reason = "a test build plants faults here")
    )]
    fn rows(&self, new: &[Taken<'_>], wear: &Wear) -> (Rows, Rows) {
        let (mut readings, mut waves) = (Rows::new(), Rows::new());
        let mut template: Option<((Key, Uuid), ReadingTemplate)> = None;
        #[cfg(feature = "sabotage")]
        let mut swapped = crate::sabotage::Swapper::new(self.sabotage);
        for taken in new {
            let (assignment, frame) = (taken.assignment, taken.frame);
            let same = template.as_ref().is_some_and(|(of, _)| *of == (taken.key, assignment.user));
            if !same {
                let row = ReadingTemplate::new(
                    assignment.tenant,
                    assignment.user,
                    assignment.device,
                    taken.device.epoch.0,
                );
                template = Some(((taken.key, assignment.user), row));
            }
            let Some((_, row)) = &mut template else { continue };
            row.set_seq(frame.seq);
            #[cfg(feature = "sabotage")]
            if let Some(user) = swapped.next(assignment.user) {
                row.set_user(user);
            }
            let said = wear.said(taken);
            // Nobody knows when it was: it stays out of everything that is derived.
            let samples = &taken.device.samples[frame.samples.start as usize..frame.samples.end as usize];
            #[cfg(feature = "sabotage")]
            let reversed = crate::sabotage::reversed(samples, self.sabotage);
            #[cfg(feature = "sabotage")]
            let samples = reversed.as_slice();
            for sample in samples {
                let quality = if taken.time_uncertain { 0.0 } else { wear::quality(said, sample) };
                readings.reading(row, sample.utc_us, sample.kind, sample.index, sample.value, quality);
            }
            #[cfg(feature = "sabotage")]
            if self.sabotage == Some(crate::sabotage::Sabotage::DoubleBatch) {
                for sample in &taken.device.samples[frame.samples.start as usize..frame.samples.end as usize]
                {
                    readings.reading(
                        row,
                        sample.utc_us,
                        sample.kind,
                        sample.index,
                        sample.value,
                        sample.quality,
                    );
                }
            }
            #[cfg(feature = "sabotage")]
            row.set_user(assignment.user);
            for wave in &taken.device.waves[frame.waves.start as usize..frame.waves.end as usize] {
                wave_row(&mut waves, taken, wave);
            }
        }
        (readings, waves)
    }

    async fn copy(&self, tx: &Transaction<'_>, (readings, waves): (Rows, Rows)) -> Result<(), Error> {
        for (rows, sql) in [
            (
                readings,
                "COPY ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value, quality)
                 FROM STDIN (FORMAT binary)",
            ),
            (
                waves,
                "COPY ts.waveforms (time, tenant_id, user_id, device_id, type, idx, epoch, seq, interval_ms, ticks,
                 scale, components, data, quality) FROM STDIN (FORMAT binary)",
            ),
        ] {
            if rows.count() == 0 {
                continue;
            }
            let statement = tx.prepare_cached(sql).await?;
            let sink = tx.copy_in::<_, Bytes>(&statement).await?;
            let mut sink = std::pin::pin!(sink);
            for chunk in rows.finish() {
                sink.feed(chunk).await?;
            }
            sink.as_mut().finish().await?;
        }
        Ok(())
    }
}

/// So many a clinic, in the order of their numbers; what is there already is nobody's.
const NAME_CHANNELS: &str = "
    INSERT INTO channels (type, name, named_by)
    SELECT n.type, 'channel_' || (n.type::int4 & 65535), $2
    FROM (SELECT u.type, row_number() OVER (ORDER BY u.type) AS place FROM unnest($1::int2[]) AS u (type)
          WHERE NOT EXISTS (SELECT FROM channels c WHERE c.type = u.type)) n
    WHERE n.place + (SELECT count(*) FROM channels c WHERE c.named_by = $2) <= $3
    ORDER BY n.type ON CONFLICT DO NOTHING";

/// When a frame began and ended.
fn ends(frame: &Frame) -> [i64; 2] {
    [frame.first_us, frame.last_us]
}

fn findings(
    plan: &Plan<'_>,
    new: &[Taken<'_>],
    entries: &mut BTreeMap<Key, Entry>,
    believed: &Believed,
) -> Findings {
    let mut findings = Findings::default();
    for taken in new {
        match &taken.frame.content {
            Content::Boot(anchor) => findings.booted(taken, anchor, entries, believed),
            Content::Events(events) => findings.happened(taken, events, entries, believed),
            Content::Samples | Content::Sync | Content::Refused(..) => {}
        }
    }
    findings.discarded(plan);
    findings.skipped(entries);
    findings
}

async fn put_aside(
    tx: &Transaction<'_>,
    plan: &Plan<'_>,
    batches: &[Batch],
    directory: &Directory,
    counts: &mut [Counts],
    now: Timestamp,
) -> Result<(), Error> {
    let mut refused = Vec::new();
    // Those of one device come one after another: its columns are decoded once for all of them.
    for group in plan.aside.chunk_by(|one, next| std::ptr::eq(one.device, next.device)) {
        let device = group[0].device;
        for (aside, kept) in group.iter().zip(device.kept(group.iter().map(|aside| aside.frame))) {
            let sender = batches[aside.batch].sender;
            counts[aside.batch].quarantined += 1;
            refused.push(Refused {
                what: kept.what,
                tenant: directory.tenant_of(sender),
                gateway: sender.gateway(),
                hardware_id: &device.hardware_id,
                epoch: device.epoch.0,
                seq: aside.frame.is_named().then_some(aside.frame.seq),
                reason: aside.reason,
                detail: aside.detail.to_owned(),
                payload: kept.bytes,
                fit: device.fit(aside.frame),
            });
        }
    }
    for (index, batch) in batches.iter().enumerate() {
        let Some(tenant) = directory.tenant_of(batch.sender) else { continue };
        for part in &batch.unreadable {
            counts[index].quarantined += part.frames;
            refused.push(Refused {
                what: "payload",
                tenant: Some(tenant),
                gateway: batch.sender.gateway(),
                hardware_id: &part.hardware_id,
                epoch: part.epoch,
                seq: None,
                reason: "columns",
                detail: part.detail.clone(),
                payload: part.payload.clone(),
                fit: None,
            });
        }
    }
    quarantine::keep(tx, &refused, now).await
}

/// Keeps the lowest frame stored for each assignment whose beginning is known only as a time.
async fn name_first_frames(tx: &Transaction<'_>, new: &[Taken<'_>]) -> Result<(), Error> {
    let mut firsts: BTreeMap<Uuid, (Epoch, u32)> = BTreeMap::new();
    // A frame whose time contradicts its neighbours does not say where a time lies among the frames, nor does one whose number
    // another clinic has.
    let says = |taken: &&Taken<'_>| !taken.time_uncertain && taken.row == taken.key;
    for taken in new.iter().filter(says).filter(|taken| taken.assignment.from.frame.is_none()) {
        // One that may have been taken before the boundary says nothing.
        let uncertainty = i64::try_from(taken.frame.uncertainty_us).unwrap_or(i64::MAX);
        if taken.frame.first_us < taken.assignment.from.time_us.saturating_add(uncertainty) {
            continue;
        }
        let name = (taken.device.epoch, taken.frame.seq);
        let is_lower = |than: (Epoch, u32)| order_of_names(name, than).is_some_and(std::cmp::Ordering::is_lt);
        if taken.assignment.first.is_some_and(|first| !is_lower(first)) {
            continue;
        }
        let first = firsts.entry(taken.assignment.id).or_insert(name);
        if is_lower(*first) {
            *first = name;
        }
    }
    if firsts.is_empty() {
        return Ok(());
    }
    let assignments: Vec<Uuid> = firsts.keys().copied().collect();
    let epochs: Vec<i64> = firsts.values().map(|(epoch, _)| epoch.0 as i64).collect();
    let seqs: Vec<i64> = firsts.values().map(|(_, seq)| i64::from(*seq)).collect();
    // Locked in the order of their ids: two bridges do not wait for each other in a circle.
    let statement = tx
        .prepare_cached(
            "WITH locked AS MATERIALIZED (
               SELECT a.id, n.epoch, n.seq
               FROM device_assignments a JOIN unnest($1::uuid[], $2::int8[], $3::int8[]) n(id, epoch, seq) ON n.id = a.id
               ORDER BY a.id FOR UPDATE OF a)
             UPDATE device_assignments a SET first_epoch = n.epoch, first_seq = n.seq FROM locked n
             WHERE a.id = n.id AND (a.first_epoch IS NULL OR (a.first_epoch >> 32 = n.epoch >> 32
               AND (a.first_epoch & 4294967295, a.first_seq) > (n.epoch & 4294967295, n.seq)))",
        )
        .await?;
    tx.execute(&statement, &[&assignments, &epochs, &seqs]).await?;
    Ok(())
}

/// Tells listeners, once a transaction and device, how far its readings are in.
async fn notify(tx: &Transaction<'_>, new: &[Taken<'_>]) -> Result<(), Error> {
    let mut highest: BTreeMap<(Uuid, Uuid, u64), u32> = BTreeMap::new();
    for taken in new {
        let key = (taken.assignment.tenant, taken.assignment.device, taken.device.epoch.0);
        let seq = highest.entry(key).or_default();
        *seq = taken.frame.seq.max(*seq);
    }
    if highest.is_empty() {
        return Ok(());
    }
    let payloads: Vec<String> = highest
        .into_iter()
        .map(|((tenant, device, epoch), seq)| {
            format!(r#"{{"tenant":"{tenant}","device":"{device}","epoch":"{}","seq":{seq}}}"#, Epoch(epoch))
        })
        .collect();
    let statement =
        tx.prepare_cached("SELECT pg_notify('kinara_stored', p) FROM unnest($1::text[]) p").await?;
    tx.query(&statement, &[&payloads]).await?;
    Ok(())
}

fn wave_row(rows: &mut Rows, taken: &Taken<'_>, wave: &Wave) {
    rows.begin(14);
    rows.field(&pg_time(wave.utc_us).to_be_bytes());
    for id in [taken.assignment.tenant, taken.assignment.user, taken.assignment.device] {
        rows.field(id.as_bytes());
    }
    rows.field(&wave.kind.to_be_bytes());
    rows.field(&wave.index.to_be_bytes());
    rows.field(&taken.device.epoch.0.to_be_bytes());
    rows.field(&i64::from(taken.frame.seq).to_be_bytes());
    match wave.interval_ms {
        Some(interval) => rows.field(&interval.to_be_bytes()),
        None => rows.null(),
    }
    match &wave.ticks {
        Some(ticks) => rows.int8_array(ticks),
        None => rows.null(),
    }
    rows.field(&wave.scale.to_be_bytes());
    rows.field(&wave.components.to_be_bytes());
    rows.field(&wave.data);
    rows.field(&wave.quality.to_be_bytes());
    rows.end();
}
