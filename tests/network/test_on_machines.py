"""Machines in a network of their own making: a host with one way out, and an internet behind it.

Two network namespaces that the test makes stand for this computer's network and for the world, so
nothing leaves. Making them takes root.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, Home, kill_and_wait, short_directory
from tests.network.world import HOLD, NetworkedHome, started, within

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.getuid() != 0, reason="making networks takes root"),
]

INTERNET, LAN, HOST = "203.0.113.1", "192.168.77.1", "192.168.77.2"
PUBLIC = "203.0.113.9"  # the host's own, and no private one
LISTENER = """
import socket, threading
def echo(address):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 80))
    while True:
        data, client = sock.recvfrom(65535)
        sock.sendto(data, client)
def serve(address):
    listening = socket.create_server((address, 80))
    while True:
        client, _ = listening.accept()
        client.sendall(f"hello from {address}".encode())
        client.close()
for address in ADDRESSES:
    threading.Thread(target=echo, args=(address,)).start()
    threading.Thread(target=serve, args=(address,)).start()
print("ready", flush=True)
"""
ECHO = """
use Socket; $| = 1;
socket(my $l, PF_INET, SOCK_STREAM, 0); bind($l, sockaddr_in(4444, INADDR_ANY)); listen($l, 5);
print "ready\\n"; accept(my $c, $l); while (sysread($c, my $line, 100)) { syswrite($c, $line) }
"""
SAY = "exec 3<>/dev/tcp/{}/80 && cat <&3"


class Talking(NetworkedHome):
    """Its machines connect to what serves port 80."""

    internet: int = 0

    def says(self, machine: str, address: str) -> tuple[int, str]:
        done = self.vmgr(
            "exec", machine, "--", "timeout", "60", "bash", "-c", SAY.format(address), check=False
        )
        return done.returncode, (done.stdout + done.stderr).decode()


@pytest.fixture(scope="module")
def world(shared_images: tuple[Path, Path]) -> Iterator[Talking]:
    with contextlib.ExitStack() as stack:
        hold = ("unshare", "--net", "--", *HOLD)
        host, internet = started(stack, *hold), started(stack, *hold)
        within(
            host,
            "ip link set lo up\n"
            f"ip link add up0 type veth peer name down0 netns {internet.pid}\n"
            f"ip address add {HOST}/24 dev up0\nip address add {PUBLIC}/32 dev lo\n"
            "ip link set up0 up",
        )
        within(
            internet,
            "ip link set lo up\n"
            f"ip address add {LAN}/24 dev down0\nip address add {INTERNET}/32 dev lo\n"
            "ip link set down0 up",
        )
        within(host, f"ip route add default via {LAN}")
        for where, addresses in ((internet, (INTERNET, LAN)), (host, (HOST, PUBLIC, "127.0.0.1"))):
            started(
                stack, "nsenter", f"--net=/proc/{where.pid}/ns/net", sys.executable, "-c",
                LISTENER.replace("ADDRESSES", repr(addresses)),
            )  # fmt: skip
        home = Talking(short_directory(), *shared_images)
        home.host, home.internet = host.pid, internet.pid
        # The kernel bundle is built with the outer network, where the mirrors are.
        builder = Home(short_directory(), *shared_images)
        stack.callback(builder.close)
        builder.vmgr("run", "debian-minimal", "--", "true", deadline=600)
        stack.callback(home.close)
        # `ping` and `ip` are in the larger image only; "b" and "i" have no need of them.
        for name, image, access in (
            ("a", "debian", "full"), ("b", "debian-minimal", "full"),
            ("i", "debian-minimal", "internet"), ("n", "debian", "none"),
        ):  # fmt: skip
            home.vmgr("create", name, "--image", image, *SMALL, "--net", access)
            home.vmgr("start", name)
        yield home


def test_what_each_access_reaches(world: Talking) -> None:
    assert world.says("a", INTERNET) == (0, f"hello from {INTERNET}")
    assert world.says("a", LAN) == (0, f"hello from {LAN}")
    assert world.says("i", INTERNET) == (0, f"hello from {INTERNET}")
    # Refused at once, not timed out: 124 would be timeout's.
    b = world.json("info", "b")["network"]["address"]
    for machine, address in (
        ("i", LAN), ("i", HOST), ("i", PUBLIC), ("i", b), ("i", "198.19.255.2"),
        ("n", INTERNET), ("n", LAN), ("n", b), ("a", "198.19.255.2"), ("a", "198.19.0.1"),
    ):  # fmt: skip
        code, said = world.says(machine, address)
        assert code == 1, (machine, address, said)
        assert "refused" in said or "No route" in said, said


def test_machines_know_each_others_names(world: Talking) -> None:
    world.vmgr("exec", "a", "--", "ping", "-c", "1", "-W", "30", "b")
    done = world.vmgr("exec", "a", "--", "getent", "ahostsv4", "b.vmgr.internal")
    assert world.json("info", "b")["network"]["address"] in done.stdout.decode()
    unknown = "nobody.vmgr.internal"  # without the domain the world would be asked, too
    assert world.vmgr("exec", "a", "--", "getent", "hosts", unknown, check=False).returncode == 2
    assert world.vmgr("exec", "n", "--", "getent", "hosts", "b", check=False).returncode == 2


def test_a_denied_connection_is_an_event(world: Talking) -> None:
    since = world.last_event()
    world.says("i", LAN)
    event = world.wait_for_event("network.denied", since)
    assert event["machine"] == "i"
    # What was denied before is counted, and told after a while.
    event["data"].pop("count", None)
    assert event["data"] == {"address": LAN, "protocol": "tcp", "port": 80}


def test_a_machine_cannot_speak_under_another_address(world: Talking) -> None:
    b = world.json("info", "b")["network"]["address"]
    script = f"ip address add {b}/32 dev eth0; ping -c 2 -i 0.2 -W 2 -I {b} 198.19.0.1; r=$?; "
    script += f"ip address del {b}/32 dev eth0; exit $r"
    assert world.vmgr("exec", "a", "--", "sh", "-c", script, check=False).returncode == 1
    mac = "ip link set eth0 address 02:00:00:00:00:77; ping -c 1 -W 1 198.19.0.1"
    world.vmgr("exec", "n", "--", "sh", "-c", mac, check=False)  # it harms nobody else
    world.vmgr("exec", "a", "--", "ping", "-c", "1", "-W", "30", "b")


def test_what_is_larger_than_the_path_takes_arrives(world: Talking) -> None:
    """A VPN's path, say: what a machine sends knows nothing of it."""
    ask = "use IO::Socket::INET; my $s = IO::Socket::INET->new(Proto => 'udp', PeerAddr => "
    ask += f"'{INTERNET}:80'); $s->send('x' x 1472); $s->recv(my $d, 9999); print length($d)"
    for mtu in (1280, 1500):
        for pid, name in ((world.host, "up0"), (world.internet, "down0")):
            enter = ["nsenter", f"--net=/proc/{pid}/ns/net"]
            subprocess.run([*enter, "ip", "link", "set", name, "mtu", str(mtu)], check=True)
        answer = world.vmgr("exec", "a", "--", "timeout", "60", "perl", "-e", ask, check=False)
        assert answer.stdout == b"1472", (mtu, answer)
        assert world.says("a", INTERNET) == (0, f"hello from {INTERNET}")


def test_what_others_have_open_to_a_machine_ends_with_its_permission(world: Talking) -> None:
    serving = world.start("exec", "b", "--", "perl", "-e", ECHO)
    assert serving.stdout is not None
    assert serving.stdout.readline() == b"ready\n"
    b = world.json("info", "b")["network"]["address"]
    script = f"exec 3<>/dev/tcp/{b}/4444; "
    script += 'while read line; do echo "$line" >&3; '
    script += 'read -t 60 answer <&3 || answer=$?; echo "$answer"; done'
    user = world.start("exec", "a", "--", "bash", "-c", script, bufsize=0)
    assert user.stdin is not None
    assert user.stdout is not None

    def answer(word: bytes) -> bytes:
        assert user.stdin is not None
        assert user.stdout is not None
        user.stdin.write(word + b"\n")
        return user.stdout.readline()

    try:
        assert answer(b"one") == b"one\n"
        world.vmgr("net", "set", "b", "--host-access", "4445")  # another change: it goes on
        assert answer(b"two") == b"two\n"
        world.vmgr("net", "set", "b", "--net", "internet")
        assert answer(b"three") == b"1\n", "refused; what is kept waiting ends with 142"
    finally:
        world.vmgr("net", "set", "b", "--net", "full", "--host-access", "none")
        for process in (user, serving):
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    "victims",
    [
        ["switchboard"], ["egress"], ["helper"], ["holder"], ["holder", "switchboard"],
        ["helper", "switchboard"], ["helper", "holder"],
    ],
)  # fmt: skip
def test_killed_processes_come_back(world: Talking, victims: list[str]) -> None:
    pids = {
        name: world.helper_pid() if name == "helper" else world.network_process(name)
        for name in victims
    }
    since = world.last_event()
    for name in victims:
        kill_and_wait(pids[name])
    if "helper" not in victims:
        world.wait_for_event("network.restarted", since)
    world.vmgr("exec", "a", "--", "true")
    assert world.says("a", INTERNET) == (0, f"hello from {INTERNET}")
    world.vmgr("exec", "a", "--", "ping", "-c", "1", "-W", "30", "b")
    assert world.says("i", LAN)[0] == 1


SERVE = """
use IO::Socket::INET;
my $listening = IO::Socket::INET->new(LocalPort => $ARGV[0], Listen => 64, ReuseAddr => 1) or die;
$| = 1; print "listening\\n";
while (my $client = $listening->accept) {
  my @asked = <$client>;  # to its end: the client has half-closed
  print $client "machine got: @asked";
  close $client;
}
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as sock:
    sock.sendall(b"question")
    sock.shutdown(socket.SHUT_WR)
    answer = b""
    while part := sock.recv(4096):
        answer += part
print(answer.decode(), end="")
"""


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended however the test goes."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def ask(world: Talking, address: str, port: int) -> str:
    done = subprocess.run(
        [
            "nsenter", f"--net=/proc/{world.host}/ns/net", sys.executable, "-c", ASK, address,
            str(port),
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done.stdout or done.stderr.strip().splitlines()[-1]


def test_ports_of_the_host_lead_into_a_machine(world: Talking) -> None:
    # Else the machine's port would take another number of its own whenever this one is free.
    world.vmgr("config", "set", "ports.auto", "off")
    with ended(world.start("exec", "a", "--", "perl", "-e", SERVE, "80")) as serving:
        assert serving.stdout is not None
        assert select.select([serving.stdout], [], [], 60)[0]
        assert serving.stdout.readline() == b"listening\n"
        world.vmgr("port", "add", "a", "8080:80")
        for address in ("127.0.0.1", "::1"):
            assert ask(world, address, 8080) == "machine got: question"
        (port,) = world.json("port", "ls", "a")
        assert port["open"]
        again = world.vmgr("port", "add", "b", "8080:80", check=False)
        assert b"leads to machine a already" in again.stderr
        taken = world.vmgr("port", "add", "a", f"{HOST}:80:80", check=False)
        assert b"cannot be had" in taken.stderr
        assert b"Connection refused" in ask(world, HOST, 8080).encode(), "only this computer"
        # It is served while there is no helper, by another switchboard, and after both have gone.
        kill_and_wait(world.helper_pid())
        assert ask(world, "127.0.0.1", 8080) == "machine got: question"
        assert world.json("port", "ls", "a")[0]["open"]
        since = world.last_event()
        kill_and_wait(world.network_process("switchboard"))
        world.wait_for_event("port.opened", since)
        assert ask(world, "127.0.0.1", 8080) == "machine got: question"
        world.vmgr("port", "rm", "a", "8080:80")
        assert "refused" in ask(world, "127.0.0.1", 8080)
    world.vmgr("config", "unset", "ports.auto")


def test_a_port_that_is_asked_for_is_not_one_that_is_there_by_itself(world: Talking) -> None:
    with ended(world.start("exec", "a", "--", "perl", "-e", SERVE, "8090")) as serving:
        assert serving.stdout is not None
        since = world.last_event()
        assert select.select([serving.stdout], [], [], 60)[0]
        assert serving.stdout.readline() == b"listening\n"
        while not world.json("port", "ls", "a"):
            world.wait_for_event("port.opened", since)
        assert ask(world, "127.0.0.1", 8090) == "machine got: question"
        # By another machine, even: that one's takes another number.
        world.vmgr("port", "add", "b", "8090:80")
        (asked,) = [p for p in world.json("port", "ls", "b") if not p["automatic"]]
        assert asked["open"]
        world.vmgr("port", "rm", "b", "8090:80")


def test_the_network_ends_with_the_last_machine(world: Talking) -> None:
    for name in ("a", "b", "i", "n"):
        world.vmgr("kill", name)
    world.vmgr("helper", "stop")
    world.wait_for_no("vmgr.helper")
    assert world.processes() == []
