"""Launching with the real helper."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmgr.client.launch import connect, ensure
from vmgr.client.sync import Client
from vmgr.errors import HelperUnavailableError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmgr.paths import Paths
from vmgr.service.environment import helper_environment


def end(pid: int) -> None:
    """Kill a helper and see it end."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 30)[0]
        os.close(pidfd)


@pytest.fixture
def here(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """The home is this process's too, and its helper is ended afterwards."""
    monkeypatch.setenv("VMGR_HOME", str(paths.state.parent))
    yield paths
    client = Client(paths, launch=False)
    if client.reachable():
        end(client.helper_status().pid)


def test_the_helpers_environment_is_the_persons_not_the_callers() -> None:
    kept = {
        "PATH": "/bin", "HOME": "/h", "LANG": "C", "LC_ALL": "C", "XDG_RUNTIME_DIR": "/r",
        "VMGR_HOME": "/v", "https_proxy": "http://p", "HTTPS_PROXY": "http://p", "TMPDIR": "/t",
        "SSL_CERT_FILE": "/c",
    }  # fmt: skip
    dropped = {
        "LD_PRELOAD": "/x.so", "PYTHONPATH": "/x", "PYTHONSTARTUP": "/x", "OLDPWD": "/", "A": "1",
        "DISPLAY": ":0", "SSH_AUTH_SOCK": "/s", "BASH_FUNC_x%%": "() { :; }", "NOTIFY_SOCKET": "/n",
    }  # fmt: skip
    assert helper_environment({**kept, **dropped}) == kept


def test_the_first_call_starts_the_helper_and_the_next_finds_it(here: Paths) -> None:
    client = Client(here)
    assert not client.reachable()
    pid = client.helper_status().pid
    assert pid != os.getpid()
    assert client.helper_status().pid == pid


def test_the_helper_inherits_nothing(here: Paths) -> None:
    with Path(os.devnull).open("rb") as held:
        os.set_inheritable(held.fileno(), True)  # noqa: FBT003 (its only parameter)
        pid = Client(here).helper_status().pid
        found = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert not [name for name in found if name.startswith("/work") or "pytest" in name]


def test_many_callers_at_once_get_one_helper(here: Paths) -> None:
    ask = "from vmgr.client import Client; print(Client().helper_status().pid)"
    callers = [
        subprocess.Popen([sys.executable, "-c", ask], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    answers = {caller.communicate(timeout=120)[0] for caller in callers}
    assert len(answers) == 1
    assert int(answers.pop()) == Client(here).helper_status().pid


def test_what_a_killed_helper_left_is_no_obstacle(here: Paths) -> None:
    client = Client(here)
    first = client.helper_status().pid
    end(first)
    assert here.helper_socket.exists()
    assert connect(here) is None
    assert client.helper_status().pid != first


def test_a_helper_that_is_stopping_is_waited_for(here: Paths) -> None:
    """Between its socket's end and its own, a helper holds the lock but does not listen."""
    client = Client(here)
    first = client.helper_stop().pid
    assert client.helper_status().pid != first


STARTING = """
import fcntl, os, socket, sys
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
if sys.argv[2] == "dies":
    sys.exit()
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[2])
listening.listen()
os.chmod(sys.argv[2], 0o600)
sys.stdin.readline()
"""


@contextlib.contextmanager
def starting(paths: Paths, what: str) -> Iterator[subprocess.Popen[str]]:
    """What a helper is that has the lock and does not listen yet; goes on when told."""
    paths.ensure()
    argv = [sys.executable, "-c", STARTING, str(paths.helper_lock), what]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process


def somebody_waits_for(path: Path) -> bool:
    inode = f":{path.stat().st_ino} "
    locks = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and inode in line for line in locks)


def test_a_helper_whose_launcher_was_killed_is_waited_for_until_it_listens(here: Paths) -> None:
    with (
        starting(here, str(here.helper_socket)) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        client = pool.submit(ensure, here, 30)
        while not somebody_waits_for(here.helper_lock):
            assert not client.done()
        assert process.stdin is not None
        process.stdin.write("listen\n")
        process.stdin.flush()
        with client.result(30) as connection:
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        assert int.from_bytes(peer[:4], sys.byteorder) == process.pid
        process.communicate("end\n", timeout=30)
    here.helper_socket.unlink()


def test_a_helper_that_ends_while_it_is_waited_for_is_replaced(here: Paths) -> None:
    with starting(here, "dies") as process, ThreadPoolExecutor(1) as pool:
        client = pool.submit(ensure, here, 30)
        while not somebody_waits_for(here.helper_lock):
            assert not client.done()
        process.communicate("end\n", timeout=30)
        client.result(60).close()
    assert Client(here).helper_status().pid != process.pid


def test_the_reason_for_not_starting_is_the_helpers_own(here: Paths) -> None:
    here.ensure()
    here.helper_lock.mkdir()
    with pytest.raises(StateError, match=f"cannot open {here.helper_lock}: Is a directory"):
        ensure(here)


def put_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Have every Python that is started from here run this first."""
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys\n{source}\n"
        "sys.argv[0] = sys.executable\n"
        'import runpy; runpy.run_module("vmgr.helper", run_name="__main__")\' "${@:4}"\n'
    )
    program.write_text(program.read_text().replace("/bin/sh", "/bin/bash"))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_what_it_says_before_it_has_a_log_is_told(
    here: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_first(tmp_path, monkeypatch, 'sys.exit("one\\ntwo: it cannot be.")')
    with pytest.raises(HelperUnavailableError) as caught:
        ensure(here)
    assert caught.value.message == "the helper ended while it was starting: two: it cannot be"
    assert caught.value.next_step == "see what is missing with: vmgr doctor"
    assert not here.helper_log.exists()


@pytest.mark.parametrize("module", ["msgspec", "aiohttp"])
def test_a_module_that_is_missing_is_no_bug(
    here: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """The first before it has a log, the other after."""
    blocked = (
        "class No:\n"
        "    def find_spec(self, name, *rest):\n"
        f'        if name == "{module}":\n'
        "            raise ModuleNotFoundError(\n"
        f'                "No module named " + repr("{module}"), name="{module}")\n'
        "sys.meta_path.insert(0, No())"
    )
    put_first(tmp_path, monkeypatch, blocked.replace("'", "'\\''"))
    with pytest.raises(StateError) as caught:
        ensure(here)
    assert caught.value.message == (
        f"vmgr's installation is broken: its Python module {module} is missing"
    )
    assert list(here.crashes.iterdir()) == []


def test_a_home_that_cannot_be_made(here: Paths) -> None:
    here.state.parent.mkdir(exist_ok=True)
    here.state.write_text("in the way")
    with pytest.raises(StateError, match="is not a directory"):
        ensure(here)


def test_a_socket_in_a_place_of_another_user(here: Paths) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make another user's socket")
    here.ensure()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(here.helper_socket))
        os.chown(here.helper_socket, 12345, 12345)
        with pytest.raises(HelperUnavailableError, match=r"belongs to another user \(uid 12345\)"):
            ensure(here)
    here.helper_socket.unlink()


def test_a_listener_of_another_user_gets_nothing(here: Paths) -> None:
    """SO_PEERCRED tells who listens, whatever the file says."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    here.ensure()
    script = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1])\n"
        "os.setuid(12345); s.listen()\n"
        "print('ready', flush=True)\n"
        "connection, _ = s.accept()\n"
        "print(len(connection.recv(1000)))\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(here.helper_socket)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    with pytest.raises(HelperUnavailableError, match=r"belongs to another user \(uid 12345\)"):
        ensure(here)
    assert other.communicate(timeout=30)[0] == "0\n"
    here.helper_socket.unlink()
