"""Root file system tarballs: reading hostile ones, and passing on clean ones.

What arrives is never unpacked as it is. It is read here, entry by entry, and written anew as a tar
stream in which

- every path is relative, plain, and leads through no symbolic link: links on the way are followed
  as they would be with the root of the archive as `/`, so nothing can be placed outside it;
- hard links name an earlier entry;
- there are no device nodes (the machine has its own /dev) and nothing below dev, proc, run and sys;
- owners, modes and times are in their ranges, and names of users are gone (numbers count).

Sizes are bounded by what the host has free, before the bytes are written.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import struct
import tarfile
from dataclasses import dataclass, field
from tarfile import (  # type: ignore[attr-defined]  # two of them are not in typeshed
    InvalidHeaderError,
    ReadError,
    TruncatedHeaderError,
)
from typing import IO, TYPE_CHECKING, Any, Final

from vmgr.artifact.faults import human_size
from vmgr.errors import ResourceError, UsageError
from vmgr.image.forward import ForwardReader, Readable
from vmgr.image.recipes import AddedFile, AddedLink

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    from _typeshed import ReadableBuffer

__all__ = ["Contents", "Limits", "clean"]

_MAX_ENTRIES: Final = 2_000_000
_MAX_DEPTH: Final = 256
_MAX_PATH: Final = 4_095  # PATH_MAX less its terminator
_MAX_LINKS: Final = 40  # as the kernel, see path_resolution(7)
_MAX_TIME: Final = 2**33
_EMPTIED: Final = frozenset({"dev", "proc", "run", "sys"})
_CAPABILITY: Final = "SCHILY.xattr.security.capability"
_CAPABILITY_SIZES: Final = (20, 24)  # struct vfs_cap_data, vfs_ns_cap_data of linux/capability.h
_MAX_CAPABILITIES: Final = 1_000
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
    links: dict[str, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    machines: dict[str, int] = field(default_factory=dict)
    """ELF machine numbers of programs, by path."""
    capabilities: dict[str, bytes] = field(default_factory=dict)
    """Values of the xattr `security.capability`, by path; they do not go into the clean stream."""
    bytes: int = 0
    stream_sha256: str = ""
    """Of the clean stream, in hexadecimal."""

    @property
    def digest(self) -> str:
        """What names these files: `sha256:` and 64 hexadecimal digits.

        Over `stream_sha256` and, in order of paths, a line of path, blank and value in hexadecimal
        for each file with capabilities.
        """
        total = hashlib.sha256(self.stream_sha256.encode())
        for path, value in sorted(self.capabilities.items()):
            total.update(f"\n{path} {value.hex()}".encode(errors="surrogateescape"))
        return f"sha256:{total.hexdigest()}"

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
            f"{self.label} does not hold a root file system:"
            " there is no program in /bin or /usr/bin"
        )


def clean(
    source: Readable,
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
    output = _Digesting(target)
    try:
        with (
            tarfile.open(
                fileobj=ForwardReader(source, label),
                mode="r:",
                errors="surrogateescape",
                tarinfo=_Member,
            ) as reader,
            tarfile.open(
                fileobj=output, mode="w|", format=tarfile.PAX_FORMAT, errors="surrogateescape"
            ) as writer,
        ):
            root = tarfile.TarInfo(".")
            root.type, root.mode = tarfile.DIRTYPE, 0o755
            writer.addfile(root)
            cleaner = _Cleaner(reader, writer, contents, limits)
            for count, member in enumerate(reader):
                if count >= _MAX_ENTRIES:
                    raise UsageError(f"{label} has more than {_MAX_ENTRIES:,} entries")
                # tarfile keeps every member that it has seen or written; we need none of them.
                _forget_members(reader)
                _forget_members(writer)
                path = _plain_path(member.name, label)
                if path in ours or _dropped(path, patterns):
                    continue
                cleaner.pass_on(member, path)
            for entry in added:
                cleaner.add(entry)
    except tarfile.TarError as error:
        raise UsageError(f"{label} is not a tar archive or is damaged: {error}") from error
    except (EOFError, ValueError, UnicodeError, OverflowError) as error:
        raise UsageError(f"{label} is damaged: {error}") from error
    contents.stream_sha256 = output.sha256.hexdigest()
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


class _Member(tarfile.TarInfo):
    """An entry; one whose header is none is damage, wherever it stands.

    To tarfile a broken header behind the first entry is the archive's end, and the rest would be
    missing without a word.
    """

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """Read the next entry."""
        try:
            return super().fromtarfile(tarfile)
        except (InvalidHeaderError, TruncatedHeaderError) as error:
            raise ReadError(str(error)) from None


class _Digesting(io.RawIOBase):
    """A file for writing that digests what goes through."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self.sha256 = hashlib.sha256()

    def write(self, data: ReadableBuffer, /) -> int:
        """Pass `data` on."""
        self.sha256.update(data)
        return self._target.write(data)


def _forget_members(archive: Any) -> None:
    archive.members.clear()  # public but not in typeshed, hence Any


class _Cleaner:
    """Passes the entries of one tarball on, each checked and cut down to what it may be."""

    def __init__(
        self,
        reader: tarfile.TarFile,
        writer: tarfile.TarFile,
        contents: Contents,
        limits: Limits,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._contents = contents
        self._limits = limits
        self._label = contents.label

    def pass_on(self, member: tarfile.TarInfo, path: str) -> None:
        """Write the entry `member` under `path`, links on the way to it followed."""
        path = self._place(path)
        entry = tarfile.TarInfo(path or ".")
        entry.mode = member.mode & 0o7777
        entry.mtime = min(max(int(member.mtime), 0), _MAX_TIME)
        entry.uid, entry.gid = self._owner(member.uid, path), self._owner(member.gid, path)
        if member.ischr() or member.isblk():
            return
        if not path and not member.isdir():
            raise UsageError(f"{self._label} has a file in place of its root directory")
        if member.isdir():
            self._directory(entry, path)
        elif member.issym():
            self._symbolic_link(entry, member.linkname)
        elif member.islnk():
            self._hard_link(entry, member.linkname)
        elif member.isfifo():
            self._forget(path)
            entry.type = tarfile.FIFOTYPE
            self._writer.addfile(entry)
        elif member.isreg():
            self._file(entry, member)
        else:
            raise UsageError(f"{self._label} has an entry of an unknown kind, {path!r}")

    def add(self, added: AddedFile | AddedLink) -> None:
        """Write an entry of our own."""
        entry = tarfile.TarInfo(self._place(added.path))
        self._forget(entry.name)
        if isinstance(added, AddedLink):
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, added.target, 0o777
            self._contents.links[entry.name] = added.target
            self._writer.addfile(entry)
            return
        entry.size, entry.mode, entry.mtime = len(added.content), added.mode, added.mtime
        self._contents.files.add(entry.name)
        self._writer.addfile(entry, io.BytesIO(added.content))

    def _place(self, path: str) -> str:
        parent, _, name = path.rpartition("/")
        if not parent:
            return name
        parent = self._contents.resolve(parent)
        if parent in self._contents.files:
            raise UsageError(f"{self._label} has {path!r} below something that is not a directory")
        return f"{parent}/{name}" if parent else name

    def _owner(self, number: int, path: str) -> int:
        if not 0 <= number < self._limits.ids:
            raise UsageError(
                f"{self._label} has {path!r} belonging to id {number}, but only ids below"
                f" {self._limits.ids} can be given to files here",
                next_step="give your account a larger range in /etc/subuid and /etc/subgid",
            )
        return number

    def _forget(self, path: str) -> None:
        self._contents.links.pop(path, None)
        self._contents.files.discard(path)
        self._contents.machines.pop(path, None)
        self._contents.capabilities.pop(path, None)

    def _directory(self, entry: tarfile.TarInfo, path: str) -> None:
        entry.type = tarfile.DIRTYPE
        self._forget(path)
        self._writer.addfile(entry)

    def _symbolic_link(self, entry: tarfile.TarInfo, target: str) -> None:
        if not target or len(target) > _MAX_PATH or "\0" in target:
            raise UsageError(
                f"{self._label} has a symbolic link without a usable target, {entry.name!r}"
            )
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        self._forget(entry.name)
        self._contents.links[entry.name] = target
        self._writer.addfile(entry)

    def _hard_link(self, entry: tarfile.TarInfo, linkname: str) -> None:
        contents = self._contents
        target = contents.resolve(_plain_path(linkname, self._label), last=False)
        if target not in contents.files and target not in contents.links:
            raise UsageError(
                f"{self._label} has a hard link, {entry.name!r}, to {linkname[:200]!r},"
                " which is not in it"
            )
        if target == entry.name:
            return
        self._forget(entry.name)
        if target in contents.links:
            contents.links[entry.name] = contents.links[target]
        else:
            contents.files.add(entry.name)
            if (machine := contents.machines.get(target)) is not None:
                contents.machines[entry.name] = machine
        entry.type, entry.linkname = tarfile.LNKTYPE, target
        self._writer.addfile(entry)

    def _file(self, entry: tarfile.TarInfo, member: tarfile.TarInfo) -> None:
        contents = self._contents
        body = self._reader.extractfile(member)
        if member.size < 0 or body is None:
            raise UsageError(f"{self._label} is damaged: {entry.name!r} has no content")
        contents.bytes += member.size
        if contents.bytes > self._limits.bytes:
            raise ResourceError(
                f"{self._label} holds more than the {human_size(self._limits.bytes)}"
                " that there is room for",
                next_step="free some space, or import a smaller root file system",
                details={"limit_bytes": self._limits.bytes},
            )
        entry.size = member.size
        self._forget(entry.name)
        capability = member.pax_headers.get(_CAPABILITY, "").encode(errors="surrogateescape")
        if len(capability) in _CAPABILITY_SIZES and len(contents.capabilities) < _MAX_CAPABILITIES:
            contents.capabilities[entry.name] = capability
        contents.files.add(entry.name)
        if entry.name.rpartition("/")[0] in _PROGRAM_DIRECTORIES or entry.name in _INITS:
            head = body.read(_ELF_HEAD)
            body.seek(0)
            if len(head) == _ELF_HEAD and head.startswith(b"\x7fELF"):
                # EI_DATA says the byte order, see elf(5).
                machine = struct.unpack("<H" if head[5] == 1 else ">H", head[18:20])[0]
                contents.machines[entry.name] = machine
        self._writer.addfile(entry, body)
