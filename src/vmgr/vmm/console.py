"""A machine's serial console: read all of it, keep the end of it.

The guest's kernel and whoever runs as its root write here as much as they like. One chunk is read,
written to the capped log in an executor, and only then is the next one read: a flood fills the
socket, which slows down the guest's own writing and nothing of ours. While no helper is connected
QEMU drops what the guest writes.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Final

from vmgr.errors import MachineError
from vmgr.vmm.cappedlog import CappedLog

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

__all__ = ["Console"]

CHUNK: Final = 65_536
TAIL: Final = 16_384  # bytes kept in memory, for what an error shows

# How panic() begins its message (kernel/panic.c), at the start of a line or after a time stamp.
_PANIC: Final = re.compile(rb"(?:^|\n|\] )Kernel panic - not syncing: ([^\r\n]{0,200})\r?\n")
_PANIC_WINDOW: Final = 512  # bytes of the chunk before, where a message may begin

log = logging.getLogger(__name__)


class Console:
    """One connection to a machine's console. Made by `Console.connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._tail = bytearray()
        self._task: asyncio.Task[None] | None = None
        self.spoke = asyncio.Event()
        """Set at the first byte."""
        self.panic: str | None = None
        """Why the guest's kernel panicked, by its own message: a claim of the guest's."""
        self.ended = asyncio.Event()
        """Set at the end of the stream, when all of it is in the log."""

    @classmethod
    async def connect(cls, socket_path: Path, log_path: Path, executor: Executor) -> Console:
        """Connect, and log from then on.

        Args:
            socket_path: the VMM's console socket.
            log_path: the capped log.
            executor: writes the log.

        Raises:
            MachineError: nothing listens there.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(str(socket_path), limit=CHUNK)
        except OSError as error:
            raise MachineError(
                f"the machine's console cannot be reached: {error.strerror}"
            ) from error
        console = cls(reader, writer)
        console._task = asyncio.create_task(
            console._pump(CappedLog(log_path), executor), name=f"console {socket_path.parent.name}"
        )
        return console

    def tail(self, limit: int = TAIL) -> str:
        """The end of what was said, for people: whole lines, no control characters."""
        text = bytes(self._tail[-limit:]).decode(errors="replace")
        lines = (_printable(line) for line in text.splitlines())
        return "\n".join(line for line in lines if line)

    async def close(self) -> None:
        """Disconnect; the machine goes on. What was read is in the log."""
        self._writer.close()
        if self._task is not None:
            # The pump ends at the closed stream, after its last write.
            await asyncio.gather(self._task, return_exceptions=True)

    async def _pump(self, file: CappedLog, executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        failing = False
        try:
            while chunk := await self._read():
                self._look(chunk)
                try:
                    await loop.run_in_executor(executor, file.write, chunk)
                    failing = False
                except OSError as error:
                    # A full disk costs the log, not the machine.
                    if not failing:
                        log.warning("the console's log cannot be written: %s", error.strerror)
                    failing = True
        finally:
            self._writer.close()
            await loop.run_in_executor(executor, file.close)
            self.ended.set()

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(CHUNK)
        except OSError:
            return b""  # the VMM was killed with bytes of ours unread

    def _look(self, chunk: bytes) -> None:
        self.spoke.set()
        seam = len(self._tail)
        self._tail += chunk
        if match := _PANIC.search(self._tail, max(0, seam - _PANIC_WINDOW)):
            self.panic = _printable(match[1].decode(errors="replace"))
        if len(self._tail) > 2 * TAIL:
            del self._tail[:-TAIL]


def _printable(line: str) -> str:
    line = _ESCAPES.sub("", line)
    return "".join(c for c in line if c.isprintable() or c == "\t").rstrip()


# Control sequences of terminals (ECMA-48: CSI …, and two-character escapes).
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
