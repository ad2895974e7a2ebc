"""`vmgr cp` as a process. The machine's side of each builtin is this host's tar, in a directory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.api import streams as s
from vmgr.api.models import ErrorBody, ExitResult
from vmgr.cli.verbs.cp import Place, place

from .peer import Connection, Peer

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..conftest import Command  # noqa: TID252 (the tests have no name of their own)


def kind(path: Path) -> str:
    return "dir" if path.is_dir() else "file" if path.is_file() else "missing"


class Guest:
    """A directory that plays a machine's root, and the builtins over it."""

    def __init__(self, root: Path, *, damage: Callable[[bytes], bytes] = bytes) -> None:
        self.root = root
        self.damage = damage
        self.asked: list[list[str]] = []

    def path(self, text: str) -> Path:
        return self.root / text.lstrip("/")

    def __call__(self, connection: Connection) -> None:
        assert connection.target == "/v1/machines/web/exec"
        connection.accept()
        spec = connection.receive()["spec"]
        assert spec["builtin"] == spec["argv"][0]
        connection.send(s.Started(machine="web", job=1))
        self.asked.append(spec["argv"])
        builtin, *arguments = spec["argv"]
        arguments = [a for a in arguments if a != "--"]
        code = getattr(self, builtin)(connection, *arguments)
        with contextlib.suppress(ConnectionError):  # it may have seen enough
            connection.send(s.Exit(result=ExitResult(code=code)))
            while connection.receive() is not None:
                pass
        connection.close()

    def stat(self, connection: Connection, path: str) -> int:
        connection.output(json.dumps({"kind": kind(self.path(path)), "size": 1}).encode() + b"\n")
        return 0

    def pack(self, connection: Connection, path: str) -> int:
        target = self.path(path)
        if kind(target) == "missing":
            connection.output(f"{path}: No such file or directory\n".encode(), s.STDERR)
            self.send(connection, bytes(1024))
            return 1
        command = ["tar", "--format=pax", "-C", str(target.parent), "-cf", "-", target.name]
        self.send(connection, self.damage(subprocess.check_output(command)))
        return 0

    def read(self, connection: Connection, path: str) -> int:
        self.send(connection, self.path(path).read_bytes())
        return 0

    def unpack(self, connection: Connection, path: str) -> int:
        command = ["tar", "-C", str(self.path(path)), "-xpf", "-"]
        return subprocess.run(command, input=self.take(connection), check=False).returncode

    def write(self, connection: Connection, path: str) -> int:
        self.path(path).write_bytes(self.take(connection))
        return 0

    def send(self, connection: Connection, data: bytes) -> None:
        sent, limit = 0, s.INITIAL_CREDIT
        while sent < len(data):
            size = min(limit - sent, s.MAX_DATA, len(data) - sent)
            if size:
                connection.output(data[sent : sent + size])
                sent += size
            else:
                message: Any = connection.receive()
                if message is not None and message["type"] == "credit":
                    limit = message["limit"]

    def take(self, connection: Connection) -> bytes:
        data = b""
        while isinstance(message := connection.receive(), bytes):
            data += message[1:]
            credit = s.Credit(flow=0, acked=len(data), limit=len(data) + s.STDIN_WINDOW)
            connection.send(credit)
        assert message == {"type": "eof", "flow": 0}
        return data


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    (tmp_path / "guest/srv").mkdir(parents=True)
    (tmp_path / "guest/etc").mkdir()
    (tmp_path / "guest/etc/motd").write_bytes(b"welcome\n" * 100_000)
    return Guest(tmp_path / "guest")


def make_host(tmp_path: Path) -> Path:
    (tmp_path / "host/tree/sub").mkdir(parents=True)
    (tmp_path / "host/tree/file").write_bytes(os.urandom(700_000))
    (tmp_path / "host/tree/file").chmod(0o751)
    (tmp_path / "host/tree/sub/link").symlink_to("../file")
    (tmp_path / "host/one").write_text("1")
    return tmp_path / "host"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return make_host(tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("web:/etc", Place("web", "/etc")),
        ("web:", Place("web", ".")),
        ("web:a:b", Place("web", "a:b")),
        ("./a:b", Place(None, "./a:b")),
        ("/a:b", Place(None, "/a:b")),
        ("a", Place(None, "a")),
        (":a", Place(None, ":a")),
        ("-", Place(None, "-")),
    ],
)
def test_sides(text: str, found: Place) -> None:
    assert place(text) == found


def test_a_tree_into_a_directory_and_back(vmgr: Command, guest: Guest, host: Path) -> None:
    with Peer(vmgr.paths.helper_socket, *[guest] * 2):
        done = vmgr("cp", "tree", "web:/srv", cwd=host)
    assert (done.returncode, done.stderr) == (0, "")
    assert (guest.root / "srv/tree/file").read_bytes() == (host / "tree/file").read_bytes()
    with Peer(vmgr.paths.helper_socket, guest):
        done = vmgr("cp", "web:/srv/tree", "back", cwd=host)
    assert (done.returncode, done.stderr) == (0, "")
    for path in (host / "tree").rglob("*"):
        twin = host / "back" / path.relative_to(host / "tree")
        assert twin.lstat().st_mode == path.lstat().st_mode
        assert twin.lstat().st_mtime_ns == path.lstat().st_mtime_ns
    assert (host / "back/sub/link").readlink() == Path("../file")
    assert (host / "back/file").read_bytes() == (host / "tree/file").read_bytes()


def test_a_file_under_a_new_name_both_ways(vmgr: Command, guest: Guest, host: Path) -> None:
    with Peer(vmgr.paths.helper_socket, *[guest] * 4):
        assert vmgr("cp", "one", "web:/srv/uno", cwd=host).returncode == 0
        assert vmgr("cp", "web:/srv/uno", "eins", cwd=host).returncode == 0
    assert (guest.root / "srv/uno").read_text() == "1"
    assert (host / "eins").read_text() == "1"


def test_several_into_a_directory(vmgr: Command, guest: Guest, host: Path) -> None:
    with Peer(vmgr.paths.helper_socket, *[guest] * 2):
        assert vmgr("cp", "one", "tree/", "web:/srv", cwd=host).returncode == 0
    assert (guest.root / "srv/one").read_text() == "1"
    assert (guest.root / "srv/tree/sub/link").is_symlink()


def test_a_named_link_is_followed_unless_archived(vmgr: Command, guest: Guest, host: Path) -> None:
    (host / "alias").symlink_to("one")
    with Peer(vmgr.paths.helper_socket, *[guest] * 4):
        assert vmgr("cp", "alias", "web:/srv", cwd=host).returncode == 0
        assert not (guest.root / "srv/alias").is_symlink()
        assert (guest.root / "srv/alias").read_text() == "1"
        assert vmgr("cp", "-a", "alias", "web:/srv", cwd=host).returncode == 0
        assert (guest.root / "srv/alias").is_symlink()


def test_stdin_and_stdout(vmgr: Command, guest: Guest) -> None:
    with Peer(vmgr.paths.helper_socket, *[guest] * 3):
        assert vmgr("cp", "-", "web:/srv/new", input="from a pipe").returncode == 0
        done = vmgr("cp", "web:/etc/motd", "-")
    assert (guest.root / "srv/new").read_text() == "from a pipe"
    assert done.stdout == "welcome\n" * 100_000


@pytest.mark.parametrize(
    ("arguments", "outcome", "calls"),
    [
        (["a", "b"], (2, "neither side of the copy is in a machine"), 0),
        (["gone", "web:/srv"], (1, "cannot read gone: No such file or directory"), 0),
        (["one", "tree", "web:/new"], (1, "web:/new is not a directory"), 1),
        (["one", "web:/no/such/file"], (1, "web:/no/such is not a directory"), 2),
        (["one", "web:/etc/motd/"], (1, "web:/etc/motd/ is not a directory"), 1),
        (["tree", "web:/etc/motd"], (2, "web:/etc/motd is there and is not a directory"), 1),
        (["web:/etc/motd", "no/such/file"], (1, "no/such is not a directory"), 0),
        (["-", "web:/srv"], (2, "web:/srv is a directory"), 1),
    ],
)
def test_what_cannot_be_copied(
    vmgr: Command, guest: Guest, arguments: list[str], outcome: tuple[int, str], calls: int
) -> None:
    host = make_host(guest.root.parent)
    code, message = outcome
    with Peer(vmgr.paths.helper_socket, *[guest] * calls):
        done = vmgr("cp", *arguments, cwd=host)
    assert done.stderr.splitlines()[0] == f"vmgr: {message}."
    assert done.returncode == code
    assert sorted(p.name for p in host.iterdir()) == ["one", "tree"]


def test_a_file_that_is_not_in_the_machine(vmgr: Command, guest: Guest, host: Path) -> None:
    with Peer(vmgr.paths.helper_socket, guest):
        done = vmgr("cp", "web:/gone", ".", cwd=host)
    assert (done.returncode, done.stderr) == (1, "vmgr: /gone: No such file or directory\n")


def test_what_can_be_copied_is_and_the_rest_is_named(
    vmgr: Command, guest: Guest, host: Path
) -> None:
    os.mkfifo(host / "tree/pipe")
    with Peer(vmgr.paths.helper_socket, *[guest] * 2):
        done = vmgr("cp", "tree", "web:/srv", cwd=host)
    assert done.returncode == 1
    assert done.stderr == (
        f"vmgr: {host}/tree/pipe: it is a device, a pipe or a socket, and was left out\n"
    )
    assert (guest.root / "srv/tree/file").exists()


def test_a_machine_that_sends_other_names_gets_nowhere(
    vmgr: Command, guest: Guest, host: Path
) -> None:
    def evil(_: bytes) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name in (".bashrc", "../.bashrc", "/tmp/evil"):  # noqa: S108 (that is the point)
                tar.addfile(tarfile.TarInfo(name))
        return out.getvalue()

    guest.damage = evil
    with Peer(vmgr.paths.helper_socket, guest):
        done = vmgr("cp", "web:/etc/motd", ".", cwd=host)
    assert done.returncode == 1
    assert sorted(p.name for p in host.iterdir()) == ["motd", "one", "tree"]
    assert not Path(tempfile.gettempdir(), "evil").exists()


def test_a_machine_that_sends_nonsense(vmgr: Command, guest: Guest, host: Path) -> None:
    guest.damage = lambda data: b"\x07" * 1024 + data[:0]
    with Peer(vmgr.paths.helper_socket, guest):
        done = vmgr("cp", "web:/etc/motd", ".", cwd=host)
    assert done.returncode == 1
    assert done.stderr.startswith("vmgr: what the machine sent is not a tar archive: ")


def test_a_machine_that_fails_amid_the_copy(vmgr: Command, host: Path) -> None:
    def dies(connection: Connection) -> None:
        connection.accept()
        connection.receive()
        connection.send(s.Started(machine="web", job=1))
        connection.output(bytes(100))
        error = ErrorBody(code="machine-failed", message="web ended: its VMM was killed")
        connection.send(s.Failed(error=error))
        connection.close()

    with Peer(vmgr.paths.helper_socket, dies):
        done = vmgr("cp", "web:/etc/motd", ".", cwd=host)
    assert (done.returncode, done.stderr) == (1, "vmgr: web ended: its VMM was killed.\n")
    assert sorted(p.name for p in host.iterdir()) == ["one", "tree"]


def test_the_machines_own_failure_is_passed_on(vmgr: Command, host: Path, guest: Guest) -> None:
    (guest.root / "srv/one").mkdir()
    (guest.root / "srv/one/keep").touch()
    with Peer(vmgr.paths.helper_socket, *[guest] * 2):
        done = vmgr("cp", "one", "web:/srv", cwd=host)
    assert done.returncode == 1
    assert done.stderr == "vmgr: the machine's side of the copy failed with 2\n"
