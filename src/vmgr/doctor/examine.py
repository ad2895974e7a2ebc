"""Running all checks at once, each with a deadline."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from vmgr.api.models import DoctorReport
from vmgr.doctor import bundles, kernel, manager, network, places, programs
from vmgr.doctor.host import Host, error, warning
from vmgr.errors import VmgrError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmgr.api.models import Check
    from vmgr.config import Config
    from vmgr.paths import Paths
    from vmgr.vmm import Accelerator

__all__ = ["CHECKS", "DEADLINE", "examine"]

DEADLINE: Final = 1.5
"""Seconds for each check: a file system that hangs must not hang the report."""
_LONGER: Final = {"kernels": 10.0}
"""For those that read much."""

CHECKS: Final[dict[str, Callable[[Host], Awaitable[Check]]]] = {
    "QEMU": programs.qemu,
    "qemu-img": programs.qemu_img,
    "accelerator": kernel.accelerator,
    "agent": programs.agent,
    "user namespaces": kernel.user_namespaces,
    "network": network.switchboard,
    "internet": network.egress,
    "names": network.names,
    "user id ranges": kernel.id_ranges,
    "build tools": programs.build_tools,
    "Debian mirrors": programs.mirrors,
    "vmgr mount": programs.mounting,
    "disk space": places.disk_space,
    "memory": places.memory,
    "kernels": bundles.kernels,
    "directories": places.directories,
    "settings": places.settings,
    "sandbox": kernel.sandbox,
    "control groups": kernel.control_groups,
    "service manager": manager.service_manager,
}


async def examine(
    paths: Paths,
    config: Config,
    *,
    accelerator: Callable[[], Awaitable[Accelerator]] | None = None,
    egress: tuple[str, str | None] | None = None,
) -> DoctorReport:
    """Look at this host; each check has its deadline, and none fails.

    Args:
        paths: where vmgr keeps its files.
        config: the settings.
        accelerator: who knows what machines run on; None: only what can be told at once.
        egress: which program leads to the internet, and why it is not the wanted one.
    """
    # Its own threads: one that hangs on a dead network file system must not take the helper's.
    executor = ThreadPoolExecutor(len(CHECKS), thread_name_prefix="vmgr-doctor")
    try:
        host = Host(paths, config, executor, accelerator, egress)
        checks = await asyncio.gather(
            *(
                conduct(name, check(host), _LONGER.get(name, DEADLINE))
                for name, check in CHECKS.items()
            )
        )
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    return DoctorReport(checks=list(checks))


async def conduct(name: str, looking: Awaitable[Check], deadline: float = DEADLINE) -> Check:
    """One check, with what goes wrong in looking as its result."""
    try:
        async with asyncio.timeout(deadline):
            return await looking
    except TimeoutError:
        return warning(name, f"no answer within {deadline:g} s")
    except VmgrError as problem:
        return error(name, problem.message, problem.next_step)
    except OSError as problem:
        return warning(name, f"could not be looked at: {problem}")
