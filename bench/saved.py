"""Suspend, resume, fork, snapshots and the pool, beside raw QEMU that restores a machine.

Raw is the row of `bench/template.py`: QEMU without vmgr from a template's files to a first command
done, of the same kind of machine in the same run. What is timed of vmgr is by its API.
"""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clock import Row, ratios, stopwatch
from template import MEMORY, RawRestore
from vmgr.api.models import CreateMachine, ExecSpec, ForkMachine, ImageBuild
from vmgr.client.jobstream import Output
from vmgr.paths import Paths

if TYPE_CHECKING:
    from vmgr.client.sync import Client

IMAGE = "debian-minimal"
TRUE = ExecSpec(argv=["/bin/true"])
CROWD = 50
HELD = re.compile(r"captured, held for (\d+) ms")


def measure(client: Client, image: str | None, rounds: int) -> list[Row]:
    name = image or IMAGE
    client.image_build(ImageBuild(recipe=name))
    kind = CreateMachine(image=name, memory_bytes=MEMORY)
    key = client.template_build(kind).key
    template = Paths.from_environment().templates / key
    rows = {
        "raw": Row(f"{name}: raw QEMU, restore to first command done", "ms"),
        "fork": Row(f"{name}: fork to first command done in the child", "ms", goal="<= 250"),
        "held": Row(f"{name}: the parent stands still for a fork", "ms", goal="<= 100"),
        "suspend": Row(f"{name}: suspend", "ms", goal="<= 500"),
        "resume": Row(f"{name}: resume to first command done", "ms", goal="<= 250"),
        "snapshot": Row(f"{name}: snapshot with memory", "ms"),
        "pool": Row(f"{name}: run from the pool to first command done", "ms", goal="<= 30"),
    }
    machine = client.machine_create(kind).name
    try:
        started = client.machine_start(machine)
        with tempfile.TemporaryDirectory(prefix="vmgr-bench-") as directory:
            recipe = RawRestore(started, template, Path(directory))
            for number in range(rounds):
                rows["raw"].samples.append(recipe.milliseconds())
                _once(client, machine, number, rows)
        _pool(client, kind, rounds, rows["pool"])
    finally:
        client.machine_remove(machine, force=True)
    for row in rows.values():
        if row.goal:
            row.met = row.median is not None and row.median <= float(row.goal.split()[-1])
    over = [
        Row(f"{name}: {what} / raw", "x", ratios(rows[what].samples, rows["raw"].samples))
        for what in ("fork", "resume")
    ]
    return [*rows.values(), *over, *_crowd(client, kind)]


def _once(client: Client, machine: str, number: int, rows: dict[str, Row]) -> None:
    child = f"bench-child-{number}"
    log = Paths.from_environment().helper_log
    with stopwatch() as watch:
        (made,) = client.machine_fork(machine, ForkMachine(names=[child]))
        assert made.error is None, made.error
        _run(client, child)
    rows["fork"].samples.append(watch.milliseconds)
    rows["held"].samples.append(float(HELD.findall(log.read_text())[-1]))
    client.machine_remove(child, force=True)
    with stopwatch() as watch:
        client.machine_suspend(machine)
    rows["suspend"].samples.append(watch.milliseconds)
    with stopwatch() as watch:
        _run(client, machine)
    rows["resume"].samples.append(watch.milliseconds)
    with stopwatch() as watch:
        snapshot = client.snapshot_create(machine)
    rows["snapshot"].samples.append(watch.milliseconds)
    client.snapshot_remove(snapshot.name)


def _run(client: Client, machine: str) -> None:
    assert client.exec(machine, TRUE).communicate().exit.exit_code == 0


def _pool(client: Client, kind: CreateMachine, rounds: int, row: Row) -> None:
    """From the request to the command's first byte: the machine's removal is after that."""
    client.config_set("pool.size", "1")
    spec = ExecSpec(argv=["/bin/echo", "x"])
    try:
        before = time.time()
        client.run(kind, spec).communicate()
        for _ in range(rounds):
            _filled(client, before)
            before = time.time()
            with stopwatch() as watch:
                job = client.run(kind, spec)
                while not any(isinstance(event, Output) for event in job.wait_events()):
                    pass
            row.samples.append(watch.milliseconds)
            job.communicate()
    finally:
        client.config_unset("pool.size")


def _filled(client: Client, since: float) -> None:
    """Wait until the pool is full again, as its event says."""
    for event in client.events(since=0):
        if event.kind == "pool.ready" and event.at > since:
            return


def _crowd(client: Client, kind: CreateMachine) -> list[Row]:
    """Many machines from one template, by several clients at once."""
    from concurrent.futures import ThreadPoolExecutor

    whole = Row(f"{CROWD} machines of one template, each having run a command", "s", goal="<= 10")

    def one(_: int) -> str:
        made = client.machine_create(kind)
        client.machine_start(made.name)
        _run(client, made.name)
        return made.name

    names: list[str] = []
    try:
        with stopwatch() as watch, ThreadPoolExecutor(4) as pool:
            names = list(pool.map(one, range(CROWD)))
        whole.samples.append(watch.seconds)
    finally:
        for machine in client.machine_list():
            client.machine_remove(machine.name, force=True)
    whole.met = len(names) == CROWD and whole.samples[0] <= 10
    return [whole]
