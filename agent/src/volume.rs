//! Volumes: disks for data that come and go while the machine runs.
//!
//! A disk is known by its serial number and mounted once. Asking again for what is there already is
//! answered like the first time: who asks may have died and not have heard the answer.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::{major, minor};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::boot::devices;
use crate::boot::place::Place;
use crate::error::Refusal;
use crate::filesystem::grow_mounted;
use crate::launch::Root;

/// How long a disk may take to appear that has been plugged in.
const DEVICE_WAIT: Duration = Duration::from_secs(20);
/// What is deleted goes back to the host; the kernel need not fill tables with zeros in the background,
/// since a file's holes are zeros.
const OPTIONS: &str = "discard,noinit_itable";

/// Which disk is to be where.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    pub serial: String,
    /// Absolute, as the machine sees it.
    pub path: String,
    pub read_only: bool,
}

/// Mount a disk and, unless it is only read, grow its file system to it; the disk's size in bytes.
pub fn mount(root: Root, asked: &Mount) -> Result<u64, Refusal> {
    let disk = devices::wait_for(DEVICE_WAIT, || devices::disk(&asked.serial))
        .ok_or_else(|| Refusal::new("system", "the disk does not appear"))?;
    let step = |what| move |errno| Refusal::system(what, errno);
    let place = place(root).map_err(step("cannot open the root"))?;
    let relative = asked.path.trim_matches('/');
    if !is_mounted(&disk) {
        let mut flags = MsFlags::MS_NOATIME;
        if asked.read_only {
            flags |= MsFlags::MS_RDONLY;
        }
        place
            .mount(relative, &disk.to_string_lossy(), "ext4", flags, OPTIONS)
            .map_err(step("cannot mount the volume"))?;
    }
    if asked.read_only {
        return Ok(0);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let top = place
        .open(relative, flags)
        .map_err(step("cannot open the volume"))?;
    // Many programs want an empty directory; e2fsck makes it anew where it needs it.
    let _ = unlinkat(&top, "lost+found", UnlinkatFlags::RemoveDir);
    grow_mounted(&File::from(top))
}

/// Unmount a disk, so that it can be taken out. Nothing of it is in use afterwards.
pub fn unmount(root: Root, asked: &Mount) -> Result<(), Refusal> {
    let step = |what| move |errno| Refusal::system(what, errno);
    let Some(disk) = devices::disk(&asked.serial) else {
        return Ok(());
    };
    if is_mounted(&disk) {
        let place = place(root).map_err(step("cannot open the root"))?;
        // The mount, not what is below it.
        let top = place
            .open(
                asked.path.trim_matches('/'),
                OFlag::O_PATH | OFlag::O_DIRECTORY,
            )
            .map_err(step("cannot open the volume"))?;
        let link = format!("/proc/self/fd/{}", top.as_raw_fd());
        let path = fs::read_link(&link)
            .map_err(|e| step("cannot open the volume")(crate::machine::errno_of(&e)))?;
        // Of what is not below this process's root the kernel gives the path in the machine's.
        let path = match root {
            Root::Own => path,
            Root::OfInit => Path::new("/proc/1/root").join(path.strip_prefix("/").unwrap_or(&path)),
        };
        if fs::metadata(&link).ok().map(|m| m.dev()) != device_of(&disk) {
            return Err(busy());
        }
        // An open directory would keep it busy.
        drop(top);
        match umount2(&path, MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EBUSY) => return Err(busy()),
            other => other.map_err(step("cannot unmount the volume"))?,
        }
    }
    // Another mount of it, in another namespace too, would lose its disk.
    let held = File::options()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_CLOEXEC)
        .open(&disk);
    match held {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            mount(root, asked)?;
            Err(busy())
        }
        _ => Ok(()),
    }
}

fn busy() -> Refusal {
    Refusal::system("something in the machine uses the volume", Errno::EBUSY)
}

fn place(root: Root) -> Result<Place, Errno> {
    Place::new(match root {
        Root::Own => "/",
        Root::OfInit => "/proc/1/root/",
    })
}

/// Whether the block device is mounted where the machine's programs see it.
fn is_mounted(disk: &Path) -> bool {
    let Some(device) = device_of(disk) else {
        return false;
    };
    let wanted = format!("{}:{}", major(device), minor(device));
    // proc(5): the third field is the device's number.
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .any(|line| line.split(' ').nth(2) == Some(wanted.as_str()))
}

/// The number of a block device, and so of what is mounted from it.
fn device_of(disk: &Path) -> Option<u64> {
    fs::metadata(PathBuf::from(disk)).ok().map(|m| m.rdev())
}
