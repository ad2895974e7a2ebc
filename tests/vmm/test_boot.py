"""Boots of real VMMs; the hello is a real guest's, through its port."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import AgentError, BootError
from vmgr.vmm import BootPolicy, Vmm, boot

from .guest import Guest

if TYPE_CHECKING:
    from vmgr.vmm.boot import StartVmm

    from .conftest import Lab, Refused

pytestmark = pytest.mark.vm

PATIENT = BootPolicy(silence=100, deadline=100)


def starter(lab: Lab, initramfs: bytes, **changes: object) -> StartVmm:
    async def start(*, verbose: bool) -> Vmm:
        return await lab.start(lab.spec(initramfs, **changes), verbose=verbose)

    return start


class Noting:
    """Starts VMMs and notes which were to tell each step."""

    def __init__(self, start: StartVmm) -> None:
        self._start = start
        self.verbose: list[bool] = []

    async def __call__(self, *, verbose: bool) -> Vmm:
        self.verbose.append(verbose)
        return await self._start(verbose=verbose)


class Again:
    """Notes the boots that are done once more."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []

    def __call__(self, *, attempt: int, reason: str) -> None:
        self.told.append((attempt, reason))


async def hello(vmm: Vmm) -> bytes:
    """Wait for five bytes from the guest."""
    reader, writer = await asyncio.open_unix_connection(str(vmm._paths.agent_socket))
    try:
        return await reader.readexactly(5)
    except asyncio.IncompleteReadError:
        raise AgentError("the agent is gone") from None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_ready_is_the_hello(lab: Lab) -> None:
    guest = Guest().open_port().send(b"HELLO").idle()
    booted = await boot("box", starter(lab, guest), hello, PATIENT)
    assert booted.hello == b"HELLO"
    assert booted.attempts == 1
    assert booted.vmm.running
    assert len(lab.vmms) == 1


async def test_a_panic_ends_the_wait(lab: Lab, refused: Refused) -> None:
    once = BootPolicy(silence=100, deadline=100, attempts=1)
    error = await refused(boot("box", starter(lab, Guest().panic()), hello, once))
    assert isinstance(error, BootError)
    assert error.message.startswith(
        "machine box did not boot: the machine's kernel panicked: Attempted to kill init!"
    )
    assert "Kernel panic" in error.details["console"]
    assert error.details["cause"] == "panic"
    assert not lab.vmms[0].running


async def test_a_kernel_that_always_panics_is_booted_twice(lab: Lab, refused: Refused) -> None:
    start = Noting(starter(lab, Guest().panic()))
    again = Again()
    error = await refused(boot("box", start, hello, PATIENT, on_failed_boot=again))
    assert error.message.startswith(
        "machine box did not boot: the machine's kernel panicked: Attempted to kill init!"
    )
    assert "Kernel panic" in error.details["console"]
    assert error.details["attempts"] == 2
    assert start.verbose == [False, True]
    ((attempt, reason),) = again.told
    assert attempt == 1
    assert reason.startswith("the machine's kernel panicked: Attempted to kill init!")
    assert [vmm.running for vmm in lab.vmms] == [False, False]


async def test_a_boot_after_a_panic_can_succeed(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    panics = starter(lab, Guest().panic())
    fine = starter(lab, Guest().open_port().send(b"HELLO").idle())

    async def start(*, verbose: bool) -> Vmm:
        return await (fine if verbose else panics)(verbose=verbose)

    booted = await boot("box", start, hello, PATIENT)
    assert (booted.attempts, booted.hello) == (2, b"HELLO")
    assert [vmm.running for vmm in lab.vmms] == [False, True]
    said = "machine box did not boot: the machine's kernel panicked: Attempted to kill init!"
    assert any(r.message.startswith(said) and "once more" in r.message for r in caplog.records)


async def test_a_power_off_ends_the_wait(lab: Lab, refused: Refused) -> None:
    guest = Guest().say(b"no root\n").power_off()
    error = await refused(boot("box", starter(lab, guest), hello, PATIENT))
    assert isinstance(error, BootError)
    assert error.message == "machine box did not boot: the machine powered itself off"
    assert "no root" in error.details["console"]


async def test_a_machine_that_talks_but_never_says_hello(lab: Lab, refused: Refused) -> None:
    guest = Guest().say(b"I am busy\n").idle()
    policy = BootPolicy(silence=100, deadline=10)
    error = await refused(boot("box", starter(lab, guest), hello, policy))
    assert isinstance(error, BootError)
    assert error.message == "machine box was not ready after 10 s"
    assert error.next_step == "look at: vmgr logs box"
    assert "I am busy" in error.details["console"]
    assert not lab.vmms[0].running


async def test_a_silent_boot_is_done_once_more_telling_each_step(
    lab: Lab, refused: Refused
) -> None:
    # So quiet that even the second boot is silent: later parameters win.
    quiet = ("loglevel=0", "console=")
    start = Noting(starter(lab, Guest().idle(), kernel_parameters=quiet))
    again = Again()
    policy = BootPolicy(silence=3, deadline=100)
    error = await refused(boot("box", start, hello, policy, on_failed_boot=again))
    assert isinstance(error, BootError)
    assert error.message == "machine box did not boot: it said nothing for 3 s"
    assert error.details["attempts"] == 2
    assert start.verbose == [False, True]
    assert again.told == [(1, "it said nothing for 3 s")]
    assert [vmm.running for vmm in lab.vmms] == [False, False]


async def test_the_second_boot_can_succeed(lab: Lab) -> None:
    silent = starter(lab, Guest().idle(), kernel_parameters=("loglevel=0", "console="))
    fine = starter(lab, Guest().open_port().send(b"HELLO").idle())

    async def start(*, verbose: bool) -> Vmm:
        return await (fine if verbose else silent)(verbose=verbose)

    booted = await boot("box", start, hello, BootPolicy(silence=3, deadline=100))
    assert booted.attempts == 2
    assert booted.hello == b"HELLO"
    assert [vmm.running for vmm in lab.vmms] == [False, True]


async def test_an_agent_that_breaks_the_protocol_ends_the_boot(lab: Lab, refused: Refused) -> None:
    async def broken(vmm: Vmm) -> bytes:
        await hello(vmm)
        raise AgentError("the agent speaks nonsense")

    guest = Guest().open_port().send(b"HELLO").idle()
    error = await refused(boot("box", starter(lab, guest), broken, PATIENT))
    assert isinstance(error, AgentError)
    assert not lab.vmms[0].running


async def test_a_cancelled_boot_leaves_no_vmm(lab: Lab) -> None:
    waiting = asyncio.Event()

    async def never(_vmm: Vmm) -> None:
        waiting.set()
        await asyncio.Event().wait()

    booting = asyncio.create_task(boot("box", starter(lab, Guest().idle()), never, PATIENT))
    await waiting.wait()
    booting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await booting
    assert not lab.vmms[0].running
