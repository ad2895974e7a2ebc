//! The machine's clock, as who corrects it sees it: what it says, whether a program of the machine's
//! own keeps it, and what of an earlier correction is still to come.

use nix::errno::Errno;

use crate::error::Refusal;

// linux/timex.h
const ADJ_OFFSET_SINGLESHOT: libc::c_uint = 0x8001;
const ADJ_OFFSET_SS_READ: libc::c_uint = 0xa001;
/// The most that is slewed, in microseconds. The kernel slews by 500 us in a second.
const MOST: i64 = 1_000_000;

/// What the kernel knows.
pub struct Reading {
    pub realtime_ns: i64,
    /// A program in the machine keeps the clock, and has it right: see adjtimex(2), `STA_UNSYNC`.
    pub synchronized: bool,
    /// By how much the clock is still to be slewed.
    pub pending_ns: i64,
}

/// Begin to slew the clock by `slew_ns`, in place of an earlier slewing, if that is asked; then read it.
pub fn look(slew_ns: Option<i64>) -> Result<Reading, Refusal> {
    let refuse = |errno| Refusal::system("cannot read the clock's state", errno);
    if let Some(slew_ns) = slew_ns {
        let micros = (slew_ns / 1_000).clamp(-MOST, MOST);
        adjust(ADJ_OFFSET_SINGLESHOT, micros)
            .map_err(|errno| Refusal::system("cannot slew the clock", errno))?;
    }
    let (_, pending) = adjust(ADJ_OFFSET_SS_READ, 0).map_err(refuse)?;
    let (state, _) = adjust(0, 0).map_err(refuse)?;
    Ok(Reading {
        synchronized: state & libc::STA_UNSYNC == 0,
        pending_ns: pending.saturating_mul(1_000),
        // Last, so that what came before is not taken for the way to the host.
        realtime_ns: crate::machine::realtime_ns(),
    })
}

/// adjtimex(2): status and offset.
fn adjust(modes: libc::c_uint, offset: i64) -> Result<(i32, i64), Errno> {
    // SAFETY: all zero is a valid structure, and the call gets the one that it asks for.
    unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        timex.modes = modes;
        timex.offset = offset;
        Errno::result(libc::adjtimex(&raw mut timex))?;
        Ok((timex.status, timex.offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_changes_nothing() {
        let reading = look(None).unwrap();
        assert!(reading.realtime_ns > 1_600_000_000_000_000_000);
    }
}
