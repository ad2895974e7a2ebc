"""The forwarder beside a direct connection and socat, all on this computer's loopback.

Client, server and forwarder are processes of their own. What is measured is the price of being
forwarded; machines are not in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clock import Row, ratios

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmgr.client.sync import Client

BYTES = 512 << 20
CONNECTIONS = 2_000
IDLE = 1_000
CONNECTIONS_GOAL = 5_000
IDLE_GOAL_MB = 40
SERVER = """
import socket, sys, threading
listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(listening.getsockname()[1], flush=True)
def serve(client):
    with client:
        kind = client.recv(1)
        if kind == b"p":
            while client.recv(1 << 20):
                pass
            client.sendall(b"k")
        elif kind == b"c":
            client.sendall(b"k")
        elif kind == b"i":
            client.sendall(b"k")
            client.recv(1)
while True:
    client, _ = listening.accept()
    threading.Thread(target=serve, args=(client,), daemon=True).start()
"""
FORWARDER = """
import asyncio, socket, sys
from vmgr.switchboard.forwarder import Forwarder
from vmgr.switchboard.main import quick_loop
async def main():
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    Forwarder(listener, ("127.0.0.1", int(sys.argv[1])), set())
    print(listener.getsockname()[1], flush=True)
    await asyncio.Event().wait()
with asyncio.Runner(loop_factory=quick_loop() if sys.argv[2] == "quick" else None) as runner:
    runner.run(main())
"""


@contextlib.contextmanager
def running(*argv: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A program that says its port first."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline()), process
        finally:
            process.kill()


@contextlib.contextmanager
def socat(target: int) -> Iterator[int | None]:
    if shutil.which("socat") is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    command = ["socat", f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=4096",
               f"TCP:127.0.0.1:{target}"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
            yield port
        finally:
            process.kill()


def throughput(port: int) -> float:
    """MB/s into the port."""
    block = bytes(1 << 20)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"p")
        began = time.perf_counter()
        for _ in range(BYTES >> 20):
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
        return BYTES / (time.perf_counter() - began) / 1e6


def connections(port: int, count: int = CONNECTIONS) -> float:
    """New connections per second, eight at a time, each with a byte there and back."""

    def some() -> None:
        for _ in range(count // 8):
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(b"c")
                sock.recv(1)

    threads = [threading.Thread(target=some) for _ in range(8)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (time.perf_counter() - began)


def resident(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def idle_bytes(port: int, pid: int) -> int:
    """What `IDLE` connections that say nothing add to the forwarder."""
    before = resident(pid)
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(b"i")
            sock.recv(1)
        return resident(pid) - before


def measure(client: Client, image: str | None, rounds: int) -> list[Row]:
    """Forwarded against direct, and socat beside it."""
    del client, image
    rows: list[Row] = []
    with (
        running(sys.executable, "-c", SERVER) as (direct, _),
        running(sys.executable, "-c", FORWARDER, str(direct), "quick") as (forwarded, process),
        running(sys.executable, "-c", FORWARDER, str(direct), "plain") as (slow, _),
        socat(direct) as other,
    ):
        for what, work, goal in (
            ("throughput", throughput, None),
            ("new connections", connections, CONNECTIONS_GOAL),
        ):
            work(forwarded)
            plain, ours, slower, others = [], [], [], []
            for _ in range(rounds):
                plain.append(work(direct))
                ours.append(work(forwarded))
                slower.append(work(slow))
                if other is not None:
                    others.append(work(other))
            unit = "MB/s" if work is throughput else "/s"
            row = Row(f"forwarded port: {what}", unit, ours)
            if goal is not None:
                row.goal, row.met = f">= {goal}", (row.median or 0) >= goal
            rows += [
                row,
                Row(f"forwarded port: {what}, of a direct one's", "x", ratios(ours, plain)),
                Row(f"forwarded port: {what}, of asyncio's own loop", "x", ratios(ours, slower)),
            ]
            if others:
                rows.append(Row(f"forwarded port: {what}, of socat's", "x", ratios(ours, others)))
        idle = idle_bytes(forwarded, process.pid) / 1e6
        rows.append(
            Row(f"{IDLE} idle connections", "MB", [idle], f"< {IDLE_GOAL_MB}", idle < IDLE_GOAL_MB)
        )
    return rows
