"""Real `vmgr` processes with real pipes, terminals and signals; the helper is a scripted peer."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import threading
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.api import streams as s
from vmgr.api.models import ErrorBody, ExitResult

from .peer import Connection, Peer, starts

if TYPE_CHECKING:
    from .conftest import Command


def ends(connection: Connection, **result: Any) -> None:
    """Say that the command has ended, and wait for the receipt."""
    connection.send(s.Exit(result=ExitResult(**result)))
    while connection.receive() is not None:
        pass
    connection.close()


def gone(connection: Connection) -> bool:
    """Wait until the client has closed."""
    try:
        while connection.receive() is not None:
            pass
    except OSError:
        pass
    return True


def test_output_input_and_exit_code_pass_through(vmgr: Command) -> None:
    asked: list[Any] = []

    def script(connection: Connection) -> None:
        asked.append((connection.target, starts(connection)))
        connection.output(b"out\n")
        connection.output(b"err\n", s.STDERR)
        assert connection.receive() == b"\x00some input"
        assert connection.receive() == {"type": "eof", "flow": 0}
        ends(connection, code=42)

    with Peer(vmgr.paths.helper_socket, script):
        done = vmgr(
            "exec", "-e", "A=1", "-e", "LANG", "-e", "NOT_SET", "-w", "/srv", "-u", "me:us",
            "web", "--", "sh", "-c", "x", input="some input",
        )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 42)
    ((target, start),) = asked
    assert target == "/v1/machines/web/exec"
    assert start["spec"] == {
        "argv": ["sh", "-c", "x"], "env": {"A": "1", "LANG": "C.UTF-8"}, "cwd": "/srv",
        "user": "me:us", "tty": None, "stdin": True, "login": False, "builtin": None,
        "detached": False,
        "secrets": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ErrorBody(code="exec-failed", message="no x", details={"exit_code": 127}), 127),
        (ErrorBody(code="exec-failed", message="no x", details={"exit_code": 126}), 126),
        (ErrorBody(code="wrong-state", message="web is stopped"), 125),
        (ErrorBody(code="usage", message="that is no name"), 2),
    ],
)
def test_failures_before_the_start_have_podmans_codes(
    vmgr: Command, error: ErrorBody, code: int
) -> None:
    def script(connection: Connection) -> None:
        connection.accept()
        connection.receive()
        connection.send(s.Failed(error=error))
        connection.close()

    with Peer(vmgr.paths.helper_socket, script):
        done = vmgr("exec", "web", "--", "x")
    assert (done.returncode, done.stderr) == (code, f"vmgr: {error.message}.\n")


def test_a_command_that_a_signal_ended(vmgr: Command) -> None:
    def script(connection: Connection) -> None:
        starts(connection)
        ends(connection, signal=15)

    with Peer(vmgr.paths.helper_socket, script):
        assert vmgr("exec", "web", "--", "x").returncode == 143


def test_a_stuck_reader_gets_no_more_than_the_window_and_loses_nothing(vmgr: Command) -> None:
    """Credit is for what has been written out: the command waits for the reader, not memory."""
    total = 3 * s.OUTPUT_WINDOW
    sent = []
    stuck = threading.Event()

    def script(connection: Connection) -> None:
        starts(connection)
        limit, count = s.INITIAL_CREDIT, 0
        connection.socket.settimeout(1)
        while count < total:
            while count < min(limit, total):
                size = min(limit, total, count + s.MAX_DATA) - count
                connection.output(bytes(size))
                count += size
            try:
                message = connection.receive()
            except TimeoutError:
                sent.append(count)
                stuck.set()
                connection.socket.settimeout(30)
                continue
            if message["type"] == "credit":
                limit = message["limit"]
        ends(connection, code=0)

    with Peer(vmgr.paths.helper_socket, script):
        process = vmgr.start("exec", "-n", "web", "--", "x")
        assert process.stdout is not None
        assert stuck.wait(30)
        assert sent[0] <= s.OUTPUT_WINDOW + 2 * s.INITIAL_CREDIT
        assert len(process.stdout.read()) == total
        assert process.wait(30) == 0
        process.communicate()


def test_a_reader_that_goes_hangs_up_the_command_quietly(vmgr: Command) -> None:
    hung_up: list[bool] = []

    def script(connection: Connection) -> None:
        starts(connection)
        connection.output(b"line\n")
        hung_up.append(gone(connection))

    read, write = os.pipe()
    with Peer(vmgr.paths.helper_socket, script):
        os.close(read)
        process = vmgr.start("exec", "-n", "web", "--", "x", stdout=write)
        os.close(write)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr, hung_up) == (141, b"", [True])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_are_the_commands(vmgr: Command, number: signal.Signals) -> None:
    def script(connection: Connection) -> None:
        starts(connection)
        assert connection.receive() == {"type": "eof", "flow": 0}
        connection.output(b"ready\n")
        assert connection.receive() == {"type": "signal", "signal": number}
        ends(connection, signal=int(number))

    with Peer(vmgr.paths.helper_socket, script):
        process = vmgr.start("exec", "-n", "web", "--", "x")
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        process.communicate()


def test_a_second_ctrl_c_ends_it_whatever_the_command_makes_of_the_first(vmgr: Command) -> None:
    hung_up: list[bool] = []
    first = threading.Event()

    def script(connection: Connection) -> None:
        starts(connection)
        assert connection.receive() == {"type": "eof", "flow": 0}
        connection.output(b"ready\n")
        assert connection.receive() == {"type": "signal", "signal": 2}
        first.set()
        hung_up.append(gone(connection))

    with Peer(vmgr.paths.helper_socket, script):
        process = vmgr.start("exec", "-n", "web", "--", "x")
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert first.wait(30)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        process.communicate()
    assert hung_up == [True]


def test_ctrl_c_before_the_start_cancels_with_one_line(vmgr: Command) -> None:
    hung_up: list[bool] = []
    booting = threading.Event()

    def script(connection: Connection) -> None:
        connection.accept()
        assert connection.receive()["type"] == "run"
        connection.send(s.Progress(message="booting"))
        booting.set()
        hung_up.append(gone(connection))
        connection.close()

    with Peer(vmgr.paths.helper_socket, script):
        process = vmgr.start("run", "--", "x")
        assert booting.wait(30)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr, hung_up) == (130, b"vmgr: cancelled.\n", [True])


def test_a_helper_killed_amid_a_command(vmgr: Command) -> None:
    def dies(connection: Connection) -> None:
        starts(connection)
        connection.output(b"one ")
        assert connection.receive() == b"\x00input"
        connection.vanish()

    def goes_on(connection: Connection) -> None:
        connection.accept()
        assert connection.receive() == {
            "type": "attach", "stdin_sent": 5, "stdout_received": 4, "stderr_received": 0,
        }  # fmt: skip
        connection.send(s.Started(machine="web", job=7, stdin_received=3, stdout_from=4))
        assert connection.receive() == b"\x00ut"
        connection.output(b"two\n")
        ends(connection, code=0)

    with Peer(vmgr.paths.helper_socket, dies, goes_on):
        process = vmgr.start("exec", "web", "--", "x")
        assert process.stdin is not None
        process.stdin.write(b"input")
        process.stdin.flush()
        assert process.stdout is not None
        assert process.stdout.readline() == b"one two\n"
        process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.parametrize(("code", "expected"), [(0, 125), (3, 3)])
def test_lost_output_is_no_success(vmgr: Command, code: int, expected: int) -> None:
    def dies(connection: Connection) -> None:
        starts(connection)
        connection.vanish()

    def goes_on(connection: Connection) -> None:
        connection.accept()
        connection.receive()
        connection.send(s.Started(machine="web", job=7, stdout_from=1000))
        ends(connection, code=code)

    with Peer(vmgr.paths.helper_socket, dies, goes_on):
        done = vmgr("exec", "-n", "web", "--", "x")
    assert done.returncode == expected
    assert done.stderr == "vmgr: 1000 bytes of output were dropped while nobody was attached\n"


def test_a_detached_command_is_a_number(vmgr: Command) -> None:
    def script(connection: Connection) -> None:
        start = starts(connection, job=12)
        assert start["spec"]["detached"] is True
        assert start["spec"]["stdin"] is False
        assert connection.receive() == {"type": "detach"}
        gone(connection)

    with Peer(vmgr.paths.helper_socket, script):
        done = vmgr("exec", "-d", "web", "--", "sleep", "1000")
    assert (done.returncode, done.stdout) == (0, "12\n")


class Terminal:
    """A terminal with a person at it, and `vmgr` running on it."""

    def __init__(self, vmgr: Command, *arguments: str, rows: int = 33, cols: int = 111) -> None:
        self.master, slave = pty.openpty()
        self.slave = slave
        self.resize(rows, cols)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            vmgr.argv(*arguments),
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=vmgr.environment,
        )  # fmt: skip

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, cols, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def see(self, text: bytes) -> bytes:
        """Read what is shown until `text` is."""
        shown = b""
        while text not in shown:
            assert select.select([self.master], [], [], 30)[0], shown
            shown += os.read(self.master, 4096)
        return shown

    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        self.process.wait(30)
        os.close(self.master)
        os.close(self.slave)


def test_a_shell_on_a_terminal(vmgr: Command) -> None:
    asked: list[Any] = []
    resized = threading.Event()

    def script(connection: Connection) -> None:
        asked.append(starts(connection)["spec"])
        assert connection.receive() == {"type": "resize", "rows": 33, "cols": 111}
        connection.output(b"$ ")
        assert connection.receive() == b"\x00\x03\x1a\x1c\x04\r"
        connection.output(b"keys\r\n")
        assert connection.receive() == {"type": "resize", "rows": 50, "cols": 200}
        resized.set()
        ends(connection, code=5)

    with Peer(vmgr.paths.helper_socket, script):
        terminal = Terminal(vmgr, "shell", "web")
        terminal.see(b"$ ")
        assert not terminal.restored()
        terminal.type(
            b"\x03\x1a\x1c\x04\r"
        )  # Ctrl-C, Ctrl-Z, Ctrl-\, Ctrl-D, Enter: all the guest's
        terminal.see(b"keys\r\n")
        terminal.resize(50, 200)
        terminal.process.send_signal(signal.SIGWINCH)
        assert resized.wait(30)
        assert terminal.process.wait(30) == 5
        assert terminal.restored()
        terminal.close()
    assert asked == [{
        "argv": [], "env": {"TERM": "xterm-256color", "LANG": "C.UTF-8"}, "cwd": None,
        "user": None, "tty": {"rows": 33, "cols": 111}, "stdin": True, "login": True,
        "builtin": None, "detached": False, "secrets": [],
    }]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_when_we_are_told_to_go(
    vmgr: Command, number: signal.Signals
) -> None:
    def script(connection: Connection) -> None:
        starts(connection)
        connection.output(b"$ ")
        gone(connection)

    with Peer(vmgr.paths.helper_socket, script):
        terminal = Terminal(vmgr, "shell", "web")
        terminal.see(b"$ ")
        terminal.process.send_signal(number)
        assert terminal.process.wait(30) == 128 + number
        assert terminal.restored()
        terminal.close()


def test_the_terminal_is_restored_before_an_error_is_shown(vmgr: Command) -> None:
    def script(connection: Connection) -> None:
        starts(connection)
        connection.output(b"$ ")
        error = ErrorBody(code="machine-failed", message="web ended: its VMM was killed")
        connection.send(s.Failed(error=error))
        gone(connection)

    with Peer(vmgr.paths.helper_socket, script):
        terminal = Terminal(vmgr, "shell", "web")
        terminal.see(
            b"vmgr: web ended: its VMM was killed.\r\n"
        )  # \r: by a terminal that is cooked
        assert terminal.process.wait(30) == 125
        assert terminal.restored()
        terminal.close()


def test_ctrl_c_while_a_terminals_machine_boots_is_ours(vmgr: Command) -> None:
    booting = threading.Event()

    def script(connection: Connection) -> None:
        connection.accept()
        connection.receive()
        booting.set()
        gone(connection)
        connection.close()

    with Peer(vmgr.paths.helper_socket, script):
        terminal = Terminal(vmgr, "run")
        assert booting.wait(30)
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.see(b"vmgr: cancelled.\r\n")
        assert terminal.process.wait(30) == 130
        assert terminal.restored()
        terminal.close()


def test_a_terminal_fed_by_a_pipe_ends_its_input_with_ctrl_d(vmgr: Command) -> None:
    def script(connection: Connection) -> None:
        starts(connection)
        got = b""
        while (message := connection.receive()) != {"type": "eof", "flow": 0}:
            got += message[1:]
        assert got == b"no newline\x04\x04"
        ends(connection, code=0)

    with Peer(vmgr.paths.helper_socket, script):
        assert vmgr("exec", "-t", "web", "--", "cat", input="no newline").returncode == 0
