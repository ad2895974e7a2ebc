"""The asyncio client: the blocking client's twin, method by method.

What a method does is said in `vmgr.client.sync`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import msgspec

from vmgr.api import models as m
from vmgr.api import streams as s
from vmgr.api import usage as u
from vmgr.api.audit import AuditReport
from vmgr.api.consent import Consent, Opening
from vmgr.api.shares import Share, UnwantedShare
from vmgr.api.snapshots import (
    CreateSnapshot,
    SnapshotExport,
    SnapshotFile,
    SnapshotImport,
    SnapshotInfo,
)
from vmgr.api.volumes import AttachVolume, CreateVolume, ResizeVolume, VolumeInfo
from vmgr.client import launch
from vmgr.client.aiojob import AsyncJob
from vmgr.client.core import Exchange, Notes
from vmgr.client.jobstream import JobStream
from vmgr.client.messages import event_of, interrupted, log_data, silent, work_message
from vmgr.client.websocket import Stream
from vmgr.errors import HelperUnavailableError
from vmgr.paths import Paths

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from types import TracebackType
    from typing import Self

    from vmgr.api.hostcommands import HostCommandsChange
    from vmgr.client.aioquestions import AsyncQuestions

__all__ = ["AsyncClient"]

T = TypeVar("T")
_READ_SIZE: Final = 65_536


class AsyncClient:
    """Talks to the helper of this user, which is started when first needed.

    Args:
        paths: where the helper's files are; None: as the environment says.
        launch: start the helper where none runs.
        timeout: seconds that the helper may take for a plain call; None: any time.
        on_notes: told what an answer says besides (notices, the helper's version).
    """

    def __init__(
        self,
        paths: Paths | None = None,
        *,
        launch: bool = True,
        timeout: float | None = None,
        on_notes: Callable[[Notes], None] | None = None,
    ) -> None:
        self.paths = paths or Paths.from_environment()
        self._launch = launch
        self._timeout = timeout
        self._on_notes = on_notes or _ignore

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End it. Nothing is held between calls."""

    # -- the helper ------------------------------------------------------------------------------
    async def reachable(self) -> bool:
        """A helper listens; none is started to find out.

        Raises:
            HelperUnavailableError: the socket is another user's, or cannot be reached.
        """
        connection = await asyncio.to_thread(launch.connect, self.paths)
        if connection is None:
            return False
        connection.close()
        return True

    async def version(self) -> m.Version:
        """Versions of the helper and of what it drives."""
        return await self._call(m.Version, "version")

    async def helper_status(self) -> m.HelperStatus:
        """The helper as it is now."""
        return await self._call(m.HelperStatus, "helper_status")

    async def helper_stop(self, machines: m.MachinesAtStop = "keep") -> m.HelperStatus:
        """Stop the helper; its machines go on unless they are to stop with it."""
        return await self._call(m.HelperStatus, "helper_stop", body=m.HelperStop(machines=machines))

    async def ssh_start(self) -> m.SshServer:
        """Have the SSH server run; returns when it listens."""
        return await self._call(m.SshServer, "ssh_start")

    # -- settings ----------------------------------------------------------------------------------
    async def doctor(self) -> m.DoctorReport:
        """What works on this host, and what would mend the rest."""
        return await self._call(m.DoctorReport, "doctor")

    async def audit(self) -> AuditReport:
        """Every process of vmgr, and which process rules it breaks."""
        return await self._call(AuditReport, "audit")

    async def usage(self) -> u.Usage:
        """What running machines and this computer have used so far: see `vmgr.client.load`."""
        return await self._call(u.Usage, "usage")

    async def config_list(self) -> list[m.ConfigEntry]:
        """All settings."""
        return await self._call(list[m.ConfigEntry], "config_list")

    async def config_get(self, key: str) -> m.ConfigEntry:
        """One setting."""
        return await self._call(m.ConfigEntry, "config_get", {"key": key})

    async def config_set(self, key: str, value: str) -> m.ConfigEntry:
        """Change a setting; `value` is text like `2G`, `true`, `4`."""
        return await self._call(
            m.ConfigEntry, "config_set", {"key": key}, body=m.SetConfig(value=value)
        )

    async def config_unset(self, key: str) -> m.ConfigEntry:
        """Put a setting back to its default."""
        return await self._call(m.ConfigEntry, "config_unset", {"key": key})

    # -- secrets -----------------------------------------------------------------------------------
    async def secret_list(self) -> list[m.SecretInfo]:
        """All secrets, without their values."""
        return await self._call(list[m.SecretInfo], "secret_list")

    async def secret_set(self, secret: str, value: str) -> m.SecretInfo:
        """Keep a secret, in place of one of that name."""
        body = m.SetSecret(value=value)
        return await self._call(m.SecretInfo, "secret_set", {"secret": secret}, body=body)

    async def secret_remove(self, secret: str) -> m.SecretInfo:
        """Forget a secret."""
        return await self._call(m.SecretInfo, "secret_remove", {"secret": secret})

    # -- machines ----------------------------------------------------------------------------------
    async def machine_list(self) -> list[m.MachineInfo]:
        """All machines."""
        return await self._call(list[m.MachineInfo], "machine_list")

    async def machine_create(self, machine: m.CreateMachine) -> m.MachineInfo:
        """Create a machine; it is not started."""
        return await self._call(m.MachineInfo, "machine_create", body=machine)

    async def machine_info(self, machine: str) -> m.MachineInfo:
        """One machine, by name or id."""
        return await self._call(m.MachineInfo, "machine_info", {"machine": machine})

    async def machine_remove(self, machine: str, *, force: bool = False) -> m.MachineRemoved:
        """Remove a machine and its disk; with `force` it is stopped first."""
        return await self._call(
            m.MachineRemoved, "machine_remove", {"machine": machine}, query={"force": force}
        )

    async def machine_start(self, machine: str, how: m.StartMachine | None = None) -> m.MachineInfo:
        """Start a machine; returns when commands can run in it."""
        return await self._call(
            m.MachineInfo, "machine_start", {"machine": machine}, body=how or m.StartMachine()
        )

    async def machine_stop(self, machine: str, how: m.StopMachine | None = None) -> m.StopReport:
        """Stop a machine in an orderly way, and by force where that fails."""
        return await self._call(
            m.StopReport, "machine_stop", {"machine": machine}, body=how or m.StopMachine()
        )

    async def machine_restart(
        self, machine: str, how: m.StopMachine | None = None
    ) -> m.MachineInfo:
        """Stop a machine and start it again."""
        return await self._call(
            m.MachineInfo, "machine_restart", {"machine": machine}, body=how or m.StopMachine()
        )

    async def machine_suspend(self, machine: str) -> m.MachineInfo:
        """Save a running machine's memory to disk and free its RAM."""
        return await self._call(m.MachineInfo, "machine_suspend", {"machine": machine})

    async def machine_resume(self, machine: str) -> m.MachineInfo:
        """Let a suspended machine go on where it stood."""
        return await self._call(m.MachineInfo, "machine_resume", {"machine": machine})

    async def machine_fork(
        self, machine: str, how: m.ForkMachine | None = None
    ) -> list[m.ForkedMachine]:
        """Make running copies of a running machine; each one's outcome is its own."""
        return await self._call(
            list[m.ForkedMachine], "machine_fork", {"machine": machine},
            body=how or m.ForkMachine(),
        )  # fmt: skip

    async def machine_kill(self, machine: str) -> m.StopReport:
        """End a machine at once, as if its power was cut."""
        return await self._call(m.StopReport, "machine_kill", {"machine": machine})

    # -- snapshots ---------------------------------------------------------------------------------
    async def snapshot_list(self, machine: str | None = None) -> list[SnapshotInfo]:
        """Snapshots of all machines or of one, oldest first."""
        return await self._call(list[SnapshotInfo], "snapshot_list", query={"machine": machine})

    async def snapshot_create(self, machine: str, tag: str | None = None) -> SnapshotInfo:
        """Take a snapshot of a machine; with its memory where it runs or is suspended."""
        return await self._call(
            SnapshotInfo, "snapshot_create", {"machine": machine}, body=CreateSnapshot(tag=tag)
        )

    async def snapshot_restore(self, snapshot: str, *, force: bool = False) -> m.MachineInfo:
        """Make a machine what it was; with `force` one that runs is ended first."""
        return await self._call(
            m.MachineInfo, "snapshot_restore", {"snapshot": snapshot}, query={"force": force}
        )

    async def snapshot_remove(self, snapshot: str) -> SnapshotInfo:
        """Remove a snapshot, `MACHINE:TAG`."""
        return await self._call(SnapshotInfo, "snapshot_remove", {"snapshot": snapshot})

    async def snapshot_export(
        self, export: SnapshotExport, on_progress: Callable[[s.Progress], None] | None = None
    ) -> SnapshotFile:
        """Write a snapshot to one file on this host."""
        return await self._work(SnapshotFile, "snapshot_export", export, on_progress)

    async def snapshot_import(
        self, source: SnapshotImport, on_progress: Callable[[s.Progress], None] | None = None
    ) -> SnapshotInfo:
        """Take a snapshot from a file on this host."""
        return await self._work(SnapshotInfo, "snapshot_import", source, on_progress)

    # -- volumes -----------------------------------------------------------------------------------
    async def volume_list(self) -> list[VolumeInfo]:
        """All volumes, by name."""
        return await self._call(list[VolumeInfo], "volume_list")

    async def volume_create(self, volume: CreateVolume) -> VolumeInfo:
        """Make an empty volume."""
        return await self._call(VolumeInfo, "volume_create", body=volume)

    async def volume_remove(self, volume: str) -> VolumeInfo:
        """Remove a volume that no machine has."""
        return await self._call(VolumeInfo, "volume_remove", {"volume": volume})

    async def volume_resize(self, volume: str, size_bytes: int) -> VolumeInfo:
        """Grow a volume, also while a machine uses it."""
        return await self._call(
            VolumeInfo, "volume_resize", {"volume": volume},
            body=ResizeVolume(size_bytes=size_bytes),
        )  # fmt: skip

    async def volume_attach(self, machine: str, volume: AttachVolume) -> m.MachineInfo:
        """Give a machine a volume, also while it runs."""
        return await self._call(m.MachineInfo, "volume_attach", {"machine": machine}, body=volume)

    async def volume_detach(self, machine: str, volume: str) -> m.MachineInfo:
        """Take a volume from a machine, also while it runs."""
        path: dict[str, object] = {"machine": machine, "volume": volume}
        return await self._call(m.MachineInfo, "volume_detach", path)

    # -- the network -------------------------------------------------------------------------------
    async def network_change(self, machine: str, change: m.NetworkChange) -> m.MachineInfo:
        """Change what a machine may reach, also while it runs."""
        return await self._call(m.MachineInfo, "network_change", {"machine": machine}, body=change)

    async def host_commands_change(self, machine: str, change: HostCommandsChange) -> m.MachineInfo:
        """Change what a machine may run on this computer, from its next command on."""
        return await self._call(
            m.MachineInfo, "host_commands_change", {"machine": machine}, body=change
        )

    # -- ports -------------------------------------------------------------------------------------
    async def share_list(self, machine: str) -> list[Share]:
        """The directories of this computer in a machine."""
        return await self._call(list[Share], "share_list", {"machine": machine})

    async def consent(self, opening: Opening) -> Consent:
        """Have the person asked about what is to be opened, or hear what to ask."""
        return await self._call(Consent, "consent", body=opening)

    async def share_add(self, machine: str, share: Share, *, consent: bool = False) -> Share:
        """Share a directory of this computer with a machine, now if it runs and at each start."""
        query: dict[str, object] = {"consent": consent}
        return await self._call(Share, "share_add", {"machine": machine}, body=share, query=query)

    async def share_remove(self, machine: str, guest: str) -> None:
        """Stop sharing what a machine sees at `guest`."""
        body = UnwantedShare(guest=guest)
        await self._call(type(None), "share_remove", {"machine": machine}, body=body)

    async def port_list(self, machine: str) -> list[m.PortForward]:
        """A machine's forwarded ports."""
        return await self._call(list[m.PortForward], "port_list", {"machine": machine})

    async def port_add(
        self, machine: str, port: m.PortForward, *, consent: bool = False
    ) -> m.PortForward:
        """Forward a port of this computer to a machine, now if it runs and at each start."""
        query: dict[str, object] = {"consent": consent}
        return await self._call(
            m.PortForward, "port_add", {"machine": machine}, body=port, query=query
        )

    async def port_remove(self, machine: str, port: m.PortForward) -> None:
        """Stop forwarding a port."""
        await self._call(type(None), "port_remove", {"machine": machine}, body=port)

    # -- jobs --------------------------------------------------------------------------------------
    async def job_list(self, machine: str) -> list[m.JobInfo]:
        """The commands that run in a machine, and those that ended and were not collected."""
        return await self._call(list[m.JobInfo], "job_list", {"machine": machine})

    async def job_signal(self, machine: str, job: int, number: int) -> None:
        """Send a signal to a job's process group."""
        await self._call(
            type(None),
            "job_signal",
            {"machine": machine, "job": job},
            body=m.JobSignal(signal=number),
        )

    async def job_forget(self, machine: str, job: int) -> None:
        """Drop the record of a job that has ended."""
        await self._call(type(None), "job_forget", {"machine": machine, "job": job})

    # -- images ------------------------------------------------------------------------------------
    async def template_list(self) -> list[m.TemplateInfo]:
        """All templates, the one used last first."""
        return await self._call(list[m.TemplateInfo], "template_list")

    async def template_remove(self, template: str) -> m.TemplatesRemoved:
        """Remove the templates whose keys begin so; machines that run go on."""
        return await self._call(m.TemplatesRemoved, "template_remove", {"template": template})

    async def image_list(self) -> list[m.ImageInfo]:
        """All images."""
        return await self._call(list[m.ImageInfo], "image_list")

    async def image_info(self, image: str) -> m.ImageInfo:
        """One image, by name or a prefix of its digest."""
        return await self._call(m.ImageInfo, "image_info", {"image": image})

    async def image_remove(self, image: str) -> m.ImageRemoved:
        """Remove an image that no machine uses."""
        return await self._call(m.ImageRemoved, "image_remove", {"image": image})

    async def image_prune(self) -> m.ImageRemoved:
        """Remove the images and kernels that nothing uses."""
        return await self._call(m.ImageRemoved, "image_prune")

    # -- streams ---------------------------------------------------------------------------------
    async def exec(self, machine: str, spec: m.ExecSpec) -> AsyncJob:
        """Start a command in a machine; the result's streams are the command's."""
        return await self._job(s.Start(spec=spec), "exec", machine)

    async def attach(self, machine: str, job: int) -> AsyncJob:
        """Take over the streams of a command that runs already, or has ended uncollected."""
        return await self._job(s.Attach(), "attach", machine, job)

    async def run(self, machine: m.CreateMachine, spec: m.ExecSpec) -> AsyncJob:
        """Run a command in a fresh machine, which is removed when the command ends."""
        return await self._job(s.Run(machine=machine, spec=spec), "run")

    async def machine_logs(
        self,
        machine: str,
        *,
        source: Literal["console", "vmm", "helper"] = "console",
        follow: bool = False,
        tail: int | None = None,
    ) -> AsyncIterator[bytes]:
        """A machine's log, in pieces; with `follow` it goes on until the caller stops."""
        query: dict[str, object] = {"source": source, "follow": follow, "tail": tail}
        messages = self._stream("machine_logs", {"machine": machine}, query)
        async with contextlib.aclosing(messages):
            async for message in messages:
                yield log_data(message)

    async def helper_logs(
        self, *, follow: bool = False, tail: int | None = None
    ) -> AsyncIterator[bytes]:
        """The helper's log, in pieces; with `follow` it goes on until the caller stops."""
        messages = self._stream("helper_logs", {}, {"follow": follow, "tail": tail})
        async with contextlib.aclosing(messages):
            async for message in messages:
                yield log_data(message)

    async def events(self, since: int | None = None) -> AsyncIterator[m.Event]:
        """What happens from now on, or from sequence number `since` on where still known."""
        messages = self._stream("events", {}, {"since": since})
        async with contextlib.aclosing(messages):
            async for message in messages:
                yield event_of(message)

    async def authorize(self, machine: str | None = None) -> AsyncQuestions:
        """Questions that the person is to answer, about one machine or all.

        Raises:
            VmgrError: the helper cannot be reached.
        """
        from vmgr.client.aioquestions import AsyncQuestions

        return AsyncQuestions(await self._connect(), machine)

    async def image_build(
        self, build: m.ImageBuild, on_progress: Callable[[s.Progress], None] | None = None
    ) -> m.ImageInfo:
        """Build an image from a recipe."""
        return await self._work(m.ImageInfo, "image_build", build, on_progress)

    async def template_build(
        self, machine: m.CreateMachine, on_progress: Callable[[s.Progress], None] | None = None
    ) -> m.TemplateInfo:
        """Build the template that machines like this one start from."""
        return await self._work(m.TemplateInfo, "template_build", machine, on_progress)

    async def image_import(
        self, source: m.ImageImport, on_progress: Callable[[s.Progress], None] | None = None
    ) -> m.ImageInfo:
        """Make an image from a root file system tarball on this host."""
        return await self._work(m.ImageInfo, "image_import", source, on_progress)

    # -- machinery -------------------------------------------------------------------------------
    async def _connect(self) -> socket.socket:
        # Connecting is instant, starting a helper is not: it waits in a thread.
        find = launch.ensure if self._launch else launch.connect
        connection = await asyncio.to_thread(find, self.paths)
        if connection is None:
            raise HelperUnavailableError(
                "no helper runs", next_step='start it with "vmgr helper start"'
            )
        connection.settimeout(0)
        return connection

    async def _call(
        self,
        kind: type[T],
        operation: str,
        path: dict[str, object] | None = None,
        *,
        query: dict[str, object] | None = None,
        body: msgspec.Struct | None = None,
    ) -> T:
        exchange = Exchange(operation, path, query, body)
        try:
            await self._exchange(exchange)
        except HelperUnavailableError:
            if not (self._launch and exchange.repeatable):
                raise
            # We caught a helper that was stopping. The next one answers.
            exchange = Exchange(operation, path, query, body)
            await self._exchange(exchange)
        self._on_notes(exchange.notes)
        return exchange.result(kind)

    async def _exchange(self, exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        with await self._connect() as connection:
            try:
                async with asyncio.timeout(self._timeout):
                    await loop.sock_sendall(connection, exchange.outgoing)
                    while not exchange.receive(await loop.sock_recv(connection, _READ_SIZE)):
                        pass
            except TimeoutError:
                raise silent(self._timeout) from None
            except ConnectionError:
                exchange.receive(b"")

    async def _stream(
        self,
        operation: str,
        path: dict[str, object],
        query: dict[str, object] | None = None,
        first: msgspec.Struct | None = None,
    ) -> AsyncGenerator[str | bytes, None]:
        """Open a stream, send `first`, and give its messages until it closes."""
        stream = Stream(operation, path, query)
        loop = asyncio.get_running_loop()
        with await self._connect() as connection:
            told = False
            try:
                while not stream.closed:
                    try:
                        await loop.sock_sendall(connection, stream.take_outgoing())
                        messages = stream.receive(await loop.sock_recv(connection, _READ_SIZE))
                    except ConnectionError:
                        messages = stream.receive(b"")
                    if stream.opened and not told:
                        told = True
                        self._on_notes(stream.notes)
                        if first is not None:
                            stream.send(msgspec.json.encode(first).decode())
                    for message in messages:
                        yield message
                if stream.broke:
                    raise interrupted()
            finally:
                stream.close()
                with contextlib.suppress(OSError):  # it closed first, or takes no more now
                    connection.send(stream.take_outgoing())

    async def _work(
        self,
        kind: type[T],
        operation: str,
        request: msgspec.Struct,
        on_progress: Callable[[s.Progress], None] | None,
    ) -> T:
        async with contextlib.aclosing(self._stream(operation, {}, first=request)) as messages:
            async for message in messages:
                done = work_message(message, kind)
                if not isinstance(done, s.Progress):
                    return done
                if on_progress is not None:
                    on_progress(done)
        raise interrupted()

    async def _job(
        self,
        opening: s.Start | s.Run | s.Attach,
        operation: str,
        machine: str | None = None,
        job: int | None = None,
    ) -> AsyncJob:
        path: dict[str, object] = {}
        if machine is not None:
            path["machine"] = machine
        if job is not None:
            path["job"] = job
        stream = JobStream(opening, machine, job)
        result = AsyncJob(stream, self._connect, self._on_notes)
        await result.open(operation, path)
        return result


def _ignore(_notes: Notes) -> None:
    pass
