"""Fresh machines from a template, beside raw QEMU that restores the same one, in the same run.

Raw means: the command line of a machine that vmgr restored (from /proc), without its sandbox and
without a network, on the template's own files, until the agent has run a command. What is on top of
that is vmgr's: the row, the disk's copy, the sandbox, the network, the API.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clock import Row, ratios, stopwatch
from vmgr.agent import AgentChannel, MemoryKeyStore
from vmgr.api.models import CreateMachine, ExecSpec, MachineInfo
from vmgr.template.files import TemplateRecord

if TYPE_CHECKING:
    from vmgr.client.sync import Client

IMAGES = ("debian-minimal", "debian")
MEMORY = 512 << 20
MANY = 20
IDLE_SECONDS = 5.0
SETTLE_SECONDS = 15.0
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000
TICKS = os.sysconf("SC_CLK_TCK")


class RawRestore:
    """The command line of a machine that went on from a template, to be run without vmgr."""

    def __init__(self, machine: MachineInfo, template: Path, directory: Path) -> None:
        import msgspec

        assert machine.vmm is not None
        raw = Path(f"/proc/{machine.vmm.pid}/cmdline").read_bytes()
        argv = [os.fsdecode(argument) for argument in raw.split(b"\0")[:-1]]
        while not Path(argv[0]).name.startswith("qemu-system"):
            del argv[0]  # what sandboxes it
        memory = template / "memory"
        self.argv = [re.sub(r"mem-path=[^,]*", f"mem-path={memory}", a) for a in argv]
        self.directory = directory
        self.template = template
        self.disk = directory / "disk.qcow2"
        record = msgspec.json.decode((template / "template.json").read_bytes(), type=TemplateRecord)
        self.keys = record.saved.resync_keys

    def milliseconds(self) -> float:
        """From starting QEMU to the end of a first command."""
        shutil.copy(self.template / "disk.qcow2", self.disk)
        listeners: list[socket.socket] = []
        argv = list(self.argv)
        for i, argument in enumerate(argv):
            argv[i] = re.sub(r"file\.filename=[^,]+\.qcow2", f"file.filename={self.disk}", argument)
            if m := re.search(r"\bid=(\w+),fd=(\d+),server=on", argument):
                path = self.directory / f"{m[1]}.sock"
                path.unlink(missing_ok=True)
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(str(path))
                listener.listen(1)
                listeners.append(listener)
                argv[i] = argument.replace(f"fd={m[2]}", f"fd={listener.fileno()}")
        tap = None
        if any("tap,id=uplink" in argument for argument in argv):
            # The saved device has seen a tap's features, so it needs one; this one leads nowhere.
            tap = make_tap()
            argv = [re.sub(r"(tap,id=uplink,fd=)\d+", rf"\g<1>{tap}", a) for a in argv]
        read, write = os.pipe()
        argv[argv.index("-incoming") + 1] = f"fd:{read}"
        devices = (self.template / "devices").read_bytes()

        async def command() -> None:
            channel = await AgentChannel.connect(
                self.directory / "agent.sock", MemoryKeyStore(list(self.keys)), machine="raw",
                host_version="bench", on_event=lambda _event: None, logger=logging.getLogger("raw"),
            )  # fmt: skip
            await channel.configure(thaw=True, entropy=os.urandom(256))
            done = await channel.run([b"/bin/true"])
            assert done.exit.code == 0
            await channel.aclose()

        with stopwatch() as watch:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL,
                pass_fds=[
                    read,
                    *([] if tap is None else [tap]),
                    *(listener.fileno() for listener in listeners),
                ],
            )  # fmt: skip
            os.close(read)
            with os.fdopen(write, "wb") as pipe:
                pipe.write(devices)
            asyncio.run(command())
        process.kill()
        process.wait()
        if tap is not None:
            os.close(tap)
        for listener in listeners:
            listener.close()
        return watch.milliseconds


def make_tap() -> int:
    """A tap of nobody's that is down, see Documentation/networking/tuntap.rst."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    request = struct.pack("16sH22x", b"", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    try:
        fcntl.ioctl(fd, TUNSETIFF, request)
    except PermissionError:
        raise SystemExit("bench: making a tap for raw QEMU takes root") from None
    return fd


def measure(client: Client, image: str | None, rounds: int) -> list[Row]:
    rows: list[Row] = []
    for name in (image,) if image else IMAGES:
        rows += _one(client, name, rounds)
        rows += _many(client, name)
    return rows


def _kind(image: str, name: str | None = None) -> CreateMachine:
    return CreateMachine(name=name, image=image, memory_bytes=MEMORY)


def _one(client: Client, image: str, rounds: int) -> list[Row]:
    from vmgr.api.models import ImageBuild
    from vmgr.paths import Paths

    raw = Row(f"{image}: raw QEMU, restore to first command done", "ms")
    api = Row(f"{image}: create, start, first command done, API", "ms", goal="<= 150")
    cli = Row(f"{image}: vmgr run -- true, start to exit", "ms", goal="<= 300")
    client.image_build(ImageBuild(recipe=image))
    key = client.template_build(_kind(image)).key
    template = Paths.from_environment().templates / key
    words = ["run", "-q", "--memory", "512M", image, "--", "true"]
    command = [sys.executable, "-m", "vmgr.cli", *words]
    machine = client.machine_create(_kind(image, "bench-template"))
    with tempfile.TemporaryDirectory(prefix="vmgr-bench-") as directory:
        try:
            started = client.machine_start(machine.name)
            assert started.started_from == "template"
            recipe = RawRestore(started, template, Path(directory))
        finally:
            client.machine_remove(machine.name, force=True)
        for _ in range(rounds):
            raw.samples.append(recipe.milliseconds())
            with stopwatch() as watch:
                made = client.machine_create(_kind(image))
                client.machine_start(made.name)
                done = client.exec(made.name, ExecSpec(argv=["/bin/true"])).communicate()
            assert done.exit.exit_code == 0
            api.samples.append(watch.milliseconds)
            client.machine_remove(made.name, force=True)
            with stopwatch() as watch:
                subprocess.run(command, check=True)
            cli.samples.append(watch.milliseconds)
    for row, most in ((api, 150), (cli, 300)):
        row.met = row.median is not None and row.median <= most
    ratio = Row(f"{image}: API / raw", "x", ratios(api.samples, raw.samples), "<= 1.2")
    ratio.met = ratio.median is not None and ratio.median <= 1.2
    return [raw, api, ratio, cli]


def _many(client: Client, image: str) -> list[Row]:
    whole = Row(f"{image}: {MANY} machines, each having run a command", "s")
    memory = Row(f"{image}: proportional memory of an idle one of {MANY}", "MiB", goal="<= 35")
    idle = Row(f"{image}: CPU of {MANY} idle ones together", "%", goal="<= 10")
    names: list[str] = []
    try:
        with stopwatch() as watch:
            for _ in range(MANY):
                names.append(client.machine_create(_kind(image)).name)
                client.machine_start(names[-1])
                client.exec(names[-1], ExecSpec(argv=["/bin/true"])).communicate()
        whole.samples.append(watch.seconds)
        pids = [m.vmm.pid for m in client.machine_list() if m.name in names and m.vmm]
        # What a start leaves to do in the background is done by then; what remains is idling.
        time.sleep(SETTLE_SECONDS)
        before = sum(map(_ticks, pids))
        time.sleep(IDLE_SECONDS)
        used = (sum(map(_ticks, pids)) - before) / TICKS
        idle.samples.append(100 * used / IDLE_SECONDS)
        memory.samples += [_proportional(pid) / (1 << 20) for pid in pids]
    finally:
        for name in names:
            client.machine_remove(name, force=True)
    memory.met = memory.median is not None and memory.median <= 35
    idle.met = idle.samples[0] <= 10
    return [whole, memory, idle]


def _ticks(pid: int) -> int:
    """CPU time of a process in clock ticks, see proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _proportional(pid: int) -> int:
    """Bytes of memory, shared pages by the number of those who share them, see proc(5)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"bench: process {pid} does not tell its memory")
