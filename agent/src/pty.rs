//! Terminals of the machine's own devpts, so that `tty`, `ps` and job control work in it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{fstat, makedev};

use crate::error::Refusal;
use crate::launch::Root;
use crate::wire::TerminalSize;

/// A new terminal: its master (non-blocking) and its slave.
pub fn open(root: Root, size: TerminalSize) -> Result<(OwnedFd, OwnedFd), Refusal> {
    let refuse = |errno| Refusal::system("the machine has no terminals", errno);
    let top = match root {
        Root::Own => File::open("/"),
        Root::OfInit => File::open("/proc/1/root/"),
    }
    .map_err(|error| refuse(from_io(&error)))?;
    // Links are followed as the machine sees them; the name must lead to the real device.
    let how = OpenHow::new()
        .flags(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let master = openat2(&top, "dev/ptmx", how).map_err(refuse)?;
    let device = fstat(&master).map_err(refuse)?.st_rdev;
    // Documentation/admin-guide/devices.txt of Linux; each devpts has its own at pts/ptmx.
    if device != makedev(5, 2) {
        return Err(refuse(Errno::ENXIO));
    }
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) };
    Errno::result(result).map_err(refuse)?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags and gives a new fd, which nobody else owns.
    let slave = unsafe {
        let fd = Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags))
            .map_err(refuse)?;
        crate::launch::own(fd)
    };
    resize(master.as_fd(), size);
    Ok((master, slave))
}

/// Set the size of the terminal; its foreground group gets SIGWINCH from the kernel.
pub fn resize(master: BorrowedFd, size: TerminalSize) {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize.
    unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

fn from_io(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
