//! Programs in the machine that want something of the host: who they are is told to it, and each gets a
//! connection to it when (and if) the host opens one. What is said on it is the business of the `host`
//! program and of the host's; the agent moves bytes.
//!
//! ```text
//! accepted --peer may not, too many: ERROR, closed
//!     \-- waiting --answer: a connection --refuse, nobody came: ERROR, closed
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, accept4, getsockopt, send, socket, sockopt,
};
use rmpv::Value;

use crate::connection::Connection;
use crate::door;
use crate::error::Refusal;
use crate::event_loop::{Source, Timer};
use crate::frame::{self, Kind};
use crate::server::{Server, Target};
use crate::task;
use crate::wire;

/// Calls that nobody has answered yet.
const MAX_WAITING: usize = 32;
/// How long one waits for the host, which may be about to be replaced by another.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// Calls that are told to the host at once, and in each second after that.
const BURST: f64 = 200.0;
const RATE: f64 = 100.0;
const BACKLOG: libc::c_int = 64;
/// The one channel of a call.
const CHANNEL: u32 = 1;

/// What the host says of calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallRequest {
    /// Who may knock, beside root; None: nobody may, and there is no door.
    Door { user: Option<String> },
    /// It takes a call.
    Answer { call: u64 },
    /// It does not.
    Refuse { call: u64, why: Refusal },
}

struct Call {
    socket: OwnedFd,
    uid: u32,
    since: Instant,
}

/// The door and who stands before it.
pub struct Calls {
    listener: Option<OwnedFd>,
    user: Option<String>,
    uid: u32,
    /// The task that makes the door, the socket it makes it of, and who waits for it.
    making: Option<(u64, OwnedFd, u32)>,
    waiting: BTreeMap<u64, Call>,
    tokens: f64,
    counted: Instant,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            listener: None,
            user: None,
            uid: 0,
            making: None,
            waiting: BTreeMap::new(),
            tokens: BURST,
            counted: Instant::now(),
        }
    }
}

impl Calls {
    fn may_tell(&mut self) -> bool {
        let now = Instant::now();
        let gained = now.duration_since(self.counted).as_secs_f64() * RATE;
        self.tokens = (self.tokens + gained).min(BURST);
        self.counted = now;
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }
}

impl Server {
    /// The host says something of calls; the answer is under way or comes later.
    pub(crate) fn call_request(
        &mut self,
        channel: u32,
        request: CallRequest,
    ) -> Result<(), Refusal> {
        match request {
            CallRequest::Door { user } => self.set_door(channel, user),
            CallRequest::Answer { call } => self.answer_call(channel, call),
            CallRequest::Refuse { call, why } => {
                say(&self.take_call(call)?.socket, &why);
                self.out.opened(channel, Vec::new());
                Ok(())
            }
        }
    }

    /// The host wants calls, from `user` and root, or none any more.
    fn set_door(&mut self, channel: u32, user: Option<String>) -> Result<(), Refusal> {
        if self.calls.making.is_some() {
            return Err(Refusal::new("busy", "the door is just being made"));
        }
        let step = |what: &'static str| move |errno| Refusal::system(what, errno);
        if !self.power.has_machine() {
            // An ordinary process, under test: this computer's own /run is none of its business.
            return Err(Refusal::new("unsupported", "this is no machine"));
        }
        if self.calls.listener.is_some() && user == self.calls.user {
            self.out.opened(channel, Vec::new());
            self.tell_all_calls();
            return Ok(());
        }
        self.calls.listener = None;
        self.calls.user.clone_from(&user);
        let root = self.ground.root;
        // Bound by the task, in the machine's root; the socket is the same one.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(step("cannot make a socket"))?;
        let number = listener.as_raw_fd();
        let task = task::start_with(Some(channel), &[number], move || match &user {
            Some(user) => door::make(root, user, number, BACKLOG).map(|uid| Some(uid.into())),
            None => door::remove(root).map(|()| None),
        })?;
        self.last_number += 1;
        self.event_loop
            .watch(&task.answer, Source::Task(self.last_number))
            .map_err(step("cannot watch another task"))?;
        self.tasks.insert(self.last_number, task);
        self.channels
            .insert(channel, Target::Task(self.last_number));
        self.calls.making = Some((self.last_number, listener, channel));
        Ok(())
    }

    /// A task has ended; whether it was the one that makes the door.
    pub(crate) fn door_made(
        &mut self,
        number: u64,
        channel: Option<u32>,
        verdict: Result<Option<u64>, &Refusal>,
    ) -> bool {
        if self.calls.making.as_ref().is_none_or(|m| m.0 != number) {
            return false;
        }
        let Some((_, listener, _)) = self.calls.making.take() else {
            return false;
        };
        let result = match verdict {
            Ok(None) => {
                for (_, call) in std::mem::take(&mut self.calls.waiting) {
                    dismiss(&call.socket, "off", "host commands were switched off");
                }
                Ok(())
            }
            Ok(Some(uid)) => {
                self.calls.uid = u32::try_from(uid).unwrap_or(0);
                self.event_loop
                    .watch(&listener, Source::Calls)
                    .map(|()| self.calls.listener = Some(listener))
                    .map_err(|errno| Refusal::system("cannot watch the door", errno))
            }
            Err(refusal) => Err(refusal.clone()),
        };
        if let Some(channel) = channel {
            self.channels.remove(&channel);
            match &result {
                Ok(()) => self.out.opened(channel, Vec::new()),
                Err(refusal) => self.out.refuse(channel, refusal),
            }
        }
        if result.is_ok() {
            self.tell_all_calls();
            self.on_calls();
        }
        true
    }

    /// Somebody knocks.
    pub(crate) fn on_calls(&mut self) {
        loop {
            let Some(listener) = &self.calls.listener else {
                return;
            };
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = match accept4(listener.as_raw_fd(), flags) {
                // SAFETY: the kernel has just given it to us.
                Ok(fd) => unsafe { crate::launch::own(fd) },
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                Err(_) => return,
            };
            self.accept_call(socket);
        }
    }

    fn accept_call(&mut self, socket: OwnedFd) {
        let Ok(peer) = getsockopt(&socket, sockopt::PeerCredentials) else {
            return;
        };
        let uid = peer.uid();
        if uid != 0 && uid != self.calls.uid {
            dismiss(
                &socket,
                "denied",
                "only root and the machine's default user may run commands on the host",
            );
            return;
        }
        if self.calls.waiting.len() >= MAX_WAITING || !self.calls.may_tell() {
            dismiss(&socket, "too-many", "too many host commands at once");
            return;
        }
        self.last_number += 1;
        let number = self.last_number;
        let since = Instant::now();
        let call = Call { socket, uid, since };
        self.calls.waiting.insert(number, call);
        self.event_loop.set(Timer::Calls, ANSWERED_WITHIN);
        self.tell_call(number, uid);
    }

    /// Whoever came while the host was away.
    fn tell_all_calls(&mut self) {
        let waiting: Vec<_> = self
            .calls
            .waiting
            .iter()
            .map(|(n, c)| (*n, c.uid))
            .collect();
        for (number, uid) in waiting {
            self.tell_call(number, uid);
        }
    }

    fn tell_call(&mut self, number: u64, uid: u32) {
        self.event(
            "call",
            vec![("call", number.into()), ("uid", Value::from(uid))],
        );
    }

    /// Who has waited long enough is told so.
    pub(crate) fn dismiss_calls(&mut self) {
        let now = Instant::now();
        self.calls.waiting.retain(|_, call| {
            let waits = now.duration_since(call.since) < ANSWERED_WITHIN;
            if !waits {
                dismiss(&call.socket, "no-host", "the host did not answer");
            }
            waits
        });
        let first = self.calls.waiting.values().map(|c| c.since).min();
        if let Some(since) = first {
            let left = ANSWERED_WITHIN.saturating_sub(now.duration_since(since));
            self.event_loop.set(Timer::Calls, left);
        }
    }

    /// The host takes a call: the channel is the connection.
    fn answer_call(&mut self, channel: u32, number: u64) -> Result<(), Refusal> {
        let call = self.take_call(number)?;
        self.last_number += 1;
        let number = self.last_number;
        let connection = Connection::of(call.socket, number, channel, &self.event_loop)?;
        self.connections.add(number, connection)?;
        self.channels.insert(channel, Target::Connection(number));
        self.out.opened(channel, Vec::new());
        Ok(())
    }

    fn take_call(&mut self, number: u64) -> Result<Call, Refusal> {
        self.calls
            .waiting
            .remove(&number)
            .ok_or_else(|| Refusal::new("no-such-call", format!("there is no call {number}")))
    }
}

fn dismiss(socket: &OwnedFd, code: &'static str, why: &str) {
    say(socket, &Refusal::new(code, why));
}

/// The last word to somebody at the door. There is room for it: nothing else was sent.
fn say(socket: &OwnedFd, refusal: &Refusal) {
    let mut bytes = Vec::new();
    frame::put(&mut bytes, Kind::Error, CHANNEL, 0, &wire::error(refusal));
    let _ = send(socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL);
}
