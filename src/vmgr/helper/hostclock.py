"""This computer's clock: waking when it was set, or when the computer slept.

The kernel tells by cancelling a timer that is never due (timerfd_create(2),
TFD_TIMER_CANCEL_ON_SET); what happened is seen by comparing clocks, since one of them stands
still while the computer sleeps and another is not set.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import time
from dataclasses import dataclass
from typing import Final

__all__ = ["HostClock", "Jump", "jump_between"]

# linux/timerfd.h, linux/time.h
_CLOEXEC_NONBLOCK: Final = os.O_CLOEXEC | os.O_NONBLOCK
_ABSTIME_CANCEL_ON_SET: Final = 1 | 2
_NEVER: Final = 1 << 40
_NOTICED: Final = 0.01
"""Seconds; a smaller difference is that of reading one clock after the other."""


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


@dataclass(frozen=True)
class Jump:
    """What happened to the clock between two looks, in seconds."""

    slept: float
    """How long the computer was suspended."""
    stepped: float
    """By how much its clock was set, beyond that."""


def clocks() -> tuple[int, int, int]:
    """Real time, time since the boot with and without suspension; in nanoseconds."""
    return time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.monotonic_ns()


def jump_between(before: tuple[int, int, int], after: tuple[int, int, int]) -> Jump | None:
    """What happened between two readings; None: nothing but time."""
    slept = (after[1] - after[2] - before[1] + before[2]) / 1e9
    stepped = (after[0] - after[1] - before[0] + before[1]) / 1e9
    if abs(slept) < _NOTICED and abs(stepped) < _NOTICED:
        return None
    return Jump(max(0.0, slept), stepped)


class HostClock:
    """Waits for jumps. To be made and closed on the loop's thread."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._settime = libc.timerfd_settime
        self._fd = libc.timerfd_create(time.CLOCK_REALTIME, _CLOEXEC_NONBLOCK)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._known = clocks()
        self._set = asyncio.Event()
        self._arm()
        asyncio.get_running_loop().add_reader(self._fd, self._told)

    async def jumped(self) -> Jump:
        """Wait until the clock has jumped; how."""
        while True:
            await self._set.wait()
            self._set.clear()
            before, self._known = self._known, clocks()
            if (jump := jump_between(before, self._known)) is not None:
                return jump

    def close(self) -> None:
        """Stop waiting."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _arm(self) -> None:
        never = _Itimerspec(_Timespec(0, 0), _Timespec(_NEVER, 0))
        self._settime(self._fd, _ABSTIME_CANCEL_ON_SET, ctypes.byref(never), None)

    def _told(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
        self._arm()
        self._set.set()
