"""What a stranger's snapshot says of itself is taken over only where it can do no harm."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.archive.manifest import Manifest, Member
from vmgr.errors import UsageError
from vmgr.helper.arrivals import read_arrival

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = f"sha256:{0:064x}"
KERNEL = f"sha256:{1:064x}"
MEMORY = 256 << 20

ROW: dict[str, Any] = {
    "id": "aaaaaaaaaaaa", "name": "web", "status": "running", "image": "debian",
    "image_digest": DIGEST, "env": {"A": "b"}, "cpus": 1, "memory_bytes": MEMORY,
    "disk_bytes": (1 << 30) + 1, "created_at": 1.0,
    # None of this may come along.
    "number": 7, "ports": [{"host_port": 22}], "vmm_pid": 1,
    "vmm_start_time": 1, "interface": "tap0", "fallback": True, "host_boot_id": "x",
    "sandbox": "none", "pooled": True, "ephemeral": True, "restoring": "x", "template": "x",
    "pristine": True, "host_access": [22], "auto_ports": True, "clone": True,
    "status_reason": "x", "allow": ["example.org:443"],
}  # fmt: skip
RECORD: dict[str, Any] = {
    "id": "../../../etc", "tag": "one", "machine": "web", "machine_id": "aaaaaaaaaaaa",
    "created_at": 1e300, "image_digest": DIGEST, "disk_bytes": (1 << 30) + 1,
    "kernel_digest": KERNEL, "row": ROW,
}  # fmt: skip
STATE: dict[str, Any] = {
    "saved_at": -5.0, "qemu": "7.2.22", "machine_type": "pc-q35-7.2", "accelerator": "tcg",
    "kernel_digest": KERNEL, "kernel": "6.12.1+deb12-cloud-amd64", "cpus": 1,
    "memory_bytes": MEMORY, "boot_id": "abc-def", "init": "agent", "resync_keys": [],
    "memory_used": 5, "memory_checksum": 3,
}  # fmt: skip
NAMES = ("snapshot.json", "disk.qcow2", "image.json", "memory", "devices", "saved.json")


def arrived(
    files: Path, record: Any = None, row: Any = None, state: Any = None, *, without: str = ""
) -> Any:
    """Read a snapshot of which these things are said."""
    told = {**RECORD, "row": {**ROW, **(row or {})}, **(record or {})}
    (files / "snapshot.json").write_text(json.dumps(told))
    saved = {"state": {**STATE, **(state or {})}, "devices_checksum": 0, "disk_mark": "x"}
    (files / "saved.json").write_text(json.dumps(saved))
    (files / "memory").touch()
    os.truncate(files / "memory", MEMORY)
    members = [
        Member(name=name, size=0, data=0, digest=DIGEST) for name in NAMES if name != without
    ]
    return read_arrival(files, Manifest(base_digest=DIGEST, members=members))


def test_what_is_taken_over(tmp_path: Path) -> None:
    arrival = arrived(tmp_path)
    row, record = arrival.row, arrival.record
    assert (row.name, row.image, row.cpus, row.memory_bytes) == ("web", "debian", 1, MEMORY)
    assert row.allow == ["example.org:443"]
    assert (row.env, row.status) == ({"A": "b"}, "suspended")
    assert arrival.base_bytes == (1 << 30) + (1 << 20)
    # A machine that happens to have the id that the file names is not this one.
    assert row.id == record.machine_id
    assert row.id != "aaaaaaaaaaaa"
    assert record.imported
    assert record.id not in {"../../../etc", row.id}
    for name, clean in {
        "number": None, "ports": [], "vmm_pid": None, "vmm_start_time": None, "interface": None,
        "fallback": False, "host_boot_id": None, "sandbox": None, "pooled": False,
        "ephemeral": False, "restoring": None, "template": None, "pristine": False,
        "host_access": [], "auto_ports": None, "clone": False, "status_reason": None,
    }.items():  # fmt: skip
        assert getattr(row, name) == clean, name
    assert 0 <= record.created_at < 1e11
    assert arrival.saved.disk_mark is None
    assert arrival.saved.state.saved_at == 0.0


def test_one_without_memory(tmp_path: Path) -> None:
    arrival = arrived(tmp_path, {"kernel_digest": None}, without="memory")
    assert (arrival.saved, arrival.row.status) == (None, "stopped")


@pytest.mark.parametrize("name", NAMES)
def test_what_must_be_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"it has no {name}"):
        arrived(tmp_path, without=name)


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("record", {"machine": "../x"}),
        ("record", {"tag": "../x"}),
        ("record", {"image_digest": "sha256:../../x"}),
        ("record", {"kernel_digest": "sha256:../../x"}),
        ("record", {"kernel_digest": DIGEST}),
        ("record", {"disk_bytes": 1 << 31}),
        ("record", {"disk_bytes": -1}),
        ("record", {"row": 3}),
        ("row", {"cpus": 0}),
        ("row", {"cpus": 100_000}),
        ("row", {"cpus": "1"}),
        ("row", {"memory_bytes": MEMORY + 1}),
        ("row", {"memory_bytes": 1 << 60}),
        ("row", {"access": "everything"}),
        ("row", {"allow": ["not a rule"]}),
        ("row", {"init": "/sbin/init rdinit=/bin/sh"}),
        ("row", {"default_user": "a\nb"}),
        ("row", {"env": {"A": "\0"}}),
        ("state", {"machine_type": "pc,accel=kvm"}),
        ("state", {"accelerator": "other"}),
        ("state", {"kernel": "x\n"}),
        ("state", {"memory_bytes": MEMORY * 2}),
        ("state", {"cpus": 2}),
        ("state", {"memory_used": -1}),
        ("state", {"resync_keys": ["AAAA"] * 100}),
        ("state", {"resync_keys": ["A" * 4_000]}),
    ],
)
def test_what_is_refused(tmp_path: Path, part: str, changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        arrived(tmp_path, **{part: changed})


def test_an_image_name_that_is_none_is_not_shown(tmp_path: Path) -> None:
    assert arrived(tmp_path, row={"image": "\x1b[2J"}).row.image == "imported"
