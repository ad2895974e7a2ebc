"""Snapshots on disk: a directory for each, named by its id.

    ID/snapshot.json   what it is of
    ID/disk.qcow2      the machine's disk, an overlay on its image
    ID/memory, ID/devices, ID/saved.json
                       where the machine ran: its memory and devices (see `vmgr.saved.files`)

A snapshot appears whole, by a rename, and everything in it is on the disk by then.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from vmgr.artifact.staging import discard, publish, remove_residue
from vmgr.artifact.threads import in_thread
from vmgr.errors import StateError

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

__all__ = ["DISK", "RECORD", "Snapshot", "SnapshotFiles", "SnapshotRecord"]

RECORD: Final = "snapshot.json"
DISK: Final = "disk.qcow2"
_SMALL: Final = 1 << 20

log = logging.getLogger(__name__)


class SnapshotRecord(msgspec.Struct, kw_only=True, frozen=True):
    """What is known of a snapshot."""

    id: str
    tag: str
    machine: str
    """The machine's name then."""
    machine_id: str
    created_at: float
    image_digest: str
    disk_bytes: int
    """The size that the machine sees."""
    kernel_digest: str | None = None
    """The kernel bundle that the memory goes on with; None: there is no memory."""
    imported: bool = False
    """It came from a file: no machine here is the one that it was taken of."""
    row: dict[str, Any]
    """All that made up the machine, as its row had it."""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk."""

    directory: Path
    record: SnapshotRecord
    size_bytes: int

    @property
    def name(self) -> str:
        """As people write it."""
        return f"{self.record.machine}:{self.record.tag}"

    @property
    def disk(self) -> Path:
        """Its disk."""
        return self.directory / DISK

    @property
    def has_memory(self) -> bool:
        """Whether the machine ran."""
        return self.record.kernel_digest is not None


class SnapshotFiles:
    """The snapshots of one user. What there are is known here; files say the rest."""

    def __init__(self, root: Path, executor: Executor) -> None:
        self.root = root
        self._executor = executor
        self._known: dict[str, Snapshot] = {}

    async def open(self) -> list[str]:
        """Learn what there is and remove what interrupted work left; gives the names of that."""
        gone = await remove_residue(self.root)
        self._known = {s.record.id: s for s in await in_thread(self._executor, self._list)}
        return gone

    def all(self) -> list[Snapshot]:
        """All of them, oldest first."""
        return sorted(self._known.values(), key=lambda s: (s.record.created_at, s.record.id))

    def of(self, machine: str) -> list[Snapshot]:
        """Those of machines of that name, oldest first."""
        return [s for s in self.all() if s.record.machine == machine]

    def find(self, machine: str, tag: str) -> Snapshot | None:
        """The one of that name, if there is one."""
        return next((s for s in self.of(machine) if s.record.tag == tag), None)

    def get(self, snapshot_id: str) -> Snapshot | None:
        """The one of that id, if there is one."""
        return self._known.get(snapshot_id)

    async def publish(self, stage: Path, record: SnapshotRecord) -> Snapshot:
        """Write the record into a staged snapshot and show it."""
        target = self.root / record.id

        def show() -> Snapshot:
            (stage / RECORD).write_bytes(msgspec.json.encode(record))
            publish(stage, target)
            return _read(target)

        snapshot = await in_thread(self._executor, show)
        self._known[record.id] = snapshot
        return snapshot

    async def remove(self, snapshot: Snapshot) -> None:
        """Remove one; machines that go on from its memory have it open."""
        self._known.pop(snapshot.record.id, None)
        with contextlib.suppress(FileNotFoundError):
            await discard(snapshot.directory)

    def _list(self) -> list[Snapshot]:
        found = []
        for entry in self.root.iterdir():
            if entry.name.startswith("."):
                continue
            try:
                found.append(_read(entry))
            except StateError as error:
                log.warning("%s", error.message)
        return found


def _read(directory: Path) -> Snapshot:
    try:
        with (directory / RECORD).open("rb") as file:
            record = msgspec.json.decode(file.read(_SMALL), type=SnapshotRecord)
        size = sum(path.stat().st_blocks * 512 for path in directory.iterdir())
    except (OSError, msgspec.MsgspecError) as error:
        raise StateError(f"the snapshot {directory} cannot be read") from error
    if record.id != directory.name:
        raise StateError(f"the snapshot {directory} is of another name")
    return Snapshot(directory, record, size)
