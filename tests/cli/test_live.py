"""The live screen on a pseudo-terminal, in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = """
import signal
from vmgr.cli.live import LiveScreen
signal.signal(signal.SIGINT, signal.default_int_handler)  # as vmgr.cli.main does
with LiveScreen() as screen:
    try:
        while True:
            screen.draw(["first line", "x" * 200, *["more"] * 100, "never seen"])
            woken = screen.wait(60)
            if woken == "quit":
                break
    except KeyboardInterrupt:
        woken = "interrupted"
print("ended by", woken)
"""
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    """A terminal of 10 rows and 40 columns with the program on it."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.openpty()
        self.resize(10, 40)
        self.before = termios.tcgetattr(self.theirs)
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=self.theirs, stdout=self.theirs, stderr=self.theirs, start_new_session=True,
        )  # fmt: skip

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def read_until(self, text: bytes) -> bytes:
        """What was shown up to `text`, after what was read before."""
        while text not in self.seen:
            assert select.select([self.ours], [], [], 60)[0], self.seen
            self.seen += os.read(self.ours, 65_536)
        shown, _, self.seen = self.seen.partition(text)
        return shown

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(30)
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def drawn(terminal: Terminal) -> list[bytes]:
    terminal.read_until(b"\x1b[H")
    return terminal.read_until(b"\x1b[J").split(b"\r\n")


def test_it_draws_what_there_is_room_for(terminal: Terminal) -> None:
    lines = drawn(terminal)
    assert lines[:2] == [b"first line\x1b[K", b"x" * 40 + b"\x1b[K"]
    assert len(lines) == 10


def test_it_is_drawn_again_for_another_size(terminal: Terminal) -> None:
    drawn(terminal)
    terminal.resize(20, 60)
    terminal.process.send_signal(signal.SIGWINCH)  # it is not its session's terminal
    lines = drawn(terminal)
    assert lines[1] == b"x" * 60 + b"\x1b[K"
    assert len(lines) == 20


@pytest.mark.parametrize(
    ("how", "told"),
    [(b"q", b"quit"), (b"zQ", b"quit"), (signal.SIGTERM, b"quit"), (signal.SIGINT, b"interrupted")],
)
def test_the_terminal_is_given_back(
    terminal: Terminal, how: bytes | signal.Signals, told: bytes
) -> None:
    terminal.read_until(ENTER)
    drawn(terminal)
    assert termios.tcgetattr(terminal.theirs) != terminal.before
    if isinstance(how, bytes):
        os.write(terminal.ours, how)
    else:
        terminal.process.send_signal(how)
    terminal.read_until(LEAVE)
    terminal.read_until(b"ended by " + told)
    assert terminal.process.wait(30) == 0
    assert termios.tcgetattr(terminal.theirs) == terminal.before
