"""The helper's line to the switchboard: requests and answers, fds beside them, events."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any, Final

import msgspec

from vmgr.errors import StateError
from vmgr.switchboard import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Line"]

_DEADLINE: Final = 10.0
_answers: Final = msgspec.msgpack.Decoder(m.Answer)
_events: Final = msgspec.msgpack.Decoder(m.Event)


class Line:
    """A connection. `ended` is set when the switchboard is no longer there.

    Args:
        on_event: called on the loop with what the switchboard says by itself.
    """

    def __init__(self, sock: socket.socket, on_event: Callable[[m.Event], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_event = on_event
        self._number = 0
        self._waiting: dict[int, asyncio.Future[tuple[m.Answer, list[int]]]] = {}
        self.ended = asyncio.Event()
        sock.settimeout(0)
        self._loop.add_reader(sock, self._read)

    @classmethod
    def connect(cls, path: Path, on_event: Callable[[m.Event], None]) -> Line:
        """Connect to the switchboard that listens at `path`.

        Raises:
            OSError: none does.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(os.fspath(path))
        except BaseException:
            sock.close()
            raise
        return cls(sock, on_event)

    async def ask(
        self, request: m.Asked, fds: tuple[int, ...] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        """Ask, and wait for the answer and its fds, which are the caller's to close.

        Raises:
            StateError: the switchboard refuses, or has gone.
        """
        if self.ended.is_set():
            raise _gone()
        self._number += 1
        request = msgspec.structs.replace(request, number=self._number)
        answer: asyncio.Future[tuple[m.Answer, list[int]]] = self._loop.create_future()
        self._waiting[self._number] = answer
        try:
            m.send(self._sock, request, fds)
            async with asyncio.timeout(_DEADLINE):
                reply, received = await answer
        except OSError as error:
            raise _gone() from error
        finally:
            self._waiting.pop(request.number, None)
        if reply.error is not None:
            for fd in received:
                os.close(fd)
            raise StateError(f"the network cannot be set up: {reply.error}")
        return reply.result, received

    def close(self) -> None:
        """Hang up; the switchboard goes on."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        self.ended.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_gone())

    def _read(self) -> None:
        for _ in range(16):
            try:
                packet, fds = m.receive(self._sock)
            except BlockingIOError:
                return
            except OSError:
                packet, fds = b"", []
            if not packet:
                self.close()
                return
            self._take(packet, fds)

    def _take(self, packet: bytes, fds: list[int]) -> None:
        kept = False
        with contextlib.suppress(msgspec.MsgspecError):
            reply = _answers.decode(packet)
            if reply.number == 0:
                self._on_event(_events.decode(packet))
            elif (answer := self._waiting.get(reply.number)) is not None and not answer.done():
                answer.set_result((reply, fds))
                kept = True
        if not kept:
            for fd in fds:
                os.close(fd)


def _gone() -> StateError:
    return StateError("the switchboard has gone", next_step="it is started again; try once more")
