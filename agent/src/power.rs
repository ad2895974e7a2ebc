//! Ending the machine in an orderly way.
//!
//! ```text
//! Jobs: SIGTERM ── all ended, or a quarter of the grace ──> Rest ── ended, or the grace ──> Last
//! ```
//!
//! With an init, *Rest* kills what is left of the jobs and asks the init to power off; the machine then
//! goes off by its own hands, and *Last* is for an init that stalls. Without one, *Rest* is SIGTERM to
//! every process and *Last* SIGKILL. *Last* always ends with sync, a read-only root and the power.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{self, Pid};

use crate::boot::button;
use crate::error::Refusal;
use crate::event_loop::{Source, Timer};
use crate::job::Phase as JobPhase;
use crate::server::Server;
use crate::{children, mounts, task};

/// After SIGKILL to everything: until the kernel has taken all of it apart.
const KILLED_GRACE: Duration = Duration::from_secs(2);
/// What is used when nobody said (a signal, the power button).
const GRACE_MS: u64 = 10_000;
/// Longer than this nobody waits.
const MAX_GRACE_MS: u64 = 600_000;

/// Who can end what the agent serves.
#[derive(Debug)]
pub enum Role {
    /// An ordinary process under test: SIGTERM ends it, there is no power.
    Process,
    /// PID 1.
    Init,
    /// Beside the machine's own init.
    BesideInit {
        /// `cgroup.kill` of the cgroup that all jobs are in.
        kill_jobs: Option<OwnedFd>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Jobs,
    Rest,
    Last,
    Gone,
}

/// How far the machine is with going off.
pub struct Power {
    role: Role,
    step: Option<Step>,
    reboot: bool,
    grace: Duration,
    buttons: Vec<OwnedFd>,
}

impl Power {
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self {
            role,
            step: None,
            reboot: false,
            grace: Duration::ZERO,
            buttons: Vec::new(),
        }
    }

    /// Whether the power button is the agent's to watch.
    #[must_use]
    pub fn has_button(&self) -> bool {
        matches!(self.role, Role::Init)
    }

    /// Whether what is served is a machine, and the kernel ours to ask.
    #[must_use]
    pub fn has_machine(&self) -> bool {
        !matches!(self.role, Role::Process)
    }

    /// Whether the loop is to end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.role, Role::Process) && self.step == Some(Step::Gone)
    }

    /// Whether the machine is going off.
    #[must_use]
    pub fn is_going_off(&self) -> bool {
        self.step.is_some()
    }
}

impl Server {
    /// Whether there is power to switch off.
    pub(crate) fn power_allowed(&self) -> Result<(), Refusal> {
        match self.power.role {
            Role::Process => Err(Refusal::new(
                "unsupported",
                "this agent is not in a machine",
            )),
            _ => Ok(()),
        }
    }

    /// A signal came to the agent. What init is asked with, so that the machine's own `poweroff`
    /// (systemd's, busybox's, sysvinit's) works where the agent is init.
    pub(crate) fn power_signal(&mut self, number: i32) {
        let first = libc::SIGRTMIN();
        match self.power.role {
            Role::Process => self.power.step = Some(Step::Gone),
            Role::BesideInit { .. } => {}
            // Ctrl-Alt-Del is SIGINT. systemd: +3 halt, +4 power off, +5 reboot. busybox: SIGUSR1 halt,
            // SIGUSR2 power off, SIGTERM reboot. SIGPWR is sysvinit's.
            Role::Init => {
                let reboot = [libc::SIGINT, libc::SIGTERM, first + 5].contains(&number);
                self.power_begin(reboot, GRACE_MS);
            }
        }
    }

    /// Find the power button, where nobody else looks after it.
    pub(crate) fn find_power_button(&mut self) {
        self.power.buttons = button::open();
        for button in &self.power.buttons {
            if let Err(errno) = self.event_loop.watch(button, Source::PowerButton) {
                self.machine
                    .log(&format!("cannot watch the power button: {}", errno.desc()));
            }
        }
    }

    /// The power button has news.
    pub(crate) fn power_button(&mut self) {
        // All of them are asked, so that none keeps an event.
        let pressed = self
            .power
            .buttons
            .iter()
            .filter(|b| button::pressed(b))
            .count();
        if pressed > 0 {
            self.power_begin(false, GRACE_MS);
        }
    }

    /// Begin to end the machine. Once begun it goes on to the end.
    pub(crate) fn power_begin(&mut self, reboot: bool, grace_ms: u64) {
        if self.power.step.is_some() {
            return;
        }
        self.power.step = Some(Step::Jobs);
        self.power.reboot = reboot;
        self.power.grace = Duration::from_millis(grace_ms.min(MAX_GRACE_MS));
        self.event("poweroff-begun", Vec::new());
        for job in self.all_jobs().values() {
            job.terminate();
        }
        self.event_loop.set(Timer::Power, self.power.grace / 4);
        self.power_step_if_jobs_ended();
    }

    /// A deadline has passed, or children have ended: go on if it is time.
    pub(crate) fn power_step(&mut self) {
        match self.power.step {
            Some(Step::Jobs) => self.power_step_if_jobs_ended(),
            Some(Step::Rest | Step::Last)
                if matches!(self.power.role, Role::Init) && !children::any() =>
            {
                self.power_advance();
            }
            _ => {}
        }
    }

    fn power_step_if_jobs_ended(&mut self) {
        let ended = |job: &crate::job::Job| matches!(job.phase, JobPhase::Ended(_));
        if self.power.step == Some(Step::Jobs) && self.all_jobs().values().all(ended) {
            self.power_advance();
        }
    }

    /// Take the next step.
    pub(crate) fn power_advance(&mut self) {
        let grace = self.power.grace;
        match self.power.step {
            None | Some(Step::Gone) => {}
            Some(Step::Jobs) => {
                self.power.step = Some(Step::Rest);
                self.event_loop.set(Timer::Power, grace.mul_f32(0.75));
                match &self.power.role {
                    Role::Process => {}
                    Role::Init => {
                        signal_all(Signal::SIGTERM);
                        signal_all(Signal::SIGCONT);
                        self.power_step();
                    }
                    Role::BesideInit { kill_jobs } => {
                        if let Some(cgroup) = kill_jobs {
                            let _ = unistd::write(cgroup.as_fd(), b"1");
                        }
                        let reboot = self.power.reboot;
                        if let Err(refusal) = ask_init(reboot) {
                            self.machine.log(&refusal.message);
                        }
                    }
                }
            }
            Some(Step::Rest) => {
                self.power.step = Some(Step::Last);
                self.event_loop.set(Timer::Power, KILLED_GRACE);
                if matches!(self.power.role, Role::Init) {
                    signal_all(Signal::SIGKILL);
                    self.power_step();
                } else {
                    self.machine
                        .log("the init did not power off in time, so the agent does");
                    self.power_advance();
                }
            }
            Some(Step::Last) => {
                self.power.step = Some(Step::Gone);
                self.event_loop.cancel(Timer::Power);
                let reboot = self.power.reboot;
                let is_init = matches!(self.power.role, Role::Init);
                // In a child: a disk that does not answer must not silence the agent.
                if let Err(refusal) = task::start(None, move || power_off(reboot, is_init)) {
                    self.machine.log(&refusal.message);
                    let _ = power_off(reboot, is_init);
                }
            }
        }
    }
}

/// Every process but the caller and init.
fn signal_all(signal: Signal) {
    let _ = kill(Pid::from_raw(-1), signal);
}

/// Ask the machine's init to end the machine.
///
/// systemd takes a signal (systemd(1), "Signals"). Every other init comes with commands of its own that
/// know how to ask it; where there are none, SIGPWR is what init has always been told of power with.
fn ask_init(reboot: bool) -> Result<(), Refusal> {
    let name = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    if name.trim() == "systemd" {
        let number = libc::SIGRTMIN() + if reboot { 5 } else { 4 };
        // SAFETY: a plain system call.
        let result = unsafe { libc::kill(1, number) };
        return Errno::result(result)
            .map(drop)
            .map_err(|errno| Refusal::system("cannot signal the init", errno));
    }
    task::start(None, move || {
        unistd::setsid().map_err(|errno| Refusal::system("cannot make a session", errno))?;
        let enter = unistd::chroot("/proc/1/root").and_then(|()| unistd::chdir("/"));
        enter.map_err(|errno| Refusal::system("cannot enter the machine's root", errno))?;
        let mask = nix::sys::signal::SigSet::empty();
        let _ = mask.thread_set_mask();
        let (command, name) = if reboot {
            ("reboot", c"reboot")
        } else {
            ("poweroff", c"poweroff")
        };
        for directory in ["/sbin", "/usr/sbin", "/bin", "/usr/bin"] {
            let path = std::ffi::CString::new(format!("{directory}/{command}")).expect("no NUL");
            let environment = [c"PATH=/usr/sbin:/usr/bin:/sbin:/bin"];
            let _ = unistd::execve(&path, &[name], &environment);
        }
        let signal = if reboot {
            Signal::SIGINT
        } else {
            Signal::SIGPWR
        };
        kill(Pid::from_raw(1), signal)
            .map_err(|errno| Refusal::system("cannot signal the init", errno))?;
        Ok(None)
    })
    .map(drop)
}

/// Write everything to disk, leave the file systems clean, and end the machine.
fn power_off(again: bool, is_init: bool) -> Result<Option<u64>, Refusal> {
    unistd::sync();
    if is_init {
        mounts::unmount_all();
    }
    mounts::make_read_only(is_init);
    unistd::sync();
    let mode = if again {
        RebootMode::RB_AUTOBOOT
    } else {
        RebootMode::RB_POWER_OFF
    };
    match reboot(mode) {
        Ok(never) => match never {},
        Err(errno) => Err(Refusal::system("cannot end the machine", errno)),
    }
}
