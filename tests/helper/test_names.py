from __future__ import annotations

import asyncio
import socket
import struct

import dns.message
import dns.rcode
import pytest

from vmgr.helper.names import Names


def names() -> Names:
    return Names("vmgr.internal", {"web": "127.118.0.10"}.get)


def question(name: str, kind: str = "A") -> bytes:
    return dns.message.make_query(name, kind, use_edns=True).to_wire()


@pytest.mark.parametrize(
    ("name", "kind", "code", "answers"),
    [
        ("web.vmgr.internal", "A", dns.rcode.NOERROR, ["127.118.0.10"]),
        ("WEB.Vmgr.Internal", "A", dns.rcode.NOERROR, ["127.118.0.10"]),
        ("api.web.vmgr.internal", "A", dns.rcode.NOERROR, ["127.118.0.10"]),
        ("web.vmgr.internal", "AAAA", dns.rcode.NOERROR, []),
        ("vmgr.internal", "SOA", dns.rcode.NOERROR, []),
        ("nobody.vmgr.internal", "A", dns.rcode.NXDOMAIN, []),
        ("webvmgr.internal", "A", dns.rcode.REFUSED, []),
        ("example.org", "A", dns.rcode.REFUSED, []),
    ],
)
def test_answers(name: str, kind: str, code: int, answers: list[str]) -> None:
    reply = dns.message.from_wire(names().answer(question(name, kind)))
    assert reply.rcode() == code
    assert [item.to_text() for rrset in reply.answer for item in rrset] == answers


def test_what_is_no_question_is_not_answered() -> None:
    server = names()
    reply = server.answer(question("web.vmgr.internal"))
    for wire in (b"", b"x" * 11, b"\xff" * 600, reply):
        assert server.answer(wire) == b""


async def test_over_both_protocols_until_closed() -> None:
    server = names()
    await server.open("127.0.0.1", 0)
    assert server.address is not None
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0)
        await loop.sock_connect(client, server.address)
        await loop.sock_sendall(client, question("web.vmgr.internal"))
        assert b"\x7f\x76\x00\x0a" in await asyncio.wait_for(loop.sock_recv(client, 4_096), 30)
    stream = server.stream_address
    assert stream is not None
    reader, writer = await asyncio.open_connection(*stream)
    wire = question("web.vmgr.internal")
    writer.write(struct.pack("!H", len(wire)) + wire)
    (length,) = struct.unpack("!H", await reader.readexactly(2))
    assert b"\x7f\x76\x00\x0a" in await reader.readexactly(length)
    writer.close()
    taken = names()
    await taken.open(*stream)
    assert taken.problem is not None
    await server.close()
    assert server.address is None
