//! Frames: the unit of the agent protocol (docs/agent-protocol.md, "Frames").
//!
//! A frame is a 12-byte header and its payload. Every length is checked on the header alone, before a
//! byte is kept for it.

/// Bytes of a header.
pub const HEADER: usize = 12;
/// Bytes of payload in any frame.
pub const MAX_PAYLOAD: usize = 65_536;
/// Bytes of payload in a DATA frame.
pub const MAX_DATA: usize = 32_768;
/// Bytes of payload in a PING.
pub const MAX_PING: usize = 64;

/// A flow's number in the header.
pub const STDIN: u8 = 0;
/// A flow's number in the header.
pub const STDOUT: u8 = 1;
/// A flow's number in the header.
pub const STDERR: u8 = 2;

/// What the other side did against the protocol: one clause, for logs and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub &'static str);

/// The header's second field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Hello = 1,
    Open = 2,
    Opened = 3,
    Error = 4,
    Data = 5,
    Eof = 6,
    Credit = 7,
    Control = 8,
    Exit = 9,
    Close = 10,
    Event = 11,
    Ping = 12,
    Pong = 13,
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Open,
            3 => Self::Opened,
            4 => Self::Error,
            5 => Self::Data,
            6 => Self::Eof,
            7 => Self::Credit,
            8 => Self::Control,
            9 => Self::Exit,
            10 => Self::Close,
            11 => Self::Event,
            12 => Self::Ping,
            13 => Self::Pong,
            _ => return None,
        })
    }

    fn has_flow(self) -> bool {
        matches!(self, Self::Data | Self::Eof | Self::Credit)
    }

    fn is_of_connection(self) -> bool {
        matches!(self, Self::Hello | Self::Event | Self::Ping | Self::Pong)
    }

    fn max_payload(self) -> usize {
        match self {
            Self::Data => MAX_DATA,
            Self::Eof | Self::Close => 0,
            Self::Credit => 16,
            Self::Ping | Self::Pong => MAX_PING,
            _ => MAX_PAYLOAD,
        }
    }
}

/// A decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub length: usize,
    pub kind: Kind,
    pub flow: u8,
    pub channel: u32,
}

impl Header {
    /// Read a header and check all that it says.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, Violation> {
        let [l0, l1, l2, l3, kind, flow, r0, r1, c0, c1, c2, c3] = *bytes;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let channel = u32::from_le_bytes([c0, c1, c2, c3]);
        if length > MAX_PAYLOAD {
            return Err(Violation("a frame above 65,536 bytes"));
        }
        let kind = Kind::from_number(kind).ok_or(Violation("a frame of an unknown type"))?;
        if r0 != 0 || r1 != 0 {
            return Err(Violation("reserved bytes that are not zero"));
        }
        if flow > STDERR || (flow != 0 && !kind.has_flow()) {
            return Err(Violation("a flow where there is none"));
        }
        if (channel == 0) != kind.is_of_connection() {
            return Err(Violation("a frame on a channel that it cannot be on"));
        }
        if length > kind.max_payload() {
            return Err(Violation("a frame longer than its type allows"));
        }
        if kind == Kind::Credit && length != 16 {
            return Err(Violation("a CREDIT that is not two numbers"));
        }
        Ok(Self {
            length,
            kind,
            flow,
            channel,
        })
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER] {
        debug_assert!(self.length <= self.kind.max_payload());
        let mut bytes = [0; HEADER];
        #[expect(clippy::cast_possible_truncation, reason = "bounded by MAX_PAYLOAD")]
        bytes[..4].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = self.flow;
        bytes[8..].copy_from_slice(&self.channel.to_le_bytes());
        bytes
    }
}

/// Append a whole frame to `out`.
pub fn put(out: &mut Vec<u8>, kind: Kind, channel: u32, flow: u8, payload: &[u8]) {
    let header = Header {
        length: payload.len(),
        kind,
        flow,
        channel,
    };
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(payload);
}

/// Append a CREDIT frame: absolute offsets of `flow`, in bytes.
pub fn put_credit(out: &mut Vec<u8>, channel: u32, flow: u8, acked: u64, limit: u64) {
    let mut payload = [0; 16];
    payload[..8].copy_from_slice(&acked.to_le_bytes());
    payload[8..].copy_from_slice(&limit.to_le_bytes());
    put(out, Kind::Credit, channel, flow, &payload);
}

/// `(acked, limit)` of a CREDIT's payload.
#[must_use]
pub fn credit(payload: &[u8]) -> (u64, u64) {
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&payload[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    (number(0), number(8))
}
