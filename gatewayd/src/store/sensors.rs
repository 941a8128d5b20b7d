//! Which sensors of a wearable are silent, by its own last word, so that a person is told.
//!
//! The promise: what a wearable said last counts, in whatever order its frames come and over a restart of this daemon; a boot
//! that has ended says nothing of the next one, in which a sensor that is still silent is told of anew. (A word that another
//! gateway took over does not come here; the next boot ends what stands.)

use std::collections::BTreeMap;
use std::fmt::Write;

use kinara_protocol::frame::{Body, DeviceEventKind, Epoch, FrameRef, Sensor, Seq};
use rusqlite::params;

use super::StoreError;
use super::damage::{Damage, cell};
use super::engine::{Device, Engine};
use crate::hardware::HardwareId;

/// Sensors of one wearable that are remembered; later codes than the first so many are nobody's yet.
const MOST_SENSORS: usize = 16;
/// Wearables that are told of by name.
const MOST_TOLD: usize = 8;
/// The alert's subject.
const ALERT: &str = "sensors";

/// The last word about a sensor: where in the log it is, and whether the sensor is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LastWord {
    epoch: Epoch,
    seq: Seq,
    silent: bool,
}

/// What was said last, by the sensor's code.
pub(super) type Words = BTreeMap<u8, LastWord>;

impl Engine {
    /// Learns from a frame what it says of sensors, in the running transaction.
    pub(super) fn hear_of_sensors(
        &mut self,
        hardware: &HardwareId,
        frame: &FrameRef<'_>,
    ) -> Result<(), StoreError> {
        let (epoch, seq) = (frame.header().epoch, frame.header().seq);
        match frame.body() {
            Ok(Body::BootAnchor(_)) => self.boot_ends_words(hardware, epoch),
            Ok(Body::DeviceEvents(events)) => {
                for event in events.iter() {
                    let (sensor, silent) = match event.kind {
                        DeviceEventKind::SensorSilent(sensor) => (sensor, true),
                        DeviceEventKind::SensorAnswers(sensor) => (sensor, false),
                        _ => continue,
                    };
                    self.hear_of_sensor(hardware, sensor, LastWord { epoch, seq, silent })?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn hear_of_sensor(
        &mut self,
        hardware: &HardwareId,
        sensor: Sensor,
        word: LastWord,
    ) -> Result<(), StoreError> {
        let device = self.device(hardware)?;
        let id = device.id;
        if device.has_booted_since(word.epoch) {
            return Ok(());
        }
        let known = device.sensors.get(&sensor.0);
        let is_older = known.is_some_and(|known| {
            known.epoch.log_id() == word.epoch.log_id() && (known.epoch, known.seq) >= (word.epoch, word.seq)
        });
        if is_older || known.is_none() && device.sensors.len() >= MOST_SENSORS {
            return Ok(());
        }
        device.sensors.insert(sensor.0, word);
        if word.silent {
            tracing::warn!(%hardware, ?sensor, "a sensor of this wearable is silent: what it measures is missing");
        } else {
            tracing::info!(%hardware, ?sensor, "a sensor of this wearable answers again");
        }
        self.db
            .prepare_cached(
                "INSERT OR REPLACE INTO sensors (device, sensor, epoch, seq, silent) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![id, sensor.0, word.epoch.0 as i64, word.seq, word.silent])?;
        Ok(())
    }

    /// What was said in boots before this one is over.
    fn boot_ends_words(&mut self, hardware: &HardwareId, epoch: Epoch) -> Result<(), StoreError> {
        let device = self.device(hardware)?;
        let id = device.id;
        let over = |word: &LastWord| word.epoch.log_id() != epoch.log_id() || word.epoch < epoch;
        let ended: Vec<u8> =
            device.sensors.iter().filter(|(_, word)| over(word)).map(|(sensor, _)| *sensor).collect();
        for sensor in ended {
            device.sensors.remove(&sensor);
        }
        let mut delete = self.db.prepare_cached(
            "DELETE FROM sensors WHERE device = ?1 AND NOT (epoch >= ?2 AND epoch >> 32 = ?2 >> 32)",
        )?;
        delete.execute(params![id, epoch.0 as i64])?;
        Ok(())
    }

    /// Reads the words. A row that cannot be read says nothing: the wearable says it again with its next start.
    pub(super) fn read_sensors(&mut self) -> Result<(), StoreError> {
        let mut select = self.db.prepare("SELECT device, sensor, epoch, seq, silent FROM sensors")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let read = || {
                let word = LastWord {
                    epoch: Epoch(cell::<i64>(row, 2)? as u64),
                    seq: cell(row, 3)?,
                    silent: cell(row, 4)?,
                };
                Ok::<_, Damage>((cell::<i64>(row, 0)?, cell::<u8>(row, 1)?, word))
            };
            let Ok((device, sensor, word)) = read() else { continue };
            let device = self.hardware.get(&device).and_then(|hardware| self.devices.get_mut(hardware));
            if let Some(device) = device {
                device.sensors.insert(sensor, word);
            }
        }
        Ok(())
    }

    /// Tells people which sensors are silent, of the wearables that are this box's.
    pub(super) fn tell_silent_sensors(&self) {
        if !self.devices.values().any(Device::has_silent_sensors) {
            return self.board.alert(ALERT, None);
        }
        let bound = self.board.now().devices;
        let mut silent: Vec<(&HardwareId, &Device)> = self
            .devices
            .iter()
            .filter(|(hardware, device)| bound.contains_key(hardware) && device.has_silent_sensors())
            .collect();
        silent.sort_by_key(|(hardware, _)| *hardware);
        let name = |hardware: &HardwareId| {
            let name = bound.get(hardware).map(|device| device.name.as_str()).filter(|name| !name.is_empty());
            name.map_or_else(|| hardware.to_string(), str::to_owned)
        };
        let mut text = String::new();
        for (hardware, device) in silent.iter().take(MOST_TOLD) {
            let sensors: Vec<String> = device.silent_sensors().map(sensor_name).collect();
            // Writing into a text cannot fail.
            let _ = write!(text, "{}: no answer from {}. ", name(hardware), sensors.join(", "));
        }
        if silent.len() > MOST_TOLD {
            let _ = write!(text, "{} more wearables have silent sensors. ", silent.len() - MOST_TOLD);
        }
        let alert = (!text.is_empty()).then(|| {
            text + "What they measure is missing. Clean the wearable, charge it and start it anew; else send it for repair."
        });
        self.board.alert(ALERT, alert);
    }
}

impl Device {
    /// Whether something of a later boot of the same log has come.
    fn has_booted_since(&self, epoch: Epoch) -> bool {
        self.epochs.keys().any(|known| Epoch(*known).log_id() == epoch.log_id() && *known > epoch.0)
    }

    fn has_silent_sensors(&self) -> bool {
        self.silent_sensors().next().is_some()
    }

    fn silent_sensors(&self) -> impl Iterator<Item = Sensor> + '_ {
        self.sensors.iter().filter(|(_, word)| word.silent).map(|(sensor, _)| Sensor(*sensor))
    }
}

fn sensor_name(sensor: Sensor) -> String {
    match sensor {
        Sensor::LIGHT => "the pulse sensor".to_owned(),
        Sensor::MOTION => "the motion sensor".to_owned(),
        Sensor::TEMPERATURE => "the temperature sensors".to_owned(),
        Sensor(code) => format!("sensor {code}"),
    }
}
