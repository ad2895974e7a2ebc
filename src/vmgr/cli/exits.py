"""The one place where exceptions become exit codes and sentences on stderr."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from vmgr.cli.output import problem
from vmgr.errors import (
    CancelledByUserError,
    ExecError,
    UsageError,
    VmgrError,
    broken_installation,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CRASHED", "INTERRUPTED", "OWN_FAILURE", "PIPE_CLOSED", "guarded"]

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE
OWN_FAILURE: Final = 125  # of vmgr, where other codes are a command's; as docker and podman do
CRASHED: Final = 70  # EX_SOFTWARE, see sysexits.h
_KEPT_REPORTS: Final = 10


def guarded(  # noqa: PLR0911 (one for each kind of end)
    action: Callable[[], int], *, own_failure: int = 1
) -> int:
    """Do `action` and give its exit code, or report what it raised and give the code for that.

    Args:
        action: what to do.
        own_failure: the code for failures that have none of their own.
    """
    try:
        code = action()
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
        return PIPE_CLOSED
    except VmgrError as error:
        problem(error)
        return _code_of(error, own_failure)
    except KeyboardInterrupt:
        problem(CancelledByUserError("interrupted"))
        return INTERRUPTED
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        problem(VmgrError(f"{where}{error.strerror or error}"))
        return own_failure
    except Exception as error:  # noqa: BLE001 (the last resort: no traceback on the screen)
        if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
            # Python's way of keeping what it was given as bytes.
            refused = UsageError(
                "an argument is not UTF-8", next_step="name it otherwise, or rename the file"
            )
            problem(refused)
            return refused.exit_code
        if isinstance(error, ModuleNotFoundError):
            problem(broken_installation(error.name))
            return own_failure
        problem(VmgrError(f"vmgr has a bug: {type(error).__name__}", next_step=_saved(error)))
        return CRASHED if own_failure == 1 else own_failure
    return code


def _code_of(error: VmgrError, own_failure: int) -> int:
    if isinstance(error, UsageError | ExecError | CancelledByUserError):
        return error.exit_code
    return own_failure


def _abandon_stdout() -> None:
    # What is still buffered would raise again when Python ends.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _saved(error: BaseException) -> str:
    """Keep the trace in the state directory; says where."""
    import time
    import traceback

    from vmgr._version import __version__
    from vmgr.paths import Paths

    trace = "".join(traceback.format_exception(error))
    text = f"vmgr {__version__} on Python {sys.version}\n\n{trace}"
    try:
        paths = Paths.from_environment()
        paths.ensure()
        name = f"cli-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.txt"
        path = os.path.join(paths.state, name)  # noqa: PTH118 (as plain as can be, amid a crash)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        # The newest ones are kept, as of the helper's.
        for old in sorted(paths.state.glob("cli-*.txt"))[:-_KEPT_REPORTS]:
            old.unlink(missing_ok=True)
    except (OSError, VmgrError):
        return "report it; its details could not be saved"
    return f"report it with {path}"
