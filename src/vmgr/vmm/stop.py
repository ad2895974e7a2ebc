"""Stopping a machine in an orderly way: ask its agent, press its power button, pull the plug.

Each way has its deadline and is reported, so that a person sees why a stop took as long as it did.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vmgr.api.models import StopReport, StopStep
from vmgr.errors import MachineError, VmgrError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmgr.vmm.vmm import Vmm

__all__ = ["StopDeadlines", "orderly_stop"]

Method = Literal["agent", "acpi", "kill"]

# A request that fails because the machine is just going down is followed by the VMM's end.
_GOING_DOWN = 1.0  # seconds


@dataclass(frozen=True)
class StopDeadlines:
    """How long each way may take, in seconds; 0 leaves a way out."""

    agent: float = 30.0
    acpi: float = 20.0
    kill: float = 15.0


async def orderly_stop(
    vmm: Vmm,
    name: str,
    power_off: Callable[[], Awaitable[object]] | None,
    deadlines: StopDeadlines = StopDeadlines(),
) -> StopReport:
    """Stop a machine, harder and harder, until its VMM has ended.

    Args:
        name: the machine's.
        power_off: asks its agent; None when there is no way to it.

    Raises:
        MachineError: not even the kill ended it.
    """
    began = time.monotonic()
    steps: list[StopStep] = []

    def report(method: Literal["agent", "acpi", "kill", "already-stopped"]) -> StopReport:
        seconds = time.monotonic() - began
        return StopReport(machine=name, method=method, seconds=seconds, steps=steps)

    async def kill() -> None:
        await vmm.kill("it was stopped the hard way")

    if not vmm.running:
        await vmm.wait()
        return report("already-stopped")
    ways: list[tuple[Method, Callable[[], Awaitable[object]] | None, float]] = [
        ("agent", power_off, deadlines.agent),
        ("acpi", vmm.powerdown, deadlines.acpi),
        ("kill", kill, max(deadlines.kill, _GOING_DOWN)),
    ]
    for method, ask, deadline in ways:
        if ask is None or deadline <= 0:
            continue
        step = await _attempt(vmm, method, ask, deadline)
        steps.append(step)
        if step.outcome == "stopped":
            return report(method)
    raise MachineError(
        f"the VMM of machine {name} (process {vmm.pid}) cannot be ended",
        next_step="see what it waits for; a hanging disk or network file system is likely",
        details={"machine": name, "pid": vmm.pid},
    )


async def _attempt(
    vmm: Vmm, method: Method, ask: Callable[[], Awaitable[object]], deadline: float
) -> StopStep:
    began = time.monotonic()

    async def request() -> None:
        await ask()

    ended = asyncio.create_task(vmm.wait(), name=f"stop {vmm.name}")
    asking = asyncio.create_task(request(), name=f"stop by {method} {vmm.name}")
    failed = False
    try:
        async with asyncio.timeout(deadline):
            await asyncio.wait({ended, asking}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and isinstance(asking.exception(), VmgrError | OSError):
                failed = True
                await asyncio.wait({ended}, timeout=_GOING_DOWN)
            elif not ended.done():
                asking.result()  # what nobody expects is not for us to hide
                await asyncio.wait({ended})
    except TimeoutError:
        pass
    finally:
        gone = ended.done() and not ended.cancelled()
        for task in (ended, asking):
            task.cancel()
        await asyncio.gather(ended, asking, return_exceptions=True)
    outcome: Literal["stopped", "failed", "timed-out"] = (
        "stopped" if gone else "failed" if failed else "timed-out"
    )
    return StopStep(method=method, seconds=time.monotonic() - began, outcome=outcome)
