//! Whose a file is in the machine, and what it is there.
//!
//! On the host every file that a machine makes is the person's, with no set-user-ID or set-group-ID,
//! and a device, a socket or a pipe is an empty file. What differs is in the extended attribute
//! `user.vmgr.stat`: `1 UID GID MODE RDEV`, each `-` where the host's own holds; MODE is octal and
//! stands for the file's type, set-user-ID and set-group-ID, RDEV is the device's number as FUSE
//! writes it. What the person may not read would not tell what is recorded of it: a file with a record
//! keeps the right to be read on the host, and `MODE` says with `UNREADABLE` that in the machine it has
//! not.

use std::os::fd::AsFd;

use rustix::fs::{Mode, Statx, XattrFlags, chmod, getxattr, removexattr, setxattr};
use rustix::io::Errno;

use crate::abi::Attributes;
use crate::place::{generation_of, magic};

/// The attribute's name. All names that begin like it are ours.
pub const RECORD: &str = "user.vmgr.stat";
pub const OURS: &[u8] = b"user.vmgr.";

pub const TYPE: u32 = 0o170_000;
pub const REGULAR: u32 = 0o100_000;
pub const DIRECTORY: u32 = 0o040_000;
pub const LINK: u32 = 0o120_000;
/// Set-user-ID and set-group-ID.
pub const RISING: u32 = 0o6_000;
/// In a recorded mode: in the machine its owner may not read it.
pub const UNREADABLE: u32 = 0o1_000_000;
/// The owner's right to read.
pub const READABLE: u32 = 0o400;
/// For users of the host that the machine does not know.
const NOBODY: u32 = 65_534;

/// Who the person is on the host, and who in the machine.
#[derive(Debug, Clone, Copy)]
pub struct People {
    pub host_uid: u32,
    pub host_gid: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What `user.vmgr.stat` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Record {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mode: Option<u32>,
    pub rdev: Option<u32>,
}

impl Record {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether all that it says is whose it is, and who may read it.
    pub fn is_of_rights_alone(&self) -> bool {
        self.rdev.is_none() && self.mode.is_none_or(|mode| mode & RISING == 0)
    }

    /// The record with what else has to be in it for a file whose mode in the machine is `mode`.
    pub fn readable(self, mode: u32) -> Self {
        if self.is_empty() || mode & READABLE != 0 {
            return self;
        }
        let recorded = self.mode.unwrap_or(mode & TYPE);
        Self {
            mode: Some(recorded | UNREADABLE),
            ..self
        }
    }

    /// What the host's mode has beyond what the machine's says.
    pub fn more_rights(&self) -> u32 {
        match self.mode {
            Some(mode) if mode & UNREADABLE != 0 => READABLE,
            _ => 0,
        }
    }

    pub fn format(&self) -> String {
        let number = |value: Option<u32>| value.map_or("-".to_owned(), |v| v.to_string());
        let mode = self.mode.map_or("-".to_owned(), |mode| format!("{mode:o}"));
        let (uid, gid, rdev) = (number(self.uid), number(self.gid), number(self.rdev));
        format!("1 {uid} {gid} {mode} {rdev}")
    }

    /// None: it is not ours, or of a version to come.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let words: Vec<&str> = text.split(' ').collect();
        let ["1", uid, gid, mode, rdev] = words[..] else {
            return None;
        };
        let number = |word: &str, radix| match word {
            "-" => Some(None),
            _ => u32::from_str_radix(word, radix).ok().map(Some),
        };
        Some(Self {
            uid: number(uid, 10)?,
            gid: number(gid, 10)?,
            mode: number(mode, 8)?,
            rdev: number(rdev, 10)?,
        })
    }

    /// What is recorded of a file; nothing where it has no such attribute or cannot have one.
    pub fn read(fd: impl AsFd, status: &Statx) -> Self {
        if !can_be_recorded(status) {
            return Self::default();
        }
        let mut buffer = [0; 64];
        match getxattr(magic(&fd), RECORD, &mut buffer) {
            Ok(length) => Self::parse(&buffer[..length]).unwrap_or_default(),
            Err(_) => Self::default(),
        }
    }

    /// Record it. A file system without extended attributes keeps no owners: EPERM.
    pub fn write(&self, fd: impl AsFd, status: &Statx) -> Result<(), Errno> {
        if !can_be_recorded(status) {
            return Ok(()); // links belong to the default user
        }
        let path = magic(&fd);
        with_access(&fd, status, || {
            if !self.is_empty() {
                return setxattr(
                    path.as_str(),
                    RECORD,
                    self.format().as_bytes(),
                    XattrFlags::empty(),
                );
            }
            match removexattr(path.as_str(), RECORD) {
                Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
                other => other,
            }
        })
        .map_err(|errno| match errno {
            Errno::OPNOTSUPP => Errno::PERM,
            errno => errno,
        })
    }
}

/// Only files and directories have extended attributes of users, see xattr(7).
fn can_be_recorded(status: &Statx) -> bool {
    matches!(u32::from(status.stx_mode) & TYPE, REGULAR | DIRECTORY)
}

/// Do something to the person's own file that its mode does not let them do: root in the machine may.
pub fn with_access<T>(
    fd: impl AsFd,
    status: &Statx,
    work: impl Fn() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let result = work();
    if !matches!(result, Err(Errno::ACCESS)) {
        return result;
    }
    let path = magic(&fd);
    let mode = u32::from(status.stx_mode) & 0o7_777;
    let more = if u32::from(status.stx_mode) & TYPE == DIRECTORY {
        0o700
    } else {
        0o600
    };
    if mode & more == more || chmod(path.as_str(), Mode::from_raw_mode(mode | more)).is_err() {
        return result;
    }
    let again = work();
    let _ = chmod(path.as_str(), Mode::from_raw_mode(mode));
    again
}

impl People {
    /// What is to be recorded of a new file of the machine's `uid` and `gid`.
    pub fn record_of(&self, uid: u32, gid: u32, mode: u32, rdev: u32) -> Record {
        let kind = mode & TYPE;
        let special = !matches!(kind, REGULAR | DIRECTORY | LINK);
        Record {
            uid: (uid != self.uid).then_some(uid),
            gid: (gid != self.gid).then_some(gid),
            mode: (special || mode & RISING != 0).then_some(kind | mode & RISING),
            rdev: special.then_some(rdev),
        }
        .readable(mode)
    }

    /// What the machine is shown of a file.
    pub fn attributes(&self, fd: impl AsFd, status: &Statx) -> Attributes {
        self.shown(&Record::read(fd, status), status)
    }

    pub fn shown(&self, record: &Record, status: &Statx) -> Attributes {
        let time = |time: rustix::fs::StatxTimestamp| (time.tv_sec.cast_unsigned(), time.tv_nsec);
        let host_mode = u32::from(status.stx_mode);
        let (mut mode, mut rdev) = (
            host_mode,
            device(status.stx_rdev_major, status.stx_rdev_minor),
        );
        if let Some(recorded) = record.mode {
            mode |= recorded & RISING;
            if recorded & UNREADABLE != 0 {
                mode &= !READABLE;
            }
            // Only a plain file can stand for something else.
            if host_mode & TYPE == REGULAR && recorded & TYPE != DIRECTORY {
                mode = mode & !TYPE | recorded & TYPE;
                rdev = record.rdev.unwrap_or(0);
            }
        }
        let own = |host: u32, person: u32, inside: u32| {
            if host == person { inside } else { NOBODY }
        };
        Attributes {
            ino: status.stx_ino,
            generation: generation_of(status),
            size: status.stx_size,
            blocks: status.stx_blocks,
            times: [
                time(status.stx_atime),
                time(status.stx_mtime),
                time(status.stx_ctime),
            ],
            mode,
            nlink: status.stx_nlink,
            uid: (record.uid).unwrap_or_else(|| own(status.stx_uid, self.host_uid, self.uid)),
            gid: (record.gid).unwrap_or_else(|| own(status.stx_gid, self.host_gid, self.gid)),
            rdev,
            blksize: status.stx_blksize,
        }
    }
}

/// A device's number as FUSE writes it (`new_encode_dev`).
fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

#[cfg(test)]
mod tests {
    use super::Record;

    #[test]
    fn records_are_read_as_they_were_written() {
        for record in [
            Record::default(),
            Record {
                uid: Some(0),
                gid: Some(u32::MAX),
                mode: Some(0o104_000),
                rdev: None,
            },
            Record {
                uid: None,
                gid: None,
                mode: Some(0o020_000),
                rdev: Some(0x103),
            },
        ] {
            assert_eq!(Record::parse(record.format().as_bytes()), Some(record));
        }
    }

    #[test]
    fn what_is_no_record_is_none() {
        for text in [
            &b""[..],
            b"2 - - - -",
            b"1 - - -",
            b"1 a - - -",
            b"1 - - 9 -",
            b"\xff",
        ] {
            assert_eq!(Record::parse(text), None);
        }
    }
}
