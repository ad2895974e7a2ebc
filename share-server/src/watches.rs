//! Telling the machine of what others change: inotify on the directories that the machine watches.
//!
//! The machine says which those are (docs/shares.md, "Events"); it is never all of a share. What this
//! server does itself, for its machine, is not told again: while something is watched its changes are
//! made one at a time, and what inotify brings of them meanwhile is dropped.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::abi::{OUT_HEADER, Put, Reader, Short, op};
use crate::identity::TYPE;
use crate::place::{Identity, Place, child, magic};
use crate::session::{Frame, Session};

/// Directories that one share is watched in; the others' changes are seen when somebody looks.
const MOST: usize = 4_096;
/// In place of an error's number in a frame's header: it is no answer.
const EVENTS: u32 = 1;
/// A frame of events is sent when it is longer.
const ENOUGH: usize = 32_768;
const IS_DIRECTORY: u32 = 0x4000_0000;

pub struct Watches {
    active: AtomicBool,
    state: Mutex<State>,
    begun: Condvar,
}

#[derive(Default)]
struct State {
    /// Made when the first directory is watched: a person may have few of them.
    inotify: Option<OwnedFd>,
    watched: HashMap<u64, Watched>,
    by_number: HashMap<i32, u64>,
    full: bool,
}

struct Watched {
    number: i32,
    identity: Identity,
    path: Vec<u8>,
}

impl Watches {
    pub fn new() -> Self {
        Self {
            active: AtomicBool::new(false),
            state: Mutex::default(),
            begun: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watch these directories from now on, and no others: `id, ino, generation, length, path` each.
    pub fn set(&self, place: &Place, body: &[u8]) -> Result<(), Short> {
        let mut wanted = HashMap::new();
        let mut reader = Reader(body);
        while !reader.0.is_empty() {
            let id = reader.u64()?;
            let identity = Identity {
                ino: reader.u64()?,
                generation: reader.u64()?,
            };
            let length = reader.u16()?;
            let path = reader.bytes(length.into())?.to_vec();
            if wanted.len() < MOST {
                wanted.insert(id, (identity, path));
            }
        }
        let mut state = self.state();
        let state = &mut *state;
        let Ok(inotify) = state.inotify() else {
            return Ok(()); // as many as this computer permits are in use
        };
        let inotify = inotify.try_clone();
        let Ok(inotify) = inotify else { return Ok(()) };
        let gone: Vec<u64> = (state.watched.iter())
            .filter(|(id, known)| {
                (wanted.get(id)).is_none_or(|(identity, path)| {
                    (*identity, path) != (known.identity, &known.path)
                })
            })
            .map(|(&id, _)| id)
            .collect();
        for id in gone {
            state.forget(&inotify, id);
        }
        for (id, (identity, path)) in wanted {
            if !state.watched.contains_key(&id) {
                state.watch(&inotify, place, id, identity, path);
            }
        }
        self.active
            .store(!state.watched.is_empty(), Ordering::Release);
        self.begun.notify_all();
        Ok(())
    }

    /// Do what a request asks; what inotify says of that is not told to the machine.
    pub fn during<T>(
        &self,
        frame: &Frame,
        place: &Place,
        session: &Session,
        work: impl FnOnce() -> T,
    ) -> T {
        if !changes(frame.opcode) || !self.active.load(Ordering::Acquire) {
            return work();
        }
        let mut state = self.state();
        let _ = state.tell(place, session, &[]);
        let done = work();
        let _ = state.tell(place, session, &names(frame));
        done
    }

    /// Tell of what others change, for ever.
    pub fn run(&self, place: &Place, session: &Session) -> std::io::Result<()> {
        // Its own fd: nobody waits for events while this does.
        let inotify = {
            let mut state = self.state();
            loop {
                if let Some(fd) = &state.inotify {
                    break fd.try_clone()?;
                }
                state = (self.begun.wait(state)).unwrap_or_else(PoisonError::into_inner);
            }
        };
        loop {
            let mut polled = [PollFd::new(&inotify, PollFlags::IN)];
            match poll(&mut polled, None) {
                Ok(_) => self.state().tell(place, session, &[])?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl State {
    fn inotify(&mut self) -> Result<&OwnedFd, Errno> {
        if self.inotify.is_none() {
            let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
            self.inotify = Some(inotify::init(flags)?);
        }
        self.inotify.as_ref().ok_or(Errno::NOENT)
    }

    fn watch(
        &mut self,
        inotify: &OwnedFd,
        place: &Place,
        id: u64,
        identity: Identity,
        path: Vec<u8>,
    ) {
        let Ok(found) = place.find(&path, identity) else {
            return; // it is not there any more; the machine will notice
        };
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ONLYDIR;
        match inotify::add_watch(inotify, magic(&found.fd), flags) {
            Ok(number) => {
                if let Some(other) = self.by_number.insert(number, id) {
                    self.watched.remove(&other);
                }
                let watched = Watched {
                    number,
                    identity,
                    path,
                };
                self.watched.insert(id, watched);
            }
            Err(Errno::NOSPC) if !self.full => {
                self.full = true;
                eprintln!(
                    "vmgr-share-server: this computer watches no more files for you \
                     (fs.inotify.max_user_watches); the machine hears of some changes only when it looks"
                );
            }
            Err(_) => {}
        }
    }

    fn forget(&mut self, inotify: &OwnedFd, id: u64) {
        if let Some(known) = self.watched.remove(&id) {
            self.by_number.remove(&known.number);
            let _ = inotify::remove_watch(inotify, known.number);
        }
    }

    /// Tell of what has come, but not of files of these names: that was this server.
    fn tell(&mut self, place: &Place, session: &Session, own: &[&[u8]]) -> std::io::Result<()> {
        let Some(fd) = &self.inotify else {
            return Ok(());
        };
        let mut buffer = [MaybeUninit::uninit(); 8_192];
        let mut reader = inotify::Reader::new(fd.as_fd(), &mut buffer);
        let mut frame = vec![0; OUT_HEADER];
        let mut gone = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(_) => break, // there is no more
            };
            let mask = event.events();
            if mask.contains(ReadFlags::IGNORED) {
                gone.push(event.wd()); // the directory is gone
                continue;
            }
            let (Some(&id), Some(name)) = (self.by_number.get(&event.wd()), event.file_name())
            else {
                continue;
            };
            let name = name.to_bytes();
            if own.contains(&name) {
                continue;
            }
            let kind = self.kind(place, id, name, mask);
            frame.put64(id);
            frame.put32(mask.bits());
            frame.put32(event.cookie());
            frame.put32(kind);
            frame.put32(u32::try_from(name.len()).unwrap_or(0));
            frame.extend_from_slice(name);
            if frame.len() > ENOUGH {
                session.tell(EVENTS, &mut frame)?;
                frame.truncate(OUT_HEADER);
            }
        }
        for number in gone {
            if let Some(id) = self.by_number.remove(&number) {
                self.watched.remove(&id);
            }
        }
        if frame.len() > OUT_HEADER {
            session.tell(EVENTS, &mut frame)?;
        }
        Ok(())
    }

    /// What kind of file it is that has come.
    fn kind(&self, place: &Place, id: u64, name: &[u8], mask: ReadFlags) -> u32 {
        const DIRECTORY: u32 = 0o040_000;
        const REGULAR: u32 = 0o100_000;
        if mask.bits() & IS_DIRECTORY != 0 {
            return DIRECTORY;
        }
        if !mask.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            return REGULAR;
        }
        let found = self.watched.get(&id).and_then(|watched| {
            let directory = place.find(&watched.path, watched.identity).ok()?;
            child(directory.fd.as_fd(), name).ok()
        });
        found.map_or(REGULAR, |found| u32::from(found.status.stx_mode) & TYPE)
    }
}

/// Whether an operation may make inotify say something.
fn changes(opcode: u32) -> bool {
    matches!(opcode, op::OPEN | op::RELEASE) || crate::server::changes(opcode)
}

/// The names of the files that a request is about.
fn names<'a>(frame: &Frame<'a>) -> Vec<&'a [u8]> {
    let mut found = Vec::new();
    for path in [frame.path, frame.path2].into_iter().flatten() {
        let start = path
            .iter()
            .rposition(|&byte| byte == b'/')
            .map_or(0, |at| at + 1);
        found.push(&path[start..]);
    }
    let at = match frame.opcode {
        op::SYMLINK | op::UNLINK | op::RMDIR => 0,
        op::MKDIR | op::LINK | op::RENAME => 8,
        op::MKNOD | op::CREATE | op::RENAME2 => 16,
        _ => return found,
    };
    let mut texts = frame
        .body
        .get(at..)
        .unwrap_or_default()
        .split(|&byte| byte == 0);
    found.extend(texts.next());
    if matches!(frame.opcode, op::RENAME | op::RENAME2) {
        found.extend(texts.next());
    }
    found
}
