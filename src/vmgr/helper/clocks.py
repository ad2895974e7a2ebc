"""The clocks of machines: measured against this computer's, and corrected.

Measured when this computer has slept or its clock was set, when somebody uses or asks for the
machine, and every few minutes. A difference that is small is slewed (no time is seen twice), a
large one stepped. A machine whose own program keeps its clock is left to that.

What a machine says of its clock has an effect on that machine alone: a step sets this computer's
time whatever was said, a slew is bounded, and so is how often either is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from vmgr.api.models import ClockInfo
from vmgr.errors import VmgrError
from vmgr.helper.hostclock import HostClock

if TYPE_CHECKING:
    from vmgr.agent import AgentChannel
    from vmgr.helper.helper import Helper
    from vmgr.helper.hostclock import Jump
    from vmgr.helper.machine import Machine

__all__ = ["Clocks", "Measured", "verdict"]

TOLERATED: Final = 0.05
"""Seconds by which a machine's clock may differ from this computer's."""
SLEWED: Final = 0.128
"""The most that is slewed: it takes 2000 times as long. NTP's own threshold."""
_GOOD: Final = 0.004  # seconds; an exchange this quick need not be done again
_TRIES: Final = 4
_DEADLINE: Final = 5.0
_QUICK: Final = 1.0  # for somebody who waits
_RECENT: Final = 60.0  # a use of the machine has it measured if that was longer ago
_EVERY: Final = 300.0
_SHOWN: Final = 1e6  # seconds; a clock that is further off is just that

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """One measurement, in seconds."""

    offset: float
    """The machine's clock is ahead by so much."""
    uncertainty: float
    pending: float
    """By so much it is still to be slewed."""
    synchronized: bool


def verdict(measured: Measured) -> Literal["slew", "step"] | None:
    """What is to be done about it."""
    if measured.synchronized:
        return None
    # Where it will be when the kernel has done what it was told before.
    ends = measured.offset + measured.pending
    if abs(ends) <= TOLERATED + measured.uncertainty:
        return None
    return "slew" if abs(ends) + measured.uncertainty <= SLEWED else "step"


class Clocks:
    """Keeps them."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._looking: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Go on until cancelled."""
        try:
            clock = HostClock()
        except OSError as error:  # an old kernel, or no fd left
            log.warning("whether this computer sleeps is not noticed: %s", error)
            clock = None
        try:
            while True:
                try:
                    async with asyncio.timeout(_EVERY):
                        if clock is not None:
                            self._jumped(await clock.jumped())
                        else:
                            await asyncio.Event().wait()
                except TimeoutError:
                    self._look_at_all(_RECENT)
        finally:
            if clock is not None:
                clock.close()

    def used(self, machine: Machine) -> None:
        """Somebody uses a machine: its agent is awake, so this is a good time to look."""
        self._look(machine, _RECENT)

    async def fresh(self, machine: Machine) -> None:
        """Measure, for somebody who wants to see it and does not wait long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUICK):
                if (looking := self._look(machine, 0)) is not None:
                    await asyncio.shield(looking)

    def _jumped(self, jump: Jump) -> None:
        log.info(
            "this computer slept %.3f s; its clock was set by %+.3f s", jump.slept, jump.stepped
        )
        self._helper.events.publish(
            "host.clock", None, slept_seconds=jump.slept, stepped_seconds=jump.stepped
        )
        self._look_at_all(0)

    def _look_at_all(self, unless: float) -> None:
        for machine in self._helper.machines.all():
            self._look(machine, unless)

    def _look(self, machine: Machine, unless: float) -> asyncio.Task[None] | None:
        """Measure and correct, unless that was done less than so many seconds ago."""
        if machine.status != "running" or machine.channel is None or machine.row.pooled:
            return None
        if (looking := self._looking.get(machine.row.id)) is not None:
            return looking
        # A start sets it, too.
        last = max(machine.clock.measured_at if machine.clock else 0, machine.row.started_at or 0)
        if time.time() - last < unless:
            return None
        task = self._helper.watchers.start(
            self._correct(machine, machine.channel), name=f"clock of {machine.name}"
        )
        self._looking[machine.row.id] = task
        task.add_done_callback(lambda _: self._looking.pop(machine.row.id, None))
        return task

    async def _correct(self, machine: Machine, channel: AgentChannel) -> None:
        try:
            async with asyncio.timeout(_DEADLINE):
                if "time" not in machine.greeting.features:
                    return  # an agent of an older vmgr
                found = measured = await _measure(channel)
                action = verdict(found)
                if action == "slew":
                    # In place of what was pending.
                    await channel.time(slew_ns=round(-found.offset * 1e9))
                elif action == "step":
                    await channel.clock(time.time_ns())
                    measured = await _measure(channel)
        except (VmgrError, TimeoutError) as error:
            log.info("machine %s: its clock is not known: %s", machine.name, error)
            return
        before = machine.clock
        machine.clock = ClockInfo(
            offset_seconds=_bounded(measured.offset),
            uncertainty_seconds=measured.uncertainty,
            measured_at=time.time(),
            synchronized=measured.synchronized,
            corrected=action if action or before is None else before.corrected,
            corrected_at=time.time() if action else before.corrected_at if before else None,
        )
        if action is None:
            return
        log.info("machine %s: its clock was off by %+.3f s: %s", machine.name, found.offset, action)
        self._helper.events.publish(
            "machine.clock", machine.name, action=action,
            offset_seconds=_bounded(found.offset),
        )  # fmt: skip


def _bounded(offset: float) -> float:
    return max(-_SHOWN, min(_SHOWN, offset))


async def _measure(channel: AgentChannel) -> Measured:
    """The best of a few exchanges: the quickest says most."""
    best: Measured | None = None
    for _ in range(_TRIES):
        began, real = time.monotonic_ns(), time.time_ns()
        reading = await channel.time()
        took = time.monotonic_ns() - began
        measured = Measured(
            offset=(reading.realtime_ns - real - took // 2) / 1e9,
            uncertainty=took / 2e9,
            pending=reading.pending_ns / 1e9,
            synchronized=reading.synchronized,
        )
        if best is None or measured.uncertainty < best.uncertainty:
            best = measured
        if best.uncertainty <= _GOOD / 2:
            break
    assert best is not None  # noqa: S101 (there was one try)
    return best
