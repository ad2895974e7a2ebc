"""./dev: what it says, and what it does without the rights or packages that it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A copy of what ./dev is made of, which the user `nobody` may write."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        shutil.copy(ROOT / "dev", copy)
        for name in ("scripts", "requirements"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for crate in ("agent", "share-server"):
            (copy / crate).mkdir()
            shutil.copy(ROOT / crate / "Cargo.toml", copy / crate)
        shutil.copy(ROOT / "pyproject.toml", copy)
        if os.geteuid() == 0:
            for path in (copy, *copy.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        yield copy


def dev(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ./dev as an ordinary user, without a terminal."""
    command: list[str | Path] = [checkout / "dev", *arguments]
    if os.geteuid() == 0:
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
    return subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "HOME": str(checkout), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tools() -> Iterator[Path]:
    """A PATH that has bash's usual companions and Python, but neither QEMU nor sudo."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o755)
        for name in (
            "bash", "env", "cat", "sha256sum", "find", "sort", "xargs", "sed", "mkdir", "mv", "id",
            "flock", "python3", "apt-get", "tail", "rm", "dpkg-deb", "setpriv", "gcc",
        ):  # fmt: skip
            program = shutil.which(name, path="/usr/bin:/bin")
            assert program is not None, name
            (path / name).symlink_to(program)
        yield path


def test_help_names_every_command(checkout: Path) -> None:
    done = dev(checkout, "help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("run", "vmgr", "test", "check", "bench", "setup", "lock", "clean"):
        assert f"\n  {command} " in done.stdout


def test_an_unknown_command_is_a_usage_error(checkout: Path) -> None:
    done = dev(checkout, "no-such-command")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ./dev ")


def test_without_sudo_it_says_what_root_has_to_run(checkout: Path, tools: Path) -> None:
    done = dev(checkout, "run", PATH=str(tools))
    assert done.returncode == 1
    assert done.stderr.startswith(
        "dev: packages are missing and there is no sudo; have root run: "
        "apt-get update && apt-get install --no-install-recommends "
    )
    assert done.stderr.count("\n") == 1, "one sentence"
    packages = done.stderr.split()
    assert "qemu-system-x86" in packages
    assert "dpkg" not in packages, "it is there"
    assert not (checkout / ".venv").exists()


def test_with_a_sudo_that_refuses_it_says_what_root_has_to_run(checkout: Path, tools: Path) -> None:
    refusing = tools / "sudo"
    refusing.write_text("#!/bin/sh\nexit 1\n")
    refusing.chmod(0o755)
    done = dev(checkout, "setup", PATH=str(tools))
    assert done.returncode == 1
    assert done.stderr.startswith(
        "dev: packages are missing and sudo is not permitted here; have root run: apt-get update"
    )


def test_a_checkout_of_someone_else_is_refused_in_one_sentence(checkout: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(checkout, 0, 0)
    checkout.chmod(0o755)
    done = dev(checkout, "setup")
    assert done.returncode == 1
    assert done.stderr == (
        f"dev: {checkout} cannot be written by nobody; clone it as this user and work there\n"
    )


def test_what_is_set_up_is_not_set_up_again() -> None:
    if not (ROOT / ".dev/venv-dev").exists():
        pytest.skip("these tests were not started by ./dev")
    done = subprocess.run(
        [ROOT / "dev", "setup"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_tests_started_in_the_background_have_all_their_signals() -> None:
    """As from a script: `./dev test &`, where Ctrl-C and its like are ignored and inherited."""
    test = "test_sigpipe_ends_it_although_python_ignores_it"
    done = subprocess.run(
        ["sh", "-c", "trap '' INT QUIT HUP; exec \"$@\"", "sh", sys.executable, "-m", "pytest",
         "-q", "-p", "no:cacheprovider", "tests/spawner/test_process.py", "-k", test],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
