"""Launching with the real helper."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmgr.client.launch import connect, ensure, helper_environment
from vmgr.client.sync import Client
from vmgr.errors import HelperUnavailableError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmgr.paths import Paths


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


def test_the_reason_for_not_starting_is_the_helpers_own(here: Paths) -> None:
    here.ensure()
    here.helper_lock.mkdir()
    with pytest.raises(StateError, match=f"cannot open {here.helper_lock}: Is a directory"):
        ensure(here)


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
