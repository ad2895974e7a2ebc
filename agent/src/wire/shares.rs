//! Reading which directory of the host is to be mounted where.

use rmpv::ValueRef;

use super::{BadField, Field, MAX_LABEL, Map, small, text};
use crate::share::Share;
use crate::share::pump::KEY;

/// The fields of `share`.
pub fn share(map: &Map) -> Field<Share> {
    const LONGEST: usize = 4_095;
    let absolute = |v: &ValueRef| {
        text(v).filter(|path| {
            path.starts_with('/') && path.len() <= LONGEST && !path.contains('\0') && path != "/"
        })
    };
    let share = Share {
        slot: slot(map)?,
        path: map.required("path", absolute)?,
        key: map.required("key", |v| match v {
            ValueRef::Binary(bytes) => <[u8; KEY]>::try_from(*bytes).ok(),
            _ => None,
        })?,
        user: map
            .optional("user", text)?
            .unwrap_or_else(|| "root".to_owned()),
        read_only: map.flag("read_only")?,
    };
    if share.user.len() > MAX_LABEL || share.user.contains('\0') {
        return Err(BadField("user"));
    }
    Ok(share)
}

/// Which share `unshare` is about.
pub fn slot(map: &Map) -> Field<u32> {
    const MOST: u16 = 31; // ports of a virtio-serial device
    map.required("slot", |v| small(v).filter(|slot| *slot <= MOST))
        .map(u32::from)
}
