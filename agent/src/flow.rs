//! Credit: who may send how much on a flow, and what is kept until it is taken for good.
//!
//! Offsets count a flow's bytes from its beginning. [`Output`] is the agent as a sender, [`Input`] the
//! agent as a receiver.

use std::collections::VecDeque;

use crate::frame::Violation;

/// How far past the beginning of a channel may be sent before the first CREDIT.
pub const INITIAL: u64 = 65_536;
/// Output that is kept per flow.
pub const OUTPUT_WINDOW: u64 = 262_144;
#[expect(clippy::cast_possible_truncation, reason = "it is small")]
const KEPT_MAX: usize = OUTPUT_WINDOW as usize;
/// What the protocol allows for stdin.
pub const STDIN_WINDOW_MAX: u64 = 1_048_576;
/// What this agent grants for stdin: enough to keep a pipe full, little enough for 256 jobs.
const STDIN_WINDOW: u64 = 262_144;
/// Granting less than this at a time would cost more frames than it is worth.
const STDIN_STEP: u64 = 16_384;

/// Check a CREDIT against what the sender knows.
///
/// Args: `acked` and `limit` so far, `sent` so far, the new pair, and the widest allowed window.
fn check(
    (acked, limit): (u64, u64),
    sent: u64,
    (new_acked, new_limit): (u64, u64),
    widest: u64,
) -> Result<(), Violation> {
    if new_acked < acked || new_limit < limit {
        return Err(Violation("credit that falls"));
    }
    if new_acked > sent {
        return Err(Violation("credit for what was not sent"));
    }
    match new_limit.checked_sub(new_acked) {
        Some(window) if window <= widest => Ok(()),
        _ => Err(Violation("credit for more than a window")),
    }
}

/// An output of a job: kept from where the consumer has taken it to where the job has written it.
#[derive(Debug, Default)]
pub struct Output {
    kept: VecDeque<u8>,
    /// Offset of the first byte in `kept`.
    start: u64,
    /// Offset up to which the consumer certainly has everything that was not lost.
    taken: u64,
    /// Offset of the next byte to send on the present channel.
    sent: u64,
    limit: u64,
    lost: u64,
}

impl Output {
    /// A new flow whose channel begins with it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            limit: INITIAL,
            ..Self::default()
        }
    }

    /// How much may be added before something must be taken or dropped, in bytes.
    #[must_use]
    pub fn space(&self) -> usize {
        KEPT_MAX.saturating_sub(self.kept.len())
    }

    /// Add what the job has written; at most `space` bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.space());
        self.kept.extend(bytes);
    }

    /// Make room for `wanted` bytes by dropping the oldest.
    pub fn make_room(&mut self, wanted: usize) {
        let excess = wanted.saturating_sub(self.space()).min(self.kept.len());
        self.kept.drain(..excess);
        self.start += excess as u64;
        self.sent = self.sent.max(self.start);
    }

    /// How many bytes may be sent now.
    #[must_use]
    pub fn sendable(&self) -> usize {
        let end = self.end().min(self.limit);
        usize::try_from(end.saturating_sub(self.sent)).unwrap_or(usize::MAX)
    }

    /// Whether all of it has been sent.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.sent == self.end()
    }

    /// Give the next `length` bytes (at most `sendable`) to `put`, in one or two pieces.
    pub fn send(&mut self, length: usize, mut put: impl FnMut(&[u8])) {
        let from = usize::try_from(self.sent - self.start).expect("kept is small");
        let (first, second) = self.kept.as_slices();
        let (head, tail) = (first.len().min(from), from.saturating_sub(first.len()));
        let piece = &first[head..];
        let piece = &piece[..piece.len().min(length)];
        put(piece);
        put(&second[tail..][..length - piece.len()]);
        self.sent += length as u64;
    }

    /// A CREDIT came from the host.
    pub fn credit(&mut self, acked: u64, limit: u64) -> Result<(), Violation> {
        check(
            (self.start, self.limit),
            self.sent,
            (acked, limit),
            OUTPUT_WINDOW,
        )?;
        self.forget_before(acked);
        self.taken = acked;
        self.limit = limit;
        Ok(())
    }

    /// A new channel begins, whose consumer has everything before `received`: where it goes on.
    /// None when it cannot have that much.
    pub fn attach(&mut self, received: u64) -> Option<u64> {
        if received > self.end() {
            return None;
        }
        self.taken = self.taken.max(received.min(self.start));
        self.lost += self.start - self.taken;
        let from = received.max(self.start);
        self.forget_before(from);
        self.taken = from;
        self.sent = from;
        self.limit = from + INITIAL;
        Some(from)
    }

    /// Bytes that were dropped before any consumer had taken them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lost + (self.start - self.taken)
    }

    fn end(&self) -> u64 {
        self.start + self.kept.len() as u64
    }

    fn forget_before(&mut self, offset: u64) {
        let count = usize::try_from(offset - self.start).expect("kept is small");
        self.kept.drain(..count);
        self.start = offset;
        // An idle job does not hold the memory that a burst needed.
        if self.kept.is_empty() && self.kept.capacity() > KEPT_MAX / 4 {
            self.kept = VecDeque::new();
        }
    }
}

/// A job's stdin: received, on its way into the job's pipe.
#[derive(Debug)]
pub struct Input {
    waiting: VecDeque<u8>,
    received: u64,
    /// The limit that the host knows of, and what had been taken when it was told.
    granted: u64,
    taken: u64,
    ended: bool,
    closed: bool,
}

impl Default for Input {
    fn default() -> Self {
        Self::new()
    }
}

impl Input {
    /// A new flow whose channel begins with it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            received: 0,
            granted: INITIAL,
            taken: 0,
            ended: false,
            closed: false,
        }
    }

    /// DATA came.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if self.ended {
            return Err(Violation("DATA after EOF"));
        }
        let received = self.received + bytes.len() as u64;
        if received > self.granted {
            return Err(Violation("DATA beyond credit"));
        }
        self.received = received;
        if !self.closed {
            self.waiting.extend(bytes);
        }
        Ok(())
    }

    /// EOF came.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Nobody will read this any more: what comes is taken and thrown away, so that the sender ends.
    pub fn close(&mut self) {
        self.closed = true;
        self.waiting = VecDeque::new();
    }

    /// Whether EOF came and everything before it has been written.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.ended && self.waiting.is_empty()
    }

    /// What to write next.
    #[must_use]
    pub fn front(&self) -> &[u8] {
        self.waiting.as_slices().0
    }

    /// Take the next datagram: its length in two bytes, then itself. None: it is not all there.
    pub fn take_datagram(&mut self) -> Option<Vec<u8>> {
        let (&low, &high) = (self.waiting.front()?, self.waiting.get(1)?);
        let end = 2 + usize::from(u16::from_le_bytes([low, high]));
        (self.waiting.len() >= end).then(|| self.waiting.drain(..end).skip(2).collect())
    }

    /// `count` bytes of `front` were written.
    pub fn wrote(&mut self, count: usize) {
        self.waiting.drain(..count);
    }

    /// The CREDIT to send now, as `(acked, limit)`, if one is due.
    pub fn credit_due(&mut self) -> Option<(u64, u64)> {
        let acked = self.written();
        // After an attach the limit may be beyond what would be granted now; it never falls.
        let limit = (acked + STDIN_WINDOW).max(self.granted);
        if self.ended || acked < self.taken + STDIN_STEP || limit == self.granted {
            return None;
        }
        self.granted = limit;
        self.taken = acked;
        Some((acked, limit))
    }

    /// A new channel begins: the offset from which the host sends.
    pub fn attach(&mut self) -> u64 {
        // What one consumer after the other may leave waiting is bounded like the rest; the host still
        // has everything that was not acknowledged.
        let most = usize::try_from(STDIN_WINDOW_MAX - INITIAL).expect("small");
        let excess = self.waiting.len().saturating_sub(most);
        self.waiting.truncate(most);
        self.received -= excess as u64;
        self.granted = self.received + INITIAL;
        self.taken = self.written();
        self.received
    }

    fn written(&self) -> u64 {
        self.received - self.waiting.len() as u64
    }
}
