"""User-data for cloud-init: where it is taken, and where it would have no effect."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Home


@pytest.mark.vm
def test_where_nothing_would_use_it_it_is_refused(home: Home) -> None:
    file = home.root / "user-data"
    file.write_text("#cloud-config\n{}\n")
    minimal = ("create", "--image", "debian-minimal", "--user-data")
    done = home.vmgr(*minimal, str(file), check=False)
    assert done.returncode == 2
    assert b"no init that would start cloud-init" in done.stderr
    assert home.vmgr(*minimal, "/nowhere", check=False).returncode == 2
    file.write_bytes(b"\xff\xfe")
    assert b"not text" in home.vmgr(*minimal, str(file), check=False).stderr
    assert b"empty" in home.vmgr(*minimal, "-", stdin=b"\n", check=False).stderr
    assert home.json("ls") == []


@pytest.mark.vm
@pytest.mark.skipif("VMGR_LARGE" not in os.environ, reason="boots systemd: VMGR_LARGE=1 runs it")
def test_an_image_without_cloud_init_is_told_of(home: Home) -> None:
    before = home.last_event()
    text = b"#cloud-config\n{}\n"
    home.vmgr("create", "--image", "debian", "--user-data", "-", "--start", "web", stdin=text)
    home.wait_for_event("machine.no-cloud-init", before)
    # The disk goes with the machine wherever it goes.
    home.vmgr("suspend", "web")
    home.vmgr("exec", "web", "--", "sh", "-c", "grep -qx seed /sys/block/*/serial")
