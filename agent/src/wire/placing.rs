//! Reading what a machine is to know of the host it is on.

use rmpv::ValueRef;

use super::{BAD_MAP, Field, Map, bytes, list, text};
use crate::frame::Violation;

/// All that the host wants to be there.
#[derive(Debug, PartialEq, Eq)]
pub struct Placing {
    pub files: Vec<Placed>,
    /// PEM, one each.
    pub certificates: Vec<Vec<u8>>,
}

/// One file.
#[derive(Debug, PartialEq, Eq)]
pub struct Placed {
    /// Absolute.
    pub path: String,
    pub content: Vec<u8>,
    /// A link to this is made instead, where it is there.
    pub link: Option<String>,
    /// What the image has in its place may go.
    pub replace: bool,
}

/// The input of `place`.
pub fn placing(payload: &[u8]) -> Result<Placing, Violation> {
    let map = Map::read(payload)?;
    let read = || -> Field<Placing> {
        Ok(Placing {
            files: map.required("files", |value| list(value, placed))?,
            certificates: map
                .optional("certificates", |value| list(value, bytes))?
                .unwrap_or_default(),
        })
    };
    read().map_err(|_| BAD_MAP)
}

fn placed(value: &ValueRef) -> Option<Placed> {
    let ValueRef::Map(fields) = value else {
        return None;
    };
    let fields = Map(fields.clone());
    let read = || -> Field<Placed> {
        let plain = |value: &ValueRef| {
            text(value).filter(|path| path.starts_with('/') && !path.contains(['\0', '\n']))
        };
        Ok(Placed {
            path: fields.required("path", plain)?,
            content: fields.required("content", |value| match value {
                ValueRef::Binary(bytes) => Some(bytes.to_vec()),
                _ => None,
            })?,
            link: fields.optional("link", plain)?,
            replace: fields.flag("replace")?,
        })
    };
    read().ok()
}
