//! What requests and answers mean for the table: requests get paths, answers get numbers.

use nix::errno::Errno;

use super::abi::{
    AND_DIRECTORY, DIRENT, ENTRY, Frame, IN_HEADER, KIND_REQUEST, OUT_HEADER, Request, UNANSWERED,
    op, text_at, u32_at, u64_at,
};
use super::table::{Open, TOP, Table};

/// A request that is under way, kept until it is answered.
#[derive(Debug)]
pub struct Pending {
    pub request: Vec<u8>,
    /// The number of what it opens; 0 where it opens nothing.
    pub handle: u64,
    /// How many renames had been done when it was sent: paths of before may lead nowhere.
    pub renames: u64,
}

impl Pending {
    #[must_use]
    pub fn request(&self) -> Request<'_> {
        Request(&self.request)
    }

    /// Whether it closes something: that nobody waits for.
    #[must_use]
    pub fn is_release(&self) -> bool {
        matches!(self.request().opcode(), op::RELEASE | op::RELEASEDIR)
    }
}

/// Whether a request renames something.
#[must_use]
pub fn renames(request: Request) -> bool {
    matches!(request.opcode(), op::RENAME | op::RENAME2)
}

/// Whether an operation changes the directory that it names first.
fn changes_names(opcode: u32) -> bool {
    matches!(
        opcode,
        op::CREATE
            | op::MKNOD
            | op::MKDIR
            | op::SYMLINK
            | op::LINK
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::RENAME2
    )
}

/// Whether, after this, what was known of a directory's attributes may be wrong.
#[must_use]
pub fn changes_attributes(request: Request) -> bool {
    let opcode = request.opcode();
    changes_names(opcode) || matches!(opcode, op::SETATTR | op::SETXATTR | op::REMOVEXATTR)
}

/// Whether the server would refuse a request whatever it is about, and how.
#[must_use]
pub fn refused(request: Request) -> Option<i32> {
    const NAME: usize = 8; // fuse_getxattr_in
    match request.opcode() {
        // Not needed: nothing is held back, and the kernel checks rights itself.
        op::FLUSH | op::ACCESS | op::IOCTL => Some(libc::ENOSYS),
        op::GETXATTR if !text_at(request.body(), NAME).starts_with(b"user.") => {
            Some(libc::EOPNOTSUPP)
        }
        _ => None,
    }
}

/// The frame in which a request goes to the server, by the names that files have now.
#[must_use]
pub fn frame(table: &Table, pending: &Pending) -> Vec<u8> {
    let request = pending.request();
    let node = request.node();
    let mut frame = Frame {
        kind: KIND_REQUEST,
        how: match request.opcode() {
            _ if pending.is_release() => UNANSWERED,
            _ if changes_names(request.opcode()) => AND_DIRECTORY,
            _ => 0,
        },
        path: table.path(node),
        identity: table.identity(node),
        handle: pending.handle,
        ..Frame::default()
    };
    let second = match request.opcode() {
        op::RENAME | op::RENAME2 | op::LINK => Some(u64_at(request.body(), 0)),
        _ => None,
    };
    if let Some(second) = second {
        frame.path2 = table.path(second);
        frame.identity2 = table.identity(second);
    }
    match request.opcode() {
        op::LINK => frame.handle = second.map_or(0, |node| table.handle_of(node)),
        op::READDIR | op::READDIRPLUS => {}
        _ if frame.handle == 0 => frame.handle = table.handle_of(node),
        _ => {}
    }
    frame.encode(&pending.request)
}

/// The names in the body of a request to rename, and whether they are exchanged.
fn rename_names(request: Request<'_>) -> (&[u8], &[u8], bool) {
    const EXCHANGE: u32 = 2;
    let body = request.body();
    let (at, flags) = if request.opcode() == op::RENAME2 {
        (16, u32_at(body, 8))
    } else {
        (8, 0)
    };
    let from = text_at(body, at);
    let to = text_at(body, at + from.len() + 1);
    (from, to, flags & EXCHANGE != 0)
}

/// The name under which a request makes or finds something.
fn entry_name(request: Request<'_>) -> Option<&[u8]> {
    let body = request.body();
    match request.opcode() {
        op::LOOKUP | op::SYMLINK => Some(text_at(body, 0)),
        op::MKNOD | op::CREATE => Some(text_at(body, 16)),
        op::MKDIR | op::LINK => Some(text_at(body, 8)),
        _ => None,
    }
}

/// Take an answer of the server into the table, and put the numbers of files into it.
pub fn answered(table: &mut Table, pending: &Pending, reply: &mut [u8]) {
    let request = pending.request();
    let (node, body) = (request.node(), request.body());
    let failed = u32_at(reply, 4) != 0;
    if failed {
        // It was there once, and somebody on the host has removed it.
        if request.opcode() == op::LOOKUP
            && u32_at(reply, 4).cast_signed() == -(Errno::ENOENT as i32)
        {
            table.unnamed(node, text_at(body, 0));
        }
        return;
    }
    match request.opcode() {
        op::LOOKUP | op::SYMLINK | op::MKNOD | op::MKDIR | op::LINK | op::CREATE | op::TMPFILE => {
            let name = entry_name(request).map(|name| (node, name));
            let number = number_entry(table, name, &mut reply[OUT_HEADER..]);
            if pending.handle != 0 {
                opened(table, pending, number, u32_at(body, 0));
            }
        }
        op::OPEN | op::OPENDIR => opened(table, pending, node, u32_at(body, 0)),
        op::UNLINK | op::RMDIR => table.unnamed(node, text_at(body, 0)),
        op::RENAME | op::RENAME2 => {
            let (from, to, exchange) = rename_names(request);
            table.renamed((node, from), (u64_at(body, 0), to), exchange);
        }
        // fuse_attr_out: its attributes begin with the number.
        op::GETATTR if node == TOP => table.top_ino = u64_at(reply, OUT_HEADER + 16),
        op::READDIRPLUS => number_all(table, node, &mut reply[OUT_HEADER..]),
        _ => {}
    }
}

fn opened(table: &mut Table, pending: &Pending, node: u64, flags: u32) {
    let directory = pending.request().opcode() == op::OPENDIR;
    let open = Open {
        node,
        flags,
        directory,
    };
    table.opened(pending.handle, open);
}

/// `fuse_entry_out`: its number is the pump's to give.
fn number_entry(table: &mut Table, name: Option<(u64, &[u8])>, entry: &mut [u8]) -> u64 {
    if entry.len() < ENTRY {
        return TOP;
    }
    let identity = (u64_at(entry, 40), u64_at(entry, 8));
    let number = table.entered(name, identity);
    table.is_of_kind(number, u32_at(entry, 100) & 0o170_000);
    entry[..8].copy_from_slice(&number.to_le_bytes());
    number
}

/// All `fuse_direntplus` of an answer. Those without a file (`.`, `..`, what has just gone) have no `ino`
/// in their attributes and get no number.
fn number_all(table: &mut Table, directory: u64, mut entries: &mut [u8]) {
    while entries.len() > ENTRY + DIRENT {
        let length = u32_at(entries, ENTRY + 16) as usize;
        let whole = (ENTRY + DIRENT + length).next_multiple_of(8);
        if whole > entries.len() {
            return;
        }
        let (entry, rest) = entries.split_at_mut(whole);
        if u64_at(entry, 40) != 0 {
            let name = entry[ENTRY + DIRENT..][..length].to_vec();
            number_entry(table, Some((directory, &name)), entry);
        }
        entries = rest;
    }
}

/// Take a request that the server never sees: what the kernel forgets. Whether it was one.
pub fn forgotten(table: &mut Table, request: Request) -> bool {
    let body = request.body();
    match request.opcode() {
        op::FORGET => table.forgotten(request.node(), u64_at(body, 0)),
        op::BATCH_FORGET => {
            for one in body.get(8..).unwrap_or_default().chunks_exact(16) {
                table.forgotten(u64_at(one, 0), u64_at(one, 8));
            }
        }
        _ => return false,
    }
    true
}

/// What is kept of a request. What it opens gets its number.
#[must_use]
pub fn pending(table: &mut Table, request: &[u8], renames: u64) -> Pending {
    let read = Request(request);
    let handle = match read.opcode() {
        op::OPEN | op::OPENDIR | op::CREATE | op::TMPFILE => table.new_handle(),
        _ => 0,
    };
    if matches!(read.opcode(), op::RELEASE | op::RELEASEDIR) {
        table.released(u64_at(&request[IN_HEADER..], 0));
    }
    Pending {
        request: request.to_vec(),
        handle,
        renames,
    }
}
