//! Loading the kernel modules that the root, the port and the network need.

use std::fs::{self, File};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::machine::errno_of;

/// The list of what the root and the port need.
pub const FIRST: &str = "/modules.load";
/// The list of what the network needs, loaded while the root is being mounted.
pub const NETWORK: &str = "/modules.network";

/// Load what `list` names: one path of an uncompressed module per line, dependencies first.
/// What could not be loaded is told to `log`; whether it was needed will show.
pub fn load(list: &str, log: impl Fn(&str)) {
    let list = fs::read_to_string(list).unwrap_or_default();
    for path in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let loaded = File::open(path)
            .map_err(|error| errno_of(&error))
            .and_then(|file| load_file(&file));
        if let Err(errno) = loaded {
            log(&format!("cannot load {path}: {}", errno.desc()));
        }
    }
}

/// Load an uncompressed module, all it depends on being there; one that is there is left as it is.
pub fn load_file(file: &File) -> Result<(), Errno> {
    match finit_module(file, c"", ModuleInitFlags::empty()) {
        Err(Errno::EEXIST) => Ok(()),
        result => result,
    }
}
