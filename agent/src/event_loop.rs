//! What the serving loop waits on: names for epoll's numbers, and deadlines.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Who an epoll event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Port,
    Signals,
    Listener,
    PowerButton,
    /// The status pipe of a job that is being started.
    Launch(u64),
    Stdin(u64),
    Stdout(u64),
    Stderr(u64),
    /// The answer of a forked task.
    Task(u64),
    /// The kernel's word on who listens.
    Ports,
    /// A connection to one of the machine's ports.
    Connection(u64),
    /// Somebody in the machine who wants the host.
    Calls,
}

impl Source {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Self::Port => (0, 0),
            Self::Signals => (1, 0),
            Self::Listener => (2, 0),
            Self::PowerButton => (3, 0),
            Self::Launch(job) => (4, job),
            Self::Stdin(job) => (5, job),
            Self::Stdout(job) => (6, job),
            Self::Stderr(job) => (7, job),
            Self::Task(task) => (8, task),
            Self::Ports => (9, 0),
            Self::Connection(number) => (10, number),
            Self::Calls => (11, 0),
        };
        number << 4 | kind
    }

    fn decode(data: u64) -> Option<Self> {
        let number = data >> 4;
        Some(match data & 15 {
            0 => Self::Port,
            1 => Self::Signals,
            2 => Self::Listener,
            3 => Self::PowerButton,
            4 => Self::Launch(number),
            5 => Self::Stdin(number),
            6 => Self::Stdout(number),
            7 => Self::Stderr(number),
            8 => Self::Task(number),
            9 => Self::Ports,
            10 => Self::Connection(number),
            11 => Self::Calls,
            _ => return None,
        })
    }
}

/// What is due at a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// A hung-up job's time is over.
    Kill(u64),
    /// A frame that a marker's beginning might have completed has been held long enough.
    Patience,
    /// The host has been absent for so long that it has gone.
    Absence,
    /// Jobs whose host vanished have waited long enough for the next one.
    Orphans,
    /// Time to look for a power button: nobody should wait for that.
    FindButton,
    /// The next step of powering off.
    Power,
    /// Time to look who listens.
    Ports,
    /// Time to ask the kernel for its word on that.
    Trigger,
    /// Somebody has waited long enough for the host.
    Calls,
}

/// epoll and the deadlines.
///
/// Everything is watched edge-triggered, so nothing that stays true (a port whose host is away, a pipe
/// nobody reads) can make the loop spin; whoever gets an event remembers it until EAGAIN.
pub struct EventLoop {
    epoll: Epoll,
    timers: Vec<(Instant, Timer)>,
}

impl EventLoop {
    pub fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            timers: Vec::new(),
        })
    }

    /// Watch `fd`. It stops being watched when its last copy is closed.
    pub fn watch(&self, fd: impl AsFd, source: Source) -> Result<(), Errno> {
        let direction = match source {
            Source::Port | Source::Connection(_) => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
            Source::Stdin(_) => EpollFlags::EPOLLOUT,
            _ => EpollFlags::EPOLLIN,
        };
        let flags = direction | EpollFlags::EPOLLET;
        self.epoll.add(fd, EpollEvent::new(flags, source.encode()))
    }

    /// Stop watching, for fds of which other processes hold copies.
    pub fn forget(&self, fd: impl AsFd) {
        // It may not be watched at all.
        let _ = self.epoll.delete(fd);
    }

    /// Set a deadline; one that is set already is moved.
    pub fn set(&mut self, timer: Timer, after: Duration) {
        self.cancel(timer);
        self.timers.push((Instant::now() + after, timer));
    }

    pub fn cancel(&mut self, timer: Timer) {
        self.timers.retain(|(_, other)| *other != timer);
    }

    /// Take one deadline that has passed.
    pub fn expired(&mut self) -> Option<Timer> {
        let now = Instant::now();
        let at = self.timers.iter().position(|(at, _)| *at <= now)?;
        Some(self.timers.swap_remove(at).1)
    }

    /// Wait for events or the next deadline; not at all when `busy`.
    pub fn wait(&self, busy: bool) -> Vec<Source> {
        let timeout = if busy {
            EpollTimeout::ZERO
        } else {
            let next = self.timers.iter().map(|(at, _)| *at).min();
            next.map_or(EpollTimeout::NONE, |at| {
                // Rounded up, so that the deadline has passed when this returns.
                let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
            })
        };
        let mut events = [EpollEvent::empty(); 64];
        match self.epoll.wait(&mut events, timeout) {
            Ok(count) => events[..count]
                .iter()
                .filter_map(|event| Source::decode(event.data()))
                .collect(),
            // Only EINTR can happen, when the machine is stopped and goes on.
            Err(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_epoll() {
        for source in [
            Source::Port,
            Source::Signals,
            Source::Listener,
            Source::PowerButton,
            Source::Launch(1),
            Source::Stdin(2),
            Source::Stdout(1 << 40),
            Source::Stderr(4),
            Source::Task(5),
            Source::Ports,
            Source::Connection(6),
            Source::Calls,
        ] {
            assert_eq!(Source::decode(source.encode()), Some(source));
        }
    }

    #[test]
    fn a_timer_that_is_set_again_is_moved() {
        let mut event_loop = EventLoop::new().unwrap();
        event_loop.set(Timer::Kill(1), Duration::ZERO);
        event_loop.set(Timer::Kill(1), Duration::from_secs(3600));
        assert_eq!(event_loop.expired(), None);
        event_loop.set(Timer::Power, Duration::ZERO);
        assert_eq!(event_loop.expired(), Some(Timer::Power));
        assert_eq!(event_loop.expired(), None);
    }
}
