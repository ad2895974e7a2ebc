"""Without a switchboard: QEMU's own network, and what a machine is told of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL

if TYPE_CHECKING:
    from tests.conftest import Home

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="this user may open /dev/net/tun"
    ),
]


def test_a_machine_has_a_network_of_its_own_and_says_what_it_lacks(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "m")
    home.vmgr("start", "m")
    info = home.json("info", "m")
    assert "it has no internet (vmgr config set network.fallback open" in info["network"]["problem"]
    hosts = home.vmgr("exec", "m", "--", "cat", "/proc/net/route").stdout.decode()
    assert "eth0" in hosts
