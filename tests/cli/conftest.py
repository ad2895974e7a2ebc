from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.client.sync import Client
from vmgr.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE = 30.0


class Command:
    """Runs `vmgr` in a home of its own, against whatever listens there."""

    def __init__(self, root: str) -> None:
        self.paths = Paths.from_environment({"VMGR_HOME": root})
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": root,
            "VMGR_HOME": root,
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
        }

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "vmgr.cli", *arguments]

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"stdin": subprocess.DEVNULL, "env": self.environment, **options}
        if "input" in options:
            del options["stdin"]
        return subprocess.run(
            self.argv(*arguments),
            capture_output=True, text=True, check=False, timeout=DEADLINE, **options,
        )  # fmt: skip

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        options = {
            "stdin": pipe, "stdout": pipe, "stderr": pipe, "env": self.environment, **options,
        }  # fmt: skip
        return subprocess.Popen(self.argv(*arguments), **options)


@pytest.fixture
def vmgr() -> Iterator[Command]:
    root = tempfile.mkdtemp(prefix="vmgr-c-", dir="/tmp")
    command = Command(root)
    yield command
    # A test that goes wrong leaves its peer's place to a real helper, which the command starts.
    helper = Client(command.paths, launch=False)
    if helper.reachable():
        os.kill(helper.helper_status().pid, signal.SIGKILL)
        pytest.fail("the command started a helper")
    shutil.rmtree(Path(root))
