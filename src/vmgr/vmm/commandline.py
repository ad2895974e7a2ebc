"""QEMU's command line, from what a machine is to be.

Every device is named here; `-nodefaults -no-user-config` keeps out all that a distribution or a
file in the home directory would add. Figures behind the choices:
docs/decisions/0003-machine-type-and-boot.md.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from vmgr.errors import UsageError
from vmgr.vmm.diskcopy import DISK_NODE, IMAGE_NODE
from vmgr.vmm.hotplug import slots, volumes
from vmgr.vmm.options import option, plain_value

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.vmm.hotplug import VmmVolume
    from vmgr.vmm.options import Value
    from vmgr.vmm.qemu import Qemu

__all__ = [
    "AGENT_PORT",
    "LAYOUT",
    "NETWORK_DEVICE",
    "RECLAIM",
    "SANDBOX",
    "SHARE_PORTS",
    "Restore",
    "SocketFds",
    "VmmNetwork",
    "VmmSpec",
    "command_line",
    "kernel_command_line",
]

AcceleratorName = Literal["kvm", "tcg"]

AGENT_PORT: Final = "vmgr.agent"  # docs/agent-protocol.md
SHARE_PORTS: Final = 6
"""How many ports for shares a machine has, used or not: saved machines have what they were saved
with, and each is half a mebibyte of the guest's memory."""
SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# Images say what their init is. The kernel splits its line at blanks and knows double quotes.
_INIT: Final = re.compile(r'/[^\s"\0-\x20\x7f]{1,255}')
_COMMAND_LINE_MAX: Final = 2047  # COMMAND_LINE_SIZE less its NUL, arch/x86/include/asm/setup.h

# TCG keeps translated guest code in a buffer that by default may grow to 1 GiB for each VMM. A
# quarter holds a busy Debian; when full it is emptied and filled anew.
_TRANSLATION_BUFFER_MIB: Final = 256

# What makes an idle kernel wake up without need, several times a second: watching for CPUs that are
# stuck (a busy host looks like that from inside), tidying memory for huge pages beforehand, folding
# counters. A machine can set each of them back (sysctl).
_QUIET_WHEN_IDLE: Final = (
    "nowatchdog", "sysctl.vm.compaction_proactiveness=0", "sysctl.vm.stat_interval=10",
)  # fmt: skip

# A model with x86-64-v2 (what today's distributions ask of a CPU at most) and no more: each further
# feature is detected, set up and saved by emulated code. RDRAND seeds the guest's kernel.
_EMULATED_CPU: Final = "Nehalem,+rdrand"
_HOST_CPU: Final = "host,migratable=off"


RECLAIM: Final = "vmgr.reclaim=1"
"""A kernel parameter: the agent loads what gives unused memory back. Of no use where memory is
mapped privately: QEMU would punch holes into what other machines start from, and may not."""

NETWORK_DEVICE: Final = "net"
"""The id of every machine's one network device."""


@dataclass(frozen=True)
class Restore:
    """A saved machine that a VMM takes up instead of booting one."""

    memory: int
    """fd of its memory: a file that the VMM maps privately, so it is never written to."""
    devices: bytes
    """The state of its devices, as the VMM that saved it wrote it."""


@dataclass(frozen=True, kw_only=True)
class VmmNetwork:
    """What a machine's network device is plugged into; with neither it has no cable."""

    mac: str
    tap_fd: int | None = None
    """A tap with VNET_HDR, passed to the VMM under this number."""
    user_mode: Literal["isolated", "open"] | None = None
    """QEMU's own network. `isolated`: only ports that are forwarded; `open`: whatever this user can
    reach, this computer's loopback too."""


LAYOUT: Final = 1
"""Which devices a machine has, and where. Raise it with every change of what a guest sees: what was
saved goes on with the same devices alone, and another number says so before QEMU finds out."""


@dataclass(frozen=True, kw_only=True)
class VmmSpec:
    """What a VMM is to run."""

    machine_id: str
    name: str
    """Also the machine's host name."""
    cpus: int
    memory_bytes: int
    kernel: Path
    initramfs: Path
    disk: Path
    """A qcow2 overlay."""
    backing: tuple[Path, ...] = ()
    """The files that the disk stands on, nearest first. Never read from the disk's own header: its
    VMM writes that file, and one that a guest has taken over could name any file of the person."""
    modules: Path | None = None
    """A raw image of the kernel's modules, seen read-only."""
    seed: Path | None = None
    """A raw image with cloud-init's user-data, seen read-only."""
    init: str | None = None
    """The program that becomes PID 1; None: the agent stays it."""
    network: VmmNetwork | None = None
    kernel_parameters: tuple[str, ...] = ()
    """Further ones; they come last, so they win."""
    restore: Restore | None = None
    """None: it boots."""
    volumes: tuple[VmmVolume, ...] = ()
    """Those that a restored machine has by now; all others are plugged in while it runs."""
    counter_khz: int | None = None
    """The speed of the host's time-stamp counter, which an emulated guest reads; None: unknown."""
    machine_type: str | None = None
    """Of a saved machine: the versioned type that it has; None: this QEMU's own."""
    share_ports: int = SHARE_PORTS
    """Of a saved machine: how many it has."""
    generation: uuid.UUID = field(default_factory=uuid.uuid4)
    """Another one tells the guest's kernel that its random state may be known to others
    (VMGENID)."""


@dataclass(frozen=True)
class SocketFds:
    """Listening sockets that the VMM gets: the numbers of its fds."""

    qmp: int
    agent: int
    console: int
    shares: tuple[int, ...] = ()
    """One for each of the machine's ports for shares."""
    devices: int | None = None
    """Where the state of a restored machine's devices comes from: the reading end of a pipe."""


def kernel_command_line(
    spec: VmmSpec,
    accelerator: AcceleratorName,
    *,
    verbose: bool = False,
    steady_tsc: bool = False,
    boot_alone: bool = False,
) -> str:
    """The guest kernel's command line; see kernel-parameters in the kernel's documentation.

    Args:
        verbose: let the kernel tell each step, for a boot that went wrong before.
        steady_tsc: the host keeps its own time by the time-stamp counter, see `vmgr.vmm.clock`.
        boot_alone: boot on one CPU; the agent brings up the others.

    Raises:
        UsageError: it would not mean what the spec says.
    """
    words = ["console=ttyS0"]
    if not verbose:
        words.append("quiet")
    # Self-tests of ciphers: a quarter of a second of emulated code.
    words.append("cryptomgr.notests")
    # A panic ends the VMM (`-action`), instead of spinning for ever.
    words.append("panic=-1")
    # One serial port: probing for three more costs time, and there are none.
    words.append("8250.nr_uarts=1")
    words += _QUIET_WHEN_IDLE
    if accelerator == "tcg":
        # The self-test of a random generator that only FIPS mode uses: 0.08 s of emulated code.
        words.append("initcall_blacklist=jent_mod_init")
        # A test of how the timer's interrupt is routed, which emulation gets right.
        words.append("no_timer_check")
        # They guard against what a real CPU does ahead of time. An emulated one does not, and pays:
        # page tables changed over at each system call empty the emulator's own TLB.
        words.append("mitigations=off")
        if steady_tsc:
            words.append("tsc=reliable")
            if spec.counter_khz is not None:
                words.append(f"tsc_early_khz={spec.counter_khz}")
    if boot_alone:
        words.append("maxcpus=1")
    # The one network device keeps the name that the kernel gives it, with udev too.
    words.append("net.ifnames=0")
    words.append(f"vmgr.hostname={spec.name}")
    if spec.init is not None:
        if not _INIT.fullmatch(spec.init):
            raise UsageError(
                f"{spec.init!r} cannot be an init program",
                next_step="import the image again with an absolute path without blanks",
            )
        words.append(f"vmgr.init={spec.init}")
    words += spec.kernel_parameters
    line = plain_value(" ".join(words))
    if len(line.encode()) > _COMMAND_LINE_MAX:
        raise UsageError(
            f"the kernel's command line is longer than the {_COMMAND_LINE_MAX} bytes "
            "that a kernel takes",
            next_step="give fewer kernel parameters",
        )
    return line


def command_line(
    spec: VmmSpec,
    qemu: Qemu,
    accelerator: AcceleratorName,
    sockets: SocketFds,
    *,
    verbose: bool = False,
    steady_tsc: bool = False,
) -> list[str]:
    """The arguments, QEMU's program first.

    Raises:
        UsageError: a path has a line break or NUL in it; or as `kernel_command_line`.
    """
    # Until 8.1 an emulated CPU may run stale code while another one patches it, as kernels do when
    # they boot.
    boot_alone = accelerator == "tcg" and spec.cpus > 1 and qemu.release < (8, 1)
    kernel_line = kernel_command_line(
        spec, accelerator, verbose=verbose, steady_tsc=steady_tsc, boot_alone=boot_alone
    )
    return [
        str(qemu.program),
        "-name", option(guest=f"vmgr-{spec.name}", debug_threads=True),
        "-nodefaults", "-no-user-config", "-display", "none", "-msg", "timestamp=on",
        "-sandbox", SANDBOX,
        *_board(spec, qemu, accelerator),
        *_life_cycle(),
        *_channels(sockets),
        *_disks(spec),
        *slots(),
        *volumes(spec.volumes),
        *_entropy(spec),
        *_network(spec.network),
        *_reclaiming(),
        *_seed(spec.seed),
        *_beginning(spec, kernel_line, sockets),
    ]  # fmt: skip


def _beginning(spec: VmmSpec, kernel_line: str, sockets: SocketFds) -> list[str]:
    """What the machine begins with: a kernel, or where another one stood still."""
    if spec.restore is None:
        return [
            "-kernel", plain_value(str(spec.kernel)),
            "-initrd", plain_value(str(spec.initramfs)),
            "-append", kernel_line,
        ]  # fmt: skip
    # What is written by `xen-save-devices-state` has no section that names the machine type; we
    # keep that beside it ourselves. A kernel is not needed: a reset ends the VMM.
    return [
        "-global", option("migration.send-configuration=off"),
        "-incoming", f"fd:{sockets.devices}",
    ]  # fmt: skip


def _board(spec: VmmSpec, qemu: Qemu, accelerator: AcceleratorName) -> list[str]:
    machine = option(
        spec.machine_type or qemu.machine_type,
        memory_backend="ram",
        # Controllers of which nothing hangs here; finding that out takes emulated time.
        usb=False,
        sata=False,
        smbus=False,
        vmport=False,  # VMware's back door
        hpet=False,  # an emulated read is slow, and the kernel would prefer it to better clocks
        dump_guest_core=False,
        mem_merge=False,  # merging pages tells one machine what another holds
        # Saved devices come without the description that a whole migration ends in.
        suppress_vmdesc=None if spec.restore is None else True,
    )
    if spec.restore is None:
        memory = option(
            "memory-backend-memfd",
            id="ram",
            size=spec.memory_bytes,
            share=True,  # so that device processes can map the same memory
            reserve=True,
            dump=False,
            merge=False,
        )
    else:
        memory = option(
            "memory-backend-file",
            id="ram",
            size=spec.memory_bytes,
            mem_path=f"/proc/self/fd/{spec.restore.memory}",
            share=False,
            reserve=True,
            dump=False,
            merge=False,
        )
    if accelerator == "kvm":
        accel, cpu = "kvm", _HOST_CPU
    else:
        accel = option("tcg", thread="multi", tb_size=_TRANSLATION_BUFFER_MIB)
        cpu = _EMULATED_CPU
    return [
        "-machine", machine, "-accel", accel, "-cpu", cpu,
        "-smp", option(cpus=spec.cpus, sockets=1, cores=spec.cpus, threads=1),
        "-m", option(size=f"{spec.memory_bytes}B"), "-object", memory,
        "-rtc", option(base="utc", clock="host"),
    ]  # fmt: skip


def _life_cycle() -> list[str]:
    # A reset ends the VMM like a power-off does. Who started it starts the next one: a reboot gets
    # fresh devices, the boot watchdog, and a machine as it is configured by then.
    return [
        "-action", option(reboot="shutdown", shutdown="poweroff", panic="shutdown"),
        "-device", "pvpanic",
    ]  # fmt: skip


def _channels(sockets: SocketFds) -> list[str]:
    def listening(name: str, fd: int) -> str:
        return option("socket", id=name, fd=fd, server=True, wait=False)

    return [
        "-chardev", listening("qmp", sockets.qmp),
        "-mon", option(chardev="qmp", mode="control"),
        "-chardev", listening("console", sockets.console),
        "-serial", "chardev:console",
        "-device", option("virtio-serial-pci", id="channels", disable_legacy=True),
        "-chardev", listening("agent", sockets.agent),
        "-device", option(
            "virtserialport", bus="channels.0", nr=1, chardev="agent", name=AGENT_PORT, id="agent"
        ),
        *(
            word
            for slot, fd in enumerate(sockets.shares)
            for word in (
                "-chardev", listening(f"share{slot}", fd),
                "-device", option(
                    "virtserialport", bus="channels.0", nr=2 + slot, chardev=f"share{slot}",
                    name=f"vmgr.share.{slot}", id=f"share{slot}",
                ),
            )
        ),
    ]  # fmt: skip


def _disks(spec: VmmSpec) -> list[str]:
    # Through the host's page cache, which all overlays of an image share; the guest's flushes reach
    # the disk. `locking` (fcntl) keeps a second VMM off. What the guest discards is given back. A
    # full host disk pauses the machine (werror) rather than failing its writes.
    arguments = [
        "-blockdev", option(
            driver="qcow2", node_name=DISK_NODE, discard="unmap",
            file__driver="file", file__filename=spec.disk, file__locking=True,
            file__aio="threads", file__discard="unmap", **_backing(spec.backing),
        ),
        "-device", option(
            "virtio-blk-pci", id="root", drive=DISK_NODE, serial="root", disable_legacy=True,
            werror="enospc", rerror="report",
        ),
    ]  # fmt: skip
    if spec.modules is not None:
        arguments += [
            "-blockdev", option(
                driver="raw", node_name="modules", read_only=True,
                file__driver="file", file__filename=spec.modules, file__locking=True,
                file__read_only=True,
            ),
            "-device", option(
                "virtio-blk-pci", id="modules", drive="modules", serial="modules",
                disable_legacy=True, num_queues=1,
            ),
        ]  # fmt: skip
    return arguments


def _backing(files: tuple[Path, ...]) -> dict[str, Value]:
    """What the disk stands on, named here rather than taken from the disk's header."""
    options: dict[str, Value] = {}
    prefix = ""
    for file in files:
        prefix += "backing__"
        # The last one is an image's file system; those before it are overlays.
        if prefix == "backing__":
            options[f"{prefix}node_name"] = IMAGE_NODE
        options[f"{prefix}driver"] = "raw" if file == files[-1] else "qcow2"
        options[f"{prefix}read_only"] = True
        options[f"{prefix}file__driver"] = "file"
        options[f"{prefix}file__filename"] = file
        options[f"{prefix}file__read_only"] = True
    return options


def _network(network: VmmNetwork | None) -> list[str]:
    # One device line for all machines, so that any saved state fits any machine: the agent tells a
    # machine its hardware address. No ROM: nothing boots from here.
    backend: list[str] = []
    if network is not None and network.tap_fd is not None:
        backend = ["-netdev", option("tap", id="uplink", fd=network.tap_fd)]
    elif network is not None and network.user_mode is not None:
        backend = ["-netdev", option(
            "user", id="uplink", ipv6=False, restrict=network.user_mode == "isolated"
        )]  # fmt: skip
    return [
        *backend,
        "-device", option(
            "virtio-net-pci", id=NETWORK_DEVICE, netdev="uplink" if backend else None,
            mac=network.mac if network is not None else None, disable_legacy=True,
        ) + ",romfile=",
    ]  # fmt: skip


def _reclaiming() -> list[str]:
    # Its driver is loaded where memory can be given back (docs/resources.md); the device is in all
    # machines, so that any saved state fits any. Last, so that none moves to another slot.
    return [
        "-device", option(
            "virtio-balloon-pci", id="balloon", free_page_reporting=True, disable_legacy=True
        ),
    ]  # fmt: skip


def _seed(seed: Path | None) -> list[str]:
    # After the balloon: the others stay where they are in machines without it.
    if seed is None:
        return []
    return [
        "-blockdev", option(
            driver="raw", node_name="seed", read_only=True,
            file__driver="file", file__filename=seed, file__read_only=True,
        ),
        "-device", option(
            "virtio-blk-pci", id="seed", drive="seed", serial="seed", disable_legacy=True,
            num_queues=1,
        ),
    ]  # fmt: skip


def _entropy(spec: VmmSpec) -> list[str]:
    return [
        "-object", option("rng-builtin", id="entropy"),
        "-device", option("virtio-rng-pci", rng="entropy", disable_legacy=True),
        "-device", option("vmgenid", id="generation", guid=str(spec.generation)),
    ]  # fmt: skip
