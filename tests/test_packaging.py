"""What `pip install .` gives: a package that carries the agent."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a wheel or sdist with the pinned build back end, as pip would."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", out],
        cwd=source,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    (built,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cargo") is None:
        pytest.skip("there is no cargo on PATH")
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_wheel_carries_an_executable_static_agent(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-manylinux_2_17_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        for program in ("vmgr-agent", "vmgr-share-server"):
            entry = archive.getinfo(f"vmgr/_bin/{program}")
            assert stat.S_IMODE(entry.external_attr >> 16) == 0o755
            assert archive.read(entry)[:4] == b"\x7fELF"
        shared = [name for name in archive.namelist() if ".data/data/share/" in name]
    assert sorted(Path(name).suffix for name in shared) == [".desktop", ".svg", ".xml"]


@pytest.mark.slow
def test_installed_from_the_wheel_it_finds_its_own_agent(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel],
        check=True,
        stdin=subprocess.DEVNULL,
    )

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={"PATH": os.defpath, "HOME": str(tmp_path), "PYTHONPATH": str(site)},
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout.strip()

    finder = "from vmgr.agent_binary import find_agent; print(find_agent())"
    agent = Path(python("-c", finder))
    assert agent == site / "vmgr/_bin/vmgr-agent"
    assert os.access(agent, os.X_OK)
    assert python("-m", "vmgr.cli", "--version").startswith("vmgr ")


def test_sdist_has_what_a_build_needs_and_nothing_built(tmp_path: Path) -> None:
    sdist = build("sdist", ROOT, tmp_path)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in (
        "pyproject.toml",
        "hatch_build.py",
        "LICENSE",
        "agent/Cargo.toml",
        "agent/Cargo.lock",
        "agent/.cargo/config.toml",
        "agent/src/main.rs",
        "share-server/Cargo.toml",
        "share-server/Cargo.lock",
        "share-server/.cargo/config.toml",
        "share-server/src/main.rs",
        "src/vmgr/agent_binary.py",
    ):
        assert needed in names
    built = ("agent/target/", "share-server/target/", ".venv/", ".dev/", "src/vmgr/_bin/")
    assert not [name for name in names if name.startswith(built) or "__pycache__" in name]
