//! Who listens: the sockets of the machine that wait for somebody, as the kernel lists them
//! (sock_diag(7)), and word from the kernel when that may have changed.
//!
//! The tracepoint of TCP's states and probes on UDP's binding are only reasons to look again: what is
//! told is always what a dump says.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::machine::errno_of;
use crate::netlink::{Message, Netlink, attributes};

/// As many as are told of; a machine may have any number.
pub const MOST: usize = 512;

const TRACING: &str = "/sys/kernel/tracing";
const OURS: &str = "/sys/kernel/tracing/instances/vmgr";
/// include/uapi/linux/sock_diag.h, inet_diag.h; include/net/tcp_states.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// One socket that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// IPPROTO_TCP or IPPROTO_UDP.
    pub protocol: u8,
    pub port: u16,
    pub address: IpAddr,
    /// It is `::` and takes no IPv4.
    pub only6: bool,
}

impl Listener {
    /// As the protocol has it: protocol, port (two bytes, little-endian), flags, address.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.protocol];
        bytes.extend(self.port.to_le_bytes());
        bytes.push(u8::from(self.only6));
        match self.address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
        bytes
    }
}

/// All that listen now, and UDP sockets that are bound and wait for anybody.
pub fn listeners() -> Result<BTreeSet<Listener>, Errno> {
    let netlink = Netlink::sockets()?;
    let mut found = BTreeSet::new();
    for (family, protocol, state) in [
        (libc::AF_INET, libc::IPPROTO_TCP, TCP_LISTEN),
        (libc::AF_INET6, libc::IPPROTO_TCP, TCP_LISTEN),
        (libc::AF_INET, libc::IPPROTO_UDP, TCP_CLOSE),
        (libc::AF_INET6, libc::IPPROTO_UDP, TCP_CLOSE),
    ] {
        let (family, protocol) = (octet(family), octet(protocol));
        // struct inet_diag_req_v2: family, protocol, wanted extensions, pad, states, a socket's id.
        let mut body = vec![family, protocol, 0, 0];
        body.extend((1u32 << state).to_ne_bytes());
        body.extend([0; 48]);
        let ask = Message::new(SOCK_DIAG_BY_FAMILY, 0, &body);
        let dumped = netlink.dump(ask, |kind, content| {
            if kind == SOCK_DIAG_BY_FAMILY
                && let Some(listener) = read(protocol, content)
            {
                found.insert(listener);
            }
        });
        match dumped {
            // This kernel lists no such sockets: without its module, or without IPv6.
            Ok(()) | Err(Errno::ENOENT | Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

fn octet(number: i32) -> u8 {
    u8::try_from(number).unwrap_or(0)
}

/// struct inet_diag_msg: family, state, two more bytes, source and destination port (big-endian), source
/// and destination address, ... 72 bytes in all, then attributes.
fn read(protocol: u8, content: &[u8]) -> Option<Listener> {
    const SIZE: usize = 72;
    let (fixed, rest) = content.split_at_checked(SIZE)?;
    let port = u16::from_be_bytes([fixed[4], fixed[5]]);
    let is_connected = fixed[6..8] != [0, 0];
    let address = match i32::from(fixed[0]) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(*fixed[8..].first_chunk::<4>()?)),
        libc::AF_INET6 => IpAddr::from(Ipv6Addr::from(*fixed[8..].first_chunk::<16>()?)),
        _ => return None,
    };
    let only6 = attributes(rest).any(|(kind, value)| kind == INET_DIAG_SKV6ONLY && value == [1]);
    (port != 0 && !is_connected).then_some(Listener {
        protocol,
        port,
        address,
        only6: only6 && address.is_ipv6(),
    })
}

// -- word from the kernel ---------------------------------------------------------------------------

/// Have the kernel say when somebody begins or ends to listen. Takes tens of milliseconds.
pub fn prepare_trigger() -> Result<(), Errno> {
    if !fs::exists(format!("{TRACING}/instances")).unwrap_or(false) {
        let none = None::<&str>;
        mount(
            Some("tracefs"),
            TRACING,
            Some("tracefs"),
            MsFlags::empty(),
            none,
        )?;
    }
    // An instance of our own: who traces something in the machine neither sees nor disturbs it.
    match fs::create_dir(OURS) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(errno_of(&error));
        }
        _ => {}
    }
    let write = |file: &str, text: &str| {
        fs::write(format!("{OURS}/{file}"), text).map_err(|error| errno_of(&error))
    };
    let _ = write("buffer_size_kb", "16");
    let _ = write("buffer_percent", "0");
    let states = "events/sock/inet_sock_set_state";
    write(
        &format!("{states}/filter"),
        &format!("newstate=={TCP_LISTEN} || oldstate=={TCP_LISTEN}"),
    )?;
    write(&format!("{states}/enable"), "1")?;
    let probe = |line: &str| {
        let mut probes = File::options()
            .append(true)
            .open(format!("{TRACING}/kprobe_events"))?;
        std::io::Write::write_all(&mut probes, line.as_bytes())
    };
    probe("p:vmgr/udp_bind udp_lib_get_port\n")
        .and_then(|()| probe("p:vmgr/udp_close udp_lib_unhash\n"))
        .map_err(|error| errno_of(&error))?;
    write("events/vmgr/enable", "1")
}

/// Where the kernel's word comes, once it is prepared.
pub fn open_trigger() -> Result<OwnedFd, Errno> {
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(format!("{OURS}/trace_pipe"))
        .map(OwnedFd::from)
        .map_err(|error| errno_of(&error))
}

/// Take all that was said; whether it was anything.
pub fn drain(trigger: &OwnedFd) -> bool {
    let mut buffer = [0; 16_384];
    let mut any = false;
    // No more than this at a time: what comes faster is seen at the next look.
    for _ in 0..64 {
        match nix::unistd::read(trigger, &mut buffer) {
            Ok(count) if count > 0 => any = true,
            Err(Errno::EINTR) => {}
            _ => break,
        }
    }
    any
}

/// The ports from which the kernel takes one for who names none: what is bound to them waits for an
/// answer rather than for anybody.
#[must_use]
pub fn ephemeral() -> std::ops::RangeInclusive<u16> {
    let mut text = String::new();
    let _ = File::open("/proc/sys/net/ipv4/ip_local_port_range")
        .and_then(|file| file.take(64).read_to_string(&mut text));
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(low)), Some(Ok(high))) => low..=high,
        _ => 32_768..=60_999,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn the_kernel_lists_who_listens() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let found = listeners().unwrap();
        for (protocol, address) in [(6, tcp.local_addr()), (17, udp.local_addr())] {
            let address = address.unwrap();
            let wanted = Listener {
                protocol,
                port: address.port(),
                address: address.ip(),
                only6: false,
            };
            let has = |l: &Listener| {
                (l.protocol, l.port, l.address) == (wanted.protocol, wanted.port, wanted.address)
            };
            assert!(found.iter().any(has), "{wanted:?} in {found:?}");
        }
    }

    #[test]
    fn a_cut_message_is_no_listener() {
        assert_eq!(read(6, &[2; 71]), None);
        assert_eq!(read(6, &[9; 72]), None);
    }

    #[test]
    fn a_listener_is_told_in_few_bytes() {
        let listener = Listener {
            protocol: 17,
            port: 0x1234,
            address: "127.0.0.1".parse().unwrap(),
            only6: false,
        };
        assert_eq!(listener.encode(), [17, 0x34, 0x12, 0, 127, 0, 0, 1]);
    }
}
