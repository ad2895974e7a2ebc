//! Which changes on the host the machine's watchers are still to be told of, and the answers to the
//! requests by which they are (`teller`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd;

use super::abi::{self, ENTRY, Request, op, text_at, u32_at, u64_at};
use super::table::Table;
use super::teller::{self, Act, MOST_WATCHED, Teller, message};

/// In a header of the server's, in place of an error: these are events.
pub const EVENTS: u32 = 1;
/// Changes that wait to be told of; what comes while there are so many is told of as nothing.
const MOST: usize = 2_048;
/// Whoever begins to watch has mostly asked for the files before: soon after that is seen what those
/// who asked watch.
const SOON: Duration = Duration::from_millis(30);
const NOT_SOONER: Duration = Duration::from_millis(500);
const MOST_ASKERS: usize = 256;
/// Names are trusted for a second without asking us, and a little: after that it is seen what anybody
/// watches, which takes longer.
const LATEST: Duration = Duration::from_millis(1_100);
const AT_LEAST_EACH: Duration = Duration::from_secs(5);
/// No file is found by a longer path (PATH_MAX).
const LONGEST: usize = 4_095;
/// What is watched is told in one frame.
const MOST_BYTES: usize = 512 << 10;
/// The handle of what the teller has open.
const HANDLE: u64 = 1 << 63;

const CREATE: u32 = 0x100;
const DELETE: u32 = 0x200;
const MOVED_FROM: u32 = 0x40;
const MOVED_TO: u32 = 0x80;
const MODIFY: u32 = 0x2;
const ATTRIB: u32 = 0x4;
const CLOSE_WRITE: u32 = 0x8;

/// A change of a file in a watched directory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    act: Act,
    kind: u32,
    directory: u64,
    name: Vec<u8>,
    /// Of a rename: to where.
    to: Option<(u64, Vec<u8>)>,
    cookie: u32,
    tried: bool,
}

/// What becomes of a request of the teller's.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is like any other.
    Pass,
    Reply(Vec<u8>),
    /// The server is asked this instead.
    Ask(Vec<u8>),
}

/// What has come from the teller.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    Nothing,
    /// Other directories are to be watched from now on.
    Watched,
    /// It has ended, and there is no other.
    Ended,
}

#[derive(Debug)]
pub struct Telling {
    /// Where the share is mounted.
    mount: String,
    teller: Teller,
    queue: VecDeque<Change>,
    /// What the teller is at; None: it looks.
    current: Option<Change>,
    busy: bool,
    look_at: Option<Instant>,
    looked: Instant,
    /// When all processes were looked at, and whether this look is such a one.
    looked_at_all: Instant,
    all: bool,
    /// Who has asked since the last look.
    askers: BTreeSet<u32>,
    active: Instant,
    again: Option<(Instant, Change)>,
    watched: BTreeMap<u64, Vec<u8>>,
    made_up: u64,
}

impl Telling {
    /// Start a teller for what is mounted there. The caller has one thread.
    pub fn start(mount: &str) -> Result<Self, Errno> {
        let now = Instant::now();
        Ok(Self {
            mount: mount.to_owned(),
            teller: teller::start(mount)?,
            queue: VecDeque::new(),
            current: None,
            busy: false,
            look_at: None,
            looked: now,
            looked_at_all: now,
            all: false,
            askers: BTreeSet::new(),
            active: now,
            again: None,
            watched: BTreeMap::new(),
            made_up: u64::MAX,
        })
    }

    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.teller.socket.as_fd()
    }

    #[must_use]
    pub fn asks(&self, request: Request) -> bool {
        pid_of(request) == self.teller.pid
            || (request.opcode() == op::RELEASE && u64_at(request.body(), 0) == HANDLE)
    }

    /// Somebody in the machine uses the share.
    pub fn used(&mut self, request: Request) {
        let now = Instant::now();
        if self.askers.len() < MOST_ASKERS {
            self.askers.insert(pid_of(request));
        }
        self.active = now;
        let at = (now + SOON).max(self.looked + NOT_SOONER);
        self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
    }

    /// When something is to be done though nothing comes.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let again = self.again.as_ref().map(|(at, _)| *at);
        if self.busy {
            return None;
        }
        match (self.look_at, again) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    // -- the server ---------------------------------------------------------------------------------

    /// What a server is to watch, as it is told.
    #[must_use]
    pub fn watches(&self, table: &Table) -> Vec<u8> {
        listed(&self.watched, table)
    }

    #[must_use]
    pub fn watches_something(&self) -> bool {
        !self.watched.is_empty()
    }

    /// Take in a frame of events.
    pub fn heard(&mut self, mut events: &[u8]) {
        while events.len() >= 24 {
            let length = u32_at(events, 20) as usize;
            if length > 255 || events.len() < 24 + length {
                return;
            }
            let name = events[24..24 + length].to_vec();
            self.changed(
                u64_at(events, 0),
                u32_at(events, 8),
                u32_at(events, 12),
                u32_at(events, 16),
                name,
            );
            events = &events[24 + length..];
        }
    }

    fn changed(&mut self, directory: u64, mask: u32, cookie: u32, kind: u32, name: Vec<u8>) {
        if mask & MOVED_TO != 0
            && let Some(last) = self.queue.back_mut()
            && last.act == Act::Remove
            && last.cookie == cookie
            && cookie != 0
        {
            last.act = Act::Rename;
            last.to = Some((directory, name));
            return;
        }
        let act = match mask {
            mask if mask & (CREATE | MOVED_TO) != 0 => Act::Make,
            mask if mask & (DELETE | MOVED_FROM) != 0 => Act::Remove,
            mask if mask & MODIFY != 0 => Act::Modify,
            mask if mask & ATTRIB != 0 => Act::Attributes,
            mask if mask & CLOSE_WRITE != 0 => Act::CloseWrite,
            _ => return,
        };
        let change = Change {
            act,
            kind,
            directory,
            name,
            to: None,
            cookie: if mask & MOVED_FROM == 0 { 0 } else { cookie },
            tried: false,
        };
        if self.queue.len() < MOST && self.queue.back() != Some(&change) {
            self.queue.push_back(change);
        }
    }

    // -- the teller ---------------------------------------------------------------------------------

    /// Give the teller something to do, where there is something.
    pub fn go_on(&mut self, table: &Table) {
        let now = Instant::now();
        if let Some((_, change)) = self.again.take_if(|(at, _)| *at <= now) {
            self.queue.push_front(change);
        }
        while !self.busy {
            if let Some(change) = self.queue.pop_front() {
                let place = |directory: u64, name: &[u8]| {
                    let path = table.path(directory)?;
                    Some(if path.is_empty() {
                        name.to_vec()
                    } else {
                        [&path[..], b"/", name].concat()
                    })
                };
                let Some(from) = place(change.directory, &change.name) else {
                    continue;
                };
                let to = match &change.to {
                    Some((directory, name)) => place(*directory, name),
                    None => Some(Vec::new()),
                };
                let Some(to) = to else {
                    continue;
                };
                let bytes = message(change.act, change.kind, &[&from, &to]);
                self.current = Some(change);
                self.send(&bytes);
            } else if self.look_at.is_some_and(|at| at <= now) {
                self.look_at = None;
                self.current = None;
                self.look(now);
            } else {
                return;
            }
        }
    }

    fn look(&mut self, now: Instant) {
        let askers = std::mem::take(&mut self.askers);
        self.all = askers.is_empty()
            || now >= self.active + LATEST
            || now >= self.looked_at_all + AT_LEAST_EACH;
        let mut bytes = message(Act::Look, 0, &[]);
        if !self.all {
            for pid in askers {
                bytes.extend(pid.to_le_bytes());
            }
        }
        self.send(&bytes);
    }

    fn send(&mut self, bytes: &[u8]) {
        self.busy = unistd::write(&self.teller.socket, bytes).is_ok();
    }

    /// The teller has answered, or ended.
    pub fn answered(&mut self, table: &Table) -> News {
        let mut bytes = vec![0; 1 + MOST_WATCHED * 8];
        let count = match unistd::read(&self.teller.socket, &mut bytes) {
            Ok(count) if count > 0 => count,
            Err(Errno::EAGAIN | Errno::EINTR) => return News::Nothing,
            _ => return self.ended(),
        };
        self.busy = false;
        let now = Instant::now();
        if let Some(change) = self.current.take() {
            // The machine has looked at it already; when it does not trust that any more, it is told.
            if bytes[0] == 1 && change.act == Act::Make && !change.tried {
                let change = Change {
                    tried: true,
                    ..change
                };
                self.again = Some((now + LATEST, change));
            }
            return News::Nothing;
        }
        self.looked = now;
        if self.all {
            self.looked_at_all = now;
        }
        if self.look_at.is_none() && now < self.active + LATEST {
            self.look_at = Some(self.active + LATEST);
        }
        let inos = bytes[1..count].chunks_exact(8).map(|ino| u64_at(ino, 0));
        let mut watched = if self.all {
            BTreeMap::new()
        } else {
            self.watched.clone()
        };
        for id in table.directories(inos) {
            if watched.len() < MOST_WATCHED
                && let Some(path) = table.path(id)
            {
                watched.insert(id, path);
            }
        }
        if watched == self.watched {
            return News::Nothing;
        }
        self.watched = watched;
        News::Watched
    }

    /// Somebody has ended the teller. What it was at is not told, or was.
    fn ended(&mut self) -> News {
        (self.busy, self.current) = (false, None);
        if !self.teller.has_lived() {
            return News::Ended;
        }
        let Ok(another) = teller::start(&self.mount) else {
            return News::Ended;
        };
        self.teller = another;
        self.look_at = Some(Instant::now() + SOON);
        News::Nothing
    }

    /// What becomes of a request of the teller's own: nothing that it does may reach the host.
    pub fn answer(&mut self, request: Request, table: &mut Table) -> Answer {
        let (unique, node, body) = (request.unique(), request.node(), request.body());
        let refused = |errno| Answer::Reply(abi::answer(unique, errno, &[]));
        let fine = || Answer::Reply(abi::answer(unique, 0, &[]));
        if request.opcode() == op::RELEASE {
            return fine();
        }
        let Some(change) = self.current.clone() else {
            return if is_look(request.opcode()) {
                Answer::Pass
            } else {
                refused(libc::EPERM)
            };
        };
        let is_it = |name: &[u8]| node == change.directory && name == change.name;
        let is_target = |node: u64, name: &[u8]| {
            (change.to.as_ref()).is_some_and(|(at, to)| *at == node && to == name)
        };
        match (request.opcode(), change.act) {
            (op::LOOKUP, Act::Make) if is_it(text_at(body, 0)) => refused(libc::ENOENT),
            (op::LOOKUP, Act::Rename) if is_target(node, text_at(body, 0)) => refused(libc::ENOENT),
            (op::LOOKUP, Act::Remove | Act::Rename) if is_it(text_at(body, 0)) => {
                Answer::Reply(abi::answer(unique, 0, &self.entry(&change, table)))
            }
            (op::MKNOD | op::MKDIR | op::SYMLINK, Act::Make) => Answer::Ask(abi::rewritten(
                request,
                op::LOOKUP,
                &[&change.name[..], &[0]].concat(),
            )),
            (op::UNLINK | op::RMDIR, Act::Remove) if is_it(text_at(body, 0)) => {
                table.unnamed(node, &change.name);
                fine()
            }
            (op::RENAME | op::RENAME2, Act::Rename) => {
                if let Some((directory, name)) = &change.to {
                    let from = (change.directory, &change.name[..]);
                    table.renamed(from, (*directory, name), false);
                }
                fine()
            }
            (op::SETATTR, Act::Attributes | Act::Modify) => {
                Answer::Ask(abi::rewritten(request, op::GETATTR, &[0; 16]))
            }
            (op::OPEN, Act::CloseWrite) => {
                const KEEP_CACHE: u32 = 2;
                let mut out = HANDLE.to_le_bytes().to_vec();
                out.extend(KEEP_CACHE.to_le_bytes());
                out.extend([0; 4]);
                Answer::Reply(abi::answer(unique, 0, &out))
            }
            (opcode, _) if is_look(opcode) => Answer::Pass,
            _ => refused(libc::EPERM),
        }
    }

    /// `fuse_entry_out` of what is not there any more.
    fn entry(&mut self, change: &Change, table: &mut Table) -> Vec<u8> {
        let known = table.named(change.directory, &change.name);
        let identity = known.map_or_else(
            || {
                self.made_up -= 1;
                (self.made_up, 1)
            },
            |node| table.identity(node),
        );
        let number = table.entered(Some((change.directory, &change.name)), identity);
        let mode = known.map_or(0, |node| table.kind(node));
        let mode = if mode == 0 { change.kind } else { mode };
        let mut entry = vec![0; ENTRY];
        entry[..8].copy_from_slice(&number.to_le_bytes());
        entry[8..16].copy_from_slice(&identity.1.to_le_bytes());
        entry[40..48].copy_from_slice(&identity.0.to_le_bytes());
        entry[100..104].copy_from_slice(&(mode | 0o644).to_le_bytes());
        entry[104..108].copy_from_slice(&1u32.to_le_bytes());
        entry
    }
}

/// `fuse_in_header`: who asks.
fn pid_of(request: Request) -> u32 {
    u32_at(request.0, 32)
}

/// Whether a request only looks.
fn is_look(opcode: u32) -> bool {
    matches!(
        opcode,
        op::LOOKUP | op::GETATTR | op::READLINK | op::STATFS | op::GETXATTR | op::LISTXATTR
    )
}

/// Directories with their paths, as a server is told of them: no more than fits in a frame.
fn listed(watched: &BTreeMap<u64, Vec<u8>>, table: &Table) -> Vec<u8> {
    let mut body = Vec::new();
    for (&id, path) in watched {
        if path.len() > LONGEST || body.len() > MOST_BYTES {
            continue;
        }
        let identity = table.identity(id);
        for value in [id, identity.0, identity.1] {
            body.extend(value.to_le_bytes());
        }
        body.extend(u16::try_from(path.len()).unwrap_or(0).to_le_bytes());
        body.extend(path);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_watched_fits_in_a_frame() {
        let mut watched: BTreeMap<u64, Vec<u8>> =
            (0..4_096).map(|id| (id, vec![b'a'; 4_000])).collect();
        watched.insert(5_000, vec![b'b'; LONGEST + 1]);
        let told = listed(&watched, &Table::default());
        assert!((MOST_BYTES..MAX_FRAME).contains(&told.len()));
        assert_eq!(told.len() % (26 + 4_000), 0);
        watched.retain(|&id, _| id >= 4_095);
        assert_eq!(listed(&watched, &Table::default()).len(), 26 + 4_000);
    }

    /// What the server takes for a stranger's: share-server's `MAX_FRAME`.
    const MAX_FRAME: usize = (1 << 20) + 3 * 65_536;
}
