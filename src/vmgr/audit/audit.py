"""Finding vmgr's processes and putting together what is seen and what is wrong.

The helper is who asks; VMMs are those of its machines; monitors are the parents of VMMs that run in
a sandbox; what the network is made of (holder, switchboard, egress) is marked in its environment;
every further child of the helper is a worker: qemu-img, builders of images.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmgr.api.models import AuditedFd, AuditedProcess, AuditReport
from vmgr.audit.proc import look, signal_name, unix_sockets
from vmgr.audit.rules import Surroundings, problems, purpose_of

if TYPE_CHECKING:
    from vmgr.audit.proc import Seen
    from vmgr.audit.rules import Role
    from vmgr.paths import Paths

__all__ = ["Vmm", "audit"]


@dataclass(frozen=True)
class Vmm:
    """A process that should be a VMM."""

    pid: int
    machine: str
    level: str | None
    """The sandbox that it was started in."""


def audit(paths: Paths, vmms: list[Vmm]) -> AuditReport:
    """Look at this process, its children and the VMMs; reads /proc, so it blocks."""
    own = look(os.getpid())
    places = {paths.state, paths.cache, paths.data, paths.runtime, paths.config}
    around = Surroundings(
        directories=tuple(f"{place.resolve()}/" for place in places),
        sockets=unix_sockets(),
        namespaces=own.namespaces,
        uid=os.getuid(),
    )
    reports = [_report("helper", own, None, around)]
    told = {own.pid}
    for vmm in vmms:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            seen = look(vmm.pid)
            reports.append(_report("vmm", seen, vmm, around))
            told.add(vmm.pid)
            if vmm.level not in {None, "filter"} and seen.parent not in told:
                monitor = look(seen.parent)
                if Path(monitor.program).name == "bwrap":
                    reports.append(_report("monitor", monitor, vmm, around))
                    told.add(monitor.pid)
    for pid in _children(own.pid) - told:
        with contextlib.suppress(OSError):
            seen = look(pid)
            # Of vmgr.network.processes, which marks what it starts.
            role: Role = "network" if "VMGR_NETWORK" in seen.environment else "worker"
            reports.append(_report(role, seen, None, around))
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


def _report(role: Role, seen: Seen, vmm: Vmm | None, around: Surroundings) -> AuditedProcess:
    return AuditedProcess(
        pid=seen.pid,
        role=role,
        machine=None if vmm is None else vmm.machine,
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
        guest_memory=seen.guest_memory,
        problems=list(problems(role, seen, None if vmm is None else vmm.level, around)),
    )


def _children(pid: int) -> set[int]:
    """Children of a process, of all its threads; see "children" in proc(5)."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found |= set(map(int, (task / "children").read_text().split()))
    return found
