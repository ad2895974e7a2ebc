//! How fast this computer's time-stamp counter counts. The helper asks it of the agent's program on the
//! host: an emulated guest reads the same counter, and measures its speed wrongly on a busy host.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Long enough that what lies between reading the counter and the clock does not count.
const SPAN: Duration = Duration::from_millis(100);
/// How often each end is read; the reading that took least is believed.
const READINGS: usize = 200;

/// Kilohertz, by the host's clock, which itself goes by the counter.
#[must_use]
pub fn kilohertz() -> Option<u64> {
    let (from, began) = reading()?;
    std::thread::sleep(SPAN);
    let (to, ended) = reading()?;
    let (counted, took) = (to.checked_sub(from)?, ended.checked_sub(began)?);
    u64::try_from(u128::from(counted) * 1_000_000 / u128::from(took.max(1))).ok()
}

/// The counter and the time in nanoseconds at (nearly) the same moment.
fn reading() -> Option<(u64, u64)> {
    let mut best: Option<(u64, u64, u64)> = None;
    for _ in 0..READINGS {
        let before = counter();
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).ok()?;
        let after = counter();
        let took = after.checked_sub(before)?;
        if best.is_none_or(|(least, ..)| took < least) {
            let nanoseconds = time.tv_sec() * 1_000_000_000 + time.tv_nsec();
            best = Some((took, before + took / 2, u64::try_from(nanoseconds).ok()?));
        }
    }
    best.map(|(_, count, time)| (count, time))
}

fn counter() -> u64 {
    // SAFETY: RDTSC is there on every x86-64, and where the kernel forbids it the process ends.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_measurements_agree() {
        let (one, other) = (super::kilohertz().unwrap(), super::kilohertz().unwrap());
        assert!((100_000..20_000_000).contains(&one));
        assert!(one.abs_diff(other) * 1_000 < one, "{one} and {other}");
    }
}
