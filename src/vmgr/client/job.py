"""A command's streams over a blocking unix socket.

`Job` is made to sit in a poll loop beside a terminal: it has a `fileno`, says whether it wants to
write, and hands out events. `communicate` is the loop for those who have none. When the helper dies
under it, the job takes the command up again through the next helper (see `vmgr.client.jobstream`).
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from vmgr.api import streams as s
from vmgr.api.models import ExitResult  # noqa: TC001 (msgspec reads annotations)
from vmgr.client.jobstream import Output
from vmgr.client.websocket import Stream
from vmgr.errors import HelperUnavailableError, ResourceError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from vmgr.client.core import Notes
    from vmgr.client.jobstream import JobEvent, JobStream

__all__ = ["Completed", "Job"]

_READ_SIZE: Final = 262_144
_ATTEMPTS: Final = 3


class Completed(Struct, frozen=True, kw_only=True):
    """What a command that was run to its end left."""

    exit: ExitResult
    stdout: bytes
    stderr: bytes


class Job:
    """One command and its streams.

    Args:
        stream: the streams' state.
        connect: makes a connection to the helper, which is started where there is none.
        opening: the operation of the first connection, and its path parameters.
        on_notes: told what the helper's answer says besides.

    Not for several threads at once.
    """

    def __init__(
        self,
        stream: JobStream,
        connect: Callable[[], socket.socket],
        opening: tuple[str, dict[str, object]],
        on_notes: Callable[[Notes], None],
    ) -> None:
        self.stream = stream
        self._connect = connect
        self._on_notes = on_notes
        self._attempts = 0
        self._outgoing = bytearray()
        self._opening = opening
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- for a poll loop -------------------------------------------------------------------------
    def fileno(self) -> int:
        """The socket; another one after the helper was replaced."""
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """There is something to send."""
        self._collect()
        return bool(self._outgoing)

    def flush(self) -> None:
        """Send what the socket takes now, without waiting."""
        self._collect()
        try:
            while self._outgoing:
                sent = self._socket.send(self._outgoing)
                del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError:
            # It is gone. What it said before is still to be read; the end of that starts anew.
            self._outgoing.clear()

    def receive(self) -> list[JobEvent]:
        """Read what is there now; a lost helper is replaced on the way.

        Raises:
            VmgrError: the command could not be started, or its machine failed.
        """
        try:
            data = self._socket.recv(_READ_SIZE)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        opened = self._channel.opened
        try:
            messages = self._channel.receive(data)
        except HelperUnavailableError:
            # A helper that was stopping took the connection but not the upgrade, before which
            # nothing is asked of it: the next one can be asked the same.
            if data:
                raise
            messages = []
        if self._channel.opened and not opened:
            self._on_notes(self._channel.notes)
        events = [event for message in messages for event in self.stream.receive(message)]
        if self.stream.started:
            self._attempts = 0
        if self._channel.closed and self.stream.exit is None:
            self._reconnect(again=not self._channel.opened)
        return events

    def close(self) -> None:
        """Close the connection: after the exit a receipt, before it the command is hung up."""
        if self._socket.fileno() < 0:
            return
        self._collect()
        self._channel.close()
        self._outgoing += self._channel.take_outgoing()
        self.flush()
        self._socket.close()

    def close_and_wait(self, deadline: float) -> None:
        """Close, and wait up to `deadline` seconds until the helper has cleaned up."""
        until = time.monotonic() + deadline
        self._collect()
        self._channel.close()
        self._outgoing += self._channel.take_outgoing()
        poll = select.poll()
        try:
            while (left := until - time.monotonic()) > 0:
                self.flush()
                poll.register(self, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
                if poll.poll(left * 1000) and not self._drain():
                    break
        finally:
            self._socket.close()

    # -- for those without one -------------------------------------------------------------------
    def wait_events(self, timeout: float | None = None) -> list[JobEvent]:
        """Wait for something to happen, at most `timeout` seconds; `[]` when nothing did."""
        poll = select.poll()
        poll.register(self, select.POLLIN | (select.POLLOUT if self.wants_write else 0))
        for _fd, mask in poll.poll(None if timeout is None else timeout * 1000):
            if mask & select.POLLOUT:
                self.flush()
            if mask & ~select.POLLOUT:
                return self.receive()
        return []

    def communicate(self, stdin: bytes = b"", *, limit: int = 64 * 1024**2) -> Completed:
        """Give the command `stdin` and collect its output until it ends.

        Args:
            stdin: all its input.
            limit: the most bytes of output that are kept.

        Raises:
            ResourceError: it said more than `limit`; it has been hung up.
            VmgrError: it could not be started, or its machine failed.
        """
        unwritten = memoryview(stdin)
        outputs = {s.STDOUT: bytearray(), s.STDERR: bytearray()}
        try:
            while self.stream.exit is None:
                room = self.stream.input_room
                if unwritten and room:
                    self.stream.write(bytes(unwritten[:room]))
                    unwritten = unwritten[room:]
                if not unwritten and room:
                    self.stream.end_input()
                for event in self.wait_events():
                    if isinstance(event, Output):
                        outputs[event.flow] += event.data
                        if sum(map(len, outputs.values())) > limit:
                            raise ResourceError(f"the command said more than {limit} bytes")
                        self.stream.taken(event.flow, len(event.data))
        finally:
            self.close()
        return Completed(
            exit=self.stream.exit,
            stdout=bytes(outputs[s.STDOUT]),
            stderr=bytes(outputs[s.STDERR]),
        )

    # -- machinery -------------------------------------------------------------------------------
    def _open(self) -> None:
        self._channel = Stream(*self._opening)
        self._socket = self._connect()
        self._socket.settimeout(0)
        self._outgoing = bytearray(self._channel.take_outgoing())
        self.stream.connected()
        self.flush()

    def _reconnect(self, *, again: bool) -> None:
        self._socket.close()
        if not again:
            self.stream.disconnected()
            self._opening = ("attach", {"machine": self.stream.machine, "job": self.stream.job})
        self._attempts += 1
        if self._attempts > _ATTEMPTS:
            raise HelperUnavailableError(
                "the helper ends again and again",
                next_step='see "vmgr helper logs"',
            )
        self._open()

    def _collect(self) -> None:
        # A WebSocket message may only follow the upgrade's answer.
        if self._channel.opened:
            for message in self.stream.take_outgoing():
                self._channel.send(message)
        self._outgoing += self._channel.take_outgoing()

    def _drain(self) -> bool:
        try:
            return bool(self._socket.recv(_READ_SIZE))
        except BlockingIOError:
            return True
        except OSError:
            return False
