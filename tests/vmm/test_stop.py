"""Stopping real VMMs, the soft way and the hard way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import AgentError
from vmgr.vmm import StopDeadlines, orderly_stop

from .guest import Guest

if TYPE_CHECKING:
    from .conftest import Lab

pytestmark = pytest.mark.vm

OBEDIENT = Guest().open_port().receive().power_off()


async def test_the_agent_powers_off(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(OBEDIENT))

    async def ask() -> None:
        _, writer = await asyncio.open_unix_connection(str(lab.paths.agent_socket))
        writer.write(b"!")
        await vmm.wait()
        writer.close()

    report = await orderly_stop(vmm, "box", ask, StopDeadlines(agent=100))
    assert report.machine == "box"
    assert report.method == "agent"
    assert [(s.method, s.outcome) for s in report.steps] == [("agent", "stopped")]
    assert (await vmm.wait()).cause == "poweroff"


async def test_harder_and_harder(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().say(b"up\n").idle()))

    async def ask() -> None:
        """An agent that takes the request and does nothing."""

    report = await orderly_stop(vmm, "box", ask, StopDeadlines(agent=0.2, acpi=0.2))
    assert report.method == "kill"
    assert [(s.method, s.outcome) for s in report.steps] == [
        ("agent", "timed-out"),
        ("acpi", "timed-out"),
        ("kill", "stopped"),
    ]
    assert (await vmm.wait()).reason == "it was stopped the hard way"


async def test_an_agent_that_hangs_or_fails_costs_no_more_than_its_deadline(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().idle()))

    async def ask() -> None:
        raise AgentError("the agent is gone")

    report = await orderly_stop(vmm, "box", ask, StopDeadlines(agent=50, acpi=0))
    assert [(s.method, s.outcome) for s in report.steps] == [
        ("agent", "failed"),
        ("kill", "stopped"),
    ]


async def test_without_a_way_to_the_agent(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().idle()))
    report = await orderly_stop(vmm, "box", None, StopDeadlines(acpi=0))
    assert [s.method for s in report.steps] == ["kill"]


async def test_one_that_has_ended_is_left_as_it_is(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().power_off()))
    await vmm.wait()
    report = await orderly_stop(vmm, "box", None)
    assert report.method == "already-stopped"
    assert report.steps == []


async def test_a_mistake_of_the_caller_is_not_hidden(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().idle()))

    async def ask() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await orderly_stop(vmm, "box", ask)
