"""Reading a tar stream that may be hostile.

Formats: ustar and pax (POSIX.1-2008, pax(1) "ustar Interchange Format" and "pax Header Block"), and
GNU's long names (tar(5) "GNU tar archives", types L and K). tarfile reads these too, but keeps
whatever a header announces in memory, however long; here every length that a machine names is
bounded, and only file contents may be large, which are handed on in pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vmgr.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["DIRECTORY", "FILE", "HARD_LINK", "SYMLINK", "Member", "TarReader"]

BLOCK: Final = 512
MAX_EXTENSION: Final = 1 << 20
MAX_EXTENSIONS: Final = 8  # headers that describe one member
MAX_SIZE: Final = 1 << 60
MAX_NAME: Final = 65_536
_PIECE: Final = 1 << 18

FILE: Final = b"0"
HARD_LINK: Final = b"1"
SYMLINK: Final = b"2"
DIRECTORY: Final = b"5"
_PAX: Final = b"x"
_PAX_GLOBAL: Final = b"g"
_GNU_NAME: Final = b"L"
_GNU_LINK: Final = b"K"
_OLD_FILE: Final = b"\0"


class Member(NamedTuple):
    """One file of the archive. Names are bytes as they came: nothing is safe about them yet."""

    name: bytes
    kind: bytes
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link: bytes


class TarReader:
    """Reads members one after the other.

    Args:
        read: gives up to the asked number of bytes, `b""` at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._left = 0  # of the current member's data
        self._padding = 0
        self._extensions: dict[str, bytes] = {}

    def members(self) -> Iterator[Member]:
        """Every member, once; what `data` did not take of the one before is skipped.

        Raises:
            AgentError: it is not a tar archive, or ends early.
        """
        extensions = 0
        while True:
            for _ in self.data():
                pass
            self._exactly(self._padding)
            self._padding = 0
            block = self._exactly(BLOCK)
            if not any(block):
                while self._read(_PIECE):
                    pass  # what follows the end mark is only padding
                return
            member = _header(block)
            if member.kind in {_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK}:
                extensions += 1
                if extensions > MAX_EXTENSIONS or member.size > MAX_EXTENSION:
                    raise _damaged("too long a header")
                self._extend(member)
                continue
            member = self._extended(member)
            extensions = 0
            self._left = member.size if member.kind == FILE else 0
            self._padding = -self._left % BLOCK
            yield member

    def data(self) -> Iterator[bytes]:
        """The current member's content, in pieces."""
        while self._left:
            piece = self._read(min(self._left, _PIECE))
            if not piece:
                raise _damaged("it ends early")
            self._left -= len(piece)
            yield piece

    # -- machinery -------------------------------------------------------------------------------
    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._read(count)
            if not part:
                raise _damaged("it ends early")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _extend(self, header: Member) -> None:
        content = self._exactly(header.size)
        self._exactly(-header.size % BLOCK)
        if header.kind == _PAX:
            self._extensions.update(_pax_records(content))
        elif header.kind == _GNU_NAME:
            self._extensions["path"] = content.partition(b"\0")[0]
        elif header.kind == _GNU_LINK:
            self._extensions["linkpath"] = content.partition(b"\0")[0]
        # A global header says nothing that we use.

    def _extended(self, member: Member) -> Member:
        told, self._extensions = self._extensions, {}
        name = told.get("path", member.name)
        link = told.get("linkpath", member.link)
        if len(name) > MAX_NAME or len(link) > MAX_NAME:
            raise _damaged("too long a name")
        return member._replace(
            name=name,
            link=link,
            size=_bounded(_decimal(told["size"])) if "size" in told else member.size,
            uid=_bounded(_decimal(told["uid"])) if "uid" in told else member.uid,
            gid=_bounded(_decimal(told["gid"])) if "gid" in told else member.gid,
            mtime_ns=_nanoseconds(told["mtime"]) if "mtime" in told else member.mtime_ns,
        )


def _header(block: bytes) -> Member:
    stored = _number(block[148:156])
    if stored != sum(block[:148]) + 8 * 32 + sum(block[156:]):
        raise _damaged("a header's checksum is wrong")
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    kind = block[156:157]
    return Member(
        name=name,
        kind=FILE if kind in {_OLD_FILE, b"7"} else kind,  # 7: contiguous, an ordinary file today
        size=_bounded(_number(block[124:136])),
        mode=_number(block[100:108]) & 0o7777,
        uid=_bounded(_number(block[108:116])),
        gid=_bounded(_number(block[116:124])),
        mtime_ns=_number(block[136:148]) * 10**9,
        link=block[157:257].partition(b"\0")[0],
    )


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base-256 with the top bit set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        return value
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise _damaged("a number is none")
    return int(digits, 8)


def _pax_records(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Lines of `LENGTH KEY=VALUE`; the length counts the whole record, its line break too."""
    while content:
        length_text, space, _ = content.partition(b" ")
        length = _decimal(length_text) if space else 0
        record = content[:length]
        if not len(length_text) + 3 <= length <= len(content) or not record.endswith(b"\n"):
            raise _damaged("a header's record is malformed")
        key, equals, value = record[len(length_text) + 1 : -1].partition(b"=")
        if not equals or b"\0" in value:
            raise _damaged("a header's record is malformed")
        yield key.decode("ascii", "replace"), value
        content = content[length:]


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:  # noqa: PLR2004 (digits of 2**64)
        raise _damaged("a number is none")
    return int(text)


def _nanoseconds(text: bytes) -> int:
    """`SECONDS[.FRACTION]`, maybe negative, exactly."""
    sign = -1 if text.startswith(b"-") else 1
    whole, _, fraction = text.lstrip(b"-").partition(b".")
    nanoseconds = _decimal((fraction + b"000000000")[:9])
    return sign * (_decimal(whole) * 10**9 + nanoseconds)


def _bounded(number: int) -> int:
    if not 0 <= number <= MAX_SIZE:
        raise _damaged("a number is out of range")
    return number


def _damaged(why: str) -> AgentError:
    return AgentError(f"what the machine sent is not a tar archive: {why}")
