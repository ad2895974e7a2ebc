//! `sftp`: an SFTP server, version 3, on stdin and stdout.
//!
//! It is a job like any other: in the machine's root, as the job's user, with the user's home as the
//! directory that relative names start from. It does one request after the other, answers what has
//! come in one piece, and ends with its input. Nothing but this process parses what the client says.

pub(super) mod listing;
mod operations;
mod packet;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use super::{Report, Usage};
use operations::Server;

/// The longest packet, as OpenSSH's server has it. Told to clients that ask (limits@openssh.com).
const MAX_PACKET: usize = 256 * 1024;
/// Of a packet, what is not the data of a read or a write.
const OVERHEAD: usize = 1_024;
/// Answers are written when so much has come together.
const FLUSH: usize = 128 * 1024;

pub(super) fn run(arguments: &[std::ffi::OsString], report: &mut Report) -> Result<(), Usage> {
    if !arguments.is_empty() {
        return Err(Usage("sftp"));
    }
    // SAFETY: the process has them for this, and nothing else uses them.
    let (stdin, stdout) = unsafe { (OwnedFd::from_raw_fd(0), OwnedFd::from_raw_fd(1)) };
    if let Err(error) = serve(&mut File::from(stdin), &mut File::from(stdout)) {
        report.error("sftp", &error);
    }
    Ok(())
}

fn serve(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    let mut server = Server::default();
    let mut buffer = vec![0; 2 * MAX_PACKET];
    let mut filled = 0;
    loop {
        let count = input.read(&mut buffer[filled..])?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let mut start = 0;
        while let Some(length) = complete(&buffer[start..filled])? {
            server.answer(&buffer[start + 4..start + 4 + length]);
            start += 4 + length;
            if server.answers.0.len() >= FLUSH {
                flush(&mut server, output)?;
            }
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        flush(&mut server, output)?;
    }
}

fn flush(server: &mut Server, output: &mut impl Write) -> io::Result<()> {
    output.write_all(&server.answers.0)?;
    server.answers.0.clear();
    Ok(())
}

/// The length of the packet at the buffer's start, when all of it is there.
fn complete(buffer: &[u8]) -> io::Result<Option<usize>> {
    let Some(prefix) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*prefix) as usize;
    // A kind and a number at least; what claims more than the limit is no SFTP client.
    if !(5..=MAX_PACKET).contains(&length) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a packet of {length} bytes"),
        ));
    }
    Ok((buffer.len() >= 4 + length).then_some(length))
}
