//! The Kinara GATT service.
//!
//! One primary service with four characteristics, all behind an encrypted and authenticated link (LE Secure
//! Connections, bonded).

/// A 128-bit UUID as a number, as `Uuid::from_u128` takes it.
pub type Uuid128 = u128;

/// The Kinara service.
pub const SERVICE: Uuid128 = 0x6b69_0001_4e61_5261_8b01_7a1c_09d5_4f2e;

/// A characteristic of the Kinara service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Characteristic {
    /// Notify: frames as they close.
    Stream,
    /// Notify, with a window: stored frames in the order of the log.
    Backlog,
    /// Write and indicate: [`control`](crate::control) requests and replies.
    Control,
    /// Read and notify: [`status`](crate::status).
    Status,
}

impl Characteristic {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Stream, Self::Backlog, Self::Control, Self::Status];

    /// Its UUID: the service's with the second group counted up.
    pub const fn uuid(self) -> Uuid128 {
        let number = match self {
            Self::Stream => 1,
            Self::Backlog => 2,
            Self::Control => 3,
            Self::Status => 4,
        };
        SERVICE + (number << 96)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuids_are_the_published_ones() {
        assert_eq!(Characteristic::Stream.uuid(), 0x6b69_0002_4e61_5261_8b01_7a1c_09d5_4f2e);
        assert_eq!(Characteristic::Status.uuid(), 0x6b69_0005_4e61_5261_8b01_7a1c_09d5_4f2e);
    }
}
