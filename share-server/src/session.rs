//! The stream of frames: finding its beginning, reading, answering.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::abi::{
    FRAME_HEADER, IN_HEADER, KIND_REQUEST, MAX_FRAME, NO_PATH, OUT_HEADER, Put, Reader, Short,
};
use crate::place::Identity;

pub const KEY: usize = 32;
/// In place of an error's number in a frame's header: what a directory is like after a change in it.
const ATTRIBUTES: u32 = 2;
const BEGINS_WITHIN: Duration = Duration::from_secs(30);

/// A frame, cut up.
#[derive(Debug)]
pub struct Frame<'a> {
    pub kind: u8,
    /// `UNANSWERED`, `AND_DIRECTORY`.
    pub how: u8,
    /// None: the file has no name any more.
    pub path: Option<&'a [u8]>,
    pub identity: Identity,
    pub path2: Option<&'a [u8]>,
    pub identity2: Identity,
    pub handle: u64,
    pub opcode: u32,
    pub unique: u64,
    pub uid: u32,
    pub gid: u32,
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Cut up all of a frame but its length.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Short> {
        let mut reader = Reader(bytes);
        let (kind, how) = (reader.u8()?, reader.u8()?);
        reader.bytes(2)?;
        let (length, length2) = (reader.u16()?, reader.u16()?);
        reader.bytes(4)?;
        let handle = reader.u64()?;
        let mut identity = || -> Result<Identity, Short> {
            Ok(Identity {
                ino: reader.u64()?,
                generation: reader.u64()?,
            })
        };
        let (identity, identity2) = (identity()?, identity()?);
        let mut path = |length: u16| match length {
            NO_PATH => Ok(None),
            length => reader.bytes(length.into()).map(Some),
        };
        let (path, path2) = (path(length)?, path(length2)?);
        let mut frame = Self {
            kind,
            how,
            path,
            identity,
            path2,
            identity2,
            handle,
            opcode: 0,
            unique: 0,
            uid: 0,
            gid: 0,
            body: reader.0,
        };
        if kind == KIND_REQUEST {
            reader.u32()?;
            frame.opcode = reader.u32()?;
            frame.unique = reader.u64()?;
            reader.u64()?;
            frame.uid = reader.u32()?;
            frame.gid = reader.u32()?;
            reader.bytes(IN_HEADER - 32)?;
            frame.body = reader.0;
        }
        Ok(frame)
    }
}

/// The machine's end of the stream: one thread reads at a time, one writes.
pub struct Session {
    input: Mutex<Input>,
    output: Mutex<UnixStream>,
}

struct Input {
    stream: UnixStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Session {
    /// Take up a stream at the key, wherever in it that comes, and answer with the key.
    pub fn begin(stream: UnixStream, key: &[u8; KEY]) -> std::io::Result<Self> {
        // One that nobody told the machine of (its helper died) makes room for the next.
        stream.set_read_timeout(Some(BEGINS_WITHIN))?;
        let mut output = stream.try_clone()?;
        let mut input = Input {
            stream,
            buffer: vec![0; 256 << 10],
            start: 0,
            end: 0,
        };
        loop {
            let seen = &input.buffer[..input.end];
            if let Some(at) = seen.windows(KEY).position(|window| window == key) {
                input.start = at + KEY;
                break;
            }
            // What is before can only be the rest of what an earlier server was sent.
            let keep = input.end.min(KEY - 1);
            input.buffer.copy_within(input.end - keep..input.end, 0);
            input.end = keep;
            input.more()?;
        }
        output.write_all(key)?;
        output.set_read_timeout(None)?;
        Ok(Self {
            input: Mutex::new(input),
            output: Mutex::new(output),
        })
    }

    /// The next frame without its length; an error when there will be none.
    ///
    /// Args: `first` is called with it before another thread gets the next.
    pub fn next(&self, frame: &mut Vec<u8>, first: impl Fn(&[u8])) -> std::io::Result<()> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let mut length = [0; 4];
        input.take(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if !(FRAME_HEADER..=MAX_FRAME).contains(&length) {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        frame.resize(length - 4, 0);
        input.take(frame)?;
        if frame.first() != Some(&KIND_REQUEST) {
            first(frame);
        }
        Ok(())
    }

    /// Answer a request: `answer` has room for the header, as has what is said before, if anything is.
    pub fn answer(
        &self,
        unique: u64,
        mut before: Vec<u8>,
        answer: &mut [u8],
    ) -> std::io::Result<()> {
        put_header(answer, 0, unique);
        if before.is_empty() {
            return self.write(answer);
        }
        put_header(&mut before, ATTRIBUTES, unique);
        before.extend_from_slice(answer);
        self.write(&before)
    }

    /// Tell the machine of something that it did not ask; `frame` has room for the header.
    pub fn tell(&self, code: u32, frame: &mut [u8]) -> std::io::Result<()> {
        put_header(frame, code, 0);
        self.write(frame)
    }

    pub fn refuse(&self, unique: u64, errno: i32) -> std::io::Result<()> {
        let mut header = Vec::with_capacity(OUT_HEADER);
        header.put32(16);
        header.put32((-errno).cast_unsigned());
        header.put64(unique);
        self.write(&header)
    }

    fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.write_all(bytes)
    }
}

/// `fuse_out_header`
fn put_header(frame: &mut [u8], code: u32, unique: u64) {
    let mut header = Vec::with_capacity(OUT_HEADER);
    header.put32(u32::try_from(frame.len()).unwrap_or(u32::MAX));
    header.put32(code);
    header.put64(unique);
    frame[..OUT_HEADER].copy_from_slice(&header);
}

impl Input {
    fn more(&mut self) -> std::io::Result<()> {
        let count = self.stream.read(&mut self.buffer[self.end..])?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.end += count;
        Ok(())
    }

    fn take(&mut self, mut wanted: &mut [u8]) -> std::io::Result<()> {
        while !wanted.is_empty() {
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
                // What is long goes where it is wanted.
                if wanted.len() >= self.buffer.len() {
                    return self.stream.read_exact(wanted);
                }
                self.more()?;
            }
            let count = wanted.len().min(self.end - self.start);
            wanted[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
            self.start += count;
            wanted = &mut wanted[count..];
        }
        Ok(())
    }
}
