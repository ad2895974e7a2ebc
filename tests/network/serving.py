"""Servers for the networks of tests, run as a program: `greet PLACE...` or `names PLACE ZONE`.

`greet` answers each connection with `hello from ADDRESS:PORT`, and then line by line with what it
is sent; a datagram gets both at once. `names` is a DNS server; its zone is JSON,
`{"name": ["A 192.0.2.1", "CNAME other"]}`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset

TTL = 30


class Greeting(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        address, port, *_ = self._transport.get_extra_info("sockname")
        self._transport.sendto(f"hello from {address}:{port}: ".encode() + data, addr)


async def greet(places: list[str]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, port, *_ = writer.get_extra_info("sockname")
        writer.write(f"hello from {address}:{port}\n".encode())
        try:
            while line := await reader.readline():
                writer.write(line)
        except ConnectionError:
            pass
        writer.close()

    servers = []
    for place in places:
        address, _, port = place.rpartition(":")
        servers.append(await asyncio.start_server(serve, address, int(port)))
        await asyncio.get_running_loop().create_datagram_endpoint(
            Greeting, local_addr=(address, int(port))
        )
    print("ready", flush=True)  # noqa: T201 (a program)
    await asyncio.Event().wait()


def answer(wire: bytes, zone: dict[str, list[str]]) -> bytes:
    query = dns.message.from_wire(wire)
    reply = dns.message.make_response(query, recursion_available=True)
    question = query.question[0]
    name = question.name
    for _ in range(8):
        records = zone.get(name.to_text(omit_final_dot=True).lower())
        if records is None:
            if not reply.answer:
                reply.set_rcode(dns.rcode.NXDOMAIN)
            break
        alias = None
        for record in records:
            kind, data = record.split(" ", 1)
            if kind == "CNAME":
                data += "."
                alias = dns.name.from_text(data)
            if kind in {"CNAME", dns.rdatatype.to_text(question.rdtype)}:
                reply.answer.append(dns.rrset.from_text(name, TTL, "IN", kind, data))
        if alias is None:
            break
        name = alias
    return reply.to_wire()


class Names(asyncio.DatagramProtocol):
    def __init__(self, zone: dict[str, list[str]]) -> None:
        self._zone = zone

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(answer(data, self._zone), addr)


async def names(place: str, zone: dict[str, list[str]]) -> None:
    address, _, port = place.rpartition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(2), "big")
        reply = answer(await reader.readexactly(length), zone)
        writer.write(len(reply).to_bytes(2, "big") + reply)
        writer.close()

    await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Names(zone), local_addr=(address, int(port))
    )
    server = await asyncio.start_server(serve, address, int(port))
    print("ready", flush=True)  # noqa: T201 (a program)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "greet":
        asyncio.run(greet(sys.argv[2:]))
    else:
        asyncio.run(names(sys.argv[2], json.loads(sys.argv[3])))
