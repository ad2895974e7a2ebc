//! Operations on content and attributes.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::PoisonError;

use rustix::fs::{
    AtFlags, FallocateFlags, Mode, OFlags, RawDir, SeekFrom, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;

use crate::abi::{Attributes, MAX_DATA, OUT_HEADER, Put, Reader, op};
use crate::identity::{LINK, OURS, RISING, Record, TYPE, with_access};
use crate::place::{Found, child, magic, status_of};
use crate::server::{Failure, Outcome, Server, fresh, open_regular};
use crate::session::Frame;

const DIRENT: usize = 24;
const ENTRY: usize = 128;

impl Server {
    pub fn setattr(&self, frame: &Frame, mut body: Reader, out: &mut Vec<u8>) -> Outcome {
        const MODE: u32 = 1;
        const UID: u32 = 2;
        const GID: u32 = 4;
        const SIZE: u32 = 8;
        const HANDLE: u32 = 64;
        const KILL: u32 = 1 << 11;
        let valid = body.u32()?;
        body.u32()?;
        let number = body.u64()?;
        let size = body.u64()?;
        body.u64()?;
        let seconds = [body.u64()?, body.u64()?, body.u64()?];
        let nanoseconds = [body.u32()?, body.u32()?, body.u32()?];
        let mode = body.u32()?;
        body.u32()?;
        let (uid, gid) = (body.u32()?, body.u32()?);
        let found = self.target(frame)?;
        let host_kind = u32::from(found.status.stx_mode) & TYPE;
        if valid & SIZE != 0 {
            let handle = (valid & HANDLE != 0).then(|| self.handles.get(number));
            if let Some(Ok(handle)) = handle {
                rustix::fs::ftruncate(&handle.fd, size)?;
            } else {
                let fd = open_regular(&found, OFlags::WRONLY)?;
                rustix::fs::ftruncate(fd, size)?;
            }
        }
        if valid & KILL != 0 && valid & MODE == 0 {
            self.no_longer_rising(&found)?;
        }
        if valid & (MODE | UID | GID) != 0 && host_kind != LINK {
            let people = self.people();
            let before = Record::read(&found.fd, &found.status);
            let mut after = before;
            let mut shown = people.shown(&before, &found.status).mode;
            if valid & UID != 0 {
                after.uid = (uid != people.uid).then_some(uid);
                // Who is not the person on the host stays recorded, whoever that is here.
                if found.status.stx_uid != people.host_uid {
                    after.uid = Some(uid);
                }
            }
            if valid & GID != 0 {
                after.gid = (gid != people.gid).then_some(gid);
                if found.status.stx_gid != people.host_gid {
                    after.gid = Some(gid);
                }
            }
            if valid & MODE != 0 {
                shown = shown & TYPE | mode & 0o7_777;
            } else if host_kind != crate::identity::DIRECTORY {
                let gone = if shown & 0o010 == 0 { 0o4_000 } else { RISING };
                shown &= !gone;
            }
            let host = u32::from(found.status.stx_mode);
            let keeps = host & RISING & shown;
            // What the host's own mode says need not be said again.
            after = self.record_mode(after, shown & !keeps);
            if after != before {
                after.write(&found.fd, &found.status)?;
            }
            let host_mode = shown & 0o1_777 | keeps | after.more_rights();
            if host_mode != host & 0o7_777 {
                rustix::fs::chmod(magic(&found.fd), Mode::from_raw_mode(host_mode))?;
            }
        }
        set_times(&found, valid, seconds, nanoseconds)?;
        fresh(self.people(), &found)?.put_attr(out);
        Ok(())
    }

    pub fn readlink(&self, frame: &Frame, out: &mut Vec<u8>) -> Outcome {
        let found = self.target(frame)?;
        let target = rustix::fs::readlinkat(&found.fd, "", Vec::new())?;
        out.extend_from_slice(target.as_bytes());
        Ok(())
    }

    pub fn statfs(&self, frame: &Frame, out: &mut Vec<u8>) -> Outcome {
        let found = self.target(frame)?;
        let answer = rustix::fs::fstatvfs(&found.fd)?;
        for value in [
            answer.f_blocks,
            answer.f_bfree,
            answer.f_bavail,
            answer.f_files,
            answer.f_ffree,
        ] {
            out.put64(value);
        }
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        for value in [
            small(answer.f_bsize),
            small(answer.f_namemax),
            small(answer.f_frsize),
        ] {
            out.put32(value);
        }
        out.extend_from_slice(&[0; 28]);
        Ok(())
    }

    pub fn read(&self, mut body: Reader, out: &mut Vec<u8>) -> Outcome {
        let (number, mut offset) = (body.u64()?, body.u64()?);
        let size = (body.u32()? as usize).min(MAX_DATA);
        let handle = self.handles.get(number)?;
        out.resize(OUT_HEADER + size, 0);
        let mut at = OUT_HEADER;
        while at < out.len() {
            let count = rustix::io::pread(&handle.fd, &mut out[at..], offset)?;
            if count == 0 {
                break;
            }
            at += count;
            offset += count as u64;
        }
        out.truncate(at);
        Ok(())
    }

    pub fn write(&self, mut body: Reader, out: &mut Vec<u8>) -> Outcome {
        const FROM_CACHE: u32 = 1;
        const KILL: u32 = 4;
        let (number, mut offset) = (body.u64()?, body.u64()?);
        let size = body.u32()? as usize;
        let flags = body.u32()?;
        body.bytes(16)?;
        let data = body.bytes(size)?;
        let handle = self.handles.get(number)?;
        // What was changed in memory goes where it is in the file, through whichever handle.
        let placed = if handle.append && flags & FROM_CACHE != 0 {
            let status = status_of(&handle.fd)?;
            let fd = handle.fd.try_clone().map_err(|_| Errno::MFILE)?;
            Some(open_regular(&Found { fd, status }, OFlags::WRONLY)?)
        } else {
            None
        };
        let fd = placed.as_ref().map_or(handle.fd.as_fd(), AsFd::as_fd);
        let mut left = data;
        while !left.is_empty() {
            match rustix::io::pwrite(fd, left, offset) {
                Ok(count) => {
                    left = &left[count..];
                    offset += count as u64;
                }
                Err(Errno::INTR) => {}
                // What is written is written.
                Err(_) if left.len() < data.len() => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        if flags & KILL != 0 {
            let status = status_of(&handle.fd)?;
            let fd = handle.fd.try_clone().map_err(|_| Errno::MFILE)?;
            self.no_longer_rising(&Found { fd, status })?;
        }
        put_count(data.len() - left.len(), out);
        Ok(())
    }

    pub fn fsync(&self, mut body: Reader) -> Outcome {
        const DATA_ONLY: u32 = 1;
        let handle = self.handles.get(body.u64()?)?;
        let done = if body.u32()? & DATA_ONLY == 0 {
            rustix::fs::fsync(&handle.fd)
        } else {
            rustix::fs::fdatasync(&handle.fd)
        };
        Ok(done?)
    }

    pub fn fallocate(&self, mut body: Reader) -> Outcome {
        let (number, offset, length) = (body.u64()?, body.u64()?, body.u64()?);
        let mode = FallocateFlags::from_bits(body.u32()?).ok_or(Errno::OPNOTSUPP)?;
        let handle = self.handles.get(number)?;
        Ok(rustix::fs::fallocate(&handle.fd, mode, offset, length)?)
    }

    pub fn lseek(&self, mut body: Reader, out: &mut Vec<u8>) -> Outcome {
        let (number, offset, whence) = (body.u64()?, body.u64()?, body.u32()?);
        let to = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL.into()),
        };
        let handle = self.handles.get(number)?;
        out.put64(rustix::fs::seek(&handle.fd, to)?);
        Ok(())
    }

    pub fn copy_range(&self, mut body: Reader, out: &mut Vec<u8>) -> Outcome {
        /// A copy holds up nothing but itself, yet an answer should come.
        const MOST: u64 = 64 << 20;
        let (from, mut at) = (body.u64()?, body.u64()?);
        body.u64()?;
        let (to, mut there) = (body.u64()?, body.u64()?);
        let length = usize::try_from(body.u64()?.min(MOST)).unwrap_or(0);
        let (from, to) = (self.handles.get(from)?, self.handles.get(to)?);
        let (at, there) = (Some(&mut at), Some(&mut there));
        let count = rustix::fs::copy_file_range(&from.fd, at, &to.fd, there, length)?;
        put_count(count, out);
        Ok(())
    }

    pub fn readdir(&self, frame: &Frame, mut body: Reader, out: &mut Vec<u8>) -> Outcome {
        let (number, offset) = (body.u64()?, body.u64()?);
        let room = OUT_HEADER + (body.u32()? as usize).min(MAX_DATA);
        let plus = frame.opcode == op::READDIRPLUS;
        let handle = self.handles.get(number)?;
        let _one_at_a_time = handle
            .reading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        rustix::fs::seek(&handle.fd, SeekFrom::Start(offset))?;
        // An open directory may have been moved to where the machine must not see.
        let seen = self.directory(frame)?;
        let mut buffer = vec![MaybeUninit::uninit(); 32_768];
        let mut entries = RawDir::new(&handle.fd, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let length = DIRENT + name.len().next_multiple_of(8);
            if out.len() + length + if plus { ENTRY } else { 0 } > room {
                break;
            }
            if plus {
                self.put_plus(&seen, name, out);
            }
            out.put64(entry.ino());
            out.put64(entry.next_entry_cookie());
            out.put32(u32::try_from(name.len()).unwrap_or(0));
            out.put32(kind_of(entry.file_type()));
            out.extend_from_slice(name);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        Ok(())
    }

    fn put_plus(&self, directory: &Found, name: &[u8], out: &mut Vec<u8>) {
        let found = match name {
            b"." | b".." => None,
            name => child(directory.fd.as_fd(), name).ok(),
        };
        match found {
            Some(found) => self
                .people()
                .attributes(&found.fd, &found.status)
                .put_entry(out),
            // Without a number it is only a name.
            None => Attributes::default().put_entry(out),
        }
    }

    pub fn xattr(&self, frame: &Frame, mut body: Reader, out: &mut Vec<u8>) -> Outcome {
        let found = self.target(frame)?;
        let path = magic(&found.fd);
        let path = path.as_str();
        match frame.opcode {
            op::SETXATTR => {
                let (size, flags) = (body.u32()? as usize, body.u32()?);
                let name = own_name(body.text()?)?;
                let value = body.bytes(size)?;
                let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
                with_access(&found.fd, &found.status, || {
                    rustix::fs::setxattr(path, name, value, flags)
                })?;
            }
            op::GETXATTR => {
                let size = body.u32()? as usize;
                body.u32()?;
                let name = own_name(body.text()?)?;
                let value = with_access(&found.fd, &found.status, || {
                    let mut value = vec![0; 65_536];
                    let length = rustix::fs::getxattr(path, name, &mut value)?;
                    value.truncate(length);
                    Ok(value)
                })?;
                put_sized(&value, size, out)?;
            }
            op::LISTXATTR => {
                let size = body.u32()? as usize;
                let mut names = vec![0u8; 65_536];
                let length = rustix::fs::listxattr(path, &mut names)?;
                let listed: Vec<u8> = names[..length]
                    .split_inclusive(|&byte| byte == 0)
                    .filter(|name| name.starts_with(b"user.") && !name.starts_with(OURS))
                    .flatten()
                    .copied()
                    .collect();
                put_sized(&listed, size, out)?;
            }
            _ => {
                let name = own_name(body.text()?)?;
                with_access(&found.fd, &found.status, || {
                    rustix::fs::removexattr(path, name)
                })?;
            }
        }
        Ok(())
    }
}

fn set_times(found: &Found, valid: u32, seconds: [u64; 3], nanos: [u32; 3]) -> Result<(), Errno> {
    const TIMES: [(u32, u32); 2] = [(16, 128), (32, 256)];
    if valid & (16 | 32) == 0 {
        return Ok(());
    }
    let time = |which: usize| {
        let (given, now) = TIMES[which];
        let tv_nsec = match valid {
            valid if valid & given == 0 => UTIME_OMIT,
            valid if valid & now != 0 => UTIME_NOW,
            _ => nanos[which].into(),
        };
        Timespec {
            tv_sec: seconds[which].cast_signed(),
            tv_nsec,
        }
    };
    let times = Timestamps {
        last_access: time(0),
        last_modification: time(1),
    };
    rustix::fs::utimensat(&found.fd, "", &times, AtFlags::EMPTY_PATH)
}

/// Only names of users, and not ours; the kernel takes ACLs and capabilities to be the host's own.
fn own_name(name: &[u8]) -> Result<&OsStr, Failure> {
    if !name.starts_with(b"user.") {
        return Err(Errno::OPNOTSUPP.into());
    }
    if name.starts_with(OURS) {
        return Err(Errno::PERM.into());
    }
    Ok(OsStr::from_bytes(name))
}

/// A value for somebody who has `size` bytes of room; none: who asks how long it is.
fn put_sized(value: &[u8], size: usize, out: &mut Vec<u8>) -> Outcome {
    if size == 0 {
        put_count(value.len(), out);
    } else if value.len() > size {
        return Err(Errno::RANGE.into());
    } else {
        out.extend_from_slice(value);
    }
    Ok(())
}

/// `fuse_write_out`, `fuse_getxattr_out`
fn put_count(count: usize, out: &mut Vec<u8>) {
    out.put32(u32::try_from(count).unwrap_or(u32::MAX));
    out.put32(0);
}

fn kind_of(kind: rustix::fs::FileType) -> u32 {
    (kind.as_raw_mode() & TYPE) >> 12
}
