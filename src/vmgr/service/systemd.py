"""Asking the person's systemd, by systemctl; and what can be known of it without asking."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.errors import StateError, UnsupportedError
from vmgr.identity import SOCKET_UNIT

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "has_user_manager",
    "installed_socket",
    "is_installed",
    "lingers",
    "systemctl",
    "unit_directory",
]

_DEADLINE: Final = 150.0
_LISTENS: Final = "ListenStream="
_LINGER: Final = Path("/var/lib/systemd/linger")


def unit_directory(environ: Mapping[str, str]) -> Path:
    """Where a person's own units are, see systemd.unit(5)."""
    configured = environ.get("XDG_CONFIG_HOME", "")
    home = Path(environ.get("HOME", "")) if environ.get("HOME") else Path("~").expanduser()
    base = Path(configured) if configured.startswith("/") else home / ".config"
    return base / "systemd/user"


def installed_socket(environ: Mapping[str, str]) -> Path | None:
    """Where vmgr's socket unit listens; None: there is no such unit."""
    try:
        text = (unit_directory(environ) / SOCKET_UNIT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    told = next((line for line in text.splitlines() if line.startswith(_LISTENS)), _LISTENS)
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    # What `vmgr.service.units` writes.
    path = told.removeprefix(_LISTENS)
    if path.startswith("%t/"):
        path = runtime.replace("%", "%%") + path.removeprefix("%t")
    return Path(path.replace("%%", "%"))


def is_installed(environ: Mapping[str, str], socket: Path) -> bool:
    """Whether systemd's units are those of the helper that listens at `socket`."""
    return installed_socket(environ) == socket


def has_user_manager(environ: Mapping[str, str]) -> bool:
    """Whether a user manager of this person's runs and can be reached from here."""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    return runtime.startswith("/") and Path(runtime, "systemd/private").is_socket()


def lingers(user: str, directory: Path = _LINGER) -> bool:
    """Whether a person's user manager goes on after log-out, see loginctl(1)."""
    return (directory / user).exists()


async def systemctl(*arguments: str) -> str:
    """Run `systemctl --user` to its end; gives what it prints.

    Raises:
        UnsupportedError: there is no systemctl.
        StateError: it failed.
    """
    # Not at the top: `vmgr helper status` asks whether we are installed, and nothing else.
    from vmgr.spawner import ProcessFailedError, StopPolicy, minimal_environment, run

    environment = minimal_environment()
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        if name in os.environ:
            environment[name] = os.environ[name]
    try:
        done = await run(
            ["systemctl", "--user", "--no-pager", *arguments],
            env=environment, deadline=_DEADLINE, policy=StopPolicy(),
        )  # fmt: skip
    except FileNotFoundError:
        raise UnsupportedError("systemctl is not installed") from None
    except TimeoutError:
        raise StateError(
            f"systemctl {arguments[0]} did not end within {_DEADLINE:g} s",
            next_step="see: systemctl --user list-jobs",
        ) from None
    except ProcessFailedError as error:
        said = error.output.strip().splitlines()[:1] or [str(error.status)]
        raise StateError(
            f"systemctl {arguments[0]} failed: {said[0].rstrip('.')}",
            next_step="see: journalctl --user -u 'vmgr*'",
        ) from None
    return done.stdout.decode(errors="replace")
