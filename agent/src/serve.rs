//! Ways into the serving loop.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::event_loop::EventLoop;
use crate::launch::{self, Ground, Root};
use crate::machine::{Log, Machine};
use crate::port::{Kind, Port};
use crate::power::{Power, Role};
use crate::server::Server;

/// fds for 256 jobs of three streams and a status pipe each, and the agent's own.
const MAX_FILES: u64 = 4_096;

/// Serve as an ordinary process, for tests: jobs get this process's own root.
pub fn as_process(kind: Kind, stream: Option<OwnedFd>) -> Result<(), Errno> {
    launch::hide_inherited();
    let ground = Ground {
        root: Root::Own,
        cgroup: None,
        program: launch::own_program()?,
    };
    let machine = Machine::new("agent", Root::Own, Log::Stderr);
    serve(kind, stream, ground, machine, Role::Process)
}

/// Serve with what is given, until there is nothing left to serve.
pub fn serve(
    kind: Kind,
    stream: Option<OwnedFd>,
    ground: Ground,
    machine: Machine,
    role: Role,
) -> Result<(), Errno> {
    let signals = take_signals(&role)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // A lower limit means fewer jobs, each of which is then told.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, MAX_FILES.min(hard), hard);
    if let Some(stream) = &stream {
        fcntl(stream, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
    }
    if let Kind::Listening(listener) = &kind {
        fcntl(
            listener,
            FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK),
        )?;
    }
    let event_loop = EventLoop::new()?;
    let port = Port::new(kind, stream, &event_loop)?;
    Server::new(event_loop, port, signals, ground, machine, Power::new(role))?.run();
    Ok(())
}

/// Reset every signal to its default (children then need no more than an empty mask) and take those
/// that mean something through an fd. SIGPIPE is taken too, so that a write to what has gone is an error.
fn take_signals(role: &Role) -> Result<SignalFd, Errno> {
    reset_signals();
    let mut taken = vec![libc::SIGCHLD, libc::SIGPIPE];
    match role {
        Role::Process => taken.extend([libc::SIGTERM, libc::SIGINT]),
        Role::Init => {
            let first = libc::SIGRTMIN();
            taken.extend([
                libc::SIGINT,
                libc::SIGTERM,
                libc::SIGUSR1,
                libc::SIGUSR2,
                libc::SIGPWR,
            ]);
            taken.extend([first + 3, first + 4, first + 5]);
        }
        Role::BesideInit { .. } => {}
    }
    let taken = signal_set(&taken);
    // In a machine nothing but SIGKILL may end the agent.
    let blocked = match role {
        Role::Process => taken,
        _ => SigSet::all(),
    };
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None)?;
    SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// A set that may hold real-time signals, which `SigSet::add` does not take.
fn signal_set(numbers: &[i32]) -> SigSet {
    // SAFETY: sigemptyset initializes what it is given; sigaddset and the conversion get that.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &number in numbers {
            libc::sigaddset(&raw mut set, number);
        }
        SigSet::from_sigset_t_unchecked(set)
    }
}

/// All dispositions back to default, also of the two real-time signals that the C library keeps to
/// itself and of which it would not let us.
fn reset_signals() {
    // The kernel's struct sigaction of x86-64: handler, flags, restorer and mask, all "default".
    let default = [0u64; 4];
    for number in 1..=64 {
        // SAFETY: four words are read, none written. SIGKILL and SIGSTOP give EINVAL.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
    }
}
