"""The kernel's table of mounts, read."""

from __future__ import annotations

import os
from pathlib import Path

from vmgr.mounttable import mounted

LINES = rb"""36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue
40 28 0:35 / /mnt/a\040b\134c ro - fuse.x a\040b rw,user_id=7
41 28 0:36 / /mnt/none rw - tmpfs  rw
"""


def test_fields_are_read_whatever_is_in_them() -> None:
    first, second, third = mounted(LINES)
    assert (first.device, first.root, first.directory) == ((98, 0), "/mnt1", "/mnt2")
    assert (first.kind, first.source) == ("ext3", "/dev/root")
    assert first.options == {"rw", "noatime"}
    assert first.super_options == {"rw", "errors=continue"}
    assert (second.directory, second.source) == ("/mnt/a b\\c", "a b")
    assert ("ro" in second.options, "user_id=7" in second.super_options) == (True, True)
    assert (third.source, third.super_options) == ("", {"rw"})


def test_this_process_has_its_own_mounts() -> None:
    device = Path("/proc").stat().st_dev
    proc = [mount for mount in mounted() if (mount.directory, mount.kind) == ("/proc", "proc")][-1]
    assert proc.device == (os.major(device), os.minor(device))
