//! H4 packets, as they lie one after the other in a stream.

/// The packet type that H4 leaves to vendors: here it plugs a controller in or pulls it out.
pub const VENDOR: u8 = 0xFF;

/// Whether a machine has its controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plug {
    /// From now on.
    In,
    /// No longer.
    Out,
}

impl Plug {
    /// What a packet says about it.
    pub fn of(packet: &[u8]) -> Option<Self> {
        match packet {
            [VENDOR, 1, ..] => Some(Self::In),
            [VENDOR, 0, ..] => Some(Self::Out),
            _ => None,
        }
    }
}

/// Takes a stream apart.
#[derive(Debug, Default)]
pub struct Packets {
    bytes: Vec<u8>,
    taken: usize,
}

impl Packets {
    /// More of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.taken));
        self.bytes.extend_from_slice(bytes);
    }

    /// How long the packet at the start is, once its header is there. A type that does not exist is one byte of
    /// noise.
    fn length(bytes: &[u8]) -> Option<usize> {
        let short = |at: usize| bytes.get(at).map(|length| at + 1 + usize::from(*length));
        let long = |at: usize, mask: u16| {
            let length = u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]) & mask;
            Some(at + 2 + usize::from(length))
        };
        match *bytes.first()? {
            1 | 3 => short(3),
            2 => long(3, u16::MAX),
            4 => short(2),
            5 => long(3, 0x3FFF),
            VENDOR => Some(2),
            _ => Some(1),
        }
    }
}

impl Iterator for Packets {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let rest = &self.bytes[self.taken..];
            let length = Self::length(rest)?;
            let packet = rest.get(..length)?.to_vec();
            self.taken += length;
            if packet.len() > 1 {
                return Some(packet);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = &[
        0xFF, 1, // plugged in
        1, 0x03, 0x0C, 0, // command: reset
        4, 0x0E, 4, 1, 3, 0x0C, 0, // event: complete
        2, 1, 0x20, 3, 0, 7, 8, 9, // data
        0xFF, 0, // pulled out
    ];

    #[test]
    fn packets_come_out_whole_however_the_stream_is_cut() {
        let whole: Vec<_> = {
            let mut packets = Packets::default();
            packets.feed(STREAM);
            packets.collect()
        };
        assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [2, 4, 7, 8, 2]);
        let mut packets = Packets::default();
        let mut one_by_one = Vec::new();
        for byte in STREAM {
            packets.feed(&[*byte]);
            one_by_one.extend(packets.by_ref());
        }
        assert_eq!(one_by_one, whole);
        assert_eq!((Plug::of(&whole[0]), Plug::of(&whole[4])), (Some(Plug::In), Some(Plug::Out)));
        assert_eq!(Plug::of(&whole[1]), None);
    }

    #[test]
    fn bytes_that_begin_no_packet_are_passed_over() {
        let mut packets = Packets::default();
        packets.feed(&[0, 9, 1, 0x03, 0x0C, 0]);
        assert_eq!(packets.collect::<Vec<_>>(), [[1, 0x03, 0x0C, 0]]);
    }
}
