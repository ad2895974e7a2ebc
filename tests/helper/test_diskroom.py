"""A machine whose host's disk is full stands still, loses nothing and goes on by itself."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Home

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system takes root"),
]
WRITE = "dd if=/dev/urandom of=/large bs=1M count=40 2>/dev/null; sync; md5sum /large; cat /large"


@pytest.fixture
def ballast(quick_home: Home) -> Iterator[Path]:
    """A file that leaves a running machine `m` hardly any room for its disk."""
    home = quick_home
    home.vmgr("ls")
    machines = home.root / "state/vmgr/machines"
    machines.mkdir(exist_ok=True)
    options = "size=256m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", machines], check=True)
    try:
        home.vmgr("create", "m", "--image", "debian-minimal", *SMALL, "--start")
        there = os.statvfs(machines)
        path = machines / "ballast"
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, (there.f_bavail - 2_000) * there.f_frsize)
        yield path
        home.vmgr("rm", "-f", "m")
    finally:
        subprocess.run(["umount", "--lazy", machines], check=True)


@pytest.mark.parametrize("how", ["by itself", "asked to", "after its helper's death"])
def test_it_goes_on_when_there_is_room(quick_home: Home, ballast: Path, how: str) -> None:
    home = quick_home
    since = home.last_event()
    writing = home.start("exec", "m", "--", "sh", "-c", WRITE)
    home.wait_for_event("machine.disk-full", since)
    told = home.vmgr("ls").stderr.decode()
    assert "machine m stands still: no space is left for its disk in " in told
    if how == "after its helper's death":
        home.kill_helper()
    ballast.unlink()
    if how == "asked to":
        home.vmgr("resume", "m")
    out, errors = writing.communicate(timeout=120)
    assert writing.returncode == 0, (errors, home.logs())
    checksum, _, rest = out.partition(b"\n")
    found = subprocess.run(["md5sum"], input=rest, stdout=subprocess.PIPE, check=True).stdout
    assert found.split()[0] == checksum.split()[0]
