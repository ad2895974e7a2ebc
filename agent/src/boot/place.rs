//! Paths in the machine's root, resolved as the machine would: a link in an image leads nowhere else.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};

/// A directory that is taken for the root.
pub struct Place(OwnedFd);

impl Place {
    /// The directory at `path` in the agent's own root.
    pub fn new(path: &str) -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, Mode::empty()).map(Self)
    }

    /// Open `path` in it.
    pub fn open(&self, path: impl AsRef<Path>, flags: OFlag) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(if flags.contains(OFlag::O_CREAT) {
                Mode::from_bits_truncate(0o644)
            } else {
                Mode::empty()
            })
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(self.0.as_fd(), path.as_ref(), how)
    }

    /// Where `path` really is, links followed, as seen from inside.
    pub fn path_of(&self, path: &str) -> Result<String, Errno> {
        let name = |fd: &OwnedFd| {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            link.map_err(|error| crate::machine::errno_of(&error))
        };
        let (whole, top) = (name(&self.open(path, OFlag::O_PATH)?)?, name(&self.0)?);
        let inside = whole.strip_prefix(top).map_err(|_| Errno::EXDEV)?;
        Ok(format!("/{}", inside.display()))
    }

    /// The names in a directory; none when it is not there.
    #[must_use]
    pub fn entries(&self, path: &str) -> Vec<String> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let Ok(fd) = self.open(path, flags) else {
            return Vec::new();
        };
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let Ok(entries) = std::fs::read_dir(link) else {
            return Vec::new();
        };
        let names = entries.flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.into_string().ok()).collect()
    }

    /// The beginning of a text file.
    pub fn read(&self, path: &str) -> Result<String, Errno> {
        const MOST: u64 = 65_536;
        let file = File::from(self.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?);
        let mut bytes = Vec::new();
        file.take(MOST)
            .read_to_end(&mut bytes)
            .map_err(|error| crate::machine::errno_of(&error))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether `path` is there.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.open(path, OFlag::O_PATH).is_ok()
    }

    /// The directory `path`, made (0755) with its parents where it is missing.
    pub fn directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match self.open(path, flags) {
            Err(Errno::ENOENT) => {}
            other => return other,
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = if parent.is_empty() {
            self.open(".", flags)?
        } else {
            self.directory(parent)?
        };
        match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => self.open(path, flags),
            Err(errno) => Err(errno),
        }
    }

    /// Mount something on `path`.
    pub fn mount(
        &self,
        path: &str,
        source: &str,
        kind: &str,
        flags: MsFlags,
        data: &str,
    ) -> Result<(), Errno> {
        let target = self.directory(path)?;
        let target = format!("/proc/self/fd/{}", target.as_raw_fd());
        mount(Some(source), target.as_str(), Some(kind), flags, Some(data))
    }

    /// Write a new file, where there is none.
    pub fn write(&self, path: &str, text: &str) -> Result<(), Errno> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        File::from(self.open(path, flags)?)
            .write_all(text.as_bytes())
            .map_err(|error| crate::machine::errno_of(&error))
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
