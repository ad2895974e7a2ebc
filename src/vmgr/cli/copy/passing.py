"""Files from one machine to another, which must trust the first no more than this host does.

What the first sends is read member by member, with all bounds of `vmgr.cli.copy.tarreader`, and
written anew: the second sees only headers of ours. It is asked to put one name in place of the
first component of all names, and follows no link below its directory, so nothing but that one name
appears in it.
"""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING, Final

from vmgr.cli.copy.tarreader import DIRECTORY, FILE, HARD_LINK, SYMLINK, TarReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmgr.cli.copy.tarreader import Member

__all__ = ["passed_on"]

_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_PERMISSIONS: Final = 0o777
_KINDS: Final = {
    FILE: tarfile.REGTYPE, HARD_LINK: tarfile.LNKTYPE, SYMLINK: tarfile.SYMTYPE,
    DIRECTORY: tarfile.DIRTYPE,
}  # fmt: skip


def passed_on(
    read: Callable[[int], bytes], *, whole: bool, on_problem: Callable[[str], None]
) -> Iterator[bytes]:
    """The tar stream that `read` gives, in pieces, fit for another machine.

    Args:
        whole: keep owners and set-user-id bits, as an archive does.
        on_problem: told, in a sentence, of each file that was left out.

    Raises:
        AgentError: it is no tar stream, or ends early.
    """
    reader = TarReader(read)
    for member in reader.members():
        shown = member.name.decode(errors="replace")
        kind = _KINDS.get(member.kind)
        parts = member.name.split(b"/")
        if kind is None:
            on_problem(f"{shown}: it is a device, a pipe or a socket, and was left out")
        elif member.name.startswith(b"/") or b".." in parts or b"\0" in member.name:
            on_problem(f"{shown}: its name leads out of the copy, and it was left out")
        else:
            yield _header(member, kind, whole=whole)
            yield from reader.data()
            yield bytes(-member.size % _BLOCK if member.kind == FILE else 0)
    yield _END


def _header(member: Member, kind: bytes, *, whole: bool) -> bytes:
    info = tarfile.TarInfo(_text(member.name))
    info.type = kind
    info.size = member.size if member.kind == FILE else 0
    info.linkname = _text(member.link)
    info.mode = member.mode if whole else member.mode & _PERMISSIONS
    seconds, nanoseconds = divmod(member.mtime_ns, 10**9)
    info.mtime = seconds
    if nanoseconds and seconds >= 0:
        info.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09d}"}
    if whole:
        info.uid, info.gid = member.uid, member.gid
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
