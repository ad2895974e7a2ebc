"""The disk with cloud-init's user-data."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pycdlib

from vmgr.vmm.seed import write_seed

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "#cloud-config\nwrite_files:\n  - {path: /etc/ä, content: b}\n"


def read(disk: pycdlib.PyCdlib, name: str) -> str:
    content = io.BytesIO()
    disk.get_file_from_iso_fp(content, rr_path=f"/{name}")
    return content.getvalue().decode()


def test_it_holds_what_cloud_init_looks_for(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    write_seed(path, TEXT, instance="0123", hostname="web")
    assert path.stat().st_mode & 0o777 == 0o600
    disk = pycdlib.PyCdlib()
    disk.open(str(path))
    assert disk.pvd.volume_identifier.strip() == b"cidata"
    assert read(disk, "user-data") == TEXT
    meta = json.loads(read(disk, "meta-data"))
    assert meta == {"instance-id": "vmgr-0123", "local-hostname": "web"}
    assert read(disk, "network-config") == "config: disabled\n"
    disk.close()


def test_it_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    write_seed(path, TEXT, instance="0123", hostname="web")
    before = path.read_bytes()
    write_seed(path, "other", instance="0123", hostname="web")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["seed.iso"]
