"""One QEMU for each machine: its command line, its birth, what it says, its end."""

from vmgr.vmm.accelerator import Accelerator, probe_accelerator
from vmgr.vmm.boot import Booted, BootPolicy, boot
from vmgr.vmm.commandline import (
    LAYOUT,
    RECLAIM,
    SHARE_PORTS,
    Restore,
    SocketFds,
    VmmNetwork,
    VmmSpec,
    command_line,
)
from vmgr.vmm.exit import VmmExit
from vmgr.vmm.hotplug import SLOTS, VmmVolume
from vmgr.vmm.isolation import probe_vmm_sandbox
from vmgr.vmm.memory import available_memory, check_memory
from vmgr.vmm.probecache import ProbeCache
from vmgr.vmm.qemu import Qemu, find_qemu, qemu_program
from vmgr.vmm.stop import StopDeadlines, orderly_stop
from vmgr.vmm.traffic import DiskTraffic
from vmgr.vmm.vmm import Vmm

__all__ = [
    "LAYOUT",
    "RECLAIM",
    "SHARE_PORTS",
    "SLOTS",
    "Accelerator",
    "BootPolicy",
    "Booted",
    "DiskTraffic",
    "ProbeCache",
    "Qemu",
    "Restore",
    "SocketFds",
    "StopDeadlines",
    "Vmm",
    "VmmExit",
    "VmmNetwork",
    "VmmSpec",
    "VmmVolume",
    "available_memory",
    "boot",
    "check_memory",
    "command_line",
    "find_qemu",
    "orderly_stop",
    "probe_accelerator",
    "probe_vmm_sandbox",
    "qemu_program",
]
