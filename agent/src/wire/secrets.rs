//! Reading what a job is given that nobody else is to see.

use rmpv::ValueRef;

use super::{BadField, Field, Map, bytes, list};

const MAX_FILES: usize = 32;

/// The `secrets` of `exec`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Secrets {
    /// Something of what the job was given is one: the machine must not be saved while it runs.
    pub private: bool,
    /// Names, without a slash, and contents.
    pub files: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The fields of `exec` that are about secrets.
pub fn secrets(map: &Map) -> Field<Secrets> {
    let files = map
        .optional("secret_files", |value| list(value, file))?
        .unwrap_or_default();
    if files.len() > MAX_FILES {
        return Err(BadField("secret_files"));
    }
    let private = map.flag("private")? || !files.is_empty();
    Ok(Secrets { private, files })
}

fn file(value: &ValueRef) -> Option<(Vec<u8>, Vec<u8>)> {
    let ValueRef::Array(parts) = value else {
        return None;
    };
    let [name, ValueRef::Binary(content)] = &parts[..] else {
        return None;
    };
    let name = bytes(name)?;
    let plain = !name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..";
    plain.then(|| (name, content.to_vec()))
}
