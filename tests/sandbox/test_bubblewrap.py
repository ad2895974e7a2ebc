"""The command line, and what a program in the sandbox really sees of this host."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from vmgr.sandbox import Need, bubblewrap_argv, find_bubblewrap
from vmgr.sandbox.libraries import program_need
from vmgr.spawner import Completed, run

SETPRIV = Path(shutil.which("setpriv") or "/usr/bin/setpriv")
LIB_IS_A_LINK = Path("/lib").is_symlink()
PYTHON = Path("/usr/bin/python3").resolve()


def argv(need: Need, *command: str) -> list[str]:
    found = find_bubblewrap()
    assert found is not None, "bubblewrap is one of the packages that ./dev installs"
    return bubblewrap_argv(found, need, command, setpriv=SETPRIV)


def options(need: Need) -> str:
    return " ".join(bubblewrap_argv(Path("/usr/bin/bwrap"), need, ["/p"], setpriv=SETPRIV))


def test_nothing_is_shared_unless_it_is_asked_for() -> None:
    line = options(Need())
    for word in ("user", "pid", "ipc", "uts", "net"):
        assert f"--unshare-{word}" in line
    assert "--cap-drop ALL" in line
    assert "--die-with-parent" not in line, "machines outlive the helper"
    assert "--proc" not in line
    assert "--unshare-net" not in options(Need(network=True))


def test_what_lies_in_a_directory_that_is_seen_is_not_named_again() -> None:
    line = options(Need(read_only=(Path("/a/b"), Path("/a"), Path("/a/../a/c"), Path("/ab"))))
    assert "--ro-bind /a /a --ro-bind /ab /ab" in line
    assert "/a/b" not in line
    assert "/a/c" not in line


def test_needs_add_up() -> None:
    both = Need((Path("/a"),)) + Need(
        (Path("/b"),), (Path("/w"),), (Path("/dev/kvm"),), network=True
    )
    assert both == Need((Path("/a"), Path("/b")), (Path("/w"),), (Path("/dev/kvm"),), network=True)


# -- seen from within ----------------------------------------------------------------------------

LOOK = r"""
import ctypes, json, os, socket, sys
def tree(at="/"):
    found = []
    for where, directories, files in os.walk(at):
        directories[:] = [d for d in directories if os.path.join(where, d) not in sys.argv[2:]]
        found += [os.path.join(where, name) for name in files]
    return found
def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return type(error).__name__
    return None
libc = ctypes.CDLL(None, use_errno=True)
probe = socket.socket()
print(json.dumps({
    "files": tree(), "pid": os.getpid(), "uid": os.getuid(), "sid": os.getsid(0),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "root": refused(open, "/new", "w"), "own": refused(open, sys.argv[1] + "/kept", "w"),
    "chown": refused(os.chown, sys.argv[1] + "/kept", 12345, 12345),
    "listener": refused(probe.connect, ("127.0.0.1", int(os.environ["PORT"]))),
    "unshare": libc.unshare(0x00020000), "mount": libc.mount(b"none", b"/", b"tmpfs", 0, 0),
    "prctl": [libc.prctl(39, 0, 0, 0, 0)],
}))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a file of its own and one that must not be seen beside it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    (tmp_path / "secret").write_text("not for machines")
    return tmp_path


async def look(place: Path, need: Need) -> tuple[dict[str, Any], Completed]:
    import socket

    program = await program_need(PYTHON, Path("/usr/lib/python3.11"), Path("/usr/lib/python3"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        skipped = [str(p) for p in program.read_only if p.is_dir()]
        done = await run(
            argv(
                program + need, str(PYTHON), "-I", "-S", "-c", LOOK, str(place / "mine"), *skipped
            ),
            env={"PATH": "/usr/bin:/bin", "PORT": str(port)},
        )
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen, done


@pytest.mark.skipif(not PYTHON.name.startswith("python3.11"), reason="needs Debian 12's Python")
async def test_a_program_sees_what_it_was_given_and_nothing_else(place: Path) -> None:
    seen, _ = await look(place, Need(writable=(place / "mine",)))
    files = {f for f in seen["files"] if not f.startswith("/lib")}
    expected = {
        str(PYTHON), str(SETPRIV), "/dev/null", "/dev/urandom", "/etc/ld.so.cache",
        str(place / "mine/file"),
    }  # fmt: skip
    assert files == expected
    assert (seen["pid"], seen["sid"]) == (1, 1)
    assert seen["uid"] == os.getuid()
    assert seen["interfaces"] == ["lo"], "a loopback of its own"
    assert seen["listener"] == "ConnectionRefusedError", "not the host's"
    assert seen["own"] is None
    assert (place / "mine/kept").exists()
    assert seen["root"] == "OSError", "the root is read-only"
    assert seen["chown"] in {"OSError", "PermissionError"}
    assert seen["mount"] == -1
    assert seen["unshare"] == -1
    assert seen["prctl"] == [1], "no new privileges"


@pytest.mark.skipif(not PYTHON.name.startswith("python3.11"), reason="needs Debian 12's Python")
async def test_what_is_read_only_cannot_be_written(place: Path) -> None:
    seen, _ = await look(place, Need(read_only=(place / "mine",)))
    assert seen["own"] == "OSError"
    assert not (place / "mine/kept").exists()


async def test_libraries_are_found_under_both_names() -> None:
    """Where /lib links to /usr/lib: the loader says the one, modules are opened by the other."""
    need = await program_need(PYTHON)
    names = set(map(str, need.read_only))
    assert str(PYTHON) in names
    if LIB_IS_A_LINK:
        assert any(name.startswith("/lib/") for name in names)
        assert any(name.startswith("/usr/lib/") for name in names)
