"""Machines' clocks: measured, slewed, stepped, or left to the machine."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import SMALL, Home

from vmgr.helper.clocks import Measured, verdict
from vmgr.helper.hostclock import HostClock, jump_between

SECOND = 1_000_000_000
# adjtimex(2), on x86-64: modes, offset, status at 0, 8 and 40, the time at 72; 208 bytes.
ADJTIMEX = 'my $b = pack("L x4 q x24 l x28 q q x120", %s); syscall(159, $b) >= 0 or die $!'
SET_OFFSET = 0x0100 | 0x1000
SET_ERRORS = 0x0004 | 0x0008
SET_STATUS = 0x0010


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestWhatHappenedToTheHostsClock:
    start = (1_000 * SECOND, 500 * SECOND, 400 * SECOND)

    def test_time_alone_is_no_jump(self) -> None:
        after = (1_300 * SECOND, 800 * SECOND, 700 * SECOND)
        assert jump_between(self.start, after) is None

    def test_sleep_is_told_from_a_step(self) -> None:
        slept = jump_between(self.start, (4_600 * SECOND, 4_100 * SECOND, 400 * SECOND))
        assert slept is not None
        assert (slept.slept, slept.stepped) == (3_600, 0)
        stepped = jump_between(self.start, (998 * SECOND, 500 * SECOND, 400 * SECOND))
        assert stepped is not None
        assert (stepped.slept, stepped.stepped) == (0, -2)

    async def test_it_waits_and_leaves_nothing(self) -> None:
        before = open_files()
        clock = HostClock()
        waiting = asyncio.create_task(clock.jumped())
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        clock.close()
        assert open_files() == before

    async def test_a_step_wakes_it(self) -> None:
        """The clocks of this computer are nobody's to set here: it knows others instead."""
        clock = HostClock()
        real, *others = clock._known
        clock._known = (real - 2 * SECOND, *others)  # type: ignore[assignment]
        # A wake without a jump is none.
        clock._told()
        waiting = asyncio.create_task(clock.jumped())
        await asyncio.sleep(0)
        assert not waiting.done()
        clock._set.set()
        jump = await waiting
        assert round(jump.stepped) == 2
        assert round(jump.slept) == 0
        clock.close()


class TestWhatIsDone:
    def _verdict(self, offset: float, **known: Any) -> str | None:
        defaults = {"uncertainty": 0.001, "pending": 0.0, "synchronized": False}
        return verdict(Measured(offset=offset, **{**defaults, **known}))

    def test_by_size(self) -> None:
        for sign in (1, -1):
            assert self._verdict(sign * 0.05) is None
            assert self._verdict(sign * 0.08) == "slew"
            assert self._verdict(sign * 0.13) == "step"
            assert self._verdict(sign * 2.0) == "step"

    def test_a_machine_that_keeps_it_is_left_alone(self) -> None:
        assert self._verdict(3_600, synchronized=True) is None

    def test_a_slow_answer_is_no_reason(self) -> None:
        assert self._verdict(0.08, uncertainty=0.5) is None

    def test_what_is_being_slewed_is_not_slewed_twice(self) -> None:
        assert self._verdict(0.08, pending=-0.075) is None
        assert self._verdict(0.0, pending=-0.1) == "slew"

    def test_any_answer_has_a_verdict(self) -> None:
        assert self._verdict(-9.3e9, pending=9.2e9) == "step"


@pytest.fixture(scope="module")
def home(quick_module_home: Home) -> Home:
    return quick_module_home


@pytest.fixture(scope="module")
def web(home: Home) -> str:
    name = f"m{secrets.token_hex(3)}"
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "--start", name)
    return name


def adjust(home: Home, web: str, modes: int, seconds: int = 0, micros: int = 0) -> None:
    values = f"{modes}, 0, 0, {seconds}, {micros}"
    home.vmgr("exec", web, "--", "perl", "-e", ADJTIMEX % values)


def clock(home: Home, web: str) -> dict[str, Any]:
    found: dict[str, Any] = home.json("info", web)["clock"]
    return found


@pytest.mark.vm
def test_a_clock_that_is_right_is_left_alone(home: Home, web: str) -> None:
    for _ in range(20):
        # On a busy computer an emulated machine may really be late, and is mended.
        found, again = clock(home, web), clock(home, web)
        if all(abs(c["offset_seconds"]) + c["uncertainty_seconds"] < 0.05 for c in (found, again)):
            assert again["corrected_at"] == found["corrected_at"]
            break
    else:
        pytest.fail("its clock is never right")
    assert not found["synchronized"]
    assert b"Clock: " in home.vmgr("info", web).stdout


@pytest.mark.vm
def test_eighty_milliseconds_are_slewed(home: Home, web: str) -> None:
    before = home.last_event()
    adjust(home, web, SET_OFFSET, micros=80_000)
    found = clock(home, web)
    assert found["corrected"] == "slew"
    event = home.wait_for_event("machine.clock", before, action="slew")
    assert event["data"]["offset_seconds"] > 0.05
    # It is on its way, so nothing is done about it again.
    again = clock(home, web)
    assert again["corrected_at"] == found["corrected_at"]


@pytest.mark.vm
def test_two_seconds_are_stepped(home: Home, web: str) -> None:
    for seconds in (2, -2):
        before = home.last_event()
        adjust(home, web, SET_OFFSET, seconds=seconds)
        found = clock(home, web)
        assert found["corrected"] == "step"
        assert abs(found["offset_seconds"]) <= found["uncertainty_seconds"] + 0.05
        event = home.wait_for_event("machine.clock", before, action="step")
        assert round(event["data"]["offset_seconds"]) == seconds


@pytest.mark.vm
def test_a_machine_with_a_client_of_its_own_is_left_to_it(home: Home, web: str) -> None:
    before = clock(home, web)
    # As chronyd and systemd-timesyncd say that they have it; in one call, since the helper may look
    # at any moment; and that it is sure of it, or the kernel takes it back at the next second.
    adjust(home, web, SET_OFFSET | SET_STATUS | SET_ERRORS, seconds=3)
    found = clock(home, web)
    assert found["synchronized"]
    assert found["corrected_at"] == before["corrected_at"]
    assert round(found["offset_seconds"]) == 3
    assert b"kept by the machine itself" in home.vmgr("info", web).stdout
