from __future__ import annotations

import io
import stat

import pytest

from vmgr.kernel.cpio import NewcWriter


def entries(data: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """Read an archive by the format's description, independently of the writer."""
    found = []
    position = 0
    while True:
        header = data[position : position + 110]
        assert header[:6] == b"070701"
        fields = [int(header[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
        mode, size, device, name_size = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        name = data[position + 110 : position + 110 + name_size]
        assert name.endswith(b"\0")
        begin = position + 110 + name_size + 3 & ~3
        if name == b"TRAILER!!!\0":
            assert data[begin:].strip(b"\0") == b""
            return found
        found.append((name[:-1].decode(), mode, data[begin : begin + size], device))
        position = begin + size + 3 & ~3


def test_everything_added_can_be_read_back() -> None:
    file = io.BytesIO()
    archive = NewcWriter(file)
    archive.directory("dev")
    archive.character_device("dev/console", 5, 1)
    for size in range(6):  # each way of padding
        archive.file(f"f{'x' * size}", b"y" * size, mode=0o755)
    archive.symlink("init", "fx")
    archive.close()
    assert entries(file.getvalue()) == [
        ("dev", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
        *((f"f{'x' * n}", stat.S_IFREG | 0o755, b"y" * n, (0, 0)) for n in range(6)),
        ("init", stat.S_IFLNK | 0o777, b"fx", (0, 0)),
    ]
    assert len(file.getvalue()) % 512 == 0


def test_files_are_not_taken_for_hard_links_of_each_other() -> None:
    file = io.BytesIO()
    archive = NewcWriter(file)
    archive.file("a", b"1")
    archive.file("b", b"2")
    data = file.getvalue()
    inodes = [int(data[begin + 6 : begin + 14], 16) for begin in (0, data.index(b"070701", 6))]
    assert len(set(inodes)) == 2


@pytest.mark.parametrize("path", ["/init", "a\0b"])
def test_names_that_the_kernel_would_misread_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="cannot be in an initramfs"):
        NewcWriter(io.BytesIO()).file(path, b"")
