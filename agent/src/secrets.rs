//! A job's secrets as files: in a tmpfs that only the job and its children see, and that is gone when
//! the last of them has ended. Nothing is left to be removed, whatever ends first.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::account::Account;
use crate::machine::errno_of;
use crate::wire::Secrets;

const PLACE: &str = "/run/secrets";

/// Show this process, which is to become the job, its files. To be called as root, in the machine's root.
pub fn place(secrets: &Secrets, account: &Account) -> Result<(), Errno> {
    if secrets.files.is_empty() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is mounted here stays here; what the machine mounts later is seen here as well.
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    if !fs::symlink_metadata(PLACE).is_ok_and(|found| found.is_dir()) {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(PLACE);
        made.map_err(|error| errno_of(&error))?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let tmpfs = |options: &str| mount(Some("secrets"), PLACE, Some("tmpfs"), flags, Some(options));
    // Before Linux 6.4 there is no such option, and a machine has swap only if somebody made it.
    tmpfs("size=1m,mode=0755,noswap").or_else(|_| tmpfs("size=1m,mode=0755"))?;
    for (name, content) in &secrets.files {
        let path = Path::new(PLACE).join(OsStr::from_bytes(name));
        let write = || -> std::io::Result<()> {
            let mut options = File::options();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(path)?;
            file.write_all(content)?;
            fchown(&file, Some(account.uid), Some(account.gid))
        };
        write().map_err(|error| errno_of(&error))?;
    }
    Ok(())
}
