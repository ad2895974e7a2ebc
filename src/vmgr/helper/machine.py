"""One machine as the helper holds it: its durable row, and the live parts while it runs.

`MachineRow` is the truth on disk, `Machine` adds what cannot outlive the helper: the VMM's pidfd,
the connections, the lock. Every change of status goes through `Machine.move`, which asks the
lifecycle table, saves, and publishes the event, in this order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from vmgr.agent import FIRST_KEY
from vmgr.api.models import MachineInfo, NetworkInfo, VmmInfo
from vmgr.api.shares import Share
from vmgr.errors import VmgrError, WrongStateError
from vmgr.helper.userrow import user_notes
from vmgr.loopback import DOMAIN
from vmgr.machine.lifecycle import check_permits, next_status
from vmgr.network.addresses import identity_of
from vmgr.saved.files import disk_mark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmgr.agent import AgentChannel, AgentHello
    from vmgr.api.models import (
        ClockInfo,
        Denied,
        MachineStatus,
        NetworkAccess,
        PortForward,
        SandboxLevel,
    )
    from vmgr.helper.events import EventBus
    from vmgr.helper.executors import Executors
    from vmgr.helper.store import MachineRow, Store
    from vmgr.machine.lifecycle import Action, Trigger
    from vmgr.paths import MachinePaths, Paths
    from vmgr.vmm import Vmm

__all__ = ["EMULATION_NOTE", "OPEN_NOTE", "Machine", "ResyncKeys", "Services"]

EMULATION_NOTE = "runs under software emulation (TCG), for which QEMU promises no isolation"

OPEN_NOTE = "its VMM has only a system call filter and could read your files: see vmgr doctor"

_WHY_FUSE = "works with memory that is shared with a template, when saved, and in copies"

_WITHOUT_VMM = frozenset({"creating", "stopped", "removing", "suspended", "restoring"})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """What machines need of the helper."""

    paths: Paths
    executors: Executors
    store: Store
    events: EventBus


class Machine:
    """A machine. `lock` is held during start, stop and remove."""

    def __init__(self, services: Services, row: MachineRow) -> None:
        self._services = services
        self.row = row
        self.lock = asyncio.Lock()
        self._saving = asyncio.Lock()
        self.vmm: Vmm | None = None
        self.channel: AgentChannel | None = None
        self.denied: tuple[Denied, ...] = ()
        """What it was denied in the network, the latest first."""
        self.clock: ClockInfo | None = None
        """How its clock was when it was measured last."""
        self.egress_problem: str | None = None
        """Why it has no internet though it has a network."""
        self.kill_reason: str | None = None
        """Why we are ending the VMM, told to whoever waits for the machine."""
        self.adopted = asyncio.Event()
        """Clear while a new helper is taking the machine over."""
        self.adopted.set()
        self._greeting: AgentHello | None = None
        self._uptime: tuple[int, int] = (0, 0)
        self.reached = asyncio.Event()
        """Set when its agent has said hello; cleared by who waits for the next."""
        self.automatic: list[PortForward] = []
        """Ports that appeared by themselves."""
        self.share_problems: dict[int, str] = {}
        """Why shares do not work, by their slots."""
        self.stopped = asyncio.Event()
        """Set while there is no VMM."""
        self._entering = 0
        self.nobody_enters = asyncio.Event()
        """Set while no command is being started in it."""
        self.nobody_enters.set()
        self.in_use = 0
        """How many clients' commands are attached to it."""
        self.used_at = time.monotonic()
        self.secrets_given = 0
        """How often a command in it was given secrets."""
        self.wants_host_keys = False
        """It has an SSH server without host keys."""
        self._disk_made: str | None = None
        """What its disk's file was like when we made it; None: not known."""
        self.unheld = asyncio.Event()
        """Cleared while it is held still for a capture: then nobody lets go of its VMM."""
        self.unheld.set()
        self.saved_whole = False
        """Its memory is on disk; that its VMM ends now is no loss."""
        if row.status in _WITHOUT_VMM:
            self.stopped.set()

    async def note_disk(self) -> None:
        """Its disk has just been made."""
        self._disk_made = await self._services.executors.in_files(self._disk_mark)

    async def has_disk_as_made(self) -> bool:
        """Whether nobody has touched its disk since we made it."""
        there = await self._services.executors.in_files(self._disk_mark)
        return there is not None and there == self._disk_made

    def _disk_mark(self) -> str | None:
        try:
            return disk_mark(self.paths.disk)
        except OSError:
            return None

    @property
    def name(self) -> str:
        """Its name."""
        return self.row.name

    @property
    def status(self) -> MachineStatus:
        """Where in its lifecycle it is."""
        return cast("MachineStatus", self.row.status)

    @property
    def paths(self) -> MachinePaths:
        """Its files."""
        return self._services.paths.machine(self.row.id)

    def require(self, action: Action) -> None:
        """See that the machine's status permits `action`.

        Raises:
            WrongStateError: it does not.
        """
        check_permits(self.name, self.status, action)

    async def save(self, **changes: Any) -> None:
        """Change the row, here and on disk."""
        async with self._saving:
            await self._write(msgspec.structs.replace(self.row, **changes))

    async def _write(self, row: MachineRow) -> None:
        await self._services.executors.in_store(self._services.store.save_machine, row)
        self.row = row

    async def move(self, trigger: Trigger, *, reason: str | None = None, **changes: Any) -> None:
        """Take the transition that `trigger` means, durably, and tell everyone.

        Raises:
            WrongStateError: the lifecycle table has no such transition.
        """
        # The lock's holder, the watcher of the VMM's end and the agent's keys all change the row:
        # each change begins with what the one before has left.
        async with self._saving:
            before = self.status
            after = next_status(self.name, before, trigger)
            row = msgspec.structs.replace(self.row, status=after, status_reason=reason, **changes)
            try:
                await self._write(row)
            except VmgrError as error:
                if trigger not in {"vmm-exited", "suspended", "restored"}:
                    raise
                # It is so whether or not that can be written down (the disk may be full); a helper
                # that reads the old row finds what there is, and comes to the same.
                log.error("machine %s: its end is not written down: %s", self.name, error)  # noqa: TRY400
                self.row = row
            if after in _WITHOUT_VMM:
                self.stopped.set()
            else:
                self.stopped.clear()
        log.info(
            "machine %s: %s -> %s%s", self.name, before, after, f" ({reason})" if reason else ""
        )
        self._services.events.publish(
            "machine.status", self.name, before=before, after=after, reason=reason
        )

    @property
    def runs_as(self) -> str:
        """The user of commands that name none, as far as is known yet."""
        user = self.row.user
        return (user and user.run_as) or self.row.default_user

    @property
    def is_saved(self) -> bool:
        """It is suspended, or its VMM is ended for that and nothing can come between."""
        return self.saved_whole or self.status == "suspended"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """While a command is being started in it: so long it is not suspended."""
        self._entering += 1
        self.nobody_enters.clear()
        try:
            yield
        finally:
            self._entering -= 1
            if self._entering == 0:
                self.nobody_enters.set()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """For as long as a client's command is attached to it."""
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1
            self.used_at = time.monotonic()

    def connected(self, channel: AgentChannel, hello: AgentHello) -> None:
        """The agent has said hello."""
        self.channel = channel
        self.reached.set()
        self._greeting = hello
        self._uptime = (time.monotonic_ns(), hello.uptime_ns)

    @property
    def greeting(self) -> AgentHello:
        """The agent's latest hello; there has been one."""
        assert self._greeting is not None  # noqa: S101 (asked for only once it is connected)
        return self._greeting

    def guest_uptime_ns(self) -> int:
        """About how long the machine has been up, by its own clock (CLOCK_BOOTTIME)."""
        heard, uptime = self._uptime
        return uptime + time.monotonic_ns() - heard

    async def unstick(self) -> None:
        """Let it go on if it runs and stands still, as there was no room for its disk."""
        if self.vmm is not None and self.vmm.out_of_space.is_set():
            await self.vmm.resume()

    async def ready_channel(self) -> AgentChannel:
        """The way into the machine; waits for what a new helper does to find it again.

        Raises:
            WrongStateError: it is not running.
        """
        await self.adopted.wait()
        self.require("exec")
        if self.channel is None:
            raise WrongStateError(
                f"machine {self.name} is {self.status}, but its agent cannot be reached",
                next_step=f"look at: vmgr logs {self.name}",
                details={"machine": self.name, "seen": self.status, "needed": ["running"]},
            )
        return self.channel

    def info(self) -> MachineInfo:
        """The machine as clients see it (stats a file: call it in an executor)."""
        row = self.row
        try:
            disk_used: int | None = self.paths.disk.stat().st_blocks * 512
        except OSError:
            disk_used = None
        vmm = None
        if row.vmm_pid is not None and not self.stopped.is_set():
            vmm = VmmInfo(
                pid=row.vmm_pid,
                accelerator=row.accelerator or "unknown",
                qemu=row.qemu or "unknown",
                machine_type=row.machine_type or "unknown",
                sandbox=cast("SandboxLevel | None", row.sandbox),
            )
        running = self.status == "running"
        return MachineInfo(
            id=row.id,
            name=row.name,
            status=self.status,
            status_reason=row.status_reason,
            image=row.image,
            image_digest=row.image_digest,
            kernel=row.kernel or "",
            cpus=row.cpus,
            memory_bytes=row.memory_bytes,
            disk_bytes=row.disk_bytes,
            disk_used_bytes=disk_used,
            ephemeral=row.ephemeral,
            created_at=row.created_at,
            started_at=row.started_at if not self.stopped.is_set() else None,
            boot_seconds=row.boot_seconds,
            boot_id=row.boot_id if running else None,
            started_from=cast("Any", row.started_from),
            init=row.booted_init if running else row.init,
            user=self.runs_as,
            vmm=vmm,
            network=self._network(),
            clock=self.clock if running else None,
            ports=[*row.ports, *self.automatic],
            volumes=row.volumes,
            host_commands=row.host_commands,
            shares=self.shares(),
            notes=[*_notes(vmm), *user_notes(row.user)],
        )

    def shares(self) -> list[Share]:
        """The directories of this computer in it."""
        live = not self.stopped.is_set()
        return [
            Share(
                host=share.host,
                guest=share.guest,
                read_only=share.read_only,
                transport="fuse" if live else None,
                reason=_WHY_FUSE if live else None,
                problem=self.share_problems.get(share.slot) if live else None,
            )
            for share in self.row.shares
        ]

    def _network(self) -> NetworkInfo | None:
        row = self.row
        if row.number is None:
            return None
        identity = identity_of(row.id, row.number)
        live = not self.stopped.is_set()
        kind = "switchboard" if row.interface and live else "none"
        if row.fallback and live:
            kind = "user-mode"
        return NetworkInfo(
            access=cast("NetworkAccess", row.access),
            address=str(identity.address4),
            address6=str(identity.address6),
            mac=identity.mac.hex(":"),
            loopback=str(identity.loopback),
            name=f"{row.name}.{DOMAIN}",
            kind=cast("Any", kind),
            problem=(row.network_problem or self.egress_problem) if live else None,
            allow=row.allow,
            host_access=row.host_access,
            host_access_udp=row.host_access_udp,
            denied=list(self.denied),
        )


def _notes(vmm: VmmInfo | None) -> list[str]:
    """What the person should know of the process that runs a machine."""
    if vmm is None:
        return []
    notes = []
    if vmm.accelerator == "tcg":
        notes.append(EMULATION_NOTE)
    if vmm.sandbox in {"filter", None}:
        notes.append(OPEN_NOTE)
    return notes


class ResyncKeys:
    """The agent channel's markers, kept in the machine's row; a `vmgr.agent.KeyStore`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def candidates(self) -> list[bytes]:
        """Keys the agent may hold, oldest first."""
        return self._machine.row.resync_keys or [FIRST_KEY]

    async def store_next(self, key: bytes) -> None:
        """Add a candidate, durably."""
        await self._machine.save(resync_keys=[*await self.candidates(), key])

    async def confirm(self, key: bytes) -> None:
        """The agent holds `key`: forget all others."""
        await self._machine.save(resync_keys=[key])
