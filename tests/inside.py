"""Parts of this checkout in a machine of vmgr's own, whose kernel and systemd are the tests'."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

PYTHON = Path("/usr/bin/python3").resolve()  # the machine is of this host's release
SAME_PYTHON = pytest.mark.skipif(
    PYTHON.name != f"python{sys.version_info[0]}.{sys.version_info[1]}",
    reason="the modules that the tests need are for another Python than this host's own",
)
USER = 1000
# What user@.service is, without PAM, which this image has no rules of for it.
PREPARE = f"""
until [ -S /run/systemd/private ]; do sleep 0.1; done; systemctl is-system-running --wait
useradd --uid {USER} --create-home person
mkdir -m 0700 -p /run/user/{USER}; chown {USER}:{USER} /run/user/{USER}
systemd-run --quiet --unit=manager --uid={USER} --slice=user-{USER}.slice --service-type=notify \\
  --property=Delegate=yes --property=KillMode=mixed --property=TimeoutStopSec=120 \\
  -E XDG_RUNTIME_DIR=/run/user/{USER} -E HOME=/home/person \\
  /lib/systemd/systemd --user
"""
_STDLIB_NOT_NEEDED = {"test", "idlelib", "tkinter", "dist-packages", "ensurepip"}


def packed(files: Iterable[tuple[str, Path]], **scripts: str) -> bytes:
    """An archive of the host's Python, of `files` (path there, path here), and of scripts in /opt.

    Compiled modules go along: compiling them under emulation takes longer than everything else.
    """

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        parts = Path(member.name).parts
        below = parts[:3] == ("usr", "lib", PYTHON.name)
        return None if below and _STDLIB_NOT_NEEDED & set(parts) else member

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.add(PYTHON, str(PYTHON)[1:], filter=wanted)
        file.add(Path("/usr/lib") / PYTHON.name, f"usr/lib/{PYTHON.name}", filter=wanted)
        for there, here in files:
            file.add(here, there, filter=wanted)
        for name, text in scripts.items():
            script = tarfile.TarInfo(f"opt/{name}.py")
            script.size = len(text.encode())
            file.addfile(script, io.BytesIO(text.encode()))
    return content.getvalue()
