"""What reads a stranger's archive has nothing of the person's: looked at while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmgr.archive.confined import Command, porter_command, zstd_command
from vmgr.audit.audit import audit
from vmgr.paths import Paths
from vmgr.spawner import Process, spawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

APART = ("user", "mnt", "pid", "net", "ipc", "uts")


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def confined(command: Command) -> Command:
    if not command.confined:
        pytest.skip("this host permits no sandbox: see vmgr doctor")
    return command


@contextlib.asynccontextmanager
async def reading(command: Command, first: bytes) -> AsyncIterator[int]:
    """The program behind its monitor, which has read of `first` and waits for more."""
    read, write = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4_096)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    monitor: Process | None = None
    try:
        monitor = await spawn(
            command.argv, env=command.env, stdin=read, stdout=null, stderr=null,
            parent_death="kill",
        )  # fmt: skip
        os.close(read)
        read = -1
        # Done when the program has taken all but what the pipe holds.
        async with asyncio.timeout(60):
            await asyncio.to_thread(os.write, write, first)
        (program,) = await asyncio.to_thread(children_of, monitor.pid)
        yield program
    finally:
        for fd in (read, write, null):
            if fd >= 0:
                os.close(fd)
        if monitor is not None:
            monitor.kill()
            await monitor.wait()


def audited(pid: int) -> None:
    """What `vmgr doctor --audit` says of it and of its monitor."""
    found = {one.role: one for one in audit(Paths.from_environment(), [], []).processes}
    assert found["archive"].pid == pid
    assert "vmm" not in found
    assert found["archive"].problems == found["monitor"].problems == []


def look(pid: int, name: bytes, *there: Path) -> None:
    """See that it is the program, with the directories `there` and little else."""
    proc = Path(f"/proc/{pid}")
    assert name in (proc / "cmdline").read_bytes()
    for space in APART:
        assert (proc / "ns" / space).readlink() != Path(f"/proc/self/ns/{space}").readlink(), space
    status = dict(
        line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
    )
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert int(status["Umask"], 8) == 0o077
    names = {e.partition(b"=")[0] for e in (proc / "environ").read_bytes().split(b"\0") if e}
    assert names <= {b"PATH", b"LC_ALL", b"PWD"}
    assert sorted(int(fd.name) for fd in (proc / "fd").iterdir()) == [0, 1, 2]
    mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    writable = {Path(m[4]) for m in mounts if "rw" in m[5].split(",")}
    assert writable - {Path("/dev/null"), Path("/dev/urandom")} == set(there)
    seen = {Path(m[4]) for m in mounts}
    audited(pid)
    assert not seen & {Path("/proc"), Path("/sys"), Path("/home"), Path.home()}


async def test_the_porter_sees_the_directory_that_it_fills(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = confined(await porter_command(["unpack", str(out)], writable=[out]))
    info = tarfile.TarInfo("manifest.json")
    info.size = 1 << 16
    first = info.tobuf() + b" " * 32_768
    async with reading(command, first) as pid:
        look(pid, b"vmgr.archive.porter", out)


async def test_zstd_sees_nothing() -> None:
    command = confined(await zstd_command(["--compress", "--stdout", "--quiet"]))
    async with reading(command, os.urandom(1 << 18)) as pid:
        look(pid, b"zstd")


async def test_without_bubblewrap_it_works_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vmgr.archive.confined.find_bubblewrap", lambda: None)
    command = await porter_command(["unpack", str(tmp_path)], writable=[tmp_path])
    assert not command.confined
    assert command.argv[1:] == ["-I", "-B", "-m", "vmgr.archive.porter", "unpack", str(tmp_path)]


async def test_a_sandbox_that_cannot_be_made_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = Path("/bin/false")
    monkeypatch.setattr("vmgr.archive.confined.find_bubblewrap", lambda: refusing)
    assert not (await porter_command(["unpack", str(tmp_path)])).confined
    assert not (await zstd_command(["--decompress"])).confined
