"""Talking to a VMM: commands with deadlines, events to a callback.

`qemu.qmp` does the protocol. Its client keeps every event in a listener that cannot be removed,
queue and history both; so events are taken where they arrive, before any listener sees them. What a
VMM sends is not trusted: a line is at most 1 MiB, and an answer that does not come ends the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.qmp_client import NegotiationError

from vmgr.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from qemu.qmp.message import Message

    EventCallback = Callable[[str, Mapping[str, Any]], None]

__all__ = ["Qmp"]

COMMAND_DEADLINE: Final = 10.0  # seconds
CONNECT_DEADLINE: Final = 30.0  # seconds; a VMM on a busy host takes a while to greet
_NEGOTIATIONS: Final = 4
_LINE_MAX: Final = 1 << 20

log = logging.getLogger(__name__)


class _Client(QMPClient):
    """A client that hands events over instead of collecting them."""

    def __init__(self, name: str, on_event: EventCallback) -> None:
        super().__init__(name, readbuflen=_LINE_MAX)
        self._on_event = on_event

    async def _recv(self) -> Message:
        # QEMU may tell of an event before it greets: what happens between its accepting the
        # connection and its noticing that is sent to a monitor that has negotiated nothing yet.
        message = await super()._recv()
        while self._greeting is None and "event" in message:
            await self._event_dispatch(message)
            message = await super()._recv()
        return message

    async def _event_dispatch(self, msg: Message) -> None:
        data = msg.get("data")
        self._on_event(str(msg.get("event")), data if isinstance(data, dict) else {})


class Qmp:
    """A connection to one VMM. Made by `Qmp.connect`; ends by itself when the VMM does."""

    def __init__(self, name: str, on_event: EventCallback) -> None:
        self._name = name
        self._client = _Client(name, on_event)
        self._watcher: asyncio.Task[None] | None = None
        self._lent: set[int] = set()
        """Sets of files that a VMM may still have, though they were taken back."""
        self.closed = asyncio.Event()

    @classmethod
    async def connect(
        cls,
        path: Path,
        name: str,
        on_event: EventCallback,
        deadline: float = CONNECT_DEADLINE,
    ) -> Qmp:
        """Connect and agree on capabilities.

        Args:
            path: the VMM's socket.
            name: the machine's, for errors and logs.
            on_event: called on the loop with each event's name and data; must not raise.
            deadline: seconds for all of it.

        Raises:
            MachineError: nothing listens, it does not speak QMP, or not in time.
        """
        try:
            async with asyncio.timeout(deadline):
                qmp = await cls._negotiated(path, name, on_event)
        except (QMPError, OSError, EOFError) as error:
            raise MachineError(
                f"the VMM of machine {name} cannot be reached: {_why(error)}",
                next_step=f"look at: vmgr logs {name}",
            ) from error
        qmp._watcher = asyncio.create_task(qmp._watch(), name=f"qmp {name}")  # noqa: SLF001 (ours)
        return qmp

    @classmethod
    async def _negotiated(cls, path: Path, name: str, on_event: EventCallback) -> Qmp:
        """Connect; once more where an event comes before the answer.

        QEMU takes a connection for ready before it has said so. An event just then (a restored
        machine begins to run within milliseconds of the connection) arrives where the client looks
        for the answer, and the client gives up. What the event says is seen again or asked for.
        """
        for _ in range(_NEGOTIATIONS - 1):
            qmp = cls(name, on_event)
            try:
                await qmp._client.connect(str(path))
            except QMPError as error:
                if not _was_event(error):
                    raise
                log.debug("QMP of %s: %s; connecting again", name, error)
            else:
                return qmp
        qmp = cls(name, on_event)
        await qmp._client.connect(str(path))
        return qmp

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        deadline: float = COMMAND_DEADLINE,
    ) -> Any:
        """Run a QMP command and give what it returns.

        Raises:
            MachineError: the VMM refuses it, does not answer in time, or is gone.
        """
        try:
            async with asyncio.timeout(deadline):
                return await self._client.execute(command, dict(arguments or {}))
        except ExecuteError as error:
            raise MachineError(
                f"the VMM of machine {self._name} refuses {command}: {error}",
                details={"command": command, "class": error.error_class},
            ) from error
        except TimeoutError as error:
            raise MachineError(
                f"the VMM of machine {self._name} did not answer {command} within {deadline:g} s",
                next_step=f"end it with: vmgr kill {self._name}",
            ) from error
        except QMPError as error:
            raise MachineError(
                f"the VMM of machine {self._name} is gone", details={"command": command}
            ) from error

    @contextlib.asynccontextmanager
    async def lent(self, fd: int) -> AsyncIterator[str]:
        """Lend the VMM an open file: the name under which its commands can open it.

        Raises:
            MachineError: the VMM does not take it.
        """
        try:
            self._client.send_fd_scm(fd)
        except (QMPError, OSError) as error:
            raise MachineError(f"the VMM of machine {self._name} is gone") from error
        added = await self.execute("add-fd")
        number = added.get("fdset-id") if isinstance(added, dict) else None
        if not isinstance(number, int):
            raise MachineError(f"the VMM of machine {self._name} does not take a file")
        self._lent.add(number)
        try:
            yield f"/dev/fdset/{number}"
        finally:
            await self._take_back(number)

    async def take_back(self) -> None:
        """Have the VMM close what it was lent while its machine stood still; now that it runs.

        QEMU before 9.1 closes removed files only while the machine runs (monitor/fds.c), and
        looks again when it is told again.
        """
        for number in list(self._lent):
            await self._take_back(number)
            self._lent.discard(number)

    async def _take_back(self, number: int) -> None:
        with contextlib.suppress(MachineError):  # it may be gone, and the file with it
            await self.execute("remove-fd", {"fdset-id": number})

    async def close(self) -> None:
        """Disconnect; the VMM goes on."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        await self._disconnect()

    async def _watch(self) -> None:
        """Wait for the other side to end the connection."""
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
        await self._disconnect()

    async def _disconnect(self) -> None:
        try:
            await self._client.disconnect()
        except (QMPError, OSError, EOFError) as error:
            # How a connection ends matters to nobody; that QEMU closed it is the usual way.
            log.debug("QMP of %s ended: %r", self._name, error)
        self.closed.set()


def _was_event(error: QMPError) -> bool:
    """Whether something else than an answer came where the client looked for one."""
    cause = error.__cause__
    return isinstance(cause, NegotiationError) and isinstance(cause.__cause__, AssertionError)


def _why(error: Exception) -> str:
    """What went wrong while connecting, on one line of bounded length."""
    cause = error.__cause__ if isinstance(error, QMPError) and error.__cause__ else error
    if isinstance(cause, TimeoutError):
        return "it does not answer"
    if isinstance(cause, EOFError):
        return "it ends the connection"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return " ".join(str(cause).split())[:200] or type(cause).__name__
