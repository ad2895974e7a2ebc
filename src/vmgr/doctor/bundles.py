"""Kernel bundles: are they what was written?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.doctor.host import good, warning
from vmgr.kernel import KernelFiles

if TYPE_CHECKING:
    from vmgr.api.models import Check
    from vmgr.doctor.host import Host

__all__ = ["kernels"]


async def kernels(host: Host) -> Check:
    """The whole content; a start looks at sizes and times only."""
    files = KernelFiles(host.paths, host.executor)
    damaged = await files.verify()
    if damaged:
        return warning("kernels", f"{'; '.join(damaged)}; the next start makes it anew")
    return good("kernels", f"{len(await files.list())} here, as they were built")
