from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, get_args

import pytest

from vmgr.api import models as m
from vmgr.api import streams as s
from vmgr.api.operations import OPERATIONS
from vmgr.client.aio import AsyncClient
from vmgr.client.aiojob import AsyncJob
from vmgr.client.job import Job
from vmgr.client.sync import Client
from vmgr.errors import ConflictError, HelperUnavailableError, NotFoundError

from .peer import Connection, Peer

if TYPE_CHECKING:
    from vmgr.paths import Paths

IMAGE = m.ImageInfo(
    digest="sha256:" + "0" * 64, names=["debian"], source="built", created_at=1.0, size_bytes=2,
    init=None, default_user="root", env={}, entrypoint=[], architecture="x86_64",
)  # fmt: skip


def face(cls: type) -> dict[str, Any]:
    """Public methods, with their parameters."""
    return {
        name: list(inspect.signature(member).parameters.values())
        for name, member in inspect.getmembers(cls, callable)
        if not name.startswith("_")
    }


ALIASES = {
    "vmgr.api.models": "m",
    "vmgr.api.secrets": "m",
    "vmgr.api.usage": "u",
    "vmgr.api.audit": None,
    "vmgr.api.consent": None,
    "vmgr.api.shares": None,
    "vmgr.api.snapshots": None,
    "vmgr.api.volumes": None,
}


def named(model: Any) -> str:
    """A model as annotations name it."""
    if model is None:
        return "None"
    if inner := get_args(model):
        return f"list[{named(inner[0])}]"
    if (alias := ALIASES[model.__module__]) is None:
        return str(model.__name__)
    return f"{alias}.{model.__name__}"


def test_the_twins_have_the_same_face() -> None:
    assert face(Client) == face(AsyncClient)


def test_their_jobs_differ_only_in_what_a_poll_loop_needs() -> None:
    shared = face(AsyncJob).keys() & face(Job).keys()
    assert shared == {"close", "communicate", "flush", "wait_events"}
    assert face(Job).keys() - shared == {"fileno", "receive", "close_and_wait"}
    assert face(AsyncJob).keys() - shared == {"open"}


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_every_operation_has_its_method_and_no_other_has(client: type) -> None:
    assert face(client).keys() - {"close", "reachable"} == OPERATIONS.keys()


@pytest.mark.parametrize("operation", [o for o in OPERATIONS.values() if o.stream is None])
def test_a_method_takes_what_its_operation_does_and_gives_its_model(operation: Any) -> None:
    method = getattr(Client, operation.name)
    parameters = list(inspect.signature(method).parameters)[1:]
    assert parameters[: len(operation.path_parameters)] == operation.path_parameters
    assert {p.name for p in operation.query} <= set(parameters)
    annotation = inspect.signature(method).return_annotation
    assert annotation == named(operation.response)


def test_a_call(paths: Paths) -> None:
    calls: list[tuple[str, str, bytes]] = []

    def script(connection: Connection) -> None:
        calls.append((connection.method, connection.target, connection.body))
        connection.answer(m.ConfigEntry(key="k", value=1, default=2, is_set=True, description="d"))

    with Peer(paths.helper_socket, script):
        assert Client(paths, launch=False).config_set("k", "1").value == 1
    assert calls == [("PUT", "/v1/config/k", b'{"value":"1"}')]


def test_notices_are_handed_on_also_with_an_error(paths: Paths) -> None:
    told: list[str] = []

    def script(connection: Connection) -> None:
        body = m.Error(error=m.ErrorBody(code="conflict", message="web exists"))
        connection.answer(body, 409, Vmgr_Notice="it crashed before")

    client = Client(paths, launch=False, on_notes=lambda notes: told.extend(notes.notices))
    with Peer(paths.helper_socket, script), pytest.raises(ConflictError, match="web exists"):
        client.machine_create(m.CreateMachine(name="web"))
    assert told == ["it crashed before"]


def test_no_helper(paths: Paths) -> None:
    client = Client(paths, launch=False)
    assert not client.reachable()
    with pytest.raises(HelperUnavailableError, match="no helper runs"):
        client.version()


def test_a_silent_helper_is_given_up_after_the_timeout(paths: Paths) -> None:
    with (
        Peer(paths.helper_socket, lambda connection: connection.socket.recv(1)),
        pytest.raises(HelperUnavailableError, match=r"did not answer within 0\.05 s"),
    ):
        Client(paths, launch=False, timeout=0.05).version()


def test_a_helper_that_dies_amid_a_call(paths: Paths) -> None:
    with (
        Peer(paths.helper_socket, Connection.vanish),
        pytest.raises(HelperUnavailableError, match="closed the connection"),
    ):
        Client(paths, launch=False).version()


def test_logs_come_as_they_are_sent(paths: Paths) -> None:
    def script(connection: Connection) -> None:
        assert connection.target == "/v1/machines/web/logs?source=vmm&follow=true&tail=5"
        connection.accept()
        connection.output(b"one\n")
        connection.output(b"two\n")
        connection.close()

    with Peer(paths.helper_socket, script):
        logs = Client(paths, launch=False).machine_logs("web", source="vmm", follow=True, tail=5)
        assert list(logs) == [b"one\n", b"two\n"]


def test_leaving_a_log_closes_it(paths: Paths) -> None:
    ended: list[Any] = []

    def script(connection: Connection) -> None:
        connection.accept()
        connection.output(b"one\n")
        ended.append(connection.receive())

    with Peer(paths.helper_socket, script):
        logs = Client(paths, launch=False).helper_logs(follow=True)
        assert next(logs) == b"one\n"
        logs.close()
    assert ended == [None]


def test_a_failure_amid_a_stream_is_raised(paths: Paths) -> None:
    def script(connection: Connection) -> None:
        connection.accept()
        connection.output(b"one\n")
        connection.send(s.Failed(error=m.ErrorBody(code="not-found", message="it went away")))
        connection.close()

    with Peer(paths.helper_socket, script):
        logs = Client(paths, launch=False).helper_logs()
        assert next(logs) == b"one\n"
        with pytest.raises(NotFoundError, match="it went away"):
            next(logs)


def test_events(paths: Paths) -> None:
    event = m.Event(seq=3, at=1.5, kind="machine.status", machine="web", data={"to": "running"})

    def script(connection: Connection) -> None:
        assert connection.target == "/v1/events?since=2"
        connection.accept()
        connection.send(event)
        connection.close()

    with Peer(paths.helper_socket, script):
        assert list(Client(paths, launch=False).events(2)) == [event]


def test_image_work_shows_progress_and_gives_the_image(paths: Paths) -> None:
    def script(connection: Connection) -> None:
        connection.accept()
        assert connection.receive() == {"recipe": "debian", "name": None, "force": True}
        connection.send(s.Progress(message="unpacking", fraction=0.5))
        connection.send(s.Done(result=IMAGE))
        connection.close()

    seen: list[s.Progress] = []
    with Peer(paths.helper_socket, script):
        build = m.ImageBuild(recipe="debian", force=True)
        assert Client(paths, launch=False).image_build(build, seen.append) == IMAGE
    assert seen == [s.Progress(message="unpacking", fraction=0.5)]


def test_image_work_that_is_cut_off_is_no_success(paths: Paths) -> None:
    def script(connection: Connection) -> None:
        connection.accept()
        connection.receive()
        connection.vanish()

    with (
        Peer(paths.helper_socket, script),
        pytest.raises(HelperUnavailableError, match="before the work was done"),
    ):
        Client(paths, launch=False).image_build(m.ImageBuild(recipe="debian"))
