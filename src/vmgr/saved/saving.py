"""Saving a VMM that goes on, or ends, afterwards: its memory and its devices, of one moment.

The order keeps the machine's pause short: the copier is started, and has copied what can no longer
change, before the machine is stopped; then the device state (a few milliseconds) and the memory
that the machine has changed; then it may go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final, Self

from vmgr.errors import StateError
from vmgr.saved.memory import GuestMemory, copier_command, outcome
from vmgr.spawner import StopPolicy, chunks, spawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from concurrent.futures import Executor
    from types import TracebackType

    from vmgr.spawner import Process
    from vmgr.vmm import Vmm

__all__ = ["Saver"]

_READY_DEADLINE: Final = 120.0
_COPY_DEADLINE: Final = 120.0
_AT_ONCE: Final = StopPolicy(ask=None)


class Saver:
    """One saving of one VMM; use it with `async with`, then `save`.

    Args:
        vmm: the VMM; runs.
        memory_bytes: the size of its guest's memory.
        memory: fd of the file that the memory is written to, open for writing, empty.
        devices: likewise for the device state.
        executor: for blocking work.
    """

    def __init__(
        self, vmm: Vmm, memory_bytes: int, memory: int, devices: int, executor: Executor
    ) -> None:
        self._vmm = vmm
        self._size = memory_bytes
        self._memory = memory
        self._devices = devices
        self._executor = executor
        self._stack = contextlib.ExitStack()
        self._copier: Process | None = None
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._go = -1
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start copying; returns when only what the machine may still change is left.

        Raises:
            MachineError: the memory cannot be read.
            ResourceError, StateError: it cannot be written.
        """
        try:
            await self._begin()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the copier; the machine is as the caller left it."""
        await self._end()

    async def save(self) -> int:
        """Write it all; the machine is paused by then and not let go on here.

        Returns:
            How many bytes of memory were ever touched (about).

        Raises:
            MachineError: the VMM does not give its device state.
            ResourceError, StateError: a file cannot be written.
        """
        await self._vmm.save_devices(self._devices)
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its last line says why
            await asyncio.get_running_loop().run_in_executor(
                self._executor, os.write, self._go, b"g"
            )
        line = await self._line(_COPY_DEADLINE)
        return outcome((line or "").split(), "write the machine's memory")[0]

    async def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        memory = await loop.run_in_executor(
            self._executor, GuestMemory.open, self._vmm.name, self._vmm.pid, self._size
        )
        self._stack.callback(memory.close)
        try:
            await self._start_copier(memory)
        except OSError as error:
            raise StateError(f"cannot copy the machine's memory: {error.strerror}") from error
        line = await self._line(_READY_DEADLINE)
        if line != "ready":
            outcome((line or "").split(), "write the machine's memory")
            raise StateError("cannot write the machine's memory: its copying broke off")

    async def _start_copier(self, memory: GuestMemory) -> None:
        out, their_out = os.pipe2(os.O_CLOEXEC)
        theirs, self._go = os.pipe2(os.O_CLOEXEC)
        self._stack.callback(os.close, self._go)
        try:
            self._copier = await spawn(
                copier_command(
                    "save", memory.ram, memory.mem, memory.pagemap, self._memory,
                    memory.start, memory.size, int(memory.private),
                ),
                stdin=theirs, stdout=their_out,
                pass_fds=(memory.ram, memory.mem, memory.pagemap, self._memory),
                parent_death="kill",
            )  # fmt: skip
        finally:
            os.close(theirs)
            os.close(their_out)
            self._reading = asyncio.create_task(self._read(out), name="copier's words")

    async def _line(self, deadline: float) -> str | None:
        try:
            async with asyncio.timeout(deadline):
                return await self._lines.get()
        except TimeoutError:
            raise StateError(f"the machine's memory was not copied within {deadline:g} s") from None

    async def _read(self, fd: int) -> None:
        try:
            async for line in _lines(fd):
                self._lines.put_nowait(line)
        finally:
            os.close(fd)
        self._lines.put_nowait(None)

    async def _end(self) -> None:
        if self._copier is not None:
            await asyncio.shield(self._copier.stop(_AT_ONCE))
        if self._reading is not None:
            await self._reading
        self._stack.close()


async def _lines(fd: int) -> AsyncIterator[str]:
    """Lines of a pipe until its end; at most a few short ones come."""
    rest = b""
    async for chunk in chunks(fd):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
