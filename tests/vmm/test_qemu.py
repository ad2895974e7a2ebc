"""Finding QEMU: the real one, and programs that stand for those that cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmgr.errors import UnsupportedError
from vmgr.vmm.probecache import ProbeCache
from vmgr.vmm.qemu import MINIMUM, find_qemu, qemu_program

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path


def program(directory: Path, *lines: str) -> str:
    """A program that prints the first line for `-version` and the rest for `-machine help`."""
    path = directory / "qemu-system-x86_64"
    version, *machines = lines
    shown = "\n".join(machines)
    path.write_text(
        f"#!/bin/sh\necho >> {directory}/asked\n"
        f"[ $1 = -version ] && echo '{version}' || echo '{shown}'\n"
    )
    path.chmod(0o755)
    return str(path)


def times_asked(directory: Path) -> int:
    return len((directory / "asked").read_text().splitlines())


@pytest.fixture
def cache(tmp_path: Path) -> ProbeCache:
    return ProbeCache(tmp_path / "probes.json")


async def test_the_real_one(cache: ProbeCache, executor: ThreadPoolExecutor) -> None:
    qemu = await find_qemu(cache, executor)
    assert qemu.release >= MINIMUM
    assert qemu.machine_type.startswith("pc-q35-")
    assert qemu.program.is_absolute()
    assert await find_qemu(cache, executor) == qemu


async def test_a_build_is_asked_once_and_a_replaced_one_again(
    cache: ProbeCache, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    alias = "q35         Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-9.1)"
    types = [
        f"{name}     A PC" for name in ("pc-q35-9.1", "pc-q35-9.0", "pc-q35-2.9", "pc-i440fx-9.0")
    ]
    path = program(
        tmp_path, "QEMU emulator version 9.1.0 (Debian 1:9.1.0)", "none    x", alias, *types
    )
    qemu = await find_qemu(cache, executor, override=path)
    assert (qemu.version, qemu.machine_type, qemu.release) == ("9.1.0", "pc-q35-9.1", (9, 1))
    assert times_asked(tmp_path) == 2
    assert qemu.older_types == ("pc-q35-9.0", "pc-q35-2.9")
    known = ("pc-q35-9.1", "pc-q35-2.9", "pc-q35-10.0", "pc-i440fx-9.0")
    assert [qemu.knows(machine_type) for machine_type in known] == [True, True, False, False]
    assert await find_qemu(cache, executor, override=path) == qemu
    assert times_asked(tmp_path) == 2
    (tmp_path / "qemu-system-x86_64").unlink()
    program(tmp_path, "QEMU emulator version 10.0", alias.replace("9.1", "10.0"))
    assert (await find_qemu(cache, executor, override=path)).version == "10.0"


async def test_too_old(cache: ProbeCache, executor: ThreadPoolExecutor, tmp_path: Path) -> None:
    path = program(tmp_path, "QEMU emulator version 7.1.0 (x)", "q35  x (alias of pc-q35-7.1)")
    with pytest.raises(UnsupportedError) as caught:
        await find_qemu(cache, executor, override=path)
    assert caught.value.message == f"{path} is QEMU 7.1.0, which is too old"
    assert caught.value.next_step == (
        "install QEMU 7.2 or newer, on Debian and Ubuntu: apt-get install qemu-system-x86"
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("something else",), "{} does not say that it is QEMU"),
        (
            ("QEMU emulator version 8.0.0", "pc x (alias of pc-i440fx-8.0)"),
            "{} has no machine type",
        ),
    ],
)
async def test_others(
    cache: ProbeCache,
    executor: ThreadPoolExecutor,
    tmp_path: Path,
    lines: tuple[str, ...],
    message: str,
) -> None:
    path = program(tmp_path, *lines)
    with pytest.raises(UnsupportedError) as caught:
        await find_qemu(cache, executor, override=path)
    assert caught.value.message.startswith(message.format(path))


async def test_one_that_does_not_run(
    cache: ProbeCache, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    path = tmp_path / "qemu"
    path.write_text("#!/nowhere/interpreter\n")
    path.chmod(0o755)
    with pytest.raises(UnsupportedError, match="does not run: "):
        await find_qemu(cache, executor, override=str(path))


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path, "x")
    assert str(qemu_program(path, {})) == path
    assert str(qemu_program(None, {"VMGR_QEMU": path})) == path
    with pytest.raises(UnsupportedError) as caught:
        qemu_program("/none", {})
    assert caught.value.message == "the configured QEMU /none is not an executable file"
    monkeypatch.setattr("vmgr.vmm.qemu.minimal_environment", lambda: {"PATH": str(tmp_path / "x")})
    with pytest.raises(UnsupportedError) as caught:
        qemu_program(None, {})
    assert caught.value.message == "qemu-system-x86_64 was not found"
    assert caught.value.next_step
    assert "apt-get install qemu-system-x86" in caught.value.next_step
