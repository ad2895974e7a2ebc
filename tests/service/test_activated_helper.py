"""The helper started as systemd does it, by the test itself: a socket, a place to report to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.conftest import wait_for_end

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Home

AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "vmgr.helper"])
"""


class Systemd:
    """Its half of the protocols."""

    def __init__(self, home: Home) -> None:
        self.home = home
        runtime = home.root / "run/vmgr"
        runtime.mkdir(mode=0o700, exist_ok=True)
        self.path = runtime / "helper.sock"
        self.path.unlink(missing_ok=True)
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(self.path))
        self.path.chmod(0o600)
        self.listening.listen()
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(home.root / "notify"))
        self.notified.settimeout(60)

    @contextmanager
    def service(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        told = {
            **self.home.environment, "NOTIFY_SOCKET": str(self.home.root / "notify"),
            "LISTEN_FDS": "1", "DISPLAY": ":7", **environment,
        }  # fmt: skip
        number = self.listening.fileno()
        with subprocess.Popen(
            [sys.executable, "-c", AS_SYSTEMD, str(number)],
            env=told, pass_fds=(number,), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            yield process
            process.kill()

    def wait_for(self, *lines: bytes) -> None:
        left = set(lines)
        while left:
            left.discard(self.notified.recv(4096))


@pytest.fixture
def systemd(bare_home: Home) -> Iterator[Systemd]:
    made = Systemd(bare_home)
    yield made
    made.listening.close()
    made.notified.close()


def test_the_socket_is_used_and_readiness_told(bare_home: Home, systemd: Systemd) -> None:
    with systemd.service(WATCHDOG_USEC="600000") as helper:
        systemd.wait_for(b"STATUS=no machine runs", b"READY=1")
        status = bare_home.json("helper", "status")
        assert (status["pid"], status["managed"]) == (helper.pid, True)
        systemd.wait_for(b"WATCHDOG=1")
        systemd.wait_for(b"WATCHDOG=1")
        assert bare_home.json("ls") == []
        assert bare_home.vmgr("doctor", "--audit").returncode == 0
        inode = systemd.path.stat().st_ino
        bare_home.vmgr("helper", "stop")
        systemd.wait_for(b"STOPPING=1")
        assert helper.wait(30) == 0
        assert systemd.path.stat().st_ino == inode, "it is systemd's"
    with systemd.service() as helper:  # what a connection has systemd do
        assert bare_home.json("ls") == []
        helper.terminate()
        assert helper.wait(30) == 0


def test_a_helper_that_nobody_reaches_any_more_gives_way(bare_home: Home) -> None:
    before = bare_home.helper_pid()
    systemd = Systemd(bare_home)  # takes the place of its socket's file
    try:
        with systemd.service() as helper:
            systemd.wait_for(b"READY=1")
            wait_for_end(before)
            assert bare_home.json("helper", "status")["pid"] == helper.pid
    finally:
        systemd.listening.close()
        systemd.notified.close()


def test_why_it_cannot_start_is_told(bare_home: Home, systemd: Systemd) -> None:
    with systemd.service(XDG_RUNTIME_DIR=str(bare_home.root / "state")) as helper:
        assert helper.stderr is not None
        said = helper.stderr.read().decode()
        assert helper.wait(30) == 1
    assert "did not hand over a socket" in said
    systemd.wait_for(
        b"STATUS=the service manager did not hand over a socket that listens on "
        + os.fsencode(bare_home.root / "state/vmgr/helper.sock")
    )
