"""Two releases of pasta, neither installed: Debian 12's, and a newer one built from its source.

They are fetched once into the test home. Where they cannot be had (another distribution, no mirror
to reach, no compiler) the tests that need them are skipped with the reason.
"""

from __future__ import annotations

import fcntl
import shutil
from typing import TYPE_CHECKING, Final

import pytest
from tests.backports import apt_options, debian, run
from tests.conftest import SHARED

from vmgr.artifact.apt import host_codename
from vmgr.errors import VmgrError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmgr.artifact.sources import Source

NEWER: Final = "trixie"


def debian_12s_pasta() -> Path:
    """The one that does not carry half-closed connections rightly; skips the test without."""
    try:
        if host_codename() != "bookworm":
            pytest.skip("this is no Debian 12")
    except VmgrError as error:
        pytest.skip(error.message)
    return _kept("old", _download)


def newer_pasta() -> Path:
    """One that does; skips the test without."""
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("building pasta takes a C compiler and make")
    return _kept("new", _build)


def _kept(name: str, make: Callable[[Path], Path]) -> Path:
    home = SHARED / "pasta" / name
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other test runs share the home
        if not (home / "bin/pasta").exists():
            program = make(home)
            (home / "made").mkdir(exist_ok=True)
            shutil.copy(program, home / "made/pasta")
            (home / "made").rename(home / "bin")
    return home / "bin/pasta"


def _source(home: Path, suite: str, *kinds: str) -> list[str]:
    mirror: Source = debian(suite)
    text = mirror.deb822()
    (home / "pasta.sources").write_text(text.replace("Types: deb", f"Types: {' '.join(kinds)}"))
    options = apt_options(home, home / "pasta.sources")
    run(home, "apt-get", "-q", *options, "update", "--error-on=any")
    return options


def _download(home: Path) -> Path:
    options = _source(home, "bookworm", "deb")
    run(home, "apt-get", "-q", *options, "download", "passt")
    (package,) = home.glob("*.deb")
    run(home, "dpkg-deb", "--extract", str(package), "unpacked")
    return home / "unpacked/usr/bin/passt"


def _build(home: Path) -> Path:
    options = _source(home, NEWER, "deb", "deb-src")
    # The source alone: Debian's changes to it are not needed, and may be gone from a mirror.
    run(home, "apt-get", "-q", *options, "source", "--tar-only", "--download-only", "passt")
    (archive,) = home.glob("*.orig.tar.*")
    source = home / "source"
    source.mkdir(exist_ok=True)
    run(home, "tar", "--extract", f"--file={archive}", "--strip-components=1", "-C", str(source))
    run(source, "make", "passt")
    return source / "passt"
