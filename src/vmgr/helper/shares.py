"""Shares of machines: their servers, started, watched and found again, and what agents are told.

A server is one process per share. It ends with its machine's VMM, outlives the helper, and may be
started anew at any time: the machine itself knows what it has open. One that ends while its machine
goes on is replaced at once, or as soon as its directory is there again; what is asked of the share
meanwhile waits for some seconds and then fails.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.agent_binary import find_share_server
from vmgr.api.shares import Share
from vmgr.errors import NotFoundError, ResourceError, VmgrError, WrongStateError
from vmgr.helper.store import ServerRow, ShareRow
from vmgr.share import KEY_BYTES, ShareSandbox, check_guest, check_host, check_shares, start_server
from vmgr.share.process import found_directory
from vmgr.spawner import Process, StopPolicy
from vmgr.spawner.process import start_time_of
from vmgr.vmm import SHARE_PORTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmgr.agent import AgentChannel
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine

__all__ = ["ShareProcess", "Shares", "more_rows", "share_rows"]

_AGENT_DEADLINE: Final = 20.0  # seconds; a module may have to be loaded
_LIVED: Final = 5.0  # seconds; a server that ends sooner is not started again at once
_PAUSE: Final = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShareProcess:
    """A server, for who looks at all processes."""

    machine: str
    pid: int
    level: str
    directory: str


def share_rows(wanted: Sequence[Share]) -> list[ShareRow]:
    """What the row of a new machine says of its shares."""
    return [
        ShareRow(
            host=share.host, guest=share.guest or share.host, read_only=share.read_only, slot=slot
        )
        for slot, share in enumerate(wanted)
    ]


def more_rows(rows: Sequence[ShareRow], wanted: Sequence[Share]) -> list[ShareRow]:
    """What a row says of its shares with more of them.

    Raises:
        ConflictError, ResourceError: they cannot be together.
    """
    before = [Share(host=row.host, guest=row.guest) for row in rows]
    check_shares([*before, *map(_whole, wanted)], SHARE_PORTS)
    taken = {row.slot for row in rows}
    free = [slot for slot in range(SHARE_PORTS) if slot not in taken]
    new = share_rows(wanted)
    return [
        *rows,
        *(msgspec.structs.replace(row, slot=slot) for row, slot in zip(new, free, strict=False)),
    ]


class Shares:
    """The shares of all machines."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._servers: dict[tuple[str, int], Process] = {}
        """By machine's id and slot."""
        self._levels: dict[int, str] = {}

    # -- what may be -----------------------------------------------------------------------------

    async def check(self, wanted: Sequence[Share]) -> None:
        """See that a new machine can have these.

        Raises:
            UsageError, NotFoundError, ConflictError, ResourceError: it cannot.
        """
        check_shares([_whole(share) for share in wanted], SHARE_PORTS)
        for share in wanted:
            await self._check(_whole(share))

    async def _check(self, share: Share) -> None:
        check_guest(share.guest or "")
        await self._helper.executors.in_files(check_host, share.host, self._own())

    def _own(self) -> list[Path]:
        paths = self._helper.paths
        return [paths.state, paths.data, paths.cache, paths.runtime, paths.config]

    def processes(self) -> list[ShareProcess]:
        """Those that run."""
        machines = {machine.row.id: machine for machine in self._helper.machines.all()}
        found = []
        for (machine_id, slot), process in self._servers.items():
            machine = machines.get(machine_id)
            share = None if machine is None else _row(machine, slot)
            if process.running and machine is not None and share is not None:
                level = self._levels.get(process.pid, "filter")
                found.append(ShareProcess(machine.name, process.pid, level, share.host))
        return found

    # -- with a machine's life ------------------------------------------------------------------

    async def attach(self, machine: Machine, channel: AgentChannel) -> None:
        """Have all shares of a machine that starts served and mounted; what fails is noted."""
        machine.share_problems.clear()
        if machine.row.shares:
            await asyncio.gather(
                *(self._noted(machine, share, channel) for share in machine.row.shares)
            )

    async def _noted(self, machine: Machine, share: ShareRow, channel: AgentChannel) -> None:
        try:
            await self._serve(machine, share, channel)
        except VmgrError as error:
            self._problem(machine, share, error.message)
            if not isinstance(error, WrongStateError):
                self._keep_trying(machine, share.slot, 0.0)

    def _keep_trying(self, machine: Machine, slot: int, lived: float) -> None:
        self._helper.watchers.start(
            self._again(machine, slot, lived), name=f"share {slot} of {machine.name}"
        )

    def _problem(self, machine: Machine, share: ShareRow, problem: str | None) -> None:
        if machine.share_problems.get(share.slot) == problem:
            return
        if problem is None:
            machine.share_problems.pop(share.slot, None)
        else:
            machine.share_problems[share.slot] = problem
            log.warning("machine %s: share %s: %s", machine.name, share.guest, problem)
        self._helper.events.publish(
            "machine.share", machine.name, guest=share.guest, problem=problem
        )

    async def give(self, machine: Machine, wanted: Sequence[Share]) -> None:
        """Add shares to a machine that runs and has none.

        Raises:
            VmgrError: as `add`.
        """
        await self.check(wanted)
        for share in wanted:
            await self.add(machine, share)

    async def renew(self, machine: Machine) -> None:
        """The person has another account in a machine that runs: their files are that one's."""
        async with machine.lock:
            if machine.status == "running" and machine.channel is not None:
                await self.attach(machine, machine.channel)

    async def readopt(self, machine: Machine, channel: AgentChannel) -> None:
        """Find the servers of a machine that another helper started; start those that ended."""
        for server in machine.row.share_servers:
            if (machine.row.id, server.slot) in self._servers:
                continue
            process = Process.adopt(server.pid, server.start_time)
            if process is not None:
                self._watch(machine, server.slot, process, server.level)
        for share in machine.row.shares:
            if (machine.row.id, share.slot) not in self._servers:
                await self._noted(machine, share, channel)

    def ended(self, machine: Machine) -> None:
        """A machine has no VMM any more: its servers have nobody to serve."""
        for key in [key for key in self._servers if key[0] == machine.row.id]:
            self._servers.pop(key).kill()

    # -- changes ---------------------------------------------------------------------------------

    async def add(self, machine: Machine, wanted: Share) -> Share:
        """Share a directory with a machine, now if it runs.

        Raises:
            UsageError, NotFoundError, ConflictError, ResourceError: it cannot be.
            WrongStateError: the machine is suspended, or has no ports for shares.
        """
        share = _whole(wanted)
        await self._check(share)
        async with machine.lock:
            _check_state(machine)
            rows = more_rows(machine.row.shares, [share])
            row = rows[-1]
            await machine.save(shares=rows)
            if machine.status == "running":
                try:
                    await self._serve(machine, row, await machine.ready_channel())
                except BaseException:
                    await asyncio.shield(self._forget(machine, row))
                    raise
        return next(found for found in machine.shares() if found.guest == share.guest)

    async def remove(self, machine: Machine, guest: str) -> None:
        """Stop sharing what a machine sees at `guest`.

        Raises:
            NotFoundError: it has no such share.
            WrongStateError: the machine is suspended.
        """
        async with machine.lock:
            _check_state(machine)
            row = next((row for row in machine.row.shares if row.guest == guest), None)
            if row is None:
                raise NotFoundError(
                    f"machine {machine.name} has no share at {guest}",
                    next_step=f"see those it has with: vmgr share ls {machine.name}",
                )
            if machine.status == "running":
                channel = await machine.ready_channel()
                await channel.unshare(row.slot, deadline=_AGENT_DEADLINE)
            await self._forget(machine, row)

    async def _forget(self, machine: Machine, row: ShareRow) -> None:
        await machine.save(
            shares=[other for other in machine.row.shares if other.slot != row.slot],
            share_servers=[s for s in machine.row.share_servers if s.slot != row.slot],
        )
        machine.share_problems.pop(row.slot, None)
        process = self._servers.pop((machine.row.id, row.slot), None)
        if process is not None and process.running:
            await process.stop(StopPolicy(None))

    # -- servers ----------------------------------------------------------------------------------

    async def _serve(self, machine: Machine, share: ShareRow, channel: AgentChannel) -> None:
        """Start a server and have the machine's agent use it."""
        if share.slot >= machine.row.share_ports:
            raise WrongStateError(
                f"machine {machine.name} goes on from what an earlier vmgr saved, without a port "
                "for this share",
                next_step=f"boot it once: vmgr restart {machine.name}",
            )
        key = secrets.token_bytes(KEY_BYTES)
        await self._end_earlier(machine, share.slot)
        process, level = await self._start(machine, share, key)
        row = machine.row
        user = (row.user and row.user.run_as) or row.default_user
        try:
            began = start_time_of(process.pid)
            others = [s for s in machine.row.share_servers if s.slot != share.slot]
            if began is not None:
                mine = ServerRow(slot=share.slot, pid=process.pid, start_time=began, level=level)
                await machine.save(share_servers=[*others, mine])
            await channel.share(
                share.slot, share.guest, key, user=user,
                read_only=share.read_only, deadline=_AGENT_DEADLINE,
            )  # fmt: skip
        except TimeoutError as error:
            await asyncio.shield(process.stop(StopPolicy(None)))
            raise ResourceError(
                f"machine {machine.name} does not mount {share.guest}: its agent does not answer"
            ) from error
        except BaseException:
            await asyncio.shield(process.stop(StopPolicy(None)))
            raise
        self._watch(machine, share.slot, process, level)
        self._problem(machine, share, None)

    async def _end_earlier(self, machine: Machine, slot: int) -> None:
        """The port takes one at a time, also where another helper started the one before."""
        before = self._servers.pop((machine.row.id, slot), None)
        recorded = next((s for s in machine.row.share_servers if s.slot == slot), None)
        if before is None and recorded is not None:
            before = Process.adopt(recorded.pid, recorded.start_time)
        if before is not None and before.running:
            await before.stop(StopPolicy(None))

    async def _start(self, machine: Machine, share: ShareRow, key: bytes) -> tuple[Process, str]:
        helper = self._helper
        directory = await found_directory(share.host)
        if directory is None:
            raise NotFoundError(f"the directory {share.host} is not there any more")
        await helper.executors.in_files(check_host, share.host, self._own())
        program = find_share_server()
        vmms = await helper.machines.engine.sandbox(await helper.settings())
        locked = await ShareSandbox.like(vmms, program)
        hidden = [place.resolve() for place in self._own()]
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with stream:
            stream.setblocking(False)  # noqa: FBT003 (the call takes no keyword)
            try:
                await asyncio.get_running_loop().sock_connect(
                    stream, os.fspath(machine.paths.share_socket(share.slot))
                )
            except OSError as error:
                raise ResourceError(
                    f"the port for {share.guest} cannot be reached: {error.strerror}"
                ) from error
            stream.setblocking(True)  # noqa: FBT003 (likewise)
            log_fd = await helper.executors.in_files(_open_log, machine.paths.shares_log)
            try:
                process = await start_server(
                    program, locked, directory, read_only=share.read_only,
                    stream=stream.fileno(), key=key, log=log_fd, hidden=hidden,
                )  # fmt: skip
            except OSError as error:
                raise ResourceError(
                    f"the server of {share.host} cannot be started: {error.strerror}"
                ) from error
            finally:
                os.close(log_fd)
        return process, locked.sandbox.level

    def _watch(self, machine: Machine, slot: int, process: Process, level: str) -> None:
        self._servers[machine.row.id, slot] = process
        self._levels[process.pid] = level
        began = asyncio.get_running_loop().time()

        def ended(_: object) -> None:
            self._levels.pop(process.pid, None)
            if self._servers.get((machine.row.id, slot)) is not process:
                return
            del self._servers[machine.row.id, slot]
            if self._helper.stopping.is_set() or machine.status != "running":
                return
            lived = asyncio.get_running_loop().time() - began
            self._keep_trying(machine, slot, lived)

        process.when_ended(ended)

    async def _again(self, machine: Machine, slot: int, lived: float) -> None:
        """Start the server of a machine that goes on once more, until that works."""
        pause = 0.0 if lived >= _LIVED else _PAUSE
        while True:
            if pause:
                await _unless_stopped(machine, self._helper.stopping, pause)
            pause = _PAUSE
            async with machine.lock:
                share = _row(machine, slot)
                if share is None or machine.status != "running" or self._helper.stopping.is_set():
                    return
                if (machine.row.id, slot) in self._servers:
                    return  # somebody else did
                channel = machine.channel
                if channel is None:
                    continue
                try:
                    await self._serve(machine, share, channel)
                except VmgrError as error:
                    self._problem(machine, share, error.message)
                    continue
            log.warning("machine %s: %s has a new server", machine.name, share.guest)
            self._helper.events.publish("machine.share-served", machine.name, guest=share.guest)
            return


async def _unless_stopped(machine: Machine, stopping: asyncio.Event, seconds: float) -> None:
    """Wait, but not for a machine that has ended, or a helper that ends."""
    waits = [
        asyncio.create_task(event.wait(), name="share pause")
        for event in (machine.stopped, stopping)
    ]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in waits:
        task.cancel()


def _whole(share: Share) -> Share:
    if share.guest is None:
        return msgspec.structs.replace(share, guest=share.host)
    return share


def _row(machine: Machine, slot: int) -> ShareRow | None:
    return next((row for row in machine.row.shares if row.slot == slot), None)


def _check_state(machine: Machine) -> None:
    if machine.status not in {"running", "stopped"}:
        raise WrongStateError(
            f"machine {machine.name} is {machine.status}; its shares can be changed while it runs "
            "or is stopped",
            next_step=f"let it go on first: vmgr resume {machine.name}"
            if machine.status == "suspended"
            else None,
        )


def _open_log(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    if os.fstat(fd).st_size > 1 << 20:
        os.truncate(fd, 0)
    return fd
