"""What runs a machine's CPUs: KVM where it is proved to work, else emulation.

`/dev/kvm` opening, and even a virtual machine being created, proves little: on some cloud hosts
both work and every real guest dies. So after the cheap checks, whose refusal comes with a reason
and a fix, the kernel of the bundle is booted on KVM without any disk. When it has come to the point
where it misses its root file system, it has run in every mode that matters: real, protected and
long mode, with interrupts, timers and all its CPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from vmgr.spawner import run
from vmgr.vmm.commandline import SANDBOX
from vmgr.vmm.options import option, plain_value
from vmgr.vmm.probecache import fingerprint

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from vmgr.vmm.probecache import ProbeCache
    from vmgr.vmm.qemu import Qemu

__all__ = ["Accelerator", "check_kvm", "probe_accelerator", "prove_guest_runs"]

KVM: Final = Path("/dev/kvm")
PROOF_DEADLINE: Final = 20.0  # seconds; on KVM it takes less than two
_CPUINFO: Final = Path("/proc/cpuinfo")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_KVM_GET_API_VERSION: Final = 0xAE00  # _IO(KVMIO, 0x00), linux/kvm.h
_KVM_API_VERSION: Final = 12  # "stable", the only one; Documentation/virt/kvm/api.rst
_EMULATED: Final = "machines run under software emulation"
_NESTED: Final = "in a virtual machine, let its host allow nested virtualization"
# What a kernel says that has started completely and finds no root file system (init/do_mounts.c).
_PROOF: Final = b"VFS: Unable to mount root fs"
_GUEST_MEMORY_MIB: Final = 256


@dataclass(frozen=True)
class Accelerator:
    """What machines run on, and why."""

    name: Literal["kvm", "tcg"]
    reason: str
    """For people: one sentence without a final stop."""
    fix: str | None = None
    """How to get KVM, where there is a way."""


async def probe_accelerator(
    qemu: Qemu,
    kernel: Path,
    cache: ProbeCache,
    executor: Executor,
    *,
    device: Path = KVM,
    cpuinfo: Path = _CPUINFO,
) -> Accelerator:
    """Find out what machines can run on.

    The answer of a proof is kept for this QEMU, kernel and boot of the host; the cheap checks are
    made each time, so that joining a group takes effect at once.

    Args:
        kernel: the bundle's.
        executor: for reading files.
        device, cpuinfo: where to look.
    """
    loop = asyncio.get_running_loop()
    refusal = await loop.run_in_executor(executor, check_kvm, device, cpuinfo)
    if refusal is not None:
        return refusal

    def look() -> tuple[str, Accelerator | None]:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
        key = f"kvm {qemu.build} {fingerprint(kernel)} {boot}"
        known = cache.get(key)
        if known is not None:
            with contextlib.suppress(TypeError):  # written by another version of vmgr
                return key, Accelerator(**known)
        return key, None

    key, known = await loop.run_in_executor(executor, look)
    if known is None:
        failure = await prove_guest_runs(qemu, kernel, "kvm")
        if failure is None:
            known = Accelerator("kvm", "machines run on KVM, on which a guest was seen to run")
        else:
            known = Accelerator(
                "tcg", f"{_EMULATED}, since {device} is there but a guest does not run: {failure}"
            )
        await loop.run_in_executor(executor, cache.put, key, asdict(known))
    return known


def check_kvm(device: Path = KVM, cpuinfo: Path = _CPUINFO) -> Accelerator | None:
    """The checks that cost nothing; why it is not KVM, or None when only a guest can tell.

    Opens a device: not for the loop's thread.
    """
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return _no_device(device, error, cpuinfo)
    try:
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION)
    except OSError as error:
        return Accelerator("tcg", f"{_EMULATED}, since {device} is no KVM: {error.strerror}")
    finally:
        os.close(fd)
    if version != _KVM_API_VERSION:
        return Accelerator("tcg", f"{_EMULATED}, since {device} speaks version {version} of KVM")
    if not _has_virtualization(cpuinfo):
        return Accelerator(
            "tcg",
            f"{_EMULATED}, since {device} opens but the CPU has no virtualization (vmx or svm)",
            _NESTED,
        )
    return None


def _no_device(device: Path, error: OSError, cpuinfo: Path) -> Accelerator:
    if isinstance(error, PermissionError):
        return Accelerator(
            "tcg",
            f"{_EMULATED}, since you may not open {device}",
            "sudo usermod -aG kvm $USER, then log in again",
        )
    if not isinstance(error, FileNotFoundError):
        return Accelerator("tcg", f"{_EMULATED}, since {device} does not open: {error.strerror}")
    if _has_virtualization(cpuinfo):
        return Accelerator(
            "tcg",
            f"{_EMULATED}, since there is no {device}",
            "sudo modprobe kvm_intel (or kvm_amd); if that fails, enable virtualization in the "
            "firmware's set-up",
        )
    return Accelerator(
        "tcg", f"{_EMULATED}, since this host's CPU offers no virtualization", _NESTED
    )


async def prove_guest_runs(
    qemu: Qemu,
    kernel: Path,
    accelerator: Literal["kvm", "tcg"],
    deadline: float = PROOF_DEADLINE,
) -> str | None:
    """Boot the kernel without a disk until it misses its root; why it does not get there, or None.

    Args:
        deadline: seconds it may take.
    """
    cpu = "host" if accelerator == "kvm" else "max"
    argv = [
        str(qemu.program),
        "-nodefaults", "-no-user-config", "-display", "none", "-sandbox", SANDBOX,
        "-machine", option(qemu.machine_type, usb=False, sata=False, vmport=False),
        "-accel", accelerator, "-cpu", cpu, "-smp", "2", "-m", option(size=f"{_GUEST_MEMORY_MIB}M"),
        "-action", option(reboot="shutdown", shutdown="poweroff"),
        "-serial", "stdio",
        "-kernel", plain_value(str(kernel)),
        "-append", "console=ttyS0 panic=-1 cryptomgr.notests no_timer_check 8250.nr_uarts=1",
    ]  # fmt: skip
    try:
        done = await run(argv, deadline=deadline, check=False)
    except TimeoutError:
        return f"it did not start within {deadline:g} s"
    except OSError as error:
        return f"{qemu.program} could not be started: {error.strerror}"
    if _PROOF in done.stdout:
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if said:
        return said[-1].removeprefix("qemu-system-x86_64: ")[:200]
    return f"QEMU {done.status} before the kernel had started"


def _has_virtualization(cpuinfo: Path) -> bool:
    """Whether the CPU has VMX or SVM by the kernel's account; see proc(5)."""
    for line in cpuinfo.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return bool({"vmx", "svm"} & set(value.split()))
    return False
