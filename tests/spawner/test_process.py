"""The spawner, seen from /proc of the real processes that it starts."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import children

from vmgr.spawner import (
    Completed,
    ExitStatus,
    Process,
    ProcessFailedError,
    StopPolicy,
    minimal_environment,
    run,
    spawn,
    spawn_detached,
)
from vmgr.spawner.process import start_time_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SRC = Path(__file__).resolve().parents[2] / "src"

# Says what it was given, as JSON. An fd that is listed and then not open was the listing's own.
REPORT = r"""
import json, os
def is_open(fd):
    try:
        return bool(os.fstat(fd))
    except OSError:
        return False
fds = sorted(filter(is_open, map(int, os.listdir("/proc/self/fd"))))
lines = open("/proc/self/status").read().splitlines()
status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
print(json.dumps({
    "fds": fds, "umask": int(status["Umask"], 8), "cwd": os.getcwd(), "env": dict(os.environ),
    "sid": os.getsid(0), "pgid": os.getpgid(0), "pid": os.getpid(), "blocked": status["SigBlk"],
    "stdin": os.readlink("/proc/self/fd/0"),
    "tty": open("/proc/self/stat").read().rsplit(")")[1].split()[4],
}))
"""
PYTHON = [sys.executable, "-I", "-S", "-c"]


def open_fds() -> set[int]:
    def is_open(fd: int) -> bool:
        try:
            os.fstat(fd)
        except OSError:
            return False
        return True

    return set(filter(is_open, (int(path.name) for path in Path("/proc/self/fd").iterdir())))


@pytest.fixture
def stray_fd() -> Iterator[int]:
    """An fd that a C library might have opened: inheritable, and none of the child's business."""
    fd = os.open("/dev/null", os.O_RDONLY)
    stray = 77
    os.dup2(fd, stray, inheritable=True)
    os.close(fd)
    yield stray
    os.close(stray)


async def report(**options: Any) -> dict[str, Any]:
    done = await run([*PYTHON, REPORT], **options)
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


class TestWhatAChildGets:
    async def test_given_fds_by_number_and_no_other(self, stray_fd: int) -> None:
        assert os.get_inheritable(stray_fd)
        read, write = os.pipe()
        try:
            given = 123
            os.dup2(read, given, inheritable=False)
            seen = await report(pass_fds=[given])
        finally:
            for fd in (read, write, given):
                os.close(fd)
        assert seen["fds"] == [0, 1, 2, given]

    async def test_stdin_is_null_unless_given(self) -> None:
        assert (await report())["stdin"] == "/dev/null"
        fd = os.open("/proc/version", os.O_RDONLY)
        try:
            assert (await report(stdin=fd))["stdin"] == "/proc/version"
        finally:
            os.close(fd)

    @pytest.mark.parametrize("umask", [0, 0o077, 0o022])
    async def test_umask(self, umask: int) -> None:
        before = os.umask(0o027)
        try:
            assert (await report(umask=umask))["umask"] == umask
            assert os.umask(0o027) == 0o027, "the umask of this process must not change"
        finally:
            os.umask(before)

    async def test_umask_and_cwd_have_safe_defaults(self) -> None:
        seen = await report()
        assert (seen["umask"], seen["cwd"]) == (0o077, "/")

    async def test_cwd(self, tmp_path: Path) -> None:
        assert (await report(cwd=tmp_path))["cwd"] == str(tmp_path)

    async def test_exactly_the_given_environment(self) -> None:
        seen = await report(env={"PATH": "/usr/bin:/bin", "ONE": "1"})
        seen["env"].pop("LC_CTYPE", None)  # Python sets it in itself (PEP 538)
        assert seen["env"] == {"PATH": "/usr/bin:/bin", "ONE": "1"}

    async def test_secrets_of_this_environment_stay_here(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("A_TOKEN", "secret")
        assert "A_TOKEN" not in (await report())["env"]

    async def test_session_and_group_of_its_own_without_a_terminal(self) -> None:
        seen = await report()
        assert seen["sid"] == seen["pgid"] == seen["pid"]
        assert seen["sid"] != os.getsid(0)
        assert seen["tty"] == "0"

    async def test_no_signal_is_blocked(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
        try:
            seen = await report()
            still = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert int(seen["blocked"], 16) == 0
        assert {signal.SIGTERM, signal.SIGUSR1} <= still, "ours must come back"

    async def test_sigpipe_ends_it_although_python_ignores_it(self) -> None:
        assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
        # `sh` tells what it was given: a signal that is ignored at its start stays so.
        done = await run(["sh", "-c", "grep SigIgn /proc/$$/status"])
        assert int(done.stdout.split()[1], 16) == 0
        killed = await run(["sh", "-c", "kill -PIPE $$"], check=False)
        assert killed.status == ExitStatus(signal=signal.SIGPIPE)

    async def test_handlers_of_this_process_are_not_the_childs(self) -> None:
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            killed = await run(["sh", "-c", "kill -USR1 $$"], check=False)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert killed.status == ExitStatus(signal=signal.SIGUSR1)


class TestMinimalEnvironment:
    def test_finds_administration_tools(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        assert "/usr/sbin" in minimal_environment()["PATH"].split(":")

    def test_keeps_the_persons_path_first_and_adds_extra(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "/opt/mine:/bin")
        env = minimal_environment(EXTRA="x")
        assert env["PATH"].startswith("/opt/mine:/bin:")
        assert env["EXTRA"] == "x"

    def test_works_without_any(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in list(os.environ):
            monkeypatch.delenv(name)
        assert set(minimal_environment()) == {"PATH"}


class TestExits:
    async def test_code(self) -> None:
        process = await spawn(["sh", "-c", "exit 7"])
        assert await process.wait() == ExitStatus(code=7)
        assert not process.running
        assert not _exists(process.pid), "reaped"

    async def test_signal(self) -> None:
        process = await spawn(["sleep", "100"])
        process.kill()
        assert await process.wait() == ExitStatus(signal=signal.SIGKILL)

    async def test_cancelling_a_wait_leaves_the_process_alone(self) -> None:
        process = await spawn(["sleep", "100"])
        waiter = asyncio.create_task(process.wait())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert process.running
        assert _exists(process.pid)
        process.kill()
        await process.wait()

    async def test_signals_to_an_ended_process_are_dropped(self) -> None:
        process = await spawn(["true"])
        await process.wait()
        process.signal(signal.SIGTERM)
        process.signal_group(signal.SIGTERM)
        process.kill()
        assert await process.stop() == ExitStatus(code=0)

    @pytest.mark.parametrize("argv", [["/nonexistent/program"], ["no-such-program-anywhere"]])
    @pytest.mark.parametrize("parent_death", ["survive", "kill"])
    async def test_not_found(self, argv: list[str], parent_death: Any) -> None:
        with pytest.raises(FileNotFoundError):
            await spawn(argv, parent_death=parent_death)

    async def test_unwatchable_child_does_not_go_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The last free fd is gone exactly when the pidfd is asked for.
        def no_fd_left(_pid: int) -> int:
            raise OSError(24, os.strerror(24))

        before = children()
        pid_file = tmp_path / "pid"
        monkeypatch.setattr(os, "pidfd_open", no_fd_left)
        with pytest.raises(OSError, match="Too many open files"):
            await spawn(["sh", "-c", f"echo $$ >{pid_file}; exec sleep 100"])
        assert children() <= before


class TestStop:
    async def test_asks_first(self) -> None:
        process = await spawn(["sleep", "100"])
        assert await process.stop() == ExitStatus(signal=signal.SIGTERM)

    async def test_kills_one_that_does_not_listen(self) -> None:
        process, out = await _spawn_and_hear(["sh", "-c", "trap '' TERM; echo ready; sleep 100"])
        try:
            status = await process.stop(StopPolicy(wait=0.2))
        finally:
            os.close(out)
        assert status == ExitStatus(signal=signal.SIGKILL)

    async def test_reaches_the_whole_group(self) -> None:
        process, out = await _spawn_and_hear(["sh", "-c", "sleep 100 & echo $!; wait"])
        process.kill()
        await process.wait()
        # The grandchild held the pipe's other end: its end is our end of file.
        assert await _read(out) == b""
        os.close(out)

    async def test_a_cancelled_stop_kills(self) -> None:
        process, out = await _spawn_and_hear(["sh", "-c", "trap '' TERM; echo ready; sleep 100"])
        stopping = asyncio.create_task(process.stop(StopPolicy(wait=100)))
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert await process.wait() == ExitStatus(signal=signal.SIGKILL)
        os.close(out)


class TestAdopt:
    async def test_sees_the_end_of_a_process_of_someone_else(self) -> None:
        other = await asyncio.to_thread(subprocess.Popen, ["sleep", "100"])
        started = start_time_of(other.pid)
        assert started is not None
        process = Process.adopt(other.pid, started)
        assert process is not None
        assert process.running
        process.kill()
        assert await process.wait() == ExitStatus(), "how it ended only its parent knows"
        await asyncio.to_thread(other.wait)

    async def test_a_number_that_was_used_again_is_not_adopted(self) -> None:
        before = open_fds()
        started = start_time_of(os.getpid())
        assert started is not None
        assert Process.adopt(os.getpid(), started + 1) is None
        assert Process.adopt(os.getpid(), started - 1) is None
        assert open_fds() == before

    async def test_gone_or_zombie_is_not_adopted(self) -> None:
        other = await asyncio.to_thread(subprocess.Popen, ["sleep", "100"])
        started = start_time_of(other.pid)
        assert started is not None
        other.kill()
        ended_not_reaped = os.WEXITED | os.WNOWAIT
        await asyncio.to_thread(os.waitid, os.P_PID, other.pid, ended_not_reaped)
        assert Process.adopt(other.pid, started) is None
        await asyncio.to_thread(other.wait)
        assert Process.adopt(other.pid, started) is None

    def test_start_time_of_a_program_with_an_evil_name(self, tmp_path: Path) -> None:
        program = tmp_path / "a) R 1 (b"
        program.symlink_to("/bin/sleep")
        other = subprocess.Popen([program, "100"])
        fields = Path(f"/proc/{other.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        assert start_time_of(other.pid) == int(fields[19])
        assert start_time_of(other.pid) is not None
        other.kill()
        other.wait()


class TestRun:
    async def test_output_and_errors_apart(self) -> None:
        done = await run(["sh", "-c", "echo out; echo err >&2"])
        assert (done.stdout, done.stderr) == (b"out\n", b"err\n")

    async def test_failure_has_the_last_words(self) -> None:
        with pytest.raises(ProcessFailedError, match="sh exited with 3: that was it") as failed:
            await run(["sh", "-c", "echo first >&2; echo that was it >&2; exit 3"])
        assert failed.value.status == ExitStatus(code=3)

    async def test_unchecked(self) -> None:
        assert (await run(["false"], check=False)).status == ExitStatus(code=1)

    @pytest.mark.parametrize("limit", [0, 1, 10, 65_536, 100_000])
    async def test_keeps_the_last_bytes_of_endless_output(self, limit: int) -> None:
        done = await run(["sh", "-c", "head -c 300000 /dev/zero; printf 0123456789"], limit=limit)
        assert len(done.stdout) == limit
        assert (b"\0" * limit + b"0123456789")[-limit or limit + 10 :] == done.stdout

    async def test_lines_as_they_come_and_the_last_without_its_end(self) -> None:
        lines: list[str] = []
        await run(["sh", "-c", r"printf 'one\ntwo\nlast' >&2"], on_line=lines.append)
        assert lines == ["one", "two", "last"]

    async def test_a_line_without_end_is_bounded(self) -> None:
        lines: list[str] = []
        await run(["sh", "-c", "head -c 1000000 /dev/zero >&2"], on_line=lines.append)
        assert [len(line) for line in lines] == [4096]

    async def test_deadline_stops_it(self, tmp_path: Path) -> None:
        before = children()
        pid_file = tmp_path / "pid"
        with pytest.raises(TimeoutError):
            await run(["sh", "-c", f"echo $$ >{pid_file}; sleep 100"], deadline=0.5)
        assert children() <= before

    async def test_cancellation_ends_and_reaps_it_and_its_group(self) -> None:
        before, others = open_fds(), children()
        read, write = os.pipe()
        script = f"sleep 100 & sleep 100 & echo ready >&{write}; wait"
        task = asyncio.create_task(run(["bash", "-c", script], pass_fds=[write]))
        assert await _read(read) == b"ready\n"
        os.close(write)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # All three held the pipe's other end.
        assert await _read(read) == b""
        os.close(read)
        assert children() <= others
        assert open_fds() == before

    async def test_what_stays_in_the_background_does_not_hold_it_up(self) -> None:
        async with asyncio.timeout(30):
            done = await run(["sh", "-c", "sleep 100 & echo done"])
        assert done.stdout == b"done\n"

    async def test_one_that_left_the_session_does_not_hold_it_up(self, tmp_path: Path) -> None:
        """A daemon: it is in no group of ours, and keeps our pipes."""
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        daemon = f"echo $$ >&2; echo >{fifo}; exec sleep 100"
        command = f"setsid sh -c '{daemon}' & read line <{fifo}; echo done"
        async with asyncio.timeout(60):
            done = await run(["sh", "-c", command])
        assert done.stdout == b"done\n"
        os.kill(int(done.stderr), signal.SIGKILL)

    async def test_one_that_closes_its_pipes_early_is_waited_for(self) -> None:
        done = await run(["sh", "-c", "exec >&- 2>&-; sleep 0.3; exit 4"], check=False)
        assert done == Completed(ExitStatus(code=4), b"", b"")

    async def test_a_failing_callback_is_heard_of_and_ends_nothing_else(self) -> None:
        def fail(_line: str) -> None:
            raise ValueError("from the callback")

        before = open_fds()
        with pytest.raises(ValueError, match="from the callback"):
            await run(["sh", "-c", "echo x >&2"], on_line=fail)
        assert open_fds() == before

    async def test_no_fd_grows_over_many_runs_good_and_bad(self) -> None:
        await run(["true"])  # whatever the first one makes for good
        before = open_fds()
        for _ in range(100):
            await run(["true"])
            with pytest.raises(FileNotFoundError):
                await run(["/nonexistent/program"])
        assert open_fds() == before

    @pytest.mark.parametrize("free", range(12))
    async def test_out_of_fds_leaves_nothing_open(self, free: int) -> None:
        """Two pipes, /dev/null and a pipe of subprocess's own, a pidfd: each may be too much."""
        before, others = open_fds(), children()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = next(fd for fd in range(3, 4096) if fd not in before)
        gaps = [fd for fd in range(lowest, max(before)) if fd not in before]
        fillers = [os.dup2(0, fd) for fd in gaps]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 1 + free, limits[1]))
        outcome: OSError | None = None
        try:
            await run(["true"])
        except OSError as error:
            outcome = error
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in fillers:
                os.close(fd)
        assert outcome is None or outcome.errno == errno.EMFILE
        assert outcome is not None or free >= 5, "two pipes and a pidfd need as many"
        assert open_fds() == before
        assert children() <= others


class TestParentDeath:
    """`parent_death`: what becomes of a child when its parent is killed without a chance to act."""

    SCRIPT = """
        import asyncio, sys
        from vmgr.spawner import spawn
        async def main():
            command = ["sh", "-c", "echo $$; exec sleep 100"]
            child = await spawn(command, stdout=1, parent_death=sys.argv[1])
            await child.wait()
        asyncio.run(main())
    """

    def start(self, parent_death: str) -> tuple[subprocess.Popen[bytes], int]:
        parent = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(self.SCRIPT), parent_death],
            stdout=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(SRC)},
        )
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.stdout.close()
        return parent, child

    async def test_kill_ends_it(self) -> None:
        parent, child = await asyncio.to_thread(self.start, "kill")
        pidfd = os.pidfd_open(child)
        parent.kill()
        await asyncio.to_thread(parent.wait)
        await _readable(pidfd)
        os.close(pidfd)

    async def test_survive_leaves_it_running(self) -> None:
        parent, child = await asyncio.to_thread(self.start, "survive")
        started = start_time_of(child)
        parent.kill()
        await asyncio.to_thread(parent.wait)
        assert started is not None
        process = Process.adopt(child, started)
        assert process is not None
        process.kill()
        await process.wait()


class TestSpawnDetached:
    def test_gets_the_same_clean_start(self, stray_fd: int) -> None:
        read, write = os.pipe()
        pid = spawn_detached([*PYTHON, REPORT], env={"PATH": "/usr/bin:/bin"}, stdout=write)
        os.close(write)
        with os.fdopen(read, "rb") as out:
            seen = json.loads(out.read())
        assert stray_fd not in seen["fds"]
        assert (seen["cwd"], seen["umask"], seen["fds"]) == ("/", 0o077, [0, 1, 2])
        assert seen["sid"] == seen["pid"] == pid
        assert int(seen["blocked"], 16) == 0

    def test_a_launcher_that_stays_keeps_no_zombie(self) -> None:
        # It ends when we say so: one that had ended by the time `spawn_detached` returns would
        # have been reaped there and then.
        read, write = os.pipe()
        pid = spawn_detached(
            ["cat", f"/dev/fd/{read}"], env={"PATH": "/usr/bin:/bin"}, pass_fds=[read]
        )
        os.close(read)
        os.close(write)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert _exists(pid), "a zombie until the next start"
        subprocess.run(["true"], check=True)
        assert not _exists(pid)

    def test_not_found(self) -> None:
        with pytest.raises(FileNotFoundError):
            spawn_detached(["/nonexistent/program"], env={})


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def _spawn_and_hear(argv: list[str]) -> tuple[Process, int]:
    """Start a process and wait for its first line."""
    read, write = os.pipe()
    process = await spawn(argv, stdout=write)
    os.close(write)
    assert (await _read(read)).endswith(b"\n")
    return process, read


async def _read(fd: int) -> bytes:
    await _readable(fd)
    return os.read(fd, 100)


async def _readable(fd: int) -> None:
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, event.set)
    try:
        async with asyncio.timeout(30):
            await event.wait()
    finally:
        loop.remove_reader(fd)
