"""Real VMMs, running a real kernel and a guest of a few system calls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from asyncinotify import Inotify, Mask

from vmgr.errors import ConflictError, MachineError, NotFoundError, ResourceError, StateError
from vmgr.vmm import Vmm

from .conftest import Lab, Refused
from .guest import Guest

pytestmark = pytest.mark.vm


def open_fds() -> set[str]:
    return open_fds_of(os.getpid())


def open_fds_of(pid: int) -> set[str]:
    links = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            links.add(str(fd.readlink()))
    return links


def exists(path: Path | str) -> bool:
    return Path(path).exists()


async def test_runs_a_guest_to_its_power_off(lab: Lab) -> None:
    events: list[tuple[str, Any]] = []
    vmm = await lab.start(
        lab.spec(Guest().say(b"I live\n").power_off()),
        on_event=lambda name, data: events.append((name, data)),
    )
    ended = await vmm.wait()
    assert ended.cause == "poweroff"
    assert ended.by_guest
    assert ended.reason == "the machine powered itself off"
    assert ended.status.code == 0
    assert vmm.console is not None
    assert "I live" in vmm.console.tail()
    assert b"I live\r\n" in lab.paths.console_log.read_bytes()
    assert ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}) in events


async def test_a_guests_reset_ends_the_vmm_as_a_reboot(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().reset()))
    ended = await vmm.wait()
    assert (ended.cause, ended.reason) == ("reboot", "the machine rebooted")


async def test_a_panic_is_told_with_the_kernels_words(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().panic()))
    ended = await vmm.wait()
    assert ended.cause == "panic"
    assert ended.by_guest
    assert ended.reason.startswith("the machine's kernel panicked: Attempted to kill init!")


async def test_a_killed_vmm_is_no_power_off(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().idle()))
    os.kill(vmm.pid, signal.SIGKILL)
    ended = await vmm.wait()
    assert ended.cause == "failed"
    assert not ended.by_guest
    assert ended.reason == "its VMM was killed by SIGKILL"


async def test_kill_tells_why_we_did_it(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().idle()))
    ended = await vmm.kill("killed by vmgr kill")
    assert (ended.cause, ended.reason) == ("asked", "killed by vmgr kill")
    assert not vmm.running


async def test_the_process_is_as_it_should_be(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().idle()))
    process = Path(f"/proc/{vmm.pid}")
    status = dict(
        line.split(":\t", 1) for line in process.joinpath("status").read_text().splitlines()
    )
    assert status["Umask"] == "0077"
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    assert os.getsid(vmm.pid) == vmm.pid
    assert process.joinpath("cwd").readlink() == Path("/")
    assert process.joinpath("oom_score_adj").read_text() == "300\n"
    # No terminal: field 7 of /proc/PID/stat, proc(5).
    assert process.joinpath("stat").read_text().rpartition(")")[2].split()[4] == "0"
    for path in (lab.paths.qmp_socket, lab.paths.agent_socket, lab.paths.console_socket):
        found = path.stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(lab.paths.runtime.stat().st_mode) == 0o700
    for log in (lab.paths.vmm_log, lab.paths.console_log):
        assert not exists(log) or stat.S_IMODE(log.stat().st_mode) == 0o600


async def test_another_helper_takes_over(lab: Lab) -> None:
    """The first helper is a process of its own, and is killed."""
    spec = lab.spec(Guest().open_port().receive().say(b"still here\n").power_off())
    script = f"""
import asyncio, os, signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID
from pathlib import PosixPath
from vmgr.paths import MachinePaths
from vmgr.sandbox import Need, Sandbox
from vmgr.vmm import Accelerator, Qemu, Vmm, VmmSpec

async def main():
    vmm = await Vmm.start({spec!r}, {lab.paths!r}, {lab.qemu!r}, Accelerator("tcg", ""),
                          ThreadPoolExecutor(1), sandbox={lab.sandbox!r})
    print(vmm.pid, vmm.start_time, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    first = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await first.communicate()
    assert first.returncode == -signal.SIGKILL
    pid, start_time = map(int, printed.split())
    assert await Vmm.adopt("box", pid, start_time + 1, lab.paths, lab.executor) is None
    vmm = await Vmm.adopt("box", pid, start_time, lab.paths, lab.executor)
    assert vmm is not None
    lab.vmms.append(vmm)
    assert vmm.running
    await vmm.powerdown()  # QMP works; a guest without a driver for the button ignores it
    _, writer = await asyncio.open_unix_connection(str(lab.paths.agent_socket))
    writer.write(b"x")
    ended = await vmm.wait()
    writer.close()
    assert ended.cause == "poweroff"
    assert b"still here" in lab.paths.console_log.read_bytes()


async def test_the_end_of_an_adopted_vmm_is_seen(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().idle()))
    assert vmm.start_time is not None
    await vmm.close()
    assert exists(f"/proc/{vmm.pid}")
    adopted = await Vmm.adopt("box", vmm.pid, vmm.start_time, lab.paths, lab.executor)
    assert adopted is not None
    lab.vmms.append(adopted)
    os.kill(vmm.pid, signal.SIGKILL)
    ended = await adopted.wait()
    assert ended.cause == "unknown"
    assert ended.reason == "its VMM has gone"


async def test_nothing_is_left_open(lab: Lab) -> None:
    spec = lab.spec(Guest().power_off())
    before = open_fds()
    tasks = asyncio.all_tasks()
    vmm = await lab.start(spec)
    await vmm.wait()
    await vmm.close()
    assert open_fds() == before
    assert asyncio.all_tasks() == tasks


async def test_two_vmms_cannot_open_one_disk(lab: Lab, refused: Refused, directory: Path) -> None:
    spec = lab.spec(Guest().idle())
    await lab.start(spec)
    other = Lab(
        type(lab.paths)(directory / "state", directory / "run2"),
        lab.kernel, lab.qemu, lab.executor, lab.vmms, lab.sandbox,
    )  # fmt: skip
    error = await refused(other.start(spec))
    assert isinstance(error, ConflictError)
    assert error.message == "the disk of machine box is in use by another process"
    assert len(lab.vmms) == 1


@pytest.mark.parametrize(
    "name", ["a,b", "a,readonly=on", "a b", "'a\"", "a=b", "ü→日本", "a\\b", "%s$HOME`x`"]
)
async def test_odd_paths_are_only_paths(lab: Lab, name: str, directory: Path) -> None:
    odd = directory / name
    odd.mkdir()
    kernel, modules = odd / "vmlinux", odd / "modules,img"
    kernel.symlink_to(lab.kernel)
    modules.write_bytes(bytes(1 << 20))
    lab.paths = type(lab.paths)(odd, directory / "run")
    spec = lab.spec(Guest().power_off(), kernel=kernel, modules=modules, disk=odd / "disk,1.qcow2")
    vmm = await lab.start(spec)
    assert {str(spec.disk), str(modules)} <= open_fds_of(vmm.pid)
    assert (await vmm.wait()).cause == "poweroff"


async def test_what_is_missing_is_named_before_qemu_is_started(
    lab: Lab, refused: Refused, directory: Path
) -> None:
    spec = lab.spec(Guest().idle(), kernel=directory / "gone")
    error = await refused(lab.start(spec))
    assert isinstance(error, NotFoundError)
    assert error.message == f"the kernel is missing: there is no file {directory}/gone"
    empty = directory / "empty"
    empty.touch()
    error = await refused(lab.start(lab.spec(Guest().idle(), modules=empty)))
    assert isinstance(error, StateError)
    assert "the kernel modules' disk cannot be read or is empty" in error.message


async def test_a_kernel_that_is_none_ends_in_one_sentence(
    lab: Lab, refused: Refused, directory: Path
) -> None:
    bad = directory / "vmlinux"
    bad.write_bytes(b"no kernel" * 1000)
    error = await refused(lab.start(lab.spec(Guest().idle(), kernel=bad)))
    assert isinstance(error, MachineError)
    assert error.message.startswith("the VMM of machine box did not start: ")
    assert "kernel" in error.message
    assert "\n" not in str(error)


async def test_more_memory_than_the_host_has_left_is_refused(lab: Lab, refused: Refused) -> None:
    error = await refused(lab.start(lab.spec(Guest().idle(), memory_bytes=1 << 50)))
    assert isinstance(error, ResourceError)
    assert error.message.startswith("machine box needs 1 PiB of memory, but the host has only ")


async def test_a_cancelled_start_leaves_no_process(lab: Lab) -> None:
    spec = lab.spec(Guest().idle())
    starting = asyncio.ensure_future(lab.start(spec))
    while not (found := _qemus_of(lab.paths.disk)):
        assert not starting.done()
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not any(exists(f"/proc/{pid}") for pid in found)


def _qemus_of(disk: Path) -> list[int]:
    done = subprocess.run(
        ["pgrep", "-f", f"filename={disk}"], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in done.stdout.split()]


async def test_a_flooding_guest_costs_two_capped_files(lab: Lab) -> None:
    from vmgr.vmm.cappedlog import CAP

    vmm = await lab.start(lab.spec(Guest().flood(b"0123456789abcdef" * 256 + b"\n")))
    older = lab.paths.console_log.with_name("console.log.1")
    with Inotify() as watch:
        watch.add_watch(lab.paths.state, Mask.MOVED_TO)
        async for event in watch:
            if str(event.name) == older.name:
                break
    assert vmm.console is not None
    assert older.stat().st_size <= CAP
    assert lab.paths.console_log.stat().st_size <= CAP
    assert len(vmm.console.tail()) <= 16_384
    await vmm.kill("enough", at_once=True)
