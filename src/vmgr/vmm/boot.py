"""Booting a machine: ready is its agent's hello, everything else is a reason to stop waiting.

What can end the wait: the hello; the VMM's end (a panic ends it too); a silence; the deadline. An
emulated machine now and then hangs in its first instructions, or its kernel panics through no fault
of its own (docs/decisions/0003-machine-type-and-boot.md says why): a boot that was silent or
panicked is done once more, with the kernel telling each step.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from vmgr.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmgr.vmm.exit import VmmExit
    from vmgr.vmm.vmm import Vmm

__all__ = ["BootPolicy", "Booted", "FailedBoot", "StartVmm", "boot"]

T = TypeVar("T")

_GOING_DOWN: Final = 3.0  # seconds from the agent's end to the VMM's

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BootPolicy:
    """How long a boot may take, in seconds."""

    silence: float = 20.0
    """Neither a byte on the console nor a hello for so long from its start: done once more."""
    deadline: float = 120.0
    """No hello for so long: given up."""
    attempts: int = 2
    """How often a machine is started in all, where its boots are silent or panic."""


@dataclass(frozen=True)
class Booted(Generic[T]):
    """A machine that is ready."""

    vmm: Vmm
    hello: T
    attempts: int


class StartVmm(Protocol):
    """Starts a machine's VMM; `verbose` lets the guest's kernel tell each step."""

    def __call__(self, *, verbose: bool) -> Awaitable[Vmm]:
        """Start it."""
        ...


class FailedBoot(Protocol):
    """Told of a boot that is done once more."""

    def __call__(self, *, attempt: int, reason: str) -> None:
        """Note it; must not raise. `reason` is a sentence without a final stop."""
        ...


class _AgainError(Exception):
    """A boot that another attempt may do better; `error` is the one to raise where none is left."""

    def __init__(self, reason: str, error: BootError) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


def _log_only(*, attempt: int, reason: str) -> None:
    del attempt, reason


async def boot(
    name: str,
    start: StartVmm,
    hello: Callable[[Vmm], Awaitable[T]],
    policy: BootPolicy = BootPolicy(),
    *,
    on_failed_boot: FailedBoot = _log_only,
) -> Booted[T]:
    """Start a machine and wait until it is ready. Where that fails, its VMM has ended.

    Args:
        name: the machine's, for errors.
        start: starts the VMM.
        hello: waits for the agent of that VMM; cancelled when there is no point in waiting.
        on_failed_boot: called before a boot is done once more.

    Raises:
        BootError: it never became ready; `details["console"]` is what it said last.
        VmgrError: what `start` or `hello` raises.
    """
    attempt = 1
    while True:
        vmm = await start(verbose=attempt > 1)
        try:
            ready = await _wait_ready(name, vmm, hello, policy)
        except _AgainError as failed:
            await asyncio.shield(_end(vmm, failed.reason))
            if attempt >= policy.attempts:
                failed.error.details["attempts"] = attempt
                raise failed.error from None
            log.warning(
                "machine %s did not boot: %s; booting it once more (boot %d failed)",
                name, failed.reason, attempt,
            )  # fmt: skip
            on_failed_boot(attempt=attempt, reason=failed.reason)
            attempt += 1
            continue
        except BaseException:
            await asyncio.shield(_end(vmm, "its boot failed"))
            raise
        return Booted(vmm, ready, attempt)


async def _wait_ready(
    name: str, vmm: Vmm, hello: Callable[[Vmm], Awaitable[T]], policy: BootPolicy
) -> T:
    async def spoke() -> None:
        if vmm.console is None:
            await asyncio.Event().wait()  # nothing to hear: only the deadlines count
        else:
            await vmm.console.spoke.wait()

    # A coroutine of ours, whatever kind of awaitable the caller's is.
    async def ready() -> T:
        return await hello(vmm)

    answered: asyncio.Task[T] = asyncio.create_task(ready(), name=f"hello {name}")
    ended: asyncio.Task[VmmExit] = asyncio.create_task(vmm.wait(), name=f"boot end {name}")
    heard = asyncio.create_task(spoke(), name=f"boot console {name}")
    tasks: set[asyncio.Task[Any]] = {answered, ended, heard}
    try:
        async with asyncio.timeout(policy.deadline):
            done, _ = await asyncio.wait(
                tasks, timeout=policy.silence, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise _said_nothing(name, policy)
            # A machine that says hello and ends at once has ended.
            await asyncio.wait({answered, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and answered.exception() is not None:
                # Likely because the VMM is just ending, which says more.
                await asyncio.wait({ended}, timeout=_GOING_DOWN)
            if ended.done():
                raise _ended_while_booting(name, vmm, ended.result())
            return answered.result()
    except TimeoutError as error:
        if answered.done():  # it is the hello's own
            raise
        raise BootError(
            f"machine {name} was not ready after {policy.deadline:g} s",
            next_step=f"look at: vmgr logs {name}",
            details={"machine": name, "console": _console(vmm)},
        ) from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _said_nothing(name: str, policy: BootPolicy) -> _AgainError:
    reason = f"it said nothing for {policy.silence:g} s"
    error = BootError(
        f"machine {name} did not boot: {reason}",
        next_step="see whether this host can run machines: vmgr doctor",
        details={"machine": name, "console": ""},
    )
    return _AgainError(reason, error)


def _ended_while_booting(name: str, vmm: Vmm, ended: VmmExit) -> BootError | _AgainError:
    error = BootError(
        f"machine {name} did not boot: {ended.reason}",
        next_step=f"look at: vmgr logs {name}",
        details={
            "machine": name,
            "cause": ended.cause,
            "console": _console(vmm),
            "vmm_log": ended.log_tail,
        },
    )
    return _AgainError(ended.reason, error) if ended.cause == "panic" else error


def _console(vmm: Vmm) -> str:
    return vmm.console.tail(4_096) if vmm.console is not None else ""


async def _end(vmm: Vmm, reason: str) -> None:
    await vmm.kill(reason, at_once=True)
    await vmm.close()
