//! The process that makes the kernel tell watchers what was changed on the host.
//!
//! Nothing tells inotify of a change but the change itself. So this process does what was done on the
//! host once more, on the mount, and the pump answers its requests so that nothing is changed anywhere
//! (`telling`): programs that watch see a file made, written or removed, as on a disk of the machine's.
//!
//! It has no fd of the FUSE device: were the pump to die, its requests would never end.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd;

use crate::launch;

use super::abi::{text_at, u32_at};

/// What the teller is to do. In a message: this number, the kind of file, and paths with NULs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Act {
    /// Say which files of the mount are watched: a zero, and their `st_ino`, eight bytes each. By the
    /// processes that are named, four bytes each; by any where none is.
    Look = 0,
    Make = 1,
    Remove = 2,
    Rename = 3,
    Attributes = 4,
    Modify = 5,
    CloseWrite = 6,
}

/// Watched files that are told of; a machine that watches more hears of some.
pub const MOST_WATCHED: usize = 4_096;
const MESSAGE: usize = 160 << 10;
const LIVED: Duration = Duration::from_secs(1);

/// The pump's end.
#[derive(Debug)]
pub struct Teller {
    pub socket: OwnedFd,
    /// In the requests that its own system calls make.
    pub pid: u32,
    begun: Instant,
}

impl Teller {
    /// Whether another may be started when this one has ended: not one after the other.
    #[must_use]
    pub fn has_lived(&self) -> bool {
        self.begun.elapsed() >= LIVED
    }
}

/// Start it. The caller has one thread.
pub fn start(mount: &str) -> Result<Teller, Errno> {
    let (socket, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    // SAFETY: the pump has one thread.
    let pid = unsafe { launch::clone_into(None) }?;
    if pid == 0 {
        // SAFETY: plain numbers. It ends with the pump.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        launch::close_others(&[theirs.as_raw_fd()]);
        serve(&theirs, mount);
        // SAFETY: ends the child without running what belongs to the pump.
        unsafe { libc::_exit(0) }
    }
    Ok(Teller {
        socket,
        pid: pid.cast_unsigned(),
        begun: Instant::now(),
    })
}

/// What is asked, for one message.
#[must_use]
pub fn message(act: Act, kind: u32, paths: &[&[u8]]) -> Vec<u8> {
    let mut bytes = (act as u32).to_le_bytes().to_vec();
    bytes.extend(kind.to_le_bytes());
    for path in paths {
        bytes.extend(*path);
        bytes.push(0);
    }
    bytes
}

fn serve(socket: &OwnedFd, mount: &str) {
    let Ok(mount) = CString::new(mount) else {
        return;
    };
    let mut device = None;
    let mut bytes = vec![0; MESSAGE];
    loop {
        let count = match unistd::read(socket, &mut bytes) {
            Ok(0) => return,
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        if device.is_none() {
            device = device_of(libc::AT_FDCWD, &mount);
        }
        let answer = match device {
            Some(device) => done(&bytes[..count], &mount, device),
            None => vec![0],
        };
        if unistd::write(socket, &answer).is_err() {
            return;
        }
    }
}

fn done(message: &[u8], mount: &CString, device: (u32, u32)) -> Vec<u8> {
    if u32_at(message, 0) == Act::Look as u32 {
        // Nothing at all would be what the end of a teller looks like.
        let mut answer = vec![0];
        for ino in watched(device, message.get(8..).unwrap_or_default()) {
            answer.extend(ino.to_le_bytes());
        }
        return answer;
    }
    let path = text_at(message, 8);
    let second = text_at(message, 8 + path.len() + 1);
    let again = act(
        u32_at(message, 0),
        u32_at(message, 4),
        path,
        second,
        mount,
        device,
    );
    vec![u8::from(again == Err(Errno::EEXIST))]
}

/// A file system's device, without asking the file system.
fn device_of(at: RawFd, path: &CString) -> Option<(u32, u32)> {
    let status = status_of(at, path, libc::AT_STATX_DONT_SYNC, 0).ok()?;
    Some((status.stx_dev_major, status.stx_dev_minor))
}

/// statx(2). Not by the C library's function: the standard library has it as one that may be missing,
/// so that a static program is linked without it.
fn status_of(
    at: RawFd,
    path: &CString,
    flags: libc::c_int,
    mask: libc::c_uint,
) -> Result<libc::statx, Errno> {
    // SAFETY: zeros are a statx.
    let mut status: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path and the structure live.
    let done = unsafe {
        libc::syscall(
            libc::SYS_statx,
            at,
            path.as_ptr(),
            flags | libc::AT_EMPTY_PATH,
            mask,
            &raw mut status,
        )
    };
    Errno::result(done).map(|_| status)
}

/// The mount's top, where it can be written to though the machine's own mount is read-only.
fn top(mount: &CString, device: (u32, u32)) -> Result<OwnedFd, Errno> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const READ_ONLY: u64 = 1; // MOUNT_ATTR_RDONLY
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned();
    // SAFETY: the path lives; the fd is new and nobody else's.
    let fd = unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, mount.as_ptr(), flags);
        OwnedFd::from_raw_fd(RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?)
    };
    let empty = CString::default();
    if device_of(fd.as_raw_fd(), &empty) != Some(device) {
        return Err(Errno::ENOENT); // somebody has unmounted it
    }
    let attributes = [0u64, READ_ONLY, 0, 0]; // struct mount_attr: set, clear, propagation, user
    // SAFETY: the structure lives and its size is given.
    unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            attributes.as_ptr(),
            size_of_val(&attributes),
        );
    }
    Ok(fd)
}

fn act(
    act: u32,
    kind: u32,
    path: &[u8],
    second: &[u8],
    mount: &CString,
    device: (u32, u32),
) -> Result<(), Errno> {
    let top = top(mount, device)?;
    let at = top.as_raw_fd();
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| Errno::EINVAL);
    let (path, second) = (text(path)?, text(second)?);
    // SAFETY: the paths live, and `at` is open.
    let done = unsafe {
        match act {
            act if act == Act::Make as u32 => match kind {
                libc::S_IFDIR => libc::mkdirat(at, path.as_ptr(), 0o755),
                libc::S_IFLNK => libc::symlinkat(c"x".as_ptr(), at, path.as_ptr()),
                kind => libc::mknodat(at, path.as_ptr(), kind | 0o644, 0),
            },
            act if act == Act::Remove as u32 => {
                let flags = if kind == libc::S_IFDIR {
                    libc::AT_REMOVEDIR
                } else {
                    0
                };
                libc::unlinkat(at, path.as_ptr(), flags)
            }
            act if act == Act::Rename as u32 => {
                libc::renameat(at, path.as_ptr(), at, second.as_ptr())
            }
            act if act == Act::Attributes as u32 => libc::fchmodat(at, path.as_ptr(), 0o644, 0),
            act if act == Act::Modify as u32 => {
                // What is known of the file, and kept of its content, is what it was before.
                let found = open(at, &path, libc::O_PATH)?;
                let asking = libc::AT_STATX_FORCE_SYNC;
                status_of(
                    found.as_raw_fd(),
                    &CString::default(),
                    asking,
                    libc::STATX_BASIC_STATS,
                )?;
                let name = text(format!("/proc/self/fd/{}", found.as_raw_fd()).as_bytes())?;
                libc::truncate(name.as_ptr(), 0)
            }
            _ => {
                open(at, &path, libc::O_WRONLY | libc::O_NONBLOCK)?;
                0
            }
        }
    };
    Errno::result(done).map(drop)
}

fn open(at: RawFd, path: &CString, flags: libc::c_int) -> Result<OwnedFd, Errno> {
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the path lives; the fd is new and nobody else's.
    unsafe {
        let fd = Errno::result(libc::openat(at, path.as_ptr(), flags))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The files of a file system that some process of the machine watches; see proc_pid_fdinfo(5).
fn watched(device: (u32, u32), processes: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    let device = u64::from(device.0) << 20 | u64::from(device.1);
    if processes.is_empty() {
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = process.file_name();
            if name.as_bytes().first().is_some_and(u8::is_ascii_digit) {
                marks_of(&process.path(), device, &mut found);
            }
        }
    }
    for process in processes.chunks_exact(4) {
        let path = format!("/proc/{}", u32_at(process, 0));
        marks_of(Path::new(&path), device, &mut found);
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn marks_of(process: &Path, device: u64, found: &mut Vec<u64>) {
    for file in fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let Ok(target) = fs::read_link(file.path()) else {
            continue;
        };
        let target = target.as_os_str().as_bytes();
        if target == b"anon_inode:inotify" || target == b"anon_inode:[fanotify]" {
            marks(
                &process.join("fdinfo").join(file.file_name()),
                device,
                found,
            );
        }
    }
}

fn marks(info: &Path, device: u64, found: &mut Vec<u64>) {
    let Ok(text) = fs::read_to_string(info) else {
        return;
    };
    for line in text.lines() {
        if !line.starts_with("inotify wd:") && !line.starts_with("fanotify ino:") {
            continue;
        }
        let number = |name: &str| {
            line.split(' ')
                .find_map(|word| word.strip_prefix(name))
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        };
        if number("sdev:") == Some(device)
            && let Some(ino) = number("ino:")
            && found.len() < MOST_WATCHED
        {
            found.push(ino);
        }
    }
}
