//! The machine around the agent: what it says of itself, its clock, its name, its entropy.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd;
use rmpv::Value;

use crate::error::Refusal;
use crate::launch::Root;
use crate::still;
use crate::wire::Configure;

/// What does not change while the machine runs, and where it is told of.
pub struct Machine {
    boot_id: String,
    kernel: String,
    init: String,
    root: Root,
    oom_kills: u64,
    log: Log,
}

/// Where the agent's own lines go.
pub enum Log {
    Stderr,
    /// The machine's console. Opened for each line: a console that is held open keeps others from
    /// hanging it up.
    Console,
}

impl Log {
    /// Write a line. Nobody may be there to read it, so it is never waited for.
    pub fn line(&self, line: &str) {
        let line = format!("vmgr-agent: {line}\n");
        let _ = match self {
            Self::Stderr => std::io::stderr().write_all(line.as_bytes()),
            Self::Console => File::options()
                .write(true)
                .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open("/dev/console")
                .and_then(|mut console| console.write_all(line.as_bytes())),
        };
    }
}

impl Machine {
    /// Args: the program that is PID 1 (`agent` for itself), whose root jobs get, and where to log.
    #[must_use]
    pub fn new(init: &str, root: Root, log: Log) -> Self {
        let line = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        Self {
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel: line("/proc/sys/kernel/osrelease"),
            init: init.to_owned(),
            root,
            oom_kills: oom_kills(),
            log,
        }
    }

    /// The fields of the agent's HELLO.
    #[must_use]
    pub fn hello(&self, version: u64, jobs: Value) -> Vec<(&'static str, Value)> {
        vec![
            ("version", version.into()),
            ("agent", env!("CARGO_PKG_VERSION").into()),
            ("boot_id", self.boot_id.as_str().into()),
            ("kernel", self.kernel.as_str().into()),
            ("init", self.init.as_str().into()),
            ("uptime_ns", self.uptime_ns().into()),
            ("clock_ns", nanoseconds(ClockId::CLOCK_REALTIME).into()),
            (
                "features",
                Value::Array(
                    ["still", "ports", "calls", "time", "secrets", "volumes"]
                        .map(Value::from)
                        .to_vec(),
                ),
            ),
            ("jobs", jobs),
        ]
    }

    /// CLOCK_BOOTTIME in nanoseconds.
    #[must_use]
    #[allow(clippy::unused_self, reason = "one machine has one clock")]
    pub fn uptime_ns(&self) -> u64 {
        u64::try_from(nanoseconds(ClockId::CLOCK_BOOTTIME)).unwrap_or(0)
    }

    /// A line for whoever looks after the machine.
    pub fn log(&self, line: &str) {
        self.log.line(line);
    }

    /// Set CLOCK_REALTIME; by how many nanoseconds it moved.
    pub fn set_clock(&self, realtime_ns: i64) -> Result<i64, Refusal> {
        const SECOND: i64 = 1_000_000_000;
        let time = TimeSpec::new(
            realtime_ns.div_euclid(SECOND),
            realtime_ns.rem_euclid(SECOND),
        );
        let before = nanoseconds(ClockId::CLOCK_REALTIME);
        clock_settime(ClockId::CLOCK_REALTIME, time)
            .map_err(|errno| Refusal::system("cannot set the clock", errno))?;
        Ok(realtime_ns.saturating_sub(before))
    }

    /// Do what `configure` asks, in the order that makes each step safe: entropy before identities, and
    /// processes that were held go on when all of it is done.
    ///
    /// Returns: whether the machine has an SSH server whose host keys were removed.
    pub fn configure(&self, configure: &Configure) -> Result<bool, Refusal> {
        let mut sshd = false;
        if let Some(entropy) = configure.entropy.as_deref().filter(|e| !e.is_empty()) {
            add_entropy(entropy).map_err(|errno| Refusal::system("cannot add entropy", errno))?;
        }
        if let Some(realtime_ns) = configure.realtime_ns {
            self.set_clock(realtime_ns)?;
        }
        if let Some(name) = &configure.hostname {
            unistd::sethostname(name)
                .map_err(|errno| Refusal::system("cannot set the hostname", errno))?;
        }
        if let Some(id) = &configure.machine_id {
            self.write_machine_id(id)
                .map_err(|errno| Refusal::system("cannot write /etc/machine-id", errno))?;
        }
        if configure.renew {
            still::renew_seed(self.top())
                .map_err(|errno| Refusal::system("cannot renew the random seed", errno))?;
            sshd = still::drop_host_keys(self.top())
                .map_err(|errno| Refusal::system("cannot remove SSH host keys", errno))?;
        }
        if configure.thaw {
            still::thaw()?;
        }
        Ok(sshd)
    }

    /// How many processes were killed for memory since the last call, if any.
    pub fn new_oom_kills(&mut self) -> Option<u64> {
        let now = oom_kills();
        let new = now.saturating_sub(self.oom_kills);
        self.oom_kills = now;
        (new > 0).then_some(new)
    }

    /// The machine's root directory, as the agent sees it.
    fn top(&self) -> &'static str {
        match self.root {
            Root::Own => "/",
            Root::OfInit => "/proc/1/root/",
        }
    }

    fn write_machine_id(&self, id: &str) -> Result<(), Errno> {
        let top = File::open(self.top()).map_err(|error| errno_of(&error))?;
        // Links lead where the machine would see them lead; anything but a file is refused.
        let how = OpenHow::new()
            .flags(OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
            .mode(nix::sys::stat::Mode::from_bits_truncate(0o444))
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let mut file = File::from(openat2(&top, "etc/machine-id", how)?);
        let mut write = || -> std::io::Result<()> {
            if !file.metadata()?.is_file() {
                return Err(Errno::EINVAL.into());
            }
            file.set_len(0)?;
            file.write_all(format!("{id}\n").as_bytes())
        };
        write().map_err(|error| errno_of(&error))
    }
}

/// The cause of an I/O error.
#[must_use]
pub fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// CLOCK_REALTIME in nanoseconds.
#[must_use]
pub fn realtime_ns() -> i64 {
    nanoseconds(ClockId::CLOCK_REALTIME)
}

fn nanoseconds(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |time| {
        time.tv_sec().saturating_mul(1_000_000_000) + time.tv_nsec()
    })
}

/// `oom_kill` of /proc/vmstat: processes killed for memory since boot.
fn oom_kills() -> u64 {
    let mut text = String::new();
    let read =
        File::open("/proc/vmstat").and_then(|file| file.take(65_536).read_to_string(&mut text));
    if read.is_err() {
        return 0;
    }
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Mix `bytes` into the kernel's pool, credit them and reseed: see random(4).
fn add_entropy(bytes: &[u8]) -> Result<(), Errno> {
    // linux/random.h: _IOW('R', 0x03, int[2]) and _IO('R', 0x07).
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    #[repr(C)]
    struct PoolInfo {
        entropy_count: libc::c_int,
        size: libc::c_int,
        bytes: [u8; 512],
    }
    let mut pool = PoolInfo {
        entropy_count: 0,
        size: 0,
        bytes: [0; 512],
    };
    let length = bytes.len().min(512);
    pool.bytes[..length].copy_from_slice(&bytes[..length]);
    pool.size = libc::c_int::try_from(length).unwrap_or(0);
    pool.entropy_count = pool.size * 8;
    let random = File::options()
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/random")
        .map_err(|error| errno_of(&error))?;
    // SAFETY: both take what linux/random.h says; `size` is within the array.
    unsafe {
        Errno::result(libc::ioctl(
            random.as_raw_fd(),
            RNDADDENTROPY,
            &raw const pool,
        ))?;
        Errno::result(libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG))?;
    }
    Ok(())
}

/// Bring the loopback device up, as an init does.
pub fn loopback_up() {
    // SAFETY: an all-zero ifreq is valid; its name is shorter than the field and the rest is flags.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return;
        }
        let socket = crate::launch::own(fd);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed();
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "IFF_UP and IFF_RUNNING fit a short"
        )]
        {
            request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        }
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request);
    }
}
