//! What waits to be written to the host, in order.

use crate::error::Refusal;
use crate::frame::{self, Kind};
use crate::wire;

/// More than this and the agent reads no further requests.
pub const MAX_QUEUED: usize = 1 << 20;

/// A queue of bytes.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    written: usize,
}

impl Outbox {
    /// Bytes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What to write next.
    #[must_use]
    pub fn front(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// `count` bytes of `front` were written.
    pub fn wrote(&mut self, count: usize) {
        self.written += count;
        if self.written == self.bytes.len() {
            self.clear();
        } else if self.written > self.bytes.len() / 2 {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }

    /// Forget everything.
    pub fn clear(&mut self) {
        self.written = 0;
        self.bytes.clear();
        // A burst must not cost memory for ever.
        if self.bytes.capacity() > MAX_QUEUED / 4 {
            self.bytes = Vec::new();
        }
    }

    /// The nonce: the only bytes that are no frame.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A frame.
    pub fn frame(&mut self, kind: Kind, channel: u32, flow: u8, payload: &[u8]) {
        frame::put(&mut self.bytes, kind, channel, flow, payload);
    }

    /// The header of a DATA frame whose payload is given to `raw`.
    pub fn data_header(&mut self, channel: u32, flow: u8, length: usize) {
        let header = frame::Header {
            length,
            kind: Kind::Data,
            flow,
            channel,
        };
        self.raw(&header.encode());
    }

    /// OPENED.
    pub fn opened(&mut self, channel: u32, fields: Vec<(&str, rmpv::Value)>) {
        self.frame(Kind::Opened, channel, 0, &wire::map(fields));
    }

    /// ERROR.
    pub fn refuse(&mut self, channel: u32, refusal: &Refusal) {
        self.frame(Kind::Error, channel, 0, &wire::error(refusal));
    }

    /// CREDIT for stdin.
    pub fn credit(&mut self, channel: u32, acked: u64, limit: u64) {
        frame::put_credit(&mut self.bytes, channel, frame::STDIN, acked, limit);
    }
}
