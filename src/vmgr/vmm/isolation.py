"""The sandbox of a VMM: which files it gets, and which level this host permits."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.sandbox import Need, probe_sandbox
from vmgr.sandbox.cgroup import find_parent, has_controllers
from vmgr.sandbox.probe import Trial
from vmgr.sandbox.scope import enter_scope, is_service
from vmgr.spawner import run
from vmgr.vmm.commandline import SANDBOX

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from vmgr.sandbox import Sandbox
    from vmgr.vmm.commandline import AcceleratorName, VmmSpec
    from vmgr.vmm.probecache import ProbeCache
    from vmgr.vmm.qemu import Qemu

__all__ = ["need_of", "probe_vmm_sandbox"]

KVM: Final = Path("/dev/kvm")
_DEADLINE: Final = 30.0
# Where QEMU's modules are (its accelerators, with Debian), from the directory that `bin` is in.
_MODULES: Final = ("lib/x86_64-linux-gnu/qemu", "lib64/qemu", "lib/qemu")
_HELLO_AND_END: Final = b"".join(
    json.dumps({"execute": command}).encode() for command in ("qmp_capabilities", "quit")
)


def need_of(spec: VmmSpec, accelerator: AcceleratorName) -> Need:
    """All that this machine's VMM opens by a path. Whatever else it gets, it gets as an fd."""
    read_only = [spec.kernel, spec.initramfs, *spec.backing]
    if spec.modules is not None:
        read_only.append(spec.modules)
    if spec.seed is not None:
        read_only.append(spec.seed)
    devices = (KVM,) if accelerator == "kvm" else ()
    # QEMU takes its guest's memory only by a name, and a memfd has none but this.
    own_proc = spec.restore is not None
    # Its own network leads nowhere, unless it was asked to reach what this user reaches.
    network = spec.network is not None and spec.network.user_mode == "open"
    return Need(tuple(read_only), (spec.disk,), devices, network=network, own_proc=own_proc)


async def probe_vmm_sandbox(
    qemu: Qemu,
    cache: ProbeCache,
    executor: Executor,
    *,
    bubblewrap: Path | None = None,
) -> Sandbox:
    """Which sandbox this QEMU can run in here, by running it in one; see `vmgr.sandbox.probe`."""
    argv = [
        str(qemu.program),
        "-nodefaults", "-no-user-config", "-display", "none", "-sandbox", SANDBOX,
        "-machine", qemu.machine_type, "-accel", "tcg", "-S", "-qmp", "stdio",
    ]  # fmt: skip

    async def data() -> Sequence[Path]:
        listing = await run([qemu.program, "-L", "help"], deadline=_DEADLINE)
        printed = map(os.fsdecode, listing.stdout.split(b"\n"))
        firmware = [Path(line) for line in printed if line.startswith("/")]
        return [*firmware, *(qemu.program.parent.parent / place for place in _MODULES)]

    trial = Trial(argv, qemu.build, data, _HELLO_AND_END)
    found = await probe_sandbox(trial, cache, executor, bubblewrap=bubblewrap)
    if found.level == "filter":
        return found
    parent, why = await _parent(executor)
    if parent is None:
        return replace(found, reason=f"{found.reason}; without limits, since {why}")
    return replace(found, level="full", cgroup=parent)


async def _parent(executor: Executor) -> tuple[Path | None, str]:
    """Where control groups can be made: where this process is, or in a scope that systemd gives."""
    loop = asyncio.get_running_loop()
    if await loop.run_in_executor(executor, is_service):
        # Its group stays whole for the next helper; see vmgr.sandbox.scope.
        parent, why = None, "the service's own group is not divided"
    else:
        parent, why = await loop.run_in_executor(executor, find_parent)
    if parent is not None or not await loop.run_in_executor(executor, has_controllers):
        return parent, why
    refused = await enter_scope()
    if refused is not None:
        return None, f"{why}, and {refused}"
    return await loop.run_in_executor(executor, find_parent)
