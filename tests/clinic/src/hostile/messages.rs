//! Messages of a few hundred bytes that cost whoever believes them.
//!
//! Each is a kind of fault that was found once. Sizes are what an attacker would choose: large enough that work which
//! grows with what is claimed shows, within what the doors let through.

use super::wire::{Name, Wire};

/// Channels that the registry knows; a row for each of the others would fill the system's table.
const REGISTERED: [u64; 11] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 64, 65];
const HEART_RATE: u64 = 1;
const AMBIENT_TEMPERATURE: u64 = 4;
const ACTIVITY: u64 = 7;
/// A sample frame's kind byte.
const SCALAR: u64 = 0x40;

/// A batch of these devices.
pub fn batch(name: Name, devices: &[Wire]) -> Wire {
    let start = Wire::new().uint(1, 1).message(2, &name.wire()).sint(3, 0);
    devices.iter().fold(start, |batch, device| batch.message(4, device))
}

/// The columns of a device's frames that come before its series; `frames` of them from this seq on.
fn head(hardware: &str, epoch: u64, first_seq: u64, frames: u64, crcs: usize) -> Wire {
    Wire::new()
        .bytes(1, hardware)
        .fixed64(2, epoch)
        .packed(3, [first_seq, frames])
        .packed(4, [SCALAR, frames])
        .packed_sint(5, std::iter::once(1_000).chain(std::iter::repeat_n(0, frames as usize - 1)))
        .packed_zero32(6, crcs)
}

/// The columns after the series.
fn tail(device: Wire, order: impl IntoIterator<Item = u64>, frames: u64, utc_us: i64) -> Wire {
    let fit = Wire::new().uint(1, 1_000).sint(2, utc_us).uint(4, 1_000);
    device.packed(8, order).message(10, &fit).packed(11, [0, frames])
}

/// A constant: the first value, then differences of nothing.
fn constant(value: i64, samples: usize) -> impl Iterator<Item = i64> {
    std::iter::once(value).chain(std::iter::repeat_n(0, samples.saturating_sub(1)))
}

/// A series of one frame that claims so many samples.
fn claimed(channel: u64, samples: usize, offset: u64, every_ms: u64, value: i64) -> Wire {
    Wire::new()
        .uint(1, channel)
        .uint(2, 1)
        .uint(3, 0)
        .packed(4, [samples as u64])
        .packed(5, [offset])
        .packed(6, [every_ms, 1])
        .packed_sint(8, constant(value, samples))
}

/// One frame that claims `samples` counts of activity and as many heart rates outside their minutes: whoever compares
/// each with each never ends.
pub fn judge(name: Name, samples: usize, utc_us: i64) -> Wire {
    let device = head("bt:nobody", 5, 0, 1, 1)
        .message(7, &claimed(ACTIVITY, samples, 0, 0, 3_000))
        .message(7, &claimed(HEART_RATE, samples, 100_000, 0, 700));
    batch(name, &[tail(device, [2, 0, 1], 1, utc_us)])
}

/// One frame with a million samples for a device: a few bytes become as many rows.
pub fn amplified(name: Name, hardware: &str, samples: usize, utc_us: i64) -> Wire {
    let device = head(hardware, 0x99, name.sequence, 1, 1)
        .message(7, &claimed(AMBIENT_TEMPERATURE, samples, 0, 1, 2_400));
    batch(name, &[tail(device, [1, 0], 1, utc_us)])
}

/// So many good frames of one heart rate each, of a device that nobody has: each is put aside.
pub fn frames(name: Name, hardware: &str, count: usize, utc_us: i64) -> Wire {
    let series = Wire::new()
        .uint(1, HEART_RATE)
        .uint(2, 1)
        .uint(3, 0)
        .packed(4, std::iter::repeat_n(1, count))
        .packed(5, std::iter::repeat_n(0, count))
        .packed_sint(8, constant(700, count));
    let device = head(hardware, 6, 0, count as u64, count).message(7, &series);
    let order = [1, 0].into_iter().chain(std::iter::repeat_n(0, count - 1));
    batch(name, &[tail(device, order, count as u64, utc_us)])
}

/// One reading, and a series without a sample for every channel that there could be.
pub fn channels(name: Name, utc_us: i64) -> Wire {
    let mut device = head("bt:nobody", 5, 0, 1, 1);
    let good = Wire::new()
        .uint(1, HEART_RATE)
        .uint(2, 1)
        .uint(3, 0)
        .packed(4, [1])
        .packed(5, [0])
        .packed_sint(8, [700]);
    device = device.message(7, &good);
    for channel in (10..=u64::from(u16::MAX)).filter(|channel| !REGISTERED.contains(channel)) {
        device = device.message(7, &Wire::new().uint(1, channel).uint(2, 1).uint(3, 0).packed(4, [0]));
    }
    batch(name, &[tail(device, [1, 0], 1, utc_us)])
}

/// So many good frames of an assigned device, and one before them without any block, which the database refuses.
pub fn split(name: Name, hardware: &str, count: usize, utc_us: i64) -> Wire {
    let frames = count as u64 + 1;
    let series = Wire::new()
        .uint(1, HEART_RATE)
        .uint(2, 1)
        .uint(3, 0)
        .packed(4, std::iter::once(0).chain(std::iter::repeat_n(1, count)))
        .packed(5, std::iter::repeat_n(0, count))
        .packed_sint(8, constant(700, count));
    let device = head(hardware, 0x555, 0, frames, count + 1).message(7, &series);
    let order = [0, 1, 0].into_iter().chain(std::iter::repeat_n(0, count - 1));
    batch(name, &[tail(device, order, frames, utc_us)])
}

/// A state with so many devices of which nothing is said: two bytes each here, hundreds decoded.
pub fn state_of_empty_devices(count: usize) -> Wire {
    Wire::new().uint(1, 1).uint(2, 1).repeated(&Wire::new().bytes(14, []), count)
}

/// A state with a note of so many bytes, which every open page would be shown.
pub fn state_with_a_long_note(bytes: usize) -> Wire {
    Wire::new().uint(1, 1).uint(2, 1).bytes(20, vec![b'x'; bytes])
}

/// Live values of a device whose name has so many bytes.
pub fn live_of_a_long_name(number: u64, bytes: usize) -> Wire {
    let mut hardware = format!("{number:08}").into_bytes();
    hardware.resize(bytes, b'x');
    Wire::new().uint(1, 1).message(2, &Wire::new().bytes(1, hardware).fixed64(2, 1))
}

#[cfg(test)]
mod tests {
    use super::super::wire::squeeze;
    use super::*;
    use kinara_protocol::envelope::{Batch, Live, MAX_OPENED, MAX_SEALED, State};
    use prost::Message as _;
    use uuid::Uuid;

    const NAME: Name = Name { gateway: Uuid::from_u128(2), buffer: 1, sequence: 3 };

    fn samples(wire: &Wire) -> usize {
        let batch = Batch::decode(wire.as_ref()).unwrap();
        batch.devices[0].series.iter().map(|series| series.values.len()).sum()
    }

    #[test]
    fn a_few_hundred_bytes_claim_as_much_as_they_are_said_to() {
        let judge = judge(NAME, 300_000, 0);
        assert_eq!(samples(&judge), 600_000);
        assert!(squeeze(&judge).len() < 400, "{}", squeeze(&judge).len());
        let amplified = amplified(NAME, "bt:00:00:00:00:00:01", 1_000_000, 0);
        assert_eq!(samples(&amplified), 1_000_000);
        assert!(squeeze(&amplified).len() < 400);
        assert_eq!(samples(&frames(NAME, "bt:x", 4_000, 0)), 4_000);
        assert_eq!(samples(&split(NAME, "bt:x", 3_000, 0)), 3_000);
    }

    #[test]
    fn they_pass_the_doors_that_only_count_bytes() {
        for plain in [
            judge(NAME, 300_000, 0),
            frames(NAME, "bt:x", 40_000, 0),
            channels(NAME, 0),
            state_of_empty_devices(2_000_000),
            live_of_a_long_name(3, 3_000_000),
        ] {
            assert!(plain.as_ref().len() <= MAX_OPENED, "{}", plain.as_ref().len());
            assert!(squeeze(&plain).len() <= MAX_SEALED);
        }
        assert_eq!(State::decode(state_of_empty_devices(1_000).as_ref()).unwrap().devices.len(), 1_000);
        let live = Live::decode(live_of_a_long_name(3, 3_000).as_ref()).unwrap();
        assert_eq!(live.devices[0].hardware_id.len(), 3_000);
    }
}
