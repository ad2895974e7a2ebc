//! Holding the machine still, so that its memory and disk can be saved with nothing half-done in them,
//! and making what comes back from such a save a machine of its own.
//!
//! Everything but the agent is stopped by the freezer of cgroups: systemd's own groups and the jobs'.
//! Kernel threads go on; what they would write is written by the sync that follows.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{self, UnlinkatFlags};

use crate::error::Refusal;
use crate::machine::errno_of;

const CGROUPS: &str = "/sys/fs/cgroup";
/// The agent's part of the tree: the agent itself is never frozen, or nobody could thaw it.
const OURS: &str = "vmagent";
const JOBS: &str = "vmagent/exec";
/// A process that waits for a disk in a way that cannot be interrupted freezes when that has come.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);

/// Freeze every process but the agent, then (with `sync`) write everything to disk.
pub fn freeze(sync: bool) -> Result<(), Refusal> {
    let groups = groups();
    for group in &groups {
        set_frozen(group, true)?;
    }
    let deadline = Instant::now() + FREEZE_DEADLINE;
    for group in &groups {
        if let Err(refusal) = wait_frozen(group, deadline) {
            // Half a freeze helps nobody.
            let _ = thaw();
            return Err(refusal);
        }
    }
    if sync {
        unistd::sync();
    }
    Ok(())
}

/// Let every process go on.
pub fn thaw() -> Result<(), Refusal> {
    // Jobs last: by then the services that they may ask are there again.
    let mut result = Ok(());
    for group in groups() {
        result = result.and(set_frozen(&group, false));
    }
    result
}

/// The groups at the top of the tree, and that of the jobs.
fn groups() -> Vec<PathBuf> {
    let entries = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let others = directories.filter(|entry| entry.file_name() != OURS);
    let mut groups: Vec<_> = others.map(|entry| entry.path()).collect();
    groups.sort_unstable();
    groups.push(Path::new(CGROUPS).join(JOBS));
    groups
}

fn set_frozen(group: &Path, frozen: bool) -> Result<(), Refusal> {
    match fs::write(group.join("cgroup.freeze"), if frozen { "1" } else { "0" }) {
        // It went meanwhile: a unit that has ended.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        Err(error) => Err(Refusal::system(
            "cannot hold the machine's processes",
            errno_of(&error),
        )),
        Ok(()) => Ok(()),
    }
}

/// Wait until the kernel says that all of a group is frozen: `frozen 1` in cgroup.events, which can be
/// polled for changes (Documentation/admin-guide/cgroup-v2.rst).
fn wait_frozen(group: &Path, deadline: Instant) -> Result<(), Refusal> {
    let refuse = |errno| Refusal::system("cannot see the machine's processes held", errno);
    let Ok(events) = File::open(group.join("cgroup.events")) else {
        return Ok(()); // it went meanwhile
    };
    loop {
        let mut text = [0; 256];
        let count = match nix::sys::uio::pread(&events, &mut text, 0) {
            Ok(count) => count,
            Err(Errno::ENODEV) => return Ok(()),
            Err(errno) => return Err(refuse(errno)),
        };
        let text = String::from_utf8_lossy(&text[..count]);
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(refuse(Errno::ETIMEDOUT));
        }
        wait_changed(events.as_fd(), left).map_err(refuse)?;
    }
}

fn wait_changed(events: BorrowedFd, left: Duration) -> Result<(), Errno> {
    let mut polled = [PollFd::new(events, PollFlags::POLLPRI)];
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut polled, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Remove the keys by which an SSH server of the machine is known: two machines from one save would be
/// taken for each other. Gives whether there is a server, which needs new ones.
pub fn drop_host_keys(root: &str) -> Result<bool, Errno> {
    const PLACE: &str = "etc/ssh";
    const SERVER: &str = "usr/sbin/sshd";
    let place = crate::boot::place::Place::new(root)?;
    let keys: Vec<_> = (place.entries(PLACE).into_iter())
        .filter(|name| name.starts_with("ssh_host_") && name.contains("_key"))
        .collect();
    let server = place.has(SERVER);
    if keys.is_empty() {
        return Ok(server);
    }
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY;
    let directory = place.open(PLACE, flags)?;
    for key in &keys {
        unistd::unlinkat(&directory, key.as_str(), UnlinkatFlags::NoRemoveDir)?;
    }
    Ok(server)
}

/// Replace the seed that the machine's next boot begins with, where it has one (systemd's): two machines
/// from one save would begin with the same.
pub fn renew_seed(root: &str) -> Result<(), Errno> {
    const SEED: &str = "var/lib/systemd/random-seed";
    let place = crate::boot::place::Place::new(root)?;
    let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_NONBLOCK;
    let seed = match place.open(SEED, flags) {
        Ok(seed) => File::from(seed),
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let renew = || -> std::io::Result<()> {
        if !seed.metadata()?.is_file() {
            return Ok(());
        }
        let mut bytes = [0; 512];
        File::options()
            .read(true)
            .custom_flags(libc::O_CLOEXEC)
            .open("/dev/urandom")?
            .read_exact(&mut bytes)?;
        (&seed).write_all(&bytes)
    };
    renew().map_err(|error| errno_of(&error))
}
