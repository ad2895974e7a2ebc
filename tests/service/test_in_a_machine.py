"""vmgr installed inside a vmgr machine, with the systemd of a whole Debian: only where asked for.

What it adds to `test_service.py`: a person's manager beside the system's, control groups of version
2, whose rules decide where machines may be.
"""

from __future__ import annotations

import os
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
    pytest.mark.timeout(2_400),
    pytest.mark.skipif(
        os.environ.get("VMGR_TEST_IN_A_MACHINE") != "1",
        reason="takes minutes; VMGR_TEST_IN_A_MACHINE=1 asks for it",
    ),
    SAME_PYTHON,
]

ROOT = Path(__file__).resolve().parents[2]
# Of the packages those that only tests and checks need, by how their names begin.
_NOT_NEEDED = ("mypy", "ruff", "pip", "hypothesis", "pydantic", "setuptools", "ast_serialize")
# Of the interpreter's own modules.
_LIBRARIES = ("libffi.so.8", "libsqlite3.so.0", "libssl.so.3", "libcrypto.so.3", "libexpat.so.1")
AS_PERSON = (
    "systemd-run", "--quiet", "--wait", "--pipe", f"--uid={USER}", f"--slice=user-{USER}.slice",
    "--property=Delegate=no", "-E", f"XDG_RUNTIME_DIR=/run/user/{USER}", "-E", "HOME=/home/person",
    "sh", "-euxc",
)  # fmt: skip
# A helper, as far as systemd and control groups go, with a process for a machine: the machine in
# which it runs has no QEMU.
STAND_IN = """
import asyncio, os, signal, subprocess
from vmgr.sandbox import cgroup
from vmgr.sandbox.scope import enter_scope, is_service
from vmgr.service.activation import take_activation
activation = take_activation(os.environ, os.getpid())
assert is_service()
said = asyncio.run(enter_scope())
assert said is None, said
parent, why = cgroup.find_parent()
assert parent is not None, why
group = cgroup.make_group(parent, f"{os.getpid():012x}", cgroup.GroupLimits(1, 64 << 20))
child = subprocess.Popen(["sleep", "100000"], start_new_session=True)
cgroup.attach(group, child.pid)
with open("/home/person/machines", "a") as file:
    file.write(f"{child.pid}\\n")
activation.notifier.ready()
signal.pause()
"""
REAL = """
vmgr() { python3 -P -m vmgr.cli "$@"; }
pid() { systemctl --user show vmgr-helper --property MainPID --value; }
vmgr ls
vmgr helper install
vmgr helper status
[ "$(systemctl --user show vmgr-helper --property ActiveState --value)" = active ]
first=$(pid)
systemctl --user restart vmgr-helper
vmgr ls
[ "$(pid)" != "$first" ]
vmgr doctor --audit >/dev/null
vmgr helper stop
! vmgr helper status
vmgr ls
[ "$(pid)" != 0 ]

mkdir -p ~/.config/systemd/user/vmgr-helper.service.d
printf '[Service]\\nWatchdogSec=10\\n' >~/.config/systemd/user/vmgr-helper.service.d/watchdog.conf
systemctl --user daemon-reload
systemctl --user restart vmgr-helper
hung=$(pid)
kill -STOP "$hung"
tail --pid="$hung" -f /dev/null
vmgr ls
[ "$(pid)" != "$hung" ]
"""
GROUPS = """
pid() { systemctl --user show vmgr-helper --property MainPID --value; }
cat >~/.config/systemd/user/vmgr-helper.service.d/stand-in.conf <<'END'
[Service]
ExecStart=
ExecStart=/usr/bin/python3 -P /opt/stand_in.py
WatchdogSec=0
END
systemctl --user daemon-reload
for round in 1 2 3; do systemctl --user restart vmgr-helper; done
killed=$(pid)
kill -KILL "$killed"
tail --pid="$killed" -f /dev/null
systemctl --user start vmgr-helper
[ "$(wc -l <~/machines)" = 4 ]
for machine in $(cat ~/machines); do
  kill -0 "$machine"
  grep vmgr-machine- "/proc/$machine/cgroup"
done
systemctl --user stop vmgr-session
systemctl --user stop vmgr-helper.socket vmgr-helper
for machine in $(cat ~/machines); do kill -0 "$machine"; kill "$machine"; done
"""


# The session's end, as the person's manager is stopped: machines are there until the unit of the
# session has done its work, and the scope that they are in ends only then.
LAST_WORDS = """
rm ~/machines
mkdir -p ~/.config/systemd/user/vmgr-session.service.d
cat >~/last.sh <<'END'
sleep 3
for machine in $(cat ~/machines); do kill -0 "$machine" && echo alive; done >~/last
END
printf '[Service]\\nExecStop=\\nExecStop=/bin/sh %%h/last.sh\\n' \
  >~/.config/systemd/user/vmgr-session.service.d/test.conf
systemctl --user daemon-reload
systemctl --user start vmgr-helper vmgr-session
[ "$(wc -l <~/machines)" = 1 ]
"""
SESSION_END = """
systemctl stop manager
[ "$(cat /home/person/last)" = alive ]
! kill -0 "$(cat /home/person/machines)"
"""


def archive() -> Iterator[tuple[str, Path]]:
    """What the machine gets: path there, path here."""
    yield "usr/lib/python3/dist-packages/vmgr", ROOT / "src/vmgr"
    for name in _LIBRARIES:
        for found in Path("/usr/lib").glob(f"*-linux-gnu/{name}"):
            yield str(found)[1:], found.resolve()
    for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
        name = package.name.lower()
        if name.endswith(".pth"):
            continue
        if not name.startswith((*_NOT_NEEDED, "_", "vmgr")) or name.startswith("_cffi"):
            yield f"usr/lib/python3/dist-packages/{package.name}", package


def test_vmgr_in_a_machine(home: Home) -> None:
    home.vmgr("create", "m", "--image", "debian", "--memory", "1G", "--cpus", "2")
    home.vmgr("start", "m")
    home.vmgr(
        "exec",
        "-i",
        "m",
        "--",
        "tar",
        "-x",
        "-C",
        "/",
        stdin=packed(archive(), stand_in=STAND_IN),
        deadline=600,
    )
    home.vmgr("exec", "m", "--", "ln", "-sf", str(PYTHON), "/usr/bin/python3")
    home.vmgr("exec", "m", "--", "sh", "-c", PREPARE)
    for script in (REAL, GROUPS, LAST_WORDS):
        done = home.vmgr("exec", "m", "--", *AS_PERSON, script, check=False, deadline=900)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()[-8000:]
    done = home.vmgr("exec", "m", "--", "sh", "-euxc", SESSION_END, check=False, deadline=300)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()[-8000:]
