"""Ports of a machine on this computer: how soon they are there, and what the way in costs.

`direct` is a socket of the switchboard's namespace, which only root or the namespace's owner gets;
`through the agent` is what listens on the machine's 127.0.0.1 alone. Where there is no switchboard
only that is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clock import Row, ratios
from vmgr.api.models import CreateMachine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmgr.client.sync import Client

NAME = "bench-ports"
PUBLIC, PRIVATE, FLAPPING = 27_001, 27_002, 27_003
VMGR = Path(sys.executable).with_name("vmgr")
NOTICED_GOAL_MS = 10
THROUGHPUT_GOAL = 0.85
CONNECT_GOAL_MS = 0.3
SERVE = """
use Socket; $| = 1;
my ($address, $port) = @ARGV;
socket(S, PF_INET, SOCK_STREAM, 0); setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);
bind(S, sockaddr_in($port, inet_aton($address))) or die; listen(S, 512); print "listening\\n";
while (accept(C, S)) {
  sysread(C, my $kind, 1);
  if ($kind eq "p") { while (sysread(C, my $b, 131072)) {} syswrite(C, "k"); }
  elsif ($kind eq "g") {
    my $b = "x" x 131072;
    for (1..256) { my $o = 0; while ($o < 131072) { $o += syswrite(C, $b, 131072 - $o, $o); } } }
  else { syswrite(C, "k"); }
  close C;
}
"""
FLAP = """
use Socket; $| = 1;
while (<STDIN>) {
  socket(S, PF_INET, SOCK_STREAM, 0); setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);
  bind(S, sockaddr_in($ARGV[0], INADDR_ANY)); listen(S, 5); print "listening\\n";
  <STDIN>; close S; print "closed\\n";
}
"""
# As a program, so that the namespace's socket is measured by the same code.
CLIENT = """
import json, socket, sys, time
host, port = sys.argv[1], int(sys.argv[2])
size = 32 << 20
def connect():
    sock = socket.create_connection((host, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
def put():
    block = bytes(1 << 20)
    with connect() as sock:
        began = time.perf_counter()
        sock.sendall(b"p")
        for _ in range(size >> 20):
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
        return size / (time.perf_counter() - began) / 1e6
def get():
    with connect() as sock:
        began = time.perf_counter()
        sock.sendall(b"g")
        got = 0
        while part := sock.recv(1 << 20):
            got += len(part)
        return got / (time.perf_counter() - began) / 1e6
def reach(count=50):
    began = time.perf_counter()
    for _ in range(count):
        with connect() as sock:
            sock.sendall(b"c")
            sock.recv(1)
    return (time.perf_counter() - began) / count * 1e3
print(json.dumps([put(), get(), reach()]))
"""


@contextlib.contextmanager
def inside(script: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    words = [VMGR, "exec", "-i", NAME, "--", "perl", "-e", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, bufsize=0) as process:
        try:
            yield process
        finally:
            process.terminate()


def line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], 60)[0]:
        raise SystemExit("bench: the machine says nothing")
    return process.stdout.readline()


def open_until(port: int, *, wanted: bool) -> None:
    """Wait until connecting works, or does not."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            found = True
        except OSError:
            found = False
        if found is wanted:
            return
    raise SystemExit(f"bench: port {port} does not {'open' if wanted else 'close'}")


def measured(*before: str, host: str, port: int) -> list[float]:
    command = [*before, sys.executable, "-c", CLIENT, host, str(port)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300)
    result: list[float] = json.loads(done.stdout)
    return result


def namespace(client: Client) -> list[str] | None:
    """What runs a command in the switchboard's namespace."""
    try:
        record = msgspec.json.decode(client.paths.network_record.read_bytes())
    except OSError:
        return None
    holder = str(record["holder"]["pid"])
    return ["nsenter", "--user", "--net", f"--target={holder}", "--preserve-credentials", "--"]


def noticed(rounds: int) -> Row:
    row = Row("port there after its machine said so", "ms", goal=f"<= {NOTICED_GOAL_MS} ms")
    with inside(FLAP, FLAPPING) as process:
        assert process.stdin is not None
        for number in range(rounds + 1):
            process.stdin.write(b"\n")
            line(process)
            began = time.perf_counter()
            open_until(FLAPPING, wanted=True)
            if number:  # the first may come before the kernel is asked
                row.samples.append((time.perf_counter() - began) * 1e3)
            process.stdin.write(b"\n")
            line(process)
            open_until(FLAPPING, wanted=False)
    row.met = row.median is not None and row.median <= NOTICED_GOAL_MS
    return row


def measure(client: Client, image: str | None, rounds: int) -> list[Row]:
    machine = client.machine_create(CreateMachine(name=NAME, image=image))
    try:
        machine = client.machine_start(machine.name)
        assert machine.network is not None
        os.sync()
        with inside(SERVE, "0.0.0.0", PUBLIC) as one, inside(SERVE, "127.0.0.1", PRIVATE) as two:  # noqa: S104 (in the machine)
            line(one)
            line(two)
            open_until(PUBLIC, wanted=True)
            open_until(PRIVATE, wanted=True)
            enter = namespace(client) if machine.network.kind == "switchboard" else None
            direct, forwarded, agent = [], [], []
            for _ in range(rounds):
                if enter is not None:
                    direct.append(measured(*enter, host=machine.network.address, port=PUBLIC))
                    forwarded.append(measured(host="127.0.0.1", port=PUBLIC))
                agent.append(measured(host="127.0.0.1", port=PRIVATE))
        rows = [noticed(rounds)]
    finally:
        client.machine_remove(machine.name, force=True)
    for way, found in (("direct", direct), ("forwarded", forwarded), ("through the agent", agent)):
        if not found:
            continue
        puts, gets, reaches = map(list, zip(*found, strict=True))
        rows += [
            Row(f"{way}: to the machine", "MB/s", puts),
            Row(f"{way}: from the machine", "MB/s", gets),
            Row(f"{way}: connect and a byte", "ms", reaches),
        ]
        if way == "forwarded":
            for what, at, samples in (("to", 0, puts), ("from", 1, gets)):
                row = Row(f"  {what} the machine, of direct", "x")
                row.samples = ratios(samples, [one[at] for one in direct])
                row.goal, row.met = f">= {THROUGHPUT_GOAL}", (row.median or 0) >= THROUGHPUT_GOAL
                rows.append(row)
            row = Row("  connect and a byte, beyond direct", "ms")
            row.samples = [a - one[2] for a, one in zip(reaches, direct, strict=True)]
            row.goal = f"<= {CONNECT_GOAL_MS} ms"
            row.met = (row.median or 0) <= CONNECT_GOAL_MS
            rows.append(row)
    return rows
