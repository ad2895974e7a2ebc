"""`vmgr helper`: the helper itself."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from vmgr.cli import service
from vmgr.cli.connection import client
from vmgr.cli.output import age, bytes_text, fields, print_json
from vmgr.cli.parser import Parser
from vmgr.cli.service import runs
from vmgr.cli.verbs.logs import log_options, print_log, tail_of
from vmgr.errors import HelperUnavailableError

if TYPE_CHECKING:
    import argparse

    from vmgr.api.models import HelperStatus

DESCRIPTION = """Start, stop and watch the helper, the process that owns your machines. It is
started by any command that needs it; machines go on without it. With `install` systemd looks after
it: started when needed, again after a crash, machines with your session if they are to
(autostart.machines), and suspended in time when it ends (shutdown.action)."""
EXAMPLES = """examples:
  vmgr helper install
  vmgr helper status --json
  vmgr helper restart                 # machines go on
  vmgr helper logs -f"""

NOT_RUNNING: Final = 3  # as systemctl status has it
_END_DEADLINE: Final = {"keep": 30, "stop": 300}  # seconds; machines have their own deadlines


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, dest="helper_verb", parser_class=Parser
    )
    for name, action, summary in (
        ("start", _start, "start it where it does not run"),
        ("stop", _stop, "stop it; machines go on unless told otherwise"),
        ("restart", _restart, "stop it and start it; machines go on"),
        ("status", _status, "show it; exits with 3 when it does not run"),
        ("logs", _logs, "show its log"),
        ("install", _install, "have systemd look after it; machines go on"),
        ("uninstall", _uninstall, "undo that; machines go on"),
    ):
        verb = verbs.add_parser(name, help=summary, description=summary)
        if name == "logs":
            log_options(verb)
        if name in {"start", "status"}:
            verb.add_argument("--json", action="store_true", help="as JSON")
        if name == "stop":
            verb.add_argument("--machines", action="store_true", help="stop the machines as well")
        if name == "install":
            verb.add_argument(
                "--files-only", action="store_true", help="write the files, do not tell systemd"
            )
        verb.set_defaults(action=action)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    result: int = options.action(options)
    return result


def _start(options: argparse.Namespace) -> int:
    _show(client().helper_status(), json=options.json)
    return 0


def _stop(options: argparse.Namespace) -> int:
    pid = _end("stop" if options.machines else "keep")
    print("no helper runs" if pid is None else f"the helper (pid {pid}) has stopped")
    return 0


def _restart(_options: argparse.Namespace) -> int:
    _end("keep")
    print(f"the helper runs, pid {client().helper_status().pid}")
    return 0


def _status(options: argparse.Namespace) -> int:
    helper = client(launch=False)
    if runs(helper.paths):
        _show(helper.helper_status(), json=options.json)
        return 0
    if options.json:
        print_json({"running": False})
    else:
        print("no helper runs")
    return NOT_RUNNING


def _logs(options: argparse.Namespace) -> int:
    return print_log(client().helper_logs(follow=options.follow, tail=tail_of(options)))


def _install(options: argparse.Namespace) -> int:
    return service.install(lambda: _end("keep"), files_only=options.files_only)


def _uninstall(_options: argparse.Namespace) -> int:
    return service.uninstall()


def _end(machines: Literal["keep", "stop"]) -> int | None:
    """Stop the helper and see it end; its pid, or None when none ran."""
    helper = client(launch=False)
    if not runs(helper.paths):
        return None
    pid = helper.helper_status().pid
    # Opened while it still answers, so the number is its own.
    pidfd = os.pidfd_open(pid)
    try:
        helper.helper_stop(machines)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_END_DEADLINE[machines] * 1000):
            raise HelperUnavailableError(
                f"the helper (pid {pid}) did not stop within {_END_DEADLINE[machines]} s",
                next_step='see "vmgr helper logs"',
            )
    finally:
        os.close(pidfd)
    return pid


def _show(status: HelperStatus, *, json: bool) -> None:
    if json:
        print_json({"running": True, **msgspec.structs.asdict(status)})
        return
    fields([
        ("Pid", status.pid),
        ("Version", status.version),
        ("Running for", age(status.uptime)),
        ("Started by", "systemd" if status.managed else "a command"),
        ("Socket", status.socket),
        ("Memory", bytes_text(status.rss_bytes)),
        ("Machines", f"{status.machines_running} running of {status.machines_total}"),
        ("Accelerator", f"{status.accelerator} ({status.accelerator_reason})"),
        ("Crash report", status.crash_report),
    ])  # fmt: skip
