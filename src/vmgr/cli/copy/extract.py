"""Writing what a machine sent to the host's disk, without trusting a byte of it.

- Names are taken apart and walked from the destination's own fd, component by component, and no
  symlink is ever followed below it: neither one that the machine sent nor one that was there.
- Content goes to a new file that takes the name's place by rename, so nothing that existed is
  written to, whatever it was linked to.
- No devices, pipes or sockets, no set-user-id, set-group-id or sticky bits, and the files belong to
  the person. Hard links only to files of the same copy.
- Directories get their modes and times last, so a read-only one can be filled.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

from vmgr.cli.copy.tarreader import DIRECTORY, FILE, HARD_LINK, Member, TarReader
from vmgr.errors import ResourceError, VmgrError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Extractor"]

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PERMISSIONS: Final = 0o777
_MAX_DEPTH: Final = 1_000
_NO_SPACE: Final = frozenset({28, 122})  # ENOSPC, EDQUOT
_TIME_LIMIT_NS: Final = 1 << 62


class Extractor:
    """Writes members below one directory of the host.

    Args:
        directory: an fd of it, which stays the caller's.
        rename_top: what the first component of names becomes; None: as sent. A copy has one first
            component per source.
        on_problem: told, in a sentence, of each member that was left out.
        on_progress: told how many bytes were written, in all so far.
    """

    def __init__(
        self,
        directory: int,
        *,
        rename_top: bytes | None = None,
        on_problem: Callable[[str], None],
        on_progress: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._root = directory
        self._rename_top = rename_top
        self._on_problem = on_problem
        self._on_progress = on_progress
        self._written = 0
        self._made: set[tuple[bytes, ...]] = set()
        self._directories: dict[tuple[bytes, ...], Member] = {}
        self._walked: tuple[tuple[bytes, ...], int] | None = None

    def extract(self, reader: TarReader) -> int:
        """Write all that `reader` gives; gives how many members were written.

        Raises:
            ResourceError: the disk is full.
            VmgrError: the archive is damaged, or the disk fails.
        """
        count = 0
        try:
            for member in reader.members():
                try:
                    self._member(member, reader)
                    count += 1
                except _RefusedError as refused:
                    self._on_problem(f"{_shown(member.name)}: {refused}")
                except OSError as error:
                    if error.errno in _NO_SPACE:
                        raise ResourceError(
                            "no space is left for the files",
                            next_step="free some disk space and copy again",
                        ) from error
                    self._on_problem(f"{_shown(member.name)}: {error.strerror}")
            self._finish_directories()
        finally:
            self._forget_walk()
        return count

    # -- machinery -------------------------------------------------------------------------------
    def _member(self, member: Member, reader: TarReader) -> None:
        names = self._names(member.name)
        if member.kind == DIRECTORY:
            self._directory(names, member)
            return
        parent = self._walk(names[:-1])
        match member.kind:
            case b"0":
                self._file(parent, names[-1], member, reader)
            case b"2":
                self._symlink(parent, names[-1], member)
            case b"1":
                self._hard_link(parent, names[-1], member)
            case _:
                raise _RefusedError("it is a device, a pipe or a socket, and was left out")
        if member.kind in {FILE, HARD_LINK}:
            self._made.add(names)

    def _names(self, path: bytes) -> tuple[bytes, ...]:
        """The components of a member's name, safe to be walked."""
        if path.startswith(b"/") or b"\0" in path:
            raise _RefusedError("its name is absolute or malformed, and it was left out")
        names = tuple(part for part in path.split(b"/") if part not in {b"", b"."})
        if not names or b".." in names or len(names) > _MAX_DEPTH:
            raise _RefusedError("its name leads out of the copy, and it was left out")
        return names if self._rename_top is None else (self._rename_top, *names[1:])

    def _walk(self, names: tuple[bytes, ...]) -> int:
        """An fd of the directory `names`; missing ones are made. Valid until the next walk."""
        if self._walked is not None and self._walked[0] == names:
            return self._walked[1]
        self._forget_walk()
        here = os.dup(self._root)
        try:
            for name in names:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=here)
                try:
                    inner = os.open(name, _OPEN_DIRECTORY, dir_fd=here)
                except OSError as error:
                    raise _RefusedError(
                        f"{_shown(name)} is in the way of its directory: {error.strerror}"
                    ) from error
                os.close(here)
                here = inner
        except BaseException:
            os.close(here)
            raise
        self._walked = (names, here)
        return here

    def _forget_walk(self) -> None:
        if self._walked is not None:
            os.close(self._walked[1])
            self._walked = None

    def _directory(self, names: tuple[bytes, ...], member: Member) -> None:
        fd = self._walk(names)
        # Ours to fill until the end, also where the one that was there is closed to us.
        os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) | 0o700)
        self._directories[names] = member

    def _file(self, parent: int, name: bytes, member: Member, reader: TarReader) -> None:
        temporary = _temporary_name()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=parent)
        try:
            try:
                for piece in reader.data():
                    view = memoryview(piece)
                    while view:
                        view = view[os.write(fd, view) :]
                    self._written += len(piece)
                    self._on_progress(self._written)
                os.fchmod(fd, member.mode & _PERMISSIONS)
                os.utime(fd, ns=_times(member))
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise

    def _symlink(self, parent: int, name: bytes, member: Member) -> None:
        temporary = _temporary_name()
        os.symlink(member.link, temporary, dir_fd=parent)
        try:
            os.utime(temporary, ns=_times(member), dir_fd=parent, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise

    def _hard_link(self, parent: int, name: bytes, member: Member) -> None:
        target = self._names(member.link)
        if target not in self._made:
            raise _RefusedError("it is a hard link to a file outside the copy, and was left out")
        # The walk to the target closes the fd of the last walk, which `parent` is.
        parent = os.dup(parent)
        temporary = _temporary_name()
        try:
            source = self._walk(target[:-1])
            os.link(
                target[-1], temporary,
                src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False,
            )  # fmt: skip
            # Renaming one link of a file over another does nothing: the temporary one would stay.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise
        finally:
            os.close(parent)

    def _finish_directories(self) -> None:
        # Deepest first: a closed parent would keep us from its children.
        for names, member in sorted(self._directories.items(), key=lambda i: -len(i[0])):
            try:
                fd = self._walk(names)
                os.utime(fd, ns=_times(member))
                os.fchmod(fd, member.mode & _PERMISSIONS)
            except (OSError, _RefusedError) as error:
                self._on_problem(f"{_shown(member.name)}: {error}")
            finally:
                self._forget_walk()


class _RefusedError(VmgrError):
    """A member that is not written, and why."""


def _temporary_name() -> bytes:
    return b".vmgr-cp-" + os.urandom(8).hex().encode()


def _times(member: Member) -> tuple[int, int]:
    at = max(-_TIME_LIMIT_NS, min(member.mtime_ns, _TIME_LIMIT_NS))
    return at, at


def _shown(name: bytes) -> str:
    return os.fsdecode(name).encode(errors="replace").decode()[:300]
