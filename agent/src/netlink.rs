//! Netlink: the kernel's network configuration and its sockets, as messages (netlink(7)).
//!
//! A message is a header, a structure of its own and attributes, each aligned to four bytes. What comes
//! back is read by its lengths; what does not fit them ends the reading.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const HEADER: usize = 16;
/// What the kernel sends at a time, netlink(7).
const READ: usize = 32_768;
/// The kernel answers at once; a machine that is starved of CPU may need longer.
const PATIENCE_SECONDS: i64 = 5;

/// A socket for one of netlink's protocols.
pub struct Netlink(OwnedFd);

/// A message that is being written.
pub struct Message(Vec<u8>);

impl Netlink {
    /// Of routing: links, addresses, routes.
    pub fn route() -> Result<Self, Errno> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// Of sockets: who listens.
    pub fn sockets() -> Result<Self, Errno> {
        Self::open(SockProtocol::NetlinkSockDiag)
    }

    fn open(protocol: SockProtocol) -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(
            &fd,
            sockopt::ReceiveTimeout,
            &TimeVal::seconds(PATIENCE_SECONDS),
        )?;
        Ok(Self(fd))
    }

    /// Ask for a change, and wait until it is made.
    pub fn change(&self, message: Message) -> Result<(), Errno> {
        self.send(message, libc::NLM_F_ACK)?;
        self.answers(|_, _| {})
    }

    /// Ask for what there is: `each` gets the kind and the content of every message.
    pub fn dump(&self, message: Message, each: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
        self.send(message, libc::NLM_F_DUMP)?;
        self.answers(each)
    }

    fn send(&self, message: Message, flags: i32) -> Result<(), Errno> {
        let mut bytes = message.0;
        let length = u32::try_from(bytes.len()).map_err(|_| Errno::EMSGSIZE)?;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        let before = u16::from_ne_bytes([bytes[6], bytes[7]]);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "netlink's flags are 16 bits"
        )]
        let flags = before | (libc::NLM_F_REQUEST | flags) as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        send(self.0.as_raw_fd(), &bytes, MsgFlags::empty()).map(|_| ())
    }

    /// Read until the kernel says that it is done, or what went wrong.
    fn answers(&self, mut each: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
        let mut buffer = vec![0; READ];
        loop {
            let count = match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let mut rest = &buffer[..count];
            while rest.len() >= HEADER {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                if length < HEADER || length > rest.len() {
                    return Err(Errno::EBADMSG);
                }
                let content = &rest[HEADER..length];
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        let code = content.first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
                        return match code {
                            0 => Ok(()),
                            code => Err(Errno::from_raw(-code)),
                        };
                    }
                    _ => each(kind, content),
                }
                rest = &rest[aligned(length).min(rest.len())..];
            }
        }
    }
}

impl Message {
    /// A message of `kind` that begins with `body`. `flags` besides those of the request.
    #[must_use]
    pub fn new(kind: u16, flags: i32, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = u16::try_from(flags).unwrap_or(0);
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(body);
        bytes.resize(aligned(bytes.len()), 0);
        Self(bytes)
    }

    /// Add an attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(4);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(aligned(self.0.len()), 0);
        self
    }
}

/// The attributes in `bytes`, as kind and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (&[l0, l1, k0, k1], _) = bytes.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if length < 4 || length > bytes.len() {
            return None;
        }
        let value = &bytes[4..length];
        bytes = &bytes[aligned(length).min(bytes.len())..];
        // The two upper bits are flags of the attribute.
        Some((u16::from_ne_bytes([k0, k1]) & 0x3fff, value))
    })
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let message = Message::new(1, 0, &[9; 4]).with(3, b"abc").with(7, b"");
        let read: Vec<_> = attributes(&message.0[20..]).collect();
        assert_eq!(read, [(3, &b"abc"[..]), (7, &b""[..])]);
    }

    #[test]
    fn what_is_cut_ends_the_reading() {
        assert_eq!(attributes(&[9, 0, 1, 0, 1]).count(), 0);
        assert_eq!(attributes(&[2, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[4, 0, 1]).count(), 0);
    }

    #[test]
    fn the_kernel_answers() {
        let netlink = Netlink::route().unwrap();
        let mut names = Vec::new();
        let ask = Message::new(libc::RTM_GETLINK, 0, &[0; 16]);
        let kept = |_: u16, content: &[u8]| {
            names.extend(
                attributes(&content[16..])
                    .filter(|(kind, _)| *kind == libc::IFLA_IFNAME)
                    .map(|(_, name)| name.to_vec()),
            );
        };
        netlink.dump(ask, kept).unwrap();
        assert!(names.iter().any(|name| name == b"lo\0"));
        let missing = Message::new(libc::RTM_DELLINK, 0, &[0; 16]).with(3, b"no-such-link\0");
        assert!(netlink.change(missing).is_err());
    }
}
