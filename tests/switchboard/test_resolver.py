from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import dns.message
import dns.rcode
import dns.reversename
import dns.rrset

from vmgr.switchboard.denials import describe
from vmgr.switchboard.resolver import HostResolvers, Resolver
from vmgr.switchboard.upstream import UpstreamSockets

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {"web": ("198.19.0.10", "fd76:6d67:7200::a")}


def free_port() -> int:
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(tcp.getsockname())
        return int(tcp.getsockname()[1])


def answers(resolver: Resolver, name: str, kind: str) -> tuple[int, list[str]]:
    wire = resolver.local_answer(dns.message.make_query(name, kind).to_wire())
    assert wire
    reply = dns.message.from_wire(wire)
    return reply.rcode(), [item.to_text() for rrset in reply.answer for item in rrset]


async def test_machines_have_names() -> None:
    resolver = Resolver(NAMES, UpstreamSockets(), ("127.0.0.1",), port=free_port())
    try:
        assert answers(resolver, "web.vmgr.internal", "A") == (0, ["198.19.0.10"])
        assert answers(resolver, "WEB.vmgr.internal", "AAAA") == (0, ["fd76:6d67:7200::a"])
        assert answers(resolver, "web.vmgr.internal", "MX") == (0, [])
        assert answers(resolver, "no.vmgr.internal", "A") == (dns.rcode.NXDOMAIN, [])
        assert answers(resolver, "vmgr.internal", "A") == (0, [])
        assert resolver.local_answer(dns.message.make_query("example.org", "A").to_wire()) is None
        for garbage in (b"", b"x" * 12, os.urandom(300), b"\0" * 600):
            assert not resolver.local_answer(garbage)
    finally:
        resolver.close()


async def test_whose_an_address_is() -> None:
    """Asked by ping and sudo for their own reasons: nobody else could know, so nobody is asked."""
    resolver = Resolver(NAMES, UpstreamSockets(), ("127.0.0.1",), port=free_port())
    try:
        for address in NAMES["web"]:
            name = dns.reversename.from_address(address).to_text()
            assert answers(resolver, name, "PTR") == (0, ["web.vmgr.internal."])
            assert answers(resolver, name, "A") == (0, [])
        for address in ("198.19.0.11", "198.19.0.1", "fd76:6d67:7200::b"):
            name = dns.reversename.from_address(address).to_text()
            assert answers(resolver, name, "PTR") == (dns.rcode.NXDOMAIN, [])
        for name in ("1.0.0.127.in-addr.arpa", "1.19.198.in-addr.arpa", "x.in-addr.arpa"):
            assert resolver.local_answer(dns.message.make_query(name, "PTR").to_wire()) is None
    finally:
        resolver.close()


async def test_nobody_to_ask_is_said_at_once(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    port = free_port()
    missing = HostResolvers(tmp_path / "resolv.conf")
    resolver = Resolver(NAMES, UpstreamSockets(), ("127.0.0.1",), missing, port)
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(30):
            client.sendto(dns.message.make_query("example.org", "A").to_wire(), ("127.0.0.1", port))
            reply = dns.message.from_wire(await loop.sock_recv(client, 4096))
        assert reply.rcode() == dns.rcode.SERVFAIL
    finally:
        client.close()
        resolver.close()


def test_the_hosts_file_is_followed_however_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    host = HostResolvers(path)
    assert host.addresses() == []
    path.write_text("# none\nnameserver 192.0.2.1\nnameserver nonsense\nnameserver 2001:db8::1\n")
    assert host.addresses() == ["192.0.2.1", "2001:db8::1"]
    other = tmp_path / "vpn"
    other.write_text("nameserver 192.0.2.9\n")
    link = tmp_path / "link"
    link.symlink_to(other)
    link.replace(path)
    assert host.addresses() == ["192.0.2.9"]
    other.write_text("nameserver 192.0.2.77 \n")
    assert host.addresses() == ["192.0.2.77"]
    path.unlink()
    os.mkfifo(path)
    host.addresses()  # does not hang
    path.unlink()
    assert host.addresses() == []


def test_denied_packets_are_described() -> None:
    tcp = bytes.fromhex("4500003c0000400040060000c6130a0acb007101") + bytes.fromhex("c0000050")
    assert describe(tcp) == {"address": "203.0.113.1", "protocol": "tcp", "port": 80}
    for cut in range(20):
        assert describe(tcp[:cut]) is None
    assert describe(tcp[:20]) == {"address": "203.0.113.1", "protocol": "tcp", "port": None}
    assert describe(b"\xff" * 80) is None


async def test_whoever_asks_without_end_over_tcp_leaves_turns_to_others() -> None:
    port = free_port()
    resolver = Resolver(NAMES, UpstreamSockets(), ("127.0.0.1",), port=port)
    query = dns.message.make_query("web.vmgr.internal", "A").to_wire()
    question = len(query).to_bytes(2, "big") + query
    answered = 0
    try:
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            # All of it is there before the first is read.
            writer.write(question * 2_000)
            turns = 0
            while size := await reader.read(2):
                await reader.readexactly(int.from_bytes(size, "big"))
                answered += 1
                turns += 1
            writer.close()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        resolver.close()
    # One connection is not for ever; and that we were here at all between two answers is a turn.
    assert 0 < answered <= 256


async def test_a_turn_comes_between_two_questions_of_one_connection() -> None:
    port = free_port()
    resolver = Resolver(NAMES, UpstreamSockets(), ("127.0.0.1",), port=port)
    query = dns.message.make_query("web.vmgr.internal", "A").to_wire()
    asked = 0
    most = 0
    local = resolver.local_answer

    def counted(wire: bytes, client: str = "") -> bytes | None:
        nonlocal asked
        asked += 1
        return local(wire, client)

    resolver.local_answer = counted  # type: ignore[method-assign]  # the real one, and a count
    try:
        async with asyncio.timeout(60):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write((len(query).to_bytes(2, "big") + query) * 100)
            while asked < 100:
                before = asked
                await asyncio.sleep(0)
                most = max(most, asked - before)
            writer.close()
    finally:
        resolver.close()
    assert most <= 2


async def test_what_would_take_long_to_read_is_not_read() -> None:
    resolver = Resolver(NAMES, UpstreamSockets(), ("127.0.0.1",), port=free_port())
    query = dns.message.make_query("web.vmgr.internal", "A")
    record = dns.rrset.from_text("x.example.", 1, "IN", "A", *(f"10.0.0.{n}" for n in range(200)))
    try:
        query.answer.append(record)
        assert resolver.local_answer(query.to_wire()) == b""
        query.answer.clear()
        query.additional.append(record)
        assert resolver.local_answer(query.to_wire()) == b""
        query.additional.clear()
        wire = query.to_wire()
        assert resolver.local_answer(wire)
        assert resolver.local_answer(wire + bytes(5_000)) == b""
        query.use_edns(payload=1232)
        assert resolver.local_answer(query.to_wire())
    finally:
        resolver.close()
