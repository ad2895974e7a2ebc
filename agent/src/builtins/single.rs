//! `stat`, `read` and `write`: one file at a time.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::{Options, Report, Usage, options};

/// `stat [--list] [--] PATH`: one line of JSON on stdout. Links are followed; what is not there is
/// `missing`. With `--list` a line for each entry of a directory.
pub(super) fn stat(arguments: &[OsString], report: &mut Report) -> Result<(), Usage> {
    const USAGE: &str = "stat [--list] [--] PATH";
    let asked = options(arguments, USAGE)?;
    let [path] = asked.operands else {
        return Err(Usage(USAGE));
    };
    let path = Path::new(path);
    if asked.list {
        super::list::run(path, report);
        return Ok(());
    }
    let line = match fs::metadata(path) {
        Ok(found) => format!(
            "{{{}, \"mark\": \"{}\"}}\n",
            fields(&found),
            mark(Some(&found))
        ),
        Err(error) if is_missing(&error) => "{\"kind\": \"missing\"}\n".to_owned(),
        Err(error) => {
            report.error(path, &error);
            return Ok(());
        }
    };
    if let Err(error) = io::stdout().write_all(line.as_bytes()) {
        report.error("stdout", &error);
    }
    Ok(())
}

/// What is told of a file, as the inside of a JSON object.
pub(super) fn fields(found: &Metadata) -> String {
    format!(
        "\"kind\": \"{}\", \"size\": {}, \"mode\": {}, \"uid\": {}, \"gid\": {}, \"mtime\": {}",
        kind(found),
        found.len(),
        found.mode() & 0o7777,
        found.uid(),
        found.gid(),
        found.mtime(),
    )
}

/// What changes when a file is written to or replaced.
fn mark(found: Option<&Metadata>) -> String {
    found.map_or_else(
        || "missing".to_owned(),
        |found| {
            let (device, inode, size) = (found.dev(), found.ino(), found.len());
            let (seconds, rest) = (found.ctime(), found.ctime_nsec());
            format!("{device}-{inode}-{size}-{seconds}.{rest:09}")
        },
    )
}

/// `read [--] PATH`: its content on stdout.
pub(super) fn read(arguments: &[OsString], report: &mut Report) -> Result<(), Usage> {
    let path = operand(arguments, "read [--] PATH")?;
    let copy = || -> io::Result<()> {
        let mut file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(nix::errno::Errno::EISDIR.into());
        }
        let mut stdout = File::from(standard(io::stdout().as_fd())?);
        io::copy(&mut file, &mut stdout).map(drop)
    };
    if let Err(error) = copy() {
        report.error(path, &error);
    }
    Ok(())
}

/// `write [--expect MARK] [--] PATH [MODE]`: stdin becomes its content.
///
/// A regular file is replaced when all of stdin has come, keeping mode (unless one is given, in octal)
/// and owner; a new one is 0644. Links are written through. Devices and pipes are written into. With
/// `--expect`, only if the file is what `stat` has given that mark for, and it is on disk at the end.
pub(super) fn write(arguments: &[OsString], report: &mut Report) -> Result<(), Usage> {
    const USAGE: &str = "write [--expect MARK] [--] PATH [MODE]";
    let Options {
        operands, expect, ..
    } = options(arguments, USAGE)?;
    let (path, mode) = match operands {
        [path] => (Path::new(path), None),
        [path, mode] => {
            let mode = mode.to_str().and_then(|m| u32::from_str_radix(m, 8).ok());
            let mode = mode.filter(|mode| *mode <= 0o7777).ok_or(Usage(USAGE))?;
            (Path::new(path), Some(mode))
        }
        _ => return Err(Usage(USAGE)),
    };
    let expect = expect.map(|mark| mark.to_string_lossy().into_owned());
    if let Err(error) = replace(path, mode, expect.as_deref()) {
        report.error(path, &error);
    }
    Ok(())
}

fn replace(path: &Path, mode: Option<u32>, expect: Option<&str>) -> io::Result<()> {
    let mut stdin = File::from(standard(io::stdin().as_fd())?);
    let path = match fs::canonicalize(path) {
        Ok(path) => path,
        Err(error) if is_missing(&error) => path.to_owned(),
        Err(error) => return Err(error),
    };
    let found = match fs::metadata(&path) {
        Ok(found) => Some(found),
        Err(error) if is_missing(&error) => None,
        Err(error) => return Err(error),
    };
    if found.as_ref().is_some_and(Metadata::is_dir) {
        return Err(nix::errno::Errno::EISDIR.into());
    }
    if found.as_ref().is_some_and(|found| !found.is_file()) {
        let mut file = File::options().write(true).open(&path)?;
        return io::copy(&mut stdin, &mut file).map(drop);
    }
    let (temporary, mut file) = beside(&path)?;
    let mut fill = || -> io::Result<()> {
        io::copy(&mut stdin, &mut file)?;
        if let Some(found) = &found {
            // Only root can, and only root needs to.
            let _ = fchown(&file, Some(found.uid()), Some(found.gid()));
        }
        let kept = found.as_ref().map(|found| found.mode() & 0o7777);
        let mode = mode.or(kept).unwrap_or(0o644);
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        if let Some(expect) = expect {
            file.sync_all()?;
            if mark(fs::metadata(&path).ok().as_ref()) != expect {
                return Err(io::Error::other("it has been changed meanwhile"));
            }
        }
        fs::rename(&temporary, &path)
    };
    fill().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// A new file in the directory of `path`.
fn beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let temporary = path.with_file_name(format!(".vmgr-write-{}", std::process::id()));
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    Ok((temporary, file))
}

fn operand<'a>(arguments: &'a [OsString], usage: &'static str) -> Result<&'a Path, Usage> {
    match options(arguments, usage)?.operands {
        [path] => Ok(Path::new(path)),
        _ => Err(Usage(usage)),
    }
}

/// Not std's own: that one looks for line ends.
fn standard(fd: std::os::fd::BorrowedFd) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

fn kind(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    if kind.is_dir() {
        "dir"
    } else if kind.is_file() {
        "file"
    } else if kind.is_symlink() {
        "link"
    } else if kind.is_fifo() {
        "fifo"
    } else if kind.is_socket() {
        "socket"
    } else if kind.is_char_device() {
        "char"
    } else {
        "block"
    }
}
