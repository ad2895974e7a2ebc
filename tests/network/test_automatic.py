"""Ports that appear by themselves, on a real machine: on taps for root, else on QEMU's network."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import SMALL, Home, kill_and_wait

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = pytest.mark.vm
ALL = "0.0.0.0"  # noqa: S104 (in the machine)

# Answers when its client has half-closed. `reset`: resets it. `many N`: N ports from PORT.
SERVE = """
use IO::Socket::IP; $| = 1;
my ($kind, $address, $port, $count) = @ARGV;
my @all = map { IO::Socket::IP->new(LocalHost => $address, LocalPort => $port + $_, Listen => 64,
    ReuseAddr => 1, V6Only => 1) or die $@ } 0 .. ($count || 1) - 1;
print "listening\\n";
if ($kind eq "many") { sleep 1000 }
while (my $client = $all[0]->accept) {
  if ($kind eq "reset") {
    setsockopt($client, SOL_SOCKET, SO_LINGER, pack("ii", 1, 0)); sysread($client, my $x, 1); }
  elsif ($kind eq "told") { while (sysread($client, my $x, 9)) {} print "client: $!\\n"; }
  else { my @asked = <$client>; print $client "machine got: @asked"; }
  close $client;
}
"""
ECHO = """
use IO::Socket::IP; $| = 1;
my $sock = IO::Socket::IP->new(LocalHost => $ARGV[0], LocalPort => $ARGV[1], Proto => "udp") or die;
print "listening\\n";
while (defined(my $from = $sock->recv(my $data, 65535))) { $sock->send("echo $data", 0, $from); }
"""


# Opens and closes a port until its input ends, as often as it can; then leaves it open.
FLAP = """
use IO::Socket::IP; use IO::Select; $| = 1; print "listening\\n";
my ($stop, $sock, $turns) = (IO::Select->new(\\*STDIN), undef, 0);
until ($turns > 400 && $stop->can_read(0)) {
  close $sock if $sock; $turns++;
  $sock = IO::Socket::IP->new(LocalHost => "127.0.0.1", LocalPort => $ARGV[0], Listen => 1,
      ReuseAddr => 1) or die $@;
}
print "done\\n"; sleep 1000;
"""


@pytest.fixture(scope="module")
def world(module_home: Home) -> Home:
    module_home.vmgr("create", "a", "--image", "debian-minimal", "--start", *SMALL)
    return module_home


@contextlib.contextmanager
def inside(world: Home, script: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the machine, which says a line when it listens."""
    words = ["exec", "a", "--", "perl", "-e", script, *map(str, arguments)]
    with world.start(*words, bufsize=0) as process:
        assert process.stdout is not None
        try:
            assert read_line(process) == "listening", process.stderr
            yield process
        finally:
            process.terminate()


def read_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0]
    return process.stdout.readline().decode().strip()


def follow(world: Home) -> subprocess.Popen[bytes]:
    return world.start("events", "--json", "--since", "0", bufsize=0)


def wait_for(world: Home, kind: str, guest_port: int | None = None) -> dict[str, Any]:
    """The latest event of a kind about a port, once there is one; ports are used once each."""
    with follow(world) as following:
        assert following.stdout is not None
        try:
            while select.select([following.stdout], [], [], 60)[0]:
                event: dict[str, Any] = json.loads(following.stdout.readline())
                data = event["data"]
                if event["kind"] == kind and guest_port in {None, data.get("guest_port")}:
                    return event
        finally:
            following.kill()
    pytest.fail(f"no {kind} came:\n{world.logs()}")


def free_port() -> int:
    """A port that nobody on this computer has, below those that are given out by themselves."""
    for port in range(20_000 + os.getpid() % 5_000, 32_000, 7):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            if port not in _taken:
                _taken.add(port)
                return port
    pytest.fail("no port is free")


_taken: set[int] = set()


def ask(address: str, port: int) -> str:
    with socket.create_connection((address, port), timeout=60) as sock:
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while part := sock.recv(4096):
            answer += part
    return answer.decode()


def own_address(world: Home) -> str:
    return world.vmgr("ip", "a").stdout.decode().strip()


@pytest.mark.parametrize("address", [ALL, "127.0.0.1", "::", "::1"])
def test_what_listens_appears_and_goes(world: Home, address: str) -> None:
    port = free_port()
    with inside(world, SERVE, "tcp", address, port):
        wait_for(world, "port.opened", port)
        for host in ("127.0.0.1", "::1", own_address(world)):
            assert ask(host, port) == "machine got: question", host
        shown = [p for p in world.json("port", "ls", "a") if p["guest_port"] == port]
        assert [(p["host_port"], p["automatic"], p["open"]) for p in shown] == [(port, True, True)]
        assert world.vmgr("open", "a", str(port)).stdout.decode() == f"http://localhost:{port}/\n"
    wait_for(world, "port.closed", port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=60)
    none = world.vmgr("open", "a", str(port), check=False)
    assert none.returncode == 1
    assert b"can be reached" in none.stderr


def test_a_taken_number_is_told(world: Home) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), inside(world, SERVE, "tcp", ALL, port):
        event = wait_for(world, "port.opened", port)
        other = event["data"]["port"]
        assert other != port
        assert "is taken" in event["data"]["problem"]
        assert ask("127.0.0.1", other) == "machine got: question"
        assert ask(own_address(world), port) == "machine got: question"
        assert (
            f"127.0.0.1:{other} to {port} (port {port}" in world.vmgr("info", "a").stdout.decode()
        )
        _taken.add(other)


@pytest.mark.parametrize("address", [ALL, "127.0.0.1"])
def test_resets_pass_both_ways(world: Home, address: str) -> None:
    port, told = free_port(), free_port()
    with (
        inside(world, SERVE, "reset", address, port),
        inside(world, SERVE, "told", address, told) as p,
    ):
        wait_for(world, "port.opened", port)
        wait_for(world, "port.opened", told)
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            sock.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        with socket.create_connection(("127.0.0.1", told), timeout=60) as sock:
            sock.sendall(b"x")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert read_line(p) == "client: Connection reset by peer"


@pytest.mark.parametrize("address", [ALL, "127.0.0.1"])
def test_datagrams_have_sessions(world: Home, address: str) -> None:
    port = free_port()
    with inside(world, ECHO, address, port):
        wait_for(world, "port.opened", port)
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                for _ in range(3)
            ]
            for number, client in enumerate(clients):
                client.settimeout(60)
                client.connect(("127.0.0.1", port))
                client.send(b"%d" % number + b"x" * 1_000 * number)
            for number, client in enumerate(clients):
                assert client.recv(65_535) == b"echo %d" % number + b"x" * 1_000 * number
    wait_for(world, "port.closed", port)


@pytest.mark.parametrize("address", [ALL, "127.0.0.1"])
def test_a_port_that_was_asked_for_leads_in(world: Home, address: str) -> None:
    port, host_port = free_port(), free_port()
    with inside(world, SERVE, "tcp", address, port):
        wait_for(world, "port.opened", port)
        world.vmgr("port", "add", "a", f"{host_port}:{port}")
        assert ask("127.0.0.1", host_port) == "machine got: question"
        assert ask("::1", host_port) == "machine got: question"
        wait_for(world, "port.closed", port)  # it need not be there twice
        world.vmgr("port", "rm", "a", f"{host_port}:{port}")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", host_port), timeout=60)


def test_a_killed_helper_takes_up_its_ports(world: Home) -> None:
    port, private = free_port(), free_port()
    with (
        inside(world, SERVE, "tcp", ALL, port),
        inside(world, SERVE, "tcp", "127.0.0.1", private),
    ):
        wait_for(world, "port.opened", port)
        wait_for(world, "port.opened", private)
        world.kill_helper()
        world.vmgr("ls")
        wait_for(world, "port.opened", private)  # of the new helper: its events begin anew
        assert ask("127.0.0.1", private) == "machine got: question"
        assert ask("127.0.0.1", port) == "machine got: question"
        assert {p["guest_port"] for p in world.json("port", "ls", "a")} == {port, private}


def test_the_setting_decides(world: Home) -> None:
    port, other = free_port(), free_port()
    with inside(world, SERVE, "tcp", "127.0.0.1", port), inside(world, SERVE, "tcp", "::1", other):
        wait_for(world, "port.opened", port)
        world.vmgr("config", "set", "ports.auto", str(other))
        wait_for(world, "port.closed", port)
        assert ask("127.0.0.1", other) == "machine got: question"
        world.vmgr("config", "unset", "ports.auto")
    bad = world.vmgr("config", "set", "ports.auto", "some", check=False)
    assert (bad.returncode, b"neither on, off nor a list" in bad.stderr) == (2, True)


def test_a_machine_that_opens_thousands_opens_a_hundred(world: Home) -> None:
    with inside(world, SERVE, "many", "127.0.0.1", 12_000, 900):
        wait_for(world, "port.limit")
        listed = world.json("port", "ls", "a")
        assert len(listed) == 100
        world.vmgr("exec", "a", "--", "true")
    world.vmgr("config", "set", "ports.auto", "off")
    world.vmgr("config", "unset", "ports.auto")


def test_a_port_that_comes_and_goes_all_the_time_is_followed_within_bounds(world: Home) -> None:
    """Nothing of the helper's is spent on it beyond its share, and other ports are served."""
    flapping, port = free_port(), free_port()
    with inside(world, FLAP, flapping) as process, inside(world, SERVE, "tcp", ALL, port):
        assert process.stdin is not None
        wait_for(world, "port.opened", port)
        assert ask("127.0.0.1", port) == "machine got: question"
        process.stdin.close()
        assert read_line(process) == "done"
        assert ask("127.0.0.1", port) == "machine got: question"
        # In the end what is there is what is shown.
        deadline = time.monotonic() + 60
        while flapping not in {p["guest_port"] for p in world.json("port", "ls", "a")}:
            assert time.monotonic() < deadline
    wait_for(world, "port.closed", port)
    told = 0
    with follow(world) as following:
        assert following.stdout is not None
        for line in following.stdout:
            data = json.loads(line)["data"]
            told += data.get("guest_port") == flapping
            if b'"port.closed"' in line and data["guest_port"] == port:
                break
        following.kill()
    assert 1 <= told < 400, "it changed 400 times at least, and each time was two changes"


def test_a_number_that_was_taken_meanwhile_is_told_and_shown(world: Home) -> None:
    """Another program took it while the machine did not run."""
    port, host_port = free_port(), free_port()
    world.vmgr("port", "add", "a", f"{host_port}:{port}")
    world.vmgr("stop", "a")
    with socket.create_server(("127.0.0.1", host_port)):
        since = world.last_event()
        world.vmgr("start", "a")
        event = world.wait_for_event("port.failed", since, port=host_port)
        assert f"port {host_port} of 127.0.0.1 cannot be had" in event["data"]["problem"]
        (shown,) = [p for p in world.json("port", "ls", "a") if p["host_port"] == host_port]
        assert not shown["open"]
    world.vmgr("port", "rm", "a", f"{host_port}:{port}")
    world.vmgr("port", "add", "a", f"{host_port}:{port}")
    with inside(world, SERVE, "tcp", ALL, port):
        assert ask("127.0.0.1", host_port) == "machine got: question"
    world.vmgr("port", "rm", "a", f"{host_port}:{port}")


def test_connections_end_with_the_machine(world: Home) -> None:
    port = free_port()
    with inside(world, SERVE, "told", "127.0.0.1", port):
        # Behind a thousand changes: the allowance is used up, and fills again.
        wait_for(world, "port.opened", port)
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            sock.sendall(b"x")
            (vmm,) = world.vmms()
            kill_and_wait(vmm)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        deadline = time.monotonic() + 60
        while world.json("info", "a")["ports"]:
            assert time.monotonic() < deadline
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=60)
