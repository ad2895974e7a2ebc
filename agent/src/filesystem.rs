//! Growing file systems to their disks, online.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::stat::{fstat, major, minor};
use nix::sys::statfs::fstatfs;

use crate::error::Refusal;
use crate::launch::Root;
use crate::machine::errno_of;

/// linux/magic.h
const EXT4_SUPER_MAGIC: i64 = 0xEF53;
/// linux/fs.h: `_IOR(0x12, 114, size_t)`
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
/// fs/ext4/ext4.h (uapi linux/ext4.h): `_IOW('f', 16, __u64)`
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;

/// Make the root file system as large as its disk; its size in bytes then.
pub fn grow(root: Root) -> Result<u64, Refusal> {
    let top = match root {
        Root::Own => "/",
        Root::OfInit => "/proc/1/root/",
    };
    let top = File::open(top)
        .map_err(|error| Refusal::system("cannot open the root", errno_of(&error)))?;
    grow_mounted(&top)
}

/// The same for the file system that the directory `top` is in.
pub fn grow_mounted(top: &File) -> Result<u64, Refusal> {
    let step = |what| move |errno| Refusal::system(what, errno);
    let found = fstatfs(top).map_err(step("cannot see the file system"))?;
    if found.filesystem_type().0 != EXT4_SUPER_MAGIC {
        return Err(Refusal::new("unsupported", "the file system is not ext4"));
    }
    let device = fstat(top)
        .map_err(step("cannot see the file system"))?
        .st_dev;
    let disk = File::open(device_path(major(device), minor(device)))
        .map_err(|error| Refusal::system("cannot open the disk", errno_of(&error)))?;
    let mut disk_bytes: u64 = 0;
    // SAFETY: BLKGETSIZE64 writes one u64.
    Errno::result(unsafe { libc::ioctl(disk.as_raw_fd(), BLKGETSIZE64, &raw mut disk_bytes) })
        .map_err(step("cannot see the size of the disk"))?;
    let block = u64::try_from(found.block_size())
        .unwrap_or(4_096)
        .max(1_024);
    let blocks: u64 = disk_bytes / block;
    // SAFETY: EXT4_IOC_RESIZE_FS reads one u64. The kernel leaves a file system that is as large alone.
    Errno::result(unsafe { libc::ioctl(top.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) })
        .map_err(step("cannot grow the file system"))?;
    Ok(blocks * block)
}

/// The block device of that number, in the agent's own /dev (devtmpfs names it as sysfs does).
fn device_path(major: u64, minor: u64) -> PathBuf {
    let link = format!("/sys/dev/block/{major}:{minor}");
    let name = std::fs::read_link(link).unwrap_or_default();
    PathBuf::from("/dev").join(name.file_name().unwrap_or_default())
}
