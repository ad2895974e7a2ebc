//! A connection that the host makes to one of the machine's own ports: what its client would reach if
//! it were a program in the machine, so also what listens on 127.0.0.1 alone.
//!
//! ```text
//! connecting --connected--> open --both directions ended--> EXIT
//!      \---- no address takes it: ERROR  \---- a reset: ERROR
//! ```
//!
//! A datagram goes through the flows as its length in two bytes (little-endian) and itself. One that
//! finds no room is lost, as datagrams are.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect,
    getsockopt, recv, send, setsockopt, shutdown, socket, sockopt,
};

use crate::error::Refusal;
use crate::event_loop::{EventLoop, Source};
use crate::flow::{Input, Output};

/// What is moved in one direction in one turn of the loop.
const TURN: usize = 131_072;

/// Where to.
#[derive(Debug, PartialEq, Eq)]
pub struct Connect {
    /// Tried in this order.
    pub addresses: Vec<SocketAddr>,
    pub datagrams: bool,
}

/// A connection.
pub struct Connection {
    pub channel: u32,
    /// From the host.
    pub input: Input,
    /// To the host.
    pub output: Output,
    socket: OwnedFd,
    datagrams: bool,
    /// While it is connecting: the addresses that are left.
    left: Option<Vec<SocketAddr>>,
    readable: bool,
    writable: bool,
    read_ended: bool,
    end_sent: bool,
    write_ended: bool,
}

/// What became of an attempt.
pub enum Attempt {
    Connected,
    UnderWay,
}

impl Connection {
    /// Begin to connect.
    pub fn begin(
        number: u64,
        channel: u32,
        to: Connect,
        event_loop: &EventLoop,
    ) -> Result<(Self, Attempt), Refusal> {
        let mut left = to.addresses;
        let (socket, attempt) = attempt(&mut left, to.datagrams, number, event_loop)?;
        let connected = matches!(attempt, Attempt::Connected);
        let connection = Self {
            channel,
            input: Input::new(),
            output: Output::new(),
            socket,
            datagrams: to.datagrams,
            left: (!connected).then_some(left),
            readable: connected,
            writable: connected,
            read_ended: false,
            end_sent: false,
            write_ended: false,
        };
        Ok((connection, attempt))
    }

    /// One that somebody in the machine has made: a connected stream socket that does not block.
    pub fn of(
        socket: OwnedFd,
        number: u64,
        channel: u32,
        event_loop: &EventLoop,
    ) -> Result<Self, Refusal> {
        event_loop
            .watch(socket.as_fd(), Source::Connection(number))
            .map_err(|errno| Refusal::system("cannot watch another connection", errno))?;
        Ok(Self {
            channel,
            input: Input::new(),
            output: Output::new(),
            socket,
            datagrams: false,
            left: None,
            readable: true,
            writable: true,
            read_ended: false,
            end_sent: false,
            write_ended: false,
        })
    }

    /// Whether it is open, after epoll said that its socket has news. Errors: nobody takes it.
    pub fn ready(
        &mut self,
        number: u64,
        event_loop: &EventLoop,
    ) -> Result<Option<Attempt>, Refusal> {
        self.readable = true;
        self.writable = true;
        let Some(left) = &mut self.left else {
            return Ok(None);
        };
        match getsockopt(&self.socket, sockopt::SocketError) {
            Ok(0) if peer_is_there(&self.socket) => {
                self.left = None;
                Ok(Some(Attempt::Connected))
            }
            Ok(0) => Ok(Some(Attempt::UnderWay)),
            Ok(error) if left.is_empty() => Err(refused(Errno::from_raw(error))),
            Err(errno) if left.is_empty() => Err(refused(errno)),
            _ => {
                let (socket, attempt) = attempt(left, self.datagrams, number, event_loop)?;
                self.socket = socket;
                if matches!(attempt, Attempt::Connected) {
                    self.left = None;
                }
                Ok(Some(attempt))
            }
        }
    }

    /// Whether it is still connecting.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        self.left.is_some()
    }

    /// Move what can be moved. An error: the other end has reset it.
    pub fn pump(&mut self, scratch: &mut [u8]) -> Result<(), Errno> {
        if self.is_connecting() {
            return Ok(());
        }
        if self.datagrams {
            self.pump_datagrams(scratch);
            return Ok(());
        }
        let fd = self.socket.as_raw_fd();
        while self.writable && !self.input.front().is_empty() {
            match send(fd, self.input.front(), MsgFlags::MSG_NOSIGNAL) {
                Ok(count) => self.input.wrote(count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.writable = false,
                Err(errno) => return Err(errno),
            }
        }
        if self.input.is_done() && !self.write_ended {
            self.write_ended = true;
            // It may have been reset; reading says so.
            let _ = shutdown(fd, Shutdown::Write);
        }
        let mut turn = TURN;
        while turn > 0 && self.can_read() {
            let most = self.output.space().min(scratch.len()).min(turn);
            match recv(fd, &mut scratch[..most], MsgFlags::empty()) {
                Ok(0) => self.read_ended = true,
                Ok(count) => {
                    self.output.push(&scratch[..count]);
                    turn -= count;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.readable = false,
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn pump_datagrams(&mut self, scratch: &mut [u8]) {
        let fd = self.socket.as_raw_fd();
        while let Some(datagram) = self.input.take_datagram() {
            // Nobody may be there, or there is no room: datagrams get lost.
            let _ = send(fd, &datagram, MsgFlags::MSG_NOSIGNAL);
        }
        let mut turn = TURN;
        while turn > 0 && self.readable {
            match recv(fd, scratch, MsgFlags::empty()) {
                Ok(count) => {
                    turn = turn.saturating_sub(count + 2);
                    let length = u16::try_from(count).unwrap_or(u16::MAX);
                    if self.output.space() >= count + 2 {
                        self.output.push(&length.to_le_bytes());
                        self.output.push(&scratch[..count]);
                    }
                }
                Err(Errno::EAGAIN) => self.readable = false,
                // ECONNREFUSED: what was sent before met nobody. The next may.
                Err(_) => turn = turn.saturating_sub(1_024),
            }
        }
        if self.input.is_done() {
            self.write_ended = true;
            self.read_ended = true;
        }
    }

    fn can_read(&self) -> bool {
        self.readable && !self.read_ended && self.output.space() > 0
    }

    /// Whether `pump` has something to do without another event.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let reads = self.can_read();
        let writes = self.writable && !self.datagrams && !self.input.front().is_empty();
        !self.is_connecting() && (reads || writes)
    }

    /// How much can be sent to the host now.
    #[must_use]
    pub fn sendable(&self) -> usize {
        self.output.sendable()
    }

    /// Whether the host is to be told, once, that nothing more comes.
    pub fn take_end(&mut self) -> bool {
        let due = self.read_ended && !self.end_sent && self.output.is_sent();
        self.end_sent |= due;
        due
    }

    /// Whether both directions have ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.end_sent && self.write_ended
    }

    /// Have the other end see a reset.
    pub fn reset(&self) {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let _ = setsockopt(&self.socket, sockopt::Linger, &linger);
    }
}

/// Try addresses until one takes it or lets us wait.
fn attempt(
    left: &mut Vec<SocketAddr>,
    datagrams: bool,
    number: u64,
    event_loop: &EventLoop,
) -> Result<(OwnedFd, Attempt), Refusal> {
    let mut last = Errno::EADDRNOTAVAIL;
    while !left.is_empty() {
        let address = left.remove(0);
        let tried = open(address.ip(), datagrams).and_then(|socket| {
            event_loop.watch(socket.as_fd(), Source::Connection(number))?;
            let fd = socket.as_raw_fd();
            let result = match address {
                SocketAddr::V4(v4) => connect(fd, &SockaddrIn::from(v4)),
                SocketAddr::V6(v6) => connect(fd, &SockaddrIn6::from(v6)),
            };
            match result {
                Ok(()) => Ok((socket, Attempt::Connected)),
                Err(Errno::EINPROGRESS) => Ok((socket, Attempt::UnderWay)),
                Err(errno) => Err(errno),
            }
        });
        match tried {
            Ok(done) => return Ok(done),
            Err(errno) => last = errno,
        }
    }
    Err(refused(last))
}

fn open(address: IpAddr, datagrams: bool) -> Result<OwnedFd, Errno> {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let kind = if datagrams {
        SockType::Datagram
    } else {
        SockType::Stream
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, kind, flags, None)?;
    if !datagrams {
        setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    }
    Ok(socket)
}

/// Events may come before the connection is made (EPOLLHUP of a new socket).
fn peer_is_there(socket: &OwnedFd) -> bool {
    nix::sys::socket::getpeername::<nix::sys::socket::SockaddrStorage>(socket.as_raw_fd()).is_ok()
}

fn refused(errno: Errno) -> Refusal {
    Refusal {
        code: "cannot-connect",
        ..Refusal::system("nobody takes the connection", errno)
    }
}
