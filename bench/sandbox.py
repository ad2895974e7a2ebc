"""What the sandbox adds to a VMM's start: QEMU to its first QMP answer, without and with it.

Without means what is left where bubblewrap cannot be had: QEMU's own filter, and limits. Both ways
are taken in turn, in pairs.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from clock import Row, stopwatch
from vmgr.sandbox import Need, Sandbox
from vmgr.vmm import ProbeCache, Qemu, find_qemu, probe_vmm_sandbox
from vmgr.vmm.commandline import SANDBOX

if TYPE_CHECKING:
    from vmgr.client.sync import Client

GOAL_MS = 15.0


async def first_answer(sandbox: Sandbox, qemu: Qemu) -> float:
    """Milliseconds from asking for the process to QEMU's greeting; it is ended after that."""
    greeting, hears = os.pipe()
    argv = [
        str(qemu.program), "-nodefaults", "-no-user-config", "-display", "none",
        "-sandbox", SANDBOX, "-machine", qemu.machine_type, "-accel", "tcg", "-S", "-qmp", "stdio",
    ]  # fmt: skip
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(greeting, readable.set)
    try:
        with stopwatch() as watch:
            process = await sandbox.spawn(argv, Need(), stdout=hears, stderr=2)
            await readable.wait()
        assert "QMP" in json.loads(os.read(greeting, 4096))
        process.kill()
        await process.wait()
    finally:
        loop.remove_reader(greeting)
        os.close(greeting)
        os.close(hears)
    return watch.milliseconds


async def _measure(rounds: int) -> list[Row]:
    without = Row("QEMU to QMP, filter only", "ms")
    within = Row("QEMU to QMP, in namespaces", "ms")
    added = Row("what the sandbox adds", "ms", goal=f"<= {GOAL_MS:.0f} ms")
    with ThreadPoolExecutor(1) as executor, tempfile.TemporaryDirectory() as directory:
        cache = ProbeCache(Path(directory) / "probes.json")
        qemu = await find_qemu(cache, executor)
        sandbox = await probe_vmm_sandbox(qemu, cache, executor)
        if sandbox.bubblewrap is None:
            added.note = sandbox.reason
            return [added]
        for _ in range(rounds):
            without.samples.append(await first_answer(Sandbox("filter", "bench"), qemu))
            within.samples.append(await first_answer(sandbox, qemu))
    added.samples = [a - b for a, b in zip(within.samples, without.samples, strict=True)]
    added.met = (added.median or 0.0) <= GOAL_MS
    return [without, within, added]


def measure(_client: Client, _image: str | None, rounds: int) -> list[Row]:
    return asyncio.run(_measure(rounds * 3))
