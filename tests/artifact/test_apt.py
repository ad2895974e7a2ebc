from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vmgr.artifact.apt import Apt, host_codename
from vmgr.errors import UnsupportedError, VmgrError
from vmgr.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.artifact import Progress


def quiet(_message: str, _fraction: float | None) -> None:
    pass


def apt_with(tmp_path: Path, *sources: str) -> Apt:
    directory = tmp_path / "etc"
    (directory / "sources.list.d").mkdir(parents=True)
    (directory / "sources.list.d/x.sources").write_text("\n".join(sources))
    paths = Paths.from_environment({"VMGR_HOME": str(tmp_path / "home")})
    return Apt(paths, ThreadPoolExecutor(1), directory=directory)


def source(uri: str, suite: str) -> str:
    return f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nTrusted: yes\n"


def test_the_release_of_a_debian_host(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text('PRETTY_NAME="Debian"\nID=debian\nVERSION_CODENAME=bookworm\n')
    assert host_codename(path) == "bookworm"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('PRETTY_NAME="Ubuntu 24.04 LTS"\nID=ubuntu\nVERSION_CODENAME=noble\n', "Ubuntu 24.04 LTS"),
        ("", "this host's system"),
        ("ID=debian\nVERSION_CODENAME=../x\n", "this host's system"),
    ],
)
def test_other_hosts_are_told_what_to_do(tmp_path: Path, text: str, name: str) -> None:
    path = tmp_path / "os-release"
    path.write_text(text)
    with pytest.raises(UnsupportedError) as caught:
        host_codename(path)
    assert caught.value.message.startswith(f"{name} is not a Debian release")
    assert "vmgr image import" in str(caught.value.next_step)


async def test_a_host_without_debian_sources(tmp_path: Path) -> None:
    apt = apt_with(tmp_path, source("http://127.0.0.1:1/browser", "nodistro"))
    with pytest.raises(UnsupportedError, match="this host has no Debian mirror configured"):
        await apt.sources(quiet)


async def test_an_unreachable_mirror(tmp_path: Path) -> None:
    apt = apt_with(tmp_path, source("http://127.0.0.1:1/debian", host_codename()))
    with pytest.raises(VmgrError) as caught:
        await apt.sources(quiet)
    assert caught.value.message == (
        "could not fetch from the package mirror: the host's Debian mirror cannot be reached"
    )


async def test_a_repository_that_only_calls_its_suite_like_debian_is_left_out(
    tmp_path: Path,
) -> None:
    suite = host_codename()
    release = tmp_path / "other/dists" / suite
    (release / "main/binary-amd64").mkdir(parents=True)
    (release / "main/binary-amd64/Packages").write_text("")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (release / "Release").write_text(
        f"Origin: Somebody\nSuite: {suite}\nCodename: {suite}\nComponents: main\n"
        f"Architectures: amd64\nSHA256:\n {empty} 0 main/binary-amd64/Packages\n"
    )
    apt = apt_with(tmp_path, source(f"file:{tmp_path}/other", suite))
    with pytest.raises(UnsupportedError, match="this host has no Debian mirror configured"):
        await apt.sources(quiet)


async def test_the_hosts_mirrors_are_found_and_asked_without_root(tmp_path: Path) -> None:
    steps: list[str] = []
    tell: Progress = lambda message, _fraction: steps.append(message)  # noqa: E731 (typed by its name)
    apt = Apt(Paths.from_environment({"VMGR_HOME": str(tmp_path)}), ThreadPoolExecutor(1))
    found = await apt.sources(tell)
    assert {suite.split("-")[0] for s in found for suite in s.suites} <= {
        host_codename(), "stable", "oldstable", "testing",
    }  # fmt: skip
    again = await apt.packages("bash", tell)
    assert [package.name for package in again] == ["bash"]
    # The lists are fetched once.
    assert steps == ["Fetching the package lists of the host's Debian mirrors"]
