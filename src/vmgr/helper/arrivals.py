"""What a stranger's snapshot says of itself: checked, and only what is needed taken over.

The files are as their manifest has them by now, but whoever made the file made the manifest too.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.artifact.strangers import decode_json
from vmgr.errors import UsageError
from vmgr.helper.store import MachineRow
from vmgr.image import check_metadata
from vmgr.machine.names import check_name
from vmgr.network import canonical
from vmgr.saved import SavedMachine
from vmgr.snapshot import SnapshotRecord, check_tag
from vmgr.snapshot.files import RECORD

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.archive.manifest import Manifest

__all__ = ["Arrival", "read_arrival"]

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_IMAGE: Final = re.compile(r"[a-z0-9][a-z0-9._/-]{0,127}(:[A-Za-z0-9._-]{1,64})?")
_MACHINE_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,40}")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,:;()+~_/-]{0,199}")
_CPUS: Final = range(1, 256)
_MEMORY: Final = range(16 << 20, (16 << 40) + 1, 4_096)
_DISK: Final = range(1 << 20, (15 << 40) + 1)
_KEYS: Final = 64
_KEY: Final = 256
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Arrival:
    """A snapshot from elsewhere."""

    record: SnapshotRecord
    """Its image's digest is what it was where it came from."""
    saved: SavedMachine | None
    row: MachineRow

    @property
    def base_bytes(self) -> int:
        """The size of the file that its disk stands on."""
        return -(-self.record.disk_bytes // _MIB) * _MIB


class _Given(msgspec.Struct):
    """What of a machine's row is looked at."""

    image: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    init: str | None = None
    default_user: str = "root"
    env: dict[str, str] = {}
    access: str = "full"
    allow: list[str] | None = None


def read_arrival(files: Path, manifest: Manifest) -> Arrival:
    """Read what an archive says of its snapshot; blocks.

    Raises:
        UsageError: it is not what a snapshot is.
        OSError: it cannot be read.
    """
    for name in (RECORD, "disk.qcow2", "image.json"):
        if not manifest.has(name):
            raise UsageError(f"it has no {name}")
    try:
        record = decode_json((files / RECORD).read_bytes(), SnapshotRecord)
        given = msgspec.convert(record.row, _Given)
    except (ValueError, msgspec.MsgspecError) as error:
        raise UsageError(f"what it says of its machine is not valid ({error})") from None
    check_name(record.machine)
    check_tag(record.tag)
    check_metadata(given.init, given.default_user, given.env)
    if (
        given.cpus not in _CPUS
        or given.memory_bytes not in _MEMORY
        or record.disk_bytes not in _DISK
        or given.disk_bytes != record.disk_bytes
        or given.access not in {"full", "internet", "none"}
        or not _DIGEST.fullmatch(record.image_digest)
    ):
        raise UsageError("what it says of its machine is not possible")
    saved = None
    if record.kernel_digest is not None:
        saved = _saved(files, manifest, record.kernel_digest, given)
    now = time.time()
    row = MachineRow(
        id=secrets.token_hex(6),
        name=record.machine,
        status="suspended" if saved else "stopped",
        image=given.image if _IMAGE.fullmatch(given.image) else "imported",
        image_digest=record.image_digest,
        init=given.init,
        default_user=given.default_user,
        env=given.env,
        cpus=given.cpus,
        memory_bytes=given.memory_bytes,
        disk_bytes=given.disk_bytes,
        access=given.access,
        # What it was kept from, it is kept from here too; what it could reach of its computer's
        # own ports, it cannot here.
        allow=None if given.allow is None else canonical(given.allow),
        created_at=now,
        kernel=saved.state.kernel if saved else None,
        kernel_digest=record.kernel_digest,
    )
    record = SnapshotRecord(
        id=secrets.token_hex(6),
        tag=record.tag,
        machine=record.machine,
        # No machine here is the one that it was taken of, whatever its id.
        machine_id=row.id,
        created_at=min(max(record.created_at, 0.0), now),
        image_digest=record.image_digest,
        disk_bytes=record.disk_bytes,
        kernel_digest=record.kernel_digest,
        imported=True,
        row={},
    )
    return Arrival(record, saved, row)


def _saved(files: Path, manifest: Manifest, kernel: str, row: _Given) -> SavedMachine:
    for name in ("memory", "devices", "saved.json"):
        if not manifest.has(name):
            raise UsageError(f"it has no {name}")
    try:
        saved = decode_json((files / "saved.json").read_bytes(), SavedMachine)
    except ValueError:
        raise UsageError("what it says of its machine's memory is not valid") from None
    state = saved.state
    if (
        state.kernel_digest != kernel
        or not _DIGEST.fullmatch(kernel)
        or (state.cpus, state.memory_bytes) != (row.cpus, row.memory_bytes)
        or (files / "memory").stat().st_size != state.memory_bytes
        or not _MACHINE_TYPE.fullmatch(state.machine_type)
        or state.accelerator not in {"kvm", "tcg"}
        or not all(_WORD.fullmatch(text) for text in (state.qemu, state.kernel, state.boot_id))
        or len(state.init) > _KEY
        or len(state.resync_keys) > _KEYS
        or any(len(key) > _KEY for key in state.resync_keys)
        or not 0 <= state.memory_used <= state.memory_bytes
    ):
        raise UsageError("what it says of its machine's memory is not possible")
    saved_at = min(max(state.saved_at, 0.0), time.time())
    return msgspec.structs.replace(
        saved, disk_mark=None, state=msgspec.structs.replace(state, saved_at=saved_at)
    )
