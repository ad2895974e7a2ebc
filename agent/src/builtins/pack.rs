//! `pack [--follow] [--] PATH...`: a tar stream of trees, on stdout.
//!
//! Headers are ustar, with pax records (POSIX.1-2008, pax(1)) for what does not fit: long names, times
//! below a second, large numbers.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use tar::{Builder, EntryType, Header};

/// How much is read of a file that does not tell its size: more than any of the kernel's has.
const UNSIZED_MAX: u64 = 16 << 20;

use super::{Options, Report, Usage, options};

const USAGE: &str = "pack [--follow] [--] PATH...";
/// What a ustar number of eight bytes holds.
const MAX_OCTAL_7: u64 = 0o777_7777;
const MAX_OCTAL_11: u64 = 0o777_7777_7777;

pub(super) fn run(arguments: &[OsString], report: &mut Report) -> Result<(), Usage> {
    let Options {
        follow, operands, ..
    } = options(arguments, USAGE)?;
    if operands.is_empty() {
        return Err(Usage(USAGE));
    }
    let stdout = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let written = stdout.and_then(|stdout| {
        let mut packer = Packer {
            tar: Builder::new(BufWriter::with_capacity(65_536, stdout)),
            links: HashMap::new(),
            report,
        };
        for path in operands {
            packer.tree(Path::new(path), follow)?;
        }
        packer.tar.into_inner()?.flush()
    });
    // Whoever reads the stream has gone, or will see that it ends early.
    if let Err(error) = written {
        report.error("stdout", &error);
    }
    Ok(())
}

/// The archive's name for `path`: its last component, or that of what `.` and its like stand for.
fn top_name(path: &Path) -> OsString {
    if let Some(name) = path.file_name() {
        return name.to_owned();
    }
    let real = fs::canonicalize(path).unwrap_or_default();
    real.file_name()
        .map_or_else(|| "root".into(), OsStr::to_owned)
}

struct Packer<'a, W: Write> {
    tar: Builder<W>,
    /// Files with several names: where each was packed.
    links: HashMap<(u64, u64), Vec<u8>>,
    report: &'a mut Report,
}

impl<W: Write> Packer<'_, W> {
    /// Errors are those of writing the stream; those of files are reported.
    fn tree(&mut self, path: &Path, follow: bool) -> io::Result<()> {
        let name = top_name(path).into_encoded_bytes();
        let path = if follow {
            match fs::canonicalize(path) {
                Ok(path) => path,
                Err(error) => {
                    self.report.error(path, &error);
                    return Ok(());
                }
            }
        } else {
            path.to_owned()
        };
        // Not recursion: how deep a tree may be is no business of the stack's.
        let mut todo: Vec<(PathBuf, Vec<u8>)> = vec![(path, name)];
        while let Some((path, name)) = todo.pop() {
            let entries = match self.one(&path, &name) {
                Ok(entries) => entries,
                Err(Failure::File(error)) => {
                    self.report.error(&path, &error);
                    continue;
                }
                Err(Failure::Stream(error)) => return Err(error),
            };
            for entry in entries.into_iter().rev() {
                let inner = [name.as_slice(), b"/", entry.as_bytes()].concat();
                todo.push((path.join(entry), inner));
            }
        }
        Ok(())
    }

    /// Pack one file; what a directory has in it.
    fn one(&mut self, path: &Path, name: &[u8]) -> Result<Vec<OsString>, Failure> {
        let found = fs::symlink_metadata(path).map_err(Failure::File)?;
        let kind = found.file_type();
        if kind.is_file() {
            return self.file(path, name).map(|()| Vec::new());
        }
        if kind.is_dir() {
            // Read before it is announced: a directory that cannot be read is a problem of its own.
            let entries = fs::read_dir(path).and_then(|entries| {
                let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
                names.collect::<io::Result<Vec<_>>>()
            });
            let mut member = Member::new(&found, EntryType::Directory);
            member.name(&[name, b"/"].concat());
            member.put(&mut self.tar, io::empty())?;
            let mut entries = entries.map_err(Failure::File)?;
            entries.sort_unstable();
            return Ok(entries);
        }
        let mut member = if kind.is_symlink() {
            let target = fs::read_link(path).map_err(Failure::File)?;
            let mut member = Member::new(&found, EntryType::Symlink);
            member.link(target.as_os_str().as_bytes());
            member
        } else if kind.is_fifo() {
            Member::new(&found, EntryType::Fifo)
        } else if kind.is_char_device() || kind.is_block_device() {
            let entry_type = if kind.is_char_device() {
                EntryType::Char
            } else {
                EntryType::Block
            };
            let mut member = Member::new(&found, entry_type);
            member.device(found.rdev());
            member
        } else {
            self.report
                .problem(path, "is a socket, which no archive can hold");
            return Ok(Vec::new());
        };
        member.name(name);
        member.put(&mut self.tar, io::empty())?;
        Ok(Vec::new())
    }

    fn file(&mut self, path: &Path, name: &[u8]) -> Result<(), Failure> {
        // It may have become anything since it was looked at: a link is not followed, a pipe not
        // waited for.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(Failure::File)?;
        let found = file.metadata().map_err(Failure::File)?;
        if !found.is_file() {
            self.report.problem(path, "changed while it was read");
            return Ok(());
        }
        let identity = (found.dev(), found.ino());
        if found.nlink() > 1 {
            if let Some(first) = self.links.get(&identity) {
                let mut member = Member::new(&found, EntryType::Link);
                member.name(name);
                member.link(first);
                return member.put(&mut self.tar, io::empty());
            }
            self.links.insert(identity, name.to_vec());
        }
        let mut member = Member::new(&found, EntryType::Regular);
        member.name(name);
        if found.len() == 0 {
            // The kernel's own files say 0 and have content all the same.
            let mut content = Vec::new();
            let read = file.take(UNSIZED_MAX).read_to_end(&mut content);
            read.map_err(Failure::File)?;
            member.size(content.len() as u64);
            return member.put(&mut self.tar, content.as_slice());
        }
        member.size(found.len());
        let mut content = Exactly {
            file,
            left: found.len(),
            short: None,
        };
        member.put(&mut self.tar, &mut content)?;
        if let Some(why) = content.short {
            let what = format!("could not be read to its end ({why}); the rest is zeros");
            self.report.problem(path, what);
        }
        Ok(())
    }
}

/// What failed: the file, or the stream and with it everything.
enum Failure {
    File(io::Error),
    Stream(io::Error),
}

/// As many bytes as the header has promised, whatever the file does meanwhile.
struct Exactly {
    file: File,
    left: u64,
    short: Option<String>,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let buffer = &mut buffer[..most];
        let count = if self.short.is_some() {
            buffer.fill(0);
            most
        } else {
            match self.file.read(buffer) {
                Ok(0) if most > 0 => {
                    self.short = Some("it became shorter".to_owned());
                    return self.read(buffer);
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                Err(error) => {
                    self.short = Some(error.to_string());
                    return self.read(buffer);
                }
            }
        };
        self.left -= count as u64;
        Ok(count)
    }
}

/// A member's header and the pax records that come before it.
struct Member {
    header: Header,
    records: Vec<(&'static str, Vec<u8>)>,
}

impl Member {
    fn new(found: &Metadata, entry_type: EntryType) -> Self {
        let mut member = Self {
            header: Header::new_ustar(),
            records: Vec::new(),
        };
        member.header.set_entry_type(entry_type);
        member.header.set_mode(found.mode() & 0o7777);
        member.header.set_size(0);
        let owner = member.number("uid", u64::from(found.uid()), MAX_OCTAL_7);
        member.header.set_uid(owner);
        let group = member.number("gid", u64::from(found.gid()), MAX_OCTAL_7);
        member.header.set_gid(group);
        let (seconds, nanoseconds) = (found.mtime(), found.mtime_nsec());
        let whole = u64::try_from(seconds).unwrap_or(0).min(MAX_OCTAL_11);
        member.header.set_mtime(whole);
        if nanoseconds != 0 || i64::try_from(whole) != Ok(seconds) {
            member
                .records
                .push(("mtime", decimal_time(seconds, nanoseconds).into_bytes()));
        }
        member
    }

    fn name(&mut self, name: &[u8]) {
        if let Some(header) = self.header.as_ustar_mut() {
            let length = name.len().min(header.name.len());
            header.name[..length].copy_from_slice(&name[..length]);
            if length < name.len() {
                self.records
                    .push(("path", name.strip_suffix(b"/").unwrap_or(name).to_vec()));
            }
        }
    }

    fn link(&mut self, target: &[u8]) {
        if let Some(header) = self.header.as_ustar_mut() {
            let length = target.len().min(header.linkname.len());
            header.linkname[..length].copy_from_slice(&target[..length]);
            if length < target.len() {
                self.records.push(("linkpath", target.to_vec()));
            }
        }
    }

    fn size(&mut self, size: u64) {
        let small = self.number("size", size, MAX_OCTAL_11);
        self.header.set_size(small);
    }

    fn device(&mut self, device: u64) {
        let number = |n: u64| u32::try_from(n).unwrap_or(0);
        // Both fit: Linux's are of 12 and 20 bits.
        let _ = self.header.set_device_major(number(major(device)));
        let _ = self.header.set_device_minor(number(minor(device)));
    }

    /// What the header says of `value`; if that does not fit, a record says it.
    fn number(&mut self, name: &'static str, value: u64, most: u64) -> u64 {
        if value <= most {
            return value;
        }
        self.records.push((name, value.to_string().into_bytes()));
        0
    }

    fn put<W: Write>(mut self, tar: &mut Builder<W>, content: impl Read) -> Result<(), Failure> {
        let records = self.records.iter().map(|(k, v)| (*k, v.as_slice()));
        self.header.set_cksum();
        let put = |tar: &mut Builder<W>| {
            if !self.records.is_empty() {
                tar.append_pax_extensions(records)?;
            }
            tar.append(&self.header, content)
        };
        put(tar).map_err(Failure::Stream)
    }
}

/// Seconds with a fraction, as pax writes times.
fn decimal_time(seconds: i64, nanoseconds: i64) -> String {
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    // -1 s and 250 ms is written -0.750.
    let (whole, fraction) = (-(seconds + 1), 1_000_000_000 - nanoseconds);
    format!("-{whole}.{fraction:09}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_before_1970_are_decimal_too() {
        assert_eq!(super::decimal_time(5, 1), "5.000000001");
        assert_eq!(super::decimal_time(-1, 250_000_000), "-0.750000000");
        assert_eq!(super::decimal_time(-3, 0), "-3.000000000");
    }
}
