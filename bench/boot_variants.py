"""Which machine type, CPU model and kernel parameters boot fastest under emulation.

    .venv/bin/python bench/boot_variants.py BUNDLE [ROUNDS]

BUNDLE is a kernel bundle's directory. Each variant boots the kernel without a disk or initramfs
until it misses its root file system, which ends the VMM; told are the least and the median of wall
and of CPU seconds. The variants take turns, so that what else the computer does falls on all of
them alike. Only the CPU seconds mean something on a busy computer. Results:
docs/decisions/0003-machine-type-and-boot.md.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vmgr.spawner import run
from vmgr.vmm import ProbeCache, Qemu, VmmSpec, find_qemu
from vmgr.vmm.commandline import SocketFds, command_line

# Name: pairs of what is replaced in the arguments and by what; "" cannot be told from a mistake.
VARIANTS: dict[str, list[tuple[str, str]]] = {
    "as it is": [],
    "pc": [("pc-q35", "pc-i440fx"), (",sata=off,smbus=off", "")],
    "with SATA and SMBus": [(",sata=off,smbus=off", "")],
    "compressed kernel": [("/vmlinux", "/vmlinuz")],
    "-cpu max": [("Nehalem,+rdrand", "max")],
    "-cpu qemu64": [("Nehalem,+rdrand", "qemu64,+rdrand")],
    "-cpu Haswell": [("Nehalem,+rdrand", "Haswell-noTSX,+rdrand")],
    "kernel talks": [(" quiet", "")],
    "ciphers' self-tests": [(" cryptomgr.notests", "")],
    "jitter self-test": [(" initcall_blacklist=jent_mod_init", "")],
    "timer's self-test": [(" no_timer_check", "")],
    "clock's self-test": [(" tsc=reliable", "")],
    "anonymous memory": [("memory-backend-memfd", "memory-backend-ram"), (",share=on", "")],
    "two CPUs": [("cpus=1,sockets=1,cores=1", "cpus=2,sockets=1,cores=2")],
}


async def boot(argv: list[str], listener: socket.socket) -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    done = await run(argv, pass_fds=(listener.fileno(),), deadline=120, check=False)
    took = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if b"VFS: Unable to mount root fs" not in done.stdout:
        raise SystemExit(done.stderr.decode(errors="replace") + " ".join(argv))
    return took, sum(after[:2]) - sum(before[:2])


def arguments(qemu: Qemu, bundle: Path, disk: Path, fd: int) -> list[str]:
    spec = VmmSpec(
        machine_id="0" * 12, name="bench", cpus=1, memory_bytes=512 << 20, disk=disk,
        kernel=bundle / "vmlinux", initramfs=bundle / "none",
    )  # fmt: skip
    argv = command_line(spec, qemu, "tcg", SocketFds(fd, fd, fd), steady_tsc=True)
    del argv[argv.index("-initrd") : argv.index("-initrd") + 2]
    argv[argv.index("chardev:console")] = "stdio"
    # One socket will do for the QMP and agent channels that nobody talks on.
    plain = ["null,id=" + a.split("id=")[1].split(",")[0] if f"fd={fd}" in a else a for a in argv]
    where = plain.index("null,id=qmp")
    return plain[: where - 1] + plain[where + 3 :]


async def main(bundle: Path, rounds: int) -> None:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    with (
        tempfile.TemporaryDirectory() as directory,
        ThreadPoolExecutor(1) as executor,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        disk = Path(directory, "disk.qcow2")
        await run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"])
        qemu = await find_qemu(ProbeCache(Path(directory, "probes.json")), executor)
        base = arguments(qemu, bundle, disk, listener.fileno())
        for turn in range(rounds):
            for name, changes in VARIANTS.items():
                argv = list(base)
                for old, new in changes:
                    if not any(old in a for a in argv):
                        raise SystemExit(f"{name}: there is no {old!r} to replace")
                    argv = [a.replace(old, new) for a in argv]
                taken[name].append(await boot(argv, listener))
            print(f"round {turn + 1} of {rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    print(f"{'':24}{'wall min':>10}{'median':>10}{'CPU min':>10}{'median':>10}")
    for name, pairs in taken.items():
        wall, cpu = zip(*pairs, strict=True)
        figures = (min(wall), statistics.median(wall), min(cpu), statistics.median(cpu))
        print(f"{name:24}" + "".join(f"{f:10.2f}" for f in figures))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 5))
