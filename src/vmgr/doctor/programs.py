"""Programs that vmgr drives, and where the packages in images come from."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from vmgr.agent_binary import find_agent
from vmgr.artifact.apt import host_codename
from vmgr.artifact.sources import debian_sources, read_sources
from vmgr.artifact.tools import PACKAGES, missing_tools
from vmgr.doctor.host import error, good, warning
from vmgr.vmm import ProbeCache, find_qemu

if TYPE_CHECKING:
    from vmgr.api.models import Check
    from vmgr.doctor.host import Host

__all__ = ["agent", "build_tools", "mirrors", "mounting", "qemu", "qemu_img"]

# All that building an image and a kernel bundle calls (vmgr.image, vmgr.kernel).
_TOOLS: Final = (
    "apt-cache", "apt-config", "apt-get", "depmod", "dpkg-deb", "flock", "mke2fs", "mmdebstrap",
    "resize2fs", "tar", "tune2fs", "unshare", "zstd",
)  # fmt: skip


async def qemu(host: Host) -> Check:
    """Whether QEMU is there and new enough."""
    override = str(host.config.get("qemu.path")) or None
    found = await find_qemu(ProbeCache(host.paths.probes), host.executor, override=override)
    return good("QEMU", f"{found.version} at {found.program}")


async def qemu_img(host: Host) -> Check:
    """Whether disks can be made."""
    return await _tools(host, "qemu-img", ("qemu-img",), "machines' disks cannot be made")


async def build_tools(host: Host) -> Check:
    """Whether images and kernel bundles can be built."""
    return await _tools(host, "build tools", _TOOLS, "images cannot be built")


async def mounting(host: Host) -> Check:
    """Whether machines' files can be mounted here: nothing else needs that, so it is no fault."""
    loop = asyncio.get_running_loop()
    # Its package brings fusermount3 along.
    if not await loop.run_in_executor(host.executor, missing_tools, "sshfs"):
        return good("vmgr mount", "sshfs is installed")
    install = f"apt-get install {PACKAGES['sshfs']}"
    return good("vmgr mount", f"cannot be used until sshfs is installed: {install}")


async def _tools(host: Host, name: str, tools: tuple[str, ...], otherwise: str) -> Check:
    loop = asyncio.get_running_loop()
    missing = await loop.run_in_executor(host.executor, missing_tools, *tools)
    if not missing:
        return good(name, "installed" if len(tools) == 1 else f"all {len(tools)} are installed")
    packages = " ".join(sorted({PACKAGES[tool] for tool in missing}))
    verb = "is" if len(missing) == 1 else "are"
    return error(
        name,
        f"{', '.join(missing)} {verb} not installed, so {otherwise}",
        host.as_root(f"apt-get install {packages}"),
    )


async def agent(host: Host) -> Check:
    """Whether the program that goes into machines is there."""
    loop = asyncio.get_running_loop()
    return good("agent", str(await loop.run_in_executor(host.executor, find_agent)))


async def mirrors(host: Host) -> Check:
    """Whether apt says where Debian's packages are."""

    def look() -> Check:
        codename = host_codename(host.etc / "os-release")
        found = debian_sources(read_sources(host.etc / "apt"), codename)
        if found:
            return good("Debian mirrors", f"apt has {len(found)} for {codename}")
        return warning(
            "Debian mirrors",
            f"apt has no source for {codename}, so images can be imported but not built",
            "add Debian's own sources under /etc/apt/sources.list.d, see sources.list(5)",
        )

    return await asyncio.get_running_loop().run_in_executor(host.executor, look)
