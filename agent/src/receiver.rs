//! Bytes from the host in, frames out; finds the resync marker wherever it comes.
//!
//! The stream may break at any byte and be followed by another host's, so every byte is also looked at
//! as a part of the marker. What comes out does not depend on how the stream was cut into pieces:
//!
//! - A frame counts when it lies wholly before the marker.
//! - A frame whose last bytes could be the marker's first is *held* until more bytes tell (or until the
//!   caller says `Patience::Over`): else the marker's beginning could complete a cut DATA frame and put
//!   wrong bytes into a job's stdin.

use memchr::memmem;

use crate::frame::{HEADER, Header, Kind, MAX_PAYLOAD, Violation};

/// Bytes of a resync marker.
pub const MARKER: usize = 16;
/// The marker until the first HELLO of the agent's life has been accepted.
pub const FIRST_KEY: [u8; MARKER] = *b"vmgr-resync-key\0";

/// What was found in the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// The marker: all that was under way is void.
    Marker,
    /// A frame. The first one after a marker is a HELLO, no other is.
    Frame(Header, &'a [u8]),
    /// The host broke the protocol; nothing comes until the next marker.
    Violation(Violation),
}

/// Whether a frame that could be cut by a marker's beginning is still held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    Hold,
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Only the marker counts.
    Seeking,
    /// A HELLO must come.
    Greeting,
    Frames,
}

/// The parser.
pub struct Receiver {
    key: [u8; MARKER],
    state: State,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that have been dealt with.
    taken: usize,
    /// No marker begins in `buffer` before this, except at `found`.
    searched: usize,
    found: Option<usize>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new(FIRST_KEY)
    }
}

impl Receiver {
    /// A receiver that waits for `key`.
    #[must_use]
    pub fn new(key: [u8; MARKER]) -> Self {
        Self {
            key,
            state: State::Seeking,
            buffer: Vec::new(),
            taken: 0,
            searched: 0,
            found: None,
        }
    }

    /// Take the next key; only what comes after the frame that was returned last is searched for it.
    pub fn set_key(&mut self, key: [u8; MARKER]) {
        self.key = key;
        self.searched = self.taken;
        self.found = None;
    }

    /// The session is over (the host has gone, or broke the protocol): wait for the marker.
    pub fn seek(&mut self) {
        self.state = State::Seeking;
    }

    /// Add what was read. Call `next` until it gives None, then read more: the buffer then never holds
    /// more than one frame besides what was fed at once.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.searched = self.searched.saturating_sub(self.taken);
        self.found = self.found.map(|at| at - self.taken);
        self.taken = 0;
        // An idle agent gives back what a burst took.
        if self.buffer.is_empty() && self.buffer.capacity() > 4 * MAX_PAYLOAD {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether a whole frame is being held back.
    #[must_use]
    pub fn holds(&self) -> bool {
        if self.found.is_some() || self.state == State::Seeking {
            return false;
        }
        match self.header_before(self.buffer.len()) {
            Some(Ok(header)) => self.taken + HEADER + header.length <= self.buffer.len(),
            Some(Err(_)) => true,
            None => false,
        }
    }

    /// The next thing in the stream, or None until more bytes come.
    pub fn next(&mut self, patience: Patience) -> Option<Incoming<'_>> {
        self.search();
        let end = self.buffer.len();
        let barrier = match (self.found, patience) {
            (Some(at), _) => at,
            (None, Patience::Over) => end,
            (None, Patience::Hold) => end - self.marker_beginning_at_end(),
        };
        if self.state != State::Seeking {
            match self.header_before(barrier) {
                Some(Ok(header)) if self.taken + HEADER + header.length <= barrier => {
                    let greeting = self.state == State::Greeting;
                    if greeting != (header.kind == Kind::Hello) {
                        return Some(self.violation(Violation("a HELLO out of place, or none")));
                    }
                    let start = self.taken + HEADER;
                    self.taken = start + header.length;
                    self.state = State::Frames;
                    let payload = &self.buffer[start..self.taken];
                    return Some(Incoming::Frame(header, payload));
                }
                Some(Err(violation)) => return Some(self.violation(violation)),
                _ => {}
            }
        }
        if let Some(at) = self.found.take() {
            self.taken = at + MARKER;
            self.searched = self.taken;
            self.state = State::Greeting;
            return Some(Incoming::Marker);
        }
        if self.state == State::Seeking {
            self.taken = self.searched;
        }
        None
    }

    fn violation(&mut self, violation: Violation) -> Incoming<'static> {
        self.state = State::Seeking;
        Incoming::Violation(violation)
    }

    fn header_before(&self, barrier: usize) -> Option<Result<Header, Violation>> {
        let bytes = self.buffer.get(self.taken..barrier)?.first_chunk()?;
        Some(Header::decode(bytes))
    }

    fn search(&mut self) {
        if self.found.is_some() {
            return;
        }
        let from = self.searched.max(self.taken);
        self.found = memmem::find(&self.buffer[from..], &self.key).map(|at| from + at);
        if self.found.is_none() {
            self.searched = from.max((self.buffer.len() + 1).saturating_sub(MARKER));
        }
    }

    /// How many bytes at the end of the buffer are a true beginning of the marker.
    fn marker_beginning_at_end(&self) -> usize {
        let rest = &self.buffer[self.taken..];
        (1..MARKER.min(rest.len() + 1))
            .rev()
            .find(|&n| rest.ends_with(&self.key[..n]))
            .unwrap_or(0)
    }
}
