"""The process rules, as far as they can be read off a live process; docs/process-model.md has all.

Each check gives sentences: what is wrong with this process, without its number.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from vmgr.audit.proc import is_guest_memory, signal_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmgr.audit.proc import Seen

__all__ = ["Role", "Surroundings", "network_problems", "problems", "purpose_of"]

Role = Literal["helper", "vmm", "monitor", "network", "share", "ssh", "archive", "worker"]

_UMASK: Final = 0o077
_UMASK_OF_SHARES: Final = 0  # the modes are the machine's to say
_PIPE: Final = int(signal.SIGPIPE)
_FILE_SIZE: Final = int(signal.SIGXFSZ)
# Python ignores SIGXFSZ itself, so that a too large file is an error; QEMU ignores SIGPIPE itself.
_MAY_IGNORE: Final[dict[Role, set[int]]] = {
    "helper": {_PIPE, _FILE_SIZE}, "vmm": {_PIPE}, "monitor": set(), "worker": set(),
    "ssh": {_PIPE, _FILE_SIZE},
    "archive": {_PIPE, _FILE_SIZE},  # Python
    "share": {_PIPE},  # as programs in Rust do
    "network": {_PIPE, _FILE_SIZE},  # the switchboard is Python; slirp4netns ignores SIGPIPE itself
}  # fmt: skip
# Those that they read from a signalfd instead of handling: QEMU's util/main-loop.c, bubblewrap.
_MAY_BLOCK: Final[dict[Role, set[int]]] = {
    "helper": set(),
    "vmm": {signal.SIGBUS, signal.SIGUSR1, signal.SIGALRM, signal.SIGIO},
    "monitor": {signal.SIGCHLD},
    "network": set(),
    "share": set(),
    "ssh": set(),
    "archive": set(),
    "worker": set(),
}
_DEVICES: Final = {"/dev/urandom": "random numbers"}
_SANDBOXED_ENVIRONMENT: Final = {"PATH", "LC_ALL", "PWD"}
_HELPER_ENVIRONMENT: Final = {
    "HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER",
    "ALL_PROXY", "FTP_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY",
    "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE",
    # Set by systemd for its units.
    "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
    "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC",
    "DBUS_SESSION_BUS_ADDRESS",
}  # fmt: skip
_HELPER_PREFIXES: Final = ("LC_", "VMGR_", "XDG_")
_BEHIND_THE_PERSON: Final = "best-effort 5"  # see `vmgr.sandbox.Sandbox.spawn`
_APART: Final = ("user", "mnt", "pid", "ipc", "net", "uts")
_NETWORK_ENVIRONMENT: Final = _SANDBOXED_ENVIRONMENT | {"PYTHONPATH", "VIRTUAL_ENV", "VMGR_NETWORK"}
_NET_BIND_SERVICE, _NET_ADMIN, _SYS_ADMIN = 1 << 10, 1 << 12, 1 << 21  # linux/capability.h
# In the namespace of the network alone: none of them counts on this host.
_MAY_HAVE: Final = {"holder": 0, "switchboard": _NET_ADMIN, "egress": _NET_BIND_SERVICE}
_PASTA: Final = _NET_BIND_SERVICE | _SYS_ADMIN  # it may enter the namespace again
_UNFILTERED: Final = frozenset({"holder"})  # it reads nothing and does nothing


@dataclass(frozen=True)
class Surroundings:
    """What a process is judged against."""

    directories: tuple[str, ...]
    """vmgr's own, each with a slash at its end."""
    sockets: dict[str, str]
    namespaces: dict[str, str]
    """The helper's."""
    uid: int


def purpose_of(role: Role, number: int, target: str, around: Surroundings) -> str | None:
    """What an open file is for; None when this role has no use for it."""
    kind, _, rest = target.partition(":")
    if kind in {"pipe", "anon_inode"}:
        return "pipe" if kind == "pipe" else rest.strip("[]")
    if (role == "network" and kind == "net") or (role == "helper" and kind in {"net", "user"}):
        return "namespace of the network"
    if kind == "socket":
        path = around.sockets.get(target)
        # Connections have no name; those of the network are not a VMM's.
        nameless = role in {"helper", "network", "share", "ssh"} or path is not None
        return f"socket {path}" if path else "connection" if nameless else None
    standard = "standard stream" if number <= 2 else None  # noqa: PLR2004 (0, 1 and 2)
    if target == "/dev/null":
        return standard or "nothing"
    ours = target.startswith(around.directories)
    if role == "vmm":
        return _purpose_in_vmm(target, ours=ours)
    # 0, 1 and 2 are what its starter gave it.
    if role == "share":
        ours = f"{target}/".startswith(around.directories)
    kept = "file of the share" if role == "share" else "file of vmgr"
    return kept if ours else standard or _purpose_outside(role, target)


def _purpose_outside(role: Role, target: str) -> str | None:
    if role in {"helper", "network"} and target == "/dev/net/tun":
        return "tap"
    if role == "helper" and is_guest_memory(target):
        return "memory for machines to start from"  # as a file: it is not mapped here
    return _DEVICES.get(target)


def _purpose_in_vmm(target: str, *, ours: bool) -> str | None:
    if is_guest_memory(target):
        return "the machine's memory"
    if target in {"/dev/kvm", "/dev/net/tun"}:
        return "CPU" if target == "/dev/kvm" else "tap"
    return "file of the machine" if ours else _DEVICES.get(target)


def problems(
    role: Role, seen: Seen, level: str | None, around: Surroundings, *, settled: bool = True
) -> Iterator[str]:
    """The rules that a process breaks; `network_problems` has more of the network's.

    Args:
        level: the sandbox that it was started in; for a VMM.
        settled: whether it has started; a VMM's filter and memory come in its first moments.
    """
    yield from _anyone(role, seen, around)
    if role == "helper":
        yield from _helper(seen)
    if role in {"vmm", "monitor", "share", "archive"}:
        yield from _sandboxed(role, seen, level, around)
    if role in {"vmm", "share"} and settled and seen.seccomp != "filter":
        yield "no filter of system calls is on"
    if role == "vmm" and settled:
        yield from _vmm(seen)


def _anyone(role: Role, seen: Seen, around: Surroundings) -> Iterator[str]:
    umask = _UMASK_OF_SHARES if role == "share" else _UMASK
    rules = (
        (
            set(seen.uids) != {around.uid},
            f"it runs as {seen.uids}, not {around.uid} (rule 1)",
        ),
        (seen.umask != umask, f"its umask is {seen.umask:04o}, not {umask:04o} (rule 1)"),
        (seen.terminal, "it has a controlling terminal (rule 4)"),
        (seen.core_limit != 0, "it may leave a core dump (rule 7)"),
        (
            role != "worker" and seen.cwd != "/",
            f"its working directory is {seen.cwd} (rule 4)",
        ),
    )
    yield from (sentence for broken, sentence in rules if broken)
    if wrong := seen.blocked - _MAY_BLOCK[role]:
        yield f"it blocks {_names(wrong)} (rule 4)"
    if wrong := seen.ignored - _MAY_IGNORE[role]:
        yield f"it ignores {_names(wrong)} (rule 3)"
    for number, target in seen.fds.items():
        if purpose_of(role, number, target, around) is None:
            yield f"fd {number} is {target}, of which it has no use (rule 4)"
    for memory in seen.guest_memory:
        if role != "vmm":
            yield f"it maps a machine's memory: {memory.name} (rule 7)"
        elif memory.dumped:
            yield f"a dump of it would hold the machine's memory: {memory.name} (rule 7)"


def _helper(seen: Seen) -> Iterator[str]:
    if not seen.session_leader:
        yield "it does not lead a session (rule 9)"
    if _PIPE not in seen.ignored:
        yield "SIGPIPE would end it (rule 3)"
    for name in seen.environment:
        if name.upper() not in _HELPER_ENVIRONMENT and not name.startswith(_HELPER_PREFIXES):
            yield f"its environment has {name} (rule 9)"


def _sandboxed(role: Role, seen: Seen, level: str | None, around: Surroundings) -> Iterator[str]:
    if not seen.no_new_privs:
        yield "it could gain privileges (no_new_privs is off)"
    allowed = _NETWORK_ENVIRONMENT if role == "monitor" else _SANDBOXED_ENVIRONMENT
    for name in sorted(set(seen.environment) - allowed):
        yield f"its environment has {name} (rule 4)"
    if role not in {"monitor", "archive"} and seen.io_priorities != [_BEHIND_THE_PERSON]:
        yield f"its I/O priority is {', '.join(seen.io_priorities)} (rule 8)"
    if role != "monitor" and level is None:
        yield "which sandbox it was started in is not known"
    # At the level `filter` that is all that the host permits; `info` and `doctor` say so.
    if role != "monitor" and level != "filter":
        yield from _apart(seen, around)


def network_problems(
    part: str | None, seen: Seen, level: str, around: Surroundings, *, program: str | None = None
) -> Iterator[str]:
    """The rules that a process of the network breaks.

    Args:
        part: what it is; None: nobody knows it.
        level: the sandbox that it was started in.
        program: of the egress: which.
    """
    yield from problems("network", seen, None, around)
    if part is None:
        yield "the helper does not know it"
    for name in sorted(set(seen.environment) - _NETWORK_ENVIRONMENT):
        yield f"its environment has {name} (rule 4)"
    # At the level `filter` that is all that the host permits; `doctor` says so.
    if part is None or level == "filter":
        return
    if not seen.no_new_privs:
        yield "it could gain privileges (no_new_privs is off)"
    for name in _APART:
        # The egress leads to the host's network.
        if seen.namespaces[name] == around.namespaces[name] and (part, name) != ("egress", "net"):
            yield f"it shares the helper's {name} namespace"
    may_have = _PASTA if program == "pasta" else _MAY_HAVE[part]
    for name, value in seen.capabilities.items():
        if value & ~may_have:
            yield f"it has capabilities ({name})"
    if part not in _UNFILTERED and seen.seccomp != "filter":
        yield "no filter of system calls is on"


def _vmm(seen: Seen) -> Iterator[str]:
    if not seen.guest_memory:
        yield "its machine's memory is not seen (rule 7)"


def _apart(seen: Seen, around: Surroundings) -> Iterator[str]:
    for name in _APART:
        if seen.namespaces[name] == around.namespaces[name]:
            yield f"it shares the helper's {name} namespace"
    for name, value in seen.capabilities.items():
        if value:
            yield f"it has capabilities ({name})"


def _names(signals: set[int]) -> str:
    return ", ".join(signal_name(number) for number in sorted(signals))
