from pathlib import Path

import pytest

from vmgr.vmm.clock import host_tsc_is_steady


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
