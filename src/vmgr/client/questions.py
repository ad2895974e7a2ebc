"""Questions about machines that the person is to answer, over a blocking unix socket.

Made to sit in a poll loop beside a terminal, as `vmgr.client.job` is. A helper that goes ends it
(`closed`): what was asked is refused then.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.api.hostcommands import Answer, Question, Settled
from vmgr.client.websocket import Stream
from vmgr.errors import HelperUnavailableError, VmgrError, error_from_wire

if TYPE_CHECKING:
    import socket

__all__ = ["Questions", "news_of"]

_READ_SIZE: Final = 65_536
_news: Final = msgspec.json.Decoder(Question | Settled)


def news_of(message: str | bytes) -> Question | Settled:
    """What the helper says.

    Raises:
        VmgrError: it is an error, or of a newer helper.
    """
    with contextlib.suppress(msgspec.MsgspecError):
        news: Question | Settled = _news.decode(message)
        return news
    said = msgspec.json.decode(message)
    error = said.get("error") if isinstance(said, dict) else None
    if not error:
        raise VmgrError("the helper asked something that this vmgr does not understand")
    raise error_from_wire(
        error.get("code", ""), error.get("message", ""), error.get("next_step"), None
    )


class Questions:
    """The person's terminal, as the helper sees it.

    Args:
        connection: to the helper; ours from here on.
        machine: whose questions are wanted; None: all.
    """

    def __init__(self, connection: socket.socket, machine: str | None) -> None:
        self._stream = Stream("authorize", {}, {"machine": machine})
        self._socket = connection
        self._socket.settimeout(None)
        self._send()

    @property
    def closed(self) -> bool:
        """Whether no question can come any more."""
        return self._stream.closed or self._socket.fileno() < 0

    def fileno(self) -> int:
        """Readable when there is news."""
        return self._socket.fileno()

    def receive(self) -> list[Question | Settled]:
        """What has come; waits where nothing has.

        Raises:
            VmgrError: the helper refuses.
        """
        try:
            data = self._socket.recv(_READ_SIZE)
        except OSError:  # gone, or closed by us
            data = b""
        try:
            messages = self._stream.receive(data)
        except HelperUnavailableError:
            self.close()
            return []
        self._send()
        return [news_of(message) for message in messages]

    def answer(self, question: Question, *, allow: bool) -> None:
        """Say what the person said."""
        said = msgspec.json.encode(Answer(id=question.id, allow=allow))
        self._stream.send(said.decode())
        self._send()

    def close(self) -> None:
        """Be no more there to be asked."""
        if self._socket.fileno() >= 0:
            self._stream.close()
            self._send()
            self._socket.close()

    def _send(self) -> None:
        try:
            self._socket.sendall(self._stream.take_outgoing())
        except OSError:
            self._socket.close()
