"""One allowed command on this computer: its process, its streams, its end.

It gets the person's environment and umask, a session of its own, none of our fds (`userenv`). With
a terminal it leads that terminal's session: a shell whose text never changes opens it and turns
into the command, since the session's first terminal becomes its controlling one and nothing of ours
may run between fork and exec. The command and its arguments are that shell's *parameters*; no shell
ever reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import struct
import termios
from collections import deque
from typing import TYPE_CHECKING, Final

from vmgr.agent.frames import STDERR, STDOUT
from vmgr.spawner import StopPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmgr.hostcommands.conversation import Size
    from vmgr.spawner import ExitStatus, Process
    from vmgr.userenv import Person

__all__ = ["Running"]

_ON_TERMINAL: Final = ("/bin/sh", "-c", 'exec "$@" <>"$0" >&0 2>&0')
_END_OF_TEXT: Final = b"\x04"
_HANGUP: Final = StopPolicy(ask=signal.SIGHUP, wait=5.0)


class Running:
    """A command that runs. Made by `start`, ended by `close`, whoever ended first."""

    def __init__(
        self, process: Process, stdin: int, outputs: dict[int, int], terminal: int | None
    ) -> None:
        self._process = process
        self._stdin: int | None = stdin
        self._outputs = outputs
        self._terminal = terminal
        self._slave: int | None = None
        self._waiting: deque[bytes] = deque()
        self._input_ended = False
        self._fed = asyncio.Event()
        self._feeding = asyncio.create_task(self._feed(), name="stdin of a host command")
        self.taken = 0
        """Bytes of stdin that are off our hands."""
        self.on_taken = asyncio.Event()
        self._wake: set[asyncio.Event] = set()
        process.when_ended(self._ended)

    @classmethod
    async def start(
        cls,
        person: Person,
        argv: Sequence[str],
        *,
        cwd: str | None,
        extra: Mapping[str, str],
        size: Size | None,
    ) -> Running:
        """Start it.

        Raises:
            OSError: it could not be started.
        """
        if size is not None:
            return await cls._on_terminal(person, argv, cwd, extra, size)
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as theirs:
            ours: list[int] = []
            ends: list[int] = []
            for towards in (True, False, False):
                read, write = os.pipe2(os.O_CLOEXEC)
                our, their = (write, read) if towards else (read, write)
                failed.callback(os.close, our)
                theirs.callback(os.close, their)
                os.set_blocking(our, False)
                ours.append(our)
                ends.append(their)
            process = await person.spawn(
                argv, cwd=cwd, extra=extra, stdin=ends[0], stdout=ends[1], stderr=ends[2]
            )
            failed.pop_all()
        return cls(process, ours[0], {STDOUT: ours[1], STDERR: ours[2]}, None)

    @classmethod
    async def _on_terminal(
        cls,
        person: Person,
        argv: Sequence[str],
        cwd: str | None,
        extra: Mapping[str, str],
        size: Size,
    ) -> Running:
        master, slave = os.openpty()
        with contextlib.ExitStack() as failed:
            failed.callback(os.close, master)
            failed.callback(os.close, slave)
            _resize(master, size)
            process = await person.spawn(
                [*_ON_TERMINAL, os.ttyname(slave), *argv], cwd=cwd, extra=extra
            )
            failed.pop_all()
        os.set_blocking(master, False)
        # A terminal's two directions are watched each on an fd of its own.
        stdin = fcntl.fcntl(master, fcntl.F_DUPFD_CLOEXEC, 3)
        running = cls(process, stdin, {STDOUT: master}, master)
        # Until the command has opened it, nobody else has: its other end would read as hung up.
        running._slave = slave
        return running

    @property
    def flows(self) -> list[int]:
        """The outputs that it has."""
        return list(self._outputs)

    async def wait(self) -> ExitStatus:
        """Wait for its end."""
        return await self._process.wait()

    # -- what its caller says --------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Bytes for its stdin; what it has not taken is kept, as far as its caller was granted."""
        self._waiting.append(data)
        self._fed.set()

    def end_input(self) -> None:
        """Its stdin ends after that."""
        self._input_ended = True
        self._fed.set()

    def signal(self, number: int) -> None:
        """Signal its process group; on a terminal the group in the foreground."""
        group = self._process.pid
        if self._terminal is not None:
            with contextlib.suppress(OSError):
                group = os.tcgetpgrp(self._terminal) or group
        if self._process.running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)

    def resize(self, size: Size) -> None:
        """Its terminal has another size."""
        if self._terminal is not None:
            with contextlib.suppress(OSError):
                _resize(self._terminal, size)

    # -- what it says ----------------------------------------------------------------------------

    async def read(self, flow: int, most: int) -> bytes:
        """Its next output; empty: there is no more.

        After its end that is what it had written by then: what it has left behind may hold its
        pipes for ever.
        """
        fd = self._outputs[flow]
        while True:
            ended = not self._process.running
            try:
                return os.read(fd, most)
            except BlockingIOError:
                if ended:
                    return b""
            except OSError as error:
                if error.errno == errno.EIO:  # nobody has the terminal open
                    return b""
                raise
            await self._readable(fd)

    async def close(self) -> None:
        """End it if it runs, and let go of all."""
        try:
            if self._process.running:
                await asyncio.shield(self._process.stop(_HANGUP))
        finally:
            self._feeding.cancel()
            self._close_input()
            for fd in self._outputs.values():
                os.close(fd)
            self._outputs = {}
            self._terminal = None
            if self._slave is not None:
                os.close(self._slave)
                self._slave = None

    # -- inside ----------------------------------------------------------------------------------

    async def _readable(self, fd: int) -> None:
        """Wait until `fd` can be read or the process has ended."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        self._wake.add(ready)
        loop.add_reader(fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(fd)
            self._wake.discard(ready)

    def _ended(self, status: object) -> None:
        del status
        for waiting in self._wake:
            waiting.set()

    async def _feed(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._fed.wait()
            self._fed.clear()
            while self._waiting:
                data = self._waiting[0]
                count = len(data)  # of a command that reads no more: taken, and gone
                if self._stdin is not None:
                    try:
                        count = os.write(self._stdin, data)
                    except BlockingIOError:
                        ready = asyncio.Event()
                        loop.add_writer(self._stdin, ready.set)
                        try:
                            await ready.wait()
                        finally:
                            loop.remove_writer(self._stdin)
                        continue
                    except OSError:
                        self._close_input()
                self._waiting.popleft()
                if count < len(data):
                    self._waiting.appendleft(data[count:])
                self.taken += count
                self.on_taken.set()
            if self._input_ended and self._stdin is not None:
                if self._terminal is not None:
                    with contextlib.suppress(OSError):
                        os.write(self._stdin, _END_OF_TEXT)
                else:
                    self._close_input()
                self._input_ended = False

    def _close_input(self) -> None:
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None


def _resize(fd: int, size: Size) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.cols, 0, 0))
