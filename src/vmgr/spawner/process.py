"""Starting, watching and ending processes.

What a child gets is stated, never inherited:

- **fds**: 0, 1, 2 as given and the numbers in `pass_fds`; `_posixsubprocess` closes all others in
  the child, whatever C library opened them and whether or not they were CLOEXEC.
- **environment, working directory, umask**: given, or the minimal ones.
- **session**: its own, so it has no controlling terminal and its group can be signalled as one.
- **signals**: the mask is emptied in the spawning thread around the fork. The helper's main module
  resets every disposition before it starts its loop and only installs Python handlers (which exec
  resets) and ignores SIGPIPE (which `restore_signals` resets). So a child starts with an empty mask
  and default dispositions, without a preexec hook: those run between fork and exec in a process
  that has threads, where nothing is safe.

A child is watched by its pidfd, which is taken while we are its unreaped parent, so the number
cannot have been reused. Exits are always reaped, also when the waiter is cancelled.

`subprocess` is imported inside the functions: the CLI imports this module to launch the helper, and
each millisecond of its start-up is part of every command.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from dataclasses import dataclass
from signal import SIGKILL, SIGTERM, Signals
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from subprocess import Popen

    from _typeshed import StrPath

__all__ = [
    "Completed",
    "ExitStatus",
    "Process",
    "ProcessFailedError",
    "StopPolicy",
    "minimal_environment",
    "run",
    "spawn",
    "spawn_detached",
]

_READ_SIZE: Final = 65_536
_LINGER: Final = 2.0  # seconds after its end in which what is in a process's pipes is read
_LINE_LIMIT: Final = 4_096
_PASSED_ON: Final = (
    "HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "TMPDIR", "USER", "XDG_RUNTIME_DIR",
    "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def minimal_environment(**extra: str) -> dict[str, str]:
    """The few variables that the programs vmgr drives need, and `extra`.

    The system's directories of administration tools are on PATH also for ordinary users (mke2fs).
    """
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    path = env.get("PATH", "")
    missing = [p for p in _DEFAULT_PATH.split(":") if p not in path.split(":")]
    env["PATH"] = ":".join([*([path] if path else []), *missing])
    env.update(extra)
    return env


@dataclass(frozen=True)
class ExitStatus:
    """How a process ended. `code` and `signal` are both None when it was not our child."""

    code: int | None = None
    signal: int | None = None

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, with 0."""
        return self.code == 0

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                name = Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            return f"was killed by {name}"
        return "has gone" if self.code is None else f"exited with {self.code}"


@dataclass(frozen=True)
class StopPolicy:
    """Ask (signal), wait (seconds), kill."""

    ask: Signals | None = SIGTERM
    wait: float = 5.0


class ProcessFailedError(Exception):
    """A checked process ended badly. `output` is the tail of what it said."""

    def __init__(self, argv: Sequence[str], status: ExitStatus, output: str) -> None:
        super().__init__(argv, status, output)
        self.argv = list(argv)
        self.status = status
        self.output = output

    def __str__(self) -> str:
        last = self.output.strip().splitlines()[-1:] or [""]
        return f"{self.argv[0]} {self.status}" + (f": {last[0]}" if last[0] else "")


@dataclass(frozen=True)
class Completed:
    """What a process that was run to its end left."""

    status: ExitStatus
    stdout: bytes
    stderr: bytes


class Process:
    """A running process, its pidfd, and its end.

    Also made for processes that are not our children (`Process.adopt`): those a killed helper left.
    """

    def __init__(self, pid: int, pidfd: int, popen: Popen[bytes] | None) -> None:
        import asyncio

        self.pid = pid
        self.pidfd = pidfd
        self._popen = popen
        self._ends_group = False  # whether what is left of the group is killed at exit
        self._exit: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    @classmethod
    def adopt(cls, pid: int, start_time: int) -> Process | None:
        """Watch process `pid` if it is still the one that started at `start_time`, else None.

        Args:
            start_time: field 22 of /proc/PID/stat (clock ticks after boot), see proc(5).
        """
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        # Looked at after the pidfd was opened, so what we compare is what the pidfd names.
        if start_time_of(pid) != start_time:
            os.close(pidfd)
            return None
        return cls(pid, pidfd, None)

    @property
    def running(self) -> bool:
        """Whether the end has not been seen yet."""
        return not self._exit.done()

    async def wait(self) -> ExitStatus:
        """Wait for the end. Cancelling the wait leaves the process alone."""
        import asyncio

        return await asyncio.shield(self._exit)

    def when_ended(self, tell: Callable[[asyncio.Future[ExitStatus]], object]) -> None:
        """Have `tell` called on the loop, soon after the end."""
        self._exit.add_done_callback(tell)

    def signal(self, number: Signals) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def signal_group(self, number: Signals) -> None:
        """Send a signal to the process group; only for children, which lead their own."""
        if self._popen is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def stop(self, policy: StopPolicy = StopPolicy()) -> ExitStatus:
        """Ask, wait, kill; always reap. A cancellation turns the wait into the kill."""
        import asyncio

        if self.running and policy.ask is not None:
            self.signal_group(policy.ask) if self._popen else self.signal(policy.ask)
            try:
                async with asyncio.timeout(policy.wait):
                    return await self.wait()
            except TimeoutError:
                pass
            except asyncio.CancelledError:
                self.kill()
                raise
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL to the process and, for a child, to its group."""
        self.signal_group(SIGKILL)
        self.signal(SIGKILL)

    def _on_exit(self) -> None:
        import asyncio

        status = ExitStatus()
        if self._popen is not None:
            if self._ends_group:
                # Before the reaping, while the number cannot belong to anyone else.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, SIGKILL)
            code = self._popen.wait()
            status = ExitStatus(signal=-code) if code < 0 else ExitStatus(code=code)
        asyncio.get_running_loop().remove_reader(self.pidfd)
        os.close(self.pidfd)
        if not self._exit.done():
            self._exit.set_result(status)


def start_time_of(pid: int) -> int | None:
    """When `pid` started (clock ticks after boot), or None when it is not there or a zombie."""
    fields = _stat_of(pid)
    return None if fields is None or fields[0] == b"Z" else int(fields[19])


def parent_of(pid: int) -> int | None:
    """The parent of `pid`, or None when there is no such process; a zombie has one."""
    fields = _stat_of(pid)
    return None if fields is None else int(fields[1])


def _stat_of(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat after the command's name, see proc(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 (no Path on the CLI's way)
            # The command name may hold spaces and brackets: the fields begin after the last one.
            return file.read().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None


def spawn_detached(
    argv: Sequence[StrPath],
    *,
    env: Mapping[str, str],
    umask: int = 0o077,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
) -> int:
    """Start a process that outlives its launcher, without asyncio; gives its pid.

    It gets a session of its own, `/` as working directory and /dev/null where no fd is given.

    Raises:
        OSError: it could not be started.
    """
    import subprocess
    import warnings

    with _empty_signal_mask():
        popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            env=dict(env),
            cwd="/",
            umask=umask,
            pass_fds=pass_fds,
            close_fds=True,
            start_new_session=True,
            restore_signals=True,
        )
    pid = popen.pid
    with warnings.catch_warnings():
        # It is meant to outlive the object. `subprocess` keeps the number, and reaps it at a later
        # start if the launcher is still there when it ends.
        warnings.simplefilter("ignore", ResourceWarning)
        del popen
    return pid


@contextlib.contextmanager
def _empty_signal_mask() -> Iterator[None]:
    """Block no signal in this thread for a while: what it starts inherits the mask."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def spawn(
    argv: Sequence[StrPath],
    *,
    env: Mapping[str, str] | None = None,
    cwd: StrPath = "/",
    umask: int = 0o077,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
    parent_death: Literal["survive", "kill"] = "survive",
    limits: Mapping[str, int] | None = None,
    io_priority: int | None = None,
) -> Process:
    """Start a process.

    Args:
        argv: program (looked up in the PATH of `env`) and arguments.
        env: the whole environment; None: `minimal_environment()`.
        stdin: an fd, or None for /dev/null; likewise `stdout` and `stderr`.
        pass_fds: further fds that the child gets under the same numbers.
        parent_death: `kill` ends the process when the helper dies, however it dies. The kernel ties
            this to the *thread* that spawned, so spawning happens on the loop's thread.
        io_priority: of the class `best-effort`, 0 (first) to 7, see ionice(1); None: ours.
        limits: resource limits by their names in prlimit(1): `core`, `nofile`, …

    Raises:
        OSError: it could not be started (FileNotFoundError, PermissionError, …).
    """
    import subprocess

    full = dict(env) if env is not None else minimal_environment()
    command = [os.fspath(a) for a in argv]
    # By programs of util-linux, which turn into the one wanted: between fork and exec, in a process
    # with threads, nothing of ours may run.
    if parent_death == "kill" or limits or io_priority is not None:
        command[0] = _which(command[0], full.get("PATH", _DEFAULT_PATH))
    if parent_death == "kill":
        command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
    if io_priority is not None:
        command = ["ionice", "-c", "best-effort", "-n", str(io_priority), *command]
    if limits:
        options = [f"--{name}={value}:{value}" for name, value in limits.items()]
        command = ["prlimit", *options, "--", *command]
    with _empty_signal_mask():
        popen = subprocess.Popen(  # noqa: ASYNC220 (blocks for the fork and exec, about 1 ms)
            command,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            env=full,
            cwd=cwd,
            umask=umask,
            pass_fds=pass_fds,
            close_fds=True,
            start_new_session=True,
            restore_signals=True,
        )
    try:
        pidfd = os.pidfd_open(popen.pid)
    except OSError:  # no fd is free: a child that cannot be watched must not go on
        popen.kill()
        popen.wait()
        raise
    return Process(popen.pid, pidfd, popen)


def _which(program: str, path: str) -> str:
    import shutil

    found = shutil.which(program, path=path)
    if found is None:
        raise FileNotFoundError(2, os.strerror(2), program)
    return found


async def run(
    argv: Sequence[StrPath],
    *,
    env: Mapping[str, str] | None = None,
    cwd: StrPath = "/",
    umask: int = 0o077,
    stdin: int | None = None,
    stdout: int | None = None,
    pass_fds: Sequence[int] = (),
    deadline: float | None = None,
    limit: int = 1 << 20,
    on_line: Callable[[str], None] | None = None,
    check: bool = True,
    policy: StopPolicy = StopPolicy(),
) -> Completed:
    """Run a process to its end; it dies with the helper, and with the task that awaits it.

    Args:
        stdout: an fd for its output; None: captured.
        deadline: seconds after which it is stopped and TimeoutError raised.
        limit: how much of each output is kept: the last bytes of it.
        on_line: called with each line of stderr as it comes, for progress.
        check: raise ProcessFailedError unless it exits with 0.

    Raises:
        OSError: it could not be started.
        ProcessFailedError: it ended badly and `check` is set.
        TimeoutError: the deadline passed.
    """
    import asyncio

    callbacks = [on_line] if stdout is not None else [None, on_line]
    reads: list[int] = []
    with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as writes:
        ends: list[int] = []
        for _ in callbacks:
            read, write = os.pipe2(os.O_CLOEXEC)
            on_failure.callback(os.close, read)
            writes.callback(os.close, write)
            reads.append(read)
            ends.append(write)
        process = await spawn(
            argv, env=env, cwd=cwd, umask=umask, stdin=stdin,
            stdout=ends[0] if stdout is None else stdout, stderr=ends[-1],
            pass_fds=pass_fds, parent_death="kill",
        )  # fmt: skip
        on_failure.pop_all()
    process._ends_group = True  # noqa: SLF001 (same module); else it could keep our pipes open
    over = _Over()
    readers = [
        asyncio.create_task(_collect(read, limit, callback, over), name="capture")
        for read, callback in zip(reads, callbacks, strict=True)
    ]
    try:
        async with asyncio.timeout(deadline):
            status = await process.wait()
    finally:
        if process.running:
            await asyncio.shield(process.stop(policy))
        # One that it has left behind, in a session of its own, may hold our pipes open for ever.
        await asyncio.wait(readers, timeout=_LINGER)
        over.now()
        captured = await asyncio.gather(*readers)
    stderr = captured[-1]
    output = captured[0] if stdout is None else b""
    if check and not status.ok:
        text = (stderr or output).decode(errors="replace")
        raise ProcessFailedError([os.fspath(a) for a in argv], status, text)
    return Completed(status, output, stderr)


class _Over:
    """Says that nobody waits for more output."""

    def __init__(self) -> None:
        self.said = False
        self.wake: list[Callable[[], None]] = []

    def now(self) -> None:
        self.said = True
        for wake in self.wake:
            wake()


async def _collect(
    fd: int, limit: int, on_line: Callable[[str], None] | None, over: _Over
) -> bytes:
    """Read `fd` until its end or `over`, and close it; keep the last `limit` bytes."""
    import asyncio

    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    kept: deque[bytes] = deque()
    size = 0
    partial = b""
    readable = asyncio.Event()
    over.wake.append(readable.set)
    loop.add_reader(fd, readable.set)
    try:
        while True:
            await readable.wait()
            if over.said:
                break
            readable.clear()
            try:
                chunk = os.read(fd, _READ_SIZE)
            except BlockingIOError:
                continue
            if not chunk:
                break
            kept.append(chunk)
            size += len(chunk)
            while kept and size - len(kept[0]) >= limit:
                size -= len(kept.popleft())
            if on_line is not None:
                *lines, partial = (partial + chunk).split(b"\n")
                partial = partial[-_LINE_LIMIT:]
                for line in lines:
                    on_line(line[:_LINE_LIMIT].decode(errors="replace"))
        if on_line is not None and partial:
            on_line(partial.decode(errors="replace"))
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    everything = b"".join(kept)
    return everything[max(0, len(everything) - limit) :]
