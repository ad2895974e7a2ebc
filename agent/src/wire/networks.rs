//! Reading what the network is to be.

use std::net::{IpAddr, SocketAddr};

use rmpv::ValueRef;

use super::{BadField, Field, Map, list, number, small, text};
use crate::connection::Connect;
use crate::network::{Interface, Network};

/// The fields of `network`.
pub fn network(map: &Map) -> Field<Network> {
    const MOST: usize = 8;
    // A domain's name, RFC 1035; the characters are those that resolv.conf(5) takes without quotes.
    let domain = |v: &ValueRef| {
        text(v).filter(|name| {
            (1..=253).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        })
    };
    let few = |found: Option<Vec<IpAddr>>| found.unwrap_or_default();
    let network = Network {
        mac: map.optional("mac", |v| match v {
            ValueRef::Binary(bytes) => <[u8; 6]>::try_from(*bytes).ok(),
            _ => None,
        })?,
        addresses: map
            .optional("addresses", |v| list(v, interface))?
            .unwrap_or_default(),
        gateways: few(map.optional("gateways", |v| list(v, address))?),
        mtu: map.optional("mtu", |v| {
            number(v)
                .filter(|mtu| (1280..=65_520).contains(mtu))
                .and_then(|mtu| u32::try_from(mtu).ok())
        })?,
        resolvers: few(map.optional("resolvers", |v| list(v, address))?),
        search: map
            .optional("search", |v| list(v, domain))?
            .unwrap_or_default(),
    };
    let lengths = [
        network.addresses.len(),
        network.gateways.len(),
        network.resolvers.len(),
        network.search.len(),
    ];
    if lengths.iter().any(|length| *length > MOST) {
        return Err(BadField("network"));
    }
    Ok(network)
}

/// The fields of `connect`.
pub fn connect(map: &Map) -> Field<Connect> {
    const MOST: usize = 8;
    let port = map.required("port", small)?;
    let addresses = map.required("addresses", |v| list(v, address))?;
    if addresses.is_empty() || addresses.len() > MOST || port == 0 {
        return Err(BadField("addresses"));
    }
    Ok(Connect {
        addresses: addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .collect(),
        datagrams: map.flag("datagrams")?,
    })
}

/// An address: 4 or 16 bytes.
fn address(value: &ValueRef) -> Option<IpAddr> {
    let ValueRef::Binary(bytes) = value else {
        return None;
    };
    let v4 = <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from))
}

/// An address and, in one more byte, the length of its prefix.
fn interface(value: &ValueRef) -> Option<Interface> {
    let ValueRef::Binary(bytes) = value else {
        return None;
    };
    let (&prefix, bytes) = bytes.split_last()?;
    let address = address(&ValueRef::Binary(bytes))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= most).then_some(Interface { address, prefix })
}
