//! What `status` says when read, and notifies when it changes.

use crate::control::ControlError;
use crate::frame::{Epoch, Seq, Ticks};
use crate::wire::{Reader, Writer};

/// Bytes of an encoded status.
pub const STATUS_LEN: usize = 37;

/// The wearable's own account of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Battery, 0 to 100 %; none when not known.
    pub battery_percent: Option<u8>,
    /// Whether somebody wears it; none when not known.
    pub worn: Option<bool>,
    /// The running epoch.
    pub epoch: Epoch,
    /// The ticks now.
    pub ticks: Ticks,
    /// The oldest frame that is not acknowledged.
    pub oldest: (Epoch, Seq),
    /// The seq of the next frame of the running epoch.
    pub next_seq: Seq,
    /// Frames stored and not acknowledged.
    pub stored_frames: u32,
}

impl Status {
    /// Encodes.
    pub fn encode(&self) -> [u8; STATUS_LEN] {
        let mut out = [0; STATUS_LEN];
        let mut writer = Writer::new(&mut out);
        writer.u8(1);
        writer.u8(self.battery_percent.unwrap_or(255));
        writer.u8(match self.worn {
            None => 0,
            Some(true) => 1,
            Some(false) => 2,
        });
        writer.u64(self.epoch.0);
        writer.u48(self.ticks.0);
        writer.u64(self.oldest.0.0);
        writer.u32(self.oldest.1);
        writer.u32(self.next_seq);
        writer.u32(self.stored_frames);
        debug_assert_eq!(writer.len(), STATUS_LEN);
        out
    }

    /// Decodes. Bytes that a later version appends are ignored.
    pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? == 0 {
            return Err(ControlError);
        }
        let battery = reader.u8()?;
        let worn = match reader.u8()? {
            1 => Some(true),
            2 => Some(false),
            _ => None,
        };
        Ok(Self {
            battery_percent: (battery <= 100).then_some(battery),
            worn,
            epoch: Epoch(reader.u64()?),
            ticks: Ticks(reader.u48()?),
            oldest: (Epoch(reader.u64()?), reader.u32()?),
            next_seq: reader.u32()?,
            stored_frames: reader.u32()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_comes_back_and_a_longer_one_of_a_later_version_too() {
        let status = Status {
            battery_percent: Some(87),
            worn: Some(true),
            epoch: Epoch::new(7, 2),
            ticks: Ticks(123_456),
            oldest: (Epoch::new(7, 1), 40),
            next_seq: 9,
            stored_frames: 77,
        };
        let mut bytes = status.encode().to_vec();
        assert_eq!(Status::decode(&bytes), Ok(status));
        bytes.push(9);
        assert_eq!(Status::decode(&bytes), Ok(status));
        assert!(Status::decode(&bytes[..20]).is_err());
    }
}
