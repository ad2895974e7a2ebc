"""The API's operations: a method per row of `vmgr.api.operations.OPERATIONS`, each short.

They check, call the manager that owns the subject, and give the answer's body. Streams are in
`vmgr.helper.streaming`.
"""

from __future__ import annotations

import asyncio
import platform
from typing import TYPE_CHECKING, Any

from vmgr._version import __version__
from vmgr.agent.session import VERSIONS
from vmgr.api import models as m
from vmgr.api.openapi import document
from vmgr.audit import NetworkPart, SharePart, Vmm, audit
from vmgr.doctor import examine
from vmgr.helper import session
from vmgr.helper.streaming import Streaming, job_number
from vmgr.helper.usage import collect_usage
from vmgr.network import strays

if TYPE_CHECKING:
    from vmgr.agent import AgentChannel
    from vmgr.api.audit import AuditReport
    from vmgr.api.consent import Consent
    from vmgr.api.shares import Share
    from vmgr.api.snapshots import SnapshotInfo
    from vmgr.api.usage import Usage
    from vmgr.api.volumes import VolumeInfo
    from vmgr.helper.helper import Helper
    from vmgr.helper.server import Call

__all__ = ["Api"]


class Api(Streaming):
    """The endpoints; one instance serves all connections."""

    def __init__(self, helper: Helper) -> None:
        super().__init__(helper)
        self._document: dict[str, Any] | None = None

    # -- what the server asks ----------------------------------------------------------------

    async def take_notices(self) -> list[str]:
        return await self._helper.take_notices()

    def failed(self, error: BaseException) -> None:
        self._helper.fatal(error)

    async def openapi(self) -> dict[str, Any]:
        if self._document is None:
            self._document = await asyncio.to_thread(document)
        return self._document

    # -- the helper -----------------------------------------------------------------------

    async def version(self, _call: Call) -> m.Version:
        return m.Version(
            version=__version__,
            api="v1",
            agent_protocol=max(VERSIONS),
            python=platform.python_version(),
            qemu=await self._helper.qemu_version(),
        )

    async def helper_status(self, _call: Call) -> m.HelperStatus:
        return await self._helper.status()

    async def helper_stop(self, call: Call) -> m.HelperStatus:
        status = await self._helper.status()
        if call.body.machines == "stop":
            await self._helper.machines.stop_all()
        elif call.body.machines == "session-end":
            await session.end(self._helper)
        # The answer goes out first: stopping waits for requests under way.
        self._helper.request_stop()
        return status

    async def ssh_start(self, _call: Call) -> m.SshServer:
        return await self._helper.ssh.ensure()

    async def doctor(self, _call: Call) -> m.DoctorReport:
        return await examine(
            self._helper.paths,
            await self._helper.settings(),
            accelerator=self._helper.machines.engine.known_accelerator,
            egress=self._helper.network.egress_in_use,
        )

    async def audit(self, _call: Call) -> AuditReport:
        vmms = [
            Vmm(machine.row.vmm_pid, machine.name, machine.row.sandbox)
            for machine in self._helper.machines.all()
            if machine.row.vmm_pid is not None and not machine.stopped.is_set()
        ]
        paths = self._helper.paths
        known = [
            NetworkPart(p.pid, p.name, p.level, p.program) for p in self._helper.network.parts()
        ]

        shares = [
            SharePart(s.pid, s.machine, s.level, s.directory)
            for s in self._helper.shares.processes()
        ]

        def look() -> AuditReport:
            unknown = strays(paths.runtime, {part.pid for part in known})
            parts = [*known, *(NetworkPart(pid, None) for pid, _ in unknown)]
            return audit(paths, vmms, parts, self._helper.ssh.pid, shares)

        return await self._helper.executors.in_files(look)

    async def usage(self, _call: Call) -> Usage:
        return await collect_usage(self._helper)

    # -- configuration -----------------------------------------------------------------------

    async def config_list(self, _call: Call) -> list[m.ConfigEntry]:
        return await self._helper.with_config(lambda config: config.entries())

    async def config_get(self, call: Call) -> m.ConfigEntry:
        return await self._helper.with_config(lambda config: config.entry(call.path["key"]))

    async def config_set(self, call: Call) -> m.ConfigEntry:
        key, value = call.path["key"], call.body.value
        entry = await self._helper.with_config(lambda config: config.set(key, value))
        await self._settings_changed(key)
        return entry

    async def config_unset(self, call: Call) -> m.ConfigEntry:
        key = call.path["key"]
        entry = await self._helper.with_config(lambda config: config.unset(key))
        await self._settings_changed(key)
        return entry

    async def _settings_changed(self, key: str) -> None:
        self._helper.idling.look()
        if int((await self._helper.settings()).get("pool.size")) == 0:
            await self._helper.pool.empty()
        if key == "ports.auto":
            await self._helper.ports.automatic.refresh()
        if key.startswith("host."):
            self._helper.credentials.renew()

    # -- secrets ----------------------------------------------------------------------------

    async def secret_list(self, _call: Call) -> list[m.SecretInfo]:
        return await self._helper.secrets.list()

    async def secret_set(self, call: Call) -> m.SecretInfo:
        return await self._helper.secrets.set(call.path["secret"], call.body.value)

    async def secret_remove(self, call: Call) -> m.SecretInfo:
        return await self._helper.secrets.remove(call.path["secret"])

    # -- machines ---------------------------------------------------------------------------

    async def machine_list(self, _call: Call) -> list[m.MachineInfo]:
        return await self._helper.machines.infos()

    async def machine_create(self, call: Call) -> m.MachineInfo:
        await self._helper.consents.require_of(call.body)
        machine = await self._helper.machines.create(call.body)
        return await self._helper.machines.info(machine.name)

    async def machine_info(self, call: Call) -> m.MachineInfo:
        await self._helper.clocks.fresh(self._helper.machines.get(call.path["machine"]))
        return await self._helper.machines.info(call.path["machine"])

    async def machine_remove(self, call: Call) -> m.MachineRemoved:
        return await self._helper.machines.remove(call.path["machine"], force=call.query["force"])

    async def machine_start(self, call: Call) -> m.MachineInfo:
        await self._helper.machines.start(call.path["machine"], cold=call.body.cold)
        return await self._helper.machines.info(call.path["machine"])

    async def machine_stop(self, call: Call) -> m.StopReport:
        return await self._helper.machines.stop(call.path["machine"], call.body)

    async def machine_restart(self, call: Call) -> m.MachineInfo:
        await self._helper.machines.stop(call.path["machine"], call.body)
        await self._helper.machines.start(call.path["machine"])
        return await self._helper.machines.info(call.path["machine"])

    async def machine_suspend(self, call: Call) -> m.MachineInfo:
        await self._helper.machines.suspend(call.path["machine"])
        return await self._helper.machines.info(call.path["machine"])

    async def machine_resume(self, call: Call) -> m.MachineInfo:
        await self._helper.machines.resume(call.path["machine"])
        return await self._helper.machines.info(call.path["machine"])

    async def machine_fork(self, call: Call) -> list[m.ForkedMachine]:
        return await self._helper.machines.forking.fork(call.path["machine"], call.body)

    async def machine_kill(self, call: Call) -> m.StopReport:
        return await self._helper.machines.kill(call.path["machine"])

    # -- snapshots --------------------------------------------------------------------------

    async def snapshot_list(self, call: Call) -> list[SnapshotInfo]:
        return self._helper.snapshots.infos(call.query["machine"])

    async def snapshot_create(self, call: Call) -> SnapshotInfo:
        return await self._helper.snapshots.create(call.path["machine"], call.body.tag)

    async def snapshot_restore(self, call: Call) -> m.MachineInfo:
        machine = await self._helper.snapshots.restore(
            call.path["snapshot"], force=call.query["force"]
        )
        return await self._helper.machines.info(machine.name)

    async def snapshot_remove(self, call: Call) -> SnapshotInfo:
        return await self._helper.snapshots.remove(call.path["snapshot"])

    # -- volumes ----------------------------------------------------------------------------

    async def volume_list(self, _call: Call) -> list[VolumeInfo]:
        return await self._helper.volumes.infos()

    async def volume_create(self, call: Call) -> VolumeInfo:
        return await self._helper.volumes.create(call.body.name, call.body.size_bytes)

    async def volume_remove(self, call: Call) -> VolumeInfo:
        return await self._helper.volumes.remove(call.path["volume"])

    async def volume_resize(self, call: Call) -> VolumeInfo:
        return await self._helper.volumes.resize(call.path["volume"], call.body.size_bytes)

    async def volume_attach(self, call: Call) -> m.MachineInfo:
        await self._helper.volumes.attach(call.path["machine"], call.body)
        return await self._helper.machines.info(call.path["machine"])

    async def volume_detach(self, call: Call) -> m.MachineInfo:
        await self._helper.volumes.detach(call.path["machine"], call.path["volume"])
        return await self._helper.machines.info(call.path["machine"])

    # -- the network ------------------------------------------------------------------------

    async def network_change(self, call: Call) -> m.MachineInfo:
        machine = self._helper.machines.get(call.path["machine"])
        await self._helper.policies.change(machine, call.body)
        return await self._helper.machines.info(machine.name)

    async def host_commands_change(self, call: Call) -> m.MachineInfo:
        machine = self._helper.machines.get(call.path["machine"])
        await self._helper.host_calls.change(machine, call.body)
        return await self._helper.machines.info(machine.name)

    # -- shares -----------------------------------------------------------------------------

    async def share_list(self, call: Call) -> list[Share]:
        return self._helper.machines.get(call.path["machine"]).shares()

    async def consent(self, call: Call) -> Consent:
        return await self._helper.consents.ask(call.body)

    async def share_add(self, call: Call) -> Share:
        machine = self._helper.machines.get(call.path["machine"])
        if not call.query["consent"]:
            await self._helper.consents.require(machine.name, [call.body], [])
        return await self._helper.shares.add(machine, call.body)

    async def share_remove(self, call: Call) -> None:
        machine = self._helper.machines.get(call.path["machine"])
        await self._helper.shares.remove(machine, call.body.guest)

    # -- ports ------------------------------------------------------------------------------

    async def port_list(self, call: Call) -> list[m.PortForward]:
        return await self._helper.ports.list(self._helper.machines.get(call.path["machine"]))

    async def port_add(self, call: Call) -> m.PortForward:
        machine = self._helper.machines.get(call.path["machine"])
        if not call.query["consent"]:
            await self._helper.consents.require(machine.name, [], [call.body])
        return await self._helper.ports.add(machine, call.body)

    async def port_remove(self, call: Call) -> None:
        machine = self._helper.machines.get(call.path["machine"])
        await self._helper.ports.remove(machine, call.body)

    # -- jobs -------------------------------------------------------------------------------

    async def job_list(self, call: Call) -> list[m.JobInfo]:
        machines = self._helper.machines
        machine = await machines.awake(machines.get(call.path["machine"]))
        return await machines.engine.jobs(machine)

    async def job_signal(self, call: Call) -> None:
        await (await self._channel(call)).signal(job_number(call), call.body.signal)

    async def job_forget(self, call: Call) -> None:
        await (await self._channel(call)).forget(job_number(call))

    # -- templates ----------------------------------------------------------------------------

    async def template_list(self, _call: Call) -> list[m.TemplateInfo]:
        return await self._helper.templates.infos()

    async def template_remove(self, call: Call) -> m.TemplatesRemoved:
        return await self._helper.templates.remove(call.path["template"])

    # -- images -------------------------------------------------------------------------------

    async def image_list(self, _call: Call) -> list[m.ImageInfo]:
        return await self._helper.images.infos()

    async def image_info(self, call: Call) -> m.ImageInfo:
        return await self._helper.images.info(call.path["image"])

    async def image_remove(self, call: Call) -> m.ImageRemoved:
        removed = await self._helper.images.remove(call.path["image"])
        await self._helper.templates.remove_orphans()
        return removed

    async def image_prune(self, _call: Call) -> m.ImageRemoved:
        removed = await self._helper.images.prune()
        await self._helper.templates.remove_orphans()
        return removed

    async def _channel(self, call: Call) -> AgentChannel:
        machines = self._helper.machines
        return await machines.channel(machines.get(call.path["machine"]))
