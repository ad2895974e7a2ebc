"""Running the agent's file builtins: tar streams and plain bytes, in and out of a machine."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.api import streams as s
from vmgr.api.models import ExecSpec
from vmgr.client.jobstream import Output
from vmgr.errors import AgentError, VmgrError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Literal

    from vmgr.client.job import Job
    from vmgr.client.jobstream import JobEvent
    from vmgr.client.sync import Client

__all__ = ["Entry", "Incoming", "Remote", "Stat", "feed"]

_LINE_MAX: Final = 1_000
_STAT_MAX: Final = 65_536
_LIST_MAX: Final = 64 << 20


class Stat(msgspec.Struct):
    """What the `stat` builtin prints, as one line of JSON."""

    kind: str
    size: int = 0
    mark: str = "missing"
    """Another one when the file has changed."""


class Entry(msgspec.Struct, kw_only=True):
    """A file of a directory, as the `stat` builtin lists it."""

    name: str
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    user: str
    group: str
    mtime: int
    target: str | None = None


class Remote:
    """One machine's files, as one of its users.

    Args:
        client: the helper's client.
        machine: the machine's name.
        user: as whom, `NAME[:GROUP]`; None: the image's default user.
        on_problem: told each line that a builtin writes to stderr.
    """

    def __init__(
        self,
        client: Client,
        machine: str,
        user: str | None,
        on_problem: Callable[[str], None],
    ) -> None:
        self.machine = machine
        self._client = client
        self._user = user
        self._on_problem = on_problem

    def kind(self, path: str) -> str:
        """What `path` is, links followed: `file`, `dir`, another kind, or `missing`."""
        return self.stat(path).kind

    def stat(self, path: str) -> Stat:
        """The same with size and mark."""
        job = self._start("stat", ["--", path], stdin=False)
        done = job.communicate(limit=_STAT_MAX)
        try:
            return msgspec.json.decode(done.stdout, type=Stat)
        except msgspec.MsgspecError:
            raise AgentError(
                f"cannot look at {self.machine}:{path}: {_first_line(done.stderr)}"
            ) from None

    def entries(self, path: str) -> list[Entry]:
        """What is in a directory, or the file itself; nothing where a problem has been told."""
        incoming = Incoming(
            self._start("stat", ["--list", "--", path], stdin=False), self._on_problem
        )
        try:
            text = bytearray()
            for piece in incoming.pieces():
                text += piece
                if len(text) > _LIST_MAX:
                    raise AgentError(f"{self.machine}:{path} holds too much to be listed")
            incoming.end()
            return [msgspec.json.decode(line, type=Entry) for line in text.splitlines()]
        except msgspec.MsgspecError:
            raise AgentError(f"what {self.machine} says of {path} is not understood") from None
        finally:
            incoming.close()

    def pack(self, path: str, *, follow: bool = False) -> Incoming:
        """`path` as a tar stream; with `follow` a link that is named is what it leads to."""
        how = ["--follow"] if follow else []
        return Incoming(self._start("pack", [*how, "--", path], stdin=False), self._on_problem)

    def read(self, path: str) -> Incoming:
        """A file's content."""
        return Incoming(self._start("read", ["--", path], stdin=False), self._on_problem)

    def unpack(self, directory: str, pieces: Iterable[bytes], *, name: str | None = None) -> int:
        """Write a tar stream below `directory`; the builtin's exit code.

        Args:
            name: what the first component of its names becomes.
        """
        renamed = [] if name is None else ["--as", name]
        job = self._start("unpack", [*renamed, "--", directory], stdin=True)
        return feed(job, pieces, self._on_problem)

    def write(
        self,
        path: str,
        pieces: Iterable[bytes],
        *,
        expect: str | None = None,
        source: int | None = None,
    ) -> int:
        """Make a file of `pieces`; the builtin's exit code.

        Args:
            expect: the mark that the file must have still.
            source: as with `feed`.
        """
        expected = [] if expect is None else ["--expect", expect]
        job = self._start("write", [*expected, "--", path], stdin=True)
        return feed(job, pieces, self._on_problem, source=source)

    def _start(
        self,
        builtin: Literal["pack", "unpack", "stat", "read", "write"],
        arguments: list[str],
        *,
        stdin: bool,
    ) -> Job:
        spec = ExecSpec(argv=[builtin, *arguments], builtin=builtin, user=self._user, stdin=stdin)
        job = self._client.exec(self.machine, spec)
        if not stdin:
            job.stream.end_input()
        return job


class _Problems:
    """A builtin's stderr, handed on line by line; of a long line only the beginning."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._partial = b""

    def take(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[:_LINE_MAX]
        for line in lines:
            self._tell(_text(line))

    def end(self) -> None:
        if self._partial:
            self._tell(_text(self._partial))
            self._partial = b""


class Incoming:
    """A builtin's stdout as something to read from."""

    def __init__(self, job: Job, on_problem: Callable[[str], None]) -> None:
        self._job = job
        self._problems = _Problems(on_problem)
        self._buffer = bytearray()

    def read(self, count: int) -> bytes:
        """Up to `count` bytes, `b""` when the builtin has ended."""
        while not self._buffer and self._job.stream.exit is None:
            self._wait()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        if self._job.stream.exit is None:
            self._job.stream.taken(s.STDOUT, len(data))
        return data

    def pieces(self) -> Iterator[bytes]:
        """All of it."""
        while piece := self.read(s.OUTPUT_WINDOW):
            yield piece

    def end(self) -> int:
        """Read what is left and give the builtin's exit code."""
        while self.read(s.OUTPUT_WINDOW):
            pass
        self._problems.end()
        result = self._job.stream.exit
        self._job.close()
        if result is None:  # read() goes on until there is one
            raise VmgrError("the copy ended without a result")
        return result.exit_code

    def close(self) -> None:
        """Leave it; the builtin is hung up."""
        self._job.close()

    def _wait(self) -> None:
        for event in self._job.wait_events():
            if isinstance(event, Output):
                if event.flow == s.STDOUT:
                    self._buffer += event.data
                else:
                    self._problems.take(event.data)
                    self._job.stream.taken(event.flow, len(event.data))


def feed(
    job: Job,
    pieces: Iterable[bytes],
    on_problem: Callable[[str], None],
    *,
    source: int | None = None,
) -> int:
    """Give `pieces` to a builtin's stdin as fast as it takes them; gives its exit code.

    Args:
        source: the fd that pieces are read from, where that may take for ever: the builtin's end is
            noticed meanwhile.
    """
    problems = _Problems(on_problem)
    rest = iter(pieces)
    waiting: bytes | None = b""
    with job:
        while job.stream.exit is None:
            beside = None
            while waiting is not None and job.stream.input_room:
                if not waiting:
                    if source is not None and not _readable(source):
                        beside = source
                        break
                    waiting = next(rest, None)
                    continue
                room = job.stream.input_room
                job.stream.write(waiting[:room])
                waiting = waiting[room:]
            if waiting is None:
                job.stream.end_input()
            for event in _events(job, beside):
                if isinstance(event, Output):
                    if event.flow == s.STDERR:
                        problems.take(event.data)
                    job.stream.taken(event.flow, len(event.data))
        problems.end()
        return job.stream.exit.exit_code


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _events(job: Job, beside: int | None) -> list[JobEvent]:
    """Wait for something to happen to the job, or for `beside` to be readable."""
    if beside is None:
        return job.wait_events()
    poll = select.poll()
    poll.register(beside, select.POLLIN)
    poll.register(job, select.POLLIN | (select.POLLOUT if job.wants_write else 0))
    for fd, mask in poll.poll():
        if fd == beside:
            continue
        if mask & select.POLLOUT:
            job.flush()
        if mask & ~select.POLLOUT:
            return job.receive()
    return []


def _first_line(data: bytes) -> str:
    return _text(data.partition(b"\n")[0]) or "its agent does not say why"


def _text(line: bytes) -> str:
    return line[:_LINE_MAX].decode(errors="replace").strip()
