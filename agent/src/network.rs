//! The machine's network as the host wants it: hardware address, addresses, routes, resolver.
//!
//! All of it is a handful of messages to the kernel and one file: nothing is started for it, so that a
//! machine that goes on from saved memory has another identity within a millisecond.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

use crate::error::Refusal;
use crate::launch::Root;
use crate::machine::errno_of;
use crate::netlink::{Message, Netlink, attributes};

/// An address and the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    pub address: IpAddr,
    pub prefix: u8,
}

/// What the network is to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Network {
    pub mac: Option<[u8; 6]>,
    pub addresses: Vec<Interface>,
    pub gateways: Vec<IpAddr>,
    pub mtu: Option<u32>,
    pub resolvers: Vec<IpAddr>,
    pub search: Vec<String>,
}

/// What was done.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    pub interface: String,
    /// Whether /etc/resolv.conf says what was asked; false where the machine keeps its own.
    pub resolver: bool,
}

const MARK: &str = "# Written by vmgr at each start. Change it, and it is left alone.\n";
const RESOLV_CONF: &str = "etc/resolv.conf";
const MOST: u64 = 65_536;

struct Link {
    index: i32,
    name: String,
}

/// Make the network device of the machine what `network` says.
pub fn configure(network: &Network, root: Root) -> Result<Done, Refusal> {
    let link = device().ok_or_else(|| {
        Refusal::new(
            "unsupported",
            "the machine has no network device, or no driver for it",
        )
    })?;
    let apply = || -> Result<(), Errno> {
        let netlink = Netlink::route()?;
        forget_addresses(&netlink, link.index, &network.addresses)?;
        if let Some(mac) = network.mac {
            set_mac(&netlink, &link, mac)?;
        }
        let mut up = set_link(link.index, true);
        if let Some(mtu) = network.mtu {
            up = up.with(libc::IFLA_MTU, &mtu.to_ne_bytes());
        }
        netlink.change(up)?;
        for interface in &network.addresses {
            netlink.change(add_address(link.index, *interface))?;
        }
        for gateway in &network.gateways {
            netlink.change(default_route(link.index, *gateway))?;
        }
        Ok(())
    };
    apply().map_err(|errno| Refusal::system("cannot configure the network", errno))?;
    let resolver = network.resolvers.is_empty()
        || write_resolver(network, root)
            .map_err(|errno| Refusal::system("cannot write /etc/resolv.conf", errno))?;
    Ok(Done {
        interface: link.name,
        resolver,
    })
}

/// The machine's one network device: what is neither virtual nor loopback has a `device` in sysfs.
fn device() -> Option<Link> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")
        .ok()?
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names.into_iter().find_map(|name| {
        let index = fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?;
        Some(Link {
            index: index.trim().parse().ok()?,
            name,
        })
    })
}

/// Change the hardware address. virtio's is changed while the link is up; not every driver's can be,
/// and a link that goes down loses its routes and a second until it is up again.
fn set_mac(netlink: &Netlink, link: &Link, mac: [u8; 6]) -> Result<(), Errno> {
    let now = fs::read_to_string(format!("/sys/class/net/{}/address", link.name));
    let wanted: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    if now.is_ok_and(|now| now.trim() == wanted.join(":")) {
        return Ok(());
    }
    let change = || {
        // struct ifinfomsg with nothing to change in its flags.
        let mut body = vec![0; 4];
        body.extend(link.index.to_ne_bytes());
        body.extend([0; 8]);
        netlink.change(Message::new(libc::RTM_NEWLINK, 0, &body).with(libc::IFLA_ADDRESS, &mac))
    };
    match change() {
        Err(Errno::EBUSY) => {
            netlink.change(set_link(link.index, false))?;
            change()
        }
        other => other,
    }
}

// -- messages: rtnetlink(7) -----------------------------------------------------------------------

fn set_link(index: i32, up: bool) -> Message {
    // struct ifinfomsg: family, pad, type (u16), index, flags, change.
    let flags = if up { libc::IFF_UP } else { 0 };
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(libc::IFF_UP.to_ne_bytes());
    Message::new(libc::RTM_NEWLINK, 0, &body)
}

/// struct ifaddrmsg: family, prefix length, flags, scope, index.
fn address_body(family: u8, prefix: u8, flags: u8, index: i32) -> Vec<u8> {
    let mut body = vec![family, prefix, flags, 0];
    body.extend(index.to_ne_bytes());
    body
}

fn add_address(index: i32, interface: Interface) -> Message {
    // Nobody else can have it: no waiting for duplicates of an IPv6 address.
    const IFA_F_NODAD: u8 = 2;
    let (family, bytes) = octets(interface.address);
    let body = address_body(family, interface.prefix, IFA_F_NODAD, index);
    Message::new(
        libc::RTM_NEWADDR,
        libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
        &body,
    )
    .with(libc::IFA_LOCAL, &bytes)
    .with(libc::IFA_ADDRESS, &bytes)
}

fn default_route(index: i32, gateway: IpAddr) -> Message {
    const RTNH_F_ONLINK: u32 = 4;
    let (family, bytes) = octets(gateway);
    // struct rtmsg: family, destination's and source's prefix, tos, table, protocol, scope, type,
    // flags (u32). The gateway is in no network of ours, so it is said to be on the link.
    let mut body = vec![
        family,
        0,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_STATIC,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNICAST,
    ];
    body.extend(RTNH_F_ONLINK.to_ne_bytes());
    Message::new(
        libc::RTM_NEWROUTE,
        libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
        &body,
    )
    .with(libc::RTA_GATEWAY, &bytes)
    .with(libc::RTA_OIF, &index.to_ne_bytes())
}

/// Remove the addresses of a link that are not `wanted`; what a template had must not stay.
fn forget_addresses(netlink: &Netlink, index: i32, wanted: &[Interface]) -> Result<(), Errno> {
    let mut over = Vec::new();
    netlink.dump(
        Message::new(libc::RTM_GETADDR, 0, &address_body(0, 0, 0, 0)),
        |kind, content| {
            let Some((&[family, prefix, _, scope, i0, i1, i2, i3], rest)) =
                content.split_first_chunk()
            else {
                return;
            };
            let of_link = i32::from_ne_bytes([i0, i1, i2, i3]) == index;
            // Those of the link itself (fe80::) are the kernel's affair.
            if kind != libc::RTM_NEWADDR || !of_link || scope == libc::RT_SCOPE_LINK {
                return;
            }
            let found = attributes(rest).find(|(kind, _)| *kind == libc::IFA_ADDRESS);
            if let Some((_, bytes)) = found
                && !wanted
                    .iter()
                    .any(|w| octets(w.address).1 == bytes && w.prefix == prefix)
            {
                over.push((family, prefix, bytes.to_vec()));
            }
        },
    )?;
    for (family, prefix, bytes) in over {
        let body = address_body(family, prefix, 0, index);
        let message = Message::new(libc::RTM_DELADDR, 0, &body)
            .with(libc::IFA_LOCAL, &bytes)
            .with(libc::IFA_ADDRESS, &bytes);
        match netlink.change(message) {
            Ok(()) | Err(Errno::EADDRNOTAVAIL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    // AF_INET and AF_INET6 fit a byte, as all families of rtnetlink do.
    match address {
        IpAddr::V4(v4) => (2, v4.octets().to_vec()),
        IpAddr::V6(v6) => (10, v6.octets().to_vec()),
    }
}

// -- the resolver ---------------------------------------------------------------------------------

/// Write /etc/resolv.conf, unless the machine's owner or a program of theirs keeps it.
fn write_resolver(network: &Network, root: Root) -> Result<bool, Errno> {
    let top = match root {
        Root::Own => "/",
        Root::OfInit => "/proc/1/root/",
    };
    let top = File::open(top).map_err(|error| errno_of(&error))?;
    let text = resolver_text(network);
    // A link leads to the file of a resolver that runs in the machine.
    let open = |flags: OFlag| {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
            .mode(if flags.contains(OFlag::O_CREAT) {
                Mode::from_bits_truncate(0o644)
            } else {
                Mode::empty()
            })
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(top.as_fd(), RESOLV_CONF, how)
    };
    let file = match open(OFlag::O_RDWR) {
        Err(Errno::ENOENT) => open(OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL),
        other => other,
    };
    let mut file = match file {
        Ok(fd) => File::from(fd),
        Err(Errno::ELOOP) => return Ok(false),
        Err(errno) => return Err(errno),
    };
    let mut write = || -> std::io::Result<bool> {
        if !file.metadata()?.is_file() {
            return Ok(false);
        }
        let mut before = String::new();
        (&file).take(MOST).read_to_string(&mut before)?;
        if before == text {
            return Ok(true);
        }
        if !before.trim().is_empty() && !before.starts_with(MARK) {
            return Ok(false);
        }
        file.set_len(0)?;
        std::io::Seek::rewind(&mut file)?;
        file.write_all(text.as_bytes())?;
        Ok(true)
    };
    write().map_err(|error| errno_of(&error))
}

fn resolver_text(network: &Network) -> String {
    use std::fmt::Write;
    let mut text = MARK.to_owned();
    for resolver in &network.resolvers {
        let _ = writeln!(text, "nameserver {resolver}");
    }
    if !network.search.is_empty() {
        let _ = writeln!(text, "search {}", network.search.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_file_says_what_was_asked() {
        let network = Network {
            mac: None,
            addresses: Vec::new(),
            gateways: Vec::new(),
            mtu: None,
            resolvers: vec!["198.19.0.1".parse().unwrap()],
            search: vec!["vmgr.internal".to_owned(), "example.org".to_owned()],
        };
        assert_eq!(
            resolver_text(&network),
            format!("{MARK}nameserver 198.19.0.1\nsearch vmgr.internal example.org\n")
        );
    }
}
