"""The programs that lead machines to the internet, against each other and a direct connection.

Each leads from a namespace of its own to a server on this computer's loopback. Emulated machines
are not in it: their own network takes longer than either. The link has machines' packets, 1,500
bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clock import Row, ratios
from forwarding import running
from vmgr.network import confined
from vmgr.network.egress_programs import find_program
from vmgr.network.trial import HOST, on_trial

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmgr.client.sync import Client
    from vmgr.network.egress_programs import EgressProgram

BYTES = 32 << 20
CONNECTIONS = 500
DEADLINE = 120.0  # seconds, for one of them
LINK = "ip link set egress mtu 1500"
SERVER = """
import socket, threading
listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(listening.getsockname()[1], flush=True)
def serve(client):
    with client:
        what, amount = client.makefile("r").readline().split()
        if what == "down":
            client.sendall(bytes(int(amount)))
        elif what == "up":
            while client.recv(1 << 20):
                pass
        client.sendall(b"k")
while True:
    client, _ = listening.accept()
    threading.Thread(target=serve, args=(client,), daemon=True).start()
"""
CLIENT = """
import socket, sys, time
place, what, amount = (sys.argv[1], int(sys.argv[2])), sys.argv[3], int(sys.argv[4])
began = time.perf_counter()
for _ in range(amount if what == "connect" else 1):
    with socket.socket() as sock:
        # As machines have it, whatever this computer's own programs use.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        sock.connect(place)
        sock.sendall(f"{what} {amount}\\n".encode())
        if what == "up":
            block = bytes(1 << 20)
            for _ in range(amount >> 20):
                sock.sendall(block)
            sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 20):
            pass
print(amount / (time.perf_counter() - began))
"""
WORK = {
    "out of machines": ("up", "MB/s", BYTES, 1e6),
    "into machines": ("down", "MB/s", BYTES, 1e6),
    "new connections": ("connect", "/s", CONNECTIONS, 1),
}


def ask(before: list[str], host: str, port: int, work: str) -> float:
    what, _, amount, divisor = WORK[work]
    command = [*before, sys.executable, "-c", CLIENT, host, str(port), what, str(amount)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE)
    return float(done.stdout) / divisor


@contextlib.asynccontextmanager
async def leading(program: EgressProgram) -> AsyncIterator[tuple[list[str], float]]:
    """How to run a command where the program leads out, and how long that took to begin."""
    sandbox = confined.sandboxes(required=False)[0]
    with tempfile.TemporaryDirectory() as runtime:
        began = time.perf_counter()
        async with on_trial(program, sandbox, Path(runtime)) as namespaces:
            took = (time.perf_counter() - began) * 1000
            entering = namespaces.entering("user", "net")
            subprocess.run([*entering, "sh", "-c", LINK], check=True)  # noqa: ASYNC221
            yield entering, took


async def compare(rounds: int) -> list[Row]:
    programs = [p for p in (await find_program("slirp4netns"), await find_program("pasta")) if p]
    rows: list[Row] = []
    with running(sys.executable, "-c", SERVER) as (port, _):
        async with contextlib.AsyncExitStack() as stack:
            led = {p.name: await stack.enter_async_context(leading(p)) for p in programs}
            for what, (_, unit, *_) in WORK.items():
                direct: list[float] = []
                found: dict[str, list[float]] = {p.name: [] for p in programs}
                for _ in range(rounds):
                    direct.append(ask([], "127.0.0.1", port, what))
                    for name, (entering, _) in led.items():
                        found[name].append(ask(entering, HOST, port, what))
                for name, samples in found.items():
                    rows.append(Row(f"{name}: {what}", unit, samples))
                    rows.append(Row(f"{name}: {what}, of direct", "x", ratios(samples, direct)))
                if len(programs) > 1:
                    pairs = ratios(found["pasta"], found["slirp4netns"])
                    rows.append(Row(f"pasta / slirp4netns: {what}", "x", pairs))
        for program in programs:
            took = []
            for _ in range(rounds):
                async with leading(program) as (_, milliseconds):
                    took.append(milliseconds)
            rows.append(Row(f"{program.name}: namespaces and way out", "ms", took))
    return rows


def measure(client: Client, image: str | None, rounds: int) -> list[Row]:
    """Those that are installed here."""
    del client, image
    return asyncio.run(compare(rounds))
