//! The parts of the kernel's FUSE protocol (linux/fuse.h, 7.38) that the pump must understand, and the
//! frames in which requests go to the share server (docs/shares.md, "On the wire").

pub const IN_HEADER: usize = 40;
pub const OUT_HEADER: usize = 16;
pub const ENTRY: usize = 128;
pub const DIRENT: usize = 24;
pub const FRAME_HEADER: usize = 56;
/// In place of a path's length: the file has no name any more.
pub const NO_PATH: u16 = u16::MAX;

pub const KIND_REQUEST: u8 = 0;
pub const KIND_HELLO: u8 = 1;
pub const KIND_REOPEN: u8 = 2;
pub const KIND_WATCH: u8 = 3;
pub const VERSION: u32 = 1;

/// The most data of a request, in bytes and pages.
pub const MAX_WRITE: u32 = 256 << 10;
pub const MAX_PAGES: u16 = 64;

pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETATTR: u32 = 4;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const TMPFILE: u32 = 51;
}

#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

#[must_use]
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// The text at `at`, up to its NUL.
#[must_use]
pub fn text_at(bytes: &[u8], at: usize) -> &[u8] {
    let rest = bytes.get(at..).unwrap_or_default();
    &rest[..memchr::memchr(0, rest).unwrap_or(rest.len())]
}

/// A request of the kernel, by its header.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a>(pub &'a [u8]);

impl<'a> Request<'a> {
    #[must_use]
    pub fn opcode(self) -> u32 {
        u32_at(self.0, 4)
    }
    #[must_use]
    pub fn unique(self) -> u64 {
        u64_at(self.0, 8)
    }
    #[must_use]
    pub fn node(self) -> u64 {
        u64_at(self.0, 16)
    }
    #[must_use]
    pub fn body(self) -> &'a [u8] {
        self.0.get(IN_HEADER..).unwrap_or_default()
    }

    /// Whether it may be done twice: the answer to the first may be lost with its server.
    #[must_use]
    pub fn may_be_repeated(self) -> bool {
        const APPEND: u32 = 0o2_000;
        match self.opcode() {
            op::LOOKUP
            | op::GETATTR
            | op::SETATTR
            | op::READLINK
            | op::READ
            | op::STATFS
            | op::FSYNC
            | op::GETXATTR
            | op::LISTXATTR
            | op::READDIR
            | op::READDIRPLUS
            | op::FSYNCDIR
            | op::LSEEK
            | op::OPENDIR
            | op::OPEN
            | op::RELEASE
            | op::RELEASEDIR => true,
            // Its flags are those of the open file.
            op::WRITE => u32_at(self.body(), 32) & APPEND == 0,
            _ => false,
        }
    }
}

/// The same request with another operation and body.
#[must_use]
pub fn rewritten(request: Request, opcode: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = request.0[..IN_HEADER.min(request.0.len())].to_vec();
    bytes.extend(body);
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
    bytes
}

/// An answer that is an error, or (with 0) an empty one.
#[must_use]
pub fn answer(unique: u64, errno: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(OUT_HEADER + body.len()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(OUT_HEADER + body.len());
    bytes.extend(length.to_le_bytes());
    bytes.extend((-errno).to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend(body);
    bytes
}

/// The answer to INIT: the pump knows what the server can do, so a mount waits for nobody.
#[must_use]
pub fn init(request: Request) -> Vec<u8> {
    const ASYNC_READ: u32 = 1;
    const ATOMIC_TRUNCATE: u32 = 1 << 3;
    const BIG_WRITES: u32 = 1 << 5;
    // Content that is kept goes when a file's time or size is seen to have changed.
    const AUTO_INVALIDATE: u32 = 1 << 12;
    const READDIRPLUS: u32 = 1 << 13;
    const READDIRPLUS_AUTO: u32 = 1 << 14;
    const PARALLEL_DIRECTORIES: u32 = 1 << 18;
    const PAGES: u32 = 1 << 22;
    // Else each write would ask for a file's capabilities first.
    const KILL_PRIVILEGES_2: u32 = 1 << 28;
    let body = request.body();
    let wanted = ASYNC_READ
        | ATOMIC_TRUNCATE
        | BIG_WRITES
        | AUTO_INVALIDATE
        | READDIRPLUS
        | READDIRPLUS_AUTO
        | PARALLEL_DIRECTORIES
        | PAGES
        | KILL_PRIVILEGES_2;
    let mut out = Vec::with_capacity(64);
    for value in [7, 38, u32_at(body, 8), u32_at(body, 12) & wanted] {
        out.extend(value.to_le_bytes());
    }
    for value in [32u16, 24] {
        out.extend(value.to_le_bytes()); // how much may be under way in the background
    }
    out.extend(MAX_WRITE.to_le_bytes());
    out.extend(1u32.to_le_bytes()); // times are in nanoseconds
    out.extend(MAX_PAGES.to_le_bytes());
    out.resize(64, 0);
    answer(request.unique(), 0, &out)
}

/// Nobody waits for the server's answer: it is not sent.
pub const UNANSWERED: u8 = 1;
/// Before the answer, the server says what has become of the directory (`ATTRIBUTES`).
pub const AND_DIRECTORY: u8 = 2;

/// What a frame says beside what it carries.
#[derive(Debug, Default)]
pub struct Frame {
    pub kind: u8,
    /// `UNANSWERED`, `AND_DIRECTORY`.
    pub how: u8,
    pub path: Option<Vec<u8>>,
    pub identity: (u64, u64),
    pub path2: Option<Vec<u8>>,
    pub identity2: (u64, u64),
    pub handle: u64,
}

impl Frame {
    #[must_use]
    pub fn encode(&self, carried: &[u8]) -> Vec<u8> {
        let path = self.path.as_deref().unwrap_or_default();
        let path2 = self.path2.as_deref().unwrap_or_default();
        let length = FRAME_HEADER + path.len() + path2.len() + carried.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(u32::try_from(length).unwrap_or(0).to_le_bytes());
        bytes.extend([self.kind, self.how, 0, 0]);
        for path in [&self.path, &self.path2] {
            let length = path
                .as_ref()
                .map_or(NO_PATH, |path| u16::try_from(path.len()).unwrap_or(NO_PATH));
            bytes.extend(length.to_le_bytes());
        }
        bytes.extend([0; 4]);
        for value in [
            self.handle,
            self.identity.0,
            self.identity.1,
            self.identity2.0,
            self.identity2.1,
        ] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(path);
        bytes.extend(path2);
        bytes.extend(carried);
        bytes
    }
}
