//! Reaping.

use crate::wire::Ended;

/// Reap one child that has ended, whosever it was (as init, the agent also gets orphans): its pid and
/// how it ended.
#[must_use]
pub fn reap() -> Option<(i32, Ended)> {
    let mut status = 0;
    // Not through `nix`: it cannot name real-time signals and would lose the pid.
    // SAFETY: waitpid writes one int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let ended = if libc::WIFSIGNALED(status) {
        Ended::Signal {
            number: libc::WTERMSIG(status),
            core: libc::WCOREDUMP(status),
        }
    } else {
        Ended::Code(libc::WEXITSTATUS(status))
    };
    Some((pid, ended))
}

/// Whether there is any child left, reaped or not.
#[must_use]
pub fn any() -> bool {
    // SAFETY: with WNOWAIT and a null status nothing is written and nothing reaped.
    let result = unsafe {
        libc::waitid(
            libc::P_ALL,
            0,
            std::ptr::null_mut(),
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
        )
    };
    result == 0
}
