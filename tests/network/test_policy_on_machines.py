"""What a machine is held to, on a real one: allow-lists, host access, names, and their faults.

An internet with a resolver and servers, and a host with a LAN and an /etc of its own, are
namespaces that the test makes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, Home, kill_and_wait, short_directory
from tests.network.world import NetworkedHome, started, within
from tests.pasta import newer_pasta

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.getuid() != 0, reason="making networks takes root"),
]

ONE, TWO, THREE, RESOLVER, OTHER = (f"203.0.113.{n}" for n in (1, 2, 3, 53, 54))
LAN, HOST = "192.168.77.1", "192.168.77.2"
SIX, OTHER6, LAN6 = "2001:db8:9::1", "2001:db8:9::2", "fd12::1"
ZONE = {
    "one.example": [f"A {ONE}"],
    "two.example": [f"A {TWO}"],
    "deep.er.wild.example": ["CNAME edge.elsewhere.example"],
    "edge.elsewhere.example": [f"A {THREE}"],
    "rebind.example": [f"A {LAN}"],
    "six.example": [f"AAAA {SIX}"],
    "lan6.example": [f"AAAA {LAN6}"],
}
RULES = ("one.example:80", "*.wild.example", "rebind.example", "six.example", "lan6.example")
SERVING = str(Path(__file__).with_name("serving.py"))
TALK = (
    "exec", "p", "--", "timeout", "60", "bash", "-c",
    'exec 3<>"/dev/tcp/$0/80"; cat <&3 & while echo on >&3; do sleep 0.1; done',
)  # fmt: skip
"""Say something again and again, until the connection ends."""
UNTIL_REFUSED = 'while (exec 3<>"/dev/tcp/$0/80"); do sleep 0.1; done'
SEND = """use IO::Socket::IP; my ($where, $port, $times) = @ARGV;
for my $n (1 .. $times) {
  my $s = IO::Socket::IP->new(Type => SOCK_DGRAM, PeerHost => $where, PeerPort => $port) or die $@;
  defined $s->send("no. $n") and defined $s->recv(my $answer, 99) or die "$!";
  $answer =~ /no. $n$/ or die $answer;
  print "$answer\\n" if $n == $times;
}"""
SAY = 'exec 3<>"/dev/tcp/$0/$1" && read -r line <&3 && echo "$line"'


class World(NetworkedHome):
    internet: subprocess.Popen[bytes]
    stack: contextlib.ExitStack
    names: subprocess.Popen[bytes]

    def sh(self, script: str, *arguments: str) -> tuple[int, str]:
        """Run a script in the machine; what it said, and 124 when it hung."""
        done = self.vmgr(
            "exec", "p", "--", "timeout", "60", "bash", "-c", script, *arguments, check=False
        )
        return done.returncode, (done.stdout + done.stderr).decode()

    def says(self, where: str, port: int = 80) -> tuple[int, str]:
        """What a server says to the machine."""
        return self.sh(SAY, where, str(port))

    def sends(self, where: str, port: int, times: int = 1) -> tuple[int, str]:
        """What a server answers to datagrams, each from a port of its own."""
        return self.sh(f"timeout 60 perl -e '{SEND}' $0 $1 $2", where, str(port), str(times))

    def resolves(self, name: str) -> str:
        return self.sh('getent ahostsv4 "$0"; echo done', name)[1].split()[0]

    def serve_names(self, address: str, zone: dict[str, list[str]]) -> subprocess.Popen[bytes]:
        return started(
            self.stack, "nsenter", f"--net=/proc/{self.internet.pid}/ns/net", sys.executable,
            SERVING, "names", f"{address}:53", json.dumps(zone),
        )  # fmt: skip


@pytest.fixture(scope="module")
def world(shared_images: tuple[Path, Path]) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        home = World(short_directory(), *shared_images)
        home.stack = stack
        etc = home.root / "etc"
        hold = f"mkdir {etc} && mount -t tmpfs etc {etc} && cp -a /etc/. {etc}/ && "
        hold += f"rm -f {etc}/resolv.conf && echo nameserver {RESOLVER} > {etc}/resolv.conf && "
        hold += f"mount --bind {etc} /etc && echo ready && exec sleep infinity"
        host = started(stack, "unshare", "--net", "--mount", "--", "sh", "-c", hold)
        internet = started(
            stack, "unshare", "--net", "--", "sh", "-c", "echo ready; exec sleep infinity"
        )
        home.host, home.internet, home.namespaces = host.pid, internet, ("net", "mount")
        within(
            host,
            "ip link set lo up\n"
            f"ip link add up0 type veth peer name down0 netns {internet.pid}\n"
            f"ip address add {HOST}/24 dev up0\nip link set up0 up\n"
            "ip address add 2001:db8:1::2/64 dev up0 nodad\n"
            "ip address add fd12::2/64 dev up0 nodad\n",
        )
        addresses = (ONE, TWO, THREE, RESOLVER, OTHER)
        within(
            internet,
            f"ip link set lo up\nip address add {LAN}/24 dev down0\nip link set down0 up\n"
            "ip address add 2001:db8:1::1/64 dev down0 nodad\n"
            f"ip address add {LAN6}/64 dev down0 nodad\n"
            f"ip address add {SIX}/128 dev lo\nip address add {OTHER6}/128 dev lo\n"
            + "\n".join(f"ip address add {address}/32 dev lo" for address in addresses),
        )
        within(host, f"ip route add default via {LAN}; ip route add default via 2001:db8:1::1")
        for where, places in (
            (
                internet,
                [
                    f"{a}:{port}"
                    for a in (ONE, TWO, THREE, LAN, SIX, OTHER6, LAN6)
                    for port in (80, 443)
                ],
            ),
            (host, ["127.0.0.1:5432", "127.0.0.1:5433"]),
        ):
            started(
                stack, "nsenter", f"--net=/proc/{where.pid}/ns/net", sys.executable, SERVING,
                "greet", *places,
            )  # fmt: skip
        home.names = home.serve_names(RESOLVER, ZONE)
        # The kernel bundle is built with the outer network, where the mirrors are.
        builder = Home(short_directory(), *shared_images)
        stack.callback(builder.close)
        builder.vmgr("run", "debian-minimal", "--", "true", deadline=600)
        stack.callback(home.close)
        allowed = [word for rule in RULES for word in ("--allow", rule)]
        home.vmgr(
            "create", "p", "--image", "debian-minimal", *SMALL, "--net", "internet", *allowed,
            "--host-access", "5432",
        )  # fmt: skip
        home.vmgr("start", "p")
        home.vmgr("create", "other", "--image", "debian-minimal", *SMALL)
        home.vmgr("start", "other")
        yield home


def refused(answer: tuple[int, str]) -> bool:
    """Whether a connection was refused at once: 124 would be timeout's."""
    return answer[0] == 1 and ("refused" in answer[1] or "No route" in answer[1])


def test_what_is_on_the_list_is_reached_and_nothing_else(world: World) -> None:
    assert world.says("one.example") == (0, f"hello from {ONE}:80\n")
    assert world.says("deep.er.wild.example", 443) == (0, f"hello from {THREE}:443\n")
    assert world.says(ONE) == (0, f"hello from {ONE}:80\n"), "pinned"
    for where, port in ((ONE, 443), (TWO, 80), (LAN, 80), (HOST, 80), (RESOLVER, 53)):
        assert refused(world.says(where, port)), (where, port)
    for name in ("two.example", "wild.example", "edge.elsewhere.example", "no.vmgr.internal"):
        assert world.resolves(name) == "done", name
    assert world.resolves("rebind.example") == "done", "a LAN is not opened by a name"
    ask = 'use IO::Socket::INET; my $s = IO::Socket::INET->new(Proto => "udp", '
    ask += f'PeerAddr => "{RESOLVER}", PeerPort => 53); $s->send("x"); $s->recv(my $a, 9); print $!'
    assert "No route" in world.sh(f"timeout 60 perl -e '{ask}'")[1]


def test_the_same_over_ipv6(world: World) -> None:
    assert world.says("six.example") == (0, f"hello from {SIX}:80\n")
    for where in (OTHER6, LAN6, "fd00::2", "2001:db8:1::2"):
        assert refused(world.says(where)), where
    assert "done" in world.sh('getent ahostsv6 "$0"; echo done', "lan6.example")[1].split()[0]


def test_denials_are_told_by_name(world: World) -> None:
    since = world.last_event()
    assert world.says("one.example")[0] == 0
    assert refused(world.says("one.example", 444))
    event = world.wait_for_event("network.denied", since, port=444)
    assert event["machine"] == "p"
    assert event["data"] == {"name": "one.example", "address": ONE, "protocol": "tcp", "port": 444}
    world.resolves("secret.example")
    world.wait_for_event("network.denied", since, name="secret.example", protocol="dns")
    denied = world.json("info", "p")["network"]["denied"]
    assert any(one["name"] == "one.example" and one["port"] == 444 for one in denied)
    assert b"one.example" in world.vmgr("net", "show", "p").stdout
    assert b"secret.example" in world.vmgr("info", "p").stdout


def test_it_changes_while_the_machine_runs(world: World) -> None:
    assert refused(world.says(TWO))
    world.vmgr("net", "allow", "p", f"{TWO}:80", "two.example:443")
    assert world.says(TWO) == (0, f"hello from {TWO}:80\n")
    assert world.says("two.example", 443) == (0, f"hello from {TWO}:443\n")
    assert world.says(ONE) == (0, f"hello from {ONE}:80\n"), "what was pinned stays"
    # A connection that is open ends with the rule that let it through.
    with world.start(*TALK, TWO, bufsize=0) as open_:
        assert open_.stdout is not None
        assert open_.stdout.readline() == f"hello from {TWO}:80\n".encode()
        assert open_.stdout.readline() == b"on\n"
        world.vmgr("net", "disallow", "p", f"{TWO}:80")
        assert open_.wait(120) not in {0, 124}
    assert refused(world.says(TWO))
    assert world.says("one.example") == (0, f"hello from {ONE}:80\n")
    again = world.vmgr("net", "disallow", "p", f"{TWO}:80", check=False)
    assert again.returncode == 1
    assert b"is not on the allow-list" in again.stderr
    wrong = world.vmgr("net", "allow", "p", "10.0.0.300", check=False)
    assert wrong.returncode == 2
    world.vmgr("net", "disallow", "p", "two.example:443")
    assert world.json("net", "show", "p")["allow"] == list(RULES)


def test_ports_of_the_host_that_it_was_given(world: World) -> None:
    assert world.says("host.vmgr.internal", 5432) == (0, "hello from 127.0.0.1:5432\n")
    assert refused(world.says("host.vmgr.internal", 5433))
    # More connections than there are sockets for, one after another.
    script = "for n in {1..260}; do exec 3<>/dev/tcp/198.19.0.2/5432 && read -r line <&3 && "
    script += "exec 3>&- || exit 1; done; echo $line"
    assert world.sh(script) == (0, "hello from 127.0.0.1:5432\n")
    world.vmgr("net", "set", "p", "--host-access", "5433")
    assert world.says("host.vmgr.internal", 5433) == (0, "hello from 127.0.0.1:5433\n")
    assert refused(world.says("host.vmgr.internal", 5432))
    world.vmgr("net", "set", "p", "--host-access", "none")
    assert world.resolves("host.vmgr.internal") == "done"
    assert refused(world.says("198.19.0.2", 5433))
    world.vmgr("net", "set", "p", "--host-access", "5432")


def test_udp_ports_of_the_host_that_it_was_given(world: World) -> None:
    assert "No route" in world.sends("198.19.0.2", 5433)[1]
    world.vmgr("net", "set", "p", "--host-access", "5432,5433/udp")
    assert world.json("net", "show", "p")["host_access_udp"] == [5433]
    assert b"5432, 5433/udp" in world.vmgr("net", "show", "p").stdout
    # More ports of the machine than a session each is kept for.
    assert world.sends("host.vmgr.internal", 5433, 200) == (
        0, "hello from 127.0.0.1:5433: no. 200\n",
    )  # fmt: skip
    assert world.sends("fd76:6d67:7200::2", 5433)[0] == 0, "over IPv6, too"
    assert "No route" in world.sends("198.19.0.2", 5432)[1]
    assert refused(world.says("host.vmgr.internal", 5433))
    for pid in (world.helper_pid(), world.network_process("switchboard")):
        kill_and_wait(pid)
    world.vmgr("info", "p")
    assert world.sends("host.vmgr.internal", 5433) == (0, "hello from 127.0.0.1:5433: no. 1\n")
    world.vmgr("net", "set", "p", "--host-access", "5432")
    assert "No route" in world.sends("198.19.0.2", 5433)[1]


@pytest.mark.parametrize("victims", [["switchboard"], ["egress"], ["helper", "switchboard"]])
def test_it_is_held_to_it_whoever_dies(world: World, victims: list[str]) -> None:
    assert world.says("one.example")[0] == 0
    pids = {
        name: world.helper_pid() if name == "helper" else world.network_process(name)
        for name in victims
    }
    since = world.last_event()
    for name in victims:
        kill_and_wait(pids[name])
    if "helper" not in victims:
        world.wait_for_event("network.restarted", since)
    world.vmgr("exec", "p", "--", "true")
    assert world.says(ONE) == (0, f"hello from {ONE}:80\n"), "a name that was resolved before"
    assert refused(world.says(TWO))
    assert world.resolves("two.example") == "done"
    assert world.says("host.vmgr.internal", 5432) == (0, "hello from 127.0.0.1:5432\n")


def test_a_connection_ends_with_its_egress(world: World) -> None:
    assert world.says("one.example")[0] == 0
    with world.start(*TALK, ONE, bufsize=0) as talking:
        assert talking.stdout is not None
        assert talking.stdout.readline() == f"hello from {ONE}:80\n".encode()
        assert talking.stdout.readline() == b"on\n"
        kill_and_wait(world.network_process("egress"))
        assert talking.wait(120) not in {0, 124}
    assert world.says("one.example")[0] == 0


def test_a_resolver_that_is_down_is_said(world: World) -> None:
    world.names.send_signal(signal.SIGSTOP)
    try:
        assert world.resolves("one.example") == "done"
    finally:
        world.names.send_signal(signal.SIGCONT)
    assert world.resolves("one.example") == ONE


def test_a_machine_without_a_network_is_told_at_once(world: World) -> None:
    world.vmgr("net", "set", "other", "--net", "none")
    since = world.last_event()
    # Each would take seconds if it was not refused, and the whole longer than there is.
    script = "for n in {1..20}; do getent ahosts n$n.example; done; "
    script += "perl -e 'use IO::Socket::INET; for (1..20) { my $s = IO::Socket::INET->new(Proto => "
    script += f'"udp", PeerAddr => "{ONE}", PeerPort => 9); $s->send("x"); $s->recv(my $a, 9) }}\''
    script += "; echo done"
    done = world.vmgr("exec", "other", "--", "timeout", "60", "bash", "-c", script)
    assert done.stdout == b"done\n"
    event = world.wait_for_event("network.denied", since, name="n1.example")
    assert event["machine"] == "other"


def test_a_machine_that_floods_the_resolver_is_bounded(world: World) -> None:
    world.vmgr("net", "set", "other", "--net", "full")
    flood = 'use IO::Socket::INET; my $s = IO::Socket::INET->new(Proto => "udp", '
    flood += 'PeerAddr => "198.19.0.1", PeerPort => 53); $| = 1; print "flooding\\n"; my $n = 0; '
    flood += 'while (!-e "/tmp/enough") { $n++; $s->send(pack("n6", $n & 65535, 256, 1, 0, 0, 0) . '
    flood += 'pack("C/a*C/a*x", "n$n", "example") . pack("n2", 1, 1)) }'
    with world.start("exec", "p", "--", "timeout", "100", "perl", "-e", flood, bufsize=0) as asking:
        try:
            assert asking.stdout is not None
            assert select.select([asking.stdout], [], [], 60)[0]
            for _ in range(3):
                done = world.vmgr("exec", "other", "--", "getent", "ahostsv4", "two.example")
                assert TWO in done.stdout.decode()
        finally:
            world.vmgr("exec", "p", "--", "touch", "/tmp/enough")  # noqa: S108 (the machine's)
    assert world.says("one.example")[0] == 0
    # However many names: what is kept of them is bounded.
    assert len(world.json("info", "p")["network"]["denied"]) <= 32


def test_an_address_that_the_host_gets_is_the_hosts(world: World) -> None:
    """What is public and the host's own is none of the internet, also once it has come later."""
    world.vmgr("net", "set", "other", "--net", "internet")
    serving = started(
        world.stack, "nsenter", f"--net=/proc/{world.host}/ns/net", sys.executable, SERVING,
        "greet", "0.0.0.0:80",
    )  # fmt: skip
    within_host(world, "ip address add 198.51.100.7/32 dev lo")
    refusal = world.vmgr(
        "exec", "other", "--", "timeout", "60", "bash", "-c", UNTIL_REFUSED, "198.51.100.7"
    )
    assert b"refused" in refusal.stderr
    # Another switchboard is told as well, although the machine was plugged in before.
    since = world.last_event()
    kill_and_wait(world.network_process("switchboard"))
    world.wait_for_event("network.restarted", since)
    again = world.vmgr(
        "exec", "other", "--", "timeout", "60", "bash", "-c", SAY, "198.51.100.7", "80", check=False
    )
    assert b"refused" in again.stderr
    within_host(world, "ip address del 198.51.100.7/32 dev lo")
    serving.kill()


def test_the_hosts_resolver_is_followed(world: World) -> None:
    assert world.resolves("one.example") == ONE
    world.serve_names(OTHER, {"one.example": [f"A {THREE}"]})
    swap = f"echo 'nameserver {OTHER}' > /etc/vpn.conf; echo 'search corp.example' >> /etc/vpn.conf"
    swap += (
        "; ln -s /etc/vpn.conf /etc/resolv.conf.new; mv -T /etc/resolv.conf.new /etc/resolv.conf"
    )
    since = world.last_event()
    within_host(world, swap)
    assert world.resolves("one.example") == THREE
    world.wait_for_event("network.resolver", since)
    assert "corp.example" in world.sh("cat /etc/resolv.conf")[1]
    within_host(world, f"echo 'nameserver {RESOLVER}' > /etc/vpn.conf")
    assert world.resolves("one.example") == ONE


def within_host(world: World, command: str) -> None:
    subprocess.run(world.inside("sh", "-ec", command), check=True)


def test_pasta_leads_to_the_same(world: World) -> None:
    pasta, sbin = newer_pasta(), "/usr/local/sbin"
    put = f"mount -t tmpfs pasta {sbin} && cp {pasta} {sbin}/pasta"
    subprocess.run(world.inside("sh", "-ec", put), check=True)
    world.vmgr("config", "set", "network.egress", "pasta")
    since = world.last_event()
    kill_and_wait(world.network_process("egress"))
    world.wait_for_event("network.restarted", since, process="egress")
    checks = {check["name"]: check["summary"] for check in world.json("doctor")["checks"]}
    assert checks["internet"] == "pasta leads there"
    assert world.says("one.example") == (0, f"hello from {ONE}:80\n")
    assert world.says("six.example") == (0, f"hello from {SIX}:80\n")
    # What it leads to by itself: this computer's loopback, at the gateway's addresses.
    world.vmgr("net", "set", "p", "--net", "full", "--allow-any")
    for where in ("198.19.255.2", "fd00::2", "fd00::1", "127.0.0.1"):
        assert world.says(where, 5432)[0] == 1, where
    assert reached_inside(world, ONE, 80)
    for where in ("198.19.255.2", "fd00::2", "fd00::1"):
        assert not reached_inside(world, where, 5432), where
    assert world.vmgr("doctor", "--audit").returncode == 0
    world.vmgr("config", "unset", "network.egress")
    since = world.last_event()
    kill_and_wait(world.network_process("egress"))
    world.wait_for_event("network.restarted", since, process="egress")
    assert world.says(ONE) == (0, f"hello from {ONE}:80\n")


def reached_inside(world: World, where: str, port: int) -> bool:
    """Whether somebody in the network's own namespace, whom no rule stops, gets a connection."""
    holder = world.network_process("holder")
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
    entering = ["nsenter", f"--net=/proc/{holder}/ns/net", "--"]
    command = [*entering, sys.executable, "-c", connect, where, str(port)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
