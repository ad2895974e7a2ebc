"""Memory and disk space that a machine no longer uses go back to the host."""

from __future__ import annotations

import json
import select
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Home

pytestmark = pytest.mark.vm

MANY = 100 << 20
HOLD = f'$x = "a" x {MANY}; $| = 1; print "held\\n"; <STDIN>'


@pytest.fixture(scope="module")
def booted(module_home: Home) -> str:
    module_home.vmgr(
        "create", "giver", "--image", "debian-minimal", "--memory", "320M", "--cpus", "1"
    )
    module_home.vmgr("start", "giver")
    return "giver"


def pss(home: Home) -> int:
    (machine,) = home.json("top", "--once", "-n", "0.1")["machines"]
    return int(machine["pss_bytes"])


def wait_until(home: Home, seen: Callable[[int], bool]) -> None:
    """Follow `vmgr top` until a machine's memory is as it should be."""
    with home.start("top", "--json", "-n", "0.3", bufsize=0) as following:
        assert following.stdout is not None
        try:
            for _ in range(300):
                assert select.select([following.stdout], [], [], 60)[0]
                (machine,) = json.loads(following.stdout.readline())["machines"]
                if seen(machine["pss_bytes"]):
                    return
        finally:
            following.kill()
    pytest.fail(f"its memory is {machine['pss_bytes']}\n{home.logs()}")


def test_memory_that_is_free_again_goes_back(module_home: Home, booted: str) -> None:
    before = pss(module_home)
    with module_home.start("exec", "-i", booted, "--", "perl", "-e", HOLD) as holding:
        assert holding.stdin is not None
        assert holding.stdout is not None
        assert holding.stdout.readline() == b"held\n"
        held = pss(module_home)
        assert held > before + MANY // 2
        holding.stdin.close()
        assert holding.wait(60) == 0
    wait_until(module_home, lambda now: now < held - MANY * 3 // 4)


def test_what_is_deleted_goes_back_to_the_disk(module_home: Home, booted: str) -> None:
    def used() -> int:
        return int(module_home.json("info", booted)["disk_used_bytes"])

    def inside(script: str) -> None:
        module_home.vmgr("exec", booted, "--", "sh", "-c", script)

    inside(f"head -c {MANY} /dev/urandom > /root/big; sync")
    full = used()
    assert full > MANY
    inside("rm /root/big; sync")
    # The kernel discards after the deletion is in its journal, and in its own time.
    for _ in range(300):
        if used() < full - MANY * 3 // 4:
            return
        inside("sync")
    pytest.fail(f"the disk still has {used()} bytes of {full}")


def test_a_machine_from_a_template_does_not_try(quick_home: Home) -> None:
    # Its memory is a private mapping of a sealed file, of which QEMU cannot give anything back.
    quick_home.vmgr("create", "clone", *SMALL, "--image", "debian-minimal")
    quick_home.vmgr("start", "clone")
    assert quick_home.json("info", "clone")["started_from"] == "template"
    modules = quick_home.vmgr("exec", "clone", "--", "cat", "/proc/modules").stdout
    assert b"virtio_blk " in modules
    assert b"virtio_balloon " not in modules
