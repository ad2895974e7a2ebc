"""`vmgr top`: what running machines use, as it changes."""

from __future__ import annotations

import argparse
import select
import sys
from typing import TYPE_CHECKING, Final

from vmgr.cli.connection import client
from vmgr.cli.output import aligned, bytes_text, print_json, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmgr.api.usage import Usage
    from vmgr.client.load import Load, MachineLoad
    from vmgr.client.sync import Client

DESCRIPTION = """Show what running machines use, busiest first, until q or Ctrl-C.

CPU is in percent of one CPU. MEMORY is what a machine takes of this computer's: what machines share
counts once, divided among them; OF is what it believes to have. "-" is what cannot be told."""
EXAMPLES = """examples:
  vmgr top
  vmgr top web db -n 5
  vmgr top --once
  vmgr top --json                     # one JSON object per line"""

_HEADERS: Final = ("NAME", "CPU", "MEMORY", "OF", "READ", "WRITTEN", "NET IN", "NET OUT", "UPTIME")
_INTERVAL: Final = 2.0
_ONCE: Final = 1.0  # long enough for the kernel's 10 ms of CPU time to mean something
_FIRST: Final = 0.5  # the first screen has no rates; a person need not look at it for long
_SHORTEST, _LONGEST = 0.1, 3_600.0
_SILENCE: Final = 15.0  # seconds after which a helper that says nothing is told of


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--once", action="store_true", help="show it once and end")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "-n", "--interval", type=_interval, metavar="SECONDS",
        help=f"how often, and what rates are means over (default: {_INTERVAL:g}; once: {_ONCE:g})",
    )  # fmt: skip
    names = parser.add_argument("names", metavar="NAME", nargs="*", help="only these machines")
    names.completer = "machines"  # type: ignore[attr-defined]  # read by vmgr.cli.completing


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    helper = client(timeout=_SILENCE)
    for name in options.names:
        helper.machine_info(name)  # which says what is wrong with a name
    interval = options.interval or (_ONCE if options.once else _INTERVAL)
    names = frozenset(options.names)
    try:
        if options.once:
            loads = _loads(helper, interval, names)
            _print(next(loads), as_json=options.json, lines=False)
        elif options.json or not sys.stdout.isatty():
            for load in _loads(helper, interval, names):
                _print(load, as_json=options.json, lines=True)
        else:
            _live(helper, interval, names)
    except KeyboardInterrupt:  # the usual way to end it
        sys.stdout.flush()
    return 0


def _live(helper: Client, interval: float, names: frozenset[str]) -> None:
    from vmgr.cli.live import LiveScreen
    from vmgr.client.load import load_between

    before: Usage | None = None
    with LiveScreen() as screen:
        while True:
            now = helper.usage()
            lines = _lines(_only(load_between(before, now), names))
            screen.draw(lines)
            while (woken := screen.wait(interval if before else min(interval, _FIRST))) == "size":
                screen.draw(lines)
            if woken == "quit":
                return
            before = now


def _loads(helper: Client, interval: float, names: frozenset[str]) -> Iterator[Load]:
    from vmgr.client.load import load_between

    before = helper.usage()
    while True:
        select.select([], [], [], interval)
        now = helper.usage()
        yield _only(load_between(before, now), names)
        before = now


def _only(load: Load, names: frozenset[str]) -> Load:
    import msgspec

    if not names:
        return load
    chosen = [machine for machine in load.machines if machine.name in names]
    return msgspec.structs.replace(load, machines=chosen)


def _print(load: Load, *, as_json: bool, lines: bool) -> None:
    if as_json and lines:
        import msgspec

        print(msgspec.json.encode(load).decode(), flush=True)
    elif as_json:
        print_json(load)
    else:
        print("\n".join([*_lines(load), ""] if lines else _lines(load)), flush=True)


def _lines(load: Load) -> list[str]:
    rows = [_row(machine) for machine in load.machines]
    if len(rows) > 1:
        rows.append(_total(load.machines))
    host = load.host
    cpu = "-" if host.cpu_percent is None else f"{host.cpu_percent:.0f} %"
    used = bytes_text(host.memory_bytes - host.memory_available_bytes)
    memory = f"{used} of {bytes_text(host.memory_bytes)} memory"
    return [
        f"This computer: {cpu} of {host.cpus * 100} % CPU, {memory} in use",
        "",
        *aligned(_HEADERS, rows, right=range(1, len(_HEADERS))),
        *([] if rows else ["No machine runs."]),
    ]


def _row(machine: MachineLoad) -> tuple[object, ...]:
    state = "" if machine.status == "running" else f" ({machine.status})"
    return (
        printable(machine.name + state), _percent(machine.cpu_percent),
        bytes_text(machine.pss_bytes), bytes_text(machine.memory_bytes),
        _rate(machine.disk_read_bytes_per_second), _rate(machine.disk_written_bytes_per_second),
        _rate(machine.network_received_bytes_per_second),
        _rate(machine.network_sent_bytes_per_second), _uptime(machine.uptime),
    )  # fmt: skip


def _total(machines: list[MachineLoad]) -> tuple[object, ...]:
    def total(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    pss = total(m.pss_bytes for m in machines)
    return (
        f"{len(machines)} machines", _percent(total(m.cpu_percent for m in machines)),
        bytes_text(None if pss is None else int(pss)),
        bytes_text(sum(m.memory_bytes for m in machines)),
        _rate(total(m.disk_read_bytes_per_second for m in machines)),
        _rate(total(m.disk_written_bytes_per_second for m in machines)),
        _rate(total(m.network_received_bytes_per_second for m in machines)),
        _rate(total(m.network_sent_bytes_per_second for m in machines)), "",
    )  # fmt: skip


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f} %"


def _rate(value: float | None) -> str | None:
    return None if value is None else f"{bytes_text(int(value))}/s"


def _uptime(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour}h" if days else f"{hour}:{minute:02}:{second:02}"


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _SHORTEST <= seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(
            f'"{text}" is not a number of seconds from {_SHORTEST:g} to {_LONGEST:g}'
        )
    return seconds
