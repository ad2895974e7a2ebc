from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.api import models as m
from vmgr.api import streams as s
from vmgr.client.aio import AsyncClient
from vmgr.errors import HelperUnavailableError, NotFoundError

from .peer import Connection, Peer

if TYPE_CHECKING:
    from vmgr.paths import Paths


async def test_a_call_and_its_error(paths: Paths) -> None:
    def answers(connection: Connection) -> None:
        assert (connection.method, connection.target) == ("GET", "/v1/config")
        connection.answer([])

    def refuses(connection: Connection) -> None:
        error = m.ErrorBody(code="not-found", message="there is no machine web")
        connection.answer(m.Error(error=error), 404)

    with Peer(paths.helper_socket, answers, refuses):
        async with AsyncClient(paths, launch=False) as client:
            assert await client.config_list() == []
            with pytest.raises(NotFoundError, match="there is no machine web"):
                await client.machine_info("web")


async def test_no_helper(paths: Paths) -> None:
    client = AsyncClient(paths, launch=False)
    assert not await client.reachable()
    with pytest.raises(HelperUnavailableError, match="no helper runs"):
        await client.version()


async def test_a_silent_helper_is_given_up_after_the_timeout(paths: Paths) -> None:
    with Peer(paths.helper_socket, lambda connection: connection.socket.recv(1)):
        client = AsyncClient(paths, launch=False, timeout=0.05)
        with pytest.raises(HelperUnavailableError, match=r"did not answer within 0\.05 s"):
            await client.version()


async def test_events_until_the_caller_leaves(paths: Paths) -> None:
    ended: list[Any] = []

    def script(connection: Connection) -> None:
        connection.accept()
        for number in (1, 2):
            connection.send(m.Event(seq=number, at=0, kind="image.added"))
        ended.append(connection.receive())

    with Peer(paths.helper_socket, script):
        events = AsyncClient(paths, launch=False).events()
        assert [(await anext(events)).seq for _ in range(2)] == [1, 2]
        await events.aclose()  # type: ignore[attr-defined]
    assert ended == [None]


async def test_a_cancelled_wait_leaves_nothing_behind(paths: Paths) -> None:
    accepted = asyncio.Event()
    loop = asyncio.get_running_loop()

    def script(connection: Connection) -> None:
        connection.accept()
        connection.receive()
        loop.call_soon_threadsafe(accepted.set)
        assert connection.receive() is None

    with Peer(paths.helper_socket, script):
        client = AsyncClient(paths, launch=False)
        build = asyncio.create_task(client.image_build(m.ImageBuild(recipe="debian")))
        await accepted.wait()
        build.cancel()
        with pytest.raises(asyncio.CancelledError):
            await build


async def test_logs(paths: Paths) -> None:
    def script(connection: Connection) -> None:
        connection.accept()
        connection.output(b"one\n")
        connection.send(s.Failed(error=m.ErrorBody(code="not-found", message="it went away")))
        connection.close()

    with Peer(paths.helper_socket, script):
        logs = AsyncClient(paths, launch=False).machine_logs("web")
        assert await anext(logs) == b"one\n"
        with pytest.raises(NotFoundError, match="it went away"):
            await anext(logs)
