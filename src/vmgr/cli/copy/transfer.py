"""Running the agent's file builtins: tar streams and plain bytes, in and out of a machine."""

from __future__ import annotations

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
    from vmgr.client.sync import Client

__all__ = ["Incoming", "Remote", "feed"]

_LINE_MAX: Final = 1_000
_STAT_MAX: Final = 65_536
_NOT_FOUND: Final = "missing"


class _Stat(msgspec.Struct):
    """What the `stat` builtin prints, as one line of JSON."""

    kind: str


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
        job = self._start("stat", [path], stdin=False)
        done = job.communicate(limit=_STAT_MAX)
        try:
            return msgspec.json.decode(done.stdout, type=_Stat).kind
        except msgspec.MsgspecError:
            raise AgentError(
                f"cannot look at {self.machine}:{path}: {_first_line(done.stderr)}"
            ) from None

    def pack(self, path: str) -> Incoming:
        """`path` as a tar stream."""
        return Incoming(self._start("pack", ["--", path], stdin=False), self._on_problem)

    def read(self, path: str) -> Incoming:
        """A file's content."""
        return Incoming(self._start("read", [path], stdin=False), self._on_problem)

    def unpack(self, directory: str, pieces: Iterable[bytes]) -> int:
        """Write a tar stream below `directory`; the builtin's exit code."""
        return feed(self._start("unpack", [directory], stdin=True), pieces, self._on_problem)

    def write(self, path: str, pieces: Iterable[bytes]) -> int:
        """Make a file of `pieces`; the builtin's exit code."""
        return feed(self._start("write", [path], stdin=True), pieces, self._on_problem)

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


def feed(job: Job, pieces: Iterable[bytes], on_problem: Callable[[str], None]) -> int:
    """Give `pieces` to a builtin's stdin as fast as it takes them; gives its exit code."""
    problems = _Problems(on_problem)
    source = iter(pieces)
    waiting: bytes | None = b""
    with job:
        while job.stream.exit is None:
            while waiting is not None and job.stream.input_room:
                room = job.stream.input_room
                job.stream.write(waiting[:room])
                waiting = waiting[room:] or next(source, None)
            if waiting is None:
                job.stream.end_input()
            for event in job.wait_events():
                if isinstance(event, Output):
                    if event.flow == s.STDERR:
                        problems.take(event.data)
                    job.stream.taken(event.flow, len(event.data))
        problems.end()
        return job.stream.exit.exit_code


def _first_line(data: bytes) -> str:
    return _text(data.partition(b"\n")[0]) or "its agent does not say why"


def _text(line: bytes) -> str:
    return line[:_LINE_MAX].decode(errors="replace").strip()
