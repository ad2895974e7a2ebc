"""The key of a template changes with all that could make it a wrong one, and with nothing else."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from vmgr.template import template_key
from vmgr.template.key import host_cpu
from vmgr.vmm import Accelerator, Qemu, VmmNetwork, VmmSpec

QEMU = Qemu(Path("/usr/bin/qemu-system-x86_64"), "7.2.22", "pc-q35-7.2", "build-1")
ACCELERATOR = Accelerator("tcg", "for a test")
SPEC = VmmSpec(
    machine_id="0123456789ab",
    name="web",
    cpus=2,
    memory_bytes=512 << 20,
    kernel=Path("/kernels/1/vmlinux"),
    initramfs=Path("/kernels/1/initramfs"),
    disk=Path("/state/disk.qcow2"),
    modules=Path("/kernels/1/modules.ext4"),
    backing=(Path("/images/1/root.ext4"),),
    init="/sbin/init",
    network=VmmNetwork(mac="02:00:00:00:00:01", tap_fd=9),
)


def key(spec: VmmSpec = SPEC, qemu: Qemu = QEMU, **other: str) -> str:
    given = {"image": "sha256:1", "kernel": "sha256:2", "cpu": "model 1", **other}
    return template_key(spec, qemu, ACCELERATOR, **given)


@pytest.mark.parametrize(
    "same",
    [
        {"name": "db"}, {"machine_id": "ba9876543210"}, {"disk": Path("/elsewhere.qcow2")},
        {"generation": uuid.uuid4()},
    ],
)  # fmt: skip
def test_whose_machine_it_is_does_not_count(same: dict[str, object]) -> None:
    assert key(replace(SPEC, **same)) == key()


@pytest.mark.parametrize(
    "other",
    [
        {"cpus": 1}, {"memory_bytes": 256 << 20}, {"init": None}, {"modules": None},
        {"backing": (Path("/images/1/root-1.ext4"),)}, {"kernel": Path("/kernels/2/vmlinux")},
        {"network": VmmNetwork(mac="02:00:00:00:00:01", user_mode="isolated")},
        {"network": VmmNetwork(mac="02:00:00:00:00:01")},
    ],
)  # fmt: skip
def test_what_the_machine_is_counts(other: dict[str, object]) -> None:
    assert key(replace(SPEC, **other)) != key()


@pytest.mark.parametrize("name", ["image", "kernel", "cpu"])
def test_what_it_is_made_of_counts(name: str) -> None:
    assert key(**{name: "another"}) != key()


def test_another_build_of_qemu_counts() -> None:
    assert key(qemu=replace(QEMU, build="build-2")) != key()


def test_the_cpu_is_its_model_and_flags(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor\t: 0\nvendor_id\t: V\nmodel name\t: M\ncpu MHz\t: 2596.1\nflags\t: a b\n\n"
        "processor\t: 1\nmodel name\t: N\n"
    )
    assert host_cpu(info) == "vendor_id\t: V\nmodel name\t: M\nflags\t: a b"
