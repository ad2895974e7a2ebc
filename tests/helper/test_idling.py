"""Machines in which nothing happens are suspended, where that is asked for, and wake when used."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import SMALL
from tests.helper.test_fork import shell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Home

pytestmark = pytest.mark.vm

MEMORY = "/tmp/memory"  # noqa: S108 (in the machine)
SERVER = """
use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalPort => 8000, Listen => 5, ReuseAddr => 1) or die;
while (my $client = $server->accept) { my $line = <$client>; print $client "got $line"; }
"""


@pytest.fixture(scope="module")
def idle(module_home: Home) -> Iterator[Home]:
    """A home with a machine `web` that suspends soon."""
    home = module_home
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "web")
    home.vmgr("start", "web")
    home.vmgr("config", "set", "idle.suspend_after", "1")
    yield home
    home.vmgr("rm", "-f", "web")


class Events:
    """The helper's events from now on."""

    def __init__(self, home: Home) -> None:
        self.process = home.start("events", "--json")

    def wait(self, kind: str) -> dict[str, Any]:
        """The next event of that kind; the test's own deadline ends a wait for nothing."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["kind"] == kind:
                return event
        pytest.fail("the events have ended")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def events(idle: Home) -> Iterator[Events]:
    made = Events(idle)
    yield made
    made.close()


def test_an_idle_machine_is_suspended_and_wakes_when_used(idle: Home, events: Events) -> None:
    home = idle
    shell(home, "web", "echo kept > /tmp/memory")
    assert events.wait("machine.idle")["machine"] == "web"
    assert home.json("info", "web")["status"] == "suspended"
    assert home.vmms() == []
    assert shell(home, "web", "cat /tmp/memory") == ["kept"]
    assert home.json("info", "web")["started_from"] == "suspended"
    events.wait("machine.idle")
    # Ten at once wake it once.
    clients = [home.start("exec", "web", "--", "cat", MEMORY) for _ in range(10)]
    assert [client.communicate(timeout=60)[0] for client in clients] == [b"kept\n"] * 10


def test_a_machine_in_use_is_not_idle(idle: Home, events: Events) -> None:
    home = idle
    shell(home, "web", "true")
    client = home.start("exec", "web", "--", "cat")
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(b"here\n")
    client.stdin.flush()
    assert client.stdout.readline() == b"here\n"
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(4)  # four times what it takes an idle one
    assert home.json("info", "web")["status"] == "running"
    assert client.communicate(timeout=60) == (b"", b"")
    events.wait("machine.idle")


def said(port: int, word: bytes) -> bytes:
    """What the server in the machine answers."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as client,
        client.makefile("rb") as answer,
    ):
        client.sendall(word + b"\n")
        return answer.readline().rstrip()


@pytest.mark.skipif(not os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="takes taps")
def test_a_connection_wakes_a_machine_and_keeps_it_awake(idle: Home, events: Events) -> None:
    home = idle
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    home.vmgr("port", "add", "web", f"{port}:8000")
    home.vmgr("exec", "-d", "web", "--", "perl", "-e", SERVER)
    shell(home, "web", "until perl -MIO::Socket::INET -e "
          "'IO::Socket::INET->new(\"127.0.0.1:8000\") or exit 1'; do sleep 0.1; done")  # fmt: skip
    events.wait("machine.idle")
    for word in (b"one", b"two"):
        assert said(port, word) == b"got " + word
        events.wait("machine.idle")
    # A new helper holds the port as well.
    home.kill_helper()
    home.vmgr("ls")
    assert said(port, b"three") == b"got three"
    home.vmgr("kill", "web")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=60)
    home.vmgr("port", "rm", "web", str(port))
    home.vmgr("start", "web")


def test_never_is_the_default(idle: Home) -> None:
    home = idle
    home.vmgr("config", "unset", "idle.suspend_after")
    assert home.json("config", "get", "idle.suspend_after")["value"] == 0
