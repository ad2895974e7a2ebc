"""The tests of control groups in a machine of vmgr's own, whose kernel and systemd are the tests'.

Hosts on which these tests run may have no control groups of version 2, or only some that are not
theirs to change.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.inside import PREPARE, PYTHON, SAME_PYTHON, USER, packed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Home

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    pytest.mark.timeout(1_200),
    SAME_PYTHON,
]

ROOT = Path(__file__).resolve().parents[2]
_MODULES = (
    "_pytest", "pytest", "py.py", "pluggy", "iniconfig", "packaging", "pygments", "msgspec",
)  # fmt: skip
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
    yield "opt/vmgr", ROOT / "src/vmgr"
    yield "opt/test_cgroup.py", ROOT / "tests/sandbox/test_cgroup.py"
    for name in _MODULES:
        yield f"opt/{name}", Path(sysconfig.get_paths()["purelib"]) / name


def test_control_groups_of_a_real_host(home: Home) -> None:
    home.vmgr("create", "m", "--image", "debian", "--memory", "768M", "--cpus", "2")
    home.vmgr("start", "m")
    home.vmgr("exec", "-i", "m", "--", "tar", "-x", "-C", "/", stdin=packed(archive()))
    home.vmgr("exec", "m", "--", "sh", "-c", PREPARE)
    as_root = f"PYTHONPATH=/opt VMGR_TEST_CGROUPS=scope {PYTEST}"
    done = home.vmgr("exec", "m", "--", "sh", "-c", as_root, check=False, deadline=600)
    assert done.returncode == 0, done.stdout.decode()
    assert b"skipped" not in done.stdout, done.stdout.decode()
    done = home.vmgr("exec", "m", "--", "sh", "-c", AS_PERSON, check=False, deadline=600)
    assert done.returncode == 0, done.stdout.decode()
    assert b"1 passed" in done.stdout
