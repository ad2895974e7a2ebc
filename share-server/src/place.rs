//! The shared directory, and the only way to a file in it.
//!
//! Every path is walked by the kernel with `openat2`: beneath the directory, through no link, onto no
//! other file system. What was found is compared with what the machine had found under that name
//! before, so a directory that was moved away is not followed to where it is now.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx};
use rustix::io::Errno;

/// The shared directory.
pub struct Place {
    top: OwnedFd,
}

/// A file of which the machine says which it is: `st_ino` and what `generation_of` gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub ino: u64,
    pub generation: u64,
}

/// A file that was found, and what it is.
pub struct Found {
    pub fd: OwnedFd,
    pub status: Statx,
}

impl Place {
    /// Share the directory at `path`.
    pub fn new(path: &OsStr) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map(|top| Self { top })
    }

    /// The file that the machine knows as `path`; ESTALE when it is another by now.
    pub fn find(&self, path: &[u8], identity: Identity) -> Result<Found, Errno> {
        let fd = self.walk(path).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => Errno::STALE,
            errno => errno,
        })?;
        let status = status_of(&fd)?;
        if !path.is_empty() && identity_of(&status) != identity {
            return Err(Errno::STALE);
        }
        Ok(Found { fd, status })
    }

    /// One name after the other: the last name of a walk with O_PATH sets off no automount, and each
    /// is the last.
    fn walk(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut at = beneath(self.top.as_fd(), b".", OFlags::PATH, Mode::empty())?;
        if !path.is_empty() {
            for name in path.split(|&byte| byte == b'/') {
                at = beneath(at.as_fd(), name, OFlags::PATH, Mode::empty())?;
            }
        }
        Ok(at)
    }
}

/// Open `path` below `directory`, itself never a link.
pub fn beneath(
    directory: BorrowedFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    // With O_PATH | O_NOFOLLOW a last component that is a link is the link, also for NO_SYMLINKS.
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        match openat2(directory, OsStr::from_bytes(path), flags, mode, resolve) {
            // Something was renamed meanwhile, see openat2(2).
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// A file in `directory` by its one name.
pub fn child(directory: BorrowedFd, name: &[u8]) -> Result<Found, Errno> {
    let fd = beneath(directory, name, OFlags::PATH, Mode::empty())?;
    let status = status_of(&fd)?;
    Ok(Found { fd, status })
}

/// See that `name` is one name.
pub fn check_name(name: &[u8]) -> Result<&[u8], Errno> {
    match name {
        b"" | b"." | b".." => Err(Errno::INVAL),
        _ if name.contains(&b'/') || name.contains(&0) => Err(Errno::INVAL),
        _ if name.len() > 255 => Err(Errno::NAMETOOLONG),
        _ => Ok(name),
    }
}

/// What a file is.
pub fn status_of(fd: impl AsFd) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    // Without asking a server whether what is known is still so would be wrong for a network's file
    // system; asking is the default.
    statx(fd, "", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, wanted)
}

/// Which file it is.
pub fn identity_of(status: &Statx) -> Identity {
    Identity {
        ino: status.stx_ino,
        generation: generation_of(status),
    }
}

/// A number that another file of the same `st_ino` does not have: of its device and birth.
pub fn generation_of(status: &Statx) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let birth = if status.stx_mask & StatxFlags::BTIME.bits() == 0 {
        (0, 0)
    } else {
        (status.stx_btime.tv_sec, status.stx_btime.tv_nsec)
    };
    for value in [
        u64::from(status.stx_dev_major) << 32 | u64::from(status.stx_dev_minor),
        birth.0.cast_unsigned(),
        u64::from(birth.1),
    ] {
        for byte in value.to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash | 1
}

/// A name by which the kernel reaches what an fd is open for, links not followed any further.
pub fn magic(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}
