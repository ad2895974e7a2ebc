//! Requests to answers: what is to be done, by whom, to which file.

use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::abi::{AND_DIRECTORY, Attributes, OUT_HEADER, Put, Reader, Short, op};
use crate::handles::{Handle, Handles};
use crate::identity::{People, REGULAR, RISING, Record, TYPE, with_access};
use crate::place::{Found, Place, magic, status_of};
use crate::placeholder::is_placeholder;
use crate::session::Frame;

impl From<Short> for Failure {
    fn from(_: Short) -> Self {
        Self(Errno::INVAL)
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure(pub Errno);

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self(errno)
    }
}

pub type Outcome = Result<(), Failure>;

/// One share.
pub struct Server {
    pub place: Place,
    pub read_only: bool,
    pub handles: Handles,
    pub host: (u32, u32),
    /// Who the machine's default user is, when it has said so.
    pub default: OnceLock<(u32, u32)>,
}

impl Server {
    pub fn people(&self) -> People {
        let (uid, gid) = self.default.get().copied().unwrap_or((0, 0));
        let (host_uid, host_gid) = self.host;
        People {
            host_uid,
            host_gid,
            uid,
            gid,
        }
    }

    /// Do what a request asks; the answer goes behind the room for its header in `out`.
    pub fn serve(&self, frame: &Frame, out: &mut Vec<u8>) -> Outcome {
        out.clear();
        out.resize(OUT_HEADER, 0);
        if self.read_only && changes(frame.opcode) {
            return Err(Errno::ROFS.into());
        }
        let mut body = Reader(frame.body);
        match frame.opcode {
            op::LOOKUP => self.lookup(frame, body.text()?, out),
            op::GETATTR => self.getattr(frame, body, out),
            op::SETATTR => self.setattr(frame, body, out),
            op::READLINK => self.readlink(frame, out),
            op::STATFS => self.statfs(frame, out),
            op::SYMLINK | op::MKNOD | op::MKDIR | op::LINK | op::CREATE | op::TMPFILE => {
                self.make(frame, body, out)
            }
            op::UNLINK | op::RMDIR => self.unlink(frame, body.text()?),
            op::RENAME | op::RENAME2 => self.rename(frame, body),
            op::OPEN | op::OPENDIR => {
                let (flags, more) = (body.u32()?, body.u32()?);
                self.open(frame, flags, more)?;
                put_open(frame.handle, out);
                Ok(())
            }
            op::READ => self.read(body, out),
            op::WRITE => self.write(body, out),
            op::RELEASE | op::RELEASEDIR => {
                self.handles.remove(body.u64()?);
                Ok(())
            }
            op::FSYNC | op::FSYNCDIR => self.fsync(body),
            op::FALLOCATE => self.fallocate(body),
            op::LSEEK => self.lseek(body, out),
            op::COPY_FILE_RANGE => self.copy_range(body, out),
            op::READDIR | op::READDIRPLUS => self.readdir(frame, body, out),
            op::SETXATTR | op::GETXATTR | op::LISTXATTR | op::REMOVEXATTR => {
                self.xattr(frame, body, out)
            }
            _ => Err(Errno::NOSYS.into()),
        }
    }

    /// Open again what an earlier server had open. What is not there any more stays lost.
    pub fn reopen(&self, frame: &Frame) {
        let mut body = Reader(frame.body);
        let (Ok(flags), Ok(directory)) = (body.u32(), body.u32()) else {
            return;
        };
        let flags = flags & !OFlags::TRUNC.bits();
        let kept = Frame {
            opcode: if directory == 0 {
                op::OPEN
            } else {
                op::OPENDIR
            },
            body: &[],
            ..*frame
        };
        let _ = self.open(&kept, flags, 0);
    }

    /// The file that a request is about: by what is open of it, or by its path.
    pub fn target(&self, frame: &Frame) -> Result<Found, Errno> {
        if frame.handle != 0
            && let Ok(handle) = self.handles.get(frame.handle)
        {
            let fd = handle.fd.try_clone().map_err(|_| Errno::MFILE)?;
            let status = status_of(&fd)?;
            return Ok(Found { fd, status });
        }
        self.place
            .find(frame.path.ok_or(Errno::STALE)?, frame.identity)
    }

    /// The directory that a request is about. By its path only: one that is open may have been moved
    /// to where the machine must not see.
    pub fn directory(&self, frame: &Frame) -> Result<Found, Errno> {
        self.place
            .find(frame.path.ok_or(Errno::STALE)?, frame.identity)
    }

    /// What is to be said before an answer: what the directory is like by now, if that was wished for.
    pub fn besides(&self, frame: &Frame) -> Vec<u8> {
        let mut said = Vec::new();
        if frame.how & AND_DIRECTORY != 0
            && let Ok(found) = self.directory(frame)
        {
            said.resize(OUT_HEADER, 0);
            let attributes = self.people().attributes(&found.fd, &found.status);
            attributes.put_attr(&mut said);
        }
        said
    }

    fn getattr(&self, frame: &Frame, mut body: Reader, out: &mut Vec<u8>) -> Outcome {
        const BY_HANDLE: u32 = 1;
        let flags = body.u32()?;
        body.u32()?;
        let number = body.u64()?;
        let found = if flags & BY_HANDLE != 0 {
            let handle = self.handles.get(number)?;
            let fd = handle.fd.try_clone().map_err(|_| Errno::MFILE)?;
            let status = status_of(&fd)?;
            Found { fd, status }
        } else {
            self.target(frame)?
        };
        let attributes = self.people().attributes(&found.fd, &found.status);
        attributes.put_attr(out);
        Ok(())
    }

    fn open(&self, frame: &Frame, flags: u32, more: u32) -> Outcome {
        const KILL: u32 = 1; // FUSE_OPEN_KILL_SUIDGID
        let asked = OFlags::from_bits_retain(flags);
        if frame.opcode == op::OPENDIR {
            let found = self.directory(frame)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let fd = reopened(&found, flags)?;
            return Ok(self.handles.add(frame.handle, Handle::new(fd, false))?);
        }
        let writes = asked & OFlags::ACCMODE != OFlags::RDONLY;
        if self.read_only && (writes || asked.contains(OFlags::TRUNC)) {
            return Err(Errno::ROFS.into());
        }
        let found = self.directory(frame)?; // it is a file, found by its path all the same
        let fd = open_regular(&found, asked)?;
        if more & KILL != 0 {
            self.no_longer_rising(&found)?;
        }
        let append = asked.contains(OFlags::APPEND);
        self.handles.add(frame.handle, Handle::new(fd, append))?;
        Ok(())
    }

    /// Take set-user-ID and set-group-ID off a file, as a write to it does.
    pub fn no_longer_rising(&self, found: &Found) -> Result<(), Errno> {
        let record = Record::read(&found.fd, &found.status);
        let host = u32::from(found.status.stx_mode);
        let shown = self.people().shown(&record, &found.status).mode;
        // Without the group's right to execute, set-group-ID means something else.
        let gone = if shown & 0o010 == 0 { 0o4_000 } else { RISING };
        if shown & gone == 0 {
            return Ok(());
        }
        if host & gone != 0 {
            let mode = Mode::from_raw_mode(host & 0o7_777 & !gone);
            rustix::fs::chmod(magic(&found.fd), mode)?;
        }
        self.record_mode(record, shown & !gone)
            .write(&found.fd, &found.status)
    }

    /// The record of a file that has one, with another mode as the machine is to see it.
    #[allow(clippy::unused_self, reason = "reads better beside the others")]
    pub fn record_mode(&self, record: Record, mode: u32) -> Record {
        let special = record.rdev.is_some();
        Record {
            mode: (special || mode & RISING != 0).then_some(mode & (TYPE | RISING)),
            ..record
        }
        .readable(mode)
    }
}

/// Whether an operation changes the directory in any case.
pub fn changes(opcode: u32) -> bool {
    matches!(
        opcode,
        op::SETATTR
            | op::SYMLINK
            | op::MKNOD
            | op::MKDIR
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::RENAME2
            | op::LINK
            | op::CREATE
            | op::TMPFILE
            | op::WRITE
            | op::FALLOCATE
            | op::COPY_FILE_RANGE
            | op::SETXATTR
            | op::REMOVEXATTR
    )
}

/// Open a regular file that was found. Nothing else is ever opened: pipes would wait, devices act.
pub fn open_regular(found: &Found, asked: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    if u32::from(found.status.stx_mode) & TYPE != REGULAR {
        return Err(Errno::OPNOTSUPP);
    }
    let kept = OFlags::ACCMODE | OFlags::APPEND | OFlags::TRUNC | OFlags::DSYNC | OFlags::SYNC;
    reopened(found, asked & kept)
}

fn reopened(found: &Found, flags: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    if is_placeholder(&found.fd) {
        return Err(Errno::REMOTE);
    }
    let path = magic(&found.fd);
    with_access(&found.fd, &found.status, || {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        rustix::fs::open(path.as_str(), flags, Mode::empty())
    })
}

/// `fuse_open_out`
pub fn put_open(handle: u64, out: &mut Vec<u8>) {
    out.put64(handle);
    out.put64(0);
}

/// What a change left of a file.
pub fn fresh(people: People, found: &Found) -> Result<Attributes, Errno> {
    let status = status_of(&found.fd)?;
    Ok(people.attributes(&found.fd, &status))
}
