"""WebSocket as a client of the helper speaks it, without I/O.

A module of its own because plain requests do without it and need not pay for its import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from wsproto import ConnectionType, WSConnection
from wsproto import events as ws
from wsproto.connection import ConnectionState
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from vmgr.api.operations import OPERATIONS
from vmgr.client.core import (
    HOST,
    MAX_ANSWER,
    USER_AGENT,
    Notes,
    broken,
    error_answer,
    target_of,
)
from vmgr.errors import HelperUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Stream"]

MAX_MESSAGE: Final = 1 << 20


class Stream:
    """One WebSocket of a `stream` operation.

    Args:
        name: the operation, a key of `OPERATIONS`.
        path: values for the names in braces of its path.
        query: values for its query parameters; None leaves one out.

    Attributes:
        opened: the helper accepted the upgrade; from then on messages can be sent.
        closed: nothing more will arrive.
        broke: that was without the helper's saying so.
    """

    def __init__(
        self,
        name: str,
        path: Mapping[str, object] | None = None,
        query: Mapping[str, object] | None = None,
    ) -> None:
        self.notes = Notes()
        self.opened = False
        self.closed = False
        self.broke = False
        self._socket = WSConnection(ConnectionType.CLIENT)
        self._message: list[str | bytes | bytearray] = []
        self._message_size = 0
        self._rejection: tuple[int, bytearray] = (0, bytearray())
        request = ws.Request(
            host=HOST,
            target=target_of(OPERATIONS[name], path or {}, query or {}),
            extra_headers=[(b"User-Agent", USER_AGENT.encode())],
        )
        self._outgoing = bytearray(self._socket.send(request))

    def take_outgoing(self) -> bytes:
        """The bytes that must be sent now."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def send(self, message: str | bytes) -> None:
        """Queue a text or binary message. Nothing happens when the stream is closing."""
        kind = ws.TextMessage if isinstance(message, str) else ws.BytesMessage
        self._send(kind(data=message))  # type: ignore[arg-type]  # the kind fits the message

    def close(self) -> None:
        """Queue the closing handshake."""
        if self.opened and not self.closed:
            self._send(ws.CloseConnection(code=1000))

    def receive(self, data: bytes) -> list[str | bytes]:
        """Take what arrived (`b""` when the helper has closed); gives the messages now complete.

        Raises:
            VmgrError: the helper refused the upgrade with this error.
            HelperUnavailableError: it broke the protocol, or closed before the upgrade.
        """
        messages: list[str | bytes] = []
        if self.closed:
            return messages
        self.closed = data == b""
        try:
            self._socket.receive_data(data or None)
            for event in self._socket.events():
                if isinstance(event, ws.Message):
                    self._collect(event, messages)
                else:
                    self._control(event)
        except (RemoteProtocolError, LocalProtocolError):
            raise broken(data) from None
        if self.closed and not self.opened:
            raise broken(data)
        return messages

    # -- machinery -------------------------------------------------------------------------------
    def _send(self, event: ws.Event) -> None:
        try:
            self._outgoing += self._socket.send(event)
        except LocalProtocolError:
            self.closed = True

    def _collect(self, event: ws.Message, messages: list[str | bytes]) -> None:  # type: ignore[type-arg]
        # wsproto hands out what it has of a message; here it is put together.
        self._message.append(event.data)
        self._message_size += len(event.data)
        if self._message_size > MAX_MESSAGE:
            raise HelperUnavailableError("the helper sent too long a message")
        if event.message_finished:
            text = isinstance(event.data, str)
            messages.append(("" if text else b"").join(self._message))  # type: ignore[arg-type]
            self._message.clear()
            self._message_size = 0

    def _control(self, event: ws.Event) -> None:
        match event:
            case ws.Ping():
                self._send(event.response())
            case ws.AcceptConnection():
                self.opened = True
                self.notes.read(event.extra_headers)
            case ws.CloseConnection():
                self._closed_by_helper(event)
            case ws.RejectConnection():
                self.notes.read(event.headers)
                self._rejection = (event.status_code, bytearray())
                if not event.has_body:
                    raise error_answer(event.status_code, b"")
            case ws.RejectData():
                status, body = self._rejection
                body += event.data
                if len(body) > MAX_ANSWER:
                    raise HelperUnavailableError("the helper's answer is too long")
                if event.body_finished:
                    raise error_answer(status, bytes(body))

    def _closed_by_helper(self, event: ws.CloseConnection) -> None:
        if self._socket.state is ConnectionState.REMOTE_CLOSING:
            self._send(event.response())
        elif self._socket.state is not ConnectionState.CLOSED:
            # wsproto's own conclusion from bytes that are no frame.
            raise RemoteProtocolError(event.reason or "")
        else:
            self.broke = True
        self.closed = True
