"""Fixtures for tests that run real VMMs on the real kernel."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.errors import VmgrError
from vmgr.kernel import KernelFiles
from vmgr.paths import MachinePaths, Paths
from vmgr.vmm import Accelerator, ProbeCache, Qemu, Vmm, VmmSpec, find_qemu, probe_vmm_sandbox

if TYPE_CHECKING:
    from vmgr.sandbox import Sandbox

TCG = Accelerator("tcg", "a test")
MEMORY = 192 << 20
CHECKOUT = Path(__file__).resolve().parents[2]
# The same as in tests/conftest.py: what takes long to build is built once.
HOME = Path(os.environ.get("VMGR_TEST_HOME") or CHECKOUT / ".dev" / f"test-home-{os.getuid()}")


@pytest.fixture(scope="session")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2, thread_name_prefix="test") as pool:
        yield pool


@pytest.fixture
async def kernel(executor: ThreadPoolExecutor) -> Path:
    """The kernel of a bundle: one that is there, else built from the host's package mirrors."""
    for found in sorted((HOME / "cache/vmgr/kernels").glob("*/vmlinux")):
        return found
    parts = ("config", "state", "cache/vmgr", "data/vmgr", "run")
    paths = Paths(*(HOME / part for part in parts))
    for directory in (HOME, paths.cache, paths.kernels, paths.apt):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Any program will do for the agent: these tests bring their own initramfs.
    bundle = await KernelFiles(paths, executor).ensure(Path("/bin/true"), lambda _m, _f: None)
    return bundle.kernel


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a socket's address holds 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vmgr-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
async def qemu(directory: Path, executor: ThreadPoolExecutor) -> Qemu:
    return await find_qemu(ProbeCache(directory / "probes.json"), executor)


@dataclass
class Lab:
    """Where VMMs are started; each is ended when the test is over."""

    paths: MachinePaths
    kernel: Path
    qemu: Qemu
    executor: ThreadPoolExecutor
    vmms: list[Vmm]
    sandbox: Sandbox

    def spec(self, initramfs: bytes, **changes: Any) -> VmmSpec:
        path = self.paths.state / "initramfs.cpio"
        path.write_bytes(initramfs)
        disk = Path(changes.setdefault("disk", self.paths.disk))
        if not disk.exists():
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
        given: dict[str, Any] = {
            "machine_id": "0123456789ab",
            "name": "box",
            "cpus": 1,
            "memory_bytes": MEMORY,
            "kernel": self.kernel,
            "initramfs": path,
        }
        return VmmSpec(**(given | changes))

    async def start(self, spec: VmmSpec, **options: Any) -> Vmm:
        options.setdefault("sandbox", self.sandbox)
        vmm = await Vmm.start(spec, self.paths, self.qemu, TCG, self.executor, **options)
        self.vmms.append(vmm)
        return vmm


@pytest.fixture
async def lab(
    directory: Path, kernel: Path, qemu: Qemu, executor: ThreadPoolExecutor
) -> AsyncIterator[Lab]:
    paths = MachinePaths(directory / "state", directory / "run")
    paths.state.mkdir(mode=0o700)
    vmms: list[Vmm] = []
    sandbox = await probe_vmm_sandbox(qemu, ProbeCache(directory / "probes.json"), executor)
    yield Lab(paths, kernel, qemu, executor, vmms, sandbox)
    for vmm in vmms:
        if vmm.running:
            await vmm.kill("the test is over", at_once=True)
        await vmm.close()


Refused = Callable[[Awaitable[Any]], Awaitable[VmgrError]]


@pytest.fixture
def refused() -> Refused:
    """Gives the error for people that something raises."""

    async def call(awaitable: Awaitable[Any]) -> VmgrError:
        with pytest.raises(VmgrError) as caught:
            await awaitable
        return caught.value

    return call
