"""`vmgr doctor`: check this host."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.output import bytes_text, fields, paint, print_json, printable
from vmgr.errors import CancelledByUserError, UsageError, VmgrError

if TYPE_CHECKING:
    import argparse

    from vmgr.api.audit import AuditedFd
    from vmgr.api.models import DoctorReport

DESCRIPTION = """Check what vmgr needs of this host. Each thing that is missing is named with the
exact command that mends it; --fix offers to run those, one after the other. Exits with 1 when
something is broken. Works without the helper, too.

With --audit look at the running processes of vmgr instead: what each has open, which rights it has,
and whether it keeps the rules. Exits with 1 when one is broken."""
EXAMPLES = """examples:
  vmgr doctor
  vmgr doctor --fix
  vmgr doctor --audit
  vmgr doctor --json"""

_MARKS = {
    "ok": ("\u2714", "ok", "green"),
    "warning": ("!", "!", "yellow"),
    "error": ("\u2718", "X", "red"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--audit", action="store_true", help="look at vmgr's processes")
    parser.add_argument(
        "--fix", action="store_true", help="offer to run each command that mends something"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="with --fix: run them unasked")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    if options.audit:
        if options.fix:
            raise UsageError("--audit and --fix are two things", next_step="call one of them")
        return _audit(as_json=options.json)
    if options.yes and not options.fix:
        raise UsageError("--yes goes with --fix", next_step="call: vmgr doctor --fix --yes")
    report = _report()
    if options.fix:
        from vmgr.cli.mending import mend

        if mend(report.checks, yes=options.yes):
            report = _report()
    if options.json:
        print_json(report)
    else:
        unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        for check in report.checks:
            mark, ascii_mark, colour = _MARKS[check.status]
            sign = paint(mark if unicode else ascii_mark, colour)
            print(f"{sign} {check.name}: {printable(check.summary)}")
            if check.fix:
                print(f"    fix: {printable(check.fix)}")
    return 1 if any(check.status == "error" for check in report.checks) else 0


def _report() -> DoctorReport:
    """What the helper sees; where it cannot be started, what is seen from here."""
    try:
        return client().doctor()
    except (UsageError, CancelledByUserError):
        raise
    except VmgrError as error:
        return _without_helper(error)


def _without_helper(reason: VmgrError) -> DoctorReport:
    import asyncio

    from vmgr.api.models import Check, DoctorReport
    from vmgr.config import Config
    from vmgr.doctor import examine
    from vmgr.paths import Paths

    paths = Paths.from_environment()
    try:
        config = Config.load(paths)
    except VmgrError:  # one of the checks says so
        config = Config.defaults(paths)
    report = asyncio.run(examine(paths, config))
    summary = f"it cannot be asked, so this command looked itself: {reason.message}"
    helper = Check(name="helper", status="error", summary=summary, fix=reason.next_step)
    return DoctorReport(checks=[helper, *report.checks])


def _audit(*, as_json: bool) -> int:
    report = client().audit()
    if as_json:
        print_json(report)
        return 1 if report.problems else 0
    for process in report.processes:
        machine = f" of {process.machine}" if process.machine else ""
        print(f"{process.role} {process.pid}{machine}: {printable(process.program)}")
        shown = [
            ("user ids", " ".join(map(str, process.uids))),
            ("umask", f"{process.umask:04o}"),
            ("directory", process.cwd),
            ("blocked", " ".join(process.signals_blocked) or "no signal"),
            ("ignored", " ".join(process.signals_ignored) or "no signal"),
            ("caught", " ".join(process.signals_caught) or "no signal"),
            ("namespaces", " ".join(process.namespaces_own) or "the helper's"),
            ("seccomp", process.seccomp),
            ("new rights", "no" if process.no_new_privs else "possible"),
            ("capabilities", " ".join(process.capabilities) or "none"),
            ("core dump", "no" if process.core_limit == 0 else "yes"),
            ("I/O priority", ", ".join(process.io_priorities)),
            ("environment", " ".join(process.environment) or "empty"),
        ]
        for memory in process.guest_memory:
            kept = "would be dumped" if memory.dumped else "not dumped"
            shown.append(("guest memory", f"{bytes_text(memory.bytes)}, {kept}: {memory.name}"))
        shown += _open_files(process.fds)
        fields([(f"  {name}", printable(text)) for name, text in shown])
    print()
    for problem in report.problems:
        print(f"{paint('broken', 'red')}: {printable(problem)}")
    if not report.problems:
        print(f"{len(report.processes)} processes, all rules kept")
    return 1 if report.problems else 0


def _open_files(fds: list[AuditedFd]) -> list[tuple[str, str]]:
    """A line for each, or for several of one kind in a row: QEMU has dozens of eventfds."""
    lines: list[tuple[str, str]] = []
    for (target, purpose), alike in itertools.groupby(fds, key=lambda fd: (fd.target, fd.purpose)):
        numbers = [fd.number for fd in alike]
        name = f"fd {numbers[0]}" if len(numbers) == 1 else f"fd {numbers[0]}-{numbers[-1]}"
        lines.append((name, f"{target} ({purpose or 'not its business'})"))
    return lines
