"""The sandbox of real VMMs, seen from /proc of their processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.conftest import wait_for_end

from vmgr.errors import MachineError
from vmgr.sandbox import Need, Sandbox
from vmgr.spawner import Contained, run
from vmgr.spawner.process import start_time_of
from vmgr.vmm import ProbeCache, Qemu, Vmm, VmmSpec, probe_vmm_sandbox
from vmgr.vmm.isolation import need_of

from .guest import Guest

if TYPE_CHECKING:
    from .conftest import Lab, Refused

NAMESPACES = ("user", "mnt", "pid", "ipc", "net", "uts")


def spec(directory: Path, **changes: object) -> VmmSpec:
    given = {
        "machine_id": "0123456789ab", "name": "box", "cpus": 1, "memory_bytes": 1 << 28,
        "kernel": directory / "k", "initramfs": directory / "i", "disk": directory / "d",
    }  # fmt: skip
    return VmmSpec(**{**given, **changes})  # type: ignore[arg-type]


def test_a_vmm_needs_what_its_spec_names(tmp_path: Path) -> None:
    base, modules = tmp_path / "base", tmp_path / "m"
    need = need_of(spec(tmp_path, backing=(base,), modules=modules), "tcg")
    assert set(need.read_only) == {tmp_path / "k", tmp_path / "i", base, modules}
    assert need.writable == (tmp_path / "d",)
    assert need.devices == ()
    assert not need.network
    assert need_of(spec(tmp_path), "kvm").devices == (Path("/dev/kvm"),)


async def test_qemu_itself_is_tried(qemu: Qemu, directory: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        cache = ProbeCache(directory / "p.json")
        found = await probe_vmm_sandbox(qemu, cache, executor)
        assert found.level in {"namespaces", "full"}, found.reason
        assert await probe_vmm_sandbox(qemu, ProbeCache(directory / "p.json"), executor) == found
        # A QEMU whose modules are not seen does not start, and that is noticed.
        broken = await probe_vmm_sandbox(
            Qemu(Path("/usr/bin/false"), "7.2.22", qemu.machine_type, "b"), cache, executor
        )
    assert broken.level == "filter"


machine = pytest.mark.vm


# -- looking from outside --------------------------------------------------------------------------


def runs(pid: int) -> bool:
    return start_time_of(pid) is not None  # a zombie, which waits for the host's init, does not


def text(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def status(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text(pid, "status").splitlines())


def limits(pid: int, name: str) -> list[str]:
    """Soft and hard."""
    [line] = [line for line in text(pid, "limits").splitlines() if line.startswith(name)]
    return line.removeprefix(name).split()[:2]


def tasks(pid: int) -> list[str]:
    return [entry.name for entry in Path(f"/proc/{pid}/task").iterdir()]


def environment_names(pid: int) -> set[str]:
    return {entry.partition("=")[0] for entry in text(pid, "environ").split("\0")[:-1]}


def namespace(pid: int | str, name: str) -> Path:
    return Path(f"/proc/{pid}/ns/{name}").readlink()


def seen_by(pid: int, *places: str | Path) -> set[str]:
    """Which of these places the process sees in its root."""
    root = Path(f"/proc/{pid}/root")
    return {str(p) for p in places if root.joinpath(str(p).lstrip("/")).exists()}


def listing(pid: int, place: str) -> set[str]:
    return {entry.name for entry in Path(f"/proc/{pid}/root/{place}").iterdir()}


def opened(pid: int) -> set[str]:
    return {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115 (not always paths)


@machine
async def test_a_vmm_sees_its_machines_files_and_qemu(lab: Lab) -> None:
    beside = lab.paths.state / "another-file"
    beside.write_text("not for this VMM")
    spec = lab.spec(Guest().idle())
    vmm = await lab.start(spec)
    named = (spec.disk, spec.kernel, spec.initramfs)
    assert seen_by(vmm.pid, *named) == set(map(str, named))
    of_the_person = ("/home", "/root", "/proc", "/sys", "/run", "/etc/passwd")
    programs = ("/bin/sh", "/usr/bin/sh", "/usr/bin/python3")
    ours = {path.parts[1] for path in named}  # an ordinary user's kernels are below /home
    hidden = [place for place in of_the_person if place.lstrip("/") not in ours]
    assert seen_by(vmm.pid, beside, *hidden, *programs) == set()
    assert listing(vmm.pid, "/") <= {"dev", "etc", "lib", "lib64", "usr"} | ours
    assert listing(vmm.pid, "/dev") == {"null", "urandom"}


@machine
async def test_a_vmm_has_namespaces_of_its_own_and_no_rights(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().idle()))
    for name in NAMESPACES:
        assert namespace(vmm.pid, name) != namespace("self", name), name
    seen = status(vmm.pid)
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(seen[capabilities], 16) == 0, capabilities
    assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
    assert seen["NSpid"].split() == [str(vmm.pid), "1"]
    assert limits(vmm.pid, "Max core file size") == ["0", "0"]
    assert limits(vmm.pid, "Max open files") == ["4096", "4096"]
    # The page fault of a guest, and what QEMU reads for it, wait behind what the person does.
    for task in await asyncio.to_thread(tasks, vmm.pid):
        told = await run(["ionice", "-p", task])
        assert told.stdout == b"best-effort: prio 5\n"
    # No name, directory, proxy or token of the person.
    assert environment_names(vmm.pid) <= {"PATH", "LC_ALL", "PWD"}


@machine
async def test_neither_the_vmm_nor_its_monitor_is_left_alone(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().idle()))
    assert isinstance(vmm._process, Contained)
    monitor = vmm._process.monitor.pid
    os.kill(monitor, signal.SIGKILL)
    ended = await vmm.wait()
    assert ended.reason == "its VMM was killed by SIGKILL"
    assert not runs(vmm.pid)

    vmm = await lab.start(lab.spec(Guest().idle()))
    assert isinstance(vmm._process, Contained)
    monitor = vmm._process.monitor.pid
    os.kill(vmm.pid, signal.SIGKILL)
    assert (await vmm.wait()).reason == "its VMM was killed by SIGKILL"
    assert not runs(monitor)


@machine
async def test_a_monitor_without_a_helper_ends_with_its_vmm(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().idle()))
    assert isinstance(vmm._process, Contained)
    monitor = vmm._process.monitor.pid
    assert vmm.start_time is not None
    await vmm.close()
    adopted = await Vmm.adopt("box", vmm.pid, vmm.start_time, lab.paths, lab.executor)
    assert adopted is not None
    lab.vmms.append(adopted)
    await adopted.kill("enough")  # asked: QEMU hears SIGTERM as the first process of its namespace
    await asyncio.to_thread(wait_for_end, monitor)


@machine
async def test_the_disks_header_names_no_other_file(lab: Lab, refused: Refused) -> None:
    """A VMM that was taken over may have written anything into it, for the next start."""
    secret = lab.paths.state / "secret"
    secret.write_bytes(b"k" * (64 << 20))
    spec = lab.spec(Guest().idle(), disk=lab.paths.state / "evil.qcow2")
    spec.disk.unlink()
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, spec.disk]
    await asyncio.to_thread(subprocess.run, command, check=True)
    error = await refused(lab.start(spec))
    assert isinstance(error, MachineError)
    assert "secret" in error.message
    # Where the sandbox cannot be had, what the spec names still wins over the header.
    base = lab.paths.state / "base"
    base.write_bytes(bytes(64 << 20))
    command = ["qemu-img", "rebase", "-u", "-F", "raw", "-b", secret, spec.disk]
    await asyncio.to_thread(subprocess.run, command, check=True)
    named = lab.spec(Guest().idle(), disk=spec.disk, backing=(base,))
    vmm = await lab.start(named, sandbox=Sandbox("filter", "a test"))
    assert str(base) in opened(vmm.pid)
    assert str(secret) not in opened(vmm.pid)


@machine
async def test_without_a_sandbox_the_filter_is_left(lab: Lab) -> None:
    vmm = await lab.start(lab.spec(Guest().idle()), sandbox=Sandbox("filter", "a test"))
    assert (status(vmm.pid)["NoNewPrivs"], status(vmm.pid)["Seccomp"]) == ("1", "2")
    assert limits(vmm.pid, "Max open files") == ["4096", "4096"]
    assert environment_names(vmm.pid) == {"PATH", "LC_ALL"}


@machine
async def test_a_sandbox_that_fails_is_told_in_one_sentence(lab: Lab, refused: Refused) -> None:
    assert lab.sandbox.bubblewrap is not None
    without = Sandbox(
        "namespaces", "a test", None, lab.sandbox.bubblewrap, lab.sandbox.setpriv, Need()
    )
    error = await refused(lab.start(lab.spec(Guest().idle()), sandbox=without))
    assert isinstance(error, MachineError)
    assert error.message.startswith("the VMM of machine box did not start: bwrap: ")
    assert error.next_step is not None
    assert "vmgr doctor" in error.next_step
    assert "\n" not in error.message
