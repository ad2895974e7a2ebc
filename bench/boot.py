"""Raw QEMU to `/init`, against `vmgr start` to the first command that has run.

Raw means: the very command line of the machine that vmgr runs (from /proc), with a copy of its disk
and the same kernel and initramfs, except that `/init` is a program of 150 bytes that says so on the
console and nothing else. What is on top of that is vmgr's: the agent's start, the root's mount, the
channel, the API, and a process started in the machine.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from clock import Row, ratios, stopwatch
from vmgr.api.models import CreateMachine, ExecSpec, MachineInfo, StopMachine

if TYPE_CHECKING:
    from vmgr.client.sync import Client

SAYS = b"raw init reached\n"
GOAL = 1.15
DEADLINE = 120.0


def init_program() -> bytes:
    """A static x86_64 ELF: write(1, SAYS), then pause() for ever. See elf(5), syscalls(2)."""
    code = bytes.fromhex(
        "b801000000"  # mov eax, 1 (write)
        "bf01000000"  # mov edi, 1
        "488d3510000000"  # lea rsi, [rip+16]: behind the code
        f"ba{len(SAYS):02x}000000"  # mov edx, length
        "0f05"  # syscall
        "b822000000"  # again: mov eax, 34 (pause)
        "0f05"  # syscall
        "ebf7"  # jmp again
    )
    base, header, program = 0x400000, 64, 56
    start = header + program
    size = start + len(code) + len(SAYS)
    elf = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, base + start, header, 0, 0, header, program, 1, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096)
    return elf + load + code + SAYS


def cpio_with(name: str, content: bytes) -> bytes:
    """A newc archive (cpio(5)) of one executable file; a later archive wins over earlier ones."""

    def member(path: str, mode: int, data: bytes) -> bytes:
        fields = (1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % value for value in fields) + path.encode() + b"\0"
        head += b"\0" * (-len(head) % 4)
        return head + data + b"\0" * (-len(data) % 4)

    return member(name, 0o100755, content) + member("TRAILER!!!", 0, b"")


def raw_initramfs(original: Path, target: Path) -> None:
    data = original.read_bytes()
    target.write_bytes(data + b"\0" * (-len(data) % 512) + cpio_with("init", init_program()))


class RawBoot:
    """The command line of a running machine, to be run without vmgr."""

    def __init__(self, machine: MachineInfo, directory: Path) -> None:
        assert machine.vmm is not None
        raw = Path(f"/proc/{machine.vmm.pid}/cmdline").read_bytes()
        self.argv = [os.fsdecode(argument) for argument in raw.split(b"\0")[:-1]]
        while not Path(self.argv[0]).name.startswith("qemu-system"):
            del self.argv[0]  # what sandboxes it
        if "-netdev" in self.argv:  # its other end is the switchboard's
            at = self.argv.index("-netdev")
            del self.argv[at : at + 2]
            self.argv = [argument.replace(",netdev=uplink", "") for argument in self.argv]
        self.directory = directory
        at = self.argv.index("-initrd") + 1
        initramfs = directory / "initramfs"
        raw_initramfs(Path(self.argv[at]), initramfs)
        self.argv[at] = str(initramfs)
        (self.disk,) = {
            m[1] for a in self.argv if (m := re.search(r"file\.filename=([^,]+\.qcow2)", a))
        }

    def milliseconds(self) -> float:
        """From starting QEMU to the first word of `/init`."""
        disk = self.directory / "disk.qcow2"
        shutil.copy(self.disk, disk)
        argv = [argument.replace(self.disk, str(disk)) for argument in self.argv]
        listeners: dict[str, socket.socket] = {}
        for i, argument in enumerate(argv):
            if m := re.search(r"\bid=(\w+),fd=(\d+),server=on", argument):
                path = self.directory / f"{m[1]}.sock"
                path.unlink(missing_ok=True)
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(str(path))
                listener.listen(1)
                listeners[m[1]] = listener
                argv[i] = argument.replace(f"fd={m[2]}", f"fd={listener.fileno()}")
        console = socket.socket(socket.AF_UNIX)
        console.settimeout(DEADLINE)
        console.connect(str(self.directory / "console.sock"))
        try:
            with stopwatch() as watch:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[listener.fileno() for listener in listeners.values()],
                )
                heard = b""
                while SAYS.strip() not in heard:
                    piece = console.recv(4096)
                    if not piece:
                        raise SystemExit(f"bench: raw QEMU ended: {heard[-500:]!r}")
                    heard += piece
            process.send_signal(signal.SIGKILL)
            process.wait()
        finally:
            console.close()
            for listener in listeners.values():
                listener.close()
        return watch.milliseconds


def measure(client: Client, image: str | None, pairs: int) -> list[Row]:
    raw = Row("raw QEMU to /init", "ms")
    start = Row("vmgr start to first exec answered", "ms")
    hello = Row("  of it: VMM start to agent's hello", "ms")
    command = Row("  of it: first exec", "ms")
    machine = client.machine_create(CreateMachine(name="bench-boot", image=image, cold=True))
    with tempfile.TemporaryDirectory(prefix="vmgr-bench-") as directory:
        try:
            recipe = RawBoot(client.machine_start(machine.name), Path(directory))
            client.machine_stop(machine.name, StopMachine())
            for _ in range(pairs):
                raw.samples.append(recipe.milliseconds())
                with stopwatch() as whole:
                    started = client.machine_start(machine.name)
                    with stopwatch() as first:
                        done = client.exec(machine.name, ExecSpec(argv=["/bin/true"])).communicate()
                assert done.exit.exit_code == 0
                start.samples.append(whole.milliseconds)
                hello.samples.append((started.boot_seconds or 0) * 1000)
                command.samples.append(first.milliseconds)
                client.machine_kill(machine.name)
        finally:
            client.machine_remove(machine.name, force=True)
    ratio = Row("vmgr start / raw QEMU", "x", ratios(start.samples, raw.samples), f"<= {GOAL}")
    ratio.met = ratio.median is not None and ratio.median <= GOAL
    return [raw, start, hello, command, ratio]
