//! The wearable behind the radio, as the radio sees it.

use kinara_protocol::control::Outcome;
use kinara_protocol::frame::MAX_FRAME;
use kinara_protocol::gatt::Characteristic;
use kinara_protocol::status::Status;
use kinara_protocol::vitals::Vitals;

use crate::memory::Peer;

/// A request about bonds, which are the radio's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BondRequest {
    /// See `Op::Admit`.
    Admit {
        /// The request's id.
        request: u16,
        /// An introduction's secret.
        secret: [u8; 16],
        /// Seconds for which it lives.
        lives_s: u32,
    },
    /// See `Op::Revoke`.
    Revoke {
        /// The request's id.
        request: u16,
        /// The gateway's identity address, most significant byte first.
        bond: [u8; 6],
    },
}

/// What happens on the air, for a platform that keeps a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// It advertises; in a window or outside of all.
    Advertises {
        /// Whether it offers to pair.
        in_window: bool,
    },
    /// Somebody connected.
    Connected(Peer),
    /// An attempt to pair failed, or its link ended in the middle of it.
    AttemptFailed,
    /// A gateway has paired.
    Paired(Peer),
    /// A bond could not be stored; it does not count.
    NotStored,
    /// The link was ended from here: nobody paired, or what paired is not to be trusted.
    TurnedAway,
    /// The link is gone.
    Disconnected,
}

/// The application and the platform around it. All methods return at once; several parts of the radio share one
/// reference, so the platform keeps the application in a cell.
pub trait Wearable {
    /// A gateway has the link; it is encrypted and authenticated.
    fn connected(&self, gateway: Peer);

    /// That link is gone.
    fn disconnected(&self);

    /// The gateway switches notifications of a characteristic.
    fn subscribe(&self, characteristic: Characteristic, on: bool);

    /// Whether a request would find room for its reply.
    fn takes_requests(&self) -> bool;

    /// The gateway writes to `control`.
    fn write(&self, request: &[u8]);

    /// A request about bonds that came with [`write`](Self::write); [`reply`](Self::reply) answers it.
    fn take_bond_request(&self) -> Option<BondRequest>;

    /// Queues the reply to a request about bonds.
    fn reply(&self, request: u16, outcome: Outcome);

    /// The next bytes to send, their number and their characteristic.
    fn outgoing(&self, into: &mut [u8; MAX_FRAME]) -> Option<(Characteristic, usize)>;

    /// What `status` says now; none when flash cannot be read.
    fn status(&self) -> Option<Status>;

    /// The newest values, for the standard services; of the intervals, those since the last call.
    fn vitals(&self) -> Vitals;

    /// A display shows this passkey, or none any more. A wearable without a display is not asked.
    fn show_passkey(&self, passkey: Option<u32>);

    /// Something happened on the air.
    fn happened(&self, happening: Happening);
}
