"""The helper as a whole: what it is made of, starting, stopping."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, TypeVar

from vmgr._version import __version__
from vmgr.agent_binary import find_agent
from vmgr.api.models import HelperStatus
from vmgr.authorization import Authorization, Polkit
from vmgr.config import Config
from vmgr.desktop import Notifications, SessionBus
from vmgr.desktop.thread import BusThread
from vmgr.errors import VmgrError
from vmgr.helper import crash, session
from vmgr.helper.accounts import Accounts
from vmgr.helper.clocks import Clocks
from vmgr.helper.consent import Consents
from vmgr.helper.credentials import Credentials
from vmgr.helper.doorbell import Doorbell
from vmgr.helper.events import EventBus
from vmgr.helper.executors import Executors
from vmgr.helper.hostcalls import HostCalls
from vmgr.helper.idling import Idling
from vmgr.helper.images import ImageService
from vmgr.helper.machine import Services
from vmgr.helper.machines import Machines
from vmgr.helper.names import Names
from vmgr.helper.notifying import DiskWatch, follow_events
from vmgr.helper.policy import Policies
from vmgr.helper.pool import Pool
from vmgr.helper.ports import Ports
from vmgr.helper.resolving import follow_resolver
from vmgr.helper.secrets import Secrets
from vmgr.helper.shares import Shares
from vmgr.helper.snapshots import Snapshots
from vmgr.helper.ssh import Ssh
from vmgr.helper.standing import tell_status
from vmgr.helper.store import Store
from vmgr.helper.tasks import Tasks
from vmgr.helper.templates import Templates
from vmgr.helper.volumes import Volumes
from vmgr.loopback import DOMAIN, names_address
from vmgr.network import EgressChoice, Network, identity_of
from vmgr.service.activation import Activation, Notifier
from vmgr.service.pinging import Pinging
from vmgr.vmm import ProbeCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmgr.paths import Paths

__all__ = ["Helper"]

T = TypeVar("T")
_NOTICES_MAX = 100
TASKS_DEADLINE = 10.0  # seconds that removals under way get when the helper stops

log = logging.getLogger(__name__)


class Helper:
    """Owns every part; the only place that knows them all.

    Args:
        fatal: called with an error that nobody expected; does not return.
        activation: what a service manager handed us; None: nothing.
    """

    def __init__(
        self,
        paths: Paths,
        fatal: Callable[[BaseException], object],
        activation: Activation | None = None,
    ) -> None:
        self.paths = paths
        self.fatal = fatal
        self.activation = activation or Activation((), Notifier(None), None)
        self.executors = Executors()
        self.store = Store(paths)
        self.events = EventBus()
        self.tasks = Tasks(fatal)
        """Work that is finished before the helper ends."""
        self.watchers = Tasks(fatal)
        """Work that goes on for as long as the helper does."""
        self.stopping = asyncio.Event()
        self._started_at = time.time()
        self._started = time.monotonic()
        self._notices: list[str] = []
        self._settings: tuple[object, Config] | None = None
        self._pinging: Pinging | None = None
        self._bus_thread = BusThread()
        self.bus = SessionBus(thread=self._bus_thread)
        self.notifications = Notifications(self.bus, self._notifies)
        services = Services(paths, self.executors, self.store, self.events)
        self.network = Network(
            paths,
            lambda work, name: self.watchers.start(work, name=name),
            self._network_event,
            self._sandbox_required,
            EgressChoice(
                self._egress_wanted, self._sandbox_required, ProbeCache(paths.probes), paths.runtime
            ).choose,
        )
        self.ports = Ports(self)
        self.shares = Shares(self)
        self.ssh = Ssh(self)
        self.names = Names(DOMAIN, self._address_of)
        self.policies = Policies(self)
        self.authorization = Authorization(Polkit(self._bus_thread))
        self.consents = Consents(self)
        self.host_calls = HostCalls(self)
        self.accounts = Accounts(self)
        self.clocks = Clocks(self)
        self.secrets = Secrets(self)
        self.credentials = Credentials(self)
        self.machines = Machines(services, self.tasks, self)
        self.templates = Templates(services, self.watchers, self)
        self.pool = Pool(self)
        self.idling = Idling(self)
        self.doorbell = Doorbell(self)
        self.snapshots = Snapshots(services, self)
        self.volumes = Volumes(services, self)
        self.images = ImageService(services, find_agent, self._image_users, self._kernel_users)

    async def start(self) -> None:
        """Open the store and bring it in line with what is on this host.

        Raises:
            VmgrError: the store or a directory cannot be used.
        """
        if self.activation.watchdog is not None:
            self._pinging = Pinging(self.activation.notifier, self.activation.watchdog)
        self.watchers.start(self.bus.run(), name="session bus")
        self.watchers.start(self.notifications.run(), name="notifications")
        self.watchers.start(follow_events(self), name="events worth a notification")
        await self.executors.in_store(self.store.open)
        await self.images.reconcile()
        await self.templates.reconcile()
        await self.network.adopt()
        self.network.watch_addresses()
        await self.snapshots.reconcile()
        await self.volumes.reconcile()
        await self.machines.reconcile()
        self.watchers.start(self.idling.run(), name="idle machines")
        self.watchers.start(self.credentials.run(), name="this computer's files")
        self.watchers.start(self.clocks.run(), name="machines' clocks")
        self.watchers.start(self.ssh.begin(), name="ssh server")
        try:
            port = int((await self.settings()).get("names.port"))
        except VmgrError as error:  # said again to whoever asks for something
            log.warning("names are not answered: %s", error)
        else:
            if port:
                await self.names.open(names_address(os.getuid()), port)
        self.watchers.start(follow_resolver(self), name="the host's resolver")
        self._notices = await self.executors.in_store(self.store.take_notices)
        reports = await self.executors.in_files(crash.take_untold, self.paths.crashes)
        self._notices += [
            f"the helper crashed and was started again; the report is {path}" for path in reports
        ]
        for path in reports:
            self.events.publish("helper.crashed", report=str(path))
        if self.activation.notifier.listened_to:
            self.watchers.start(tell_status(self), name="status for the service manager")
        self.watchers.start(DiskWatch(self).run(), name="space on the disk")
        self.watchers.start(session.begin(self), name="machines that start by themselves")

    def _image_users(self) -> list[tuple[str, str, int]]:
        return [*self.machines.image_users(), *self.snapshots.image_users()]

    def _kernel_users(self) -> list[str]:
        return [*self.machines.kernel_users(), *self.snapshots.kernel_users()]

    def request_stop(self) -> None:
        """Begin to stop; machines go on."""
        self.stopping.set()

    async def wait_for_stop(self) -> None:
        """Wait until someone asks the helper to stop."""
        await self.stopping.wait()

    async def close(self) -> None:
        """Let go of everything. Machines go on."""
        self.stopping.set()
        self.doorbell.close()
        await self.pool.empty()
        await self.tasks.finish(TASKS_DEADLINE)
        await self.watchers.finish(0)
        self._bus_thread.stop()
        live = any(not machine.stopped.is_set() for machine in self.machines.all())
        await self.machines.let_go()
        await self.names.close()
        self.ports.close()
        self.templates.close()
        await self.network.close(keep=live)
        await self.ssh.close(keep=live)
        await self.executors.in_store(self.store.close)
        await asyncio.to_thread(self.executors.close)
        if self._pinging is not None:  # to the last: a loop that hangs over this is noticed too
            self._pinging.close()

    async def _notifies(self) -> bool:
        try:
            return (await self.settings()).get("notifications.show") == "on"
        except VmgrError:
            return True

    async def _sandbox_required(self) -> bool:
        return (await self.settings()).get("sandbox.require") != "filter"

    async def _egress_wanted(self) -> str:
        return str((await self.settings()).get("network.egress"))

    def _address_of(self, name: str) -> str | None:
        """A machine's address on this computer."""
        row = next((m.row for m in self.machines.all() if m.name == name), None)
        if row is None or row.number is None:
            return None
        return str(identity_of(row.id, row.number).loopback)

    def _network_event(self, kind: str, machine_id: str, data: dict[str, object]) -> None:
        name = next((m.name for m in self.machines.all() if m.row.id == machine_id), None)
        self.events.publish(kind, name, **data)
        if kind == "network.egress":
            for machine in self.machines.all():
                machine.egress_problem = self.policies.egress_problem(machine.row)
        if kind == "network.denied":
            self.policies.denied(machine_id, data)
        if kind == "network.restarted" and data.get("process") == "switchboard":
            self.watchers.start(self.ports.reopen(), name="reopening ports")

    def tell(self, notice: str) -> None:
        """Keep a line for the person, who sees it with the next command."""
        if len(self._notices) < _NOTICES_MAX:
            self._notices.append(notice)

    async def take_notices(self) -> list[str]:
        """Lines that the person has not been told yet."""
        notices, self._notices = self._notices, []
        return notices

    async def with_config(self, call: Callable[[Config], T]) -> T:
        """Use the settings as the file has them now; people edit it by hand."""

        def use() -> T:
            return call(Config.load(self.paths))

        return await self.executors.in_files(use)

    async def settings(self) -> Config:
        """The settings as the file has them now.

        Raises:
            StateError: the file has a mistake.
        """
        return await self.executors.in_files(self._current_settings)

    def _current_settings(self) -> Config:
        """Read once for each state of the file: a start asks for them a dozen times."""
        mark = Config.mark(self.paths)
        if self._settings is None or self._settings[0] != mark:
            self._settings = (mark, Config.load(self.paths))
        return self._settings[1]

    async def qemu_version(self) -> str | None:
        """The version of the QEMU that machines would run in."""
        return await self.machines.engine.qemu_version()

    async def status(self) -> HelperStatus:
        """The helper as it is now."""
        accelerator = await self.machines.engine.known_accelerator()
        return HelperStatus(
            pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            uptime=time.monotonic() - self._started,
            socket=str(self.paths.helper_socket),
            rss_bytes=_resident_bytes(),
            machines_running=self.machines.count("running"),
            machines_total=self.machines.count(),
            accelerator=accelerator.name,
            accelerator_reason=accelerator.reason,
            managed=self.activation.managed,
        )


def _resident_bytes() -> int:
    """Resident memory of this process (/proc/self/statm, second field, in pages; see proc(5))."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (procfs never blocks)
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
