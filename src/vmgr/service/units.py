"""The text of vmgr's systemd units, for one person; see systemd.service(5), systemd.socket(5)."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmgr.errors import UsageError
from vmgr.identity import SERVICE_UNIT, SESSION_UNIT, SOCKET_UNIT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmgr.paths import Paths

__all__ = ["SESSION_END_DEADLINE", "Layout", "environment_file", "units"]

SESSION_END_DEADLINE: Final = 110
"""Seconds for suspending or stopping machines; user@.service gives the whole manager 120."""
_NOTE: Final = (
    "# Written by `vmgr helper install`, which overwrites it. Put changes of your own into\n"
)


@dataclass(frozen=True)
class Layout:
    """What the units depend on."""

    socket: Path
    environment: Path
    """The file with the helper's environment."""
    python: str = sys.executable
    runtime: Path | None = None
    """The person's runtime directory, as systemd knows it."""

    @classmethod
    def of(cls, paths: Paths, environ: Mapping[str, str]) -> Layout:
        """As it is for this person and this installation."""
        from pathlib import Path

        runtime = environ.get("XDG_RUNTIME_DIR", "")
        return cls(
            paths.helper_socket,
            paths.service_environment,
            runtime=Path(runtime) if runtime.startswith("/") else None,
        )

    def listens_on(self) -> str:
        """The socket's path, as a unit has it."""
        if self.runtime is not None and self.socket.is_relative_to(self.runtime):
            return f"%t/{_escaped(os.fspath(self.socket.relative_to(self.runtime)))}"
        return _escaped(os.fspath(self.socket))

    def command(self, *arguments: str) -> str:
        """A command line of a unit, with this Python."""
        # -P: no directory that happens to be the working one is a place to import from.
        words = ("-P", "-m", *arguments)
        return " ".join((_program(self.python), *(_quoted(word) for word in words)))


def units(layout: Layout) -> dict[str, str]:
    """The content of each unit file, by name."""
    note = {
        name: f"{_NOTE}# {name}.d/*.conf (systemctl --user edit {name}).\n"
        for name in (SOCKET_UNIT, SERVICE_UNIT, SESSION_UNIT)
    }
    return {
        SOCKET_UNIT: note[SOCKET_UNIT] + f"""
[Unit]
Description=vmgr: socket of the helper that owns your machines

[Socket]
ListenStream={layout.listens_on()}
SocketMode=0600
DirectoryMode=0700
Backlog=128

[Install]
WantedBy=sockets.target
""",
        SERVICE_UNIT: note[SERVICE_UNIT] + f"""
[Unit]
Description=vmgr: the helper that owns your machines
Requires={SOCKET_UNIT}
After={SOCKET_UNIT}
StartLimitIntervalSec=60
StartLimitBurst=8

[Service]
Type=notify
NotifyAccess=main
ExecStart={layout.command("vmgr.helper")}
EnvironmentFile=-{_escaped(os.fspath(layout.environment))}
WorkingDirectory=/
UMask=0077
StandardInput=null
# The helper ends and machines go on: only it is stopped, asked first, never what it started.
KillMode=process
# A machine that takes more memory than it may is ended alone.
OOMPolicy=continue
# 70: it crashed, and wrote a report. 1: it cannot start and says why; trying again changes nothing.
Restart=on-failure
RestartPreventExitStatus=1
RestartSec=200ms
WatchdogSec=60
TimeoutStartSec=120
TimeoutStopSec=60
LimitCORE=0
""",
        SESSION_UNIT: note[SESSION_UNIT] + f"""
# Started with the session (with lingering: at boot), stopped with it: once a person's last session
# has ended, or the computer is shut down. What is done then is the setting shutdown.action.

[Unit]
Description=vmgr: machines that start and end with the session
After={SOCKET_UNIT} {SERVICE_UNIT}
Wants={SOCKET_UNIT}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={layout.command("vmgr.cli.unit", "begin")}
ExecStop={layout.command("vmgr.cli.unit", "end")}
EnvironmentFile=-{_escaped(os.fspath(layout.environment))}
WorkingDirectory=/
UMask=0077
KillMode=process
TimeoutStartSec=150
TimeoutStopSec={SESSION_END_DEADLINE}

[Install]
WantedBy=default.target
""",
    }  # fmt: skip


def environment_file(environ: Mapping[str, str]) -> str:
    """The helper's environment as an EnvironmentFile=; values that it cannot hold are left out."""
    lines = [
        "# The helper's environment, as it was when `vmgr helper install` was run, which\n",
        "# overwrites this: programs' places, proxies, certificates, language.\n",
    ]
    for name, value in environ.items():
        if value.isprintable():
            text = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
            text = text.replace("`", "\\`")
            lines.append(f'{name}="{text}"\n')
    return "".join(lines)


def _escaped(path: str) -> str:
    """A path as the value of a setting: `%` begins a specifier, and nothing else is special."""
    if not path.isprintable() or path != path.strip():
        raise UsageError(
            f"{path!r} cannot stand in a systemd unit",
            next_step="use a path without such characters",
        )
    return path.replace("%", "%%")


def _program(path: str) -> str:
    """The first word of a command line: `$` means nothing there, and quotes are refused."""
    if set(path) & set("'\"\\"):
        raise UsageError(
            f"systemd cannot start {path}: quotes and backslashes are in its name",
            next_step="install vmgr into a directory without such characters",
        )
    return f'"{_escaped(path)}"' if set(path) & set(" ;") else _escaped(path)


def _quoted(word: str) -> str:
    """A word of a command line, see "Command lines" in systemd.service(5)."""
    word = _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{word}"' if set(word) & set(" '\";\\") else word
