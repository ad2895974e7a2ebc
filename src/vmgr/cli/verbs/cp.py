"""`vmgr cp`: copy files into and out of machines."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from vmgr.cli.connection import client
from vmgr.cli.copy.extract import Extractor
from vmgr.cli.copy.pack import pack
from vmgr.cli.copy.passing import passed_on
from vmgr.cli.copy.place import Place, place
from vmgr.cli.copy.tarreader import TarReader
from vmgr.cli.copy.transfer import Remote
from vmgr.cli.output import bytes_text, note, printable
from vmgr.cli.progress import ProgressLine
from vmgr.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

DESCRIPTION = """Copy files and directories between this host and a machine, or between machines (or
within one), by way of this command and not of this host's disk. NAME:PATH is a path in
a machine; a relative one begins at the user's home. Directories are copied with all they hold,
modes and times are kept, and symlinks stay symlinks. What a machine sends is written nowhere but
under DESTINATION, without devices and set-user-id bits. "-" is a file's content on stdin or
stdout."""
EXAMPLES = """examples:
  vmgr cp notes.txt web:              # into the home directory
  vmgr cp -a src/ web:/srv/app
  vmgr cp web:/var/log ./web-log
  vmgr cp web:/srv/app db:/srv
  pg_dump | vmgr cp - web:/tmp/dump.sql
  vmgr cp web:/etc/os-release -"""

_STDIO: Final = "-"
_PIECE: Final = 1 << 18
_SHOWN_PROBLEMS: Final = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument(
        "-a", "--archive", action="store_true",
        help="keep owners too (into a machine), and symlinks that are named as SOURCE",
    )  # fmt: skip
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="as whom, in the machine")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="PATH, NAME:PATH or -")
    parser.add_argument("destination", metavar="DESTINATION", help="NAME:PATH, PATH or -")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    destination = place(options.destination)
    sources = [place(text) for text in options.sources]
    if destination.machine is None:
        if not all(source.machine for source in sources):
            raise UsageError(
                "neither side of the copy is in a machine",
                next_step="name one as NAME:PATH",
            )
        return _out(options, sources, destination)
    if not any(source.machine for source in sources):
        return _in(options, sources, destination)
    if not all(source.machine for source in sources):
        raise UsageError(
            "some of what is to be copied is in machines and some is not",
            next_step="copy the one and then the other",
        )
    return _between(options, sources, destination)


class _Report:
    """Counts what went wrong; shows the first lines of it."""

    def __init__(self, progress: ProgressLine) -> None:
        self._progress = progress
        self.count = 0

    def __call__(self, line: str) -> None:
        self.count += 1
        if self.count <= _SHOWN_PROBLEMS:
            self._progress.clear()
            note(f"vmgr: {printable(line)}")

    def code(self, exit_code: int = 0) -> int:
        if self.count > _SHOWN_PROBLEMS:
            note(f"vmgr: and {self.count - _SHOWN_PROBLEMS} more problems")
        if exit_code and not self.count:
            note(f"vmgr: the machine's side of the copy failed with {exit_code}")
        return 1 if self.count or exit_code else 0


# -- into a machine ------------------------------------------------------------------------------


def _in(options: argparse.Namespace, sources: list[Place], destination: Place) -> int:
    assert destination.machine is not None  # noqa: S101 (the caller looked)
    with ProgressLine(quiet=_quiet(options)) as progress:
        report = _Report(progress)
        remote = Remote(client(), destination.machine, options.user, report)
        if any(source.path == _STDIO for source in sources):
            return _in_from_stdin(remote, sources, destination, progress, report)
        wanted = [(_host_source(s.path, archive=options.archive), _base(s.path)) for s in sources]
        directory, name = _remote_target(remote, destination, many=len(wanted) > 1, inner=wanted)
        if name is not None:
            wanted = [(wanted[0][0], name)]
        pieces = pack(wanted, owners=options.archive, on_problem=report)
        return report.code(remote.unpack(directory, _counted(pieces, progress)))


def _in_from_stdin(
    remote: Remote,
    sources: list[Place],
    destination: Place,
    progress: ProgressLine,
    report: _Report,
) -> int:
    if len(sources) > 1:
        raise UsageError("stdin can only be copied by itself")
    if destination.path.endswith("/") or remote.kind(destination.path) == "dir":
        raise UsageError(
            f"{destination} is a directory", next_step="name the file that stdin becomes"
        )
    pieces = _counted(_stdin(), progress)
    return report.code(remote.write(destination.path, pieces, source=0))


def _remote_target(
    remote: Remote, destination: Place, *, many: bool, inner: list[tuple[str, str]]
) -> tuple[str, str | None]:
    """The directory to unpack in, and the name to unpack as (None: the sources' own)."""
    kind = remote.kind(destination.path)
    if kind == "dir":
        return destination.path, None
    if many or destination.path.endswith("/"):
        raise NotFoundError(f"{destination} is not a directory")
    if kind != "missing" and os.path.isdir(inner[0][0]):  # noqa: PTH112 (plain strings)
        raise UsageError(f"{destination} is there and is not a directory")
    parent, name = os.path.split(destination.path)
    parent = parent or "."
    if remote.kind(parent) != "dir":
        raise NotFoundError(f"{destination.machine}:{parent} is not a directory")
    return parent, name


def _host_source(path: str, *, archive: bool) -> str:
    """A path whose last component is what is to be copied: a link that was named is followed."""
    path = path.rstrip("/") or "/"
    try:
        os.lstat(path)
        return path if archive else os.path.realpath(path, strict=True)
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}") from None


def _base(path: str) -> str:
    """The name that a source keeps: of `.`, that of the directory it stands for."""
    name = os.path.basename(path.rstrip("/"))  # noqa: PTH119 (plain strings)
    if name in {"", ".", ".."}:
        name = os.path.basename(os.path.realpath(path)) or "root"  # noqa: PTH119 (likewise)
    return name


def _stdin() -> Iterator[bytes]:
    while piece := os.read(0, _PIECE):
        yield piece


# -- out of machines -----------------------------------------------------------------------------


def _out(options: argparse.Namespace, sources: list[Place], destination: Place) -> int:
    with ProgressLine(quiet=_quiet(options)) as progress:
        report = _Report(progress)
        helper = client()
        codes = []
        for source in sources:
            assert source.machine is not None  # noqa: S101 (the caller looked)
            remote = Remote(helper, source.machine, options.user, report)
            if destination.path == _STDIO:
                codes.append(_out_to_stdout(remote, source, progress))
            else:
                codes.append(
                    _out_to_files(
                        remote, source, destination, progress, report, many=len(sources) > 1
                    )
                )
        return report.code(max(codes))


def _out_to_stdout(remote: Remote, source: Place, progress: ProgressLine) -> int:
    incoming = remote.read(source.path)
    try:
        out = sys.stdout.buffer
        for piece in _counted(incoming.pieces(), progress):
            out.write(piece)
            out.flush()
        return incoming.end()
    finally:
        incoming.close()


def _out_to_files(
    remote: Remote,
    source: Place,
    destination: Place,
    progress: ProgressLine,
    report: _Report,
    *,
    many: bool,
) -> int:
    directory, name = _host_target(source, destination.path, many=many)
    incoming = remote.pack(source.path)
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Whatever the machine calls it, it becomes `name`: a copy into a home directory must
            # not be able to bring a .profile along.
            extractor = Extractor(
                fd,
                rename_top=os.fsencode(name),
                on_problem=report,
                on_progress=lambda count: _show(progress, count),
            )
            extractor.extract(TarReader(incoming.read))
        finally:
            os.close(fd)
        return incoming.end()
    finally:
        incoming.close()


def _host_target(source: Place, path: str, *, many: bool) -> tuple[str, str]:
    """The directory of the host to write in, and the name to write as."""
    if os.path.isdir(path):  # noqa: PTH112 (plain strings)
        return path, _remote_base(source)
    if many or path.endswith("/"):
        raise NotFoundError(f"{path} is not a directory")
    parent, name = os.path.split(path)
    if not os.path.isdir(parent or "."):  # noqa: PTH112 (plain strings)
        raise NotFoundError(f"{parent} is not a directory")
    return parent or ".", name


def _remote_base(source: Place) -> str:
    name = os.path.basename(source.path.rstrip("/"))  # noqa: PTH119 (a path of the machine)
    return source.machine or "" if name in {"", ".", ".."} else name


# -- between machines ------------------------------------------------------------------------------


def _between(options: argparse.Namespace, sources: list[Place], destination: Place) -> int:
    assert destination.machine is not None  # noqa: S101 (the caller looked)
    codes = []
    with ProgressLine(quiet=_quiet(options)) as progress:
        report = _Report(progress)
        helper = client()
        target = Remote(helper, destination.machine, options.user, report)
        is_directory = target.kind(destination.path) == "dir"
        if not is_directory and (len(sources) > 1 or destination.path.endswith("/")):
            raise NotFoundError(f"{destination} is not a directory")
        for source in sources:
            assert source.machine is not None  # noqa: S101 (likewise)
            remote = Remote(helper, source.machine, options.user, report)
            directory, name = destination.path, _remote_base(source)
            if not is_directory:
                parent, name = os.path.split(destination.path)
                directory = parent or "."
            incoming = remote.pack(source.path, follow=not options.archive)
            try:
                members = passed_on(incoming.read, whole=options.archive, on_problem=report)
                codes.append(target.unpack(directory, _counted(members, progress), name=name))
                codes.append(incoming.end())
            finally:
                incoming.close()
        return report.code(max(codes))


# -- both ----------------------------------------------------------------------------------------


def _quiet(options: argparse.Namespace) -> bool:
    quiet: bool = options.quiet
    return quiet or not sys.stderr.isatty()


def _counted(pieces: Iterable[bytes], progress: ProgressLine) -> Iterator[bytes]:
    count = 0
    for piece in pieces:
        yield piece
        count += len(piece)
        _show(progress, count)


def _show(progress: ProgressLine, count: int) -> None:
    progress.text(f"{bytes_text(count)} copied")
