import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmgr.agent_binary import find_agent
from vmgr.vmm import ProbeCache
from vmgr.vmm.clock import counter_khz, host_tsc_is_steady


@pytest.mark.parametrize(
    ("content", "steady"),
    [(b"tsc\n", True), (b"hpet\n", False), (b"kvm-clock\n", False), (b"", False), (b"\xff", False)],
)
def test_only_the_hosts_own_choice_counts(tmp_path: Path, content: bytes, *, steady: bool) -> None:
    path = tmp_path / "current_clocksource"
    path.write_bytes(content)
    assert host_tsc_is_steady(path) is steady


def test_a_host_that_does_not_tell(tmp_path: Path) -> None:
    assert host_tsc_is_steady(tmp_path / "none") is False


@pytest.mark.skipif(not host_tsc_is_steady(), reason="this host does not keep time by its counter")
async def test_the_counters_speed_is_measured_once_per_boot(tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path / "probes.json")
    with ThreadPoolExecutor(1) as executor:
        found = await counter_khz(find_agent(), cache, executor)
        assert found is not None
        # By another measurement, as far apart as the two may be.
        again = await counter_khz(find_agent(), ProbeCache(tmp_path / "other.json"), executor)
        assert again is not None
        assert abs(found - again) * 1_000 < found
        async with asyncio.timeout(60):
            assert await counter_khz(find_agent(), cache, executor) == found


@pytest.mark.parametrize("printed", ["", "many", "1", "-5", "99999999999"])
async def test_what_is_no_speed_is_not_believed(tmp_path: Path, printed: str) -> None:
    agent = tmp_path / "agent"
    agent.write_text(f"#!/bin/sh\necho {printed}\n")
    agent.chmod(0o700)
    with ThreadPoolExecutor(1) as executor:
        assert await counter_khz(agent, ProbeCache(tmp_path / "probes.json"), executor) is None


async def test_an_agent_that_is_missing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        cache = ProbeCache(tmp_path / "probes.json")
        assert await counter_khz(tmp_path / "none", cache, executor) is None
