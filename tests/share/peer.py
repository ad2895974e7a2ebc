"""The machine's end of a share server, so that tests can be a machine that keeps to no rules."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmgr.agent_binary import find_share_server

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

LOOKUP, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR = 1, 3, 4, 5, 6, 8, 9
UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, RELEASE = 10, 11, 12, 13, 14, 15, 16, 18
SETXATTR, GETXATTR, LISTXATTR, OPENDIR, READDIR, CREATE = 21, 22, 23, 27, 28, 35
READDIRPLUS, RENAME2 = 44, 45
HEADER = struct.Struct("<IB3xHH4x5Q")
KEY = bytes(range(32))


@dataclass(frozen=True)
class Entry:
    """A file as an answer tells of it."""

    ino: int
    generation: int
    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    nlink: int

    @classmethod
    def read(cls, entry: bytes) -> Entry:
        _, generation = struct.unpack_from("<QQ", entry)
        ino, size = struct.unpack_from("<QQ", entry, 40)
        mode, nlink, uid, gid, rdev = struct.unpack_from("<5I", entry, 40 + 60)
        return cls(ino, generation, mode, uid, gid, rdev, size, nlink)

    @property
    def identity(self) -> tuple[int, int]:
        return self.ino, self.generation


@dataclass(frozen=True)
class At:
    """A directory or file, as requests name it."""

    path: bytes = b""
    identity: tuple[int, int] = (0, 0)


TOP = At()


class Peer:
    """A machine whose default user is 1000 and that asks one thing after the other."""

    def __init__(self, directory: Path, *options: str, before: bytes = b"") -> None:
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        os.write(write, KEY)
        os.close(write)
        self.socket = ours
        self.process = subprocess.Popen(
            [
                find_share_server(), "--stream-fd", str(theirs.fileno()), "--key-fd", str(read),
                *options, directory,
            ],
            pass_fds=(theirs.fileno(), read),
            start_new_session=True,  # as the helper starts it
        )  # fmt: skip
        theirs.close()
        os.close(read)
        ours.sendall(before + KEY)
        assert self._exactly(len(KEY)) == KEY
        self.send(1, TOP, body=struct.pack("<III", 1, 1000, 1000))
        self._handles = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        assert self.process.wait(30) == 0

    def send(
        self, kind: int, at: At | None, second: At | None = None, handle: int = 0, body: bytes = b""
    ) -> None:
        """A frame."""
        at, other = at or At(b""), second or At(b"")
        lengths = (len(at.path), len(other.path) if second else 0xFFFF)
        length = HEADER.size + len(at.path) + len(other.path) + len(body)
        header = HEADER.pack(length, kind, *lengths, handle, *at.identity, *other.identity)
        self.socket.sendall(header + at.path + other.path + body)

    def ask(
        self,
        opcode: int,
        at: At,
        body: bytes = b"",
        *,
        second: At | None = None,
        handle: int = 0,
        uid: int = 1000,
    ) -> bytes:
        """A request's answer.

        Raises:
            OSError: it is refused.
        """
        request = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 7, 1, uid, uid, 1, 0, 0)
        self.send(0, at, second, handle, request + body)
        length, error, unique = struct.unpack("<IiQ", self._exactly(16))
        answer = self._exactly(length - 16)
        assert unique == 7
        if error:
            raise OSError(-error, os.strerror(-error))
        return answer

    def lookup(self, name: bytes, at: At = TOP) -> Entry:
        return Entry.read(self.ask(LOOKUP, at, name + b"\0"))

    def at(self, name: bytes, under: At = TOP) -> At:
        """Something by its name."""
        found = self.lookup(name, under)
        path = under.path + b"/" + name if under.path else name
        return At(path, found.identity)

    def create(
        self, name: bytes, mode: int = 0o644, at: At = TOP, flags: int = os.O_RDWR, uid: int = 1000
    ) -> tuple[int, Entry]:
        """A handle of a new file, and the file."""
        self._handles += 1
        body = struct.pack("<IIII", flags, mode, 0, 0) + name + b"\0"
        answer = self.ask(CREATE, at, body, handle=self._handles, uid=uid)
        return self._handles, Entry.read(answer)

    def open(self, at: At, flags: int = os.O_RDONLY, opcode: int = OPEN) -> int:
        self._handles += 1
        self.ask(opcode, at, struct.pack("<II", flags, 0), handle=self._handles)
        return self._handles

    def read(self, handle: int, size: int = 65_536) -> bytes:
        return self.ask(READ, TOP, struct.pack("<QQIIQII", handle, 0, size, 0, 0, 0, 0))

    def _exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            part = self.socket.recv(count - len(got))
            assert part, "the server has ended"
            got += part
        return got
