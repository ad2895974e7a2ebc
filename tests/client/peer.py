"""The helper's side of the protocol for tests: a real socket, h11 and wsproto in the server's role.

A test is a script: it says what the peer does with each connection, in order.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import h11
import msgspec
import wsproto
from wsproto import events as ws

from vmgr.api import streams as s

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

DEADLINE = 30.0


class Connection:
    """One connection, as the helper sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(DEADLINE)
        self.method = self.target = ""
        self.headers: dict[str, str] = {}
        self.body = b""
        self._http = h11.Connection(h11.SERVER)
        self._websocket: wsproto.WSConnection | None = None
        self._messages: list[Any] = []
        self._parts: list[Any] = []
        self._client_closed = False
        self._raw = b""
        self._read_request()

    def _read_request(self) -> None:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = self.socket.recv(65536)
                self._raw += data
                self._http.receive_data(data)
            elif isinstance(event, h11.Request):
                self.method, self.target = event.method.decode(), event.target.decode()
                self.headers = {k.decode(): v.decode() for k, v in event.headers}
            elif isinstance(event, h11.Data):
                self.body += event.data
            else:
                return

    # -- plain requests --------------------------------------------------------------------------
    def answer(self, body: Any = None, status: int = 200, **headers: str) -> None:
        content = b"" if body is None else msgspec.json.encode(body)
        all_headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        self.socket.sendall(
            b"".join(
                self._http.send(part) or b""
                for part in (
                    h11.Response(status_code=status, headers=list(all_headers.items())),
                    h11.Data(data=content),
                    h11.EndOfMessage(),
                )
            )
        )
        self.socket.close()

    # -- streams ---------------------------------------------------------------------------------
    def accept(self, **headers: str) -> None:
        self._websocket = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        self._websocket.receive_data(self._raw)
        list(self._websocket.events())
        extra = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        self.socket.sendall(self._websocket.send(ws.AcceptConnection(extra_headers=extra)))

    def receive(self) -> Any:
        """The next message: decoded JSON, bytes, or None at the end."""
        assert self._websocket is not None
        while not self._messages:
            data = self.socket.recv(65536)
            if not data:
                return None
            self._websocket.receive_data(data)
            for event in self._websocket.events():
                if isinstance(event, ws.Message):
                    self._parts.append(event.data)
                    if event.message_finished:
                        whole = type(event.data)().join(self._parts)
                        text = isinstance(whole, str)
                        self._messages.append(msgspec.json.decode(whole) if text else whole)
                        self._parts.clear()
                elif isinstance(event, ws.CloseConnection):
                    self._client_closed = True
                    self._messages.append(None)
        return self._messages.pop(0)

    def send(self, message: Any) -> None:
        """A model (sent as its JSON), or bytes."""
        assert self._websocket is not None
        event: ws.Event = (
            ws.BytesMessage(data=message)
            if isinstance(message, bytes)
            else ws.TextMessage(data=msgspec.json.encode(message).decode())
        )
        self.socket.sendall(self._websocket.send(event))

    def output(self, data: bytes, flow: int = s.STDOUT) -> None:
        self.send(bytes((flow,)) + data)

    def close(self) -> None:
        """Close as the helper does after a stream's end."""
        assert self._websocket is not None
        try:
            self.socket.sendall(self._websocket.send(ws.CloseConnection(code=1000)))
            # The server is the one to end the connection, once both sides have said so.
            while not self._client_closed and self.socket.recv(65536):
                pass
        except OSError:
            pass
        self.socket.close()

    def vanish(self) -> None:
        """Go as a killed helper goes: without a word."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Peer:
    """Listens at `path`; each connection gets the next of `scripts`, in a thread."""

    def __init__(self, path: Path, *scripts: Callable[[Connection], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = path
        self.served = 0
        self.errors: list[BaseException] = []
        self._scripts = list(scripts)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(os.fspath(path))
        self._listening.listen(16)
        self._thread = threading.Thread(target=self._serve, name="peer")
        self._thread.start()

    def _serve(self) -> None:
        for script in self._scripts:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            connection = None
            try:
                connection = Connection(accepted)
                self.served += 1
                script(connection)
            except BaseException as error:  # noqa: BLE001 (handed to the test)
                self.errors.append(error)
            finally:
                accepted.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(DEADLINE)
        self.path.unlink(missing_ok=True)
        if error is None:
            assert not self._thread.is_alive()
            assert self.errors == []


def starts(connection: Connection, *, job: int = 7, machine: str = "web") -> dict[str, Any]:
    """Accept a job stream and say that it has started; gives the client's first message."""
    connection.accept()
    first: dict[str, Any] = connection.receive()
    connection.send(s.Started(machine=machine, job=job))
    return first
