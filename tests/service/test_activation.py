from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import StateError
from vmgr.service.activation import Activation, Notifier, listening_socket, take_activation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def receiver(address: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(address)
    made.settimeout(30)
    return made


def test_what_is_meant_for_us_is_taken_and_no_child_sees_it() -> None:
    environ = {
        "LISTEN_PID": "42", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/x",
        "NOTIFY_SOCKET": "/run/notify", "WATCHDOG_PID": "42", "WATCHDOG_USEC": "3000000",
    }  # fmt: skip
    found = take_activation(environ, 42)
    assert found.fds == (3, 4)
    assert found.watchdog == 3
    assert found.managed
    assert found.notifier.listened_to
    assert environ == {"HOME": "/x"}


def test_what_is_meant_for_another_process_is_not_taken_up() -> None:
    environ = {
        "LISTEN_PID": "41", "LISTEN_FDS": "1", "WATCHDOG_PID": "41", "WATCHDOG_USEC": "1"
    }  # fmt: skip
    found = take_activation(environ, 42)
    assert (found.fds, found.watchdog, found.managed) == ((), None, False)
    assert environ == {}


@pytest.mark.parametrize("count", ["", "-1", "x", "\u0663", "1e9"])
def test_nonsense_is_no_activation(count: str) -> None:
    environ = {"LISTEN_PID": "42", "LISTEN_FDS": count, "WATCHDOG_USEC": count}
    found = take_activation(environ, 42)
    assert (found.fds, found.watchdog) == ((), None)


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, *, abstract: bool) -> None:
    name = f"vmgr-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with receiver("\0" + name if abstract else name) as listening:
        notifier = Notifier("@" + name if abstract else name)
        notifier.status("two\nlines")
        notifier.ready()
        notifier.alive()
        notifier.stopping()
        told = [listening.recv(100) for _ in range(4)]
        notifier.close()
        notifier.ready()
    assert told == [b"STATUS=two", b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


@pytest.mark.parametrize("address", [None, "", "x", "/nowhere/at/all", "vsock:2:3"])
def test_nobody_listens(address: str | None) -> None:
    notifier = Notifier(address)
    notifier.ready()
    notifier.close()


def test_a_manager_that_does_not_read_holds_nobody(tmp_path: Path) -> None:
    with receiver(str(tmp_path / "notify")):
        notifier = Notifier(str(tmp_path / "notify"))
        for _ in range(10_000):
            notifier.alive()
        notifier.close()


@pytest.fixture
def handed(tmp_path: Path) -> Iterator[socket.socket]:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(tmp_path / "helper.sock"))
    yield made
    made.close()


def activation(fd: int) -> Activation:
    return Activation((os.dup(fd),), Notifier(None), None)


def test_a_listening_socket_is_taken(handed: socket.socket, tmp_path: Path) -> None:
    handed.listen()
    taken = listening_socket(activation(handed.fileno()), tmp_path / "helper.sock")
    assert taken is not None
    assert not taken.get_inheritable()
    assert taken.gettimeout() == 0
    taken.close()


def test_nothing_was_handed_over(tmp_path: Path) -> None:
    assert listening_socket(Activation((), Notifier(None), None), tmp_path) is None


def test_anything_else_is_refused(handed: socket.socket, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="did not hand over"):  # it does not listen
        listening_socket(activation(handed.fileno()), tmp_path / "helper.sock")
    handed.listen()
    with pytest.raises(StateError, match="did not hand over"):  # elsewhere
        listening_socket(activation(handed.fileno()), tmp_path / "other.sock")
    with socket.socket() as tcp:
        tcp.listen()
        with pytest.raises(StateError, match="did not hand over"):
            listening_socket(activation(tcp.fileno()), tmp_path / "helper.sock")
    read, write = os.pipe()
    try:
        with pytest.raises(StateError, match="did not hand over"):
            listening_socket(activation(read), tmp_path / "helper.sock")
    finally:
        os.close(read)
        os.close(write)
