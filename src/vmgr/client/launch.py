"""Finding the helper, or starting it.

A client connects first. Only when nothing listens does it take the launch lock, look again (another
client may have been quicker), and start the helper as design rule 9 asks: a session of its own, `/`
as working directory, a small environment, and exactly one inherited fd, the pipe on which the
helper says that it is ready or why it is not. Files that a dead helper left are the next helper's
business.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.api.models import ErrorBody
from vmgr.errors import (
    ConflictError,
    HelperUnavailableError,
    VmgrError,
    broken_installation,
    error_from_wire,
)
from vmgr.service.environment import helper_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmgr.paths import Paths

__all__ = ["connect", "ensure", "start"]

READY_DEADLINE: Final = 60.0  # a slow disk, a loaded host, many machines to take back
_READY_MAX: Final = 65_536
_SAID_MAX: Final = 300
_PEERCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid; see unix(7)


def connect(paths: Paths, timeout: float | None = None) -> socket.socket | None:
    """Connect to the helper; None when none listens.

    Args:
        paths: where the socket is.
        timeout: seconds that each later operation on the socket may take.

    Raises:
        HelperUnavailableError: the socket is another user's, or cannot be reached.
    """
    path = os.fspath(paths.helper_socket)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout)
        connection.connect(path)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        _pid, owner, _gid = _PEERCRED.unpack(credentials)
        _refuse_foreign(path, owner)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        _refuse_foreign_file(path)
        return None
    except OSError as error:
        connection.close()
        _refuse_foreign_file(path)
        raise HelperUnavailableError(
            f"cannot connect to the helper at {path}: {error.strerror or 'it does not answer'}",
            next_step='see "vmgr helper logs"',
        ) from error
    except BaseException:
        connection.close()
        raise
    return connection


def ensure(paths: Paths, timeout: float | None = None) -> socket.socket:
    """Connect to the helper, which is started when none runs.

    Raises:
        HelperUnavailableError: it could not be started or does not answer.
        VmgrError: the reason that the helper gave for not starting.
    """
    connection = connect(paths, timeout)
    if connection is not None:
        return connection
    paths.ensure()
    with _locked(paths):
        connection = connect(paths, timeout)
        if connection is None:
            connection = _start(paths, timeout) or connect(paths, timeout)
    if connection is None:
        raise HelperUnavailableError(
            "the helper ended right after it had started", next_step=_see_log(paths)
        )
    return connection


def start(paths: Paths) -> None:
    """Start a helper, whoever listens on its socket already, and wait until it is ready.

    Raises:
        HelperUnavailableError: it could not be started.
        VmgrError: the reason that the helper gave for not starting.
    """
    paths.ensure()
    with _locked(paths):
        _start_once(paths)


# -- machinery -----------------------------------------------------------------------------------


def _start(paths: Paths, timeout: float | None) -> socket.socket | None:
    """Start the helper; returns when it listens, or another one does (then connected to it)."""
    try:
        _start_once(paths)
    except ConflictError as error:
        # One holds the lock and does not listen: it is stopping, and its end frees the lock, or
        # its launcher was killed while it starts.
        connection = _wait_for_other(paths, READY_DEADLINE, timeout, error)
        if connection is not None:
            return connection
        _start_once(paths)
    return None


def _start_once(paths: Paths) -> None:
    from vmgr.spawner import spawn_detached

    ready, told = os.pipe2(os.O_CLOEXEC)
    # What it says before it has a log. A file and not a pipe: nobody has to read it.
    said = os.memfd_create("vmgr-helper-stderr", os.MFD_CLOEXEC)
    try:
        try:
            # -P: the working directory is no place to import from.
            spawn_detached(
                [sys.executable, "-P", "-m", "vmgr.helper", "--ready-fd", str(told)],
                env=helper_environment(os.environ),
                pass_fds=(told,),
                stderr=said,
            )
        except OSError as error:
            raise HelperUnavailableError(
                f"cannot start the helper: {error.strerror}",
                next_step=f"check that {sys.executable} can be run",
            ) from error
        finally:
            os.close(told)
        line = _read_line(ready, READY_DEADLINE)
        last = _last_line(said) if line == b"" else ""
    finally:
        os.close(ready)
        os.close(said)
    if line == b"ready":
        return
    kind, _, rest = line.partition(b": ")
    if kind == b"error":
        raise _told(rest)
    if line == b"":
        if missing := re.fullmatch(r"ModuleNotFoundError: No module named '([\w.]+)'", last):
            raise broken_installation(missing[1])
        raise HelperUnavailableError(
            "the helper ended while it was starting" + (f": {last}" if last else ""),
            next_step=_see_log(paths),
        )
    raise HelperUnavailableError(
        "the helper said something unexpected while it was starting", next_step=_see_log(paths)
    )


def _read_line(fd: int, deadline: float) -> bytes:
    """The first line that arrives on `fd`; what there was of it when the other end closed."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    until = time.monotonic() + deadline
    line = b""
    while b"\n" not in line and len(line) < _READY_MAX:
        left = until - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise HelperUnavailableError(
                f"the helper did not get ready within {deadline:.0f} s",
                next_step='see "vmgr helper logs", then try again',
            )
        chunk = os.read(fd, _READY_MAX)
        if not chunk:
            break
        line += chunk
    return line.partition(b"\n")[0]


def _last_line(fd: int) -> str:
    """The last line of a file, as far as it is for a sentence."""
    start = max(0, os.fstat(fd).st_size - _READY_MAX)
    lines = os.pread(fd, _READY_MAX, start).decode(errors="replace").strip().splitlines()
    return lines[-1].strip().rstrip(".")[:_SAID_MAX] if lines else ""


def _told(body: bytes) -> VmgrError:
    try:
        error = msgspec.json.decode(body, type=ErrorBody)
    except msgspec.MsgspecError:
        return HelperUnavailableError("the helper could not start and did not say why")
    return error_from_wire(error.code, error.message, error.next_step, error.details)


@contextlib.contextmanager
def _locked(paths: Paths) -> Iterator[None]:
    """Hold the launch lock; its holder ends by itself (its waits have deadlines)."""
    fd = os.open(paths.launch_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _wait_for_other(
    paths: Paths, deadline: float, timeout: float | None, cause: ConflictError
) -> socket.socket | None:
    """Wait for the running helper to listen, which gives a connection, or to end, which gives None.

    Raises:
        HelperUnavailableError: neither within `deadline` seconds.
    """
    from vmgr.client.watch import changes_in

    until = time.monotonic() + deadline
    with contextlib.ExitStack() as stack:
        ended = _end_of_lock(paths)
        stack.callback(os.close, ended)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        changes = None
        with contextlib.suppress(OSError):  # without it the end is still seen
            changes = stack.enter_context(changes_in(paths.helper_socket.parent))
            poll.register(changes, select.POLLIN)
        while True:
            # After the watch began, so that nothing falls between the two.
            if (connection := connect(paths, timeout)) is not None:
                return connection
            left = until - time.monotonic()
            ready = dict(poll.poll(left * 1000)) if left > 0 else {}
            if not ready:
                raise HelperUnavailableError(
                    "a helper runs but does not answer", next_step=_see_log(paths)
                ) from cause
            if ended in ready:
                return None
            if changes is not None:
                os.read(changes, _READY_MAX)


def _end_of_lock(paths: Paths) -> int:
    """An fd that has its end of file once nobody holds the helper's lock.

    flock(2) cannot be polled for, so a thread of its own waits.
    """
    import threading

    read, write = os.pipe2(os.O_CLOEXEC)

    def wait() -> None:
        try:
            fd = os.open(paths.helper_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
            finally:
                os.close(fd)
        finally:
            os.close(write)

    threading.Thread(target=wait, name="vmgr-helper-end", daemon=True).start()
    return read


def _refuse_foreign_file(path: str) -> None:
    try:
        owner = os.lstat(path).st_uid
    except OSError:
        return
    _refuse_foreign(path, owner)


def _refuse_foreign(path: str, owner: int) -> None:
    if owner != os.getuid():
        raise HelperUnavailableError(
            f"the helper's socket {path} belongs to another user (uid {owner})",
            next_step="set XDG_RUNTIME_DIR or VMGR_HOME to a directory of your own",
        )


def _see_log(paths: Paths) -> str:
    if not paths.helper_log.exists():
        return "see what is missing with: vmgr doctor"
    return f"see {paths.helper_log}"
