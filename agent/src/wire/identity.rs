//! Reading who a machine is to be, and what time it is there.

use rmpv::ValueRef;

use super::{Configure, Field, MAX_ENTROPY, Map, Request, signed, text};

/// The fields of `configure`.
pub fn configure(map: &Map) -> Field<Configure> {
    let hostname = map.optional("hostname", |v| {
        // HOST_NAME_MAX of Linux; the characters are those of RFC 1123.
        text(v).filter(|name| {
            (1..=64).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        })
    })?;
    let entropy = map.optional("entropy", |v| match v {
        ValueRef::Binary(bytes) if bytes.len() <= MAX_ENTROPY => Some(bytes.to_vec()),
        _ => None,
    })?;
    // machine-id(5): 32 lower-case hexadecimal digits.
    let machine_id = map.optional("machine_id", |v| {
        text(v).filter(|id| {
            id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
    })?;
    Ok(Configure {
        hostname,
        entropy,
        machine_id,
        realtime_ns: map.optional("realtime_ns", signed)?,
        renew: map.flag("renew")?,
        thaw: map.flag("thaw")?,
    })
}

/// The fields of `clock`.
pub fn clock(map: &Map) -> Field<Request> {
    let realtime_ns = map.required("realtime_ns", signed)?;
    Ok(Request::Clock { realtime_ns })
}

/// The fields of `time`.
pub fn time(map: &Map) -> Field<Request> {
    let slew_ns = map.optional("slew_ns", signed)?;
    Ok(Request::Time { slew_ns })
}
