"""A program that leads out, on trial: in namespaces of its own, to this computer's loopback.

What works with machines' traffic is tried and measured so, without opening to any machine what the
real one keeps closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final

from vmgr.errors import UnsupportedError
from vmgr.network import confined
from vmgr.network.egress_programs import GATEWAY4
from vmgr.network.strays import MARK
from vmgr.spawner import StopPolicy, first_line, minimal_environment, spawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vmgr.network.egress_programs import EgressProgram
    from vmgr.sandbox import Sandbox
    from vmgr.spawner import Process

__all__ = ["HOST", "end", "on_trial"]

HOST: Final = GATEWAY4
"""Where this computer's 127.0.0.1 is, in those namespaces."""
_READY: Final = 10.0  # seconds
_HOLD: Final = (
    "unshare", "--user", "--net", "--map-root-user", "--",
    "sh", "-c", "echo ready; exec sleep 600",
)  # fmt: skip


@contextlib.asynccontextmanager
async def on_trial(
    program: EgressProgram, sandbox: Sandbox, runtime: Path
) -> AsyncIterator[confined.Namespaces]:
    """Namespaces from which the program leads to this computer's loopback; gone at the end.

    Args:
        sandbox: the one that it would run in.
        runtime: marks what is started as ours, should we die meanwhile.

    Raises:
        UnsupportedError, OSError: it does not start.
    """
    mark = {MARK: str(runtime)}
    async with contextlib.AsyncExitStack() as stack:
        read, write = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, read)
        try:
            holder = await spawn(
                _HOLD, env={**minimal_environment(), **mark}, stdout=write, parent_death="kill"
            )
        finally:
            os.close(write)
        stack.push_async_callback(end, holder)
        if await first_line(read, _READY) != "ready":
            raise UnsupportedError("this host gives no network namespace")
        namespaces = confined.Namespaces(holder.pid)
        stack.callback(namespaces.close)
        stack.push_async_callback(end, await _led_out(program, sandbox, namespaces, mark))
        yield namespaces


async def end(process: Process) -> None:
    """See that a process has ended."""
    if process.running:
        await asyncio.shield(process.stop(StopPolicy(None)))


async def _led_out(
    program: EgressProgram,
    sandbox: Sandbox,
    namespaces: confined.Namespaces,
    environment: dict[str, str],
) -> Process:
    need = await program.need()
    read, write = os.pipe2(os.O_CLOEXEC)
    namespace = namespaces.network()
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            how = await program.invocation(namespace, write, on_trial=True)
            process = await sandbox.spawn(
                how.argv, need, stdin=how.stdin, stderr=nowhere, pass_fds=how.pass_fds,
                stdout=nowhere if how.stdout is None else how.stdout,
                rights=confined.EGRESS_RIGHTS, before=namespaces.entering("user"),
                environment=environment, io_priority=None,
            )  # fmt: skip
        finally:
            for fd in (write, namespace, nowhere):
                os.close(fd)
        said = await first_line(read, _READY, whole=program.whole)
    finally:
        os.close(read)
    if program.ready.fullmatch(said) is None:
        await end(process)
        raise UnsupportedError(f"{program.name} did not start")
    return process
