"""A program of its own that digests what goes into an archive and takes out what is in one.

    python -m vmgr.archive.porter digest PATH…
        Says a `Measured` for each file, as one line of JSON on stdout.
    python -m vmgr.archive.porter unpack DIRECTORY
        Takes the members of the plain archive on stdin into the empty DIRECTORY, each checked.

On stderr come lines `progress DONE TOTAL`, in bytes. The last line on stdout is `done`, or
`archive TEXT` (what is wrong with it), `space NEEDED` or `failed ERRNO`.
"""

from __future__ import annotations

import io
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.archive.manifest import MANIFEST, MANIFEST_LIMIT, ArchiveError, Manifest, read_manifest
from vmgr.archive.reader import Entry, Reader
from vmgr.artifact.faults import free_bytes
from vmgr.artifact.sparse import data_extents, digest_sparse

if TYPE_CHECKING:
    from typing import BinaryIO

__all__ = ["RESERVE", "Measured", "NoSpaceError", "unpack"]

RESERVE: Final = 64 << 20
"""Bytes that stay free when an archive is taken out."""
_MEMORY: Final = 2 << 30
_STEP: Final = 16 << 20


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is to go into an archive."""

    size: int
    data: int
    digest: str


class NoSpaceError(Exception):
    """There is no room for what is in an archive."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


def unpack(stream: BinaryIO, directory: Path) -> Manifest:
    """Take all members out of `stream`, new files in `directory`; gives the manifest.

    Raises:
        ArchiveError: it is not what it should be.
        NoSpaceError: there is no room for it.
        OSError: it could not be read or written.
    """
    reader = Reader(stream)
    entry = reader.next()
    if entry is None or entry.name != MANIFEST or entry.size > MANIFEST_LIMIT:
        raise ArchiveError("is not a snapshot that vmgr exported")
    text = b"".join(data for _, data in reader.parts())
    if len(text) != entry.size:
        raise ArchiveError("is damaged: its manifest has holes")
    manifest = read_manifest(text)
    _require_space(directory, manifest.data)
    # All is written once and read once.
    progress = _Progress(2 * manifest.data)
    for member in manifest.members:
        entry = reader.next()
        if entry is None or (entry.name, entry.size) != (member.name, member.size):
            raise ArchiveError("is damaged: what is in it is not what its manifest says")
        # tar may have written holes out; the manifest may lie.
        _require_space(directory, entry.data)
        _write(reader, entry, directory / member.name, progress)
    if reader.next() is not None:
        raise ArchiveError("is damaged: there is more in it than its manifest says")
    for member in manifest.members:
        if digest_sparse(directory / member.name) != member.digest:
            raise ArchiveError(f"is damaged: its {member.name} does not have the checksum it had")
        progress.add(member.data)
    (directory / MANIFEST).write_bytes(text)
    return manifest


def _require_space(directory: Path, needed: int) -> None:
    if needed + RESERVE > free_bytes(directory):
        raise NoSpaceError(needed + RESERVE)


def _write(reader: Reader, entry: Entry, path: Path, progress: _Progress) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(fd, entry.size)
        for offset, data in reader.parts():
            done = 0
            while done < len(data):
                done += os.pwrite(fd, memoryview(data)[done:], offset + done)
            progress.add(len(data))
    finally:
        os.close(fd)


class _Progress:
    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._told = 0

    def add(self, count: int) -> None:
        self._done += count
        if self._done - self._told >= _STEP:
            self._told = self._done
            sys.stderr.write(f"progress {self._done} {self._total}\n")
            sys.stderr.flush()


def _digest(paths: list[Path]) -> None:
    sizes = []
    for path in paths:
        with path.open("rb", buffering=0) as file:
            fd = file.fileno()
            sizes.append((os.fstat(fd).st_size, sum(e - b for b, e in data_extents(fd))))
    progress = _Progress(sum(data for _, data in sizes))
    for path, (size, data) in zip(paths, sizes, strict=True):
        digest = digest_sparse(path)
        progress.add(data)
        _say(msgspec.json.encode(Measured(size=size, data=data, digest=digest)).decode())


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main(arguments: list[str]) -> int:
    """See the module's description."""
    # A header that lies may ask for all memory that there is.
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        if arguments[0] == "digest":
            _digest([Path(argument) for argument in arguments[1:]])
        else:
            unpack(io.BufferedReader(io.FileIO(0, closefd=False), _STEP), Path(arguments[1]))
    except ArchiveError as error:
        _say(f"archive {error}")
    except MemoryError:
        _say("archive is damaged: it cannot be read")
    except NoSpaceError as error:
        _say(f"space {error.needed}")
    except OSError as error:
        _say(f"failed {error.errno or 0}")
    else:
        _say("done")
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
