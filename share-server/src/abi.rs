//! The parts of the kernel's FUSE protocol (linux/fuse.h, 7.38) that are served, and the frames that
//! bring them from the machine (docs/shares.md, "On the wire").

/// Bytes before the paths of a frame.
pub const FRAME_HEADER: usize = 56;
/// Bytes of `fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// The most data of a READ or WRITE.
pub const MAX_DATA: usize = 1 << 20;
/// The most bytes of a frame: data, two paths, headers and a name.
pub const MAX_FRAME: usize = MAX_DATA + 3 * 65_536;
/// In place of a path's length: the file has no name any more.
pub const NO_PATH: u16 = u16::MAX;

pub const KIND_REQUEST: u8 = 0;
pub const KIND_HELLO: u8 = 1;
pub const KIND_REOPEN: u8 = 2;
pub const KIND_WATCH: u8 = 3;

/// In a frame's second byte: nobody waits for an answer.
pub const UNANSWERED: u8 = 1;
/// Before the answer comes what the directory of the first path is like by then.
pub const AND_DIRECTORY: u8 = 2;

pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
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
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
}

/// Reads little-endian numbers off a request; what is not there is EINVAL.
pub struct Reader<'a>(pub &'a [u8]);

/// A request that is too short.
#[derive(Debug)]
pub struct Short;

impl<'a> Reader<'a> {
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Short> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        Ok(*self.bytes(N)?.first_chunk().ok_or(Short)?)
    }

    pub fn u8(&mut self) -> Result<u8, Short> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_le_bytes)
    }

    /// Text up to a NUL.
    pub fn text(&mut self) -> Result<&'a [u8], Short> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Short)?;
        let text = self.bytes(end)?;
        self.bytes(1)?;
        Ok(text)
    }
}

/// Writes little-endian numbers to an answer.
pub trait Put {
    fn put32(&mut self, value: u32);
    fn put64(&mut self, value: u64);
}

impl Put for Vec<u8> {
    fn put32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
}

/// What a file is, as the machine sees it: `fuse_attr` and the file's identity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    pub ino: u64,
    /// Tells it from an earlier file of the same number.
    pub generation: u64,
    pub size: u64,
    pub blocks: u64,
    pub times: [(u64, u32); 3],
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub blksize: u32,
}

/// Attributes of files are taken for valid for so long by those who have them open; each open and
/// each stat by name asks.
const ATTRIBUTES_VALID: u32 = 50_000_000;
/// For so long, names of directories are not asked for again. A wrong one is found out by the
/// directory's identity, which each request names.
const DIRECTORY_VALID: u64 = 1;

impl Attributes {
    fn is_directory(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    /// `fuse_attr`
    fn put(&self, out: &mut Vec<u8>) {
        out.put64(self.ino);
        out.put64(self.size);
        out.put64(self.blocks);
        for (seconds, _) in self.times {
            out.put64(seconds);
        }
        for (_, nanoseconds) in self.times {
            out.put32(nanoseconds);
        }
        for value in [
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.rdev,
            self.blksize,
            0,
        ] {
            out.put32(value);
        }
    }

    /// `fuse_attr_out`
    pub fn put_attr(&self, out: &mut Vec<u8>) {
        out.put64(0);
        out.put32(ATTRIBUTES_VALID);
        out.put32(0);
        self.put(out);
    }

    /// `fuse_entry_out`; the machine gives the node its number.
    pub fn put_entry(&self, out: &mut Vec<u8>) {
        out.put64(0);
        out.put64(self.generation);
        out.put64(if self.is_directory() {
            DIRECTORY_VALID
        } else {
            0
        });
        out.put64(0);
        out.put32(0);
        out.put32(ATTRIBUTES_VALID);
        self.put(out);
    }
}
