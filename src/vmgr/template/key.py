"""What a template depends on: all that could make a machine that starts from it a wrong one."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.vmm import SocketFds, command_line

if TYPE_CHECKING:
    from vmgr.vmm import Accelerator, Qemu, VmmSpec

__all__ = ["host_cpu", "template_key"]

FORMAT: Final = 1
"""Of templates: changes with what is done to a machine before it is saved."""

# Whatever these are, the machine is the same.
_NOBODY: Final = uuid.UUID(int=0)
_NOWHERE: Final = Path("/")


def template_key(
    spec: VmmSpec, qemu: Qemu, accelerator: Accelerator, *, image: str, kernel: str, cpu: str
) -> str:
    """The name of the template that a machine of this kind starts from.

    Args:
        spec: the machine; its name, disk and generation do not count.
        image: the digest of its image.
        kernel: the digest of its kernel bundle, which has the agent in it.
        cpu: see `host_cpu`.
    """
    same = replace(
        spec, machine_id="0" * 12, name="template", disk=_NOWHERE, generation=_NOBODY, restore=None,
        counter_khz=None,
    )  # fmt: skip
    # All devices, their order and their options: a saved machine knows no others.
    fds = SocketFds(3, 4, 5, tuple(range(6, 6 + spec.share_ports)))
    argv = command_line(same, qemu, accelerator.name, fds)
    inputs = [FORMAT, argv, qemu.build, image, kernel, cpu]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]


def host_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The host's CPU, as far as a guest may have seen it: model and flags; blocks."""
    lines = cpuinfo.read_text(encoding="ascii", errors="replace").split("\n\n")[0].splitlines()
    return "\n".join(
        line for line in lines if line.startswith(("vendor_id", "model", "stepping", "flags"))
    )
