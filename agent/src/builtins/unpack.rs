//! `unpack [--as NAME] [--] DIR`: files from a tar stream on stdin.
//!
//! Nothing is written outside of DIR: names with `..` are refused, and below DIR no link is followed,
//! whoever put it there. A file appears under its name when it is complete: it is written beside it and
//! renamed. Modes are exact, whatever the umask; owners are set only by root.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, futimens, makedev,
    mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{self, Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use tar::{Archive, Entry, EntryType};

use super::{Options, Report, Usage, options};

const USAGE: &str = "unpack [--as NAME] [--] DIR";

pub(super) fn run(arguments: &[OsString], report: &mut Report) -> Result<(), Usage> {
    let Options { name, operands, .. } = options(arguments, USAGE)?;
    let [directory] = operands else {
        return Err(Usage(USAGE));
    };
    let is_plain = |name: &&OsString| {
        Path::new(name).components().count() == 1
            && matches!(
                Path::new(name).components().next(),
                Some(Component::Normal(_))
            )
    };
    if name.is_some_and(|name| !is_plain(&name)) {
        return Err(Usage(USAGE));
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let top = match nix::fcntl::open(Path::new(directory), flags, Mode::empty()) {
        Ok(top) => top,
        Err(errno) => {
            report.error(directory, &errno.into());
            return Ok(());
        }
    };
    let mut unpacker = Unpacker {
        top,
        name: name.map(OsString::as_os_str),
        is_root: unistd::geteuid().is_root(),
        parent: None,
        directories: Vec::new(),
        temporaries: 0,
    };
    let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let read = stdin.and_then(|stdin| unpacker.archive(stdin, report));
    if let Err(error) = read {
        report.problem("the archive", error);
    }
    unpacker.finish(report);
    Ok(())
}

/// What a header says about a file, besides its content.
#[derive(Debug, Clone)]
struct Attributes {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    mtime: TimeSpec,
}

struct Unpacker<'a> {
    top: OwnedFd,
    /// What the archive's first components become.
    name: Option<&'a OsStr>,
    is_root: bool,
    /// The directory that was used last.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Their attributes are set at the end: until then they must be writable, and every file in them
    /// changes their time.
    directories: Vec<(PathBuf, Attributes)>,
    temporaries: u64,
}

impl Unpacker<'_> {
    /// Errors are those of the stream; those of files are reported.
    fn archive(&mut self, stream: impl Read, report: &mut Report) -> io::Result<()> {
        let mut archive = Archive::new(stream);
        for entry in archive.entries()? {
            let mut entry = entry?;
            if entry.header().entry_type().is_pax_global_extensions() {
                continue;
            }
            let shown = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
            let result = self
                .place(&shown)
                .and_then(|path| self.entry(&path, &mut entry));
            if let Err(error) = result {
                report.error(shown, &error);
            }
        }
        Ok(())
    }

    /// Where a member goes, relative to the top: empty for the top itself.
    fn place(&self, name: &Path) -> io::Result<PathBuf> {
        let mut path = PathBuf::new();
        for component in name.components() {
            match component {
                Component::Normal(part) if path.as_os_str().is_empty() => {
                    path.push(self.name.unwrap_or(part));
                }
                Component::Normal(part) => path.push(part),
                Component::RootDir | Component::CurDir => {}
                _ => return Err(io::Error::other("its name leads out of the directory")),
            }
        }
        Ok(path)
    }

    fn entry(&mut self, path: &Path, entry: &mut Entry<impl Read>) -> io::Result<()> {
        let attributes = attributes(entry)?;
        let Some(name) = path.file_name() else {
            // The archive's "." is the directory itself, which is not ours to change.
            return Ok(());
        };
        let header = entry.header();
        let entry_type = header.entry_type();
        if entry_type.is_dir() {
            self.directory(path, name)?;
            self.directories.push((path.to_owned(), attributes));
            return Ok(());
        }
        match entry_type {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(path, name, entry, &attributes)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.put(path, name, |parent, temporary| {
                    Ok(symlinkat(OsStr::from_bytes(&target), parent, temporary)?)
                })?;
                self.set_by_name(path, name, &attributes, true)
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = self.place(Path::new(OsStr::from_bytes(&target)))?;
                let name_of_target = target.file_name().ok_or(Errno::ENOENT)?.to_owned();
                let from = self.open_directory(target.parent().unwrap_or(Path::new("")))?;
                self.put(path, name, |parent, temporary| {
                    let flags = AtFlags::empty();
                    let name = name_of_target.as_os_str();
                    Ok(linkat(&from, name, parent, temporary, flags)?)
                })
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                let kind = match entry_type {
                    EntryType::Fifo => SFlag::S_IFIFO,
                    EntryType::Char => SFlag::S_IFCHR,
                    _ => SFlag::S_IFBLK,
                };
                // Archivers leave them empty where they mean nothing.
                let device = if entry_type == EntryType::Fifo {
                    0
                } else {
                    let major = u64::from(header.device_major()?.unwrap_or(0));
                    makedev(major, u64::from(header.device_minor()?.unwrap_or(0)))
                };
                self.put(path, name, |parent, temporary| {
                    let mode = Mode::from_bits_truncate(0o600);
                    Ok(mknodat(parent, temporary, kind, mode, device)?)
                })?;
                self.set_by_name(path, name, &attributes, false)
            }
            _ => Err(io::Error::other("is of a kind that is not known here")),
        }
    }

    fn directory(&mut self, path: &Path, name: &OsStr) -> io::Result<()> {
        let parent = self.parent_of(path)?;
        match mkdirat(parent, name, Mode::S_IRWXU) {
            Err(Errno::EEXIST) => self.open_directory(path).map(drop),
            other => other.map_err(Into::into),
        }
    }

    fn file(
        &mut self,
        path: &Path,
        name: &OsStr,
        content: &mut Entry<impl Read>,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let is_root = self.is_root;
        self.put(path, name, |parent, temporary| {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            let mut file = File::from(nix::fcntl::openat(parent, temporary, flags, mode)?);
            let size = content.size();
            if io::copy(content, &mut file)? < size {
                return Err(io::Error::other("the archive ends in the middle of it"));
            }
            if is_root {
                fchown(&file, Some(attributes.uid), Some(attributes.gid))?;
            }
            // After the owner: a change of that clears the set-user-ID bit.
            fchmod(&file, attributes.mode)?;
            Ok(futimens(&file, &TimeSpec::UTIME_OMIT, &attributes.mtime)?)
        })
    }

    /// Make something under a name of its own in the directory of `path`, then rename it to `name`.
    fn put(
        &mut self,
        path: &Path,
        name: &OsStr,
        make: impl FnOnce(&OwnedFd, &OsStr) -> io::Result<()>,
    ) -> io::Result<()> {
        self.temporaries += 1;
        let temporary = format!(".vmgr-unpack-{}-{}", std::process::id(), self.temporaries);
        let temporary = OsString::from(temporary);
        let parent = self.parent_of(path)?;
        let made = make(parent, &temporary);
        let result = made.and_then(|()| {
            renameat(parent, temporary.as_os_str(), parent, name).map_err(Into::into)
        });
        // Also after success: renaming one link of a file over another does nothing.
        let _ = unlinkat(parent, temporary.as_os_str(), UnlinkatFlags::NoRemoveDir);
        result
    }

    fn set_by_name(
        &mut self,
        path: &Path,
        name: &OsStr,
        attributes: &Attributes,
        is_link: bool,
    ) -> io::Result<()> {
        let is_root = self.is_root;
        let parent = self.parent_of(path)?;
        if is_root {
            let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
            fchownat(
                parent,
                name,
                Some(attributes.uid),
                Some(attributes.gid),
                flags,
            )?;
        }
        if !is_link {
            // What has just been made by us under this name is no link.
            fchmodat(parent, name, attributes.mode, FchmodatFlags::FollowSymlink)?;
        }
        let follow = UtimensatFlags::NoFollowSymlink;
        utimensat(
            parent,
            name,
            &TimeSpec::UTIME_OMIT,
            &attributes.mtime,
            follow,
        )?;
        Ok(())
    }

    fn parent_of(&mut self, path: &Path) -> io::Result<&OwnedFd> {
        let directory = path.parent().unwrap_or(Path::new(""));
        if self
            .parent
            .as_ref()
            .is_none_or(|(known, _)| known != directory)
        {
            let fd = match self.open_directory(directory) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    self.make_directories(directory)?
                }
                other => other?,
            };
            self.parent = Some((directory.to_owned(), fd));
        }
        match &self.parent {
            Some((_, fd)) => Ok(fd),
            None => Err(Errno::ENOENT.into()),
        }
    }

    /// A directory below the top, by a way without links.
    fn open_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(&self.top, path, how).map_err(|errno| match errno {
            Errno::ELOOP => io::Error::other("there is a symbolic link on the way"),
            other => other.into(),
        })
    }

    /// Directories that the archive does not name itself.
    fn make_directories(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut so_far = PathBuf::new();
        for part in path.components() {
            let parent = self.open_directory(&so_far)?;
            match mkdirat(&parent, part.as_os_str(), Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            so_far.push(part);
        }
        self.open_directory(path)
    }

    /// Set the directories' attributes, the innermost first.
    fn finish(&mut self, report: &mut Report) {
        for (path, attributes) in std::mem::take(&mut self.directories).into_iter().rev() {
            let result = self.open_directory(&path).and_then(|fd| {
                // O_PATH fds take no fchmod; the link in /proc leads to the very same directory.
                let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
                if self.is_root {
                    let flags = AtFlags::empty();
                    let (uid, gid) = (Some(attributes.uid), Some(attributes.gid));
                    fchownat(AT_FDCWD, link.as_str(), uid, gid, flags)?;
                }
                let follow = FchmodatFlags::FollowSymlink;
                fchmodat(AT_FDCWD, link.as_str(), attributes.mode, follow)?;
                let (omit, follow) = (TimeSpec::UTIME_OMIT, UtimensatFlags::FollowSymlink);
                utimensat(AT_FDCWD, link.as_str(), &omit, &attributes.mtime, follow)?;
                fstat(&fd)?;
                Ok(())
            });
            if let Err(error) = result {
                report.error(path, &error);
            }
        }
    }
}

fn attributes(entry: &mut Entry<impl Read>) -> io::Result<Attributes> {
    let mut mtime = None;
    if let Ok(Some(records)) = entry.pax_extensions() {
        for record in records.flatten() {
            if record.key_bytes() == b"mtime" {
                mtime = record.value().ok().and_then(parse_time);
            }
        }
    }
    let header = entry.header();
    let seconds = i64::try_from(header.mtime()?).unwrap_or(0);
    let number = |n: u64| u32::try_from(n).map_err(|_| io::Error::other("has an owner beyond all"));
    Ok(Attributes {
        mode: Mode::from_bits_truncate(header.mode()? & 0o7777),
        uid: Uid::from_raw(number(header.uid()?)?),
        gid: Gid::from_raw(number(header.gid()?)?),
        mtime: mtime.unwrap_or(TimeSpec::new(seconds, 0)),
    })
}

/// A pax time: seconds, perhaps negative, perhaps with a fraction of any length.
fn parse_time(text: &str) -> Option<TimeSpec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    Some(if whole.starts_with('-') && nanoseconds > 0 {
        TimeSpec::new(seconds - 1, 1_000_000_000 - nanoseconds)
    } else {
        TimeSpec::new(seconds, nanoseconds)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_are_read() {
        for (text, expected) in [
            ("5", Some((5, 0))),
            ("5.5", Some((5, 500_000_000))),
            ("5.0000000019", Some((5, 1))),
            ("-0.750", Some((-1, 250_000_000))),
            ("-3", Some((-3, 0))),
            ("x", None),
            ("1.-5", None),
            ("", None),
        ] {
            let found = parse_time(text).map(|t| (t.tv_sec(), t.tv_nsec()));
            assert_eq!(found, expected, "{text}");
        }
    }
}
