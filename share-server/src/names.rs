//! Operations on names: finding, making, removing, renaming.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, mkdirat, renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::abi::{Reader, op};
use crate::handles::Handle;
use crate::identity::{DIRECTORY, REGULAR, Record, TYPE, with_access};
use crate::place::{Found, beneath, check_name, child, magic, status_of};
use crate::server::{Outcome, Server, open_regular, put_open};
use crate::session::Frame;

const SET_GROUP: u32 = 0o2_000;
const STICKY_AND_RIGHTS: u32 = 0o1_777;

/// What is to be made.
struct New<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    mode: u32,
    rdev: u32,
}

impl Server {
    pub fn lookup(&self, frame: &Frame, name: &[u8], out: &mut Vec<u8>) -> Outcome {
        let directory = self.directory(frame)?;
        let name = check_name(name)?;
        let found = with_access(&directory.fd, &directory.status, || {
            child(directory.fd.as_fd(), name)
        })?;
        self.put_found(&found, out);
        Ok(())
    }

    fn put_found(&self, found: &Found, out: &mut Vec<u8>) {
        let attributes = self.people().attributes(&found.fd, &found.status);
        attributes.put_entry(out);
    }

    /// SYMLINK, MKNOD, MKDIR, LINK, CREATE, TMPFILE: what is made is answered like a LOOKUP of it.
    pub fn make(&self, frame: &Frame, mut body: Reader, out: &mut Vec<u8>) -> Outcome {
        let directory = self.directory(frame)?;
        let above = self.people().attributes(&directory.fd, &directory.status);
        // In a directory with set-group-ID, what is made has its group; directories go on so.
        let inherits = above.mode & SET_GROUP != 0;
        let mut new = New {
            name: b"",
            uid: frame.uid,
            gid: if inherits { above.gid } else { frame.gid },
            mode: 0,
            rdev: 0,
        };
        let made = match frame.opcode {
            op::SYMLINK => {
                new.name = check_name(body.text()?)?;
                let target = body.text()?;
                with_access(&directory.fd, &directory.status, || {
                    symlinkat(
                        OsStr::from_bytes(target),
                        &directory.fd,
                        OsStr::from_bytes(new.name),
                    )
                })?;
                child(directory.fd.as_fd(), new.name)?
            }
            op::LINK => {
                body.u64()?;
                new.name = check_name(body.text()?)?;
                self.link(frame, &directory, new.name)?
            }
            op::MKDIR => {
                new.mode = DIRECTORY | body.u32()? & STICKY_AND_RIGHTS;
                body.u32()?;
                new.name = check_name(body.text()?)?;
                if inherits {
                    new.mode |= SET_GROUP;
                }
                self.make_directory(&directory, &new)?
            }
            op::MKNOD => {
                (new.mode, new.rdev) = (body.u32()?, body.u32()?);
                body.u64()?;
                new.name = check_name(body.text()?)?;
                if new.mode & TYPE == 0 {
                    new.mode |= REGULAR;
                }
                let fd = self.make_file(&directory, &new, OFlags::WRONLY | OFlags::EXCL)?;
                let status = status_of(&fd)?;
                Found { fd, status }
            }
            _ => {
                let flags = OFlags::from_bits_retain(body.u32()?);
                new.mode = REGULAR | body.u32()? & !TYPE;
                body.u64()?;
                new.name = body.text().unwrap_or_default();
                let fd = self.create(frame, &directory, &new, flags)?;
                let status = status_of(&fd)?;
                let found = Found { fd, status };
                self.put_found(&found, out);
                put_open(frame.handle, out);
                let append = flags.contains(OFlags::APPEND);
                self.handles
                    .add(frame.handle, Handle::new(found.fd, append))?;
                return Ok(());
            }
        };
        self.put_found(&made, out);
        Ok(())
    }

    fn create(
        &self,
        frame: &Frame,
        directory: &Found,
        new: &New,
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        let kept = flags & (OFlags::ACCMODE | OFlags::APPEND | OFlags::DSYNC | OFlags::SYNC);
        if frame.opcode == op::TMPFILE {
            let exclusive = flags & OFlags::EXCL;
            return self.make_file(directory, new, kept | OFlags::TMPFILE | exclusive);
        }
        check_name(new.name)?;
        loop {
            match self.make_file(directory, new, kept | OFlags::EXCL) {
                Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {}
                other => return other,
            }
            // Somebody on the host was faster.
            match child(directory.fd.as_fd(), new.name) {
                Ok(found) => return open_regular(&found, flags),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Make a file with exactly the mode asked for, and record what the host must not hold.
    fn make_file(&self, directory: &Found, new: &New, flags: OFlags) -> Result<OwnedFd, Errno> {
        let record = self
            .people()
            .record_of(new.uid, new.gid, new.mode, new.rdev);
        let mode = new.mode & STICKY_AND_RIGHTS;
        let private = if record.is_empty() { mode } else { 0o600 };
        let temporary = flags.contains(OFlags::TMPFILE);
        let (name, flags) = if temporary {
            (&b"."[..], flags)
        } else {
            (new.name, flags | OFlags::CREATE)
        };
        let fd = with_access(&directory.fd, &directory.status, || {
            let mode = Mode::from_raw_mode(private);
            if temporary {
                rustix::fs::openat(&directory.fd, ".", flags | OFlags::CLOEXEC, mode)
            } else {
                beneath(directory.fd.as_fd(), name, flags | OFlags::NONBLOCK, mode)
            }
        })?;
        if !record.is_empty() {
            let done = status_of(&fd).and_then(|status| record.write(&fd, &status));
            let more = self.or_remove(done, directory, new, AtFlags::empty(), &record)?;
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode | more))?;
        }
        Ok(fd)
    }

    fn make_directory(&self, directory: &Found, new: &New) -> Result<Found, Errno> {
        let record = self.people().record_of(new.uid, new.gid, new.mode, 0);
        let mode = new.mode & STICKY_AND_RIGHTS;
        let private = Mode::from_raw_mode(if record.is_empty() { mode } else { 0o700 });
        with_access(&directory.fd, &directory.status, || {
            mkdirat(&directory.fd, OsStr::from_bytes(new.name), private)
        })?;
        let found = child(directory.fd.as_fd(), new.name)?;
        if !record.is_empty() {
            let done = record.write(&found.fd, &found.status);
            let more = self.or_remove(done, directory, new, AtFlags::REMOVEDIR, &record)?;
            rustix::fs::chmod(magic(&found.fd), Mode::from_raw_mode(mode | more))?;
        }
        let status = status_of(&found.fd)?;
        Ok(Found { status, ..found })
    }

    /// Where only owners cannot be recorded (no extended attributes there), files are the default
    /// user's; what would be another kind of file is not made. Given is what the host's mode has
    /// beyond the machine's.
    #[allow(clippy::unused_self, reason = "one of the steps of making")]
    fn or_remove(
        &self,
        done: Result<(), Errno>,
        directory: &Found,
        new: &New,
        how: AtFlags,
        record: &Record,
    ) -> Result<u32, Errno> {
        match done {
            Err(Errno::PERM) if record.is_of_rights_alone() => Ok(0),
            Err(errno) => {
                if !new.name.is_empty() {
                    let _ = unlinkat(&directory.fd, OsStr::from_bytes(new.name), how);
                }
                Err(errno)
            }
            Ok(()) => Ok(record.more_rights()),
        }
    }

    fn link(&self, frame: &Frame, directory: &Found, name: &[u8]) -> Result<Found, Errno> {
        let old = if let Ok(handle) = self.handles.get(frame.handle) {
            handle.fd.try_clone().map_err(|_| Errno::MFILE)?
        } else {
            let path = frame.path2.ok_or(Errno::STALE)?;
            self.place.find(path, frame.identity2)?.fd
        };
        let path = magic(&old);
        with_access(&directory.fd, &directory.status, || {
            let name = OsStr::from_bytes(name);
            linkat(
                CWD,
                path.as_str(),
                &directory.fd,
                name,
                AtFlags::SYMLINK_FOLLOW,
            )
        })?;
        let status = status_of(&old)?;
        Ok(Found { fd: old, status })
    }

    pub fn unlink(&self, frame: &Frame, name: &[u8]) -> Outcome {
        let directory = self.directory(frame)?;
        let name = OsStr::from_bytes(check_name(name)?);
        let how = if frame.opcode == op::RMDIR {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        with_access(&directory.fd, &directory.status, || {
            unlinkat(&directory.fd, name, how)
        })?;
        Ok(())
    }

    pub fn rename(&self, frame: &Frame, mut body: Reader) -> Outcome {
        body.u64()?;
        let mut flags = 0;
        if frame.opcode == op::RENAME2 {
            flags = body.u32()?;
            body.u32()?;
        }
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL.into());
        }
        let (from, to) = (check_name(body.text()?)?, check_name(body.text()?)?);
        let (from, to) = (OsStr::from_bytes(from), OsStr::from_bytes(to));
        let old = self.directory(frame)?;
        let path = frame.path2.ok_or(Errno::STALE)?;
        let new = self.place.find(path, frame.identity2)?;
        with_access(&old.fd, &old.status, || {
            with_access(&new.fd, &new.status, || {
                renameat_with(&old.fd, from, &new.fd, to, flags)
            })
        })?;
        Ok(())
    }
}
