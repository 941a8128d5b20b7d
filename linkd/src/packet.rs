//! Packets of the kernel's Bluetooth management interface (`Documentation` of BlueZ, `doc/mgmt-protocol.rst`).
//!
//! A header of three little-endian words (code, adapter index, length) and a body. Nothing is allocated by what a
//! packet claims, and the key in a New Long Term Key event is stepped over, never read.

/// The header's length.
pub const HEADER: usize = 6;
/// The longest packet that is read; the kernel's longest are advertisements of less than 2 KiB.
pub const LONGEST: usize = 4096;
/// "No adapter" in the header.
pub const NO_ADAPTER: u16 = 0xffff;
/// RSSI that the controller could not tell.
const RSSI_UNKNOWN: i8 = 127;
/// Adapters that are listed at most.
const MOST_ADAPTERS: usize = 32;

const EVENT_COMMAND_COMPLETE: u16 = 0x0001;
const EVENT_COMMAND_STATUS: u16 = 0x0002;
const EVENT_NEW_LONG_TERM_KEY: u16 = 0x000a;

const READ_VERSION: u16 = 0x0001;
const READ_INDEX_LIST: u16 = 0x0003;
const SET_POWERED: u16 = 0x0005;
const GET_CONNECTION_INFORMATION: u16 = 0x0031;

/// Bit of `current settings`: the adapter is powered.
const POWERED: u32 = 1;

/// Whether an address is fixed by the IEEE or drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressKind {
    /// LE public.
    Public,
    /// LE random.
    Random,
}

/// A Bluetooth address, most significant byte first, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address(pub [u8; 6]);

/// The text is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a Bluetooth address; write six pairs of hexadecimal digits, AA:BB:CC:DD:EE:FF")]
pub struct BadAddress;

impl std::str::FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(BadAddress)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(BadAddress);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| BadAddress)?;
        }
        if parts.next().is_some() { Err(BadAddress) } else { Ok(Self(bytes)) }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// What is asked of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Version of the management interface.
    ReadVersion,
    /// The adapters there are.
    ReadIndexList,
    /// Power an adapter.
    SetPowered(bool),
    /// Signal strength of a link.
    GetConnectionInformation(Address, AddressKind),
}

impl Command {
    /// The opcode.
    pub fn opcode(self) -> u16 {
        match self {
            Self::ReadVersion => READ_VERSION,
            Self::ReadIndexList => READ_INDEX_LIST,
            Self::SetPowered(_) => SET_POWERED,
            Self::GetConnectionInformation(..) => GET_CONNECTION_INFORMATION,
        }
    }

    /// The packet, for the adapter of this index (or [`NO_ADAPTER`]).
    pub fn encode(self, adapter: u16) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Self::ReadVersion | Self::ReadIndexList => {}
            Self::SetPowered(on) => body.push(u8::from(on)),
            Self::GetConnectionInformation(address, kind) => put_address(&mut body, address, kind),
        }
        let mut packet = Vec::with_capacity(HEADER + body.len());
        for word in [self.opcode(), adapter, body.len() as u16] {
            packet.extend_from_slice(&word.to_le_bytes());
        }
        packet.extend_from_slice(&body);
        packet
    }

    /// Whether an answer of this body may be the one to this command: several links may be asked about at once, and
    /// an answer that comes too late must not be taken for the next one.
    pub fn is_answered_by(self, body: &[u8]) -> bool {
        match self {
            Self::GetConnectionInformation(address, kind) => {
                body.is_empty() || take_address(body).is_some_and(|(found, _)| found == (address, kind))
            }
            Self::SetPowered(on) => {
                body.is_empty() || settings(body).is_some_and(|settings| (settings & POWERED != 0) == on)
            }
            Self::ReadVersion | Self::ReadIndexList => true,
        }
    }
}

/// What comes from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// The answer to a command.
    Answer {
        /// Adapter index.
        adapter: u16,
        /// Of the command.
        opcode: u16,
        /// 0 for success.
        status: u8,
        /// What was asked for; empty where the kernel only gives a status.
        body: Vec<u8>,
    },
    /// A pairing made a key.
    NewKey {
        /// Adapter index.
        adapter: u16,
        /// Whose key: the identity address, where the peer told it.
        address: Address,
        /// The kind of the address.
        kind: AddressKind,
        /// The key's kind.
        key: KeyKind,
        /// Bytes of it that are random, 7 to 16.
        key_bytes: u8,
    },
    /// Something that nobody here waits for.
    Other(u16),
}

/// How a key came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// Legacy pairing, Just Works.
    Unauthenticated,
    /// Legacy pairing with a passkey.
    Authenticated,
    /// Secure Connections, Just Works.
    UnauthenticatedP256,
    /// Secure Connections with a passkey or numeric comparison. The only kind that Kinara keeps.
    AuthenticatedP256,
    /// Secure Connections with the published debug key: no secret at all.
    DebugP256,
    /// A kind that this program does not know.
    Unknown(u8),
}

impl KeyKind {
    fn from_wire(byte: u8) -> Self {
        match byte {
            0 => Self::Unauthenticated,
            1 => Self::Authenticated,
            2 => Self::UnauthenticatedP256,
            3 => Self::AuthenticatedP256,
            4 => Self::DebugP256,
            other => Self::Unknown(other),
        }
    }

    /// Made so that nobody in between could know it.
    pub fn authenticated(self) -> bool {
        matches!(self, Self::Authenticated | Self::AuthenticatedP256)
    }

    /// Made by LE Secure Connections.
    pub fn secure_connections(self) -> bool {
        matches!(self, Self::UnauthenticatedP256 | Self::AuthenticatedP256)
    }
}

/// The packet is not one of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a management packet of {0} bytes that is not one")]
pub struct BadPacket(pub usize);

/// Reads one packet.
pub fn parse(bytes: &[u8]) -> Result<Packet, BadPacket> {
    read(bytes).ok_or(BadPacket(bytes.len()))
}

fn read(bytes: &[u8]) -> Option<Packet> {
    let (code, rest) = take_u16(bytes)?;
    let (adapter, rest) = take_u16(rest)?;
    let (length, body) = take_u16(rest)?;
    if body.len() != usize::from(length) || bytes.len() > LONGEST {
        return None;
    }
    match code {
        EVENT_COMMAND_COMPLETE | EVENT_COMMAND_STATUS => {
            let (opcode, rest) = take_u16(body)?;
            let (&status, body) = rest.split_first()?;
            Some(Packet::Answer { adapter, opcode, status, body: body.to_vec() })
        }
        EVENT_NEW_LONG_TERM_KEY => {
            // store hint, address, kind, initiator, size, diversifier (2), random (8), key (16)
            let (_, rest) = body.split_first()?;
            let ((address, kind), rest) = take_address(rest)?;
            let (&key, rest) = rest.split_first()?;
            let (_, rest) = rest.split_first()?;
            let (&key_bytes, rest) = rest.split_first()?;
            (rest.len() == 26).then_some(Packet::NewKey {
                adapter,
                address,
                kind,
                key: KeyKind::from_wire(key),
                key_bytes,
            })
        }
        other => Some(Packet::Other(other)),
    }
}

/// Version and revision, from the answer to [`Command::ReadVersion`].
pub fn version(body: &[u8]) -> Option<(u8, u16)> {
    let (&version, rest) = body.split_first()?;
    let (revision, rest) = take_u16(rest)?;
    rest.is_empty().then_some((version, revision))
}

/// Adapter indices, from the answer to [`Command::ReadIndexList`]; at most 32.
pub fn index_list(body: &[u8]) -> Option<Vec<u16>> {
    let (count, rest) = take_u16(body)?;
    if rest.len() != usize::from(count) * 2 {
        return None;
    }
    Some(rest.chunks_exact(2).take(MOST_ADAPTERS).filter_map(|two| Some(take_u16(two)?.0)).collect())
}

/// RSSI in dBm, from the answer to [`Command::GetConnectionInformation`]; `Some(None)` when the controller cannot tell.
pub fn rssi_dbm(body: &[u8]) -> Option<Option<i8>> {
    let (_, rest) = take_address(body)?;
    let [rssi, _tx, _most_tx] = rest.try_into().ok()?;
    let rssi = u8::cast_signed(rssi);
    Some((rssi != RSSI_UNKNOWN).then_some(rssi))
}

fn settings(body: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(body.try_into().ok()?))
}

fn take_u16(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (two, rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_le_bytes(*two), rest))
}

fn take_address(bytes: &[u8]) -> Option<((Address, AddressKind), &[u8])> {
    let (six, rest) = bytes.split_first_chunk::<6>()?;
    let mut address = *six;
    address.reverse();
    let (&kind, rest) = rest.split_first()?;
    let kind = match kind {
        1 => AddressKind::Public,
        2 => AddressKind::Random,
        _ => return None, // BR/EDR: not ours
    };
    Some(((Address(address), kind), rest))
}

fn put_address(out: &mut Vec<u8>, address: Address, kind: AddressKind) {
    let mut bytes = address.0;
    bytes.reverse();
    out.extend_from_slice(&bytes);
    out.push(match kind {
        AddressKind::Public => 1,
        AddressKind::Random => 2,
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 16] = [0xa5; 16];

    fn new_key(kind: u8, address_kind: u8) -> Vec<u8> {
        let mut packet =
            vec![0x0a, 0, 1, 0, 37, 0, 1, 0x66, 0x55, 0x44, 0x33, 0x22, 0xc1, address_kind, kind, 1, 16];
        packet.extend([0; 10]);
        packet.extend(KEY);
        packet
    }

    #[test]
    fn a_new_key_is_told_by_its_kind_and_never_by_its_bytes() {
        let told = parse(&new_key(3, 2)).unwrap();
        assert_eq!(
            told,
            Packet::NewKey {
                adapter: 1,
                address: "C1:22:33:44:55:66".parse().unwrap(),
                kind: AddressKind::Random,
                key: KeyKind::AuthenticatedP256,
                key_bytes: 16,
            }
        );
        assert!(!format!("{told:?}").contains("165"), "the key's bytes are 0xa5 = 165");
    }

    #[test]
    fn only_a_passkey_over_secure_connections_counts_as_both() {
        let both = |byte| {
            let key = KeyKind::from_wire(byte);
            (key.authenticated(), key.secure_connections())
        };
        assert_eq!((0..=5).map(both).filter(|is| *is == (true, true)).count(), 1);
        assert_eq!(both(3), (true, true));
        assert_eq!(both(4), (false, false), "a debug key is no secret");
        assert_eq!(both(200), (false, false));
    }

    #[test]
    fn a_key_of_classic_bluetooth_or_of_another_length_is_refused() {
        assert!(parse(&new_key(3, 0)).is_err());
        let mut long = new_key(3, 2);
        long[4] += 1;
        assert!(parse(&long).is_err(), "the header says more than there is");
        long.push(0);
        assert!(parse(&long).is_err(), "a longer event than the interface knows");
    }

    #[test]
    fn an_answer_about_another_link_is_not_taken_for_ours() {
        let (a, b) = (Address([1; 6]), Address([2; 6]));
        let asked = Command::GetConnectionInformation(a, AddressKind::Random);
        let mut body = Vec::new();
        put_address(&mut body, a, AddressKind::Random);
        assert!(asked.is_answered_by(&body));
        assert!(asked.is_answered_by(&[]), "a bare status names no address");
        let mut other = Vec::new();
        put_address(&mut other, b, AddressKind::Random);
        assert!(!asked.is_answered_by(&other));
    }

    #[test]
    fn a_late_word_that_power_is_off_is_no_answer_to_power_on() {
        assert!(!Command::SetPowered(true).is_answered_by(&0u32.to_le_bytes()));
        assert!(Command::SetPowered(true).is_answered_by(&0x0001_0201u32.to_le_bytes()));
    }

    #[test]
    fn rssi_is_read_and_127_means_that_nobody_knows() {
        let body = |rssi: u8| [6, 5, 4, 3, 2, 1, 2, rssi, 0, 4];
        assert_eq!(rssi_dbm(&body(0xc3)), Some(Some(-61)));
        assert_eq!(rssi_dbm(&body(127)), Some(None));
        assert_eq!(rssi_dbm(&body(1)[..9]), None);
    }

    #[test]
    fn a_list_of_adapters_that_claims_more_than_it_holds_is_refused() {
        assert_eq!(index_list(&[2, 0, 0, 0, 1, 0]), Some(vec![0, 1]));
        assert_eq!(index_list(&[0xff, 0xff, 0, 0]), None);
        assert_eq!(version(&[1, 23, 0]), Some((1, 23)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (parse(&bytes), version(&bytes), index_list(&bytes), rssi_dbm(&bytes));
            for command in [Command::SetPowered(true), Command::GetConnectionInformation(Address([0; 6]), AddressKind::Public)] {
                let _ = command.is_answered_by(&bytes);
            }
        }

        #[test]
        fn a_body_longer_or_shorter_than_its_header_says_is_refused(
            code in 1u16..0x30, said in 0u16..300, body in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut packet = Vec::new();
            for word in [code, 0, said] { packet.extend(word.to_le_bytes()); }
            packet.extend(&body);
            prop_assert!(parse(&packet).is_err() || usize::from(said) == body.len());
        }

        #[test]
        fn an_address_reads_back_as_it_was_written(bytes in any::<[u8; 6]>()) {
            prop_assert_eq!(Address(bytes).to_string().parse::<Address>().unwrap(), Address(bytes));
        }

        #[test]
        fn no_text_makes_the_address_parser_panic(text in ".{0,40}") {
            let _ = text.parse::<Address>();
        }
    }
}
