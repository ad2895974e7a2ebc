//! The door in the machine behind which the host is: `/run/vmgr/host.sock`, and the program that knocks,
//! the agent's own binary, as `host` on everybody's PATH.
//!
//! Made in a process of its own, since the machine's disk may be slow. Nothing that is there is
//! replaced: a `host` of the machine's own (BIND's) keeps its name, and `vmgr-host` is always ours.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat, renameat};
use nix::sys::socket::{UnixAddr, bind};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat, umask};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::account;
use crate::boot::place::Place;
use crate::error::Refusal;
use crate::launch::Root;
use crate::machine::errno_of;

/// Where the `host` program finds the host.
pub const SOCKET: &str = "/run/vmgr/host.sock";
const DIRECTORY: &str = "run/vmgr";
const PROGRAM: &str = "/run/vmgr/host";
const LINKS: &str = "usr/local/bin";
const ALWAYS: &str = "vmgr-host";
const SHORT: &str = "host";

/// Make the door of the socket `fd`; gives the number of `user`, who may knock.
pub fn make(root: Root, user: &str, fd: RawFd, backlog: libc::c_int) -> Result<u32, Refusal> {
    let step = |what: &'static str| move |errno| Refusal::system(what, errno);
    umask(Mode::empty());
    let top = top(root)?;
    let account = enter_for_account(&top, user)?;
    let directory = top
        .directory(DIRECTORY)
        .map_err(step("cannot make /run/vmgr"))?;
    copy_program(&directory).map_err(step("cannot put the host program into /run/vmgr"))?;
    let _ = unlinkat(&directory, "host.sock", UnlinkatFlags::NoRemoveDir);
    let path = format!("/proc/self/fd/{}/host.sock", directory.as_raw_fd());
    let address = UnixAddr::new(path.as_str()).map_err(step("cannot name the socket"))?;
    bind(fd, &address).map_err(step("cannot bind /run/vmgr/host.sock"))?;
    // Who may knock is seen at the door; the mode only lets them come to it.
    let all = Mode::from_bits_truncate(0o666);
    fchmodat(&directory, "host.sock", all, FchmodatFlags::FollowSymlink)
        .map_err(step("cannot open /run/vmgr/host.sock to users"))?;
    // SAFETY: the agent keeps it open for as long as this process lives.
    let listened = Errno::result(unsafe { libc::listen(fd, backlog) });
    listened.map_err(step("cannot listen on /run/vmgr/host.sock"))?;
    link(&top).map_err(step("cannot put host into /usr/local/bin"))?;
    Ok(account)
}

/// Undo it.
pub fn remove(root: Root) -> Result<(), Refusal> {
    let top = top(root)?;
    if let Ok(bin) = top.open(LINKS, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        for name in [ALWAYS, SHORT] {
            if is_ours(&bin, name) {
                let _ = unlinkat(&bin, name, UnlinkatFlags::NoRemoveDir);
            }
        }
    }
    if let Ok(directory) = top.open(DIRECTORY, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        for name in ["host.sock", "host"] {
            let _ = unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir);
        }
    }
    Ok(())
}

fn top(root: Root) -> Result<Place, Refusal> {
    let path = match root {
        Root::Own => "/",
        Root::OfInit => "/proc/1/root/",
    };
    Place::new(path).map_err(|errno| Refusal::system("cannot enter the machine's root", errno))
}

/// The number of a user of the machine's, from the machine's own files.
fn enter_for_account(top: &Place, user: &str) -> Result<u32, Refusal> {
    let read = |path| top.read(path).unwrap_or_default();
    Ok(account::resolve(user, &read("etc/passwd"), &read("etc/group"))?.uid)
}

/// Under a name of its own first: one that runs keeps the file that it runs from.
fn copy_program(directory: &OwnedFd) -> Result<(), Errno> {
    const NEW: &str = "host.new";
    let _ = unlinkat(directory, NEW, UnlinkatFlags::NoRemoveDir);
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = nix::fcntl::openat(directory, NEW, flags, Mode::from_bits_truncate(0o755))?;
    let mut copy = File::from(file);
    let mut own = File::open("/proc/self/exe").map_err(|error| errno_of(&error))?;
    io::copy(&mut own, &mut copy).map_err(|error| errno_of(&error))?;
    fchmod(&copy, Mode::from_bits_truncate(0o755))?;
    drop(copy);
    renameat(directory, NEW, directory, "host")
}

fn link(top: &Place) -> Result<(), Errno> {
    let bin = top.directory(LINKS)?;
    let taken = ["usr/bin/host", "bin/host"]
        .iter()
        .any(|path| top.has(path));
    for name in [ALWAYS, SHORT] {
        if name == SHORT && taken && !is_ours(&bin, name) {
            continue;
        }
        match symlinkat(PROGRAM, &bin, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn is_ours(bin: &OwnedFd, name: &str) -> bool {
    readlinkat(bin, name).is_ok_and(|target| target == PROGRAM)
}
