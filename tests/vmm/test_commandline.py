"""What the command line must say. That QEMU takes it is seen in test_vmm.py."""

import dataclasses
import hashlib
import itertools
import uuid
from pathlib import Path
from typing import Any

import pytest

from vmgr.errors import UsageError
from vmgr.vmm.commandline import (
    LAYOUT,
    SANDBOX,
    SHARE_PORTS,
    SocketFds,
    VmmNetwork,
    VmmSpec,
    command_line,
    kernel_command_line,
)
from vmgr.vmm.qemu import Qemu

QEMU = Qemu(Path("/usr/bin/qemu-system-x86_64"), "7.2.22", "pc-q35-7.2", "b")


def spec(**changes: Any) -> VmmSpec:
    given: dict[str, Any] = {
        "machine_id": "0123456789ab", "name": "box", "cpus": 3, "memory_bytes": 512 << 20,
        "kernel": Path("/k/vmlinux"), "initramfs": Path("/k/initramfs"),
        "disk": Path("/d/disk.qcow2"),
    }  # fmt: skip
    return VmmSpec(**(given | changes))


def pairs(argv: list[str]) -> set[tuple[str, str]]:
    return set(itertools.pairwise(argv))


def test_nothing_comes_from_outside_and_the_sandbox_is_on() -> None:
    argv = command_line(spec(), QEMU, "tcg", SocketFds(7, 8, 9))
    assert argv[0] == str(QEMU.program)
    assert {"-nodefaults", "-no-user-config"} <= set(argv)
    assert ("-sandbox", SANDBOX) in pairs(argv)
    for word in ("spawn=deny", "elevateprivileges=deny", "obsolete=deny", "resourcecontrol=deny"):
        assert word in SANDBOX
    assert not any("netdev" in a or a == "-nic" for a in argv)


def test_sockets_are_handed_over_as_fds() -> None:
    argv = command_line(spec(), QEMU, "tcg", SocketFds(7, 8, 9))
    for name, fd in (("qmp", 7), ("agent", 8), ("console", 9)):
        assert ("-chardev", f"socket,id={name},fd={fd},server=on,wait=off") in pairs(argv)


def test_machines_that_see_other_devices_have_another_layout() -> None:
    """Saved machines go on with the devices that they had: after a change, LAYOUT is raised."""
    network = VmmNetwork(mac="52:54:00:00:00:01", tap_fd=20)
    whole = spec(modules=Path("/m"), seed=Path("/s"), network=network, generation=uuid.UUID(int=1))
    argv = command_line(whole, QEMU, "tcg", SocketFds(7, 8, 9, tuple(range(10, 10 + SHARE_PORTS))))
    devices = [
        value for word, value in itertools.pairwise(argv) if word in {"-device", "-cpu", "-machine"}
    ]
    seen = hashlib.sha256("\n".join(devices).encode()).hexdigest()[:16]
    assert (LAYOUT, seen) == (1, "97d774ce01087c7e")


def test_the_machine_type_is_a_versioned_one() -> None:
    argv = command_line(spec(), QEMU, "tcg", SocketFds(7, 8, 9))
    assert argv[argv.index("-machine") + 1].startswith("pc-q35-7.2,")


@pytest.mark.parametrize(
    ("accelerator", "begins", "cpu"), [("kvm", "kvm", "host"), ("tcg", "tcg,thread=multi", "Neha")]
)
def test_accelerators(accelerator: Any, begins: str, cpu: str) -> None:
    argv = command_line(spec(), QEMU, accelerator, SocketFds(7, 8, 9))
    assert argv[argv.index("-accel") + 1].startswith(begins)
    assert argv[argv.index("-cpu") + 1].startswith(cpu)


def test_the_modules_disk_is_read_only_and_optional() -> None:
    with_disk = command_line(spec(modules=Path("/k/m")), QEMU, "tcg", SocketFds(7, 8, 9))
    [blockdev] = [a for a in with_disk if "node-name=modules" in a]
    assert {"read-only=on", "file.read-only=on"} <= set(blockdev.split(","))
    assert any("serial=modules" in a for a in with_disk)
    without = command_line(spec(), QEMU, "tcg", SocketFds(7, 8, 9))
    assert not any("modules" in a for a in without)


def test_each_start_is_a_generation_of_its_own() -> None:
    assert spec().generation != spec().generation


def test_kernel_parameters() -> None:
    words = kernel_command_line(spec(init="/sbin/init", kernel_parameters=("a=b", "quiet")), "tcg")
    assert words.split()[:2] == ["console=ttyS0", "quiet"]
    assert words.endswith(" vmgr.hostname=box vmgr.init=/sbin/init a=b quiet")
    assert {"panic=-1", "nowatchdog", "sysctl.vm.stat_interval=10"} <= set(words.split())
    assert {"no_timer_check", "mitigations=off"} <= set(words.split())
    # A real CPU needs what guards against it.
    on_kvm = set(kernel_command_line(spec(), "kvm").split())
    assert not on_kvm & {"no_timer_check", "mitigations=off"}
    assert "tsc=reliable" not in words.split()
    assert "tsc=reliable" in kernel_command_line(spec(), "tcg", steady_tsc=True).split()
    assert "tsc=reliable" not in kernel_command_line(spec(), "kvm", steady_tsc=True).split()
    assert "vmgr.init" not in kernel_command_line(spec(), "tcg")
    assert "quiet" not in kernel_command_line(spec(), "tcg", verbose=True).split()


@pytest.mark.parametrize(
    ("accelerator", "cpus", "version", "alone"),
    [
        ("tcg", 2, "7.2.22", True),
        ("tcg", 2, "8.0.5", True),
        ("tcg", 2, "8.1.0", False),
        ("tcg", 2, "10.0.2", False),
        ("tcg", 1, "7.2.22", False),
        ("kvm", 2, "7.2.22", False),
    ],
)
def test_kernels_that_old_emulators_break_boot_on_one_cpu(
    accelerator: Any, cpus: int, version: str, alone: object
) -> None:
    qemu = dataclasses.replace(QEMU, version=version)
    argv = command_line(spec(cpus=cpus), qemu, accelerator, SocketFds(7, 8, 9))
    assert ("maxcpus=1" in argv[argv.index("-append") + 1].split()) is alone


@pytest.mark.parametrize("init", ["/sbin/init panic=0", "/a\tb", '/"x', "/a\nb", "relative", ""])
def test_an_images_init_cannot_add_parameters(init: str) -> None:
    with pytest.raises(UsageError, match="cannot be an init program"):
        kernel_command_line(spec(init=init), "tcg")


def test_too_long_a_command_line_is_refused_rather_than_cut() -> None:
    with pytest.raises(UsageError, match="longer than the 2047 bytes that a kernel takes"):
        kernel_command_line(spec(kernel_parameters=("x" * 2048,)), "tcg")
