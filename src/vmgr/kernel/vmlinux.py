"""Getting the ELF kernel out of a bzImage.

A bzImage unpacks itself, which an emulated CPU does slowly (0.8 to 0.9 s of 3.4 s here). QEMU also
boots the ELF file inside it, if that has a PVH entry point: so the host unpacks it, once.

Formats: Documentation/arch/x86/boot.rst of the Linux source (setup header), elf(5), and
xen/include/public/elfnote.h for the note (XEN_ELFNOTE_PHYS32_ENTRY).
"""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import struct
from typing import TYPE_CHECKING, Final

from vmgr.artifact.threads import in_thread
from vmgr.artifact.tools import build_environment, missing_tools, require
from vmgr.errors import StateError
from vmgr.spawner import ProcessFailedError, run

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

__all__ = ["extract_vmlinux", "has_pvh_entry", "split_payload"]

_log = logging.getLogger(__name__)
_BOOT_FLAG: Final = 0xAA55
_HEADER_MAGIC: Final = b"HdrS"
_PAYLOAD_SINCE: Final = 0x0208  # boot protocol with payload_offset and payload_length
_PT_NOTE: Final = 4
_NOTE_PHYS32_ENTRY: Final = 18
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_LZ4: Final = b"\x02\x21\x4c\x18"  # its legacy format, which lz4(1) also reads
_MAX_KERNEL: Final = 512 << 20
_DEADLINE: Final = 120.0
_ELF64_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_ELF64_SEGMENT: Final = struct.Struct("<IIQQQQQQ")


def split_payload(image: bytes) -> bytes:
    """The compressed kernel in a bzImage, without the 4 bytes of its size that follow it.

    Raises:
        StateError: it is no bzImage.
    """
    try:
        (flag,) = struct.unpack_from("<H", image, 0x1FE)
        (protocol,) = struct.unpack_from("<H", image, 0x206)
        offset, length = struct.unpack_from("<II", image, 0x248)
    except struct.error as error:
        raise StateError("the kernel is not a bzImage: it is too short") from error
    if flag != _BOOT_FLAG or image[0x202:0x206] != _HEADER_MAGIC or protocol < _PAYLOAD_SINCE:
        raise StateError("the kernel is not a bzImage")
    sectors = image[0x1F1] or 4  # 0 means 4, for old boot loaders' sake
    begin = (sectors + 1) * 512 + offset
    if length < 8 or begin + length > len(image):  # noqa: PLR2004 (a magic and a size at least)
        raise StateError("the kernel is damaged: its payload lies outside of it")
    return image[begin : begin + length - 4]


async def extract_vmlinux(bzimage: Path, target: Path, executor: Executor) -> bool:
    """Write the ELF kernel in `bzimage` to the new file `target`.

    Returns:
        Whether it has a PVH entry point. If not, or if its compression is not known, there is no
        `target`, and the bzImage has to be booted.

    Raises:
        StateError: the kernel is damaged.
        UnsupportedError: the program that unpacks it is missing.
    """
    packed = target.with_suffix(".packed")
    try:
        head = await in_thread(executor, _write_payload, bzimage, packed)
        if head.startswith(_ZSTD):
            require("zstd")
            await run(
                ["zstd", "--decompress", "--quiet", "-o", target, "--", packed],
                env=build_environment(), deadline=_DEADLINE,
            )  # fmt: skip
        elif head.startswith(_LZ4):
            # Only older kernels (Debian's 6.1): not worth insisting on the program.
            if missing_tools("lz4"):
                _log.info("lz4 is not installed, so the kernel is left to unpack itself")
                return False
            await run(
                ["lz4", "-d", "-q", packed, target], env=build_environment(), deadline=_DEADLINE
            )
        elif not await in_thread(executor, _unpack, packed, target):
            return False
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, ProcessFailedError) as error:
        raise StateError(f"the kernel is damaged: {error}") from error
    finally:
        await in_thread(executor, _remove, packed)
    return await in_thread(executor, _keep_if_pvh, target)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _write_payload(bzimage: Path, packed: Path) -> bytes:
    payload = split_payload(bzimage.read_bytes())
    packed.write_bytes(payload)
    return payload[:8]


def _unpack(packed: Path, target: Path) -> bool:
    payload = packed.read_bytes()
    if payload.startswith(b"\x1f\x8b"):
        target.write_bytes(gzip.decompress(payload))
    elif payload.startswith(b"\xfd7zXZ\x00"):
        target.write_bytes(lzma.decompress(payload))
    elif payload.startswith(b"BZh"):
        target.write_bytes(bz2.decompress(payload))
    else:
        return False
    return True


def _keep_if_pvh(target: Path) -> bool:
    with target.open("rb") as file:
        found = has_pvh_entry(file.read(_MAX_KERNEL))
    if not found:
        target.unlink()
    return found


def has_pvh_entry(elf: bytes) -> bool:
    """Whether a 64-bit ELF kernel has the note that tells QEMU where to enter it."""
    try:
        header = _ELF64_HEADER.unpack_from(elf)
        if not header[0].startswith(b"\x7fELF\x02\x01"):
            return False
        table, entry_size, count = header[5], header[9], header[10]
        for index in range(count):
            segment = _ELF64_SEGMENT.unpack_from(elf, table + index * entry_size)
            if segment[0] == _PT_NOTE and _has_note(elf[segment[2] : segment[2] + segment[5]]):
                return True
    except struct.error:
        return False
    return False


def _has_note(notes: bytes) -> bool:
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, position)
        name = notes[position + 12 : position + 12 + name_size]
        if name == b"Xen\0" and kind == _NOTE_PHYS32_ENTRY:
            return True
        position += 12 + (name_size + 3 & ~3) + (size + 3 & ~3)
    return False
