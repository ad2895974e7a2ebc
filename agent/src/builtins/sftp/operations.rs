//! What each request does.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, ReadDir};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, chown, fchown, lchown, symlink,
};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{UtimensatFlags, futimens, utimensat};
use nix::sys::statvfs::{FsFlags, Statvfs, fstatvfs, statvfs};
use nix::sys::time::TimeSpec;

use super::listing::Names;
use super::packet::{Answers, Attributes, Fields, Malformed};
use super::{MAX_PACKET, OVERHEAD};

/// Open files and directories of one client; a job may have 1,024 fds.
const MAX_HANDLES: usize = 900;
/// Names in one answer to a READDIR.
const NAMES: usize = 100;
const EXTENSIONS: [(&[u8], &[u8]); 8] = [
    (b"posix-rename@openssh.com", b"1"),
    (b"statvfs@openssh.com", b"2"),
    (b"fstatvfs@openssh.com", b"2"),
    (b"hardlink@openssh.com", b"1"),
    (b"fsync@openssh.com", b"1"),
    (b"lsetstat@openssh.com", b"1"),
    (b"limits@openssh.com", b"1"),
    (b"expand-path@openssh.com", b"1"),
];

mod kind {
    pub const STATUS: u8 = 101;
    pub const HANDLE: u8 = 102;
    pub const DATA: u8 = 103;
    pub const NAME: u8 = 104;
    pub const ATTRS: u8 = 105;
    pub const EXTENDED_REPLY: u8 = 201;
}

/// Why a request gets a STATUS that is not "ok".
enum Fault {
    End,
    Unknown,
    Malformed,
    System(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::System(errno.into())
    }
}

impl From<Malformed> for Fault {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

enum Handle {
    File(File),
    Directory {
        path: PathBuf,
        entries: Option<ReadDir>,
        dots: bool,
    },
}

/// One client's session.
#[derive(Default)]
pub(super) struct Server {
    pub answers: Answers,
    handles: HashMap<u32, Handle>,
    last_handle: u32,
    names: Names,
}

impl Server {
    /// Do what `packet` (without its length) asks; there is one answer to each.
    pub(super) fn answer(&mut self, packet: &[u8]) {
        let mut fields = Fields(&packet[1..]);
        let Ok(id) = fields.u32() else { return };
        if packet[0] == 1 {
            // INIT has the client's version where others have their number.
            self.answers.packet(2, 3, |a| {
                for (name, version) in EXTENSIONS {
                    a.string(name);
                    a.string(version);
                }
            });
            return;
        }
        let before = self.answers.0.len();
        let result = self.operate(packet[0], id, &mut fields);
        if result.is_err() {
            self.answers.0.truncate(before);
        }
        match result {
            Ok(()) if self.answers.0.len() == before => self.status(id, 0, "Success"),
            Ok(()) => {}
            Err(Fault::End) => self.status(id, 1, "End of file"),
            Err(Fault::Unknown) => self.status(id, 8, "Operation unsupported"),
            Err(Fault::Malformed) => self.status(id, 5, "Bad message"),
            Err(Fault::System(error)) => {
                let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                let code = match errno {
                    Errno::ENOENT | Errno::ENOTDIR | Errno::EBADF | Errno::ELOOP => 2,
                    Errno::EPERM | Errno::EACCES | Errno::EFAULT => 3,
                    Errno::ENAMETOOLONG | Errno::EINVAL => 5,
                    _ => 4,
                };
                self.status(id, code, errno.desc());
            }
        }
    }

    fn status(&mut self, id: u32, code: u32, message: &str) {
        self.answers.packet(kind::STATUS, id, |a| {
            a.u32(code);
            a.string(message.as_bytes());
            a.string(b"");
        });
    }

    fn operate(&mut self, request: u8, id: u32, fields: &mut Fields) -> Result<(), Fault> {
        match request {
            3 => self.open(id, fields),
            4 => match self.handles.remove(&number(fields)?) {
                Some(_) => Ok(()),
                None => Err(Errno::EBADF.into()),
            },
            5 => self.read(id, fields),
            6 => {
                let file = self.file(fields)?;
                let offset = fields.u64()?;
                Ok(file.write_all_at(fields.string()?, offset)?)
            }
            7 => {
                let found = fs::symlink_metadata(path(fields)?)?;
                self.attributes(id, &found);
                Ok(())
            }
            8 => {
                let found = match self.handle(fields)? {
                    Handle::File(file) => file.metadata()?,
                    Handle::Directory { path, .. } => fs::metadata(path)?,
                };
                self.attributes(id, &found);
                Ok(())
            }
            9 => set_by_path(path(fields)?, &fields.attributes()?, true),
            10 => match self.handle(fields)? {
                Handle::File(file) => set_by_file(file, &fields.attributes()?),
                Handle::Directory { path, .. } => set_by_path(path, &fields.attributes()?, true),
            },
            11 => {
                let path = path(fields)?.to_owned();
                let entries = Some(fs::read_dir(&path)?);
                let dots = true;
                self.keep(
                    id,
                    Handle::Directory {
                        path,
                        entries,
                        dots,
                    },
                )
            }
            12 => self.list(id, fields),
            13 => Ok(fs::remove_file(path(fields)?)?),
            14 => {
                let path = path(fields)?;
                let mode = fields.attributes()?.mode.unwrap_or(0o777) & 0o7777;
                Ok(fs::DirBuilder::new().mode(mode).create(path)?)
            }
            15 => Ok(fs::remove_dir(path(fields)?)?),
            16 => {
                let name = real_path(path(fields)?)?;
                self.name(id, &name);
                Ok(())
            }
            17 => {
                let found = fs::metadata(path(fields)?)?;
                self.attributes(id, &found);
                Ok(())
            }
            18 => rename_new(path(fields)?, path(fields)?),
            19 => {
                let name = fs::read_link(path(fields)?)?;
                self.name(id, &name);
                Ok(())
            }
            // What it leads to comes first, as OpenSSH has it against the draft; so all clients do.
            20 => Ok(symlink(path(fields)?, path(fields)?)?),
            200 => self.extended(id, fields),
            _ => Err(Fault::Unknown),
        }
    }

    fn open(&mut self, id: u32, fields: &mut Fields) -> Result<(), Fault> {
        const READ: u32 = 1;
        const WRITE: u32 = 2;
        const APPEND: u32 = 4;
        const CREATE: u32 = 8;
        const TRUNCATE: u32 = 16;
        const EXCLUSIVE: u32 = 32;
        let path = path(fields)?;
        let flags = fields.u32()?;
        let mode = fields.attributes()?.mode.unwrap_or(0o666) & 0o7777;
        let mut custom = libc::O_NOCTTY;
        for (flag, native) in [
            (APPEND, libc::O_APPEND),
            (CREATE, libc::O_CREAT),
            (TRUNCATE, libc::O_TRUNC),
            (EXCLUSIVE, libc::O_EXCL),
        ] {
            if flags & flag != 0 {
                custom |= native;
            }
        }
        let file = File::options()
            .read(flags & READ != 0 || flags & WRITE == 0)
            .write(flags & WRITE != 0)
            .mode(mode)
            .custom_flags(custom)
            .open(path)?;
        self.keep(id, Handle::File(file))
    }

    fn keep(&mut self, id: u32, handle: Handle) -> Result<(), Fault> {
        if self.handles.len() >= MAX_HANDLES {
            return Err(Errno::EMFILE.into());
        }
        self.last_handle = self.last_handle.wrapping_add(1);
        while self.handles.contains_key(&self.last_handle) {
            self.last_handle = self.last_handle.wrapping_add(1);
        }
        let number = self.last_handle;
        self.handles.insert(number, handle);
        self.answers
            .packet(kind::HANDLE, id, |a| a.string(&number.to_be_bytes()));
        Ok(())
    }

    fn handle(&self, fields: &mut Fields) -> Result<&Handle, Fault> {
        Ok(self.handles.get(&number(fields)?).ok_or(Errno::EBADF)?)
    }

    fn file(&self, fields: &mut Fields) -> Result<&File, Fault> {
        match self.handle(fields)? {
            Handle::File(file) => Ok(file),
            Handle::Directory { .. } => Err(Errno::EISDIR.into()),
        }
    }

    fn read(&mut self, id: u32, fields: &mut Fields) -> Result<(), Fault> {
        let Some(Handle::File(file)) = self.handles.get(&number(fields)?) else {
            return Err(Errno::EBADF.into());
        };
        let offset = fields.u64()?;
        let wanted = usize::try_from(fields.u32()?).unwrap_or(MAX_PACKET);
        let wanted = wanted.min(MAX_PACKET - OVERHEAD);
        // Straight into the answer: its head, then as much as there is.
        let answers = &mut self.answers;
        let start = answers.0.len();
        answers.u32(0);
        answers.0.push(kind::DATA);
        answers.u32(id);
        answers.u32(0);
        let head = answers.0.len();
        answers.0.resize(head + wanted, 0);
        let count = file.read_at(&mut answers.0[head..], offset)?;
        if count == 0 && wanted > 0 {
            return Err(Fault::End);
        }
        answers.0.truncate(head + count);
        let length = u32::try_from(count).unwrap_or(0);
        answers.0[head - 4..head].copy_from_slice(&length.to_be_bytes());
        answers.set_length(start);
        Ok(())
    }

    fn attributes(&mut self, id: u32, found: &Metadata) {
        self.answers.packet(kind::ATTRS, id, |a| a.metadata(found));
    }

    fn name(&mut self, id: u32, name: &Path) {
        self.answers.packet(kind::NAME, id, |a| {
            a.u32(1);
            a.string(name.as_os_str().as_bytes());
            a.string(name.as_os_str().as_bytes());
            a.u32(0);
        });
    }

    fn list(&mut self, id: u32, fields: &mut Fields) -> Result<(), Fault> {
        let Some(Handle::Directory {
            path,
            entries,
            dots,
        }) = self.handles.get_mut(&number(fields)?)
        else {
            return Err(Errno::EBADF.into());
        };
        let mut found = Vec::new();
        if std::mem::take(dots) {
            for name in [".", ".."] {
                if let Ok(metadata) = fs::metadata(path.join(name)) {
                    found.push((name.as_bytes().to_vec(), metadata));
                }
            }
        }
        while let (true, Some(reader)) = (found.len() < NAMES, entries.as_mut()) {
            match reader.next() {
                // What was removed meanwhile is not there any more.
                Some(Ok(entry)) => {
                    if let Ok(metadata) = entry.metadata() {
                        found.push((entry.file_name().as_bytes().to_vec(), metadata));
                    }
                }
                Some(Err(error)) => return Err(error.into()),
                None => *entries = None,
            }
        }
        if found.is_empty() {
            return Err(Fault::End);
        }
        let names = &mut self.names;
        self.answers.packet(kind::NAME, id, |a| {
            a.u32(u32::try_from(found.len()).unwrap_or(0));
            for (name, metadata) in found {
                a.string(&name);
                a.string(&names.line(&name, &metadata));
                a.metadata(&metadata);
            }
        });
        Ok(())
    }

    fn extended(&mut self, id: u32, fields: &mut Fields) -> Result<(), Fault> {
        match fields.string()? {
            b"posix-rename@openssh.com" => Ok(fs::rename(path(fields)?, path(fields)?)?),
            b"hardlink@openssh.com" => Ok(fs::hard_link(path(fields)?, path(fields)?)?),
            b"fsync@openssh.com" => Ok(self.file(fields)?.sync_all()?),
            b"lsetstat@openssh.com" => set_by_path(path(fields)?, &fields.attributes()?, false),
            b"statvfs@openssh.com" => {
                let found = statvfs(path(fields)?)?;
                self.space(id, &found);
                Ok(())
            }
            b"fstatvfs@openssh.com" => {
                let found = match self.handle(fields)? {
                    Handle::File(file) => fstatvfs(file)?,
                    Handle::Directory { path, .. } => statvfs(path)?,
                };
                self.space(id, &found);
                Ok(())
            }
            b"limits@openssh.com" => {
                self.answers.packet(kind::EXTENDED_REPLY, id, |a| {
                    let data = (MAX_PACKET - OVERHEAD) as u64;
                    for limit in [MAX_PACKET as u64, data, data, MAX_HANDLES as u64] {
                        a.u64(limit);
                    }
                });
                Ok(())
            }
            b"expand-path@openssh.com" => {
                let name = real_path(&expand(fields.string()?))?;
                self.name(id, &name);
                Ok(())
            }
            _ => Err(Fault::Unknown),
        }
    }

    fn space(&mut self, id: u32, found: &Statvfs) {
        let flags = u64::from(found.flags().contains(FsFlags::ST_RDONLY))
            | u64::from(found.flags().contains(FsFlags::ST_NOSUID)) << 1;
        self.answers.packet(kind::EXTENDED_REPLY, id, |a| {
            for value in [
                found.block_size(),
                found.fragment_size(),
                found.blocks(),
                found.blocks_free(),
                found.blocks_available(),
                found.files(),
                found.files_free(),
                found.files_available(),
                found.filesystem_id(),
                flags,
                found.name_max(),
            ] {
                a.u64(value);
            }
        });
    }
}

fn number(fields: &mut Fields) -> Result<u32, Fault> {
    let handle = fields.string()?.try_into().map_err(|_| Errno::EBADF)?;
    Ok(u32::from_be_bytes(handle))
}

/// A name; the empty one is where the client is.
fn path<'a>(fields: &mut Fields<'a>) -> Result<&'a Path, Fault> {
    let name = fields.string()?;
    let name = if name.is_empty() { b"." } else { name };
    Ok(Path::new(OsStr::from_bytes(name)))
}

/// The whole name, of which the last part need not be there.
fn real_path(path: &Path) -> Result<PathBuf, Fault> {
    match fs::canonicalize(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            let name = path.file_name().ok_or(error)?;
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            Ok(fs::canonicalize(parent.unwrap_or(Path::new(".")))?.join(name))
        }
        found => Ok(found?),
    }
}

/// `~` and `~/…`: the user's home, which is where this process began.
fn expand(name: &[u8]) -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    match name {
        b"~" => home(),
        [b'~', b'/', rest @ ..] => home().join(OsStr::from_bytes(rest)),
        _ => PathBuf::from(OsStr::from_bytes(name)),
    }
}

/// Version 3 renames to what is not there yet.
fn rename_new(from: &Path, to: &Path) -> Result<(), Fault> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // A file system that knows no such renames.
        Err(Errno::EINVAL) if fs::symlink_metadata(to).is_err() => Ok(fs::rename(from, to)?),
        Err(Errno::EINVAL) => Err(Errno::EEXIST.into()),
        result => Ok(result?),
    }
}

fn set_by_path(path: &Path, wanted: &Attributes, follow: bool) -> Result<(), Fault> {
    let is_link = !follow && fs::symlink_metadata(path)?.file_type().is_symlink();
    if let Some(size) = wanted.size {
        if is_link {
            return Err(Errno::EINVAL.into());
        }
        File::options().write(true).open(path)?.set_len(size)?;
    }
    if let Some((user, group)) = wanted.owner {
        let set = if follow { chown } else { lchown };
        set(path, Some(user), Some(group))?;
    }
    // After the owner, whose change takes set-uid bits away. Linux knows no modes of links.
    if let (Some(mode), false) = (wanted.mode, is_link) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some((access, change)) = wanted.times {
        let flags = if follow {
            UtimensatFlags::FollowSymlink
        } else {
            UtimensatFlags::NoFollowSymlink
        };
        let (access, change) = (seconds(access), seconds(change));
        utimensat(AT_FDCWD, path, &access, &change, flags)?;
    }
    Ok(())
}

fn set_by_file(file: &File, wanted: &Attributes) -> Result<(), Fault> {
    if let Some(size) = wanted.size {
        file.set_len(size)?;
    }
    if let Some((user, group)) = wanted.owner {
        fchown(file, Some(user), Some(group))?;
    }
    if let Some(mode) = wanted.mode {
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some((access, change)) = wanted.times {
        futimens(file, &seconds(access), &seconds(change))?;
    }
    Ok(())
}

fn seconds(value: u32) -> TimeSpec {
    TimeSpec::new(value.into(), 0)
}
