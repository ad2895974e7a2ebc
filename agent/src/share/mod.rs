//! Shares: directories of the host, mounted in the machine.
//!
//! For each there is a process that mounts it and pumps what the kernel asks to the host's share server
//! (`pump`). The agent starts it and tells it of each new server; see docs/shares.md.

pub mod abi;
pub mod lately;
pub mod pump;
pub mod table;
pub mod teller;
pub mod telling;
pub mod traffic;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::unistd;

use crate::boot::place::Place;
use crate::boot::{devices, kmods};
use crate::error::Refusal;
use crate::launch::{self, Root};
use crate::task;

use pump::{KEY, Pump};
use telling::Telling;

/// What a host asks for: `share`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Which port.
    pub slot: u32,
    /// Where, from the machine's root.
    pub path: String,
    pub key: [u8; KEY],
    pub user: String,
    pub read_only: bool,
}

/// A share that is mounted, as the agent knows it.
#[derive(Debug)]
pub struct Mounted {
    path: String,
    control: OwnedFd,
}

impl Mounted {
    /// Tell of a new server. False: its pump has ended.
    fn announce(&self, share: &Share) -> bool {
        let message = [&share.key[..], share.user.as_bytes()].concat();
        // SAFETY: the bytes live. No signal: who has ended is told by the error.
        let sent = unsafe {
            libc::send(
                self.control.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
            )
        };
        sent > 0
    }

    /// Take it away, also while it is used: what is open there fails from then on.
    pub fn unmount(self, root: Root) -> Result<(), Refusal> {
        let place = Place::new(top(root))
            .map_err(|errno| Refusal::system("cannot see the machine's root", errno))?;
        // Without the pump all that waits fails, and nothing can hang.
        drop(self.control);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let Ok(target) = place.open(relative(&self.path), flags) else {
            return Ok(()); // there is nothing any more to mount on
        };
        let target = format!("/proc/self/fd/{}", target.as_raw_fd());
        match umount2(target.as_str(), MntFlags::MNT_DETACH) {
            // It is not mounted any more.
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(Refusal::system("cannot unmount the share", errno)),
        }
    }
}

/// Whether `share` is mounted already, and now knows of its new server.
pub fn announce(mounted: Option<&Mounted>, share: &Share) -> bool {
    mounted.is_some_and(|mounted| mounted.path == share.path && mounted.announce(share))
}

/// Mount a share, in a process that then serves it; what it says of that is a task's answer.
pub fn start(channel: u32, share: &Share, root: Root) -> Result<(task::Task, Mounted), Refusal> {
    let refuse = |errno| Refusal::system("cannot mount a share", errno);
    let (control, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(refuse)?;
    let (answer, report) = unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(refuse)?;
    let mounted = Mounted {
        path: share.path.clone(),
        control,
    };
    // SAFETY: the agent has one thread.
    let pid = unsafe { launch::clone_into(None) }.map_err(refuse)?;
    if pid == 0 {
        launch::close_others(&[report.as_raw_fd(), theirs.as_raw_fd()]);
        // Nobody waits for its tellers.
        // SAFETY: no handler is run.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        match mounted_pump(share, root, theirs) {
            Ok(mut pump) => {
                let _ = File::from(report).write_all(&task::done());
                let pump::Ended = pump.run();
            }
            Err(refusal) => {
                let _ = File::from(report).write_all(&task::refused(&refusal));
            }
        }
        // SAFETY: ends the child without running what belongs to the agent.
        unsafe { libc::_exit(0) }
    }
    let task = task::Task {
        channel: Some(channel),
        answer,
    };
    Ok((task, mounted))
}

fn mounted_pump(share: &Share, root: Root, control: OwnedFd) -> Result<Pump, Refusal> {
    let place = Place::new(top(root))
        .map_err(|errno| Refusal::system("cannot see the machine's root", errno))?;
    let name = format!("vmgr.share.{}", share.slot);
    let port = devices::named_port(&name)
        .ok_or_else(|| Refusal::new("unsupported", format!("the machine has no port {name}")))?;
    let device = device(&place)
        .map_err(|errno| Refusal::system("the machine's kernel has no FUSE", errno))?;
    let target = place
        .directory(relative(&share.path))
        .map_err(|errno| Refusal::system("cannot make the directory to mount on", errno))?;
    let target = format!("/proc/self/fd/{}", target.as_raw_fd());
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let flags = MsFlags::MS_NOATIME;
    // Its subtype shows in the machine's table of mounts.
    mount(
        Some("vmgr"),
        target.as_str(),
        Some("fuse.vmgr"),
        flags,
        Some(data.as_str()),
    )
    .map_err(|errno| Refusal::system("cannot mount the share", errno))?;
    let user = user_in(root, &share.user);
    let path = format!("/{}", relative(&share.path));
    if share.read_only {
        // The mount alone, not the file system: changes on the host are told of by changes.
        let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(
            None::<&str>,
            path.as_str(),
            None::<&str>,
            flags,
            None::<&str>,
        )
        .map_err(|errno| Refusal::system("cannot make the share read-only", errno))?;
    }
    for fd in [&device, &port] {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))
            .map_err(|errno| Refusal::system("cannot use a device", errno))?;
    }
    // Without it the machine's watchers hear of the machine's own changes alone.
    let telling = Telling::start(&path).ok();
    Ok(Pump::new(device, port, control, share.key, user, telling))
}

/// Open the kernel's FUSE device, its module loaded first where that is needed.
fn device(place: &Place) -> Result<OwnedFd, Errno> {
    const DEVICE: &str = "/dev/fuse";
    const MODULE: &str = "kernel/fs/fuse/fuse.ko";
    let open = || {
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        nix::fcntl::open(DEVICE, flags, Mode::empty())
    };
    open().or_else(|errno| {
        let module = crate::boot::modules_directory(place) + "/" + MODULE;
        let file = place.open(module, OFlag::O_RDONLY).map_err(|_| errno)?;
        kmods::load_file(&File::from(file))?;
        open()
    })
}

/// The numbers of the machine's default user. Read in the machine's root, which this process enters:
/// all that it needs of its own is open.
fn user_in(root: Root, name: &str) -> (u32, u32) {
    if root == Root::OfInit {
        let entered = unistd::chroot("/proc/1/root").and_then(|()| unistd::chdir("/"));
        if entered.is_err() {
            return (0, 0);
        }
    }
    pump::numbers_of(name)
}

fn top(root: Root) -> &'static str {
    match root {
        Root::Own => "/",
        Root::OfInit => "/proc/1/root/",
    }
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}
