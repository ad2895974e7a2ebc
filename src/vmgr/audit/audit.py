"""Finding vmgr's processes and putting together what is seen and what is wrong.

The helper is who asks; VMMs are those of its machines, and those that it has started for a
template; what the network is made of (holder, switchboard, egress) the helper knows, or it is
marked in its environment; share servers the helper knows, or their program tells; monitors are the
parents of what runs in a sandbox; the SSH server is where the helper says; every further child of
the helper is a worker: qemu-img, builders of images.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.api.audit import AuditedFd, AuditedProcess, AuditReport
from vmgr.audit.proc import look, signal_name, unix_sockets
from vmgr.audit.rules import Surroundings, network_problems, problems, purpose_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmgr.audit.proc import Seen
    from vmgr.audit.rules import Role
    from vmgr.paths import Paths

__all__ = ["NetworkPart", "SharePart", "Vmm", "audit"]

_MARK: Final = "VMGR_NETWORK"  # of vmgr.network, in the environment of what it starts


@dataclass(frozen=True)
class Vmm:
    """A process that should be a VMM."""

    pid: int
    machine: str
    level: str | None
    """The sandbox that it was started in."""


@dataclass(frozen=True)
class NetworkPart:
    """A process of the network."""

    pid: int
    name: str | None
    """`holder`, `switchboard` or `egress`; None: it is marked as one, but nobody knows it."""
    level: str = "filter"
    """The sandbox that it was started in."""
    program: str | None = None
    """Of the egress: `slirp4netns` or `pasta`."""


@dataclass(frozen=True)
class SharePart:
    """A process that serves a share."""

    pid: int
    machine: str
    level: str
    """The sandbox that it was started in."""
    directory: str
    """What it serves."""


def audit(
    paths: Paths,
    vmms: list[Vmm],
    network: list[NetworkPart],
    ssh: int | None = None,
    shares: Sequence[SharePart] = (),
) -> AuditReport:
    """Look at this process, its children, VMMs, network, share servers and SSH server; blocks."""
    own = look(os.getpid())
    places = {paths.state, paths.cache, paths.data, paths.runtime, paths.config}
    around = Surroundings(
        directories=tuple(f"{place.resolve()}/" for place in places),
        sockets=unix_sockets(),
        namespaces=own.namespaces,
        uid=os.getuid(),
    )
    reports = [_report("helper", own, None, around)]
    named = {vmm.pid: vmm for vmm in vmms}
    parts = {part.pid: part for part in network}
    served = {share.pid: share for share in shares}
    for role, pid in _below(own.pid, named, parts, served):
        if pid == ssh:  # which may be no child of ours; see below
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            seen = look(pid)
            if role == "share":
                reports.append(_share(seen, served.get(pid), around))
            elif role == "network":
                reports.append(_network(seen, parts.get(pid), around, own.pid))
            else:
                reports.append(_report(role, seen, named.get(pid), around))
    if ssh is not None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            reports.append(_report("ssh", look(ssh), None, around))
    return AuditReport(
        processes=reports,
        problems=[
            f"{report.role} {report.pid}{_of(report.machine)}: {problem}"
            for report in reports
            for problem in report.problems
        ],
    )


def _of(machine: str | None) -> str:
    return "" if machine is None else f" of {machine}"


def _network(
    seen: Seen, part: NetworkPart | None, around: Surroundings, helper: int
) -> AuditedProcess:
    known = part or NetworkPart(seen.pid, None)
    if known.name is None and helper in {seen.parent, _parent(seen.parent)}:  # it just starts
        return _described("network", seen, None, around, problems("network", seen, None, around))
    found = network_problems(known.name, seen, known.level, around, program=known.program)
    return _described("network", seen, None, around, found)


def _share(seen: Seen, share: SharePart | None, around: Surroundings) -> AuditedProcess:
    # One that is just being started is at its level when its machine knows of it.
    level = _level(seen, None) if share is None else share.level
    there = () if share is None else (f"{os.path.realpath(share.directory)}/",)
    inside = replace(around, directories=there)
    settled = share is not None
    found = problems("share", seen, level, inside) if settled else iter(())
    machine = None if share is None else share.machine
    return _described("share", seen, machine, inside, found)


def _report(role: Role, seen: Seen, vmm: Vmm | None, around: Surroundings) -> AuditedProcess:
    found = problems(role, seen, _level(seen, vmm), around, settled=vmm is not None)
    return _described(role, seen, None if vmm is None else vmm.machine, around, found)


def _described(
    role: Role, seen: Seen, machine: str | None, around: Surroundings, found: Iterator[str]
) -> AuditedProcess:
    return AuditedProcess(
        pid=seen.pid,
        role=role,
        machine=machine,
        program=seen.program,
        uids=seen.uids,
        umask=seen.umask,
        cwd=seen.cwd,
        session_leader=seen.session_leader,
        terminal=seen.terminal,
        fds=[
            AuditedFd(number=n, target=target, purpose=purpose_of(role, n, target, around))
            for n, target in seen.fds.items()
        ],
        signals_blocked=[signal_name(n) for n in sorted(seen.blocked)],
        signals_ignored=[signal_name(n) for n in sorted(seen.ignored)],
        signals_caught=[signal_name(n) for n in sorted(seen.caught)],
        namespaces_own=[
            name for name, where in seen.namespaces.items() if where != around.namespaces[name]
        ],
        seccomp=seen.seccomp,
        no_new_privs=seen.no_new_privs,
        capabilities=[f"{name}={value:016x}" for name, value in seen.capabilities.items() if value],
        core_limit=seen.core_limit,
        environment=seen.environment,
        io_priorities=seen.io_priorities,
        guest_memory=seen.guest_memory,
        problems=list(found),
    )


def _level(seen: Seen, vmm: Vmm | None) -> str | None:
    """The sandbox that a VMM was started in; of one that is no machine's, by who its parent is."""
    if vmm is not None:
        return vmm.level
    return "namespaces" if _is_monitor(seen.parent) else "filter"


def _below(
    helper: int,
    named: dict[int, Vmm],
    parts: dict[int, NetworkPart],
    shares: dict[int, SharePart],
) -> Iterator[tuple[Role, int]]:
    """What the helper and those before it have started, each with its role, VMMs first."""
    children = _children(helper)
    # A VMM that is no machine's (a template is being built) stands below a monitor as well.
    inside = {pid for child in children if _is_monitor(child) for pid in _children(child)}
    starting = {pid for pid in inside | children if _is_marked(pid)}
    serving = shares.keys() | {pid for pid in inside | children if _serves(pid)}
    archives = {pid for pid in inside if _reads_archives(pid)}
    vmms = named.keys() | (inside - starting - serving - archives)
    vmms |= {pid for pid in children if "qemu-system" in _program(pid)}
    network = parts.keys() | starting
    parents = {
        parent
        for pid in vmms | network | serving | archives
        if (parent := _parent(pid)) is not None
    }
    monitors = {pid for pid in parents | children if _is_monitor(pid)}
    yield from (("vmm", pid) for pid in sorted(vmms))
    yield from (("monitor", pid) for pid in sorted(monitors))
    yield from (("network", pid) for pid in sorted(network - monitors))
    yield from (("share", pid) for pid in sorted(serving - monitors))
    yield from (("archive", pid) for pid in sorted(archives - monitors))
    known = vmms | monitors | network | serving | archives
    yield from (("worker", pid) for pid in sorted(children - known))


def _program(pid: int) -> str:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])
    except OSError:
        return ""


def _reads_archives(pid: int) -> bool:
    """Whether it is the porter of archives or its zstd, or just turns into one."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(word == b"vmgr.archive.porter" or word.endswith(b"/zstd") for word in words)


def _serves(pid: int) -> bool:
    """Whether it is a share server, or just turns into one."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"vmgr-share-server\0" in command and not _is_monitor(pid)


def _is_monitor(pid: int) -> bool:
    return Path(_program(pid)).name == "bwrap"


def _is_marked(pid: int) -> bool:
    try:
        return f"{_MARK}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _children(pid: int) -> set[int]:
    """Children of a process, of all its threads; see "children" in proc(5)."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found |= set(map(int, (task / "children").read_text().split()))
    return found
