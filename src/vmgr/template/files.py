"""Templates on disk: a directory for each, named by its key.

    KEY/template.json   what it is, and the checksum of its memory
    KEY/memory          the guest's memory, sparse
    KEY/devices         the state of the VMM's devices
    KEY/disk.qcow2      the machine's disk at the same moment, an overlay on the image

A template appears whole, by a rename, and everything in it is on the disk by then. The directory's
modification time is that of its last use.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.artifact.staging import discard, publish, remove_residue
from vmgr.artifact.threads import in_thread
from vmgr.errors import StateError
from vmgr.saved import SavedState  # noqa: TC001 (msgspec resolves annotations at run time)
from vmgr.spawner import ProcessFailedError

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

__all__ = ["RECORD", "Template", "TemplateFiles", "TemplateRecord"]

RECORD: Final = "template.json"
_SMALL: Final = 1 << 20

log = logging.getLogger(__name__)


class TemplateRecord(msgspec.Struct, kw_only=True, frozen=True):
    """What is known of a template."""

    id: str
    """Of this one saved machine; another one under the same key has another."""
    image_digest: str
    disk_bytes: int
    disk_checksum: int
    devices_checksum: int
    saved: SavedState


@dataclass(frozen=True)
class Template:
    """A template on disk."""

    key: str
    directory: Path
    record: TemplateRecord
    used_at: float
    size_bytes: int
    inode: int
    """Of its directory: another template has another."""

    @property
    def memory(self) -> Path:
        """Its memory."""
        return self.directory / "memory"

    @property
    def devices(self) -> Path:
        """The state of its devices."""
        return self.directory / "devices"

    @property
    def disk(self) -> Path:
        """Its disk."""
        return self.directory / "disk.qcow2"


class TemplateFiles:
    """The templates of one user."""

    def __init__(self, root: Path, executor: Executor) -> None:
        self.root = root
        self._executor = executor

    async def all(self) -> list[Template]:
        """All of them, the one used last first."""
        return await in_thread(self._executor, self._list)

    async def get(self, key: str) -> Template | None:
        """The template of that key; None when there is none, or no sound one."""

        def look() -> Template | None:
            try:
                return _read(self.root / key)
            except FileNotFoundError:
                return None
            except StateError as error:
                log.warning("%s", error.message)
                return None

        return await in_thread(self._executor, look)

    async def publish(self, stage: Path, key: str) -> None:
        """Show a finished template; an older one of that key gives way."""
        target = self.root / key
        if await in_thread(self._executor, target.is_dir):
            await self.remove(key)
        await in_thread(self._executor, publish, stage, target)

    async def remove(self, key: str) -> None:
        """Remove a template. Machines that run from it have its memory open and go on."""
        try:
            await discard(self.root / key)
        except FileNotFoundError:
            pass
        except (OSError, ProcessFailedError) as error:
            log.warning("the template %s is not removed: %s", key, error)

    async def touch(self, template: Template) -> None:
        """It has been used."""

        def touch() -> None:
            with contextlib.suppress(OSError):  # it has just been removed
                os.utime(template.directory)

        await in_thread(self._executor, touch)

    async def bound(self, count: int, size_bytes: int) -> list[str]:
        """Remove those unused for longest until `count` and `size_bytes` are kept; gives keys."""
        removed = []
        total = 0
        for index, template in enumerate(await self.all()):
            total += template.size_bytes
            if index >= count or total > size_bytes:
                await self.remove(template.key)
                removed.append(template.key)
        return removed

    async def reconcile(self) -> list[str]:
        """Remove what interrupted builds and removals left, and what is no sound template."""
        gone = await remove_residue(self.root)

        def unsound() -> list[str]:
            sound = {template.key for template in self._list()}
            return [
                entry.name
                for entry in self.root.iterdir()
                if entry.name not in sound and not entry.name.startswith(".")
            ]

        for name in await in_thread(self._executor, unsound):
            await self.remove(name)
            gone.append(name)
        return gone

    def _list(self) -> list[Template]:
        found = []
        for entry in self.root.iterdir():
            if entry.name.startswith("."):
                continue
            with contextlib.suppress(StateError, FileNotFoundError):
                found.append(_read(entry))
        return sorted(found, key=lambda t: (-t.used_at, t.key))


def _read(directory: Path) -> Template:
    status = directory.stat()
    try:
        with (directory / RECORD).open("rb") as file:
            record = msgspec.json.decode(file.read(_SMALL), type=TemplateRecord)
        size = sum(path.stat().st_blocks * 512 for path in directory.iterdir())
        if (directory / "memory").stat().st_size != record.saved.memory_bytes:
            raise StateError(f"the template {directory} is damaged: its memory is cut short")
    except (OSError, msgspec.MsgspecError) as error:
        raise StateError(f"the template {directory} cannot be read") from error
    return Template(directory.name, directory, record, status.st_mtime, size, status.st_ino)
