"""Disks that come and go while a machine runs: volumes.

Every machine has the same few slots (PCIe root ports, empty at first), since what is not on the
command line when a machine is saved cannot be there when it goes on. A volume's file is opened by
the helper and handed over as an fd, so the VMM's sandbox need not see it, and a VMM that was taken
over can open no other. QEMU locks the file as long as it has it: whatever the helper believes, two
VMMs never write to one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmgr.errors import ConflictError, MachineError
from vmgr.vmm.options import option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from vmgr.vmm.qmp import Qmp

__all__ = ["SLOTS", "Hotplug", "VmmVolume", "slots", "volumes"]

SLOTS: Final = 8
_PCI_SLOT: Final = 0x1C  # above those that QEMU hands out, so that no other device moves
_UNPLUG_DEADLINE: Final = 30.0  # seconds; the machine's kernel has to let go of it


@dataclass(frozen=True)
class VmmVolume:
    """A volume as a VMM is given it."""

    id: str
    fd: int
    """Open for reading, and for writing unless it is only read."""
    slot: int
    read_only: bool

    @property
    def node(self) -> str:
        """Its block node and its device."""
        return f"vol-{self.id}"

    @property
    def serial(self) -> str:
        """What the machine knows it by."""
        return serial_of(self.id)


def serial_of(volume: str) -> str:
    """The serial number of a volume's disk; virtio-blk holds 20 bytes."""
    return f"vol-{volume}"


def slots() -> list[str]:
    """The arguments for the slots, which are the functions of one PCI device."""
    arguments = []
    for number in range(SLOTS):
        arguments += [
            "-device", option(
                "pcie-root-port", id=f"slot{number}", bus="pcie.0",
                addr=f"{_PCI_SLOT:x}.{number}", chassis=number + 1, io_reserve=0,
                multifunction=True if number == 0 else None,
            ),
        ]  # fmt: skip
    return arguments


def volumes(plugged: Sequence[VmmVolume]) -> list[str]:
    """The arguments for volumes that a saved machine had."""
    arguments = []
    for number, volume in enumerate(plugged):
        arguments += [
            "-add-fd", option(fd=volume.fd, set=number),
            "-blockdev", option(
                driver="file", node_name=volume.node, filename=f"/dev/fdset/{number}",
                locking=True, aio="threads", discard="unmap", read_only=volume.read_only,
            ),
            "-device", option(
                "virtio-blk-pci", id=volume.node, drive=volume.node, serial=volume.serial,
                bus=f"slot{volume.slot}", disable_legacy=True, werror="enospc", rerror="report",
            ),
        ]  # fmt: skip
    return arguments


class Hotplug:
    """What one VMM has plugged in."""

    def __init__(self, name: str, connected: Callable[[], Awaitable[Qmp]]) -> None:
        self._name = name
        self._connected = connected
        self._leaving: dict[str, asyncio.Future[bool]] = {}

    async def plugged(self) -> set[str]:
        """The ids of the volumes that the machine has.

        Raises:
            MachineError: the VMM does not tell.
        """
        answer = await (await self._connected()).execute("query-block")
        found = set()
        for entry in answer if isinstance(answer, list) else []:
            # The device's place in QEMU's tree: /machine/peripheral/ID/virtio-backend.
            parts = str(entry.get("qdev")).split("/") if isinstance(entry, dict) else []
            found |= {p.removeprefix("vol-") for p in parts if p.startswith("vol-")}
        return found

    async def plug(self, volume: VmmVolume) -> None:
        """Give the machine a volume.

        Raises:
            ConflictError: another VMM has it.
            MachineError: the VMM does not take it.
        """
        qmp = await self._connected()
        async with qmp.lent(volume.fd) as file:
            try:
                await qmp.execute("blockdev-add", {
                    "driver": "file", "node-name": volume.node, "filename": file, "locking": "on",
                    "aio": "threads", "discard": "unmap", "read-only": volume.read_only,
                })  # fmt: skip
                await qmp.execute("device_add", {
                    "driver": "virtio-blk-pci", "id": volume.node, "drive": volume.node,
                    "serial": volume.serial, "bus": f"slot{volume.slot}", "disable-legacy": "on",
                    "werror": "enospc", "rerror": "report",
                })  # fmt: skip
            except BaseException as error:
                await asyncio.shield(self._forget(qmp, volume.node))
                if isinstance(error, MachineError) and "lock" in error.message:
                    raise ConflictError(
                        f"another VMM has the volume of machine {self._name} open"
                    ) from error
                raise

    async def unplug(self, volume: str) -> None:
        """Take a volume out that the machine does not use; one that is not there is no error.

        Args:
            volume: its id.

        Raises:
            MachineError: the machine does not let go of it.
        """
        node = f"vol-{volume}"
        if volume in await self.plugged():
            qmp = await self._connected()
            leaving = self._leaving[node] = asyncio.get_running_loop().create_future()
            try:
                await qmp.execute("device_del", {"id": node})
                async with asyncio.timeout(_UNPLUG_DEADLINE):
                    gone = await leaving
            except TimeoutError:
                gone = False
            finally:
                del self._leaving[node]
            if not gone:
                raise MachineError(
                    f"machine {self._name} does not let go of the volume's disk",
                    next_step=f"try again, or stop it first: vmgr stop {self._name}",
                )
        await self._forget(await self._connected(), node)

    async def resize(self, volume: str, size_bytes: int) -> None:
        """Tell the machine that a volume's file has grown.

        Raises:
            MachineError: the VMM does not take the command.
        """
        qmp = await self._connected()
        await qmp.execute("block_resize", {"node-name": f"vol-{volume}", "size": size_bytes})

    def event(self, event: str, data: Mapping[str, Any]) -> None:
        """A QMP event; those of other kinds are ignored."""
        if event not in {"DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"}:
            return
        leaving = self._leaving.get(str(data.get("device")))
        if leaving is not None and not leaving.done():
            leaving.set_result(event == "DEVICE_DELETED")

    def ended(self) -> None:
        """The VMM has ended, and has nothing any more."""
        for leaving in self._leaving.values():
            if not leaving.done():
                leaving.set_result(True)

    async def _forget(self, qmp: Qmp, node: str) -> None:
        """Let the VMM close a volume that no device has."""
        try:
            await qmp.execute("blockdev-del", {"node-name": node})
        except MachineError as error:
            if error.details.get("class") not in {"GenericError", None}:
                raise
