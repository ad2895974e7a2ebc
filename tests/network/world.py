"""Networks for tests: namespaces that stand for this computer's network and for the world.

Nothing leaves them. Making them takes root.
"""

from __future__ import annotations

import json
import select
import subprocess
from typing import TYPE_CHECKING

from tests.conftest import Home

if TYPE_CHECKING:
    import contextlib

HOLD = ("sh", "-c", "echo ready; exec sleep infinity")


class NetworkedHome(Home):
    """A home whose helper lives in namespaces that the test made."""

    host: int = 0
    namespaces: tuple[str, ...] = ("net",)

    def inside(self, *command: str) -> list[str]:
        """The command line that runs `command` on that host."""
        files = {"net": "net", "mount": "mnt"}
        entered = [f"--{name}=/proc/{self.host}/ns/{files[name]}" for name in self.namespaces]
        return ["nsenter", *entered, "--", *command]

    def command(self, *arguments: str) -> list[str]:
        return self.inside(*super().command(*arguments))

    def network_process(self, name: str) -> int:
        record = json.loads((self.root / "run/vmgr/network.json").read_text())
        return int(record[name]["pid"])


def started(stack: contextlib.ExitStack, *argv: str) -> subprocess.Popen[bytes]:
    """Start a program, ended with the stack, that says `ready`."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    stack.callback(process.stdout.close)  # type: ignore[union-attr]
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0]
    assert process.stdout.readline() == b"ready\n"
    return process


def within(process: subprocess.Popen[bytes], command: str) -> None:
    """Run a shell command in the network of a process."""
    subprocess.run(
        ["nsenter", f"--net=/proc/{process.pid}/ns/net", "sh", "-ec", command], check=True
    )
