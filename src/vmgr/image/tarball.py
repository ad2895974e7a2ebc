"""Root file system tarballs: reading hostile ones, and passing on clean ones.

What arrives is never unpacked as it is. It is read here, entry by entry, and written anew as a tar
stream in which

- every path is relative, plain, and leads through no symbolic link: links on the way are followed as
  they would be with the root of the archive as `/`, so nothing can be placed outside it;
- hard links name an earlier entry;
- there are no device nodes (the machine has its own /dev) and nothing below dev, proc, run and sys;
- owners, modes and times are in their ranges, and names of users are gone (numbers count).

Sizes are bounded by what the host has free, before the bytes are written.
"""

from __future__ import annotations

import fnmatch
import posixpath
import tarfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final

from vmgr.artifact.faults import human_size
from vmgr.errors import ResourceError, UsageError
from vmgr.image.recipes import AddedFile, AddedLink

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Contents", "Limits", "clean"]

_MAX_ENTRIES: Final = 2_000_000
_MAX_DEPTH: Final = 256
_MAX_PATH: Final = 4_095  # PATH_MAX less its terminator
_MAX_LINKS: Final = 40  # as the kernel, see path_resolution(7)
_MAX_TIME: Final = 2**33
_CHUNK: Final = 1 << 20
_EMPTIED: Final = frozenset({"dev", "proc", "run", "sys"})
_CAPABILITY: Final = "SCHILY.xattr.security.capability"
_ELF_HEAD: Final = 20
_PROGRAM_DIRECTORIES: Final = ("bin", "sbin", "usr/bin", "usr/sbin")
_INITS: Final = ("sbin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd", "usr/sbin/init")

# e_machine of elf(5), as `uname -m` calls it.
_ELF_MACHINES: Final = {
    3: "i686", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "armv7l", 62: "x86_64",
    183: "aarch64", 243: "riscv64", 258: "loongarch64",
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """How much may come out of a tarball."""

    bytes: int
    """Of file content."""
    ids: int
    """Numbers of users and groups are below this."""


@dataclass
class Contents:
    """What was found in a tarball."""

    label: str
    """What to call it in errors."""
    directories: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    machines: dict[str, int] = field(default_factory=dict)
    """ELF machine numbers of programs, by path."""
    bytes: int = 0

    def resolve(self, path: str, *, last: bool = True) -> str:
        """Follow symbolic links with the archive's root as `/`.

        Args:
            path: relative to the root.
            last: also follow the last component.

        Raises:
            UsageError: too many links.
        """
        todo = path.split("/")[::-1]
        done: list[str] = []
        followed = 0
        while todo:
            part = todo.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                done = done[:-1]
                continue
            here = "/".join([*done, part])
            target = self.links.get(here)
            if target is None or not (todo or last):
                done.append(part)
                continue
            followed += 1
            if followed > _MAX_LINKS or len(todo) > _MAX_PATH:
                raise UsageError(f"{self.label} has a circle of symbolic links at {path!r}")
            if target.startswith("/"):
                done = []
            todo.extend(target.split("/")[::-1])
        return "/".join(done)

    def find_init(self) -> str | None:
        """The program that is meant to be PID 1, as an absolute path, or None."""
        for candidate in _INITS:
            if self.resolve(candidate) in self.files:
                return f"/{candidate}"
        return None

    def has_program(self, path: str) -> bool:
        """Whether the absolute path names a regular file, links followed."""
        return self.resolve(path.lstrip("/")) in self.files

    def architecture(self) -> str:
        """What its programs run on, as `uname -m` says it.

        Raises:
            UsageError: it holds no program where a root file system has them.
        """
        for path in ("bin/sh", *_INITS):
            number = self.machines.get(self.resolve(path))
            if number is not None:
                return _ELF_MACHINES.get(number, f"ELF machine {number}")
        for number in self.machines.values():
            return _ELF_MACHINES.get(number, f"ELF machine {number}")
        if self.files & {"manifest.json", "oci-layout", "repositories"}:
            raise UsageError(
                f"{self.label} is a container image archive, not a root file system",
                next_step="export a container's file system (`podman export`) and import that",
            )
        raise UsageError(
            f"{self.label} does not hold a root file system: there is no program in /bin or /usr/bin"
        )


def clean(
    source: IO[bytes],
    target: IO[bytes],
    label: str,
    limits: Limits,
    *,
    drop: Sequence[str] = (),
    add: Iterable[AddedFile | AddedLink] = (),
) -> Contents:
    """Read the tar stream `source`, write the clean one to `target`, say what was found.

    Args:
        source: uncompressed tar, any format.
        target: where the clean stream goes; not closed.
        label: what to call the tarball in errors.
        limits: what may come out.
        drop: shell patterns of paths to leave out, with what is below them.
        add: files and links of our own, in place of what came under those paths.

    Raises:
        UsageError: it is no tarball, is damaged, or holds what may not be.
        ResourceError: it is larger than `limits`.
        OSError: reading or writing failed.
    """
    added = list(add)
    ours = {entry.path for entry in added}
    patterns = [p.removesuffix("/") for p in drop]
    contents = Contents(label)
    try:
        with (
            tarfile.open(
                fileobj=_ForwardReader(source, label), mode="r:", errors="surrogateescape"
            ) as reader,
            tarfile.open(
                fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, errors="surrogateescape"
            ) as writer,
        ):
            _write_directory(writer, contents, "")
            for count, member in enumerate(reader):
                if count >= _MAX_ENTRIES:
                    raise UsageError(f"{label} has more than {_MAX_ENTRIES:,} entries")
                # tarfile keeps every member that it has seen or written; we need none of them.
                reader.members.clear()
                writer.members.clear()
                path = _plain_path(member.name, label)
                if path in ours or _dropped(path, patterns):
                    continue
                _pass_on(reader, member, path, writer, contents, limits)
            for entry in added:
                _write_added(writer, contents, entry)
    except tarfile.TarError as error:
        raise UsageError(f"{label} is not a tar archive or is damaged: {error}") from error
    except (EOFError, ValueError, UnicodeError, OverflowError) as error:
        raise UsageError(f"{label} is damaged: {error}") from error
    return contents


def _plain_path(name: str, label: str) -> str:
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if name.startswith("/"):
        raise UsageError(f"{label} has an absolute path, {name[:200]!r}")
    if ".." in parts:
        raise UsageError(f"{label} has a path that leads out of it, {name[:200]!r}")
    if "\0" in name or len(parts) > _MAX_DEPTH or len(name) > _MAX_PATH:
        raise UsageError(f"{label} has a path that is too long or not a path, {name[:60]!r}")
    if any(len(part.encode(errors="surrogateescape")) > 255 for part in parts):  # noqa: PLR2004 (NAME_MAX)
        raise UsageError(f"{label} has a name that is too long, {name[:60]!r}")
    return "/".join(parts)


def _dropped(path: str, patterns: Sequence[str]) -> bool:
    top, slash, _ = path.partition("/")
    if slash and top in _EMPTIED:
        return True
    for pattern in patterns:
        depth = pattern.count("/") + 1
        if fnmatch.fnmatchcase("/".join(path.split("/", depth)[:depth]), pattern):
            return True
    return False


def _pass_on(
    reader: tarfile.TarFile,
    member: tarfile.TarInfo,
    path: str,
    writer: tarfile.TarFile,
    contents: Contents,
    limits: Limits,
) -> None:
    label = contents.label
    parent, _, name = path.rpartition("/")
    if parent:
        parent = contents.resolve(parent)
        if parent in contents.files:
            raise UsageError(f"{label} has {path!r} below something that is not a directory")
        path = f"{parent}/{name}" if parent else name
    if member.ischr() or member.isblk():
        return
    entry = tarfile.TarInfo(path or ".")
    entry.mode = member.mode & 0o7777
    entry.mtime = min(max(int(member.mtime), 0), _MAX_TIME)
    entry.uid, entry.gid = member.uid, member.gid
    for number in (entry.uid, entry.gid):
        if not 0 <= number < limits.ids:
            raise UsageError(
                f"{label} has {path!r} belonging to id {number}, but only ids below {limits.ids}"
                " can be given to files here",
                next_step="give your account a larger range in /etc/subuid and /etc/subgid",
            )
    if member.isdir():
        entry.type = tarfile.DIRTYPE
        contents.links.pop(path, None)
        contents.files.discard(path)
        contents.directories.add(path)
        writer.addfile(entry)
    elif member.issym():
        if not member.linkname or len(member.linkname) > _MAX_PATH:
            raise UsageError(f"{label} has a symbolic link without a usable target, {path!r}")
        entry.type, entry.linkname = tarfile.SYMTYPE, member.linkname
        contents.files.discard(path)
        contents.links[path] = member.linkname
        writer.addfile(entry)
    elif member.islnk():
        target = contents.resolve(_plain_path(member.linkname, label), last=False)
        if target not in contents.files and target not in contents.links:
            raise UsageError(
                f"{label} has a hard link, {path!r}, to {member.linkname[:200]!r}, which is not in it"
            )
        if target == path:
            return
        entry.type, entry.linkname = tarfile.LNKTYPE, target
        contents.links.pop(path, None)
        if target in contents.files:
            contents.files.add(path)
            if (machine := contents.machines.get(target)) is not None:
                contents.machines[path] = machine
        else:
            contents.links[path] = contents.links[target]
        writer.addfile(entry)
    elif member.isfifo():
        entry.type = tarfile.FIFOTYPE
        contents.links.pop(path, None)
        writer.addfile(entry)
    elif member.isreg():
        _write_file(reader, member, entry, writer, contents, limits)
    else:
        raise UsageError(f"{label} has an entry of an unknown kind, {path!r}")


def _write_file(
    reader: tarfile.TarFile,
    member: tarfile.TarInfo,
    entry: tarfile.TarInfo,
    writer: tarfile.TarFile,
    contents: Contents,
    limits: Limits,
) -> None:
    if not entry.name or entry.name == ".":
        raise UsageError(f"{contents.label} has a file in place of its root directory")
    if member.size < 0:
        raise UsageError(f"{contents.label} is damaged: {entry.name!r} has no size")
    contents.bytes += member.size
    if contents.bytes > limits.bytes:
        raise ResourceError(
            f"{contents.label} holds more than the {human_size(limits.bytes)} that there is room for",
            next_step="free some space, or import a smaller root file system",
            details={"limit_bytes": limits.bytes},
        )
    body = reader.extractfile(member)
    if body is None:
        raise UsageError(f"{contents.label} is damaged: {entry.name!r} has no content")
    entry.size = member.size
    capability = member.pax_headers.get(_CAPABILITY)
    if capability is not None:
        entry.pax_headers = {_CAPABILITY: capability}
    contents.links.pop(entry.name, None)
    contents.files.add(entry.name)
    if entry.name.rpartition("/")[0] in _PROGRAM_DIRECTORIES or entry.name in _INITS:
        head = body.read(_ELF_HEAD)
        body.seek(0)
        if len(head) == _ELF_HEAD and head[:4] == b"\x7fELF":
            order = "little" if head[5] == 1 else "big"
            contents.machines[entry.name] = int.from_bytes(
                head[18:20], "little" if order == "little" else "big"
            )
    writer.addfile(entry, body)


def _write_directory(writer: tarfile.TarFile, contents: Contents, path: str) -> None:
    entry = tarfile.TarInfo(path or ".")
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    contents.directories.add(path)
    writer.addfile(entry)


def _write_added(
    writer: tarfile.TarFile, contents: Contents, added: AddedFile | AddedLink
) -> None:
    parent, _, name = added.path.rpartition("/")
    path = posixpath.join(contents.resolve(parent), name)
    entry = tarfile.TarInfo(path)
    if isinstance(added, AddedLink):
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, added.target, 0o777
        contents.links[path] = added.target
        writer.addfile(entry)
        return
    import io  # noqa: PLC0415 (only needed for our own few files)

    entry.size, entry.mode, entry.mtime = len(added.content), added.mode, added.mtime
    contents.files.add(path)
    writer.addfile(entry, io.BytesIO(added.content))


class _ForwardReader:
    """A seekable view of a stream, for tarfile: forward by reading, back by a little.

    tarfile steps back one byte to see that a member was not cut off. A header that points further
    back is an attack (a loop), and one read that wants very much is a header that lies.
    """

    _HISTORY: Final = 65_536
    _MAX_READ: Final = 16 << 20

    def __init__(self, stream: IO[bytes], label: str) -> None:
        self._stream = stream
        self._label = label
        self._position = 0
        self._end = 0
        self._history = b""

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0:
            raise UsageError(f"{self._label} is damaged")
        if position < self._end - len(self._history):
            raise UsageError(f"{self._label} is damaged: a header points backwards")
        while self._end < position:
            if not self._pull(min(_CHUNK, position - self._end)):
                break
        self._position = min(position, self._end)
        return self._position

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > self._MAX_READ:
            raise UsageError(f"{self._label} is damaged: a header is far too large")
        parts = []
        if self._position < self._end:
            begin = len(self._history) - (self._end - self._position)
            part = self._history[begin : begin + size]
            parts.append(part)
            size -= len(part)
            self._position += len(part)
        while size > 0:
            part = self._pull(min(_CHUNK, size))
            if not part:
                break
            parts.append(part)
            size -= len(part)
            self._position = self._end
        return b"".join(parts)

    def _pull(self, size: int) -> bytes:
        part = self._stream.read(size)
        self._end += len(part)
        self._history = (self._history + part)[-self._HISTORY :]
        return part
