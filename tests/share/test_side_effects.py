"""What a machine reads sets off nothing on this computer: real automounts and a remote store.

Mounting needs root; the share server itself does nothing else for root.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.share import peer as p
from tests.share.peer import At, Peer

from vmgr.errors import UsageError
from vmgr.share import check_host

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
MNT_DETACH = 2
# linux/auto_fs.h: autofs_v5_packet begins with version, type and token; _IO(0x93, 0x61)
PACKET = 300
AUTOFS_IOC_FAIL = 0x9361


@contextlib.contextmanager
def unmounted(place: Path) -> Iterator[None]:
    try:
        yield
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(place), MNT_DETACH)


# -- automounts ------------------------------------------------------------------------------------


class Automounter:
    """Counts what a directory's automount is asked for, and has it fail."""

    def __init__(self, place: Path) -> None:
        self.asked = 0
        self._read, write = os.pipe()
        # Processes of this group are the automounter itself, and set off nothing.
        options = f"fd={write},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
        subprocess.run(
            ["mount", "-i", "-t", "autofs", "-o", options, "test", place],
            pass_fds=[write], check=True,
        )  # fmt: skip
        os.close(write)
        self._place = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while packet := os.read(self._read, 4096):
            token = struct.unpack_from("=iiI", packet)[2]
            self.asked += 1
            with contextlib.suppress(OSError):  # who asked may have gone
                fcntl.ioctl(self._place, AUTOFS_IOC_FAIL, token)

    def close(self) -> None:
        os.close(self._place)


@pytest.fixture
def automounter(tmp_path: Path) -> Iterator[Automounter]:
    place = tmp_path / "shared/sub/auto"
    place.mkdir(parents=True)
    with unmounted(place):
        made = Automounter(place)
        yield made
        made.close()


def others(place: Path) -> int:
    """Who goes on into the directory sets it off; its number of refusal."""
    script = "import os, sys\ntry: os.stat(sys.argv[1])\nexcept OSError as e: sys.exit(e.errno)"
    command = [sys.executable, "-c", script, str(place / "file")]
    return subprocess.run(command, check=False, start_new_session=True, timeout=60).returncode


def test_what_an_automounter_has_is_not_shared(automounter: Automounter, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is an automounter's"):
        check_host(str(tmp_path / "shared/sub/auto"), [])
    check_host(str(tmp_path / "shared/sub"), [])
    assert automounter.asked == 0


def test_a_machine_sets_off_no_automount(automounter: Automounter, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    with Peer(shared) as machine:
        sub = machine.at(b"sub")
        for opcode, body in (
            (p.LOOKUP, b"auto\0"),
            (p.UNLINK, b"auto\0"),
            (p.RMDIR, b"auto\0"),
        ):
            with pytest.raises(OSError) as error:  # noqa: PT011 (several numbers)
                machine.ask(opcode, sub, body)
            assert error.value.errno in {errno.EXDEV, errno.EBUSY, errno.EISDIR}
        for path in (b"sub/auto", b"sub/auto/file", b"sub/auto/a/b"):
            for opcode, body in (
                (p.LOOKUP, b"file\0"),
                (p.OPENDIR, struct.pack("<II", 0, 0)),
                (p.OPEN, struct.pack("<II", os.O_RDONLY, 0)),
                (p.GETATTR, struct.pack("<IIQ", 0, 0, 0)),
            ):
                with pytest.raises(OSError) as error:  # noqa: PT011
                    machine.ask(opcode, At(path, (1, 1)), body)
                assert error.value.errno == errno.ESTALE
        listing = machine.open(sub, opcode=p.OPENDIR)
        body = struct.pack("<QQIIQII", listing, 0, 4096, 0, 0, 0, 0)
        assert b"auto" in machine.ask(p.READDIRPLUS, sub, body)
    assert automounter.asked == 0
    assert others(shared / "sub/auto") != 0
    assert automounter.asked == 1, "it would have been set off"


# -- borders of file systems -----------------------------------------------------------------------


def test_a_machine_stays_on_its_file_system(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "test", mounted], check=True)
    with unmounted(mounted):
        (mounted / "file").touch()
        with Peer(tmp_path) as machine:
            for opcode, at, body in (
                (p.LOOKUP, p.TOP, b"mounted\0"),
                (p.LOOKUP, At(b"mounted", (1, 1)), b"file\0"),
                (p.OPEN, At(b"mounted/file", (1, 1)), struct.pack("<II", os.O_RDONLY, 0)),
                (p.RMDIR, p.TOP, b"mounted\0"),
            ):
                with pytest.raises(OSError) as error:  # noqa: PT011 (several numbers)
                    machine.ask(opcode, at, body)
                assert error.value.errno in {errno.EXDEV, errno.ESTALE, errno.EBUSY}
            with pytest.raises(OSError) as error:  # noqa: PT011
                machine.create(b"file", at=At(b"mounted", (1, 1)))
            assert error.value.errno == errno.ESTALE
        assert [file.name for file in mounted.iterdir()] == ["file"]


# -- placeholders ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "store"
    place.mkdir()
    program = Path(__file__).with_name("remote_store.py")
    process = subprocess.Popen([sys.executable, program, place])
    mounts = os.open("/proc/self/mounts", os.O_RDONLY)
    changed = select.poll()
    changed.register(mounts, select.POLLPRI)  # see proc(5): the table of mounts is another one
    with unmounted(place):
        while not os.path.ismount(place):
            assert process.poll() is None
            assert changed.poll(60_000)
        yield place
    os.close(mounts)
    assert process.wait(60) == 0


def test_a_machine_has_nothing_fetched(store: Path) -> None:
    with Peer(store) as machine:
        here, away, far = (machine.at(name) for name in (b"here", b"away", b"far"))
        assert machine.lookup(b"away").size == len("content"), "it is seen all the same"
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
            with pytest.raises(OSError) as error:  # noqa: PT011
                machine.open(away, flags)
            assert error.value.errno == errno.EREMOTE
        with pytest.raises(OSError) as error:  # noqa: PT011
            machine.open(far, opcode=p.OPENDIR)
        assert error.value.errno == errno.EREMOTE
        assert machine.read(machine.open(here)) == b"content"
    log = (store / "log").read_text().rstrip("\0").splitlines()
    assert log == ["open /here"]
