"""SSH: new connections beside a bare asyncssh server's, shared ones, and files beside `vmgr cp`.

OpenSSH's client asks all of it. The bare server runs no command: it says goodbye, so that what a
connection to a machine costs beyond is the machine's part and ours.
"""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clock import Row, ratios, stopwatch
from vmgr.api.models import CreateMachine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmgr.client.sync import Client

BEYOND_GOAL_S = 0.15
SHARED_GOAL_S = 0.03
RATE_GOAL = 0.6
BYTES = 128 << 20
VMGR = Path(sys.executable).with_name("vmgr")
BARE = """
import asyncio, asyncssh, sys
class Server(asyncssh.SSHServer):
    def begin_auth(self, username):
        return True
    def public_key_auth_supported(self):
        return True
    def validate_public_key(self, username, key):
        return True
async def main():
    listening = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Server, process_factory=lambda process: process.exit(0),
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        kex_algs=["curve25519-sha256"], encryption_algs=["aes128-gcm@openssh.com"],
    )
    print(listening.get_port(), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def timed(*command: str | Path) -> float:
    with stopwatch() as watch:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return watch.seconds


@contextmanager
def bare_server(identity: Path) -> Iterator[list[str]]:
    """The command that connects to a server which does nothing."""
    process = subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        port = process.stdout.readline().decode().strip()
        yield [
            "ssh", "-F", "none", "-p", port, "-i", str(identity), "-o", "IdentitiesOnly=yes",
            "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "LogLevel=ERROR", "x@127.0.0.1", "true",
        ]  # fmt: skip
    finally:
        process.kill()
        process.communicate()


def rates(config: Path, name: str, rounds: int, directory: Path) -> list[Row]:
    big = directory / "big"
    big.write_bytes(os.urandom(1 << 20) * (BYTES >> 20))
    put = Row("sftp put / vmgr cp into a machine", "x", goal=f">= {RATE_GOAL}")
    get = Row("sftp get / vmgr cp out of a machine", "x", goal=f">= {RATE_GOAL}")
    speed = Row("sftp put", "MB/s")
    scp = ("scp", "-q", "-F", str(config))
    for row, by_us, by_ssh in (
        (put, (big, f"{name}:/big"), (str(big), f"{name}@vmgr:/big")),
        (get, (f"{name}:/big", directory / "back"), (f"{name}@vmgr:/big", str(directory / "back"))),
    ):
        ours, theirs = [], []
        for _ in range(max(1, rounds // 2)):
            ours.append(timed(VMGR, "cp", *by_us))
            theirs.append(timed(*scp, *by_ssh))
        row.samples = ratios(ours, theirs)
        row.met = statistics.median(row.samples) >= RATE_GOAL
        if row is put:
            speed.samples = [BYTES / 1e6 / seconds for seconds in theirs]
    return [put, get, speed]


def measure(client: Client, image: str | None, rounds: int) -> list[Row]:
    name = f"bench-{secrets.token_hex(3)}"
    config = Path(client.ssh_start().config)
    client.machine_create(CreateMachine(name=name, image=image))
    try:
        client.machine_start(name)
        with tempfile.TemporaryDirectory(prefix="vmgr-bench-") as made:
            directory = Path(made)
            rows = connections(config, name, rounds, directory)
            return rows + rates(config, name, rounds, directory)
    finally:
        client.machine_remove(name, force=True)


def connections(config: Path, name: str, rounds: int, directory: Path) -> list[Row]:
    beyond = Row("ssh true in a machine, beyond a bare server", "s", goal=f"<= {BEYOND_GOAL_S}")
    bare = Row("ssh to a bare asyncssh server", "s")
    shared = Row("ssh true over a shared connection", "s", goal=f"<= {SHARED_GOAL_S}")
    ssh = ["ssh", "-F", str(config), f"{name}@vmgr", "true"]
    with bare_server(config.with_name("id_ed25519")) as to_bare:
        timed(*to_bare), timed(*ssh)
        for _ in range(rounds):
            bare.samples.append(timed(*to_bare))
            beyond.samples.append(timed(*ssh) - bare.samples[-1])
    control = ["-o", f"ControlPath={directory}/control"]
    master = [*ssh[:-2], *control, "-M", "-N", "-f", ssh[-2]]  # in the background once it is there
    quiet = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    subprocess.run(master, check=True, **quiet)
    try:
        shared.samples = [timed(*ssh[:-2], *control, *ssh[-2:]) for _ in range(rounds + 1)][1:]
    finally:
        subprocess.run([*ssh[:-2], *control, "-O", "exit", ssh[-2]], check=False, **quiet)
    for row, goal in ((beyond, BEYOND_GOAL_S), (shared, SHARED_GOAL_S)):
        row.met = statistics.median(row.samples) <= goal
    return [bare, beyond, shared]
