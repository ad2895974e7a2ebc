from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmgr.api import streams as s
from vmgr.api.models import ExecSpec, ExitResult
from vmgr.client.aio import AsyncClient
from vmgr.client.jobstream import Output
from vmgr.errors import HelperUnavailableError

from .peer import Connection, Peer, starts
from .test_job import serve_cat

if TYPE_CHECKING:
    from vmgr.paths import Paths

CAT = ExecSpec(argv=["cat"], stdin=True)


async def test_a_helper_killed_amid_a_stream_loses_nothing(paths: Paths) -> None:
    data = bytes(range(256)) * 2_000
    received = bytearray()

    def dies(connection: Connection) -> None:
        starts(connection)
        while len(received) < 40_000:
            received.extend(connection.receive()[1:])
        connection.output(bytes(received[:10_000]))
        connection.vanish()

    def goes_on(connection: Connection) -> None:
        assert connection.target == "/v1/machines/web/jobs/7/attach"
        connection.accept()
        taken = connection.receive()["stdout_received"]
        connection.send(
            s.Started(machine="web", job=7, stdin_received=len(received), stdout_from=taken)
        )
        serve_cat(connection, received, taken=taken)

    with Peer(paths.helper_socket, dies, goes_on):
        job = await AsyncClient(paths, launch=False).exec("web", CAT)
        result = await job.communicate(data)
    assert received == data
    assert result.stdout == data
    assert result.exit == ExitResult(code=0)


async def test_a_conversation(paths: Paths) -> None:
    def script(connection: Connection) -> None:
        starts(connection)
        connection.output(b"name? ")
        assert connection.receive() == b"\x00vmgr\n"
        connection.output(b"hello vmgr\n")
        connection.send(s.Exit(result=ExitResult(code=0)))
        assert connection.receive() is None
        connection.close()

    said = b""
    with Peer(paths.helper_socket, script):
        async with await AsyncClient(paths, launch=False).exec("web", CAT) as job:
            while job.stream.exit is None:
                for event in await job.wait_events():
                    if isinstance(event, Output):
                        said += event.data
                        if event.data.endswith(b"? "):
                            job.stream.write(b"vmgr\n")
    assert said == b"name? hello vmgr\n"


async def test_a_helper_that_dies_before_the_start_is_not_asked_twice(paths: Paths) -> None:
    def dies(connection: Connection) -> None:
        connection.accept()
        connection.receive()
        connection.vanish()

    with Peer(paths.helper_socket, dies):
        job = await AsyncClient(paths, launch=False).exec("web", CAT)
        with pytest.raises(HelperUnavailableError, match="before it had confirmed"):
            await job.communicate()
