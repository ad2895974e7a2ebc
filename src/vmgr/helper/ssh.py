"""The helper's hold on the SSH server: started when asked for, found again by the next helper.

The server is a client of ours and outlives us, with the sessions that go on through the next
helper. It ends with a helper that stops while no machine runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from signal import SIGHUP
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr._version import __version__
from vmgr.api.models import SshServer
from vmgr.errors import StateError, VmgrError
from vmgr.spawner import Process, StopPolicy, first_line, spawn

if TYPE_CHECKING:
    from vmgr.helper.helper import Helper

__all__ = ["Ssh"]

_READY_DEADLINE: Final = 30.0
_LIMITS: Final = {"core": 0, "nofile": 4_096}

log = logging.getLogger(__name__)


class Ssh:
    """The one SSH server of this user."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._lock = asyncio.Lock()
        self._process: Process | None = None
        self._server: SshServer | None = None

    @property
    def pid(self) -> int | None:
        """Its process, as far as we know."""
        return self._process.pid if self._process is not None and self._process.running else None

    async def begin(self) -> None:
        """Find the one that an earlier helper started; start one where the settings say so."""
        async with self._lock:
            await self._adopt()
        try:
            if (await self._helper.settings()).get("ssh.start") == "helper":
                await self.ensure()
        except VmgrError as error:
            log.warning("the SSH server is not started: %s", error)

    async def ensure(self) -> SshServer:
        """Have it run.

        Raises:
            StateError: it cannot be started.
        """
        async with self._lock:
            await self._adopt()
            if self.pid is not None and self._server is not None:
                if self._server.version == __version__:
                    return self._server
                # It goes on for those who use it, and gives its place to one of our version.
                assert self._process is not None  # noqa: S101 (it has a pid)
                self._process.signal(SIGHUP)
            await self._start()
            await self._adopt()
            if self._server is None:
                raise StateError(
                    "the SSH server ended right after it had started", next_step=self._see()
                )
            return self._server

    async def close(self, *, keep: bool) -> None:
        """Let go of it, or end it."""
        await self._adopt()
        if not keep and self._process is not None and self._process.running:
            await self._process.stop(StopPolicy())

    async def _adopt(self) -> None:
        path = self._helper.paths.ssh_record
        try:
            record = await self._helper.executors.in_files(path.read_bytes)
            server = msgspec.json.decode(record, type=SshServer)
        except (OSError, msgspec.MsgspecError):
            # One that is ending, or has been told to make room, takes its record away first.
            self._process = self._server = None
            return
        if self._process is not None and self._process.running and self._process.pid == server.pid:
            self._server = server
            return
        process = Process.adopt(server.pid, server.start_time)
        self._process, self._server = process, None if process is None else server

    async def _start(self) -> None:
        port = (await self._helper.settings()).get("ssh.port")
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                process = await spawn(
                    [
                        sys.executable, "-P", "-m", "vmgr.ssh",
                        "--ready-fd", str(write), "--port", str(port),
                    ],
                    # It starts a helper where there is none, as each client does.
                    env=dict(os.environ), pass_fds=(write,), limits=_LIMITS,
                )  # fmt: skip
            except OSError as error:
                raise StateError(f"cannot start the SSH server: {error.strerror}") from error
            finally:
                os.close(write)
            try:
                said = await first_line(read, _READY_DEADLINE)
            except BaseException:  # nobody would know of it
                await asyncio.shield(process.stop(StopPolicy(None)))
                raise
        finally:
            os.close(read)
        if said != "ready":
            await process.stop(StopPolicy(None))
            why = said.removeprefix("error: ") or "no answer"
            raise StateError(f"the SSH server cannot start: {why}", next_step=self._see())
        self._process = process

    def _see(self) -> str:
        return f"see {self._helper.paths.ssh_log}"
