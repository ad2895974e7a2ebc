//! One job: a process group, its streams, and what is kept of it for its consumer.
//!
//! ```text
//! Starting --exec succeeded--> Running --reaped--> Ended (drains what was written by then)
//!     |                                              |
//!  exec failed: gone                          EXIT sent, then CLOSE or `forget`: gone
//! ```
//!
//! The consumer (a channel) may come and go in any of them.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{self, Pid};

use crate::event_loop::{EventLoop, Source};
use crate::flow::{Input, Output};
use crate::frame::{STDERR, STDIN, STDOUT};
use crate::wire::{Ended, JobRecord, TerminalSize};

/// What is read of one output in one turn of the loop, so that one job cannot hold the others.
const TURN: usize = 131_072;
/// What a terminal can hold of what its program has written before it ended, in bytes: 64 KiB of the
/// kernel's buffers and a page of the line discipline, with room to spare. Bounds what is taken from
/// background children that go on writing.
const TERMINAL_REST: usize = 131_072;

/// How far a job is.
#[derive(Debug)]
pub enum Phase {
    /// The status pipe of its launch has not ended yet.
    Starting(OwnedFd),
    Running,
    Ended(Ended),
}

/// An output of the job: where it is read, and the bytes on their way to the consumer.
#[derive(Debug)]
pub struct Tap {
    pub flow: Output,
    source: Option<OwnedFd>,
    readable: bool,
    /// After the end: what is still to be read.
    rest: Option<usize>,
    end_sent: bool,
}

impl Tap {
    fn new(source: Option<OwnedFd>) -> Self {
        Self {
            flow: Output::new(),
            // A stream that the job does not have has nothing to end.
            end_sent: source.is_none(),
            source,
            readable: false,
            rest: None,
        }
    }
}

/// A job.
#[derive(Debug)]
pub struct Job {
    pub number: u64,
    pub pid: i32,
    pub label: String,
    pub argv: Vec<Vec<u8>>,
    pub user: String,
    pub detached: bool,
    /// It was given secrets.
    pub private: bool,
    /// Its host vanished without a word, and may be back soon.
    pub orphaned: bool,
    pub started_ns: u64,
    pub phase: Phase,
    /// The channel whose consumer gets its output.
    pub channel: Option<u32>,
    /// The consumer has gone and wants nothing of it any more.
    pub hung_up: bool,
    pub exit_sent: bool,
    is_terminal: bool,
    terminal: Option<OwnedFd>,
    has_stderr: bool,
    stdin: Input,
    sink: Option<OwnedFd>,
    writable: bool,
    taps: [Tap; 2],
}

/// The agent's ends of a job's streams, all non-blocking.
pub struct Streams {
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    /// None for a terminal.
    pub stderr: Option<OwnedFd>,
    /// The terminal itself.
    pub terminal: Option<OwnedFd>,
}

impl Job {
    /// A job whose child has just been made.
    #[must_use]
    pub fn new(number: u64, pid: i32, status: OwnedFd, channel: u32, streams: Streams) -> Self {
        let mut stdin = Input::new();
        if streams.stdin.is_none() {
            stdin.close();
        }
        Self {
            number,
            pid,
            label: String::new(),
            argv: Vec::new(),
            user: String::new(),
            detached: false,
            private: false,
            orphaned: false,
            started_ns: 0,
            phase: Phase::Starting(status),
            channel: Some(channel),
            hung_up: false,
            exit_sent: false,
            has_stderr: streams.stderr.is_some(),
            is_terminal: streams.terminal.is_some(),
            terminal: streams.terminal,
            stdin,
            sink: streams.stdin,
            writable: true,
            taps: [Tap::new(Some(streams.stdout)), Tap::new(streams.stderr)],
        }
    }

    /// Watch all its fds.
    pub fn watch(&self, event_loop: &EventLoop) -> Result<(), Errno> {
        if let Phase::Starting(status) = &self.phase {
            event_loop.watch(status, Source::Launch(self.number))?;
        }
        if let Some(sink) = &self.sink {
            event_loop.watch(sink, Source::Stdin(self.number))?;
        }
        let sources = [Source::Stdout(self.number), Source::Stderr(self.number)];
        for (tap, name) in self.taps.iter().zip(sources) {
            if let Some(source) = &tap.source {
                event_loop.watch(source, name)?;
            }
        }
        Ok(())
    }

    // -- what the loop sees -----------------------------------------------------------------------

    /// epoll said that `flow` can be read or written.
    pub fn ready(&mut self, flow: u8) {
        match flow {
            STDIN => self.writable = true,
            _ => self.tap(flow).readable = true,
        }
    }

    /// Move bytes between the job's pipes and its flows, as far as one turn goes.
    pub fn pump(&mut self, scratch: &mut [u8]) {
        self.write_stdin();
        let dropping = self.drops();
        let ended = matches!(self.phase, Phase::Ended(_));
        let is_terminal = self.is_terminal;
        for tap in &mut self.taps {
            let mut turn = TURN;
            while turn > 0 && tap.can_read(dropping) {
                let room = if dropping {
                    scratch.len()
                } else {
                    tap.flow.space()
                };
                let most = room
                    .min(scratch.len())
                    .min(turn)
                    .min(tap.rest.unwrap_or(usize::MAX));
                match tap.read(&mut scratch[..most]) {
                    Ok(0) => tap.source = None,
                    Ok(count) => {
                        if dropping {
                            tap.flow.make_room(count);
                        }
                        tap.flow.push(&scratch[..count]);
                        turn -= count;
                        if let Some(rest) = &mut tap.rest {
                            *rest -= count;
                        }
                    }
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => {
                        tap.readable = false;
                        if ended {
                            tap.source = None;
                        }
                    }
                    // A terminal that no process has open now; one may open it again.
                    Err(Errno::EIO) if is_terminal && !ended => tap.readable = false,
                    Err(_) => tap.source = None,
                }
                if tap.rest == Some(0) {
                    tap.source = None;
                }
            }
        }
        if ended && self.is_drained() {
            self.terminal = None;
        }
    }

    /// Whether `pump` has something to do without another event.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let dropping = self.drops();
        self.taps.iter().any(|tap| tap.can_read(dropping))
            || (self.writable && self.sink.is_some() && !self.stdin.front().is_empty())
    }

    /// Its process was reaped. What it had written by now will be read, no more.
    pub fn reaped(&mut self, ended: Ended) {
        self.phase = Phase::Ended(ended);
        self.stdin.close();
        self.sink = None;
        let is_terminal = self.is_terminal;
        for tap in &mut self.taps {
            let Some(source) = &tap.source else { continue };
            let rest = if is_terminal {
                TERMINAL_REST
            } else {
                waiting_in(source)
            };
            tap.rest = Some(rest);
            tap.readable = true;
            if rest == 0 {
                tap.source = None;
            }
        }
    }

    // -- what the host says -----------------------------------------------------------------------

    /// The flow of stdin.
    pub fn stdin(&mut self) -> &mut Input {
        &mut self.stdin
    }

    /// The flow of an output.
    pub fn output(&mut self, flow: u8) -> &mut Output {
        &mut self.tap(flow).flow
    }

    /// A new consumer: where stdin, stdout and stderr go on. None when it claims too much.
    pub fn attach(&mut self, channel: u32, stdout: u64, stderr: u64) -> Option<[u64; 3]> {
        let froms = [
            self.taps[0].flow.attach(stdout)?,
            self.taps[1].flow.attach(stderr)?,
        ];
        self.taps[0].end_sent = false;
        self.taps[1].end_sent = !self.has_stderr;
        self.channel = Some(channel);
        self.orphaned = false;
        self.exit_sent = false;
        Some([self.stdin.attach(), froms[0], froms[1]])
    }

    /// Send a signal to its process group; for a terminal to the one in the foreground.
    pub fn signal(&self, number: i32) -> Result<(), Errno> {
        if matches!(self.phase, Phase::Ended(_)) {
            return Ok(());
        }
        let group = self.foreground().unwrap_or(self.pid);
        // SAFETY: a plain system call. The pid is that of an unreaped child, so it names no other.
        Errno::result(unsafe { libc::killpg(group, number) })
            .map(drop)
            .or_else(|errno| match errno {
                // Between clone and setsid it leads no group yet.
                // SAFETY: as above.
                Errno::ESRCH => Errno::result(unsafe { libc::kill(self.pid, number) }).map(drop),
                other => Err(other),
            })
    }

    /// SIGHUP to all of the session's leaders' group, and wake it so that it can see it.
    pub fn hang_up(&self) {
        self.signal_all(&[Signal::SIGHUP, Signal::SIGCONT]);
    }

    /// Ask it to end: what is interactive ignores SIGTERM but not SIGHUP.
    pub fn terminate(&self) {
        if self.is_terminal {
            self.hang_up();
        }
        self.signal_all(&[Signal::SIGTERM, Signal::SIGCONT]);
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.signal_all(&[Signal::SIGKILL]);
    }

    /// Set the terminal's size.
    pub fn resize(&self, size: TerminalSize) {
        if let Some(terminal) = &self.terminal {
            crate::pty::resize(terminal.as_fd(), size);
        }
    }

    // -- towards the host -------------------------------------------------------------------------

    /// How much of `flow` can be sent now: `None` unless a consumer is there.
    #[must_use]
    pub fn sendable(&self, flow: u8) -> usize {
        match self.phase {
            Phase::Starting(_) => 0,
            _ if self.channel.is_none() || self.exit_sent => 0,
            _ => self.taps[usize::from(flow - STDOUT)].flow.sendable(),
        }
    }

    /// An output that has ended and was sent to its end, once.
    pub fn take_end(&mut self) -> Option<u8> {
        let at = self
            .taps
            .iter()
            .position(|tap| tap.source.is_none() && !tap.end_sent && tap.flow.is_sent())?;
        self.taps[at].end_sent = true;
        Some(if at == 0 { STDOUT } else { STDERR })
    }

    /// Whether EXIT is to be sent now.
    #[must_use]
    pub fn exit_due(&self) -> Option<Ended> {
        match self.phase {
            Phase::Ended(ended) if self.channel.is_some() && !self.exit_sent => {
                let sent = self.taps.iter().all(|tap| tap.end_sent);
                (sent || self.hung_up).then_some(ended)
            }
            _ => None,
        }
    }

    /// Whether nothing more will be read from it.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.taps.iter().all(|tap| tap.source.is_none())
    }

    /// Whether its output waits for a consumer that does not keep up, although it must not.
    #[must_use]
    pub fn has_fallen_behind(&self) -> bool {
        self.detached
            && !self.drops()
            && self
                .taps
                .iter()
                .any(|tap| tap.readable && tap.source.is_some() && tap.flow.space() == 0)
    }

    /// Bytes of stdout and stderr that nobody took.
    #[must_use]
    pub fn dropped(&self) -> [u64; 2] {
        [self.taps[0].flow.dropped(), self.taps[1].flow.dropped()]
    }

    /// What listings show.
    #[must_use]
    pub fn record(&self) -> JobRecord<'_> {
        JobRecord {
            job: self.number,
            pid: self.pid,
            label: &self.label,
            argv: &self.argv,
            user: &self.user,
            tty: self.is_terminal,
            detached: self.detached,
            private: self.private,
            started_ns: self.started_ns,
            attached: self.channel.is_some(),
            exit: match self.phase {
                Phase::Ended(ended) => Some((ended, self.dropped())),
                _ => None,
            },
        }
    }

    // -- inside -----------------------------------------------------------------------------------

    /// Whether output that nobody takes is dropped rather than waited for.
    fn drops(&self) -> bool {
        (self.channel.is_none() && !self.orphaned) || self.hung_up
    }

    fn tap(&mut self, flow: u8) -> &mut Tap {
        &mut self.taps[usize::from(flow == STDERR)]
    }

    fn write_stdin(&mut self) {
        while self.writable
            && let Some(sink) = &self.sink
        {
            if self.stdin.front().is_empty() {
                // ^D on a terminal is for the client to send; a pipe is closed.
                if self.stdin.is_done() && !self.is_terminal {
                    self.sink = None;
                }
                break;
            }
            match unistd::write(sink, self.stdin.front()) {
                Ok(count) => self.stdin.wrote(count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.writable = false,
                // Nobody reads it any more.
                Err(_) => {
                    self.sink = None;
                    self.stdin.close();
                }
            }
        }
    }

    fn foreground(&self) -> Option<i32> {
        let group = unistd::tcgetpgrp(self.terminal.as_ref()?).ok()?.as_raw();
        (group > 1).then_some(group)
    }

    fn signal_all(&self, signals: &[Signal]) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        let groups = [Some(self.pid), self.foreground().filter(|&g| g != self.pid)];
        for &signal in signals {
            for group in groups.into_iter().flatten() {
                // A group may have gone. The leader is unreaped, so its number is still its own; between
                // clone and setsid it leads no group yet.
                if killpg(Pid::from_raw(group), signal) == Err(Errno::ESRCH) && group == self.pid {
                    let _ = kill(Pid::from_raw(self.pid), signal);
                }
            }
        }
    }
}

impl Tap {
    fn can_read(&self, dropping: bool) -> bool {
        self.readable && self.source.is_some() && (dropping || self.flow.space() > 0)
    }

    fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.source
            .as_ref()
            .map_or(Ok(0), |source| unistd::read(source, buffer))
    }
}

/// Bytes that wait in a pipe.
fn waiting_in(pipe: &OwnedFd) -> usize {
    use std::os::fd::AsRawFd;
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    usize::try_from(count).unwrap_or(0)
}
