from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmgr.api import streams as s

from .peer import Connection, Peer
from .test_session import Terminal, ends

if TYPE_CHECKING:
    from .conftest import Command


def builds(connection: Connection) -> None:
    """Some progress, and a failure, so that nothing else is said on stdout."""
    connection.accept()
    connection.receive()
    for fraction in (0.1, 0.5, 0.9):
        connection.send(s.Progress(message="unpacking \x1b[2J", fraction=fraction))
    connection.send(s.Progress(message="packing"))
    connection.send(s.Failed(error=s.ErrorBody(code="error", message="it broke")))
    connection.close()


def test_without_a_terminal_each_step_is_a_line(vmgr: Command) -> None:
    with Peer(vmgr.paths.helper_socket, builds):
        done = vmgr("image", "build", "debian")
    assert done.stderr == "unpacking \ufffd[2J  10 %\npacking\nvmgr: it broke.\n"


def test_quiet(vmgr: Command) -> None:
    with Peer(vmgr.paths.helper_socket, builds):
        assert vmgr("image", "build", "-q", "debian").stderr == "vmgr: it broke.\n"


def test_on_a_terminal_it_is_one_line_that_goes_away(vmgr: Command) -> None:
    with Peer(vmgr.paths.helper_socket, builds):
        terminal = Terminal(vmgr, "image", "build", "debian", cols=20)
        shown = terminal.see(b"it broke.\r\n").decode()
        terminal.close()
    assert shown.startswith("\runpacking \ufffd[2J  10 \x1b[K")
    assert "\rpacking\x1b[K" in shown
    assert shown.endswith("\r\x1b[Kvmgr: it broke.\r\n")


@pytest.mark.parametrize("arguments", [["run", "--", "x"], ["exec", "web", "--", "x"]])
def test_what_is_quick_shows_nothing(vmgr: Command, arguments: list[str]) -> None:
    def script(connection: Connection) -> None:
        connection.accept()
        connection.receive()
        connection.send(s.Progress(message="booting"))
        connection.send(s.Started(machine="web", job=1))
        ends(connection, code=0)

    with Peer(vmgr.paths.helper_socket, script):
        assert vmgr(*arguments).stderr == ""
