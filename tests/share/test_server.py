"""The share server and a machine that keeps to no rules: what it may reach, and whose that is."""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.share import peer as p
from tests.share.peer import TOP, At, Peer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the shared one, with a file that nobody may reach."""
    made = tmp_path / "outside"
    made.mkdir()
    (made / "secret").write_text("secret")
    return made


@pytest.fixture
def shared(tmp_path: Path, outside: Path) -> Path:
    made = tmp_path / "shared"
    made.mkdir()
    (made / "file").write_text("content")
    (made / "sub").mkdir()
    (made / "sub/inner").write_text("inner")
    (made / "link").symlink_to(outside)
    (made / "up").symlink_to("..")
    return made


@pytest.fixture
def peer(shared: Path) -> Iterator[Peer]:
    with Peer(shared) as made:
        yield made


def open_files(peer: Peer) -> int:
    """How many files the server has open."""
    return len(list(Path(f"/proc/{peer.process.pid}/fd").iterdir()))


def refused(error: pytest.ExceptionInfo[OSError], *numbers: int) -> bool:
    return error.value.errno in numbers


# -- confinement -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        b"..", b"../outside", b"/", b"/etc", b"sub/../../outside", b"link", b"link/secret", b"up",
        b"up/outside/secret", b"sub/../link", b"./../outside", b"proc/self/root", b"sub//../..",
        b"\xff/..", b"sub\0/..",
    ],
)  # fmt: skip
@pytest.mark.parametrize("opcode", [p.LOOKUP, p.OPENDIR, p.OPEN, p.UNLINK, p.MKDIR])
def test_no_path_leads_out(peer: Peer, outside: Path, path: bytes, opcode: int) -> None:
    bodies = {
        p.OPEN: struct.pack("<II", os.O_RDWR, 0),
        p.OPENDIR: struct.pack("<II", 0, 0),
        p.MKDIR: struct.pack("<II", 0o755, 0) + b"made\0",
    }
    found = outside.stat()
    for identity in ((0, 0), (found.st_ino, 1)):
        with pytest.raises(OSError) as error:  # noqa: PT011 (several numbers; see below)
            peer.ask(opcode, At(path, identity), bodies.get(opcode, b"secret\0"), handle=99)
        assert refused(error, errno.ESTALE, errno.EINVAL, errno.EACCES)
    assert [path.name for path in outside.iterdir()] == ["secret"]


@pytest.mark.parametrize("name", [b"..", b".", b"", b"sub/inner", b"/etc", b"../outside"])
def test_a_name_is_one_name(peer: Peer, name: bytes) -> None:
    for opcode, body in (
        (p.LOOKUP, name + b"\0"),
        (p.UNLINK, name + b"\0"),
        (p.RMDIR, name + b"\0"),
        (p.MKDIR, struct.pack("<II", 0o755, 0) + name + b"\0"),
        (p.SYMLINK, name + b"\0target\0"),
        (p.CREATE, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + name + b"\0"),
    ):
        with pytest.raises(OSError, match="Invalid argument"):
            peer.ask(opcode, TOP, body, handle=50)
    with pytest.raises(OSError, match="Invalid argument"):
        peer.ask(p.RENAME, TOP, bytes(8) + b"file\0" + name + b"\0", second=TOP)


def test_a_link_is_only_a_link(peer: Peer, outside: Path) -> None:
    link = peer.at(b"link")
    assert peer.ask(p.READLINK, link) == os.fsencode(outside)
    with pytest.raises(OSError, match="not supported"):
        peer.open(link)
    with pytest.raises(OSError, match=r"Too many|Stale|Not a directory"):
        peer.lookup(b"secret", link)


def test_a_directory_that_becomes_a_link_is_not_followed(
    peer: Peer, shared: Path, outside: Path
) -> None:
    sub = peer.at(b"sub")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (shared / "sub").rename(shared / "aside")
            (shared / "sub").symlink_to(outside)
            (shared / "sub").unlink()
            (shared / "aside").rename(shared / "sub")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(500):
            try:
                seen = peer.lookup(b"inner", sub).size
            except OSError as error:
                seen = error.errno or 0
            assert seen in {len("inner"), errno.ESTALE}
            with pytest.raises(OSError, match=r"Stale|No such"):
                peer.lookup(b"secret", sub)
    finally:
        stop.set()
        swapping.join()


def test_a_directory_that_was_moved_out_is_not_followed(
    peer: Peer, shared: Path, outside: Path
) -> None:
    sub = peer.at(b"sub")
    handle = peer.open(sub, opcode=p.OPENDIR)
    (shared / "sub").rename(outside / "moved")
    with pytest.raises(OSError, match="Stale"):
        peer.lookup(b"inner", sub)
    with pytest.raises(OSError, match="Stale"):
        peer.ask(p.READDIR, sub, struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0))
    # Another one of its name is another one.
    (shared / "sub").mkdir()
    with pytest.raises(OSError, match="Stale"):
        peer.lookup(b"inner", sub)


def test_only_regular_files_are_opened(peer: Peer, shared: Path) -> None:
    os.mkfifo(shared / "pipe")
    pipe = peer.at(b"pipe")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        with pytest.raises(OSError, match="not supported"):
            peer.open(pipe, flags)


def test_a_read_only_share_changes_nothing(shared: Path) -> None:
    with Peer(shared, "--read-only") as peer:
        file = peer.at(b"file")
        assert peer.read(peer.open(file)) == b"content"
        for opcode, body in (
            (p.MKDIR, struct.pack("<II", 0o755, 0) + b"made\0"),
            (p.UNLINK, b"file\0"),
            (p.CREATE, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"new\0"),
            (p.SETATTR, bytes(88)),
            (p.OPEN, struct.pack("<II", os.O_RDWR, 0)),
            (p.OPEN, struct.pack("<II", os.O_TRUNC, 0)),
            (p.SETXATTR, struct.pack("<II", 1, 0) + b"user.x\0y"),
        ):
            with pytest.raises(OSError, match="Read-only file system"):
                peer.ask(opcode, TOP if opcode != p.OPEN else file, body, handle=60)
        # Not by opening again what was open before, either.
        peer.send(2, file, handle=61, body=struct.pack("<II", os.O_RDWR, 0))
        with pytest.raises(OSError, match="Read-only file system"):
            peer.ask(p.WRITE, file, struct.pack("<QQIIQII", 61, 0, 1, 0, 0, 0, 0) + b"x")
    assert (shared / "file").read_text() == "content"


def test_it_ends_on_what_is_no_frame(shared: Path) -> None:
    peer = Peer(shared)
    peer.socket.sendall(b"\xff" * 64)
    assert peer.process.wait(30) == 1
    peer.socket.close()


def test_only_calls_that_files_take_are_left_to_it(peer: Peer) -> None:
    peer.lookup(b"file")  # it serves
    for task in Path(f"/proc/{peer.process.pid}/task").iterdir():
        status = dict(
            line.split(":", 1) for line in (task / "status").read_text().splitlines() if ":" in line
        )
        assert (status["Seccomp"].strip(), status["NoNewPrivs"].strip()) == ("2", "1")


def test_what_was_sent_to_an_earlier_server_is_skipped(shared: Path) -> None:
    with Peer(shared, before=os.urandom(300_000) + p.KEY[:31]) as peer:
        assert peer.lookup(b"file").size == len("content")


# -- whose files are whose -------------------------------------------------------------------------


def test_what_is_made_is_the_persons_with_exactly_that_mode(peer: Peer, shared: Path) -> None:
    for uid, mode in ((1000, 0o666), (0, 0o640), (1234, 0o4755), (1000, 0o6777), (1000, 0o000)):
        name = f"{uid}-{mode:o}"
        _, made = peer.create(name.encode(), mode, uid=uid)
        assert (made.uid, made.gid, stat.S_IMODE(made.mode)) == (uid, uid, mode)
        assert peer.lookup(name.encode()) == made
        found = (shared / name).stat()
        assert stat.S_IMODE(found.st_mode) == mode & 0o1777
        assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
    assert "user.vmgr.stat" not in os.listxattr(shared / "1000-666")


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_file_that_nobody_may_read_keeps_its_owner(peer: Peer, shared: Path, uid: int) -> None:
    """Extended attributes are not read either without that right."""
    peer.create(b"shadow", 0o000, uid=uid)
    at = peer.at(b"shadow")
    readable = 0o400 if uid == 0 else 0
    for mode in (0o000, 0o640, 0o044, 0o4111, 0o000):
        body = (
            struct.pack("<IIQQQ", 1, 0, 0, 0, 0)
            + bytes(36)
            + struct.pack("<IIIII", mode, 0, 0, 0, 0)
        )
        peer.ask(p.SETATTR, at, body)
        seen = peer.lookup(b"shadow")
        assert (seen.uid, stat.S_IMODE(seen.mode)) == (uid, mode)
        # What the host must not have, it has not; what has a record is to be read.
        kept = readable or (0o400 if mode & 0o6000 else 0)
        assert stat.S_IMODE((shared / "shadow").stat().st_mode) == mode & 0o1777 | kept


def test_devices_are_empty_files_here(peer: Peer, shared: Path) -> None:
    body = struct.pack("<IIII", stat.S_IFBLK | 0o660, 0x801, 0, 0) + b"disk\0"
    made = p.Entry.read(peer.ask(p.MKNOD, TOP, body, uid=0))
    assert (made.mode, made.rdev) == (stat.S_IFBLK | 0o660, 0x801)
    found = (shared / "disk").lstat()
    assert (stat.S_ISREG(found.st_mode), found.st_size) == (True, 0)
    assert os.getxattr(shared / "disk", "user.vmgr.stat") == b"1 0 0 60000 2049"


def test_the_record_is_not_the_machines_to_write(peer: Peer) -> None:
    file = peer.at(b"file")
    body = struct.pack("<II", 11, 0) + b"user.vmgr.stat\x001 0 0 - -  "
    with pytest.raises(OSError, match="not permitted"):
        peer.ask(p.SETXATTR, file, body)
    peer.ask(p.SETXATTR, file, struct.pack("<II", 5, 0) + b"user.mine\0value")
    assert peer.ask(p.GETXATTR, file, struct.pack("<II", 100, 0) + b"user.mine\0") == b"value"
    assert peer.ask(p.LISTXATTR, file, struct.pack("<II", 100, 0)) == b"user.mine\0"
    for name in (b"security.capability\0", b"system.posix_acl_access\0", b"trusted.x\0"):
        with pytest.raises(OSError, match="not supported"):
            peer.ask(p.SETXATTR, file, struct.pack("<II", 1, 0) + name + b"x")


def test_files_of_others_are_nobodys(shared: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make another's file")
    os.chown(shared / "file", 33, 33)
    with Peer(shared) as peer:
        found = peer.lookup(b"file")
        assert (found.uid, found.gid) == (65_534, 65_534)


# -- servers that follow one another ---------------------------------------------------------------


def test_what_was_open_is_open_again(shared: Path) -> None:
    with Peer(shared) as first:
        file = first.at(b"file")
    with Peer(shared) as second:
        second.send(2, file, handle=1_000, body=struct.pack("<II", os.O_RDWR | os.O_TRUNC, 0))
        assert second.read(1_000) == b"content"
        with pytest.raises(OSError, match="Stale"):
            second.read(1_001)


def test_handles_are_bounded_and_come_back(shared: Path) -> None:
    with Peer(shared) as peer:
        file = peer.at(b"file")
        before = open_files(peer)
        handles = [peer.open(file) for _ in range(200)]
        assert open_files(peer) == before + 200
        for handle in handles:
            peer.ask(p.RELEASE, file, struct.pack("<QIIQ", handle, 0, 0, 0))
        assert open_files(peer) == before


def test_names_that_are_walked_leave_nothing_open(peer: Peer, shared: Path) -> None:
    for number in range(300):
        (shared / f"f{number}").touch()
    before = open_files(peer)
    top = peer.open(TOP, opcode=p.OPENDIR)
    body = struct.pack("<QQIIQII", top, 0, 65_536, 0, 0, 0, 0)
    assert len(peer.ask(p.READDIRPLUS, TOP, body)) > 300 * 150
    assert open_files(peer) == before + 1
