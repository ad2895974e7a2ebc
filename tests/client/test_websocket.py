from __future__ import annotations

import h11
import pytest
import wsproto
from wsproto import events as ws

from vmgr.client.websocket import MAX_MESSAGE, Stream
from vmgr.errors import HelperUnavailableError, WrongStateError


class Server:
    """wsproto in the server's role, and what it got."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.connection = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        self.connection.receive_data(stream.take_outgoing())
        self.request = next(e for e in self.connection.events() if isinstance(e, ws.Request))

    def send(self, event: ws.Event) -> list[str | bytes]:
        return self.stream.receive(self.connection.send(event))

    def received(self) -> list[ws.Event]:
        self.connection.receive_data(self.stream.take_outgoing())
        return list(self.connection.events())


@pytest.fixture
def stream() -> Stream:
    return Stream("exec", {"machine": "web"})


@pytest.fixture
def server(stream: Stream) -> Server:
    server = Server(stream)
    assert server.send(ws.AcceptConnection(extra_headers=[(b"Vmgr-Notice", b"told")])) == []
    return server


def test_the_upgrade(stream: Stream, server: Server) -> None:
    assert server.request.target == "/v1/machines/web/exec"
    assert stream.opened
    assert stream.notes.notices == ["told"]


def test_messages_both_ways(stream: Stream, server: Server) -> None:
    stream.send("text")
    stream.send(b"\x00bytes")
    assert [e.data for e in server.received()] == ["text", b"\x00bytes"]
    assert server.send(ws.TextMessage(data="answer")) == ["answer"]
    assert server.send(ws.BytesMessage(data=b"\x01out")) == [b"\x01out"]


def test_a_message_is_given_whole_however_it_arrives(stream: Stream, server: Server) -> None:
    data = server.connection.send(ws.BytesMessage(data=b"a" * 300, message_finished=False))
    data += server.connection.send(ws.BytesMessage(data=b"b" * 300))
    messages = []
    for byte in data:
        messages += stream.receive(bytes((byte,)))
    assert messages == [b"a" * 300 + b"b" * 300]


def test_a_ping_is_answered(server: Server) -> None:
    server.send(ws.Ping(payload=b"there?"))
    assert [type(e) for e in server.received()] == [ws.Pong]


def test_a_refused_upgrade_is_the_error_in_its_body(stream: Stream) -> None:
    server = h11.Connection(h11.SERVER)
    server.receive_data(stream.take_outgoing())
    server.next_event()
    body = (
        b'{"error":{"code":"wrong-state","message":"web is stopped","next_step":"start it",'
        b'"details":{"seen":"stopped"}}}'
    )
    data = b"".join(
        server.send(part) or b""
        for part in (
            h11.Response(status_code=409, headers=[("Content-Length", str(len(body)))]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
    )
    with pytest.raises(WrongStateError, match="web is stopped"):
        stream.receive(data)


def test_the_helpers_close_is_answered_and_ends_it(stream: Stream, server: Server) -> None:
    assert server.send(ws.CloseConnection(code=1001)) == []
    assert stream.closed
    assert [type(e) for e in server.received()] == [ws.CloseConnection]
    assert stream.receive(b"late") == []


def test_a_cut_before_the_upgrade_is_an_error_and_after_it_an_end(stream: Stream) -> None:
    with pytest.raises(HelperUnavailableError):
        stream.receive(b"")
    other = Stream("exec", {"machine": "web"})
    Server(other).send(ws.AcceptConnection())
    assert other.receive(b"") == []
    assert other.closed


def test_sending_after_the_end_does_nothing(stream: Stream, server: Server) -> None:
    server.send(ws.CloseConnection(code=1000))
    stream.take_outgoing()
    stream.send("more")
    assert stream.take_outgoing() == b""


def test_a_message_without_end_is_not_kept(server: Server) -> None:
    piece = b"x" * (MAX_MESSAGE // 4)
    for _ in range(4):
        assert server.send(ws.BytesMessage(data=piece, message_finished=False)) == []
    with pytest.raises(HelperUnavailableError, match="too long a message"):
        server.send(ws.BytesMessage(data=piece, message_finished=False))


def test_what_is_no_websocket_is_no_helper(stream: Stream, server: Server) -> None:
    del server
    with pytest.raises(HelperUnavailableError, match="does not speak its protocol"):
        stream.receive(b"\xf3\x00")
