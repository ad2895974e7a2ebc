from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 (dataclasses)
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import SMALL, Home, short_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE = 900.0  # a gigabyte on a loaded computer; pytest has deadlines of its own


@dataclass
class Client:
    """OpenSSH's client, and those that use it, with the configuration that vmgr writes."""

    home: Home
    config: Path

    @property
    def environment(self) -> dict[str, str]:
        """For programs that start ssh themselves."""
        command = f"ssh -F {self.config}"
        return {
            **self.home.environment,
            "RSYNC_RSH": command,
            "GIT_SSH_COMMAND": command,
            "GIT_CONFIG_GLOBAL": os.devnull,
        }

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end."""
        options = {"input": b"", "cwd": self.home.root, **options}
        return subprocess.run(
            argv, capture_output=True, timeout=DEADLINE, check=False, env=self.environment,
            **options,
        )  # fmt: skip

    def ssh(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run ssh to its end."""
        return self.run("ssh", "-F", str(self.config), *arguments, **options)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start ssh and go on."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            ["ssh", "-F", str(self.config), *arguments],
            stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment, cwd=self.home.root,
        )  # fmt: skip

    def out(self, *arguments: str, **options: Any) -> str:
        """What ssh prints; it must succeed."""
        done = self.ssh(*arguments, **options)
        assert done.returncode == 0, done.stderr.decode(errors="replace") + self.log()
        return done.stdout.decode()

    def server(self) -> dict[str, Any]:
        """The running server's record."""
        record = (self.home.root / "run/vmgr/ssh.json").read_bytes()
        found: dict[str, Any] = json.loads(record)
        return found

    def log(self) -> str:
        path = self.home.root / "state/vmgr/ssh.log"
        return path.read_text() if path.exists() else "(no log)"


def client_of(home: Home) -> Client:
    """Have the server run, and its client's configuration at hand."""
    if shutil.which("ssh") is None:
        pytest.skip("OpenSSH's client is not installed")
    config = home.root / "ssh_config"
    config.write_bytes(home.vmgr("ssh-config", "--print").stdout)
    return Client(home, config)


@pytest.fixture
def bare_client(bare_home: Home) -> Client:
    """A server without machines."""
    return client_of(bare_home)


@pytest.fixture(scope="package")
def client(shared_images: tuple[Path, Path]) -> Iterator[Client]:
    """A server and the machine `m`, shared by all tests here that only use it."""
    home = Home(short_directory(), *shared_images)
    try:
        home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
        home.vmgr("start", "m")
        yield client_of(home)
    finally:
        home.close()
