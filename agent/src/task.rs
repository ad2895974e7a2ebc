//! Work that may take long (growing a file system, writing everything to disk): a forked child does it
//! and says how it went, while the loop goes on.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::unistd;

use crate::error::Refusal;
use crate::launch;

/// The most bytes of an answer.
pub const MAX_ANSWER: usize = 512;

const DONE: u8 = 0;
const REFUSED: u8 = 1;

/// A task under way.
pub struct Task {
    /// Who asked; None when nobody waits for the answer any more.
    pub channel: Option<u32>,
    /// The pipe with the answer, to be read to its end.
    pub answer: OwnedFd,
}

/// Start `work`; its number, if it gives one, is the answer's only field, called `field`.
pub fn start(
    channel: Option<u32>,
    work: impl FnOnce() -> Result<Option<u64>, Refusal>,
) -> Result<Task, Refusal> {
    start_with(channel, &[], work)
}

/// The same, for work that needs some of the agent's fds (all above 2).
pub fn start_with(
    channel: Option<u32>,
    keep: &[RawFd],
    work: impl FnOnce() -> Result<Option<u64>, Refusal>,
) -> Result<Task, Refusal> {
    let (answer, report) = unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .map_err(|errno| Refusal::system("cannot make a pipe", errno))?;
    // SAFETY: the agent has one thread.
    let pid = unsafe { launch::clone_into(None) }
        .map_err(|errno| Refusal::system("cannot start another process", errno))?;
    if pid == 0 {
        // Else it would keep the pipes of jobs open for as long as it takes.
        launch::close_others(&[keep, &[report.as_raw_fd()]].concat());
        let bytes = match work() {
            Ok(None) => done(),
            Ok(Some(number)) => [&[DONE][..], &number.to_le_bytes()].concat(),
            Err(refusal) => refused(&refusal),
        };
        let _ = File::from(report).write_all(&bytes);
        // SAFETY: ends the child without running what belongs to the agent.
        unsafe { libc::_exit(0) }
    }
    Ok(Task { channel, answer })
}

/// The answer of work that is done and gives nothing.
#[must_use]
pub fn done() -> Vec<u8> {
    vec![DONE]
}

/// The answer of work that came to nothing.
#[must_use]
pub fn refused(refusal: &Refusal) -> Vec<u8> {
    let errno = refusal.errno.unwrap_or(0).to_le_bytes();
    let mut bytes = [&[REFUSED][..], &errno, refusal.message.as_bytes()].concat();
    bytes.truncate(MAX_ANSWER);
    bytes
}

/// What a task's bytes say. No bytes: it died.
pub fn verdict(bytes: &[u8]) -> Result<Option<u64>, Refusal> {
    match bytes.split_first() {
        Some((&DONE, rest)) => Ok(rest.first_chunk().map(|n| u64::from_le_bytes(*n))),
        Some((&REFUSED, rest)) if rest.len() >= 4 => {
            let errno = i32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
            Err(Refusal {
                code: "system",
                message: String::from_utf8_lossy(&rest[4..]).into_owned(),
                errno: (errno != 0).then_some(errno),
            })
        }
        _ => Err(Refusal::new("system", "the work was cut short")),
    }
}
