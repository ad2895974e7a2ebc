//! Telling the host which ports of the machine somebody listens on, for as long as it wants to know.
//!
//! A look costs a dump of the kernel's sockets, so looks are rationed: whatever goes on in the machine,
//! the agent spends no more than a twentieth of its time on them. The first after a quiet time comes at
//! once.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rmpv::Value;

use crate::error::Refusal;
use crate::event_loop::{Source, Timer};
use crate::listeners::{self, Listener, MOST};
use crate::server::Server;
use crate::task;

/// The machine's first command is not to wait for what it takes to be told by the kernel.
const TRIGGER: Duration = Duration::from_millis(300);
/// Without word from the kernel.
const POLL: Duration = Duration::from_millis(250);
/// A socket listens a moment after the kernel says so: look once more.
const AGAIN: Duration = Duration::from_millis(5);
/// Between two looks, at least, and as a multiple of what one takes.
const PAUSE: Duration = Duration::from_millis(5);
const SHARE: u32 = 20;

/// What the host knows of the machine's ports.
#[derive(Default)]
pub struct Ports {
    wanted: bool,
    told: BTreeSet<Listener>,
    trigger: Option<OwnedFd>,
    /// The task that prepares the trigger; it is tried once.
    preparing: Option<u64>,
    tried: bool,
    /// Not before this.
    next: Option<Instant>,
    /// Once more after the present look.
    again: bool,
}

impl Server {
    /// The host wants to know: what there is now; changes are told from here on.
    pub(crate) fn watch_ports(&mut self) -> Result<Vec<(&'static str, Value)>, Refusal> {
        let found = look()?;
        let fields = vec![("listening", encode(&found))];
        self.ports.told = found;
        self.ports.wanted = true;
        if !self.ports.tried && self.power.has_machine() {
            self.ports.tried = true;
            self.event_loop.set(Timer::Trigger, TRIGGER);
        }
        self.schedule_look(POLL);
        Ok(fields)
    }

    /// Ask the kernel for its word; until that is there the ports are polled.
    pub(crate) fn prepare_trigger(&mut self) {
        let started = task::start(None, || {
            listeners::prepare_trigger()
                .map(|()| None)
                .map_err(|errno| Refusal::system("cannot trace", errno))
        });
        let Ok(task) = started else { return };
        self.last_number += 1;
        let number = self.last_number;
        if self
            .event_loop
            .watch(&task.answer, Source::Task(number))
            .is_ok()
        {
            self.tasks.insert(number, task);
            self.ports.preparing = Some(number);
        }
    }

    /// A task has ended; whether it was the one that prepares the trigger.
    pub(crate) fn trigger_prepared(&mut self, number: u64, ok: Result<(), &Refusal>) -> bool {
        if self.ports.preparing != Some(number) {
            return false;
        }
        self.ports.preparing = None;
        let opened = ok
            .map_err(|refusal| refusal.message.clone())
            .and_then(|()| listeners::open_trigger().map_err(|errno| errno.to_string()));
        match opened {
            Ok(fd) if self.event_loop.watch(&fd, Source::Ports).is_ok() => {
                self.ports.trigger = Some(fd);
                self.schedule_look(Duration::ZERO);
            }
            Ok(_) => {}
            Err(why) => self.machine.log(&format!("ports are polled: {why}")),
        }
        true
    }

    /// The kernel says that somebody began or ended to listen.
    pub(crate) fn on_ports(&mut self) {
        let Some(trigger) = &self.ports.trigger else {
            return;
        };
        if listeners::drain(trigger) && self.ports.wanted {
            self.ports.again = true;
            self.schedule_look(Duration::ZERO);
        }
    }

    /// Nobody is there to be told.
    pub(crate) fn forget_ports(&mut self) {
        self.ports.wanted = false;
        self.event_loop.cancel(Timer::Ports);
    }

    /// Look, and tell what is different.
    pub(crate) fn look_at_ports(&mut self) {
        if !self.ports.wanted {
            return;
        }
        let began = Instant::now();
        let found = look();
        let pause = PAUSE.max(began.elapsed() * SHARE);
        self.ports.next = Some(Instant::now() + pause);
        if let Ok(found) = found
            && found != self.ports.told
        {
            let listening = encode(&found);
            self.ports.told = found;
            self.event("ports", vec![("listening", listening)]);
        }
        if std::mem::take(&mut self.ports.again) {
            self.schedule_look(AGAIN);
        } else if self.ports.trigger.is_none() {
            self.schedule_look(POLL);
        }
    }

    fn schedule_look(&mut self, after: Duration) {
        let left = self.ports.next.map_or(Duration::ZERO, |at| {
            at.saturating_duration_since(Instant::now())
        });
        self.event_loop.set(Timer::Ports, after.max(left));
    }
}

fn look() -> Result<BTreeSet<Listener>, Refusal> {
    let mut found = listeners::listeners()
        .map_err(|errno| Refusal::system("cannot list the machine's ports", errno))?;
    let ephemeral = listeners::ephemeral();
    found.retain(|l| i32::from(l.protocol) == libc::IPPROTO_TCP || !ephemeral.contains(&l.port));
    while found.len() > MOST {
        found.pop_last();
    }
    Ok(found)
}

fn encode(found: &BTreeSet<Listener>) -> Value {
    Value::Array(found.iter().map(|l| Value::Binary(l.encode())).collect())
}
