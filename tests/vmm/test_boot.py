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
    error = await refused(boot("box", starter(lab, Guest().panic()), hello, PATIENT))
    assert isinstance(error, BootError)
    assert error.message.startswith(
        "machine box did not boot: the machine's kernel panicked: Attempted to kill init!"
    )
    assert "Kernel panic" in error.details["console"]
    assert error.details["cause"] == "panic"
    assert not lab.vmms[0].running


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
    start = starter(lab, Guest().idle(), kernel_parameters=quiet)
    asked: list[bool] = []

    async def noting(*, verbose: bool) -> Vmm:
        asked.append(verbose)
        return await start(verbose=verbose)

    error = await refused(boot("box", noting, hello, BootPolicy(silence=3, deadline=100)))
    assert isinstance(error, BootError)
    assert error.message == "machine box said nothing in 2 boots of 3 s"
    assert asked == [False, True]
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
