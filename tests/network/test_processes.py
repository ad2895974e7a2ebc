"""Holder, switchboard and egress as they run: locked in, found again, ended. Seen from /proc."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.conftest import short_directory, wait_for_end

from vmgr.audit.proc import look
from vmgr.network import confined
from vmgr.network.processes import NetworkProcesses
from vmgr.network.strays import MARK, marked
from vmgr.paths import Paths
from vmgr.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TUN = os.access("/dev/net/tun", os.R_OK | os.W_OK)
needs_tun = pytest.mark.skipif(not TUN, reason="this user may not make taps")
NET_BIND_SERVICE, NET_ADMIN = 1 << 10, 1 << 12


async def whatever_works() -> bool:
    return False


async def only_namespaces() -> bool:
    return True


@pytest.fixture
async def paths() -> AsyncIterator[Paths]:
    root = short_directory()
    paths = Paths.from_environment({"VMGR_HOME": str(root / "h")})
    paths.ensure()
    yield paths
    left = NetworkProcesses(paths, whatever_works)
    await left.adopt()
    await left.stop()
    assert marked(paths.runtime) == []
    await asyncio.to_thread(subprocess.run, ["rm", "-r", root], check=True)


# Where vmgr's own program is, the switchboard sees a directory with that and nothing else.
OURS = {Path(path).parts[1] for path in (sys.prefix, sys.base_prefix, confined.__file__)}


def seen_by(pid: int, directory: str = "") -> set[str]:
    """What a process sees in a directory, its root by default; nothing, if there is none."""
    try:
        return set(os.listdir(f"/proc/{pid}/root{directory}"))  # noqa: PTH208 (names are wanted)
    except FileNotFoundError:
        return set()


def sleeper(owner: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "1000"], env={"PATH": os.environ["PATH"], MARK: owner})


def wait_until_loaded(pid: int) -> None:
    """Until a holder that is ready sleeps: before, `sleep` opens its libraries."""
    deadline, proc = time.monotonic() + 30, Path(f"/proc/{pid}")
    while "libc" not in (proc / "maps").read_text() or len([*(proc / "fd").iterdir()]) > 3:
        assert time.monotonic() < deadline, "it keeps open what it was not given"


async def test_the_holder_is_locked_in_and_may_nothing(paths: Paths) -> None:
    network = NetworkProcesses(paths, only_namespaces)
    holder = await network.ensure_holder()
    assert await network.ensure_holder() is holder
    await asyncio.to_thread(wait_until_loaded, holder.pid)
    seen, own = look(holder.pid), look(os.getpid())
    for name in ("user", "mnt", "pid", "ipc", "net", "uts"):
        assert seen.namespaces[name] != own.namespaces[name]
    assert seen.no_new_privs
    assert set(seen.capabilities.values()) == {0}
    assert seen.core_limit == 0
    assert set(seen.fds) == {0, 1, 2}
    assert seen_by(holder.pid) <= {"bin", "dev", "etc", "lib", "lib64", "usr"}
    assert seen_by(holder.pid, "/etc") == {"ld.so.cache"}


@needs_tun
async def test_switchboard_and_egress_may_what_their_job_takes(paths: Paths) -> None:
    network = NetworkProcesses(paths, only_namespaces)
    await network.start_switchboard()
    await network.start_egress()
    assert {part.level for part in network.parts()} == {"namespaces"}
    holder, switchboard, egress = (look(part.pid) for part in network.parts())
    own = look(os.getpid())
    assert switchboard.namespaces["net"] == holder.namespaces["net"] != own.namespaces["net"]
    assert egress.namespaces["net"] == own.namespaces["net"], "it leads there: that is its job"
    for seen, capabilities in ((switchboard, NET_ADMIN), (egress, NET_BIND_SERVICE)):
        for name in ("mnt", "pid", "ipc", "uts"):
            assert seen.namespaces[name] not in {own.namespaces[name], holder.namespaces[name]}
        assert seen.namespaces["user"] == holder.namespaces["user"]
        assert seen.no_new_privs
        assert seen.seccomp == "filter"
        assert set(seen.capabilities.values()) <= {0, capabilities}
        assert not (seen_by(seen.pid) - OURS) & {"home", "proc", "sys", "var", "tmp"}
    log_limit = resource.prlimit(switchboard.pid, resource.RLIMIT_FSIZE)
    assert log_limit[1] <= 16 << 20, "its log cannot fill the disk"
    assert not seen_by(switchboard.pid, str(paths.state))
    assert "resolv.conf" in seen_by(switchboard.pid, "/etc")
    loops = await asyncio.to_thread(Path(f"/proc/{switchboard.pid}/maps").read_text)
    assert ("uvloop" in loops) == (importlib.util.find_spec("uvloop") is not None)


@needs_tun
async def test_the_next_helper_knows_them_and_ends_what_nobody_wrote_down(paths: Paths) -> None:
    before = NetworkProcesses(paths, only_namespaces)
    await before.start_switchboard()
    # Started by a helper that died before it came to write.
    stray = sleeper(str(paths.runtime))
    other = sleeper(f"{paths.runtime}-of-another")
    try:
        after = NetworkProcesses(paths, only_namespaces)
        await after.adopt()
        assert after.parts() == before.parts()
        assert stray.wait(30) < 0
        assert other.poll() is None
        monitors = [look(part.pid).parent for part in after.parts()]
        assert {Path(look(pid).program).name for pid in monitors} == {"bwrap"}
        await after.stop()
        for pid in monitors:
            wait_for_end(pid)
    finally:
        for process in (stray, other):
            process.kill()
            process.wait()
    assert marked(paths.runtime) == []


@needs_tun
async def test_a_monitor_that_is_killed_takes_its_process_along(paths: Paths) -> None:
    network = NetworkProcesses(paths, only_namespaces)
    await network.start_egress()
    egress = network.egress
    assert egress is not None
    os.kill(look(egress.pid).parent, 9)
    async with asyncio.timeout(30):
        await egress.wait()
    await network.start_egress()
    assert network.egress is not egress


async def test_where_no_sandbox_works_it_is_said_and_may_be_forbidden(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Sandbox("namespaces", "", bubblewrap=Path("/bin/false"), setpriv=Path("/bin/true"))
    works = confined.sandboxes(required=False)
    assert [sandbox.level for sandbox in works] == ["namespaces", "filter"]
    assert [sandbox.level for sandbox in confined.sandboxes(required=True)] == ["namespaces"]
    monkeypatch.setattr(confined, "sandboxes", lambda **_: [refusing, works[1]])
    network = NetworkProcesses(paths, whatever_works)
    await network.ensure_holder()
    assert [(part.name, part.level) for part in network.parts()] == [("holder", "filter")]
    assert "the holder runs without a sandbox" in caplog.text


DENIED = """
import ctypes, os, socket, threading
from vmgr.switchboard.seccomp import restrict
assert restrict() is None, restrict()
def denied(call):
    try:
        call()
    except PermissionError:
        return
    raise AssertionError(call)
denied(os.fork)
denied(lambda: os.execv("/bin/true", ["true"]))
denied(lambda: os.posix_spawn("/bin/true", ["true"], {}))
libc = ctypes.CDLL(None, use_errno=True)
for number in (101, 272, 308, 165, 321, 425):  # ptrace, unshare, setns, mount, bpf, io_uring_setup
    assert libc.syscall(number, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1, number
thread = threading.Thread(target=lambda: denied(os.fork))
thread.start(); thread.join()
socket.socket().close(); open("/dev/null").close()
print("denied")
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of calls are of x86-64")
def test_the_filter_denies_what_leads_further() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DENIED], capture_output=True, text=True, check=False
    )
    assert done.stdout == "denied\n", done.stderr
