from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from vmgr.api.models import ImageImport
from vmgr.artifact.faults import free_bytes
from vmgr.errors import NotFoundError, ResourceError, StateError, UsageError, VmgrError
from vmgr.image import DEFAULT_DISK_BYTES, ImageFiles
from vmgr.paths import Paths

from .conftest import directory, elf, entry, hard_link, link, quiet, system, tarball

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

MACHINE = {"x86_64": 62, "aarch64": 183}[os.uname().machine]


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def write(tmp_path: Path, data: bytes, name: str = "root.tar") -> ImageImport:
    path = tmp_path / name
    path.write_bytes(data)
    return ImageImport(path=str(path), name="test")


def debugfs(disk: Path, command: str) -> str:
    done = subprocess.run(
        ["debugfs", "-R", command, str(disk)],
        capture_output=True, text=True, check=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip
    return done.stdout


def check(disk: Path) -> None:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    subprocess.run(["e2fsck", "-fn", str(disk)], capture_output=True, check=True, env=environment)


async def test_an_imported_system_is_in_the_file_system_as_it_was_in_the_tarball(
    images: ImageFiles, tmp_path: Path
) -> None:
    value = (b"\x01\x00\x00\x02\x00\x20" + bytes(14)).decode()
    capability = {"SCHILY.xattr.security.capability": value}
    entries = system(
        entry("etc/shadow", content=b"secret", mode=0o640, uid=0, gid=42),
        entry("usr/bin/ping", content=elf(MACHINE), mode=0o755, pax_headers=capability),
        entry("usr/bin/sudo", content=elf(MACHINE), mode=0o4755),
        hard_link("usr/bin/doas", "usr/bin/sudo"),
        directory("home"),
        directory("home/me", uid=1000, gid=1000, mode=0o700),
        machine=MACHINE,
    )
    request = write(tmp_path, tarball(entries))
    image = await images.import_tarball(request, quiet)
    check(image.disk)
    for path, facts in {
        "/": ("User:     0   Group:     0", "0755"),
        "/etc/shadow": ("User:     0   Group:    42", "0640"),
        "/home/me": ("User:  1000   Group:  1000", "0700"),
        "/usr/bin/sudo": ("User:     0   Group:     0", "04755", "Links: 2"),
        "/usr/bin/ping": ("security.capability (20)", "0755"),
        "/bin": ('Fast link dest: "usr/bin"',),
    }.items():
        shown = debugfs(image.disk, f"stat {path}")
        for fact in facts:
            assert fact in shown, (path, shown)
    assert debugfs(image.disk, "cat /etc/shadow") == "secret"
    assert image.init is None
    assert image.architecture == os.uname().machine
    assert image.source == "tarball:root.tar"
    assert image.disk.stat().st_size == DEFAULT_DISK_BYTES
    assert image.size_bytes < 32 << 20
    assert image.disk.stat().st_mode & 0o777 == 0o400


async def test_the_same_tarball_is_the_same_image(images: ImageFiles, tmp_path: Path) -> None:
    request = write(tmp_path, tarball(system(machine=MACHINE)))
    first = await images.import_tarball(request, quiet)
    second = await images.import_tarball(request, quiet)
    assert first == second
    assert await images.list() == [first]
    assert await images.get(first.digest) == first


async def test_the_same_files_to_be_run_otherwise_are_another_image(
    images: ImageFiles, tmp_path: Path
) -> None:
    data = tarball(system(machine=MACHINE))
    first = await images.import_tarball(write(tmp_path, data), quiet)
    other = ImageImport(
        path=str(tmp_path / "root.tar"), name="x", env={"A": "b"}, default_user="me"
    )
    second = await images.import_tarball(other, quiet)
    assert first.digest != second.digest
    assert (second.env, second.default_user) == ({"A": "b"}, "me")


async def test_init_is_found_named_or_left_out(images: ImageFiles, tmp_path: Path) -> None:
    entries = system(
        directory("sbin"), entry("sbin/init", content=elf(MACHINE)), link("my", "sbin/init"),
        machine=MACHINE,
    )  # fmt: skip
    path = write(tmp_path, tarball(entries)).path
    inits = [
        (await images.import_tarball(ImageImport(path=path, name="x", init=init), quiet)).init
        for init in (None, "/my", "")
    ]
    assert inits == ["/sbin/init", "/my", None]
    with pytest.raises(UsageError, match=r"root\.tar has no program /nope that could be its init"):
        await images.import_tarball(ImageImport(path=path, name="x", init="/nope"), quiet)


async def test_a_system_for_another_architecture_is_refused(
    images: ImageFiles, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        await images.import_tarball(write(tmp_path, tarball(system(machine=22))), quiet)
    assert caught.value.message == (
        f"root.tar is a system for s390x, but this host runs {os.uname().machine}"
    )
    assert await images.list() == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"nonsense" * 1000, "root.tar is not a tar archive or is damaged"),
        (b"\x1f\x8b" + b"nonsense" * 100, "root.tar is damaged"),
        (b"BZh9" + b"nonsense" * 100, "root.tar is damaged"),
        (b"\xfd7zXZ\x00" + b"nonsense" * 100, "root.tar is damaged"),
        (b"\x28\xb5\x2f\xfd" + b"nonsense" * 100, "root.tar "),
        (tarball([entry("../x")]), "root.tar has a path that leads out of it, '../x'"),
        (tarball(system(entry("etc/x", content=b"x" * 90_000)))[:50_000], "root.tar is "),
        # What tar itself cannot do: a link where a directory with something in it is.
        (
            tarball(system(directory("d"), entry("d/f"), link("d", "x"), machine=MACHINE)),
            "could not make the file system: tar: ",
        ),
    ],
)
async def test_bad_tarballs_are_refused_and_leave_nothing(
    images: ImageFiles, tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(VmgrError) as caught:
        await images.import_tarball(write(tmp_path, data), quiet)
    assert caught.value.message.startswith(message)
    assert "\n" not in str(caught.value)
    assert await images.list() == []


async def test_files_that_are_not_there(images: ImageFiles) -> None:
    for path, error in (("/nowhere.tar", NotFoundError), ("relative.tar", UsageError)):
        with pytest.raises(error):
            await images.import_tarball(ImageImport(path=path, name="x"), quiet)


async def test_a_cancelled_import_leaves_nothing(images: ImageFiles, tmp_path: Path) -> None:
    begun = asyncio.Event()
    entries = system(entry("usr/big", content=b"x" * (64 << 20)), machine=MACHINE)

    def progress(message: str, _fraction: float | None) -> None:
        if "MiB" in message:
            begun.set()

    work = images.import_tarball(write(tmp_path, tarball(entries)), progress)
    task = asyncio.create_task(work)
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await images.list() == []  # and the fixture looks for what is half-made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    mount = tmp_path / "small"
    mount.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(mount)]
    if subprocess.run(argv, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


async def test_a_full_disk_is_told_with_figures(
    small_disk: Path, tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths.from_environment({"VMGR_HOME": str(small_disk)})
    paths.ensure()
    images = ImageFiles(paths, executor)
    data = tarball(system(entry("usr/big", content=os.urandom(16 << 20)), machine=MACHINE))
    request = write(tmp_path, data)
    # First by what the tarball says it holds, then, as if others were writing too, by surprise.
    with pytest.raises(
        ResourceError, match=r"root\.tar holds more than the .* that there is room for"
    ):
        await images.import_tarball(request, quiet)
    monkeypatch.setattr("vmgr.image.files._RESERVE", -(64 << 20))
    with pytest.raises(ResourceError, match=r"no space left in .*: .* free"):
        await images.import_tarball(request, quiet)
    assert names(paths.images) == []
    with pytest.raises(ResourceError, match=r"free, about 1\.0 GiB needed"):
        await images.build("debian", quiet)
    assert free_bytes(small_disk) > 20 << 20


async def test_removing(images: ImageFiles, tmp_path: Path) -> None:
    image = await images.import_tarball(write(tmp_path, tarball(system(machine=MACHINE))), quiet)
    assert await images.remove(image.digest) == image.size_bytes
    assert await images.list() == []
    for call in (images.get, images.remove):
        with pytest.raises(NotFoundError, match="there is no image sha256:"):
            await call(image.digest)
    with pytest.raises(NotFoundError):
        await images.remove("sha256:../../etc")


def cut(path: Path, size: int) -> None:
    path.chmod(0o600)
    os.truncate(path, size)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda d: (d / "image.json").unlink(), "it has no metadata"),
        (lambda d: (d / "root.ext4").unlink(), "its disk cannot be read"),
        (lambda d: cut(d / "root.ext4", 5), "its disk has 5 bytes instead of"),
        (lambda d: replace(d / "image.json", b"{"), "its metadata is not valid"),
        (lambda d: swap(d / "image.json", b'"root"', b'"evil"'), "its metadata does not belong"),
    ],
)
async def test_damaged_images_are_skipped_and_told(
    images: ImageFiles,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: object,
    why: str,
) -> None:
    image = await images.import_tarball(write(tmp_path, tarball(system(machine=MACHINE))), quiet)
    assert callable(damage)
    damage(image.directory)
    assert await images.list() == []
    assert why in caplog.text
    with pytest.raises(StateError, match=why):
        await images.get(image.digest)
    # What is damaged does not stand in the way of the same image made anew.
    path = str(tmp_path / "root.tar")
    mended = await images.import_tarball(ImageImport(path=path, name="x"), quiet)
    assert mended.digest == image.digest
    assert await images.get(image.digest) == mended
    damage(image.directory)
    await images.remove(image.digest)
    assert not image.directory.exists()


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def swap(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    replace(path, content.replace(old, new))


async def test_an_unknown_recipe_names_those_there_are(images: ImageFiles) -> None:
    with pytest.raises(NotFoundError) as caught:
        await images.build("arch", quiet)
    assert caught.value.next_step == "use one of: debian, debian-minimal"


@pytest.mark.slow
async def test_building_the_minimal_recipe(images: ImageFiles) -> None:
    told: list[tuple[str, float | None]] = []
    image = await images.build("debian-minimal", lambda *step: told.append(step))
    check(image.disk)
    assert image.init is None
    fractions = [fraction for _, fraction in told if fraction is not None]
    assert fractions == sorted(fractions)
    assert len(fractions) >= 7
    # Neither an identity nor anything of this host is in it.
    etc = debugfs(image.disk, "ls -p /etc")
    assert "/hostname/" not in etc
    assert "/resolv.conf/" not in etc
    assert "99mmdebstrap" not in debugfs(image.disk, "ls -p /etc/apt/apt.conf.d")
    assert "debian-archive-keyring" in debugfs(
        image.disk, "cat /etc/apt/sources.list.d/debian.sources"
    )
    assert "User:     0   Group:    42" in debugfs(image.disk, "stat /etc/shadow")
