"""What the host's kernel lets an ordinary user do. What can be tried is tried."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING, Final, cast

from vmgr.artifact.privilege import PrivilegeKind, find_privilege
from vmgr.artifact.tools import missing_tools
from vmgr.doctor.host import error, good, warning
from vmgr.sandbox import LEVELS
from vmgr.sandbox.bubblewrap import PROGRAM as BUBBLEWRAP
from vmgr.spawner import StopPolicy, run
from vmgr.vmm import Accelerator, ProbeCache, find_qemu, probe_vmm_sandbox
from vmgr.vmm.accelerator import check_kvm

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.api.models import Check, SandboxLevel
    from vmgr.doctor.host import Host

__all__ = ["accelerator", "control_groups", "id_ranges", "sandbox", "user_namespaces"]

# Making a mount and a network namespace takes capabilities: a user namespace in which they are
# denied (Ubuntu 24.04) is of no use.
_PROBE: Final = ("unshare", "--user", "--map-root-user", "--mount", "--net", "true")
# Left in their containers by Docker and Podman.
_CONTAINER_MARKS: Final = (".dockerenv", "run/.containerenv")
_CONTAINER_FIX: Final = (
    "start the container with --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
)
_NAMESPACES: Final = "user namespaces"
_IDS: Final = 65_536
_FIRST_ID: Final = 100_000  # where Debian's useradd(8) begins, SUB_UID_MIN of login.defs(5)


async def accelerator(host: Host) -> Check:
    """What machines run on, and why not on KVM."""
    if host.accelerator is not None:
        found = await host.accelerator()
    else:
        loop = asyncio.get_running_loop()
        cpuinfo = host.proc / "cpuinfo"
        refusal = await loop.run_in_executor(host.executor, check_kvm, host.dev / "kvm", cpuinfo)
        found = refusal or Accelerator("kvm", "KVM is there and is tried when a machine starts")
    if found.name == "kvm":
        return good("accelerator", found.reason)
    return warning("accelerator", found.reason, found.fix)


async def sandbox(host: Host) -> Check:
    """How well VMMs are locked in, tried with QEMU itself, and who forbids more."""
    override = str(host.config.get("qemu.path")) or None
    cache = ProbeCache(host.paths.probes)
    qemu = await find_qemu(cache, host.executor, override=override)
    found = await probe_vmm_sandbox(qemu, cache, host.executor)
    wanted = cast("SandboxLevel", host.config.get("sandbox.require"))
    summary = f"{found.level}: {found.reason}"
    fix: str | None = host.as_root(found.fix) if found.fix else None
    if found.level == "filter" and fix is None:
        loop = asyncio.get_running_loop()
        why, fix = await loop.run_in_executor(host.executor, _who_forbids, host, BUBBLEWRAP)
        summary += f"; {why}" if why else ""
    if LEVELS.index(found.level) < LEVELS.index(wanted):
        return error("sandbox", f"{summary}; sandbox.require asks for {wanted}", fix)
    if found.level == "filter":
        return warning("sandbox", f"{summary}, so a VMM could read your files", fix)
    return good("sandbox", summary)


async def user_namespaces(host: Host, probe: tuple[str, ...] = _PROBE) -> Check:
    """Whether namespaces can be made without being root, and who forbids it."""
    try:
        done = await run(probe, check=False, policy=StopPolicy(ask=None))
    except FileNotFoundError:
        return warning(
            _NAMESPACES, f"{probe[0]} is not installed", host.as_root("apt-get install util-linux")
        )
    if done.status.ok:
        return good(_NAMESPACES, "a mount and a network namespace were made in one")
    said = done.stderr.decode(errors="replace").strip().splitlines()
    loop = asyncio.get_running_loop()
    why, fix = await loop.run_in_executor(host.executor, _who_forbids, host, probe[0])
    reason = why or (said[-1] if said else str(done.status))
    return warning(
        _NAMESPACES,
        f"you cannot make them ({reason}), so machines cannot share a network",
        fix,
    )


def _who_forbids(host: Host, program: str) -> tuple[str | None, str | None]:
    sysctl = host.proc / "sys"
    if _read(sysctl / "kernel/unprivileged_userns_clone") == "0":
        return "the sysctl kernel.unprivileged_userns_clone is 0", _sysctl(
            host, "kernel.unprivileged_userns_clone=1"
        )
    if _read(sysctl / "user/max_user_namespaces") == "0":
        return "the sysctl user.max_user_namespaces is 0", _sysctl(
            host, "user.max_user_namespaces=28633"
        )
    if _read(sysctl / "kernel/apparmor_restrict_unprivileged_userns") == "1":
        path = shutil.which(program) or f"/usr/bin/{program}"
        profile = (
            f"abi <abi/4.0>,\ninclude <tunables/global>\n"
            f"profile vmgr-{program} {path} flags=(unconfined) {{\n  userns,\n}}\n"
        )
        file = f"/etc/apparmor.d/vmgr-{program}"
        return f"AppArmor denies it to {path}", host.write_as_root(
            profile, file, f"apparmor_parser -r {file}"
        )
    if any((host.proc.parent / mark).exists() for mark in _CONTAINER_MARKS):
        return "the container that this is denies it", _CONTAINER_FIX
    return None, None


def _sysctl(host: Host, line: str) -> str:
    file = f"/etc/sysctl.d/60-vmgr-{line.partition('=')[0].rpartition('.')[2]}.conf"
    return host.write_as_root(f"{line}\n", file, f"sysctl -p {file}")


async def id_ranges(host: Host) -> Check:
    """Whether images can be built with their real owners."""
    found = await find_privilege()
    if found.kind is not PrivilegeKind.FAKEROOT:
        what = "not needed by root" if found.kind is PrivilegeKind.ROOT else f"{found.ids} ids"
        return good("user id ranges", what)
    loop = asyncio.get_running_loop()
    fix = await loop.run_in_executor(host.executor, range_fix, host)
    return warning("user id ranges", f"images are built the slower way: {found.reason}", fix)


def range_fix(host: Host) -> str | None:
    """The command that gives the person ids of their own, in a range that nobody has."""
    if missing_tools("newuidmap", "newgidmap"):
        return host.as_root("apt-get install uidmap")
    first = _FIRST_ID
    own = {"subuid": 0, "subgid": 0}
    for name in own:
        for line in (_read(host.etc / name) or "").splitlines():
            user, _, numbers = line.partition(":")
            start, _, count = numbers.partition(":")
            if start.isdigit() and count.isdigit():
                first = max(first, int(start) + int(count))
                if user in {host.user, str(host.uid)}:
                    own[name] += int(count)
    if min(own.values()) >= _IDS:
        return None
    numbers = f"{first}-{first + _IDS - 1}"
    return host.as_root(f"usermod --add-subuids {numbers} --add-subgids {numbers} {host.user}")


async def control_groups(host: Host) -> Check:
    """Whether machines can be given a share of CPU and memory of their own."""
    return await asyncio.get_running_loop().run_in_executor(host.executor, _control_groups, host)


def _control_groups(host: Host) -> Check:
    name = "control groups"
    otherwise = "so machines have no limit of their own"
    lines = (_read(host.proc / "self/cgroup") or "").splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    root = host.sys / "fs/cgroup"
    systemd = (host.proc.parent / "run/systemd/system").is_dir()
    first = any("memory" in line.split(":")[1].split(",") for line in lines if ":" in line)
    if first or own is None or not (root / "cgroup.controllers").exists():
        # Hybrid hosts have a tree of version 2 as well, in which nothing can be limited.
        what = "of version 1" if own is None else "of both versions, and version 1 has the limits"
        fix = None
        if systemd:
            fix = "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line and boot"
        reason = f"this host's are {what}" if first else "this host has none of version 2"
        return warning(name, f"{reason}, {otherwise}", fix)
    # Paths in a container may be relative to a root that is not ours: `/../..`.
    directory = root / own.lstrip("/")
    if os.access(directory, os.W_OK) and os.access(directory / "cgroup.procs", os.W_OK):
        return good(name, f"delegated: {own}")
    if systemd and (host.proc.parent / f"run/user/{host.uid}/bus").exists():
        return good(name, "systemd gives the helper a group of its own")
    fix = f"loginctl enable-linger {host.user}, then log in again" if systemd else None
    return warning(name, f"{own} is not delegated to you, {otherwise}", fix)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
