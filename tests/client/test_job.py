from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.api import streams as s
from vmgr.api.models import CreateMachine, ErrorBody, ExecSpec, ExitResult
from vmgr.client.sync import Client
from vmgr.errors import HelperUnavailableError, ResourceError, WrongStateError

from .peer import Connection, Peer, starts

if TYPE_CHECKING:
    from vmgr.paths import Paths

CAT = ExecSpec(argv=["cat"], stdin=True)


def serve_cat(connection: Connection, received: bytearray, *, taken: int = 0) -> None:
    """Copy stdin to stdout within all credit, acknowledge all, and exit."""
    output, sent, limit = bytearray(received), taken, taken + s.INITIAL_CREDIT
    ended = False
    while not ended or sent < len(output):
        while sent < min(limit, len(output)):
            piece = bytes(output[sent : min(limit, sent + s.MAX_DATA)])
            connection.output(piece)
            sent += len(piece)
        if ended and sent == len(output):
            break
        message = connection.receive()
        if isinstance(message, bytes):
            received += message[1:]
            output += message[1:]
            count = len(received)
            connection.send(s.Credit(flow=0, acked=count, limit=count + s.INITIAL_CREDIT))
        elif message["type"] == "credit":
            limit = message["limit"]
        elif message["type"] == "eof":
            ended = True
    connection.send(s.Exit(result=ExitResult(code=0)))
    while connection.receive() is not None:
        pass  # credit that crossed the exit; then the receipt
    connection.close()


def test_megabytes_through_a_command_and_back(paths: Paths) -> None:
    received = bytearray()

    def script(connection: Connection) -> None:
        first = starts(connection)
        assert first["spec"]["argv"] == ["cat"]
        serve_cat(connection, received)

    data = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(100_000))
    with Peer(paths.helper_socket, script):
        result = Client(paths, launch=False).exec("web", CAT).communicate(data)
    assert result.stdout == data
    assert received == data
    assert result.exit.exit_code == 0


def test_a_helper_killed_amid_a_stream_loses_nothing(paths: Paths) -> None:
    """The first helper takes some input, gives some output and dies; the second goes on."""
    data = bytes(range(256)) * 2_000
    received = bytearray()
    attached: list[Any] = []

    def dies(connection: Connection) -> None:
        starts(connection)
        while len(received) < 40_000:
            message = connection.receive()
            assert isinstance(message, bytes)
            received.extend(message[1:])
        connection.output(bytes(received[:10_000]))
        connection.vanish()

    def goes_on(connection: Connection) -> None:
        assert connection.target == "/v1/machines/web/jobs/7/attach"
        connection.accept()
        first = connection.receive()
        attached.append(first)
        taken = first["stdout_received"]
        connection.send(
            s.Started(machine="web", job=7, stdin_received=len(received), stdout_from=taken)
        )
        serve_cat(connection, received, taken=taken)

    with Peer(paths.helper_socket, dies, goes_on):
        result = Client(paths, launch=False).exec("web", CAT).communicate(data)
    assert received == data
    assert result.stdout == data
    assert attached[0]["type"] == "attach"


def test_run_is_taken_up_by_the_machine_it_got(paths: Paths) -> None:
    def dies(connection: Connection) -> None:
        assert connection.target == "/v1/run"
        assert starts(connection, machine="brave-fox", job=1)["type"] == "run"
        connection.vanish()

    def goes_on(connection: Connection) -> None:
        assert connection.target == "/v1/machines/brave-fox/jobs/1/attach"
        starts(connection, machine="brave-fox", job=1)
        connection.send(s.Exit(result=ExitResult(signal=9)))
        connection.receive()
        connection.close()

    with Peer(paths.helper_socket, dies, goes_on):
        job = Client(paths, launch=False).run(CreateMachine(), CAT)
        assert job.communicate().exit.exit_code == 137


def test_helpers_that_die_again_and_again_are_given_up(paths: Paths) -> None:
    def dies(connection: Connection) -> None:
        starts(connection)
        connection.vanish()

    def dies_sooner(connection: Connection) -> None:
        connection.vanish()

    with (
        Peer(paths.helper_socket, dies, *[dies_sooner] * 3),
        pytest.raises(HelperUnavailableError, match="again and again"),
    ):
        Client(paths, launch=False).exec("web", CAT).communicate()


def test_a_helper_that_dies_before_the_start_is_not_asked_twice(paths: Paths) -> None:
    def dies(connection: Connection) -> None:
        connection.accept()
        connection.receive()
        connection.vanish()

    with Peer(paths.helper_socket, dies) as peer:
        job = Client(paths, launch=False).exec("web", CAT)
        with pytest.raises(HelperUnavailableError, match="before it had confirmed"):
            job.communicate()
        assert peer.served == 1


def test_a_refused_command_is_its_error(paths: Paths) -> None:
    def script(connection: Connection) -> None:
        connection.accept()
        connection.receive()
        error = ErrorBody(code="wrong-state", message="web is stopped", next_step="start it")
        connection.send(s.Failed(error=error))
        connection.close()

    with Peer(paths.helper_socket, script):
        job = Client(paths, launch=False).exec("web", CAT)
        with pytest.raises(WrongStateError, match="web is stopped; start it"):
            job.communicate()


def test_too_much_output_is_not_kept_and_hangs_up(paths: Paths) -> None:
    ended: list[Any] = []

    def script(connection: Connection) -> None:
        starts(connection)
        connection.output(bytes(2_000))
        while (message := connection.receive()) is not None:
            assert message["type"] == "eof"
        ended.append(message)

    with Peer(paths.helper_socket, script):
        job = Client(paths, launch=False).exec("web", CAT)
        with pytest.raises(ResourceError, match="more than 1000 bytes"):
            job.communicate(limit=1000)
    assert ended == [None]
