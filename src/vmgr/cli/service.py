"""What `vmgr helper install` and `uninstall` do, and the unit of the session."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from vmgr.cli.connection import client
from vmgr.client import launch
from vmgr.errors import ConflictError, HelperUnavailableError, StateError, UnsupportedError
from vmgr.identity import SERVICE_UNIT, SESSION_UNIT, SOCKET_UNIT, UNITS
from vmgr.service.holder import lock_holder
from vmgr.service.systemd import (
    has_user_manager,
    installed_socket,
    is_installed,
    lingers,
    systemctl,
    unit_directory,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmgr.paths import Paths

__all__ = ["install", "runs", "session_begin", "session_end", "uninstall"]

_ANSWER_DEADLINE: Final = 30.0  # seconds for a helper that systemd should start, as a session ends


def runs(paths: Paths) -> bool:
    """Whether a helper runs. Where systemd listens for it, to connect would be to start one."""
    if lock_holder(paths.helper_lock) is not None:
        return True
    return not is_installed(os.environ, paths.helper_socket) and client(launch=False).reachable()


def install(end_helper: Callable[[], object], *, files_only: bool) -> int:
    """Write the files and hand the helper over to systemd.

    Args:
        end_helper: ends the one that runs; its machines go on.
        files_only: do not talk to systemd.

    Raises:
        UnsupportedError: there is no user manager.
        ConflictError: systemd looks after another vmgr of this person's.
        StateError: a file could not be written, or systemd refuses.
    """
    paths = client(launch=False).paths
    if not files_only and not has_user_manager(os.environ):
        raise UnsupportedError(
            "systemd does not run a manager for you here, so it cannot look after the helper",
            next_step="nothing is needed: the helper is started by the command that needs it "
            "(with su or sudo: log in, or use machinectl shell)",
        )
    _refuse_anothers(paths)
    from vmgr.service import install as files

    wanted = {**files.service(paths, os.environ), **files.identity(os.environ)}
    paths.ensure()
    written = files.write(wanted)
    for path in written:
        print(f"wrote {path}")
    if files_only:
        print(
            "systemd was not told. To have it use them: "
            f"systemctl --user enable --now {SOCKET_UNIT} {SESSION_UNIT}"
        )
        return 0
    _hand_over(paths, end_helper)
    status = client().helper_status()
    print(
        f"systemd looks after the helper (pid {status.pid}); {_machines(status.machines_running)}"
    )
    _explain_lingering()
    return 0


def _refuse_anothers(paths: Paths) -> None:
    """Units have one name each: those of a trial (`VMGR_HOME`) would take the place of the rest."""
    there = installed_socket(os.environ)
    if there is not None and there != paths.helper_socket:
        raise ConflictError(
            f"systemd looks after another vmgr of yours, at {there}",
            next_step="uninstall that one first, with the VMGR_HOME that it was installed with",
        )


def _hand_over(paths: Paths, end_helper: Callable[[], object]) -> None:
    _systemctl("daemon-reload")
    # One that is systemd's has begun with the old units; one that is not would keep the lock.
    if lock_holder(paths.helper_lock) is not None:
        end_helper()
    _systemctl("enable", SOCKET_UNIT, SESSION_UNIT)
    with contextlib.suppress(StateError):  # none has failed
        _systemctl("reset-failed", *UNITS)
    _systemctl("start", SOCKET_UNIT, SESSION_UNIT)


def uninstall() -> int:
    """Take it back. Machines go on, and the next command starts a helper of its own.

    Raises:
        ConflictError: systemd looks after another vmgr of this person's.
        StateError: a file could not be deleted, or systemd refuses.
    """
    paths = client(launch=False).paths
    _refuse_anothers(paths)
    removed = _take_back(paths) if has_user_manager(os.environ) else _remove(paths)
    for path in removed:
        print(f"removed {path}")
    print(
        "machines that run go on; the next command starts a helper for them. "
        "They end with your session, without being suspended first"
    )
    return 0


def _take_back(paths: Paths) -> list[Path]:
    if is_installed(os.environ, paths.helper_socket):
        # By its own unit, so that only the helper is stopped.
        _systemctl("stop", SOCKET_UNIT, SERVICE_UNIT)
        _systemctl("disable", SOCKET_UNIT, SESSION_UNIT)
    removed = _remove(paths)
    # Its command at the end finds vmgr uninstalled, and so leaves the machines alone. systemd must
    # not have read the units anew by then.
    with contextlib.suppress(StateError):  # it was not started
        _systemctl("stop", SESSION_UNIT)
    _systemctl("daemon-reload")
    return removed


def _remove(paths: Paths) -> list[Path]:
    from vmgr.service import install as files

    units = [unit_directory(os.environ) / name for name in UNITS]
    return files.remove([*units, paths.service_environment, *files.identity(os.environ)])


def _systemctl(*arguments: str) -> None:
    import asyncio

    asyncio.run(systemctl(*arguments))


def session_begin() -> int:
    """Have the helper start where machines are to start with the session."""
    from vmgr.config import Config

    if Config.load(client(launch=False).paths).get("autostart.machines"):
        client().helper_status()
    return 0


def session_end() -> int:
    """Do with the machines what `shutdown.action` says, then end the helper."""
    paths = client(launch=False).paths
    if not is_installed(os.environ, paths.helper_socket):  # it is just being taken back
        return 0
    if lock_holder(paths.helper_lock) is None:
        if not paths.machines.is_dir() or not any(paths.machines.iterdir()):
            return 0
        # No helper runs, yet machines may. As the session ends, systemd starts nothing for its
        # socket any more.
        try:
            client(launch=False, timeout=_ANSWER_DEADLINE).helper_status()
        except HelperUnavailableError:
            launch.start(paths)
    client(launch=False).helper_stop("session-end")
    return 0


def _machines(running: int) -> str:
    return {0: "no machine runs", 1: "1 machine goes on"}.get(running, f"{running} machines go on")


def _explain_lingering() -> None:
    import getpass

    from vmgr.config import Config

    user = getpass.getuser()
    action = str(Config.load(client(launch=False).paths).get("shutdown.action"))
    does = {
        "suspend": "are suspended", "stop": "are stopped", "keep": "end as if the power was cut",
    }[action]  # fmt: skip
    if lingers(user):
        print("you linger: machines go on when you log out, and start at boot if they are to")
        return
    print(f"when your last session ends, machines {does} (vmgr config set shutdown.action ...)")
    print(f"to have them go on instead, and start at boot: loginctl enable-linger {user}")
