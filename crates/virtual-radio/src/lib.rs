//! The virtual radio: what a Bluetooth LE link does, over a Unix socket.
//!
//! A wearable listens on `<air>/<factory id>.sock`. A gateway connects, scans (the wearable answers only a gateway
//! that it can hear), pairs with a passkey, connects with its bond, and then writes, subscribes, and takes
//! notifications and indications: the operations of GATT, so that the programs above cannot tell the difference.
//!
//! On the wire a message is its length (u16, little-endian, of what follows), a tag byte and its fields. A message
//! that is too long or not well-formed ends the connection; nothing is allocated beyond [`MAX_MESSAGE`].

use std::path::{Path, PathBuf};

/// The longest message after its length.
pub const MAX_MESSAGE: usize = 600;
/// ATT_MTU of every virtual link.
pub const ATT_MTU: u16 = 247;

/// What is shared by the two ends of a pairing. The virtual stand-in for a long-term key.
pub type Bond = [u8; 16];

/// A characteristic of the Kinara service, by its number in the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Characteristic {
    /// Frames as they close.
    Stream = 1,
    /// Stored frames.
    Backlog = 2,
    /// Requests and replies.
    Control = 3,
    /// Status.
    Status = 4,
}

/// From the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToWearable {
    /// Who is there? Answered by [`FromWearable::Advertisement`], or by closing when out of range.
    Scan {
        /// The gateway's name: radio range is by name.
        gateway: String,
    },
    /// Open the link. Without a bond only [`Pair`](Self::Pair) is possible on it.
    Connect {
        /// The gateway's name.
        gateway: String,
        /// The bond of an earlier pairing.
        bond: Option<Bond>,
    },
    /// Pair, with the passkey for the advertised nonce.
    Pair {
        /// 0 to 999,999.
        passkey: u32,
    },
    /// Write with response.
    Write {
        /// Where.
        characteristic: Characteristic,
        /// What.
        bytes: Vec<u8>,
    },
    /// Turn notifications or indications on or off.
    Subscribe {
        /// Of what.
        characteristic: Characteristic,
        /// On or off.
        on: bool,
    },
    /// Read `status`.
    ReadStatus,
    /// Close the link in order.
    Disconnect,
}

/// From the wearable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromWearable {
    /// To a scan.
    Advertisement(Advertisement),
    /// The link is open.
    Connected {
        /// ATT_MTU.
        mtu: u16,
    },
    /// Not done; the link stays as it was, or closes.
    Refused {
        /// For a person.
        reason: String,
    },
    /// Paired; the link is authenticated from here on.
    Paired {
        /// For later connections.
        bond: Bond,
    },
    /// To a write.
    WriteDone,
    /// To a subscription.
    Subscribed,
    /// Without confirmation.
    Notify {
        /// Of what.
        characteristic: Characteristic,
        /// The value.
        bytes: Vec<u8>,
    },
    /// With a confirmation that the transport gives by itself.
    Indicate {
        /// Of what.
        characteristic: Characteristic,
        /// The value.
        bytes: Vec<u8>,
    },
    /// To a read of `status`.
    Status {
        /// The value.
        bytes: Vec<u8>,
    },
}

/// What a wearable shows to those who scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    /// The factory id. On a real link the identity is known to bonded gateways only.
    pub factory_id: u64,
    /// A name, only while the pairing window is open.
    pub name: String,
    /// Signal strength at this gateway.
    pub rssi_dbm: i8,
    /// Whether the pairing window is open.
    pub window_open: bool,
    /// The nonce of the next pairing attempt.
    pub nonce: [u8; 8],
    /// Whether it would accept a connection now (it holds one link at a time).
    pub connectable: bool,
}

/// The wearable's socket in the air directory.
pub fn socket_path(air: &Path, factory_id: u64) -> PathBuf {
    air.join(format!("{factory_id:016x}.sock"))
}

/// The factory id of a socket's path.
pub fn factory_id_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".sock")?;
    (name.len() == 16).then(|| u64::from_str_radix(name, 16).ok()).flatten()
}

/// A message that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RadioError {
    /// Longer than [`MAX_MESSAGE`].
    #[error("a message of {0} bytes; at most {MAX_MESSAGE} are allowed")]
    TooLong(usize),
    /// Not well-formed.
    #[error("a message that is not well-formed")]
    Malformed,
}

/// A message of either direction.
pub trait Message: Sized {
    /// Appends the message with its length.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads the message without its length.
    fn decode(bytes: &[u8]) -> Result<Self, RadioError>;
}

/// Cuts a byte stream into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    at: usize,
}

impl Decoder {
    /// Takes what was read from the socket.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    #[expect(clippy::should_implement_trait, reason = "it can fail, and the caller names the message's type")]
    pub fn next<M: Message>(&mut self) -> Result<Option<M>, RadioError> {
        let Some((length, rest)) = self.buffer[self.at..].split_first_chunk::<2>() else { return Ok(None) };
        let length = usize::from(u16::from_le_bytes(*length));
        if length > MAX_MESSAGE {
            return Err(RadioError::TooLong(length));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message = M::decode(message)?;
        self.at += 2 + length;
        Ok(Some(message))
    }
}

fn framed(out: &mut Vec<u8>, tag: u8, fields: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0, 0, tag]);
    fields(out);
    let length = (out.len() - start - 2) as u16;
    out[start..start + 2].copy_from_slice(&length.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(200);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.push(end as u8);
    out.extend_from_slice(&text.as_bytes()[..end]);
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RadioError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(RadioError::Malformed)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, RadioError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Result<bool, RadioError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(RadioError::Malformed),
        }
    }

    fn characteristic(&mut self) -> Result<Characteristic, RadioError> {
        match self.u8()? {
            1 => Ok(Characteristic::Stream),
            2 => Ok(Characteristic::Backlog),
            3 => Ok(Characteristic::Control),
            4 => Ok(Characteristic::Status),
            _ => Err(RadioError::Malformed),
        }
    }

    fn text(&mut self) -> Result<String, RadioError> {
        let length = usize::from(self.u8()?);
        let (head, tail) = self.0.split_at_checked(length).ok_or(RadioError::Malformed)?;
        self.0 = tail;
        String::from_utf8(head.to_vec()).map_err(|_| RadioError::Malformed)
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }

    fn ended<M>(&self, message: M) -> Result<M, RadioError> {
        if self.0.is_empty() { Ok(message) } else { Err(RadioError::Malformed) }
    }
}

impl Message for ToWearable {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Scan { gateway } => framed(out, 1, |out| put_text(out, gateway)),
            Self::Connect { gateway, bond } => framed(out, 2, |out| {
                put_text(out, gateway);
                out.push(u8::from(bond.is_some()));
                out.extend(bond.unwrap_or_default());
            }),
            Self::Pair { passkey } => framed(out, 3, |out| out.extend(passkey.to_le_bytes())),
            Self::Write { characteristic, bytes } => framed(out, 4, |out| {
                out.push(*characteristic as u8);
                out.extend_from_slice(bytes);
            }),
            Self::Subscribe { characteristic, on } => {
                framed(out, 5, |out| out.extend([*characteristic as u8, u8::from(*on)]));
            }
            Self::ReadStatus => framed(out, 6, |_| {}),
            Self::Disconnect => framed(out, 7, |_| {}),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, RadioError> {
        let mut fields = Fields(bytes);
        let message = match fields.u8()? {
            1 => Self::Scan { gateway: fields.text()? },
            2 => {
                let gateway = fields.text()?;
                let bonded = fields.flag()?;
                let bond = fields.array()?;
                Self::Connect { gateway, bond: bonded.then_some(bond) }
            }
            3 => Self::Pair { passkey: u32::from_le_bytes(fields.array()?) },
            4 => Self::Write { characteristic: fields.characteristic()?, bytes: fields.rest() },
            5 => Self::Subscribe { characteristic: fields.characteristic()?, on: fields.flag()? },
            6 => Self::ReadStatus,
            7 => Self::Disconnect,
            _ => return Err(RadioError::Malformed),
        };
        fields.ended(message)
    }
}

impl Message for FromWearable {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Advertisement(advertisement) => framed(out, 1, |out| {
                out.extend(advertisement.factory_id.to_le_bytes());
                put_text(out, &advertisement.name);
                out.extend(advertisement.rssi_dbm.to_le_bytes());
                out.push(u8::from(advertisement.window_open));
                out.extend(advertisement.nonce);
                out.push(u8::from(advertisement.connectable));
            }),
            Self::Connected { mtu } => framed(out, 2, |out| out.extend(mtu.to_le_bytes())),
            Self::Refused { reason } => framed(out, 3, |out| put_text(out, reason)),
            Self::Paired { bond } => framed(out, 4, |out| out.extend(bond)),
            Self::WriteDone => framed(out, 5, |_| {}),
            Self::Subscribed => framed(out, 6, |_| {}),
            Self::Notify { characteristic, bytes } => framed(out, 7, |out| {
                out.push(*characteristic as u8);
                out.extend_from_slice(bytes);
            }),
            Self::Indicate { characteristic, bytes } => framed(out, 8, |out| {
                out.push(*characteristic as u8);
                out.extend_from_slice(bytes);
            }),
            Self::Status { bytes } => framed(out, 9, |out| out.extend_from_slice(bytes)),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, RadioError> {
        let mut fields = Fields(bytes);
        let message = match fields.u8()? {
            1 => Self::Advertisement(Advertisement {
                factory_id: u64::from_le_bytes(fields.array()?),
                name: fields.text()?,
                rssi_dbm: i8::from_le_bytes(fields.array()?),
                window_open: fields.flag()?,
                nonce: fields.array()?,
                connectable: fields.flag()?,
            }),
            2 => Self::Connected { mtu: u16::from_le_bytes(fields.array()?) },
            3 => Self::Refused { reason: fields.text()? },
            4 => Self::Paired { bond: fields.array()? },
            5 => Self::WriteDone,
            6 => Self::Subscribed,
            7 => Self::Notify { characteristic: fields.characteristic()?, bytes: fields.rest() },
            8 => Self::Indicate { characteristic: fields.characteristic()?, bytes: fields.rest() },
            9 => Self::Status { bytes: fields.rest() },
            _ => return Err(RadioError::Malformed),
        };
        fields.ended(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_message_comes_back_however_the_stream_is_cut() {
        let there = [
            ToWearable::Scan { gateway: "A".into() },
            ToWearable::Connect { gateway: "A".into(), bond: None },
            ToWearable::Connect { gateway: "B".into(), bond: Some([7; 16]) },
            ToWearable::Pair { passkey: 123_456 },
            ToWearable::Write { characteristic: Characteristic::Control, bytes: vec![1, 2, 3] },
            ToWearable::Subscribe { characteristic: Characteristic::Backlog, on: true },
            ToWearable::ReadStatus,
            ToWearable::Disconnect,
        ];
        let back = [
            FromWearable::Advertisement(Advertisement {
                factory_id: 0xfeed,
                name: "Kinara 7".into(),
                rssi_dbm: -71,
                window_open: true,
                nonce: [3; 8],
                connectable: false,
            }),
            FromWearable::Connected { mtu: ATT_MTU },
            FromWearable::Refused { reason: "wrong code".into() },
            FromWearable::Paired { bond: [9; 16] },
            FromWearable::WriteDone,
            FromWearable::Subscribed,
            FromWearable::Notify { characteristic: Characteristic::Stream, bytes: vec![0; 244] },
            FromWearable::Indicate { characteristic: Characteristic::Control, bytes: vec![1] },
            FromWearable::Status { bytes: vec![5; 36] },
        ];
        check(&there);
        check(&back);
    }

    fn check<M: Message + PartialEq + std::fmt::Debug>(messages: &[M]) {
        let mut stream = Vec::new();
        for message in messages {
            message.encode(&mut stream);
        }
        for step in [1, 2, 7, stream.len()] {
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in stream.chunks(step) {
                decoder.feed(piece);
                while let Some(message) = decoder.next::<M>().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, messages);
        }
    }

    #[test]
    fn a_socket_names_its_wearable() {
        let path = socket_path(Path::new("/air"), 0x1122);
        assert_eq!(factory_id_of(&path), Some(0x1122));
        assert_eq!(factory_id_of(Path::new("/air/1122.ctl")), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_but_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next::<ToWearable>() {}
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next::<FromWearable>() {}
        }
    }
}
