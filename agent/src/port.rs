//! The byte stream to the host: the virtio-serial port, or a socket where there is no machine.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::unistd;

use crate::event_loop::{EventLoop, Source};

/// Bytes per read and write: what the kernel's virtio console takes at once.
pub const CHUNK: usize = 32_768;

/// Where hosts come from.
pub enum Kind {
    /// The host comes and goes and the port stays.
    Virtio,
    /// One host after the other connects, as to a VMM's socket.
    Listening(UnixListener),
    /// One host; the agent ends with it.
    Single,
}

/// The present state of the byte stream.
pub struct Port {
    kind: Kind,
    stream: Option<OwnedFd>,
    readable: bool,
    writable: bool,
}

/// What a read brought.
pub enum Read {
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// There is no host any more.
    Gone,
    /// The kernel thinks that no host is there. It hears of hosts on another queue than of their bytes,
    /// so the first bytes of one may already have been read when it says this.
    Absent,
}

impl Port {
    /// A port over `stream`, which must not block; None: the first host is still to connect.
    pub fn new(kind: Kind, stream: Option<OwnedFd>, event_loop: &EventLoop) -> Result<Self, Errno> {
        if let Some(stream) = &stream {
            event_loop.watch(stream, Source::Port)?;
        }
        if let Kind::Listening(listener) = &kind {
            event_loop.watch(listener, Source::Listener)?;
        }
        Ok(Self {
            kind,
            stream,
            readable: true,
            writable: true,
        })
    }

    /// epoll has news of the stream.
    pub fn ready(&mut self) {
        self.readable = true;
        self.writable = true;
    }

    /// Take the next host, if one waits and none is here.
    pub fn accept(&mut self, event_loop: &EventLoop) {
        let Kind::Listening(listener) = &self.kind else {
            return;
        };
        if self.stream.is_none()
            && let Ok((stream, _)) = listener.accept()
            && stream.set_nonblocking(true).is_ok()
            && event_loop.watch(&stream, Source::Port).is_ok()
        {
            self.stream = Some(stream.into());
            self.ready();
        }
    }

    /// Whether a read may bring something.
    #[must_use]
    pub fn can_read(&self) -> bool {
        self.readable && self.stream.is_some()
    }

    /// Whether a write may take something.
    #[must_use]
    pub fn can_write(&self) -> bool {
        self.writable && self.stream.is_some()
    }

    /// Whether the only host there will ever be has gone.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.kind, Kind::Single) && self.stream.is_none()
    }

    /// Read once.
    pub fn read(&mut self, buffer: &mut [u8]) -> Read {
        let Some(stream) = &self.stream else {
            return Read::Nothing;
        };
        match unistd::read(stream.as_fd(), buffer) {
            Ok(0) if matches!(self.kind, Kind::Virtio) => {
                // Until epoll says that there is news.
                self.readable = false;
                Read::Absent
            }
            Ok(0) => {
                self.gone();
                Read::Gone
            }
            Ok(count) => Read::Bytes(count),
            Err(Errno::EINTR) => Read::Nothing,
            Err(Errno::EAGAIN) => {
                self.readable = false;
                Read::Nothing
            }
            Err(_) => {
                self.gone();
                Read::Gone
            }
        }
    }

    /// Write once; how much was taken. A host that has gone is found by the next read.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(stream) = &self.stream else {
            return 0;
        };
        match unistd::write(stream.as_fd(), &bytes[..bytes.len().min(CHUNK)]) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(_) => {
                self.writable = false;
                0
            }
        }
    }

    fn gone(&mut self) {
        self.readable = false;
        if !matches!(self.kind, Kind::Virtio) {
            self.stream = None;
        }
    }
}
