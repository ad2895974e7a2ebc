"""The loop between a command in a machine and this process's stdin, stdout, stderr and signals.

One poll(2) waits for all of them, so nothing blocks anything else: a reader of stdout that has
stopped holds back the command's output (credit is only granted for what was written out), but not
its signals, its input or its end.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import time
from typing import TYPE_CHECKING, Final

from vmgr.api import streams as s
from vmgr.cli.exits import INTERRUPTED, OWN_FAILURE, PIPE_CLOSED
from vmgr.cli.output import note
from vmgr.cli.signals import FORWARDED, SignalPipe
from vmgr.cli.terminal import RawTerminal, terminal_size
from vmgr.client.jobstream import Gap, Output
from vmgr.errors import CancelledByUserError, VmgrError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmgr.cli.asking import Asking
    from vmgr.cli.progress import ProgressLine
    from vmgr.client.job import Job
    from vmgr.client.jobstream import JobEvent
    from vmgr.client.questions import Questions

__all__ = ["Session"]

_READ_SIZE: Final = 65_536
_PIPE_WRITE: Final = select.PIPE_BUF  # a pipe that poll(2) calls writable takes this much at once
_FILE_WRITE: Final = 1 << 20
_CANCEL_DEADLINE: Final = 30.0  # for the helper to undo what had begun
_IMPATIENCE: Final = 1.0  # two Ctrl-C within it end us, whatever the command makes of them
_END_OF_TEXT: Final = b"\x04"  # ^D: how a terminal says that input has ended


class _Sink:
    """Where output goes: an fd, and what it has not taken yet."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pending = bytearray()
        self.gone = False
        # Files are always ready; what poll(2) says of pipes holds for PIPE_BUF bytes.
        self._most = _FILE_WRITE if stat.S_ISREG(os.fstat(fd).st_mode) else _PIPE_WRITE

    def write(self) -> int:
        """Write some; gives how many bytes are off our hands.

        Raises:
            BrokenPipeError: its reader has gone.
            VmgrError: it takes no more, as on a full disk.
        """
        if self.gone:
            count = len(self.pending)
        else:
            try:
                count = os.write(self.fd, self.pending[: self._most])
            except BlockingIOError:
                count = 0
            except BrokenPipeError:
                raise
            except OSError as error:
                raise VmgrError(f"cannot write the command's output: {error.strerror}") from error
        del self.pending[:count]
        return count


class Session:
    """One command's hold on this process's standard streams.

    Args:
        job: the command, just asked for.
        stdin: the fd that input comes from; None: there is none.
        tty: the command has a terminal; ours becomes raw where stdin is one.
        progress: shows what happens before the command starts.
        whole: all output is expected, so dropped output is a failure even if the command's is none.
        questions: gives those about the machine of that name, to be asked at our terminal.
    """

    def __init__(
        self,
        job: Job,
        *,
        stdin: int | None,
        tty: bool,
        progress: ProgressLine,
        whole: bool = True,
        questions: Callable[[str], Questions] | None = None,
    ) -> None:
        self._job = job
        self._stdin = stdin
        self._tty = tty
        self._progress = progress
        self._whole = whole
        self._dropped = False
        self._raw = RawTerminal(stdin) if tty and stdin is not None and os.isatty(stdin) else None
        self._questions = questions if self._raw is not None else None
        self._asking: Asking | None = None
        self._terminal = -1
        self._sinks = {s.STDOUT: _Sink(1), s.STDERR: _Sink(2)}
        self._poll = select.poll()
        self._watched: dict[int, int] = {}
        self._last_interrupt = float("-inf")
        self._last_input = b"\n"
        if stdin is None:
            job.stream.end_input()

    def run(self) -> int:
        """Stay until the command has ended; gives its exit code.

        Raises:
            CancelledByUserError: Ctrl-C before it had started; all is undone.
            VmgrError: it could not be started, or its machine failed.
        """
        extra = (signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP) if self._raw else ()
        signals = SignalPipe(*FORWARDED, *extra)
        try:
            with signals:
                code = self._loop(signals)
        except CancelledByUserError:
            self._leave()
            self._job.close_and_wait(_CANCEL_DEADLINE)
            raise
        except BrokenPipeError:
            code = PIPE_CLOSED
        finally:
            if self._asking is not None:
                self._asking.close()
            self._leave()
            self._job.close()
        return code

    # -- machinery -------------------------------------------------------------------------------
    def _leave(self) -> None:
        if self._raw is not None:
            self._raw.leave()
        self._progress.clear()

    def _loop(self, signals: SignalPipe) -> int:
        stream = self._job.stream
        while stream.exit is None or any(sink.pending for sink in self._sinks.values()):
            ready = dict(self._wait(signals))
            for number in signals.take() if signals.fileno() in ready else ():
                if self._refused_by(number):
                    continue
                if (code := self._signalled(number)) is not None:
                    return code
            self._serve_questions(ready)
            for flow, sink in self._sinks.items():
                if sink.fd in ready and sink.pending:
                    self._write(flow, sink)
            if self._stdin is not None and self._stdin in ready:
                self._read_input()
            self._serve_job(ready.get(self._job.fileno(), 0))
        code = stream.exit.exit_code
        return OWN_FAILURE if self._dropped and code == 0 else code

    def _wait(self, signals: SignalPipe) -> list[tuple[int, int]]:
        """Wait for whatever can go on now."""
        stream = self._job.stream
        wanted = {signals.fileno(): select.POLLIN}
        if stream.exit is None:
            out = select.POLLOUT if self._job.wants_write else 0
            wanted[self._job.fileno()] = select.POLLIN | out
        asking = self._asking
        if asking is not None and not asking.closed:
            wanted[asking.fileno()] = select.POLLIN
        if asking is not None and asking.active:
            # The terminal is the person's: the machine neither writes to it nor reads from it.
            wanted[self._terminal] = select.POLLIN
        else:
            for sink in self._sinks.values():
                if sink.pending:
                    wanted[sink.fd] = select.POLLOUT
            if self._stdin is not None and stream.started and stream.input_room:
                wanted[self._stdin] = wanted.get(self._stdin, 0) | select.POLLIN
        for fd in self._watched.keys() - wanted.keys():
            self._poll.unregister(fd)
        for fd, mask in wanted.items():
            if self._watched.get(fd) != mask:
                self._poll.register(fd, mask)
        self._watched = wanted
        return self._poll.poll()

    def _serve_job(self, mask: int) -> None:
        if mask & select.POLLOUT:
            self._job.flush()
        if mask & ~select.POLLOUT:
            for event in self._job.receive():
                self._happened(event)

    def _happened(self, event: JobEvent) -> None:
        if isinstance(event, Output):
            self._progress.clear()
            self._sinks[event.flow].pending += event.data
        elif isinstance(event, s.Progress):
            self._progress.show(event)
        elif isinstance(event, s.Started):
            self._progress.clear()
            if self._raw is not None:
                self._raw.enter()
                self._tell_size()
            self._listen(event.machine)
        elif isinstance(event, Gap):
            self._dropped = self._whole
            note(f"vmgr: {event.count} bytes of output were dropped while nobody was attached")

    def _write(self, flow: int, sink: _Sink) -> None:
        try:
            count = sink.write()
        except BrokenPipeError:
            if flow == s.STDOUT:
                raise
            sink.gone = True  # a lost stderr is no reason to stop
            count = sink.write()
        self._job.stream.taken(flow, count)

    def _read_input(self) -> None:
        assert self._stdin is not None  # noqa: S101 (it was polled)
        stream = self._job.stream
        try:
            data = os.read(self._stdin, min(_READ_SIZE, stream.input_room))
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal that was hung up, a closed fd
        if data:
            self._last_input = data
            stream.write(data)
            return
        self._stdin = None
        if self._tty:
            # A terminal has no end of input but the key for it; amid a line it takes two.
            stream.write(_END_OF_TEXT * (1 if self._last_input.endswith(b"\n") else 2))
        stream.end_input()

    def _tell_size(self) -> None:
        size = terminal_size(0, 1, 2)
        self._job.stream.resize(size.rows, size.cols)

    # -- questions -------------------------------------------------------------------------------
    def _listen(self, machine: str) -> None:
        """Be there for questions about the machine, from the command's start on."""
        if self._questions is None or self._stdin is None:
            return
        if self._asking is not None and not self._asking.closed:
            return
        from vmgr.cli.asking import Asking

        with contextlib.suppress(VmgrError, OSError):  # then others are asked, or nobody
            if self._terminal < 0:
                name = os.ttyname(self._stdin)
                self._terminal = os.open(name, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            self._asking = Asking(self._questions(machine), self._terminal, shared=True)

    def _refused_by(self, number: int) -> bool:
        """Whether a signal was for a question: Ctrl-C, Ctrl-Z."""
        if self._asking is None or not self._asking.active:
            return False
        if number in {signal.SIGINT, signal.SIGTSTP}:
            self._asking.refuse()
            return True
        return False

    def _serve_questions(self, ready: dict[int, int]) -> None:
        asking = self._asking
        if asking is None:
            return
        stood = asking.active
        if stood and self._terminal in ready:
            asking.read()
        if not asking.closed and asking.fileno() in ready:
            asking.news()
        if stood and not asking.active:
            # What was on the screen is gone: a program that draws does it again for a new size.
            size = terminal_size(0, 1, 2)
            self._job.stream.resize(max(1, size.rows - 1), size.cols)
            self._job.stream.resize(size.rows, size.cols)

    def _signalled(self, number: int) -> int | None:
        """Act on a signal; an exit code where it ends the session."""
        stream = self._job.stream
        if number == signal.SIGTSTP and self._raw is not None:
            self._raw.leave()
            os.kill(os.getpid(), signal.SIGSTOP)
        elif number in {signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP}:
            if self._raw is not None and stream.started:
                if self._asking is None or not self._asking.active:
                    self._raw.enter()
                self._tell_size()
        elif not stream.can_attach:
            if number == signal.SIGINT:
                raise CancelledByUserError("cancelled")
            return 128 + number
        elif self._raw is not None and number in {signal.SIGHUP, signal.SIGTERM}:
            return 128 + number  # the terminal has gone, or we are to go: the command is hung up
        else:
            now = time.monotonic()
            if number == signal.SIGINT:
                if now - self._last_interrupt < _IMPATIENCE:
                    return INTERRUPTED
                self._last_interrupt = now
            stream.signal(number)
        return None
