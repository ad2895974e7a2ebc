"""The processes that make the network: holder, switchboard, egress.

The **holder** does nothing: it is there so that the namespaces are, whoever else dies. Switchboard
and egress can be killed and started again in the same namespaces; a machine's tap lives there too.
All three outlive the helper. A record names them (pid and start time), so the next helper goes on
with them; what is not in it, a helper that died has started in its last moment, and is ended.

Each is started in the best sandbox that works (`vmgr.network.confined`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import resource
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from vmgr.errors import StateError, UnsupportedError
from vmgr.network import confined
from vmgr.network.egress_choice import only_slirp4netns
from vmgr.network.strays import MARK, strays
from vmgr.sandbox import Need
from vmgr.spawner import Contained, Process, StopPolicy, first_line
from vmgr.spawner.process import start_time_of
from vmgr.switchboard.namespace import setup_script
from vmgr.switchboard.upstream import UpstreamSockets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmgr.network.egress_choice import Choice
    from vmgr.network.egress_programs import EgressProgram
    from vmgr.paths import Paths
    from vmgr.sandbox import Sandbox

__all__ = ["NetworkProcesses", "Part", "Record"]

_READY_DEADLINE: Final = 15.0
_MONITOR_LINGERS: Final = 5.0
_HOLD: Final = ("sh", "-c", "echo ready; exec sleep infinity")
_READY: Final = re.compile("ready")
_OPEN_FILES: Final = 65_536  # a forwarded connection has two, and its pipes
_LOG_LIMIT: Final = 4 << 20  # bytes; begun anew with each switchboard, and it says little

log = logging.getLogger(__name__)


class Named(Struct, frozen=True):
    """A process, for ever: a pid alone may be another's by now."""

    pid: int
    start_time: int
    level: str = "filter"
    """The sandbox that it was started in."""
    monitor: int | None = None
    """bubblewrap's, where there is one; it ends with the process."""


class Record(Struct, frozen=True, kw_only=True):
    """What the next helper must find."""

    holder: Named | None = None
    switchboard: Named | None = None
    egress: Named | None = None
    egress_program: str = "slirp4netns"


@dataclass(frozen=True)
class Part:
    """A process of the network, for who looks at them all."""

    name: str
    pid: int
    level: str
    program: str | None = None
    """Of the egress: which one."""


class NetworkProcesses:
    """Starts, finds and ends them; the same one is not asked for twice at the same time.

    Args:
        required: whether a process without a sandbox of namespaces will not do.
        choose: which programs may lead to the internet.
    """

    def __init__(
        self,
        paths: Paths,
        required: Callable[[], Awaitable[bool]],
        choose: Callable[[], Awaitable[Choice]] = only_slirp4netns,
    ) -> None:
        self._paths = paths
        self._required = required
        self._choose = choose
        self._making = asyncio.Lock()
        self.holder: Process | None = None
        self.switchboard: Process | None = None
        self.egress: Process | None = None
        self.egress_program: str | None = None
        """Which program leads to the internet."""
        self.egress_note: str | None = None
        """Why it is not another that was wanted."""
        self._namespaces: confined.Namespaces | None = None
        self._levels: dict[int, str] = {}
        self._monitors: dict[int, int] = {}

    def parts(self) -> list[Part]:
        """Those that run."""
        named = (
            ("holder", self.holder),
            ("switchboard", self.switchboard),
            ("egress", self.egress),
        )
        return [
            Part(
                name,
                process.pid,
                self._levels.get(process.pid, "filter"),
                self.egress_program if process is self.egress else None,
            )
            for name, process in named
            if process is not None and process.running
        ]

    async def adopt(self) -> None:
        """Take over what an earlier helper started and is still there."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            record = msgspec.json.decode(self._paths.network_record.read_bytes(), type=Record)
            self.egress_program = record.egress_program
            for name in ("holder", "switchboard", "egress"):
                named: Named | None = getattr(record, name)
                if named is None:
                    continue
                setattr(self, name, Process.adopt(named.pid, named.start_time))
                self._levels[named.pid] = named.level
                if named.monitor is not None:
                    self._monitors[named.pid] = named.monitor
        for process in (self.holder, self.switchboard):
            if self._namespaces is None and process is not None and process.running:
                with contextlib.suppress(OSError):  # it ends just now
                    self._namespaces = confined.Namespaces(process.pid)
        known = {part.pid for part in self.parts()}
        for pid, began in await asyncio.to_thread(strays, self._paths.runtime, known):
            if (stray := Process.adopt(pid, began)) is not None:
                log.warning("process %d of the network belongs to nobody; it is ended", pid)
                await stray.stop(StopPolicy(None))

    async def ensure_holder(self) -> Process:
        """The process that keeps the namespaces.

        Raises:
            UnsupportedError: this host does not let us have namespaces.
        """
        async with self._making:
            return await self._holder()

    async def _holder(self) -> Process:
        if _lives(self.holder):
            assert self.holder is not None  # noqa: S101 (it lives)
            return self.holder
        kept = self._namespaces
        if kept is None:
            for process in (self.switchboard, self.egress):  # of namespaces that are no more
                if process is not None and process.running:
                    await process.stop(StopPolicy(None))
        need = await confined.holder_need()

        async def launch(sandbox: Sandbox, say: int) -> Process:
            rights, before = confined.HOLDER_RIGHTS, []
            if kept is not None:
                rights, before = confined.NEXT_HOLDER_RIGHTS, kept.entering("user", "net")
            elif sandbox.bubblewrap is None:  # which would make the namespaces
                before = ["unshare", "--user", "--net", "--map-root-user", "--"]
            return await sandbox.spawn(
                _HOLD, need + Need(network=kept is not None), stdout=say, stderr=say,
                rights=rights, before=before, environment=self._marked(),
            )  # fmt: skip

        self.holder, said = await self._started("holder", launch)
        if self.holder is None:
            raise UnsupportedError(
                f"this host gives no network namespace: {said or 'no answer'}",
                next_step="see the exact fix with: vmgr doctor",
            )
        if kept is None:
            self._namespaces = confined.Namespaces(self.holder.pid)
        self._write()
        return self.holder

    async def _entered(self) -> confined.Namespaces:
        await self.ensure_holder()
        assert self._namespaces is not None  # noqa: S101 (the holder's)
        return self._namespaces

    async def start_switchboard(self) -> None:
        """Start a switchboard in the holder's namespaces; it listens when this returns.

        Raises:
            UnsupportedError: it cannot work on this host.
            OSError: it could not be started.
        """
        namespaces = await self._entered()
        need = await confined.switchboard_need()
        path = self._paths.switchboard_socket
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        with contextlib.ExitStack() as stack:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            stack.callback(listener.close)
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            listener.listen(4)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            logging_to = os.open(self._paths.switchboard_log, flags | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, logging_to)
            # In its namespaces it could only make sockets of those.
            upstream = UpstreamSockets()
            stack.callback(upstream.close)
            entering = namespaces.entering("user", "net")

            async def launch(sandbox: Sandbox, say: int) -> Process:
                return await sandbox.spawn(
                    [
                        sys.executable, "-P", "-m", "vmgr.switchboard",
                        "--listen-fd", str(listener.fileno()), "--ready-fd", str(say),
                        "--upstream-fds", ",".join(map(str, upstream.fds())),
                    ],
                    need, stdout=logging_to, stderr=logging_to,
                    pass_fds=(listener.fileno(), say, *upstream.fds()),
                    rights=confined.SWITCHBOARD_RIGHTS,
                    before=[*entering, "sh", "-c", setup_script(), "sh"],
                    environment={**self._marked(), **confined.python_environment()},
                    open_files=_most_open_files(), file_size=_LOG_LIMIT, io_priority=None,
                )  # fmt: skip

            self.switchboard, said = await self._started("switchboard", launch)
        if self.switchboard is None:
            raise UnsupportedError(
                f"the network cannot be set up: {said.removeprefix('error: ') or 'no answer'}",
                next_step=f"see {self._paths.switchboard_log}, and: vmgr doctor",
            )
        self._write()

    async def start_egress(self) -> None:
        """Start the way to the internet.

        Raises:
            UnsupportedError: no program for that is installed, or it does not start.
        """
        namespaces = await self._entered()
        choice = await self._choose()
        note = choice.note
        for program in choice.programs:
            self.egress = await self._lead_out(program, namespaces)
            if self.egress is not None:
                self.egress_program, self.egress_note = program.name, note
                self._write()
                return
            note = f"{program.name} did not start"
            log.warning("the way to the internet: %s", note)
        raise UnsupportedError(f"{note}, so machines have no internet")

    async def _lead_out(
        self, program: EgressProgram, namespaces: confined.Namespaces
    ) -> Process | None:
        need = await program.need()
        namespace = namespaces.network()
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

        async def launch(sandbox: Sandbox, say: int) -> Process:
            how = await program.invocation(namespace, say)
            return await sandbox.spawn(
                how.argv, need, stdin=how.stdin, stderr=nowhere, pass_fds=how.pass_fds,
                stdout=nowhere if how.stdout is None else how.stdout,
                rights=confined.EGRESS_RIGHTS, before=namespaces.entering("user"),
                environment=self._marked(), open_files=_most_open_files(), io_priority=None,
            )  # fmt: skip

        try:
            process, _ = await self._started("egress", launch, program.ready, whole=program.whole)
        finally:
            os.close(nowhere)
            os.close(namespace)
        return process

    async def stop(self) -> None:
        """End all three."""
        for process in (self.egress, self.switchboard, self.holder):
            if process is None:
                continue
            if process.running:
                await process.stop(StopPolicy(None))
            await self._monitor_ended(process)
        self.egress = self.switchboard = self.holder = None
        if self._namespaces is not None:
            self._namespaces.close()
            self._namespaces = None
        self._levels.clear()
        self._monitors.clear()
        for path in (self._paths.network_record, self._paths.switchboard_socket):
            path.unlink(missing_ok=True)

    async def _started(
        self,
        name: str,
        launch: Callable[[Sandbox, int], Awaitable[Process]],
        ready: re.Pattern[str] = _READY,
        *,
        whole: bytes = b"\n",
    ) -> tuple[Process | None, str]:
        """Start one in the best sandbox in which it says that it is ready; else its last words."""
        said = ""
        for sandbox in confined.sandboxes(required=await self._required()):
            read, write = os.pipe2(os.O_CLOEXEC)
            try:
                try:
                    process = await launch(sandbox, write)
                finally:
                    os.close(write)
                try:
                    said = await first_line(read, _READY_DEADLINE, whole=whole)
                except BaseException:  # nobody would know of it
                    await asyncio.shield(process.stop(StopPolicy(None)))
                    raise
            finally:
                os.close(read)
            if ready.fullmatch(said):
                self._levels[process.pid] = sandbox.level
                if isinstance(process, Contained):
                    self._monitors[process.pid] = process.monitor.pid
                if sandbox.level == "filter":
                    log.warning("the %s runs without a sandbox; see vmgr doctor", name)
                return process, said
            await process.stop(StopPolicy(None))
        return None, said

    async def _monitor_ended(self, process: Process) -> None:
        """Wait for the monitor of one that an earlier helper started; our own told its end."""
        number = self._monitors.get(process.pid)
        began = None if number is None else start_time_of(number)
        if number is None or began is None or isinstance(process, Contained):
            return
        if (monitor := Process.adopt(number, began)) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MONITOR_LINGERS):
                    await monitor.wait()

    def _marked(self) -> dict[str, str]:
        return {MARK: str(self._paths.runtime)}

    def _named(self, process: Process | None) -> Named | None:
        if process is None or (began := start_time_of(process.pid)) is None:
            return None
        level = self._levels.get(process.pid, "filter")
        return Named(process.pid, began, level, self._monitors.get(process.pid))

    def _write(self) -> None:
        record = Record(
            holder=self._named(self.holder),
            switchboard=self._named(self.switchboard),
            egress=self._named(self.egress),
            egress_program=self.egress_program or "slirp4netns",
        )
        path = self._paths.network_record
        temporary = path.with_name(f".{path.name}.new")
        try:
            temporary.write_bytes(msgspec.json.encode(record))
            temporary.replace(path)
        except OSError as error:
            raise StateError(f"cannot write {path}: {error.strerror}") from error


def _lives(process: Process | None) -> bool:
    return process is not None and process.running and start_time_of(process.pid) is not None


def _most_open_files() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
