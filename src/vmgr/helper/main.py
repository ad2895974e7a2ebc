"""The helper's main module: takes the lock and the socket, runs the loop, handles signals.

Order of steps: take control of the process → directories → lock → log → database → reconcile →
listen → say ready. Nothing is visible to a client before all of it has worked, and whoever started
us hears in one line why it has not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import faulthandler
import fcntl
import logging
import os
import queue
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from vmgr._version import __version__
from vmgr.errors import ConflictError, StateError, VmgrError, broken_installation
from vmgr.helper import crash, watchdog
from vmgr.helper.context import take_control
from vmgr.helper.logfile import LogFile
from vmgr.paths import Paths
from vmgr.service.activation import listening_socket, take_activation
from vmgr.service.holder import end_holder

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from vmgr.service.activation import Activation, Notifier

__all__ = ["main"]

EXIT_CRASH = 70  # EX_SOFTWARE, see sysexits.h
_HANDOVER_DEADLINE = 45.0  # seconds; a helper that stops finishes removals that are under way
log = logging.getLogger(__name__)


def main() -> NoReturn:
    """Run the helper; the process ends with it."""
    parser = argparse.ArgumentParser(prog="vmgr-helper", description="The helper of vmgr.")
    parser.add_argument(
        "--ready-fd", type=int, help="write `ready`, or `error: JSON`, to this fd and close it"
    )
    options = parser.parse_args()
    activation = take_activation(os.environ, os.getpid())
    keep = frozenset() if options.ready_fd is None else frozenset({options.ready_fd})
    take_control(keep | set(activation.fds))
    if activation.watchdog is not None:
        faulthandler.enable()  # by SIGABRT the watchdog ends us: where we hang is for the journal
    ready = _Ready(options.ready_fd, activation.notifier)
    try:
        paths = Paths.from_environment()
        paths.ensure()
        handed = listening_socket(activation, paths.helper_socket)
        lock = _take_lock(paths, take_over=handed is not None)
    except VmgrError as error:
        ready.failed(error)
        sys.exit(1)
    logfile = LogFile(paths.helper_log)
    if options.ready_fd is not None:
        _let_go_of_stderr()  # the launcher's, for what goes wrong until here
    fatal = _Fatal(paths, logfile)
    fatal.install()
    fatal.on_crash = ready.failed
    try:
        asyncio.run(_serve(paths, ready, fatal, activation, handed))
    except VmgrError as error:
        log.error("cannot start: %s", error)  # noqa: TRY400 (the sentence says it all)
        ready.failed(error)
        status = 1
    except ModuleNotFoundError as error:
        log.error("cannot start: %s", error)  # noqa: TRY400 (no bug of ours: a file is gone)
        ready.failed(broken_installation(error.name))
        status = 1
    except BaseException as error:  # noqa: BLE001 (the end of the line: report and exit)
        fatal(error)
    else:
        status = 0
    log.info("helper %d ends", os.getpid())
    logfile.close()
    os.close(lock)
    sys.exit(status)


def _let_go_of_stderr() -> None:
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)


class _Ready:
    """Tells the launcher, or the service manager, how starting went, once."""

    def __init__(self, fd: int | None, notifier: Notifier) -> None:
        self._fd = fd
        self._notifier = notifier

    def done(self) -> None:
        self._notifier.ready()
        self._say(b"ready\n")

    def failed(self, error: VmgrError) -> None:
        # Not by way of the server: it may be what cannot be imported.
        from vmgr.api.models import ErrorBody

        self._notifier.status(error.message)
        if self._fd is None:
            print(f"vmgr-helper: {error}", file=sys.stderr)  # noqa: T201 (run by hand)
        body = ErrorBody(
            code=error.code, message=error.message, next_step=error.next_step, details=error.details
        )
        self._say(b"error: " + msgspec.json.encode(body) + b"\n")

    def _say(self, line: bytes) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, line)
            os.close(self._fd)
            self._fd = None


class _Fatal:
    """Rule 6: an uncaught error anywhere ends the helper with a report. Machines go on."""

    def __init__(self, paths: Paths, logfile: LogFile) -> None:
        self._paths = paths
        self._logfile = logfile
        self._once = threading.Lock()
        self.on_crash: Callable[[VmgrError], None] | None = None
        """Told of a crash; until the helper is ready, that is who waits for it."""

    def install(self) -> None:
        sys.excepthook = lambda _type, error, _trace: self(error)
        threading.excepthook = lambda args: self(args.exc_value or RuntimeError(str(args)))

    def on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
            log.error("out of file descriptors: %s", context.get("message"))
            return
        if error is None:  # the loop's remarks on unclosed things: worth a line, not a life
            log.error("event loop: %s", context.get("message"))
            return
        self(error)

    def __call__(self, error: BaseException) -> NoReturn:
        if not self._once.acquire(blocking=False):
            os._exit(EXIT_CRASH)
        try:
            log.critical("crashed", exc_info=error)
            with contextlib.suppress(queue.Full):  # the report matters more than the log's end
                self._logfile.close()
            report = crash.write_report(self._paths.crashes, error, self._logfile.recent())
            if self.on_crash is not None:
                problem = f"the helper crashed while starting: {type(error).__name__}"
                self.on_crash(StateError(problem, next_step=f"report it with {report}"))
        finally:
            os._exit(EXIT_CRASH)


def _take_lock(paths: Paths, *, take_over: bool) -> int:
    """Hold the helper's lock while this process lives, however it ends.

    Args:
        take_over: clients reach us and no longer a helper that holds it, so have that one end.

    Raises:
        ConflictError: another helper runs.
    """
    try:
        fd = os.open(
            paths.helper_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        raise StateError(
            f"cannot open {paths.helper_lock}: {error.strerror}",
            next_step="check the rights of that directory and the free disk space",
        ) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not take_over or not end_holder(paths.helper_lock, _HANDOVER_DEADLINE):
                raise
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ConflictError("a helper is running already") from None
    return fd


def _listen(paths: Paths) -> socket.socket:
    """Listen on our socket. The lock is ours, so a file in its place is a dead helper's."""
    path = paths.helper_socket
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listening.bind(os.fspath(path))
        listening.listen(128)
        # Now, not before: a client that waits for us to listen is woken by it. Between the two the
        # umask has kept others out.
        path.chmod(0o600)
        listening.settimeout(0)
    except OSError as error:
        listening.close()
        raise StateError(f"cannot listen on {path}: {error.strerror}") from error
    return listening


async def _serve(
    paths: Paths,
    ready: _Ready,
    fatal: _Fatal,
    activation: Activation,
    handed: socket.socket | None,
) -> None:
    # aiohttp and the rest are imported once the cheap ways to fail are behind us.
    from vmgr.helper.api import Api
    from vmgr.helper.helper import Helper
    from vmgr.helper.reachable import inode_of, stop_when_unreachable
    from vmgr.helper.server import make_application, serve

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(fatal.on_loop_error)
    log.info("helper %d starts, version %s", os.getpid(), __version__)
    helper = Helper(paths, fatal, activation)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, helper.request_stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # a terminal's end is no reason to end
    try:
        await helper.start()
        listening = _listen(paths) if handed is None else handed
        inode = inode_of(paths.helper_socket)
        runner = await serve(make_application(Api(helper)), listening)
        log.info(
            "listening on %s%s", paths.helper_socket, "" if handed is None else ", for systemd"
        )
        if watchdog.wanted():
            watchdog.install()
        ready.done()
        fatal.on_crash = None
        helper.watchers.start(
            stop_when_unreachable(paths.helper_socket, inode, helper.request_stop),
            name="can we be reached",
        )
        try:
            await helper.wait_for_stop()
        finally:
            activation.notifier.stopping()
            # systemd's stays, and so does one that has taken the place of ours.
            if handed is None and inode_of(paths.helper_socket) == inode:
                paths.helper_socket.unlink(missing_ok=True)
            helper.request_stop()  # whatever ended the wait
            helper.events.close()
            await runner.cleanup()
    finally:
        await helper.close()
