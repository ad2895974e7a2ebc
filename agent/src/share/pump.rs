//! Between the kernel's FUSE device and the port to the share server: a process of its own per share.
//!
//! It outlives servers. A new one is announced by the agent with a key; both directions of the port then
//! begin anew at the key, what is open is opened again, and what was asked is asked again. For as long
//! as there is none, requests wait, and after a while they fail: nobody waits for ever.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd;

use crate::account;

use super::abi::{
    self, Frame, KIND_HELLO, KIND_REOPEN, KIND_WATCH, MAX_WRITE, OUT_HEADER, Request, VERSION, op,
    u32_at, u64_at,
};
use super::lately::{ATTRIBUTES, Lately};
use super::table::Table;
use super::telling::{Answer, EVENTS, News, Telling};
use super::traffic::{self, Pending};

pub const KEY: usize = 32;
/// The longest name of a user.
const MAX_USER: usize = 256;
/// How long requests wait for a server.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a read of a port brings at most.
const PAGE: usize = 4_096;
/// What the kernel writes to a port at once.
const CHUNK: usize = 32_768;
/// Requests are left with the kernel while so much waits to be written.
const MAX_QUEUED: usize = 1 << 20;
/// The kernel hears that a server is there on another queue than of its bytes.
const ANNOUNCED_WITHIN: Duration = Duration::from_millis(3);
const MAX_REPLY: usize = (2 << 20) + OUT_HEADER;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is no server.
    Alone,
    /// One is there and has not said the key yet.
    Greeting,
    Serving,
}

/// Why it ends.
#[derive(Debug)]
pub struct Ended;

/// The numbers of a user of the machine whose root this process is in; root's where there is none.
#[must_use]
pub fn numbers_of(name: &str) -> (u32, u32) {
    account::look_up(name).map_or((0, 0), |account| (account.uid, account.gid))
}

pub struct Pump {
    device: OwnedFd,
    port: OwnedFd,
    /// Where the agent announces servers; it ends with the agent's wish to unmount.
    control: OwnedFd,
    user: (u32, u32),
    table: Table,
    telling: Option<Telling>,
    state: State,
    key: [u8; KEY],
    /// When there is no server still: what waits fails.
    until: Instant,
    failing: bool,
    pending: BTreeMap<u64, Pending>,
    /// To be sent again when no rename is under way.
    held: Vec<u64>,
    renaming: usize,
    renames: u64,
    lately: Lately,
    out: VecDeque<Vec<u8>>,
    out_at: usize,
    queued: usize,
    input: Vec<u8>,
    input_at: usize,
    scratch: Vec<u8>,
}

impl Pump {
    #[must_use]
    pub fn new(
        device: OwnedFd,
        port: OwnedFd,
        control: OwnedFd,
        key: [u8; KEY],
        user: (u32, u32),
        telling: Option<Telling>,
    ) -> Self {
        let mut pump = Self {
            device,
            port,
            control,
            user,
            table: Table::default(),
            telling,
            state: State::Alone,
            key,
            until: Instant::now(),
            failing: false,
            pending: BTreeMap::new(),
            held: Vec::new(),
            renaming: 0,
            renames: 0,
            lately: Lately::default(),
            out: VecDeque::new(),
            out_at: 0,
            queued: 0,
            input: Vec::new(),
            input_at: 0,
            scratch: vec![0; MAX_WRITE as usize + 65_536],
        };
        pump.greet(key);
        pump
    }

    /// Go on until the file system is unmounted or the agent lets go.
    pub fn run(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.turn() {
                return ended;
            }
        }
    }

    fn turn(&mut self) -> Result<(), Ended> {
        let reads_device = self.failing || (self.state != State::Alone && self.queued < MAX_QUEUED);
        let mut port = PollFlags::empty();
        if self.state != State::Alone {
            port |= PollFlags::POLLIN;
            if !self.out.is_empty() {
                port |= PollFlags::POLLOUT;
            }
        }
        let device = if reads_device {
            PollFlags::POLLIN
        } else {
            PollFlags::empty()
        };
        let mut polled = vec![
            PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.device.as_fd(), device),
        ];
        if let Some(telling) = &self.telling {
            polled.push(PollFd::new(telling.fd(), PollFlags::POLLIN));
        }
        let tells = usize::from(self.telling.is_some());
        // A port whose host is away is always "ready".
        if self.state != State::Alone {
            polled.push(PollFd::new(self.port.as_fd(), port));
        }
        let timeout = match self.timeout() {
            None => PollTimeout::NONE,
            Some(left) => {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Err(Ended),
        }
        let events: Vec<PollFlags> = (polled.iter())
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
            .collect();
        if !events[0].is_empty() {
            self.hear()?;
        }
        if events[1].intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
            return Err(Ended); // unmounted
        }
        if events[1].contains(PollFlags::POLLIN) {
            self.take_requests()?;
        }
        if tells > 0 && !events[2].is_empty() {
            self.told();
        }
        if let Some(port) = events.get(2 + tells) {
            self.serve_port(*port);
        }
        if let Some(telling) = &mut self.telling {
            telling.go_on(&self.table);
        }
        if self.patience() == Some(Duration::ZERO) {
            self.give_up();
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        let telling = self.telling.as_ref().and_then(Telling::deadline);
        let telling = telling.map(|at| at.saturating_duration_since(Instant::now()));
        match (self.patience(), telling) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    fn patience(&self) -> Option<Duration> {
        (self.state != State::Serving && !self.failing)
            .then(|| self.until.saturating_duration_since(Instant::now()))
    }

    // -- servers ----------------------------------------------------------------------------------

    /// The agent announces a server, or lets go.
    fn hear(&mut self) -> Result<(), Ended> {
        let mut message = [0; KEY + MAX_USER];
        match unistd::read(&self.control, &mut message) {
            Ok(count) if count > KEY => {
                // It may have got its account only now.
                self.user = numbers_of(&String::from_utf8_lossy(&message[KEY..count]));
                let mut key = [0; KEY];
                key.copy_from_slice(&message[..KEY]);
                self.greet(key);
            }
            Ok(0) => return Err(Ended),
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => return Err(Ended),
        }
        Ok(())
    }

    /// Begin a session: the key, who the machine's user is, and what is open.
    fn greet(&mut self, key: [u8; KEY]) {
        self.state = State::Greeting;
        self.failing = false;
        self.until = Instant::now() + PATIENCE;
        self.lately = Lately::default();
        self.key = key;
        self.input.clear();
        self.input_at = 0;
        self.out.clear();
        self.out_at = 0;
        self.queued = 0;
        self.push(key.to_vec());
        let mut hello = VERSION.to_le_bytes().to_vec();
        hello.extend(self.user.0.to_le_bytes());
        hello.extend(self.user.1.to_le_bytes());
        let frame = Frame {
            kind: KIND_HELLO,
            ..Frame::default()
        };
        self.push(frame.encode(&hello));
        let open: Vec<_> = (self.table.open.iter()).map(|(n, o)| (*n, *o)).collect();
        for (handle, open) in open {
            let frame = Frame {
                kind: KIND_REOPEN,
                path: self.table.path(open.node),
                identity: self.table.identity(open.node),
                handle,
                ..Frame::default()
            };
            let mut body = open.flags.to_le_bytes().to_vec();
            body.extend(u32::from(open.directory).to_le_bytes());
            self.push(frame.encode(&body));
        }
        if (self.telling.as_ref()).is_some_and(Telling::watches_something) {
            self.watch();
        }
        // What may have been done, but nobody knows, is answered as what it is: an I/O error.
        let asked: Vec<u64> = self.pending.keys().copied().collect();
        (self.renaming, self.held) = (0, Vec::new());
        for unique in asked {
            let repeat = self.pending[&unique].request().may_be_repeated();
            if repeat {
                self.send(unique);
            } else {
                self.pending.remove(&unique);
                self.reply(&abi::answer(unique, libc::EIO, &[]));
            }
        }
    }

    /// Have the server watch what is watched here.
    fn watch(&mut self) {
        if let Some(telling) = &self.telling {
            let frame = Frame {
                kind: KIND_WATCH,
                ..Frame::default()
            };
            let frame = frame.encode(&telling.watches(&self.table));
            self.push(frame);
        }
    }

    /// The teller has done something, or has ended.
    fn told(&mut self) {
        let Some(telling) = &mut self.telling else {
            return;
        };
        match telling.answered(&self.table) {
            News::Watched if self.state != State::Alone => self.watch(),
            News::Watched | News::Nothing => {}
            News::Ended => self.telling = None,
        }
    }

    fn lost(&mut self) {
        if self.state == State::Serving {
            self.until = Instant::now() + PATIENCE;
        }
        self.state = State::Alone;
    }

    /// Nobody came: all that waits fails, and all that comes fails at once, until somebody comes.
    fn give_up(&mut self) {
        self.failing = true;
        self.state = State::Alone;
        for unique in std::mem::take(&mut self.pending).into_keys() {
            self.reply(&abi::answer(unique, libc::EIO, &[]));
        }
        (self.renaming, self.held) = (0, Vec::new());
    }

    // -- requests ---------------------------------------------------------------------------------

    fn take_requests(&mut self) -> Result<(), Ended> {
        // Some at a time, so that answers are not kept waiting. Whoever asks alone is not kept waiting
        // for a look that finds nothing.
        let most = if self.pending.is_empty() { 1 } else { 8 };
        for _ in 0..most {
            let length = match unistd::read(&self.device, &mut self.scratch) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR | Errno::ENOENT) => continue, // it was interrupted before it was read
                Err(_) => return Err(Ended),
            };
            let scratch = std::mem::take(&mut self.scratch);
            self.request(&scratch[..length]);
            self.scratch = scratch;
            if self.queued >= MAX_QUEUED {
                break;
            }
        }
        Ok(())
    }

    fn request(&mut self, bytes: &[u8]) {
        let request = Request(bytes);
        if traffic::forgotten(&mut self.table, request) {
            return;
        }
        let unique = request.unique();
        let mut bytes = bytes;
        let asked;
        if let Some(telling) = &mut self.telling {
            if telling.asks(request) {
                match telling.answer(request, &mut self.table) {
                    Answer::Pass => {}
                    Answer::Reply(answer) => return self.reply(&answer),
                    Answer::Ask(other) => {
                        asked = other;
                        bytes = &asked;
                    }
                }
            } else {
                telling.used(request);
            }
        }
        match Request(bytes).opcode() {
            op::INIT => self.reply(&abi::init(request)),
            // A request that is under way is waited for: what it did would be unknown.
            op::INTERRUPT => {}
            op::DESTROY => self.reply(&abi::answer(unique, 0, &[])),
            op::GETATTR if self.lately.is_of(request.node()) => {
                let attributes = self.lately.answer();
                self.reply(&abi::answer(unique, 0, &attributes));
            }
            _ => {
                if let Some(errno) = traffic::refused(Request(bytes)) {
                    return self.reply(&abi::answer(unique, errno, &[]));
                }
                let pending = traffic::pending(&mut self.table, bytes, self.renames);
                if self.failing {
                    self.reply(&abi::answer(unique, libc::EIO, &[]));
                } else if pending.is_release() {
                    // Nobody is told whether it could be.
                    self.reply(&abi::answer(unique, 0, &[]));
                    self.push(traffic::frame(&self.table, &pending));
                } else {
                    self.pending.insert(unique, pending);
                    self.send(unique);
                }
            }
        }
    }

    fn send(&mut self, unique: u64) {
        let Some(pending) = self.pending.get_mut(&unique) else {
            return;
        };
        pending.renames = self.renames;
        if traffic::changes_attributes(pending.request()) {
            self.lately = Lately::default();
        }
        self.renaming += usize::from(traffic::renames(pending.request()));
        let frame = traffic::frame(&self.table, pending);
        self.push(frame);
    }

    fn push(&mut self, bytes: Vec<u8>) {
        self.queued += bytes.len();
        self.out.push_back(bytes);
    }

    // -- the port ---------------------------------------------------------------------------------

    fn serve_port(&mut self, events: PollFlags) {
        let brought = events.contains(PollFlags::POLLIN) && self.read_port();
        if self.state != State::Alone && !self.out.is_empty() {
            self.write_port();
        }
        if events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            if self.state == State::Greeting {
                // It is not known yet that somebody is there; the agent says so.
                let mut control = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
                let wait = PollTimeout::try_from(ANNOUNCED_WITHIN).unwrap_or(PollTimeout::ZERO);
                let _ = poll(&mut control, wait);
            } else if !brought {
                // It counts as readable too: a read brings nothing.
                self.lost();
            }
        }
    }

    fn write_port(&mut self) {
        while let Some(first) = self.out.front() {
            let rest = &first[self.out_at..];
            match unistd::write(&self.port, &rest[..rest.len().min(CHUNK)]) {
                Ok(count) => {
                    self.out_at += count;
                    if self.out_at == first.len() {
                        self.queued -= first.len();
                        self.out_at = 0;
                        self.out.pop_front();
                    }
                }
                // EPIPE and the like: the poll tells whether somebody is there.
                Err(_) => return,
            }
        }
    }

    /// Take what came; whether anything did.
    fn read_port(&mut self) -> bool {
        let before = self.input.len();
        for _ in 0..64 {
            let at = self.input.len();
            self.input.resize(at + PAGE, 0);
            match unistd::read(&self.port, &mut self.input[at..]) {
                Ok(count) if count > 0 => {
                    self.input.truncate(at + count);
                    // Most likely there is no more; the poll tells.
                    if count < PAGE {
                        break;
                    }
                }
                _ => {
                    self.input.truncate(at);
                    break;
                }
            }
        }
        let brought = self.input.len() > before;
        if self.state == State::Greeting {
            let Some(at) = memchr::memmem::find(&self.input, &self.key) else {
                // What comes before is of an earlier server.
                let keep = self.input.len().min(KEY - 1);
                self.input.drain(..self.input.len() - keep);
                return brought;
            };
            self.input_at = at + KEY;
            self.state = State::Serving;
        }
        self.take_replies();
        brought
    }

    fn take_replies(&mut self) {
        while self.state == State::Serving {
            let rest = &self.input[self.input_at..];
            if rest.len() < OUT_HEADER {
                break;
            }
            let length = u32_at(rest, 0) as usize;
            if !(OUT_HEADER..=MAX_REPLY).contains(&length) {
                self.lost(); // not a server of ours
                break;
            }
            if rest.len() < length {
                break;
            }
            let (from, to) = (self.input_at, self.input_at + length);
            self.input_at = to;
            let mut input = std::mem::take(&mut self.input);
            self.answered(&mut input[from..to]);
            self.input = input;
        }
        if self.input_at == self.input.len() {
            self.input.clear();
            self.input_at = 0;
        } else if self.input_at > 1 << 20 {
            self.input.drain(..self.input_at);
            self.input_at = 0;
        }
    }

    fn answered(&mut self, reply: &mut [u8]) {
        let unique = u64_at(reply, 8);
        if unique == 0 {
            if u32_at(reply, 4) == EVENTS
                && let Some(telling) = &mut self.telling
            {
                telling.heard(&reply[OUT_HEADER..]);
                self.lately = Lately::default();
            }
            return;
        }
        if u32_at(reply, 4) == ATTRIBUTES {
            if let Some(pending) = self.pending.get(&unique) {
                let node = pending.request().node();
                self.lately = Lately::new(node, &reply[OUT_HEADER..]);
            }
            return;
        }
        let Some(pending) = self.pending.remove(&unique) else {
            return;
        };
        let is_rename = traffic::renames(pending.request());
        let stale = u32_at(reply, 4).cast_signed() == -libc::ESTALE;
        if stale && !is_rename && (self.renaming > 0 || pending.renames != self.renames) {
            // It was asked for by a name that a rename has changed since.
            self.pending.insert(unique, pending);
            self.held.push(unique);
        } else {
            traffic::answered(&mut self.table, &pending, reply);
            self.reply(reply);
        }
        if is_rename {
            self.renaming = self.renaming.saturating_sub(1);
            self.renames += 1;
        }
        if self.renaming == 0 {
            for unique in std::mem::take(&mut self.held) {
                self.send(unique);
            }
        }
    }

    /// Answer the kernel. ENOENT: whoever asked has gone.
    fn reply(&self, bytes: &[u8]) {
        // SAFETY: the bytes live; the device takes them whole or not at all.
        unsafe { libc::write(self.device.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    }
}
