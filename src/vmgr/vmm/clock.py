"""The clock of an emulated machine.

Under emulation the guest reads the host's own time-stamp counter. Its kernel does not know that
and checks the counter against timer interrupts, which a busy host delivers late: it then finds
the counter wrong and falls back to the ACPI timer, of which each reading leaves the emulated
code. Where the host itself keeps time by the counter, that check can only do harm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["host_tsc_is_steady"]

# Documentation/ABI/testing/sysfs-devices-system-clocksource of the Linux source.
_CLOCKSOURCE: Final = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")


def host_tsc_is_steady(clocksource: Path = _CLOCKSOURCE) -> bool:
    """Whether the host's kernel found its time-stamp counters constant and equal on all CPUs."""
    try:
        return clocksource.read_text(encoding="ascii").strip() == "tsc"
    except (OSError, ValueError):
        return False
