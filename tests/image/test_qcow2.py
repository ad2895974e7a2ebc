"""A stranger's disk opens no file but those that we name."""

from __future__ import annotations

import json
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.errors import UsageError
from vmgr.image import stand_on

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 64 * MIB


def qemu_img(*arguments: str | Path) -> bytes:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True).stdout


def io(disk: Path, *commands: str) -> bytes:
    options = [option for command in commands for option in ("-c", command)]
    return subprocess.run(
        ["qemu-io", "-f", "qcow2", *options, disk], check=True, capture_output=True
    ).stdout


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(b"b" * SIZE)
    return path


@pytest.fixture
def disk(tmp_path: Path, base: Path) -> Path:
    """An overlay on a file that has another name by now, with something written to it."""
    path, before = tmp_path / "disk.qcow2", tmp_path / "theirs"
    base.rename(before)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", before, path)
    io(path, "write -P 7 1M 1M")
    before.rename(base)
    return path


def test_it_stands_on_what_we_say(disk: Path, base: Path) -> None:
    stand_on(disk, base, SIZE)
    told: dict[str, Any] = json.loads(qemu_img("info", "--output=json", disk))
    assert (told["backing-filename"], told["backing-filename-format"]) == (str(base), "raw")
    assert told["virtual-size"] == SIZE
    assert b"No errors" in qemu_img("check", disk)
    read = io(disk, "read -P 7 1M 1M", f"read -P {ord('b')} 2M 1M", f"read -P {ord('b')} 0 1M")
    assert b"Pattern verification failed" not in read
    # Once more changes nothing.
    before = disk.read_bytes()
    stand_on(disk, base, SIZE)
    assert disk.read_bytes() == before


def test_names_in_its_header_are_gone(disk: Path, base: Path) -> None:
    content = disk.read_bytes()
    assert b"theirs" in content
    # A header extension with the name of a data file, which newer tools might read.
    (length,) = struct.unpack(">I", content[100:104])
    extension = struct.pack(">II8s", 0x44415441, 7, b"/secret")
    disk.write_bytes(content[:length] + extension + content[length + len(extension) :])
    stand_on(disk, base, SIZE)
    assert b"theirs" not in disk.read_bytes()
    assert b"secret" not in disk.read_bytes()


def patched(disk: Path, offset: int, value: bytes) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(value)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"QFIx", "not of the kind"),
        (4, struct.pack(">I", 2), "not of the kind"),
        (20, struct.pack(">I", 31), "not of the kind"),
        (24, struct.pack(">Q", SIZE * 2), "has 134217728 bytes instead of 67108864"),
        (32, struct.pack(">I", 2), "uses features"),  # LUKS
        (40, struct.pack(">Q", 8), "is damaged"),  # the L1 table in the header
        (48, struct.pack(">Q", 0), "is damaged"),
        (60, struct.pack(">I", 1), "uses features"),  # a snapshot in it
        (72, struct.pack(">Q", 1), "uses features"),  # dirty
        (72, struct.pack(">Q", 4), "uses features"),  # an external data file
        (72, struct.pack(">Q", 1 << 40), "uses features"),
        (96, struct.pack(">I", 99), "uses features"),
    ],
)
def test_what_is_refused(disk: Path, base: Path, offset: int, value: bytes, message: str) -> None:
    patched(disk, offset, value)
    before = disk.read_bytes()
    with pytest.raises(UsageError, match=message):
        stand_on(disk, base, SIZE)
    assert disk.read_bytes() == before


def test_a_cut_one_and_a_link(tmp_path: Path, base: Path) -> None:
    (tmp_path / "short").write_bytes(b"QFI\xfb")
    with pytest.raises(UsageError, match="is damaged"):
        stand_on(tmp_path / "short", base, SIZE)
    (tmp_path / "link").symlink_to(base)
    with pytest.raises(OSError, match="symbolic links"):
        stand_on(tmp_path / "link", base, SIZE)
