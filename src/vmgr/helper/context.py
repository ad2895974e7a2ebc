"""What the helper makes of the process it was started as, whoever started it and however.

Called first, before any thread or child exists. Rules of the process model that are kept here:
signals are handled in the main module only, SIGPIPE is ignored, umask is 077, nothing of the
launcher's context (fds, working directory, terminal, signal mask, ignored signals) stays.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import stat
from typing import Final

__all__ = ["take_control"]

_NOFILE: Final = 65_536


def take_control(keep_fds: frozenset[int]) -> None:
    """Reset this process to what the helper relies on; of fds keep 0-2 and `keep_fds`."""
    _reset_signals()
    os.umask(0o077)
    os.chdir("/")
    _open_standard_fds()
    _close_others(keep_fds)
    # With the launcher's terminal gone from the session, its Ctrl-C and hang-up do not reach us.
    with contextlib.suppress(PermissionError):  # we lead a session already
        os.setsid()
    # A core file would hold memory of ours; children (the VMM: a guest's memory) inherit this.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _NOFILE if hard == resource.RLIM_INFINITY else min(hard, _NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _reset_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # Real-time signals 32 and 33 belong to the C library.
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _open_standard_fds() -> None:
    """Open 0, 1 and 2: no socket of ours may get a number that libraries print to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:  # pragma: no cover (the lowest free number is given)
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # noqa: FBT003 (the call takes no keyword)
    # A terminal on stdin would make us its reader.
    if stat.S_ISCHR(os.fstat(0).st_mode) and os.isatty(0):
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)


def _close_others(keep: frozenset[int]) -> None:
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 (numbers, not paths)
        if number > 2 and number not in keep:  # noqa: PLR2004 (0, 1, 2 are the standard fds)
            with contextlib.suppress(OSError):
                os.close(number)
