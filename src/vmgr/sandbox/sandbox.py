"""How well this host lets us lock a process in, and starting one accordingly.

Levels, weakest first. Each has what the ones before it have:

- `filter`: the program's own system call filter, no core dumps, a limit of open files, an
  environment without anything of the person's. It still sees what the person sees.
- `namespaces`: bubblewrap, see `vmgr.sandbox.bubblewrap`.
- `full`: also a control group with limits of memory, CPU and processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, get_args

import msgspec

from vmgr.api.models import SandboxLevel
from vmgr.errors import UnsupportedError
from vmgr.sandbox.bubblewrap import bubblewrap_argv
from vmgr.sandbox.need import NO_RIGHTS, Need, Rights
from vmgr.spawner import Contained, chunks, minimal_environment, spawn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vmgr.spawner import Process

__all__ = ["LEVELS", "Sandbox"]

LEVELS: Final[tuple[SandboxLevel, ...]] = get_args(SandboxLevel)

_OPEN_FILES: Final = 4_096  # QEMU uses a few dozen
_IO_PRIORITY: Final = 5  # after what the person does meanwhile (4), before what is idle
_TOLD_WITHIN: Final = 30.0  # seconds; bubblewrap tells the pid in its first milliseconds
_TOLD_MAX: Final = 65_536


class _Info(msgspec.Struct):
    """What bubblewrap writes to `--info-fd`, as far as it matters here."""

    pid: int = msgspec.field(name="child-pid")


@dataclass(frozen=True)
class Sandbox:
    """What this host permits for one program."""

    level: SandboxLevel
    reason: str
    """For people: one sentence without a final stop."""
    fix: str | None = None
    """How to get a better level, where there is a way."""
    bubblewrap: Path | None = None
    setpriv: Path | None = None
    program: Need = field(default_factory=Need)
    """What the program itself needs, whatever it is to do."""
    cgroup: Path | None = None
    """Where control groups for single machines can be made."""

    def require(self, wanted: SandboxLevel) -> None:
        """See that it is not weaker than `wanted`.

        Raises:
            UnsupportedError: it is, with why.
        """
        if LEVELS.index(self.level) < LEVELS.index(wanted):
            raise UnsupportedError(
                f"this host permits only the sandbox level {self.level}, and the setting "
                f"sandbox.require asks for {wanted}: {self.reason}",
                next_step="see how to get it with: vmgr doctor",
                details={"level": self.level, "required": wanted, "fix": self.fix},
            )

    async def spawn(
        self,
        argv: Sequence[str],
        need: Need,
        *,
        stdout: int,
        stderr: int,
        stdin: int | None = None,
        pass_fds: Sequence[int] = (),
        rights: Rights = NO_RIGHTS,
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        open_files: int = _OPEN_FILES,
        file_size: int | None = None,
        io_priority: int | None = _IO_PRIORITY,
    ) -> Process:
        """Start a program that outlives us with what `need` names and what it needs itself.

        The process given is the program's own, not that of anything around it.

        Args:
            before: a command that turns into the one that is appended to it: it enters what the
                sandbox is made in.
            environment: beside PATH and the locale.
            open_files: how many it may have; `io_priority` as with `vmgr.spawner.spawn`.
            file_size: how large a file that it writes may become, its log included.

        Raises:
            OSError: it could not be started.
        """
        limits = {"core": 0, "nofile": open_files}
        if file_size is not None:
            limits["fsize"] = file_size
        # Nothing of the person's: neither names and directories nor proxies with passwords.
        env = {"PATH": minimal_environment()["PATH"], "LC_ALL": "C.UTF-8"}
        env.update(environment or {})
        if self.bubblewrap is None or self.setpriv is None:
            return await spawn(
                [*before, *argv], env=env, stdin=stdin, stdout=stdout, stderr=stderr,
                pass_fds=pass_fds, limits=limits, io_priority=io_priority,
            )  # fmt: skip
        read, write = _kept_pipe()
        try:
            try:
                wrapped = bubblewrap_argv(
                    self.bubblewrap, self.program + need, argv,
                    setpriv=self.setpriv, info_fd=write, rights=rights,
                )  # fmt: skip
                monitor = await spawn(
                    [*before, *wrapped], env=env, stdin=stdin, stdout=stdout, stderr=stderr,
                    pass_fds=(*pass_fds, write), limits=limits, io_priority=io_priority,
                )  # fmt: skip
            finally:
                os.close(write)
            process = await _program_of(monitor, read)
        finally:
            os.close(read)
        if process is not None:
            return process
        # It did not get as far as to have a program. What it says of that is in its output, and its
        # own end is what there is to watch.
        try:
            async with asyncio.timeout(_TOLD_WITHIN):
                await monitor.wait()
        finally:
            monitor.kill()
        return monitor


def _kept_pipe() -> tuple[int, int]:
    """A pipe whose writer reads too: with us gone it may still write.

    A monitor that SIGPIPE ends leaves the program's process waiting for it, for ever.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        return read, os.open(f"/proc/self/fd/{write}", os.O_RDWR | os.O_CLOEXEC)
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)


async def _program_of(monitor: Process, info: int) -> Process | None:
    """The program that a monitor has started, when that is told; None if it started none.

    Cancelled, it ends the program: a monitor that is killed this early does not take it along.
    """
    telling = asyncio.create_task(_read_all(info), name="pid in the sandbox")
    cancelled = False
    try:
        await asyncio.shield(telling)
    except asyncio.CancelledError:
        cancelled = True
    except TimeoutError:
        return None
    try:
        told = msgspec.json.decode(await telling, type=_Info)
    except (msgspec.MsgspecError, TimeoutError):
        process = None
    else:
        process = Contained.under(monitor, told.pid)
    if cancelled:
        (process or monitor).kill()
        await (process or monitor).wait()
        raise asyncio.CancelledError
    return process


async def _read_all(fd: int) -> bytes:
    """All that comes until the end of file: bubblewrap writes in pieces."""
    told = b""
    async with asyncio.timeout(_TOLD_WITHIN), contextlib.aclosing(chunks(fd)) as parts:
        async for part in parts:
            told += part
            if len(told) >= _TOLD_MAX:
                break
    return told
