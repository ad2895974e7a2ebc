"""bubblewrap's command line, from a declared need.

How it is used, and why:

- A mount namespace that begins empty. Nothing of the host is in it but what `Need` names: no home
  directory, no /proc (unless asked for: then its own), no /sys, no shell.
- Namespaces of its own for users, processes, IPC, host name, control groups and (unless asked for)
  the network. The user namespace is made for root too: uid 0 in it is nobody on the host.
- No capabilities but those asked for, and no new privileges (bubblewrap always sets that).
- `--as-pid-1`: the program itself is the first process of its namespace, without a reaper between:
  signals from outside reach its handlers, and when it ends the kernel ends all in the namespace.
- Not `--die-with-parent`: machines outlive the helper. The program's parent is bubblewrap's
  monitor, which holds no fds and only waits. `setpriv` between the two has the kernel end the
  program when the monitor is killed, so that neither is left without the other.
- `--info-fd` tells the program's process id; the monitor passes on how it ended.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.sandbox.need import NO_RIGHTS, Need, Rights
from vmgr.spawner import minimal_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PROGRAM", "bubblewrap_argv", "find_bubblewrap"]

PROGRAM: Final = "bwrap"
_NAMESPACES: Final = ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
_DEVICES: Final = (Path("/dev/null"), Path("/dev/urandom"))  # what any program may open


def find_bubblewrap() -> Path | None:
    """Where bubblewrap is, if it is installed."""
    found = shutil.which(PROGRAM, path=minimal_environment()["PATH"])
    return None if found is None else Path(found)


def bubblewrap_argv(
    bubblewrap: Path,
    need: Need,
    argv: Sequence[str],
    *,
    setpriv: Path,
    info_fd: int | None = None,
    rights: Rights = NO_RIGHTS,
) -> list[str]:
    """The arguments that run `argv` with what is in `need` and nothing else.

    Args:
        setpriv: util-linux's, which ties the program's life to its monitor's.
        info_fd: where bubblewrap writes the program's process id (JSON), then end of file.
    """
    arguments = [str(bubblewrap), *_NAMESPACES, *_identity(rights)]
    if not need.network:
        arguments.append("--unshare-net")
    arguments += ["--as-pid-1", "--new-session"]
    if info_fd is not None:
        arguments += ["--info-fd", str(info_fd)]
    for empty in need.empty:
        arguments += ["--dir", str(empty)]
    for path in _outermost((*need.read_only, setpriv)):
        arguments += ["--ro-bind", path, path]
    for path in _outermost(need.writable):
        arguments += ["--bind", path, path]
    for path in _outermost(need.hidden):
        arguments += ["--tmpfs", path, "--remount-ro", path]
    for path in _outermost((*_DEVICES, *need.devices)):
        arguments += ["--dev-bind", path, path]
    if need.own_proc:
        arguments += ["--proc", "/proc"]
    # The root is a file system in memory: what could be written there would be the host's memory.
    arguments += ["--remount-ro", "/", "--chdir", "/"]
    return [*arguments, "--", str(setpriv), "--pdeathsig", "KILL", "--", *argv]


def _identity(rights: Rights) -> list[str]:
    arguments = ["--unshare-user"] if rights.user_namespace else []
    if rights.root:
        arguments += ["--uid", "0", "--gid", "0"]
    arguments += ["--cap-drop", "ALL"]
    for capability in rights.capabilities:
        arguments += ["--cap-add", capability]
    return arguments


def _outermost(paths: Sequence[Path]) -> list[str]:
    """Each once, without those that lie in another of them, in a settled order."""
    kept: list[str] = []
    for path in sorted({os.path.normpath(p) for p in paths}):
        if not any(path.startswith(f"{above}/") for above in kept):
            kept.append(path)
    return kept
