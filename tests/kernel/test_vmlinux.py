from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import StateError
from vmgr.kernel.vmlinux import extract_vmlinux, has_pvh_entry, split_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def note(name: bytes, kind: int, body: bytes) -> bytes:
    padded = name + bytes(-len(name) % 4) + body + bytes(-len(body) % 4)
    return struct.pack("<III", len(name), len(body), kind) + padded


def elf(notes: bytes) -> bytes:
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4)
    return header + segment + notes


PVH = elf(note(b"Linux\0", 1, b"abc") + note(b"Xen\0", 18, b"\x30\x0a\x00\x01"))
NO_PVH = elf(note(b"Linux\0", 18, b"abcd") + note(b"Xen\0", 6, b"linux\0"))


def bzimage(payload: bytes) -> bytes:
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x020F)
    struct.pack_into("<II", setup, 0x248, 100, len(payload) + 4)
    return bytes(setup) + bytes(100) + payload + b"SIZE" + bytes(50)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def lz4(data: bytes) -> bytes:
    if shutil.which("lz4") is None:
        pytest.skip("lz4 is not installed")
    return subprocess.run(["lz4", "-l", "-c"], input=data, capture_output=True, check=True).stdout


async def test_without_lz4_such_a_kernel_is_left_to_the_bzimage(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmgr.kernel.vmlinux.missing_tools", lambda *tools: list(tools))
    (tmp_path / "vmlinuz").write_bytes(bzimage(b"\x02\x21\x4c\x18 whatever"))
    assert not await extract_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux", executor)
    assert list(content(tmp_path)) == ["vmlinuz"]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, lz4])
async def test_a_kernel_with_a_pvh_entry_is_unpacked(
    tmp_path: Path, executor: ThreadPoolExecutor, pack: Callable[[bytes], bytes]
) -> None:
    image = bzimage(pack(PVH))
    (tmp_path / "vmlinuz").write_bytes(image)
    assert await extract_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux", executor)
    assert content(tmp_path) == {"vmlinux": PVH, "vmlinuz": image}


@pytest.mark.parametrize("payload", [gzip.compress(NO_PVH), b"\x89LZO something"])
async def test_others_are_left_to_the_bzimage(
    tmp_path: Path, executor: ThreadPoolExecutor, payload: bytes
) -> None:
    (tmp_path / "vmlinuz").write_bytes(bzimage(payload))
    assert not await extract_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux", executor)
    assert list(content(tmp_path)) == ["vmlinuz"]


@pytest.mark.parametrize(
    "payload", [gzip.compress(PVH)[:30], lzma.compress(PVH)[:40], b"\x28\xb5\x2f\xfd junk"]
)
async def test_damaged_kernels_are_refused(
    tmp_path: Path, executor: ThreadPoolExecutor, payload: bytes
) -> None:
    (tmp_path / "vmlinuz").write_bytes(bzimage(payload))
    with pytest.raises(StateError, match="the kernel is damaged"):
        await extract_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux", executor)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"MZ", "too short"),
        (bytes(4096), "is not a bzImage"),
        (bzimage(b"x" * 99)[:2650], "its payload lies outside of it"),
    ],
)
def test_what_is_no_bzimage_is_refused(image: bytes, message: str) -> None:
    with pytest.raises(StateError, match=message):
        split_payload(image)


def test_the_entry_is_seen() -> None:
    assert has_pvh_entry(PVH)


@pytest.mark.parametrize(
    "data", [b"", PVH[:70], NO_PVH, b"#!/bin/sh\n" * 20, PVH[:4] + b"\x01" + PVH[5:]]
)
def test_what_is_cut_off_no_kernel_or_for_32_bits_has_none(data: bytes) -> None:
    assert not has_pvh_entry(data)
