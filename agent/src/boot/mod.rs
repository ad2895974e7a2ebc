//! From the kernel's first process to a machine that serves.
//!
//! The agent is `/init` of the initramfs. It mounts the machine's root and then either stays PID 1 or
//! hands that over:
//!
//! ```text
//! PID 1: file systems, modules, root, cgroups ──fork──> root moved to /, chroot, exec the init
//!                                                └────> the agent: port, waits for that exec, serves
//! ```
//!
//! The agent beside an init outlives all that init does to the machine: its root stays the initramfs,
//! its cgroup is one that init does not know, and its command line begins with `@`, which tells systemd
//! to leave it alone at shutdown (systemd's "Storage Daemons for the Root File System").

pub(crate) mod button;
mod cmdline;
mod cpus;
pub(crate) mod devices;
pub(crate) mod kmods;
pub mod place;
mod systemd;

use std::ffi::{CString, c_char};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};
use nix::unistd::{self, AccessFlags};

use crate::launch::{self, Ground, Root};
use crate::machine::{self, Log, Machine, errno_of};
use crate::port::Kind;
use crate::power::Role;
use crate::serve;
use cmdline::CommandLine;
use place::Place;

/// How long disks and the port may take to appear. They are there when their driver is; this is for a
/// host that is very slow.
const DEVICE_WAIT: Duration = Duration::from_secs(10);
/// Below the directory of modules.
const RECLAIM_MODULE: &str = "kernel/drivers/virtio/virtio_balloon.ko";
/// Where the machine's root is until it is moved.
const NEW_ROOT: &str = "/root";
const CGROUPS: &str = "/sys/fs/cgroup";

const QUIET: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);
const DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
const SHARED: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// What went wrong: one line for the console.
struct Trouble(String);

fn trouble(what: &str) -> impl Fn(Errno) -> Trouble + '_ {
    move |errno| Trouble(format!("{what}: {}", errno.desc()))
}

/// Be the machine's first process. Does not return.
///
/// # Safety
/// `name` is argv[0], which nothing else reads or writes.
pub unsafe fn run(name: *mut c_char) -> ! {
    // SAFETY: the caller's promise.
    let Err(Trouble(line)) = unsafe { boot(name) };
    Log::Console.line(&format!("{line}; powering off"));
    unistd::sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // Without power management the kernel gives the power-off back.
    loop {
        unistd::pause();
    }
}

enum Never {}

unsafe fn boot(name: *mut c_char) -> Result<Never, Trouble> {
    own_file_systems()?;
    let log = |line: &str| Log::Console.line(line);
    kmods::load(kmods::FIRST, log);
    let network = Aside::start(|| kmods::load(kmods::NETWORK, log));
    let asked = CommandLine::read();
    if let Some(name) = &asked.hostname
        && let Err(errno) = unistd::sethostname(name)
    {
        log(&format!("cannot set the hostname: {}", errno.desc()));
    }
    let root = mount_root(&asked)?;
    let modules = Aside::start(|| {
        if let Err(Trouble(line)) = mount_modules(&asked, &root) {
            log(&line);
        }
    });
    furnish(&root, !asked.init.is_empty());
    let cgroups = Cgroups::make().map_err(|Trouble(line)| log(&line)).ok();
    modules.wait();
    network.wait();
    cpus::bring_up(log);
    if !asked.init.is_empty() {
        let kept = root.path_of(&modules_directory(&root));
        if let Err(errno) = kept.and_then(|path| systemd::keep_mounted(&root, &path)) {
            log(&format!("cannot write a unit: {}", errno.desc()));
        }
    }
    let reclaim = asked.reclaim.then(|| reclaim_module(&root)).flatten();
    let init = asked.init.as_str();
    if !init.is_empty() {
        let usable = root
            .open(init.trim_start_matches('/'), OFlag::O_PATH)
            .and_then(|fd| {
                unistd::faccessat(
                    fd.as_fd(),
                    "",
                    AccessFlags::X_OK,
                    nix::fcntl::AtFlags::AT_EMPTY_PATH,
                )
            });
        match usable {
            // SAFETY: the caller's promise.
            Ok(()) => unsafe { hand_over(name, init, &root, cgroups.as_ref(), reclaim.as_ref())? },
            Err(errno) => log(&format!(
                "cannot run {init}: {}; the agent is init",
                errno.desc()
            )),
        }
    }
    if let Err(errno) = root.mount("sys/fs/cgroup", "cgroup2", "cgroup2", QUIET, "nsdelegate") {
        log(&format!("cannot mount /sys/fs/cgroup: {}", errno.desc()));
    }
    let _ = root.directory("run/lock");
    enter(&root)?;
    be_init(cgroups, reclaim.as_ref())
}

/// Work that a child does at the same time: much of a boot is waiting for the disk.
struct Aside(i32);

impl Aside {
    fn start(work: impl FnOnce()) -> Self {
        // SAFETY: there is one thread.
        let pid = unsafe { launch::clone_into(None) }.unwrap_or(-1);
        if pid > 0 {
            return Self(pid);
        }
        work();
        if pid == 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        Self(pid)
    }

    fn wait(self) {
        if self.0 > 0 {
            let _ = nix::sys::wait::waitpid(unistd::Pid::from_raw(self.0), None);
        }
    }
}

/// proc, sysfs and devtmpfs for the agent itself, and its standard fds.
fn own_file_systems() -> Result<(), Trouble> {
    for (source, target, flags) in [
        ("proc", "/proc", QUIET),
        ("sysfs", "/sys", QUIET),
        ("devtmpfs", "/dev", DEVICES),
    ] {
        // They are in the initramfs, or not.
        let _ = fs::create_dir(target);
        mount(Some(source), target, Some(source), flags, None::<&str>)
            .map_err(trouble("cannot mount a file system of the kernel"))?;
    }
    standard_fds("/dev/null").map_err(trouble("cannot open /dev/null"))
}

/// Make fds 0, 1 and 2 `path`.
fn standard_fds(path: &str) -> Result<(), Errno> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = nix::fcntl::open(path, flags, Mode::empty())?;
    // dup2 of an fd on itself would leave it CLOEXEC; the kernel gives init 0 to 2, or none of them.
    let file = if file.as_raw_fd() > 2 {
        file
    } else {
        let above = nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3);
        let fd = nix::fcntl::fcntl(&file, above)?;
        std::mem::forget(file);
        // SAFETY: F_DUPFD has just made it.
        unsafe { launch::own(fd) }
    };
    unistd::dup2_stdin(&file)?;
    unistd::dup2_stdout(&file)?;
    unistd::dup2_stderr(&file)
}

fn mount_root(asked: &CommandLine) -> Result<Place, Trouble> {
    let name = asked.root.as_str();
    let disk = devices::wait_for(DEVICE_WAIT, || devices::disk(name))
        .ok_or_else(|| Trouble(format!("there is no root disk {name:?}")))?;
    let _ = fs::create_dir(NEW_ROOT);
    mount(
        Some(&disk),
        NEW_ROOT,
        Some("ext4"),
        MsFlags::MS_NOATIME,
        // What is deleted goes back to the host, which has a file for the disk.
        Some("discard"),
    )
    .map_err(trouble("cannot mount the root disk"))?;
    Place::new(NEW_ROOT).map_err(trouble("cannot open the root"))
}

/// The kernel's modules, where the machine's tools look for them.
fn mount_modules(asked: &CommandLine, root: &Place) -> Result<(), Trouble> {
    let name = asked.modules.as_str();
    // It was made together with the root disk: where that is, this is, or it will never come.
    let disk = devices::disk(name).ok_or_else(|| Trouble(format!("there is no disk {name:?}")))?;
    let flags = SHARED | MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
    let kind = file_system(&disk)
        .map_err(|error| trouble("cannot read the disk of modules")(errno_of(&error)))?;
    let target = modules_directory(root);
    root.mount(&target, &disk.to_string_lossy(), kind, flags, "")
        .map_err(trouble("cannot mount the disk of modules"))
}

/// Where a machine's tools look for modules. /lib is a directory or a link to usr/lib; where there is
/// neither, a merged one is made.
pub(crate) fn modules_directory(root: &Place) -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let library = if root.has("lib") { "lib" } else { "usr/lib" };
    format!("{library}/modules/{}", release.trim())
}

/// The module that tells the host of memory that nobody uses, from the disk of modules.
fn reclaim_module(root: &Place) -> Option<File> {
    let path = format!("{}/{RECLAIM_MODULE}", modules_directory(root));
    root.open(path, OFlag::O_RDONLY).ok().map(File::from)
}

/// Load a module in a child that runs when nothing else wants to; the loop reaps it. Whoever waits for
/// the machine to be ready does not wait for this.
fn load_when_idle(module: Option<&File>) {
    let Some(module) = module else { return };
    Aside::start(|| {
        let priority = libc::sched_param { sched_priority: 0 };
        // SAFETY: one struct is read. It is no harm when it is refused.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const priority) };
        if let Err(error) = kmods::load_file(module) {
            Log::Console.line(&format!("memory is not given back: {}", error.desc()));
        }
    });
}

/// What is on a disk: squashfs by its magic number at the very beginning, else ext4.
fn file_system(disk: &PathBuf) -> std::io::Result<&'static str> {
    let mut magic = [0; 4];
    File::open(disk)?.read_exact(&mut magic)?;
    Ok(if &magic == b"hsqs" {
        "squashfs"
    } else {
        "ext4"
    })
}

/// Fresh file systems of the kernel on the new root: also the ones that systemd would start a process
/// each for. One that cannot be had is one that the machine does without.
fn furnish(root: &Place, has_init: bool) {
    let missing = |path: &str, errno: Errno| {
        Log::Console.line(&format!("cannot mount /{path}: {}", errno.desc()));
    };
    for (path, kind, flags, data) in [
        ("proc", "proc", QUIET, ""),
        ("sys", "sysfs", QUIET, ""),
        ("dev", "devtmpfs", DEVICES, ""),
        // Group 5 is tty in every distribution.
        ("dev/pts", "devpts", DEVICES, "mode=620,ptmxmode=666,gid=5"),
        ("dev/shm", "tmpfs", SHARED, "mode=1777"),
        ("run", "tmpfs", SHARED, "mode=755,size=20%"),
    ] {
        if let Err(errno) = root.mount(path, kind, kind, flags, data) {
            missing(path, errno);
        }
    }
    for (path, kind) in [
        ("dev/mqueue", "mqueue"),
        ("dev/hugepages", "hugetlbfs"),
        ("sys/kernel/debug", "debugfs"),
        ("sys/kernel/tracing", "tracefs"),
        ("sys/fs/fuse/connections", "fusectl"),
    ] {
        // Which of them a kernel has differs; nothing is told.
        let _ = root.mount(path, kind, kind, QUIET, "");
    }
    make_nodes(root);
    if has_init && let Err(errno) = systemd::prepare(root) {
        missing("run/systemd/system", errno);
    }
}

/// Device nodes whose first use loads their driver, with the rights that udev would give them.
fn make_nodes(root: &Place) {
    // Documentation/admin-guide/devices.txt of Linux: misc devices are major 10.
    for (path, minor, mode) in [
        ("dev/fuse", 229, 0o666),
        ("dev/net/tun", 200, 0o666),
        ("dev/loop-control", 237, 0o660),
    ] {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("dev", path));
        let mode = Mode::from_bits_truncate(mode);
        let Ok(directory) = root.directory(directory) else {
            continue;
        };
        // One may be there already, then only its rights are wrong.
        let _ = mknodat(&directory, name, SFlag::S_IFCHR, mode, makedev(10, minor));
        let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
        let _ = fs::set_permissions(
            path,
            std::os::unix::fs::PermissionsExt::from_mode(mode.bits()),
        );
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        if let Ok(directory) = root.directory("dev") {
            let _ = unistd::symlinkat(target, &directory, name);
        }
    }
}

/// The agent's own corner of the cgroup tree.
struct Cgroups {
    agent: OwnedFd,
    exec: OwnedFd,
    kill_exec: Option<OwnedFd>,
}

impl Cgroups {
    fn make() -> Result<Self, Trouble> {
        let step = trouble("cannot make the agent's cgroups");
        mount(
            Some("cgroup2"),
            CGROUPS,
            Some("cgroup2"),
            QUIET,
            Some("nsdelegate"),
        )
        .map_err(&step)?;
        let make = |name: &str| -> Result<OwnedFd, Trouble> {
            let path = format!("{CGROUPS}/{name}");
            fs::create_dir_all(&path).map_err(|error| step(errno_of(&error)))?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            nix::fcntl::open(path.as_str(), flags, Mode::empty()).map_err(&step)
        };
        let kill = format!("{CGROUPS}/vmagent/exec/cgroup.kill");
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        Ok(Self {
            agent: make("vmagent/agent")?,
            exec: make("vmagent/exec")?,
            kill_exec: nix::fcntl::open(kill.as_str(), flags, Mode::empty()).ok(),
        })
    }
}

/// Make the machine's root this process's, and everybody's who comes after.
fn enter(root: &Place) -> Result<(), Trouble> {
    let step = trouble("cannot enter the machine's root");
    unistd::fchdir(root.as_fd()).map_err(&step)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(&step)?;
    unistd::chroot(".").map_err(&step)?;
    unistd::chdir("/").map_err(&step)
}

/// Fork the agent and become the init. Returns only if that fails, and then as PID 1 without an agent
/// beside it.
///
/// # Safety
/// `name` is argv[0], which nothing else reads or writes.
unsafe fn hand_over(
    name: *mut c_char,
    init: &str,
    root: &Place,
    cgroups: Option<&Cgroups>,
    reclaim: Option<&File>,
) -> Result<(), Trouble> {
    let (handed, end) = unistd::pipe2(OFlag::O_CLOEXEC).map_err(trouble("cannot make a pipe"))?;
    // SAFETY: there is one thread.
    let pid = unsafe { launch::clone_into(cgroups.map(|c| c.agent.as_fd())) }
        .map_err(trouble("cannot start the agent"))?;
    if pid == 0 {
        drop(end);
        // SAFETY: the caller's promise; a program's name has at least one byte.
        unsafe { *name = b'@'.cast_signed() };
        let Err(Trouble(line)) = be_beside(init, handed, cgroups, reclaim);
        Log::Console.line(&line);
        // SAFETY: ends the child.
        unsafe { libc::_exit(1) };
    }
    drop(handed);
    enter(root)?;
    // The init's own, as the kernel would have opened it.
    let _ = standard_fds("/dev/console");
    let program = CString::new(init).map_err(|_| Trouble("an init with a NUL".to_owned()))?;
    let Err(errno) = unistd::execv(&program, &[&program]);
    // The agent sees this byte instead of the pipe's end, and leaves.
    let _ = unistd::write(&end, b"!");
    let _ = standard_fds("/dev/null");
    Err(Trouble(format!("cannot run {init}: {}", errno.desc())))
}

/// The agent beside an init. Returns only in trouble.
fn be_beside(
    init: &str,
    handed: OwnedFd,
    cgroups: Option<&Cgroups>,
    reclaim: Option<&File>,
) -> Result<Never, Trouble> {
    unistd::setsid().map_err(trouble("cannot make a session"))?;
    let _ = nix::sys::prctl::set_name(c"vmgr-agent");
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let copy = |fd: &OwnedFd| fd.try_clone().ok();
    let port = open_port()?;
    // A command can run once PID 1 is the init, in the root that it has by then.
    if File::from(handed).read(&mut [0]).unwrap_or(1) != 0 {
        return Err(Trouble("there is no init to be beside".to_owned()));
    }
    load_when_idle(reclaim);
    let ground = Ground {
        root: Root::OfInit,
        cgroup: cgroups.and_then(|c| copy(&c.exec)),
        program: launch::own_program().map_err(trouble("cannot open the agent's program"))?,
    };
    let role = Role::BesideInit {
        kill_jobs: cgroups.and_then(|c| c.kill_exec.as_ref().and_then(copy)),
    };
    let machine = Machine::new(init, Root::OfInit, Log::Console);
    serve::serve(Kind::Virtio, Some(port), ground, machine, role)
        .map_err(trouble("cannot serve"))?;
    Err(Trouble("the agent has ended".to_owned()))
}

/// The agent as init. Returns only in trouble.
fn be_init(cgroups: Option<Cgroups>, reclaim: Option<&File>) -> Result<Never, Trouble> {
    // Ctrl-Alt-Del becomes a signal instead of an instant reset.
    let _ = set_cad_enabled(false);
    // The loop reaps it.
    Aside::start(machine::loopback_up);
    load_when_idle(reclaim);
    let ground = Ground {
        root: Root::Own,
        cgroup: cgroups.map(|c| c.exec),
        program: launch::own_program().map_err(trouble("cannot open the agent's program"))?,
    };
    let machine = Machine::new("agent", Root::Own, Log::Console);
    let port = open_port()?;
    serve::serve(Kind::Virtio, Some(port), ground, machine, Role::Init)
        .map_err(trouble("cannot serve"))?;
    Err(Trouble("the agent has ended".to_owned()))
}

fn open_port() -> Result<OwnedFd, Trouble> {
    devices::wait_for(DEVICE_WAIT, devices::port)
        .ok_or_else(|| Trouble("there is no port to the host".to_owned()))
}
