"""Reading the one kind of tar stream that archives are, from strangers and without trust.

Of POSIX's pax format only this is known: regular files, each with a header that says it all, and
GNU's sparse format 1.0 (its description: "Storing Sparse Files" in the manual of GNU tar), in which
a member's data begins with a map of where its parts belong. Python's tarfile misreads such members
of more than 8 GiB, and knows far more kinds than a snapshot has.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmgr.archive.manifest import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["Entry", "Reader"]

_BLOCK: Final = 512
_CHUNK: Final = 1 << 20
_PAX_LIMIT: Final = 1 << 16
_EXTENTS: Final = 4 << 20  # of one member; 16 bytes each
_DIGITS: Final = 20
_NUMBER: Final = re.compile(rb"[0-9]{1,19}")
_OCTAL: Final = re.compile(rb" *([0-7]+)[ \0]*")


@dataclass(frozen=True)
class Entry:
    """A member whose data comes next."""

    name: str
    size: int
    """Of the file, with its holes."""
    extents: array[int]
    """Offset and length of each part that is there, alternating and ascending."""

    @property
    def data(self) -> int:
        """Bytes that are there."""
        return sum(self.extents[1::2])


class Reader:
    """Reads entries one after another.

    Every method raises `ArchiveError` for what is not an archive, and `OSError`.

    Args:
        stream: buffered; its `read` gives less than asked only at the end.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._rest = 0
        self._padding = 0
        self._entry: Entry | None = None

    def next(self) -> Entry | None:
        """The next entry, or None at the end; the one before must have been read."""
        block = self._exactly(_BLOCK)
        if block == bytes(_BLOCK):
            return None
        name, size, kind = _header(block)
        records: dict[bytes, bytes] = {}
        if kind == b"x":
            if size > _PAX_LIMIT:
                raise ArchiveError("is damaged: a header in it is far too large")
            records = _records(self._exactly(size))
            self._exactly(-size % _BLOCK)
            name, size, kind = _header(self._exactly(_BLOCK))
        if kind not in {b"0", b"\0"}:
            raise ArchiveError("has something in it that is not a regular file")
        if b"size" in records:
            size = _number(records[b"size"])
        name = records.get(b"path", name)
        self._padding = -size % _BLOCK
        if b"GNU.sparse.major" not in records:
            return self._begin(name, size, array("Q", [0, size]))
        version = (records[b"GNU.sparse.major"], records.get(b"GNU.sparse.minor"))
        if version != (b"1", b"0"):
            raise ArchiveError("is damaged: a sparse file in it is of an unknown format")
        name = records.get(b"GNU.sparse.name", name)
        whole = _number(records.get(b"GNU.sparse.realsize", b""))
        extents, used = self._map(size, whole)
        if used + sum(extents[1::2]) != size:
            raise ArchiveError("is damaged: the map of a sparse file in it is wrong")
        return self._begin(name, whole, extents)

    def parts(self) -> Iterator[tuple[int, bytes]]:
        """The data of the entry that `next` gave: offset and bytes."""
        assert self._entry is not None  # noqa: S101 (the caller's order)
        extents = self._entry.extents
        for index in range(0, len(extents), 2):
            offset, left = extents[index], extents[index + 1]
            while left:
                data = self._exactly(min(_CHUNK, left))
                yield offset, data
                offset += len(data)
                left -= len(data)
        self._exactly(self._padding)
        self._entry = None

    def _begin(self, name: bytes, size: int, extents: array[int]) -> Entry:
        self._entry = Entry(name.decode("ascii", errors="replace"), size, extents)
        return self._entry

    def _map(self, stored: int, whole: int) -> tuple[array[int], int]:
        """The map at the beginning of a sparse member's data; and how many bytes that took."""
        used = 0

        def number() -> int:
            nonlocal used
            line = self._stream.readline(_DIGITS)
            used += len(line)
            if not line.endswith(b"\n") or used > stored:
                raise ArchiveError("is damaged: the map of a sparse file in it is wrong")
            return _number(line[:-1])

        count = number()
        if count > _EXTENTS:
            raise ArchiveError("is damaged: a sparse file in it has too many parts")
        extents, end = array("Q"), 0
        for _ in range(count):
            offset, length = number(), number()
            if offset < end or offset + length > whole:
                raise ArchiveError("is damaged: the map of a sparse file in it is wrong")
            end = offset + length
            extents.extend((offset, length))
        self._exactly(-used % _BLOCK)
        return extents, used + -used % _BLOCK

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) != size:
            raise ArchiveError("is damaged: it ends too early")
        return data


def _header(block: bytes) -> tuple[bytes, int, bytes]:
    """Name, size and kind of a header."""
    # The sum is made with blanks in its own place.
    total = sum(block) - sum(block[148:156]) + 8 * 0x20
    if block[257:263] != b"ustar\0" or _octal(block[148:156]) != total:
        raise ArchiveError("is not a snapshot that vmgr exported, or is damaged")
    return block[:100].split(b"\0")[0], _octal(block[124:136]), block[156:157]


def _octal(field: bytes) -> int:
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise ArchiveError("is not a snapshot that vmgr exported, or is damaged")
    return int(match[1], 8)


def _number(text: bytes) -> int:
    if not _NUMBER.fullmatch(text):
        raise ArchiveError("is damaged: a number in it is none")
    return int(text)


def _records(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header: lines of `LENGTH KEY=VALUE`, see pax(1)."""
    records: dict[bytes, bytes] = {}
    while data:
        digits, blank, _ = data.partition(b" ")
        length = _number(digits)
        record = data[len(digits) + 1 : length - 1]
        key, equals, value = record.partition(b"=")
        if not (blank and equals) or length > len(data) or data[length - 1 : length] != b"\n":
            raise ArchiveError("is damaged: a header in it is not valid")
        records[key] = value
        data = data[length:]
    return records
