from __future__ import annotations

import socket
import stat
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import ConflictError, StateError
from vmgr.paths import MachinePaths
from vmgr.vmm.sockets import listening

if TYPE_CHECKING:
    from pathlib import Path


def test_private_listening_and_not_inherited(directory: Path) -> None:
    paths = MachinePaths(directory / "state", directory / "run")
    with listening(paths) as made:
        assert stat.S_IMODE(paths.runtime.stat().st_mode) == 0o700
        for listener, path in (
            (made.qmp, paths.qmp_socket),
            (made.agent, paths.agent_socket),
            (made.console, paths.console_socket),
        ):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert not listener.get_inheritable()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        assert made.fds.qmp == made.qmp.fileno()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(paths.qmp_socket))


def test_what_a_dead_vmm_left_is_replaced(directory: Path) -> None:
    paths = MachinePaths(directory / "state", directory / "run")
    for _ in range(2):
        with listening(paths) as made, socket.socket(socket.AF_UNIX) as client:
            client.connect(str(paths.agent_socket))
            made.agent.accept()[0].close()


def test_the_sockets_of_a_vmm_that_runs_are_left_to_it(directory: Path) -> None:
    paths = MachinePaths(directory / "state", directory / "run")
    with listening(paths) as made:
        for _ in range(3):  # its backlog of one may be taken
            with pytest.raises(ConflictError, match="a VMM still listens at "), listening(paths):
                pass
        made.qmp.accept()[0].close()


def test_a_path_too_long_for_a_socket_is_one_sentence(directory: Path) -> None:
    paths = MachinePaths(directory / "state", directory / ("x" * 100))
    expected = r"cannot make the socket .*/qmp\.sock: AF_UNIX path too long"
    with pytest.raises(StateError, match=expected), listening(paths):
        pass
