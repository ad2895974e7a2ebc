"""Questions about machines for asyncio: the twin of `vmgr.client.questions`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.api.hostcommands import Answer
from vmgr.client.questions import news_of
from vmgr.client.websocket import Stream
from vmgr.errors import HelperUnavailableError

if TYPE_CHECKING:
    import socket

    from vmgr.api.hostcommands import Question, Settled

__all__ = ["AsyncQuestions"]

_READ_SIZE: Final = 65_536


class AsyncQuestions:
    """Somebody who answers, as the helper sees them. Arguments as of the twin."""

    def __init__(self, connection: socket.socket, machine: str | None) -> None:
        self._stream = Stream("authorize", {}, {"machine": machine})
        self._socket = connection
        self._socket.settimeout(0)

    @property
    def closed(self) -> bool:
        """Whether no question can come any more."""
        return self._stream.closed or self._socket.fileno() < 0

    async def receive(self) -> list[Question | Settled]:
        """What comes next.

        Raises:
            VmgrError: the helper refuses.
        """
        await self._send()
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, _READ_SIZE)
        except OSError:  # gone, or closed by us
            data = b""
        try:
            messages = self._stream.receive(data)
        except HelperUnavailableError:
            self._socket.close()
            return []
        return [news_of(message) for message in messages]

    async def answer(self, question: Question, *, allow: bool) -> None:
        """Say what the person said."""
        said = msgspec.json.encode(Answer(id=question.id, allow=allow))
        self._stream.send(said.decode())
        await self._send()

    def close(self) -> None:
        """Be no more there to be asked."""
        self._socket.close()

    async def _send(self) -> None:
        with contextlib.suppress(OSError):  # the end is read
            await asyncio.get_running_loop().sock_sendall(
                self._socket, self._stream.take_outgoing()
            )
