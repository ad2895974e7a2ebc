"""The tests of control groups in a machine of vmgr's own, whose kernel and systemd are the tests'.

Hosts on which these tests run may have no control groups of version 2, or only some that are not
theirs to change.
"""

from __future__ import annotations

import io
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Home

PYTHON = Path("/usr/bin/python3").resolve()  # the machine is of this host's release
pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    pytest.mark.timeout(1_200),
    pytest.mark.skipif(
        PYTHON.name != f"python{sys.version_info[0]}.{sys.version_info[1]}",
        reason="the modules that the tests need are for another Python than this host's own",
    ),
]

ROOT = Path(__file__).resolve().parents[2]
# Compiled modules go along: compiling them under emulation takes longer than everything else.
_NOT_NEEDED = {"test", "idlelib", "tkinter", "dist-packages", "ensurepip"}
_MODULES = (
    "_pytest", "pytest", "py.py", "pluggy", "iniconfig", "packaging", "pygments", "msgspec",
)  # fmt: skip
USER = 1000
# What user@.service is, without PAM, which this image has no rules of for it.
PREPARE = f"""
until [ -S /run/systemd/private ]; do sleep 0.1; done; systemctl is-system-running --wait
useradd --uid {USER} --create-home person
mkdir -m 0700 -p /run/user/{USER}; chown {USER}:{USER} /run/user/{USER}
systemd-run --quiet --unit=manager --uid={USER} --slice=user-{USER}.slice --service-type=notify \\
  --property=Delegate=yes -E XDG_RUNTIME_DIR=/run/user/{USER} /lib/systemd/systemd --user
"""
PYTEST = (
    f"{PYTHON} -m pytest -q -p no:cacheprovider --noconftest -c /dev/null --rootdir /opt "
    "/opt/test_cgroup.py"
)
# As a helper that a shell of the person's started.
AS_PERSON = (
    f"systemd-run --quiet --wait --pipe --uid={USER} --slice=user-{USER}.slice "
    f"--property=Delegate=no -E PYTHONPATH=/opt -E VMGR_TEST_CGROUPS=scope {PYTEST} -k systemd"
)


def archive() -> Iterator[tuple[str, Path]]:
    """What the machine gets: path there, path here."""
    yield str(PYTHON)[1:], PYTHON
    yield f"usr/lib/{PYTHON.name}", Path("/usr/lib") / PYTHON.name
    yield "opt/vmgr", ROOT / "src/vmgr"
    yield "opt/test_cgroup.py", ROOT / "tests/sandbox/test_cgroup.py"
    for name in _MODULES:
        yield f"opt/{name}", Path(sysconfig.get_paths()["purelib"]) / name


def packed() -> bytes:
    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if _NOT_NEEDED & set(Path(member.name).parts) else member

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for there, here in archive():
            file.add(here, there, filter=wanted)
    return content.getvalue()


def test_control_groups_of_a_real_host(home: Home) -> None:
    home.vmgr("create", "m", "--image", "debian", "--memory", "768M", "--cpus", "2")
    home.vmgr("start", "m")
    home.vmgr("exec", "-i", "m", "--", "tar", "-x", "-C", "/", stdin=packed())
    home.vmgr("exec", "m", "--", "sh", "-c", PREPARE)
    as_root = f"PYTHONPATH=/opt VMGR_TEST_CGROUPS=scope {PYTEST}"
    done = home.vmgr("exec", "m", "--", "sh", "-c", as_root, check=False, deadline=600)
    assert done.returncode == 0, done.stdout.decode()
    assert b"skipped" not in done.stdout, done.stdout.decode()
    done = home.vmgr("exec", "m", "--", "sh", "-c", AS_PERSON, check=False, deadline=600)
    assert done.returncode == 0, done.stdout.decode()
    assert b"1 passed" in done.stdout
