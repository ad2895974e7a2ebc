//! The agent at work: one thread, one loop, all that the protocol asks.
//!
//! A turn of the loop reads the port once, moves a bounded number of bytes for every job, fills the
//! outbox with DATA of one job after the other, and writes. Nothing in it waits but epoll.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signalfd::SignalFd;

use crate::calls::Calls;
use crate::connections::Connections;
use crate::event_loop::{EventLoop, Source, Timer};
use crate::frame::{Header, Kind, STDERR, STDIN, STDOUT, Violation};
use crate::job::{Job, Phase};
use crate::launch::Ground;
use crate::machine::Machine;
use crate::outbox::{MAX_QUEUED, Outbox};
use crate::port::{CHUNK, Port, Read};
use crate::ports::Ports;
use crate::power::Power;
use crate::receiver::{Incoming, Patience, Receiver};
use crate::requests::MAX_LIVE;
use crate::task::Task;
use crate::wire::{self, Ended};
use crate::{children, frame};

/// How long a frame is held that a marker's beginning might have completed. A host writes the marker
/// with its HELLO in one piece, so this only has to outlast the way of one write.
const PATIENCE: Duration = Duration::from_millis(10);
/// How long the kernel must say that no host is there before it is believed: much longer than a host
/// that replaces another takes to be announced, too short for a job to suffer.
const ABSENCE: Duration = Duration::from_millis(500);
/// How long a job whose host vanished waits for somebody to attach before its output is dropped.
const ORPHANED: Duration = Duration::from_secs(60);
/// After the start, when the first requests have had their turn.
const FIND_BUTTON: Duration = Duration::from_secs(1);
/// DATA that is put into the outbox at a time: what is said meanwhile waits behind no more than this.
const DATA_QUEUED: usize = 65_536;
/// Writes per turn.
const WRITES: usize = 8;
/// Between SIGHUP and SIGKILL.
const HANGUP_GRACE: Duration = Duration::from_secs(5);
/// Records of jobs that have ended.
const MAX_ENDED: usize = 64;

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Job(u64),
    Task(u64),
    Connection(u64),
}

/// The agent.
pub struct Server {
    pub(crate) event_loop: EventLoop,
    pub(crate) ground: Ground,
    pub(crate) machine: Machine,
    pub(crate) power: Power,
    pub(crate) out: Outbox,
    pub(crate) jobs: BTreeMap<u64, Job>,
    pub(crate) tasks: BTreeMap<u64, Task>,
    pub(crate) connections: Connections,
    pub(crate) ports: Ports,
    pub(crate) calls: Calls,
    pub(crate) channels: BTreeMap<u32, Target>,
    pub(crate) shares: BTreeMap<u32, crate::share::Mounted>,
    pub(crate) last_number: u64,
    signals: SignalFd,
    port: Port,
    receiver: Receiver,
    /// A HELLO has been answered and the host is still there.
    in_session: bool,
    /// Parsing stopped because too much waits to be written.
    stalled: bool,
    /// The job and flow that sent last.
    turn: (u64, u8),
    pub(crate) scratch: Vec<u8>,
}

impl Server {
    /// An agent that serves `port`. `signals` must be blocked.
    pub fn new(
        event_loop: EventLoop,
        port: Port,
        signals: SignalFd,
        ground: Ground,
        machine: Machine,
        power: Power,
    ) -> Result<Self, Errno> {
        event_loop.watch(&signals, Source::Signals)?;
        Ok(Self {
            event_loop,
            ground,
            machine,
            power,
            out: Outbox::default(),
            jobs: BTreeMap::new(),
            tasks: BTreeMap::new(),
            connections: Connections::default(),
            ports: Ports::default(),
            calls: Calls::default(),
            channels: BTreeMap::new(),
            shares: BTreeMap::new(),
            last_number: 0,
            signals,
            port,
            receiver: Receiver::default(),
            in_session: false,
            stalled: false,
            turn: (0, STDERR),
            scratch: vec![0; 65_536],
        })
    }

    /// Serve until there is nothing left to serve; in a machine that is never.
    pub fn run(&mut self) {
        if self.power.has_button() {
            self.event_loop.set(Timer::FindButton, FIND_BUTTON);
        }
        while !self.port.is_over() && !self.power.is_over() {
            for source in self.event_loop.wait(self.is_busy()) {
                self.on_event(source);
            }
            while let Some(timer) = self.event_loop.expired() {
                self.on_timer(timer);
            }
            self.read_port();
            self.pump_jobs();
            self.pump_connections();
            self.write_port();
        }
        for job in self.jobs.values() {
            job.kill();
        }
    }

    // -- the loop ---------------------------------------------------------------------------------

    fn is_busy(&self) -> bool {
        let reads = !self.stalled && self.port.can_read();
        let writes = self.port.can_write() && (!self.out.is_empty() || self.has_data());
        reads || writes || self.connections.is_busy() || self.jobs.values().any(Job::is_busy)
    }

    fn on_event(&mut self, source: Source) {
        match source {
            Source::Port => self.port.ready(),
            Source::Listener => self.port.accept(&self.event_loop),
            Source::Signals => self.on_signals(),
            Source::PowerButton => self.power_button(),
            Source::Launch(job) => self.on_launch(job),
            Source::Stdin(job) => self.on_ready(job, STDIN),
            Source::Stdout(job) => self.on_ready(job, STDOUT),
            Source::Stderr(job) => self.on_ready(job, STDERR),
            Source::Task(task) => self.on_task(task),
            Source::Ports => self.on_ports(),
            Source::Connection(number) => self.on_connection(number),
            Source::Calls => self.on_calls(),
        }
    }

    fn on_ready(&mut self, job: u64, flow: u8) {
        if let Some(job) = self.jobs.get_mut(&job) {
            job.ready(flow);
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Kill(job) => {
                if let Some(job) = self.jobs.get(&job) {
                    job.kill();
                }
            }
            Timer::Patience => self.parse(Patience::Over),
            Timer::Absence => {
                self.end_session();
                self.receiver.seek();
            }
            Timer::Orphans => {
                for job in self.jobs.values_mut() {
                    job.orphaned = false;
                }
            }
            Timer::FindButton => self.find_power_button(),
            Timer::Power => self.power_advance(),
            Timer::Ports => self.look_at_ports(),
            Timer::Trigger => self.prepare_trigger(),
            Timer::Calls => self.dismiss_calls(),
        }
    }

    fn on_signals(&mut self) {
        // Several of a kind come as one, so each is only a reason to look.
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            if ![libc::SIGCHLD, libc::SIGPIPE].contains(&number) {
                self.power_signal(number);
            }
        }
        while let Some((pid, ended)) = children::reap() {
            let number = self
                .jobs
                .values()
                .find(|job| job.pid == pid)
                .map(|j| j.number);
            if let Some(number) = number {
                self.on_reaped(number, ended);
            }
        }
        self.power_step();
    }

    fn on_reaped(&mut self, number: u64, ended: Ended) {
        // The child is dead, so its status pipe says all that it ever will.
        self.on_launch(number);
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        job.reaped(ended);
        self.event_loop.cancel(Timer::Kill(number));
        if matches!(
            ended,
            Ended::Signal {
                number: libc::SIGKILL,
                ..
            }
        ) && let Some(count) = self.machine.new_oom_kills()
        {
            self.event("oom", vec![("count", count.into())]);
        }
    }

    /// Tell the host something, if one is there.
    pub(crate) fn event(&mut self, name: &str, mut fields: Vec<(&str, rmpv::Value)>) {
        if self.in_session {
            fields.insert(0, ("event", name.into()));
            self.out.frame(Kind::Event, 0, 0, &wire::map(fields));
        }
    }

    // -- the port ---------------------------------------------------------------------------------

    fn read_port(&mut self) {
        if self.stalled {
            if self.out.len() > MAX_QUEUED / 2 {
                return;
            }
            self.stalled = false;
            self.parse(Patience::Hold);
        }
        if self.stalled || !self.port.can_read() {
            return;
        }
        match self.port.read(&mut self.scratch[..CHUNK]) {
            Read::Bytes(count) => {
                self.event_loop.cancel(Timer::Absence);
                self.receiver.feed(&self.scratch[..count]);
                self.parse(Patience::Hold);
            }
            Read::Nothing if self.port.can_read() => {}
            // The host is there and says nothing.
            Read::Nothing => self.event_loop.cancel(Timer::Absence),
            Read::Absent => self.event_loop.set(Timer::Absence, ABSENCE),
            Read::Gone => {
                self.end_session();
                self.receiver.seek();
                self.port.accept(&self.event_loop);
            }
        }
    }

    fn parse(&mut self, patience: Patience) {
        let mut receiver = std::mem::take(&mut self.receiver);
        loop {
            if self.out.len() > MAX_QUEUED {
                self.stalled = true;
                break;
            }
            let result = match receiver.next(patience) {
                None => break,
                Some(Incoming::Marker) => {
                    self.end_session();
                    continue;
                }
                Some(Incoming::Violation(violation)) => Err(violation),
                Some(Incoming::Frame(header, payload)) if header.kind == Kind::Hello => {
                    self.hello(payload).map(Some)
                }
                Some(Incoming::Frame(header, payload)) => {
                    self.frame(header, payload).map(|()| None)
                }
            };
            match result {
                Ok(None) => {}
                Ok(Some(Some(key))) => receiver.set_key(key),
                Ok(Some(None)) => receiver.seek(),
                Err(Violation(reason)) => {
                    self.machine
                        .log(&format!("the host broke the protocol: {reason}"));
                    self.end_session();
                    receiver.seek();
                }
            }
        }
        if receiver.holds() && !self.stalled {
            self.event_loop.set(Timer::Patience, PATIENCE);
        }
        self.receiver = receiver;
    }

    /// Answer a HELLO: the next key, or None when there is no common version.
    fn hello(&mut self, payload: &[u8]) -> Result<Option<[u8; 16]>, Violation> {
        let hello = wire::host_hello(payload)?;
        self.out.raw(&hello.nonce);
        let Some(version) = hello.version else {
            let answer = wire::map(vec![("version", 0.into())]);
            self.out.frame(Kind::Hello, 0, 0, &answer);
            return Ok(None);
        };
        self.in_session = true;
        // What runs comes first: no more than 256 are told.
        let (ended, live): (Vec<&Job>, Vec<&Job>) = self
            .jobs
            .values()
            .partition(|job| matches!(job.phase, Phase::Ended(_)));
        let records: Vec<_> = live
            .iter()
            .chain(&ended)
            .take(256)
            .map(|j| j.record())
            .collect();
        let answer = wire::map(self.machine.hello(version, wire::jobs(&records)));
        self.out.frame(Kind::Hello, 0, 0, &answer);
        Ok(Some(hello.next_key))
    }

    /// Forget the host, keep the jobs.
    fn end_session(&mut self) {
        self.in_session = false;
        self.stalled = false;
        self.out.clear();
        self.channels.clear();
        let mut over = Vec::new();
        for job in self.jobs.values_mut() {
            // A killed helper is followed by another, and the client by itself: nothing is lost.
            job.orphaned |= job.channel.is_some() && !job.detached;
            job.channel = None;
            if job.hung_up && matches!(job.phase, Phase::Ended(_)) {
                over.push(job.number);
            }
        }
        for number in over {
            self.jobs.remove(&number);
        }
        for task in self.tasks.values_mut() {
            task.channel = None;
        }
        self.connections.clear();
        self.forget_ports();
        self.event_loop.set(Timer::Orphans, ORPHANED);
    }

    fn frame(&mut self, header: Header, payload: &[u8]) -> Result<(), Violation> {
        let Header {
            kind,
            flow,
            channel,
            ..
        } = header;
        let outwards = flow != STDIN;
        match kind {
            Kind::Open => return self.open(channel, payload),
            Kind::Ping => {
                self.out.frame(Kind::Pong, 0, 0, payload);
                return Ok(());
            }
            Kind::Data | Kind::Eof if outwards => return Err(Violation("output from the host")),
            Kind::Credit if !outwards => return Err(Violation("credit for the host's own flow")),
            Kind::Data | Kind::Eof | Kind::Credit | Kind::Control | Kind::Close => {}
            _ => return Err(Violation("a frame that only the agent sends")),
        }
        // It may have crossed the end of its channel.
        let Some(&target) = self.channels.get(&channel) else {
            return Ok(());
        };
        let number = match target {
            Target::Job(number) => number,
            Target::Task(number) if kind == Kind::Close => {
                self.channels.remove(&channel);
                if let Some(task) = self.tasks.get_mut(&number) {
                    task.channel = None;
                }
                return Ok(());
            }
            Target::Connection(number) => return self.connection_frame(number, header, payload),
            Target::Task(_) => return Err(Violation("a stream on a request that has none")),
        };
        let Some(job) = self.jobs.get_mut(&number) else {
            return Ok(());
        };
        match kind {
            Kind::Data => job.stdin().receive(payload)?,
            Kind::Eof => job.stdin().end(),
            Kind::Credit if !job.hung_up && !job.exit_sent => {
                let (acked, limit) = frame::credit(payload);
                job.output(flow).credit(acked, limit)?;
            }
            Kind::Control => self.control(number, channel, payload)?,
            Kind::Close => self.close(number, channel),
            _ => {}
        }
        Ok(())
    }

    fn control(&mut self, number: u64, channel: u32, payload: &[u8]) -> Result<(), Violation> {
        let control = wire::control(payload)?;
        let Some(job) = self.jobs.get_mut(&number) else {
            return Ok(());
        };
        if let Some(size) = control.resize {
            job.resize(size);
        }
        if let Some(signal) = control.signal {
            // It may be gone already, or beyond root's reach (it is not: then the host sees no exit).
            let _ = job.signal(signal);
        }
        if control.hangup && !job.hung_up {
            job.hung_up = true;
            job.hang_up();
            self.event_loop.set(Timer::Kill(number), HANGUP_GRACE);
        }
        if control.detach {
            self.close(number, channel);
        }
        Ok(())
    }

    /// CLOSE: the receipt for EXIT, or the job goes on without a consumer.
    fn close(&mut self, number: u64, channel: u32) {
        self.channels.remove(&channel);
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        if job.channel == Some(channel) {
            job.channel = None;
        }
        if job.exit_sent {
            self.jobs.remove(&number);
        } else if !job.hung_up {
            job.detached = true;
        }
    }

    fn write_port(&mut self) {
        for _ in 0..WRITES {
            if self.out.len() < DATA_QUEUED {
                self.fill();
            }
            if self.out.is_empty() || !self.port.can_write() {
                break;
            }
            let count = self.port.write(self.out.front());
            self.out.wrote(count);
        }
    }

    // -- jobs -------------------------------------------------------------------------------------

    fn pump_jobs(&mut self) {
        let Self {
            jobs, out, scratch, ..
        } = self;
        let mut behind = Vec::new();
        for job in jobs.values_mut() {
            job.pump(scratch);
            if let Some(channel) = job.channel
                && !job.exit_sent
                && !matches!(job.phase, Phase::Starting(_))
                && let Some((acked, limit)) = job.stdin().credit_due()
            {
                out.credit(channel, acked, limit);
            }
            if job.has_fallen_behind() {
                behind.push(job.number);
            }
        }
        for number in behind {
            self.drop_consumer(number, "fell-behind", "the consumer did not keep up");
        }
        self.settle_jobs();
    }

    /// End a job's channel with ERROR; the job goes on.
    pub(crate) fn drop_consumer(&mut self, number: u64, code: &'static str, why: &str) {
        if let Some(job) = self.jobs.get_mut(&number)
            && let Some(channel) = job.channel.take()
        {
            self.channels.remove(&channel);
            // After EXIT the channel is over for the host too.
            if !job.exit_sent {
                self.out
                    .refuse(channel, &crate::error::Refusal::new(code, why));
            }
        }
    }

    /// EOF and EXIT where they are due; records that are no longer wanted go.
    fn settle_jobs(&mut self) {
        let (mut over, mut ended) = (Vec::new(), Vec::new());
        for job in self.jobs.values_mut() {
            if let Some(channel) = job.channel
                && !matches!(job.phase, Phase::Starting(_))
            {
                while !job.exit_sent
                    && let Some(flow) = job.take_end()
                {
                    self.out.frame(Kind::Eof, channel, flow, &[]);
                }
                if let Some(result) = job.exit_due() {
                    let payload = wire::exit(result, job.dropped());
                    self.out.frame(Kind::Exit, channel, 0, &payload);
                    job.exit_sent = true;
                }
            }
            if matches!(job.phase, Phase::Ended(_)) {
                if job.hung_up && (job.exit_sent || job.channel.is_none()) {
                    over.push(job.number);
                } else if job.is_drained() {
                    ended.push((job.channel.is_some(), job.number));
                }
            }
        }
        for number in over {
            if let Some(channel) = self.jobs.remove(&number).and_then(|job| job.channel) {
                self.channels.remove(&channel);
            }
        }
        // The oldest go first. Who is attached is about to collect: of those there may be as many as
        // can run, which may all end at once.
        let (attached, left): (Vec<_>, Vec<_>) = ended.into_iter().partition(|&(there, _)| there);
        let most = [(left, MAX_ENDED), (attached, MAX_LIVE)];
        let excess = most.into_iter().flat_map(|(mut jobs, most)| {
            jobs.truncate(jobs.len().saturating_sub(most));
            jobs
        });
        for (_, number) in excess {
            self.drop_consumer(
                number,
                "forgotten",
                "too many ended jobs were not collected",
            );
            self.jobs.remove(&number);
        }
    }

    fn has_data(&self) -> bool {
        self.next_sender().is_some() || self.connections.has_data()
    }

    /// Put DATA into the outbox, one frame of each flow in turn.
    fn fill(&mut self) {
        while self.out.len() < DATA_QUEUED {
            let connected = self.connections.fill(&mut self.out);
            let Some((number, flow)) = self.next_sender() else {
                if connected {
                    continue;
                }
                break;
            };
            self.turn = (number, flow);
            let Some(job) = self.jobs.get_mut(&number) else {
                break;
            };
            let length = job.sendable(flow).min(frame::MAX_DATA);
            if let Some(channel) = job.channel {
                self.out.data_header(channel, flow, length);
                let out = &mut self.out;
                job.output(flow).send(length, |bytes| out.raw(bytes));
            }
        }
        self.settle_jobs();
        self.settle_connections();
    }

    /// Whose turn it is: the first flow after the last one that may send.
    fn next_sender(&self) -> Option<(u64, u8)> {
        let (number, flow) = self.turn;
        let of = |job: &Job, flow: u8| (job.sendable(flow) > 0).then_some((job.number, flow));
        let rest = (flow == STDOUT)
            .then(|| of(self.jobs.get(&number)?, STDERR))
            .flatten();
        let any = |job: &Job| of(job, STDOUT).or_else(|| of(job, STDERR));
        rest.or_else(|| self.jobs.range(number + 1..).find_map(|(_, job)| any(job)))
            .or_else(|| self.jobs.range(..=number).find_map(|(_, job)| any(job)))
    }
}
