"""What the person's login shell makes of the environment: PATH, SSH_AUTH_SOCK, proxies, locale.

As editors do it, and without what has gone wrong for them:

- The shell reads its start-up files as a login shell and interactive, since people set PATH in
  either kind; `exec` then turns it into a program that writes the environment down. So no exit trap
  and no logout file runs.
- The environment goes into a file in memory, between two markers. What start-up files print goes
  to /dev/null.
- No terminal, nothing to read, a session of its own, a deadline. VMGR_RESOLVING_ENVIRONMENT is set,
  for start-up files that want to know.
- A shell that hangs, fails or does something else gives the default, and why.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.spawner import StopPolicy, run

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["UserEnvironment", "capture", "login_umask"]

MARK: Final = "VMGR_RESOLVING_ENVIRONMENT"
DEADLINE: Final = 10.0
_HIGH: Final = 100
_MOST: Final = 1 << 20  # bytes of environment
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INTERACTIVE: Final = frozenset({"bash", "zsh", "fish", "ksh", "mksh"})
_LOGIN_ONLY: Final = frozenset({"sh", "dash", "ash", "busybox"})
_PASSED_ON: Final = ("LANG", "TZ", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK")
# What describes the shell we started rather than the person.
_OF_THE_SHELL: Final = frozenset({MARK, "_", "OLDPWD", "PWD", "SHLVL", "TERM"})
_UMASK: Final = re.compile(r"^\s*UMASK\s+([0-7]{1,4})\b", re.MULTILINE)
_USERGROUPS: Final = re.compile(r"^\s*USERGROUPS_ENAB\s+yes\b", re.MULTILINE)
_DEFAULT_UMASK: Final = 0o022


@dataclass(frozen=True)
class UserEnvironment:
    """What a command of the person's starts with."""

    environment: Mapping[str, str]
    umask: int
    home: Path
    problem: str | None = field(default=None)
    """Why it is only the default, in one sentence without a final stop; None: the shell told."""


def login_umask(defs: Path = Path("/etc/login.defs")) -> int:
    """The umask that a login begins with; see login.defs(5) and pam_umask(8)."""
    try:
        text = defs.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _DEFAULT_UMASK
    found = _UMASK.search(text)
    umask = int(found[1], 8) if found else _DEFAULT_UMASK
    if os.getuid() != 0 and _USERGROUPS.search(text) and os.getuid() == os.getgid():
        umask = umask & ~0o070 | (umask & 0o700) >> 3  # the group is the person's alone
    return umask


async def capture(shell: str | None = None, *, deadline: float = DEADLINE) -> UserEnvironment:
    """Ask the person's login shell; never fails.

    Args:
        shell: another than that of the person's account.
        deadline: seconds after which the default is given.
    """
    person = _account()
    shell = shell or person.pw_shell or "/bin/sh"
    umask = login_umask()
    base = _default_environment(person, shell)
    default = UserEnvironment(base, umask, Path(person.pw_dir))
    arguments = _arguments(shell)
    if arguments is None:
        return _because(default, f"{shell} is no shell that vmgr knows how to ask")
    token = secrets.token_hex(16)
    file = _memory_file()
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        # One word for any of the shells: there is no quote in it. Large numbers of fds are not
        # redirected to by all of them, /proc is.
        write = f"{{ printf {token}; umask; env -0; printf {token}; }} >/proc/self/fd/{file}"
        command = f"exec /bin/sh -c '{write}'"
        await run(
            [shell, *arguments, command],
            env={**base, MARK: "1", "TERM": "dumb"},
            cwd=person.pw_dir if os.access(person.pw_dir, os.X_OK) else "/",
            umask=umask,
            stdout=null,
            pass_fds=[file],
            deadline=deadline,
            limit=0,
            check=False,
            policy=StopPolicy(ask=None),
        )
        told = os.pread(file, _MOST + 1, 0)
    except TimeoutError:
        return _because(default, f"{shell} did not come to its end within {deadline:g} s")
    except OSError as error:
        return _because(default, f"{shell} cannot be started: {error.strerror}")
    finally:
        os.close(null)
        os.close(file)
    return _read(told, token.encode(), default) or _because(
        default, f"the start-up files of {shell} do something else than start it"
    )


def _memory_file() -> int:
    """A file in memory, with a number that an interactive login bash does not close (3 to 19)."""
    low = os.memfd_create("environment", os.MFD_CLOEXEC)
    try:
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    finally:
        os.close(low)


def _read(told: bytes, token: bytes, default: UserEnvironment) -> UserEnvironment | None:
    parts = told.split(token)
    if len(told) > _MOST or len(parts) != 3 or parts[0] or parts[2]:  # noqa: PLR2004 (two markers)
        return None
    umask, _, rest = parts[1].partition(b"\n")
    environment = {}
    for entry in rest.split(b"\0"):
        name, mark, value = entry.partition(b"=")
        if mark and (key := os.fsdecode(name)) not in _OF_THE_SHELL:
            environment[key] = os.fsdecode(value)
    if not environment or re.fullmatch(rb"[0-7]{3,4}", umask) is None:
        return None
    return UserEnvironment(environment, int(umask, 8), default.home)


def _arguments(shell: str) -> list[str] | None:
    name = Path(shell).name
    if name in _INTERACTIVE:
        return ["-l", "-i", "-c"]
    return ["-l", "-c"] if name in _LOGIN_ONLY else None


def _account() -> pwd.struct_passwd:
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid)
    except KeyError:  # a container's number without a name
        home = os.environ.get("HOME", "/")
        return pwd.struct_passwd((str(uid), "x", uid, os.getgid(), "", home, "/bin/sh"))


def _default_environment(person: pwd.struct_passwd, shell: str) -> dict[str, str]:
    """What login(1) would give, and where the session's sockets are."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    proxies = {n: v for n, v in os.environ.items() if n.lower().endswith("_proxy")}
    return {
        **passed_on,
        **proxies,
        "HOME": person.pw_dir,
        "LOGNAME": person.pw_name,
        "PATH": _PATH,
        "SHELL": shell,
        "USER": person.pw_name,
    }


def _because(default: UserEnvironment, problem: str) -> UserEnvironment:
    return UserEnvironment(default.environment, default.umask, default.home, problem)
