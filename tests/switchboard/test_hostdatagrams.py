"""UDP ports of this computer for machines, over loopback addresses that stand for both."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from vmgr.switchboard import hostdatagrams
from vmgr.switchboard.hostdatagrams import HostDatagrams
from vmgr.switchboard.messages import Plug

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GATE, MACHINE, OTHER = "127.0.0.2", "127.0.0.3", "127.0.0.4"


def plug(address: str, *ports: int) -> Plug:
    return Plug(
        machine=address, name="m", mac=b"", address4=address, address6="::2", access="none",
        host_udp_ports=list(ports),
    )  # fmt: skip


def bound(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(0)
    sock.bind((address, 0))
    return sock


async def received(sock: socket.socket) -> bytes:
    async with asyncio.timeout(30):
        return (await asyncio.get_running_loop().sock_recvfrom(sock, 100))[0]


class Service:
    """A server here that names whoever asks."""

    def __init__(self, access: HostDatagrams) -> None:
        self.access = access
        self.sock = bound("127.0.0.1")
        self.port: int = self.sock.getsockname()[1]
        self.clients: list[tuple[str, int]] = []
        asyncio.get_running_loop().add_reader(self.sock, self._answer)

    def _answer(self) -> None:
        data, client = self.sock.recvfrom(100)
        self.clients.append(client)
        self.sock.sendto(b"to " + data, client)

    async def answers(self, client: socket.socket, text: bytes = b"it") -> bool:
        client.sendto(text, (GATE, self.port))
        return await received(client) == b"to " + text


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setattr(hostdatagrams, "_EACH", 3)
    access = HostDatagrams((GATE,))
    stock = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(4)]
    access.stock(stock)
    for sock in stock:
        sock.close()
    it = Service(access)
    access.permit([plug(MACHINE, it.port), plug(OTHER, it.port)])
    yield it
    access.close()
    asyncio.get_running_loop().remove_reader(it.sock)
    it.sock.close()


async def test_a_port_of_a_machine_is_one_client(service: Service) -> None:
    one, two = bound(MACHINE), bound(MACHINE)
    for _ in range(2):
        assert await service.answers(one)
        assert await service.answers(two)
    assert len(set(service.clients)) == 2
    one.close()
    two.close()


async def test_sockets_are_used_again_and_nothing_reaches_the_wrong_one(service: Service) -> None:
    clients = [bound(MACHINE) for _ in range(10)]
    for client in clients:
        assert await service.answers(client)
    assert len(set(service.clients)) == 10
    # The first one's session has ended: what comes for it now reaches nobody.
    service.sock.sendto(b"late", service.clients[0])
    for client in clients[-3:]:
        assert await service.answers(client, b"more")
    for client in clients:
        with pytest.raises(BlockingIOError):
            client.recv(100)
        client.close()


async def test_a_machine_takes_no_socket_from_another_for_good(service: Service) -> None:
    greedy = [bound(MACHINE) for _ in range(3)]
    others = [bound(OTHER) for _ in range(2)]
    for client in (*greedy, *others):
        assert await service.answers(client)
    assert len(service.access._sessions) == 4
    for client in (*others, greedy[-1]):  # these went on
        assert await service.answers(client)
    assert len(set(service.clients)) == 5
    for client in (*greedy, *others):
        client.close()


async def test_only_what_is_permitted(service: Service) -> None:
    client, other, stranger = bound(MACHINE), bound(OTHER), bound("127.0.0.5")
    assert await service.answers(client)
    stranger.sendto(b"x", (GATE, service.port))
    service.access.permit([plug(OTHER, service.port)])
    assert not service.access._sessions
    client.sendto(b"x", (GATE, service.port))
    assert await service.answers(other)
    assert len(set(service.clients)) == 2
    service.access.permit([])
    # Nobody listens any more.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind((GATE, service.port))
    for sock in (client, other, stranger):
        sock.close()


async def test_nobody_listening_here_harms_nothing(service: Service) -> None:
    service.access.permit([plug(MACHINE, service.port, 9)])
    client = bound(MACHINE)
    for _ in range(3):
        client.sendto(b"x", (GATE, 9))
        await asyncio.sleep(0)
    assert await service.answers(client)
    client.close()


async def test_quiet_sessions_end(service: Service) -> None:
    quiet, busy = bound(MACHINE), bound(MACHINE)
    assert await service.answers(quiet)
    assert await service.answers(busy)
    next(iter(service.access._sessions.values())).used -= 61
    service.access._end_quiet()
    assert [session.client for session in service.access._sessions.values()] == [busy.getsockname()]
    assert service.access._sweep is not None
    assert await service.answers(quiet)
    for sock in (quiet, busy):
        sock.close()
