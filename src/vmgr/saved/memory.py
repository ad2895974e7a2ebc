"""Where a VMM has its guest's memory, and moving that to and from files.

All copying is done by `vmgr.saved.copier`, a process of its own; here are the fds it gets. A saved
memory that several machines are to start from is loaded into a sealed memfd: no VMM, whatever its
guest has made of it, can write to what the next machine will begin with.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.errors import MachineError, ResourceError, StateError, UnfitStateError
from vmgr.spawner import ProcessFailedError, run

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "COPIER",
    "GuestMemory",
    "copier_command",
    "load_memory",
    "memory_checksum",
    "new_memfd",
    "outcome",
    "seal",
]

COPIER: Final = Path(__file__).with_name("copier.py")
_DEADLINE: Final = 120.0
_SLOWEST: Final = 10 << 20  # bytes a second, of a disk that nobody would want
_FULL: Final = frozenset({28, 122})  # ENOSPC, EDQUOT
# A line of /proc/PID/maps, see proc(5): addresses, rights, offset, device, inode.
_MAPPING: Final = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) rw-([sp]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)"
)


def copier_command(*arguments: str | int) -> list[str]:
    """The copier's command line; -I and -S keep out what a person's environment would add."""
    return [sys.executable, "-I", "-S", "-B", str(COPIER), *(str(a) for a in arguments)]


def outcome(words: Sequence[str], what: str) -> list[int]:
    """The numbers of the copier's last line.

    Raises:
        ResourceError: no space was left.
        StateError: it failed otherwise.
    """
    if words[:1] == ["done"]:
        return [int(word) for word in words[1:]]
    number = int(words[1]) if words[:1] == ["failed"] and len(words) > 1 else 0
    if number in _FULL:
        raise ResourceError(f"no space left to {what}", next_step="free some space there")
    why = f": {os.strerror(number)}" if number else ""
    raise StateError(f"cannot {what}{why}")


@dataclass
class GuestMemory:
    """The memory of a VMM's guest, opened; `close` it."""

    ram: int
    """The file that is mapped."""
    mem: int
    pagemap: int
    start: int
    """Address in the VMM."""
    size: int
    private: bool
    """Whether what the guest changed is in the VMM alone and not in the file."""

    @classmethod
    def open(cls, name: str, pid: int, size: int) -> GuestMemory:
        """Find and open the `size` bytes of guest memory of process `pid`; blocks.

        Raises:
            MachineError: it cannot be found, or the host does not let us read it.
        """
        proc = Path(f"/proc/{pid}")
        with contextlib.ExitStack() as on_failure:

            def opened(fd: int) -> int:
                on_failure.callback(os.close, fd)
                return fd

            try:
                start, private, device, inode = _find(proc, size)
                ram = opened(_open_same(proc, device, inode))
                mem = opened(os.open(proc / "mem", os.O_RDONLY | os.O_CLOEXEC))
                pagemap = opened(os.open(proc / "pagemap", os.O_RDONLY | os.O_CLOEXEC))
            except PermissionError as error:
                raise MachineError(
                    f"the host does not let vmgr read the memory of machine {name}",
                    next_step="allow it with: sysctl kernel.yama.ptrace_scope=0, or restart the "
                    "machine",
                ) from error
            except (OSError, LookupError) as error:
                raise MachineError(f"the memory of machine {name} is not found: {error}") from error
            on_failure.pop_all()
        return cls(ram, mem, pagemap, start, size, private)

    def close(self) -> None:
        """Close the fds."""
        for fd in (self.ram, self.mem, self.pagemap):
            os.close(fd)


def _find(proc: Path, size: int) -> tuple[int, bool, tuple[int, int], int]:
    """Address, whether private, device and inode of the one file mapping of that size."""
    begin = end = 0
    for line in (proc / "maps").read_bytes().splitlines():
        match = _MAPPING.match(line)
        if match is None or (inode := int(match[7])) == 0:
            continue
        low, high, offset = (int(match[n], 16) for n in (1, 2, 4))
        # The kernel may have split the mapping; its parts follow each other.
        begin, end = (begin, high) if low == end and offset else (low, high)
        if end - begin == size:
            device = (int(match[5], 16), int(match[6], 16))
            return begin, match[3] == b"p", device, inode
    raise LookupError(f"no mapping of {size} bytes")


def _open_same(proc: Path, device: tuple[int, int], inode: int) -> int:
    """The file that a process has open and mapped, by its own fd (it may have no name)."""
    for entry in (proc / "fd").iterdir():
        try:
            found = entry.stat()
        except OSError:
            continue
        if found.st_ino == inode and (os.major(found.st_dev), os.minor(found.st_dev)) == device:
            return os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
    raise LookupError("the mapped file is not open")


async def load_memory(path: Path, size: int, checksum: int | None) -> int:
    """Load a saved memory into a sealed memfd; gives its fd.

    Args:
        path: the saved memory.
        size: its size in bytes.
        checksum: what it must have, or None where nobody knows.

    Raises:
        UnfitStateError: it is missing, cut short or damaged.
        ResourceError: the host has not the memory.
        StateError: it cannot be read now.
    """
    with contextlib.ExitStack() as stack:
        source = _open_saved(path, size)
        stack.callback(os.close, source)
        fd = new_memfd()
        on_failure = stack.enter_context(contextlib.ExitStack())
        on_failure.callback(os.close, fd)
        _, found = await _copied("load", [source, fd], size, "load a saved memory")
        if checksum is not None and found != checksum:
            raise UnfitStateError(f"the saved memory {path} is damaged")
        seal(fd)
        on_failure.pop_all()
    return fd


def seal(fd: int) -> None:
    """Let nobody change a memfd any more, whoever opens it."""
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


async def memory_checksum(path: Path, size: int) -> int:
    """The checksum of a saved memory.

    Raises:
        UnfitStateError: it is missing or cut short.
        StateError: it cannot be read now.
    """
    source = _open_saved(path, size)
    try:
        return (await _copied("check", [source], size, f"read {path}"))[1]
    finally:
        os.close(source)


async def _copied(what: str, fds: list[int], size: int, doing: str) -> list[int]:
    deadline = max(_DEADLINE, size / _SLOWEST)
    try:
        done = await run(copier_command(what, *fds), pass_fds=fds, deadline=deadline)
    except (OSError, ProcessFailedError, TimeoutError) as error:
        raise StateError(f"cannot {doing}: {error or 'it takes too long'}") from error
    return outcome(done.stdout.decode().split(), doing)


def new_memfd() -> int:
    """A memfd that can be sealed; the caller closes it.

    Raises:
        ResourceError: the host gives none.
    """
    try:
        return os.memfd_create("vmgr-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise ResourceError(
            f"cannot make room for a saved memory: {error.strerror}",
            next_step="stop other machines or programs",
        ) from error


def _open_saved(path: Path, size: int) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        kind = UnfitStateError if isinstance(error, FileNotFoundError) else StateError
        raise kind(f"the saved memory {path} cannot be read: {error.strerror}") from error
    if os.fstat(fd).st_size != size:
        os.close(fd)
        raise UnfitStateError(f"the saved memory {path} is damaged: it is not {size} bytes")
    return fd
