"""Whether KVM is used. What real guests do on KVM depends on the host; TCG can always be proved."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from vmgr.vmm import ProbeCache, Qemu, probe_accelerator
from vmgr.vmm.accelerator import check_kvm, prove_guest_runs

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

NESTED = "in a virtual machine, let its host allow nested virtualization"
BEGIN = "machines run under software emulation, since "


@pytest.fixture
def capable(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo-vmx"
    path.write_text("processor\t: 0\nflags\t\t: fpu vmx sse\n")
    return path


@pytest.fixture
def incapable(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: svm vmx\nflags\t\t: fpu vmx_not svm_lock\n")
    return path


def test_no_device(tmp_path: Path, capable: Path, incapable: Path) -> None:
    device = tmp_path / "kvm"
    found = check_kvm(device, capable)
    assert found is not None
    assert found.name == "tcg"
    assert found.reason == f"{BEGIN}there is no {device}"
    assert found.fix
    assert "modprobe" in found.fix
    found = check_kvm(device, incapable)
    assert found is not None
    assert found.reason == f"{BEGIN}this host's CPU offers no virtualization"
    assert found.fix == NESTED


def test_a_device_that_is_something_else(tmp_path: Path, capable: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    found = check_kvm(device, capable)
    assert found is not None
    assert found.reason == f"{BEGIN}{device} is no KVM: Inappropriate ioctl for device"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_device_that_may_not_be_opened(tmp_path: Path, capable: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0)
    found = check_kvm(device, capable)
    assert found is not None
    assert found.reason == f"{BEGIN}you may not open {device}"
    assert found.fix == "sudo usermod -aG kvm $USER, then log in again"


@pytest.mark.vm
async def test_a_guest_is_proved_to_run(qemu: Qemu, kernel: Path) -> None:
    assert await prove_guest_runs(qemu, kernel, "tcg", deadline=120) is None


@pytest.mark.vm
async def test_no_proof_in_time_is_no_proof(qemu: Qemu, kernel: Path) -> None:
    assert await prove_guest_runs(qemu, kernel, "tcg", 0.3) == "it did not start within 0.3 s"


@pytest.mark.vm
async def test_a_kernel_that_does_not_start_is_no_proof(qemu: Qemu, tmp_path: Path) -> None:
    bad = tmp_path / "vmlinux"
    bad.write_bytes(b"no kernel" * 1000)
    failure = await prove_guest_runs(qemu, bad, "tcg")
    assert failure is not None
    assert "\n" not in failure


@pytest.mark.vm
@pytest.mark.skipif(check_kvm() is None, reason="here KVM may work")
async def test_a_device_that_opens_is_not_believed(
    qemu: Qemu, kernel: Path, capable: Path, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """Here /dev/kvm is missing or its guests die: told that the CPU is capable, it is tried."""
    path = tmp_path / "probes.json"
    found = await probe_accelerator(qemu, kernel, ProbeCache(path), executor, cpuinfo=capable)
    assert found.name == "tcg"
    if path.exists():  # it was tried, and the answer is kept for this boot of the host
        [(key, answer)] = json.loads(path.read_text()).items()
        assert key.startswith("kvm ")
        assert answer["name"] == "tcg"
        path.write_text(json.dumps({key: answer | {"reason": "kept"}}))
        again = await probe_accelerator(qemu, kernel, ProbeCache(path), executor, cpuinfo=capable)
        assert again.reason == "kept"


async def test_this_host(
    qemu: Qemu, incapable: Path, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    cache = ProbeCache(tmp_path / "probes.json")
    found = await probe_accelerator(
        qemu, tmp_path / "kernel", cache, executor, device=tmp_path / "none", cpuinfo=incapable
    )
    assert found.name == "tcg"
    assert found.fix == NESTED
