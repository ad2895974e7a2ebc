"""Small root file systems as tarballs, good and bad."""

from __future__ import annotations

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmgr.image import ImageFiles
from vmgr.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Entry = tuple[tarfile.TarInfo, bytes]


def quiet(_message: str, _fraction: float | None) -> None:
    """Progress that nobody looks at."""


def elf(machine: int = 62) -> bytes:
    """The beginning of a program for an ELF machine; 62 is x86_64."""
    return (
        b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + machine.to_bytes(2, "little") + bytes(44)
    )


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **fields: object
) -> Entry:
    """One entry of a tarball."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(content), 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def directory(name: str, **fields: object) -> Entry:
    return entry(name, tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def link(name: str, target: str) -> Entry:
    return entry(name, tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> Entry:
    return entry(name, tarfile.LNKTYPE, linkname=target)


def tarball(entries: Iterable[Entry], *, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002 (tarfile's word)
    """The bytes of a tarball."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def system(*more: Entry, machine: int = 62) -> list[Entry]:
    """The entries of a small merged-usr system with a shell."""
    return [
        directory("./"),
        directory("usr"),
        directory("usr/bin"),
        link("bin", "usr/bin"),
        entry("usr/bin/dash", content=elf(machine), mode=0o755),
        link("usr/bin/sh", "dash"),
        directory("etc"),
        *more,
    ]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths.from_environment({"VMGR_HOME": str(tmp_path / "home")})
    made.ensure()
    return made


@pytest.fixture
def images(paths: Paths, executor: ThreadPoolExecutor) -> Iterator[ImageFiles]:
    """The directory of images; what fails or is refused must leave no file and no fd behind."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield ImageFiles(paths, executor)
    assert list(paths.images.glob(".*")) == []
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
