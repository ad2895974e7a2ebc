//! Finding the machine's disks and the port to the host, waiting for the kernel to announce them.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// The port's name, as the VMM gave it.
const PORT: &str = "vmgr.agent";

/// The block device `name`: a path, or the serial of a virtio disk.
#[must_use]
pub fn disk(name: &str) -> Option<PathBuf> {
    if name.starts_with("/dev/") {
        return fs::exists(name).unwrap_or(false).then(|| name.into());
    }
    by_attribute("/sys/block", "serial", name)
}

/// Open the port to the host.
#[must_use]
pub fn port() -> Option<OwnedFd> {
    named_port(PORT)
}

/// Open a port to the host by its name.
#[must_use]
pub fn named_port(name: &str) -> Option<OwnedFd> {
    let path = by_attribute("/sys/class/virtio-ports", "name", name)?;
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path);
    file.ok().map(Into::into)
}

/// The device node of the entry in a directory of sysfs whose `attribute` says `value`.
fn by_attribute(directory: &str, attribute: &str, value: &str) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let text = fs::read_to_string(entry.path().join(attribute)).ok()?;
        (text.trim_end() == value).then(|| PathBuf::from("/dev").join(entry.file_name()))
    })
}

/// Call `find` until it gives something: now, and whenever the kernel announces a device, for as long
/// as `most`.
pub fn wait_for<T>(most: Duration, mut find: impl FnMut() -> Option<T>) -> Option<T> {
    // Nearly always it is there, and then no socket is needed.
    if let Some(found) = find() {
        return Some(found);
    }
    let deadline = Instant::now() + most;
    let uevents = listen().ok()?;
    loop {
        // After the socket is bound, so that nothing is announced in between unseen.
        if let Some(found) = find() {
            return Some(found);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !wait_readable(uevents.as_fd(), left) {
            return find();
        }
        let mut buffer = [0; 8_192];
        // What is announced does not matter. ENOBUFS: too much was; look all the same.
        while matches!(
            recv(uevents.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT),
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR)
        ) {}
    }
}

/// A socket with the kernel's uevents (group 1 of NETLINK_KOBJECT_UEVENT).
fn listen() -> Result<OwnedFd, Errno> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
    Ok(fd)
}

fn wait_readable(fd: std::os::fd::BorrowedFd, most: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = i32::try_from(most.as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: one pollfd is given and lives.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) > 0 }
}
