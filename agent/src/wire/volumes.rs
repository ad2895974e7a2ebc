//! Reading which disk is to be mounted where.

use rmpv::ValueRef;

use super::{BadField, Field, Map, text};
use crate::volume::Mount;

/// The fields of `mount` and `unmount`.
pub fn mount(map: &Map) -> Field<Mount> {
    // What virtio-blk holds of a serial number.
    const MOST: usize = 20;
    let serial = |v: &ValueRef| text(v).filter(|s| (1..=MOST).contains(&s.len()));
    let path = |v: &ValueRef| text(v).filter(|p| p.len() <= 1_024 && !p.contains('\0'));
    let found = Mount {
        serial: map.required("serial", serial)?,
        path: map.required("path", path)?,
        read_only: map.flag("read_only")?,
    };
    let below = found.path.trim_matches('/');
    let odd = |part| matches!(part, "" | "." | "..");
    if !found.path.starts_with('/') || below.split('/').any(odd) {
        return Err(BadField("path"));
    }
    Ok(found)
}
