from pathlib import Path

import pytest

from vmgr.errors import ResourceError
from vmgr.vmm.memory import available_memory, check_memory


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       4194304 kB\nMemAvailable:   1048576 kB\nSwapTotal: 0 kB\n")
    return path


def test_this_host_has_some() -> None:
    assert 1 << 20 < available_memory() < 1 << 50


def test_all_that_is_left_may_be_taken(meminfo: Path) -> None:
    assert available_memory(meminfo) == 1 << 30
    check_memory("box", 1 << 30, meminfo)


def test_more_is_refused_with_both_figures(meminfo: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        check_memory("box", 2 << 30, meminfo)
    assert caught.value.message == (
        "machine box needs 2 GiB of memory, but the host has only 1 GiB left"
    )
    assert caught.value.next_step == "stop other machines or programs, or give it less memory"
    assert caught.value.details == {"machine": "box", "needed": 2 << 30, "available": 1 << 30}
