"""The clock of an emulated machine.

Under emulation the guest reads the host's own time-stamp counter. Its kernel does not know that
and checks the counter against timer interrupts, which a busy host delivers late: it then finds
the counter wrong and falls back to the ACPI timer, of which each reading leaves the emulated
code; or it measures a fraction of the counter's speed, and all its time runs too fast by as much.
Where the host itself keeps time by the counter, the check can only do harm, and the speed is known.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.spawner import ProcessFailedError, run
from vmgr.vmm.probecache import fingerprint

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from vmgr.vmm.probecache import ProbeCache

__all__ = ["counter_khz", "host_tsc_is_steady"]

# Documentation/ABI/testing/sysfs-devices-system-clocksource of the Linux source.
_CLOCKSOURCE: Final = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_DEADLINE: Final = 30.0
_SANE_KHZ: Final = range(100_000, 20_000_000)

log = logging.getLogger(__name__)


def host_tsc_is_steady(clocksource: Path = _CLOCKSOURCE) -> bool:
    """Whether the host's kernel found its time-stamp counters constant and equal on all CPUs."""
    try:
        return clocksource.read_text(encoding="ascii").strip() == "tsc"
    except (OSError, ValueError):
        return False


async def counter_khz(agent: Path, cache: ProbeCache, executor: Executor) -> int | None:
    """The speed of the host's time-stamp counter in kHz; None where it is not known.

    Measured once per boot of the host, which takes a tenth of a second.

    Args:
        agent: the agent's program, which can tell.
        cache: where the answer is kept.
        executor: for file work.
    """
    loop = asyncio.get_running_loop()

    def look() -> tuple[str, int | None]:
        key = f"counter:{_BOOT_ID.read_text(encoding='ascii').strip()}:{fingerprint(agent)}"
        return key, (cache.get(key) or {}).get("khz")

    try:
        if not await loop.run_in_executor(executor, host_tsc_is_steady):
            return None
        key, known = await loop.run_in_executor(executor, look)
        if isinstance(known, int) and known in _SANE_KHZ:
            return known
        done = await run([agent, "--counter"], deadline=_DEADLINE)
        khz = int(done.stdout)
    except (OSError, ValueError, ProcessFailedError, TimeoutError) as error:
        log.warning("how fast this computer's counter counts is not known: %s", error)
        return None
    if khz not in _SANE_KHZ:
        return None
    await loop.run_in_executor(executor, cache.put, key, {"khz": khz})
    return khz
