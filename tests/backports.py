"""A QEMU newer than the host's own: that of Debian's backports, unpacked and never installed.

It is fetched once into the test home. Where it cannot be had (another distribution, no mirror to
reach, none newer there) the tests that need it are skipped with the reason.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import pytest
from tests.conftest import SHARED

from vmgr.artifact.apt import host_codename
from vmgr.artifact.sources import Source, read_sources
from vmgr.errors import VmgrError
from vmgr.vmm.qemu import PROGRAM

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES: Final = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
DEADLINE: Final = 300.0
_VERSION: Final = re.compile(r"QEMU emulator version (\d+)\.(\d+)")


def unpacked_qemu() -> str:
    """The path of a QEMU newer than the host's own; skips the test where there is none."""
    home = SHARED / "qemu-backports"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other test runs share the home
        program = home / "root/usr/bin" / PROGRAM
        if not program.exists():
            _fetch(home)
    own = shutil.which(PROGRAM)
    if own is None or _release(program) <= _release(own):
        pytest.skip("the backports have no QEMU newer than the host's own")
    return str(program)


def apt_options(home: Path, sources: Path) -> list[str]:
    """What has apt keep everything in `home` and take packages from `sources` alone."""
    for directory in ("state/lists/partial", "cache/archives/partial", "empty"):
        (home / directory).mkdir(parents=True, exist_ok=True)
    return [
        f"-oDir::State={home}/state",
        "-oDir::State::status=/dev/null",
        f"-oDir::Cache={home}/cache",
        f"-oDir::Etc::sourcelist={sources}",
        f"-oDir::Etc::sourceparts={home}/empty",
        # What the host's own apt is told to do afterwards is about the host's own state.
        "-oAPT::Update::Post-Invoke=",
        "-oAPT::Sandbox::User=root",
        "-oAcquire::Languages=none",
    ]


def _fetch(home: Path) -> None:
    (home / "debs").mkdir(exist_ok=True)
    (home / "backports.sources").write_text(debian("{}-backports").deb822())
    options = apt_options(home, home / "backports.sources")
    run(home, "apt-get", "-q", *options, "update", "--error-on=any")
    run(home / "debs", "apt-get", "-q", *options, "download", *PACKAGES)
    made = home / "unpacking"
    shutil.rmtree(made, ignore_errors=True)
    for package in sorted((home / "debs").glob("*.deb")):
        run(home, "dpkg-deb", "--extract", str(package), str(made))
    # Debian's two releases of QEMU need much the same libraries; where one is not here, it says.
    run(home, str(made / "usr/bin" / PROGRAM), "-version")
    made.rename(home / "root")
    shutil.rmtree(home / "debs")
    shutil.rmtree(home / "state")
    shutil.rmtree(home / "cache")


def debian(suite: str) -> Source:
    """Another suite at the mirror from which the host takes its Debian; `{}` is the host's own."""
    from pathlib import Path

    try:
        codename = host_codename()
    except VmgrError as error:
        pytest.skip(error.message)
    for source in read_sources(Path("/etc/apt")):
        if codename in source.suites and "main" in source.components:
            return Source(source.uris, (suite.format(codename),), ("main",), source.options)
    pytest.skip(f"no mirror of Debian {codename} is configured")


def run(directory: Path, *command: str) -> None:
    """Run a command there; skips the test where it fails."""
    try:
        done = subprocess.run(
            command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=DEADLINE, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"what the test takes cannot be had: {error}")
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        pytest.skip(f"what the test takes cannot be had: {said[-1] if said else done.returncode}")


def _release(program: Path | str) -> tuple[int, int]:
    printed = subprocess.run([program, "-version"], capture_output=True, check=True)
    match = _VERSION.match(printed.stdout.decode())
    assert match is not None
    return int(match[1]), int(match[2])
