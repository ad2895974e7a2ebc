//! OPEN: what a host can ask, and the answers.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd;
use rmpv::Value;

use crate::error::Refusal;
use crate::event_loop::Source;
use crate::frame::Violation;
use crate::job::{Job, Phase, Streams};
use crate::launch::{self, Stdio};
use crate::server::{Server, Target};
use crate::task;
use crate::wire::{self, Attach, Exec, Request};
use crate::{clock, filesystem, network, pty, share, still, volume};

/// Jobs that run at once.
pub(crate) const MAX_LIVE: usize = 256;
/// Channels at once.
const MAX_CHANNELS: usize = 512;
/// Job records in one listing.
const MAX_LISTED: usize = 320;

type Fields = Vec<(&'static str, Value)>;

impl Server {
    /// OPEN came.
    pub(crate) fn open(&mut self, channel: u32, payload: &[u8]) -> Result<(), Violation> {
        if self.channels.contains_key(&channel) {
            return Err(Violation("OPEN on a channel that is open"));
        }
        let request = wire::request(payload)?;
        let answer = if self.channels.len() >= MAX_CHANNELS {
            Err(Refusal::new(
                "too-many-channels",
                "too many channels are open",
            ))
        } else {
            request.and_then(|request| self.answer(channel, request))
        };
        match answer {
            Ok(Some(fields)) => self.out.opened(channel, fields),
            // It comes when the job has started, or the task is done.
            Ok(None) => {}
            Err(refusal) => self.out.refuse(channel, &refusal),
        }
        Ok(())
    }

    fn answer(&mut self, channel: u32, request: Request) -> Result<Option<Fields>, Refusal> {
        match request {
            Request::Exec(exec) => self.exec(channel, *exec).map(|()| None),
            Request::Attach(attach) => self.attach(channel, &attach).map(Some),
            Request::Jobs => {
                let records: Vec<_> = self.jobs.values().map(Job::record).collect();
                let latest = &records[records.len().saturating_sub(MAX_LISTED)..];
                Ok(Some(vec![("jobs", wire::jobs(latest))]))
            }
            Request::Forget { job } => self.forget(job),
            Request::Signal { job, signal } => {
                let found = self.jobs.get(&job).ok_or_else(|| no_such_job(job))?;
                found
                    .signal(signal)
                    .map_err(|errno| Refusal::system("cannot send the signal", errno))?;
                Ok(Some(Vec::new()))
            }
            Request::Clock { realtime_ns } => {
                let stepped = self.machine.set_clock(realtime_ns)?;
                Ok(Some(vec![("stepped_ns", stepped.into())]))
            }
            Request::Time { slew_ns } => {
                let now = clock::look(slew_ns)?;
                Ok(Some(vec![
                    ("realtime_ns", now.realtime_ns.into()),
                    ("synchronized", now.synchronized.into()),
                    ("pending_ns", now.pending_ns.into()),
                ]))
            }
            Request::Configure(configure) => {
                let sshd = self.machine.configure(&configure)?;
                Ok(Some(vec![("sshd", sshd.into())]))
            }
            Request::Freeze { sync } => {
                self.start_task(channel, move || still::freeze(sync).map(|()| None))
            }
            Request::Thaw => {
                still::thaw()?;
                Ok(Some(Vec::new()))
            }
            Request::Network(network) => {
                let done = network::configure(&network, self.ground.root)?;
                Ok(Some(vec![
                    ("interface", done.interface.into()),
                    ("resolver", done.resolver.into()),
                ]))
            }
            Request::Ports => self.watch_ports().map(Some),
            Request::Connect(to) => self.connect(channel, to).map(|()| None),
            Request::Call(request) => self.call_request(channel, request).map(|()| None),
            Request::Share(wanted) => self.share(channel, &wanted),
            Request::Unshare { slot } => {
                if let Some(mounted) = self.shares.remove(&slot) {
                    mounted.unmount(self.ground.root)?;
                }
                Ok(Some(Vec::new()))
            }
            Request::Grow => {
                let root = self.ground.root;
                self.start_task(channel, move || filesystem::grow(root).map(Some))
            }
            Request::Mount(mount) => {
                let root = self.ground.root;
                self.start_task(channel, move || volume::mount(root, &mount).map(Some))
            }
            Request::Unmount(mount) => {
                let root = self.ground.root;
                self.start_task(channel, move || {
                    volume::unmount(root, &mount).map(|()| None)
                })
            }
            Request::Sync => self.start_task(channel, || {
                unistd::sync();
                Ok(None)
            }),
            Request::PowerOff { reboot, grace_ms } => {
                self.power_allowed()?;
                // Answered first: soon there may be nobody left to.
                self.out.opened(channel, Vec::new());
                self.power_begin(reboot, grace_ms);
                Ok(None)
            }
        }
    }

    // -- jobs -------------------------------------------------------------------------------------

    fn exec(&mut self, channel: u32, exec: Exec) -> Result<(), Refusal> {
        let live = self
            .jobs
            .values()
            .filter(|job| !matches!(job.phase, Phase::Ended(_)))
            .count();
        if live >= MAX_LIVE {
            return Err(Refusal::new("too-many-jobs", "256 jobs are running"));
        }
        if self.power.is_going_off() {
            return Err(Refusal::new("power-off", "the machine is powering off"));
        }
        let (streams, theirs) = self.streams(&exec)?;
        let stdio = Stdio {
            stdin: theirs[0].as_fd(),
            stdout: theirs[1].as_fd(),
            stderr: theirs.get(2).unwrap_or(&theirs[1]).as_fd(),
        };
        let launched = launch::launch(&self.ground, &exec, &stdio)?;
        drop(theirs);
        self.last_number += 1;
        let number = self.last_number;
        let mut job = Job::new(number, launched.pid, launched.status, channel, streams);
        job.started_ns = self.machine.uptime_ns();
        job.label = exec.label;
        job.argv = exec.argv;
        job.user = exec.user;
        job.detached = exec.detached;
        job.private = exec.secrets.private;
        if let Err(errno) = job.watch(&self.event_loop) {
            job.kill();
            return Err(Refusal::system("cannot watch another job", errno));
        }
        self.jobs.insert(number, job);
        self.channels.insert(channel, Target::Job(number));
        Ok(())
    }

    /// The agent's ends of a new job's streams and the job's own: stdin, stdout and, without a
    /// terminal, stderr.
    fn streams(&self, exec: &Exec) -> Result<(Streams, Vec<OwnedFd>), Refusal> {
        let refuse = |errno| Refusal::system("cannot make the job's streams", errno);
        let null = |error: std::io::Error| {
            refuse(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
        };
        if let Some(size) = exec.tty {
            let (master, slave) = pty::open(self.ground.root, size)?;
            let copy = || master.try_clone().map_err(null);
            let streams = Streams {
                stdin: Some(copy()?),
                stdout: copy()?,
                stderr: None,
                terminal: Some(copy()?),
            };
            let again = slave.try_clone().map_err(null)?;
            return Ok((streams, vec![slave, again]));
        }
        let (stdin, their_stdin) = if exec.stdin {
            let (read, write) = unistd::pipe2(OFlag::O_CLOEXEC).map_err(refuse)?;
            (Some(write), read)
        } else {
            (None, File::open("/dev/null").map_err(null)?.into())
        };
        let (stdout, their_stdout) = unistd::pipe2(OFlag::O_CLOEXEC).map_err(refuse)?;
        let (stderr, their_stderr) = unistd::pipe2(OFlag::O_CLOEXEC).map_err(refuse)?;
        // Only the agent's ends: programs do not expect theirs to be non-blocking.
        for ours in stdin.iter().chain([&stdout, &stderr]) {
            fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(refuse)?;
        }
        let streams = Streams {
            stdin,
            stdout,
            stderr: Some(stderr),
            terminal: None,
        };
        Ok((streams, vec![their_stdin, their_stdout, their_stderr]))
    }

    /// The status pipe of a launch has news: OPENED or ERROR.
    pub(crate) fn on_launch(&mut self, number: u64) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        let Phase::Starting(status) = &job.phase else {
            return;
        };
        let mut bytes = [0; launch::MAX_VERDICT];
        let verdict = match unistd::read(status, &mut bytes) {
            Ok(count) => launch::verdict(&bytes[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(errno) => Err(Refusal::system("cannot see how the launch went", errno)),
        };
        let channel = job.channel;
        match verdict {
            Ok(()) => {
                job.phase = Phase::Running;
                if let Some(channel) = channel {
                    let fields = vec![("job", number.into()), ("pid", job.pid.into())];
                    self.out.opened(channel, fields);
                }
            }
            Err(refusal) => {
                self.jobs.remove(&number);
                if let Some(channel) = channel {
                    self.channels.remove(&channel);
                    self.out.refuse(channel, &refusal);
                }
            }
        }
    }

    fn attach(&mut self, channel: u32, attach: &Attach) -> Result<Fields, Refusal> {
        let number = attach.job;
        match self.jobs.get(&number) {
            None => return Err(no_such_job(number)),
            Some(job) if job.hung_up || matches!(job.phase, Phase::Starting(_)) => {
                return Err(no_such_job(number));
            }
            Some(_) => {}
        }
        self.drop_consumer(number, "taken-over", "another consumer has attached");
        let Some(job) = self.jobs.get_mut(&number) else {
            return Err(no_such_job(number));
        };
        let froms = job.attach(channel, attach.stdout_received, attach.stderr_received);
        let Some([stdin, stdout, stderr]) = froms else {
            return Err(Refusal::invalid("the job has not written that much"));
        };
        self.channels.insert(channel, Target::Job(number));
        Ok(vec![
            ("job", number.into()),
            ("pid", job.pid.into()),
            ("stdin_received", stdin.into()),
            ("stdout_from", stdout.into()),
            ("stderr_from", stderr.into()),
        ])
    }

    fn forget(&mut self, number: u64) -> Result<Option<Fields>, Refusal> {
        let job = self.jobs.get(&number).ok_or_else(|| no_such_job(number))?;
        if !matches!(job.phase, Phase::Ended(_)) {
            return Err(Refusal::new("job-running", "the job is still running"));
        }
        self.drop_consumer(number, "forgotten", "the job's record was dropped");
        self.jobs.remove(&number);
        Ok(Some(Vec::new()))
    }

    // -- tasks ------------------------------------------------------------------------------------

    fn start_task(
        &mut self,
        channel: u32,
        work: impl FnOnce() -> Result<Option<u64>, Refusal>,
    ) -> Result<Option<Fields>, Refusal> {
        self.watch_task(channel, task::start(Some(channel), work)?)?;
        Ok(None)
    }

    fn watch_task(&mut self, channel: u32, task: task::Task) -> Result<(), Refusal> {
        self.last_number += 1;
        let number = self.last_number;
        self.event_loop
            .watch(&task.answer, Source::Task(number))
            .map_err(|errno| Refusal::system("cannot watch another task", errno))?;
        self.tasks.insert(number, task);
        self.channels.insert(channel, Target::Task(number));
        Ok(())
    }

    /// Mount a directory of the host; one that is mounted has a new server.
    fn share(&mut self, channel: u32, wanted: &share::Share) -> Result<Option<Fields>, Refusal> {
        let (slot, root) = (wanted.slot, self.ground.root);
        if share::announce(self.shares.get(&slot), wanted) {
            return Ok(Some(Vec::new()));
        }
        if let Some(other) = self.shares.remove(&slot) {
            other.unmount(root)?;
        }
        let (task, mounted) = share::start(channel, wanted, root)?;
        self.watch_task(channel, task)?;
        self.shares.insert(slot, mounted);
        Ok(None)
    }

    /// A task's pipe has news.
    pub(crate) fn on_task(&mut self, number: u64) {
        let Some(task) = self.tasks.get(&number) else {
            return;
        };
        let mut bytes = [0; task::MAX_ANSWER];
        let verdict = match unistd::read(&task.answer, &mut bytes) {
            Ok(count) => task::verdict(&bytes[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(errno) => Err(Refusal::system("cannot see how the task went", errno)),
        };
        let channel = task.channel;
        self.tasks.remove(&number);
        if self.trigger_prepared(number, verdict.as_ref().map(drop)) {
            return;
        }
        if self.door_made(number, channel, verdict.as_ref().map(|n| *n)) {
            return;
        }
        let Some(channel) = channel else { return };
        self.channels.remove(&channel);
        match verdict {
            Ok(number) => {
                let bytes = number.map(|n| ("bytes", n.into()));
                self.out.opened(channel, bytes.into_iter().collect());
            }
            Err(refusal) => self.out.refuse(channel, &refusal),
        }
    }

    /// All jobs, for powering off.
    pub(crate) fn all_jobs(&self) -> &BTreeMap<u64, Job> {
        &self.jobs
    }
}

fn no_such_job(job: u64) -> Refusal {
    Refusal::new("no-such-job", format!("there is no job {job}"))
}
