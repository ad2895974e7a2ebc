"""A real systemd user manager for a test home: units, activation and the session's end for real.

systemd refuses to run as a user manager where the computer was not booted with it, which it sees by
a directory in /run; it gets a /run of its own that has one.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmgr.client.watch import changes_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Home

SYSTEMD = next(
    (p for p in map(Path, ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")) if p.exists()), None
)
needs_manager = [
    pytest.mark.skipif(os.getuid() != 0, reason="a /run of its own takes root"),
    pytest.mark.skipif(SYSTEMD is None, reason="systemd is not installed"),
]
_START = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec {} --user"


def wait_until(changes: int, there: Callable[[], bool]) -> None:
    """Wait for a change after which `there` holds."""
    while not there():
        assert select.select([changes], [], [], 60)[0], "systemd does not start"
        os.read(changes, 65_536)


def until_it_listens(path: Path) -> None:
    """Wait out the moment between a socket's file and its listening, of which nobody is told."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(os.fspath(path))
            except ConnectionRefusedError:
                select.select([], [], [], 0.02)
            else:
                return
    pytest.fail("systemd does not listen")


@dataclass
class Manager:
    """The user manager of one home."""

    home: Home
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        # What a desktop has imported into it, among other things.
        environment = {**self.home.environment, "SECRET_TOKEN": "hunter2", "DISPLAY": ":7"}
        with (self.home.root / "manager.log").open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private",
                 "sh", "-c", _START.format(SYSTEMD)],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        private = self.home.root / "run/systemd/private"
        with changes_in(private.parent.parent) as changes:
            wait_until(changes, private.parent.is_dir)
        with changes_in(private.parent) as changes:
            wait_until(changes, private.exists)
        until_it_listens(private)
        self.systemctl("start", "default.target")  # waits for the start that is under way

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """Run `systemctl --user`."""
        done = subprocess.run(
            ["systemctl", "--user", "--no-pager", *arguments],
            env=self.home.environment, capture_output=True, check=False, timeout=120,
        )  # fmt: skip
        if check and done.returncode != 0:
            pytest.fail(f"systemctl {arguments}: {done.stderr.decode()}\n{self.log()}")
        return done.stdout.decode().strip()

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", unit, "--property", name, "--value")

    def log(self) -> str:
        """The end of what it said."""
        return (self.home.root / "manager.log").read_text(errors="replace")[-4000:]

    def end(self, deadline: float = 120) -> None:
        """End the session, as logind does: the manager stops all units, then itself."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(deadline)

    def close(self) -> None:
        """End it in any case."""
        try:
            self.end()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(30)
