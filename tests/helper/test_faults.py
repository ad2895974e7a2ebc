"""What goes wrong on a host: each fault has its sentence, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, kill_and_wait

from vmgr.machine.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Home

pytestmark = pytest.mark.vm

INSTALL = "install QEMU 7.2 or newer, on Debian and Ubuntu: apt-get install qemu-system-x86"


def nothing_left(home: Home) -> None:
    """No machine, no directory, no VMM; the helper answers."""
    assert home.json("ls") == []
    assert home.machine_directories() == []
    assert home.vmms() == []


def sentence(done: subprocess.CompletedProcess[bytes]) -> str:
    text = done.stderr.decode()
    assert "Traceback" not in text
    return text


# -- run: what it passes on ------------------------------------------------------------------------


def test_run_passes_output_and_exit_code(quick_home: Home) -> None:
    home = quick_home
    done = home.vmgr(
        "run", *SMALL, "debian-minimal", "--", "sh", "-c", "echo out; echo err >&2; exit 41",
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (41, b"out\n")
    assert done.stderr.endswith(b"err\n")
    nothing_left(home)


def test_run_takes_stdin(quick_home: Home) -> None:
    home = quick_home
    done = home.vmgr(
        "run", "-i", *SMALL, "debian-minimal", "--", "sha256sum", stdin=b"x" * 3_000_000
    )
    expected = subprocess.run(
        ["sha256sum"], input=b"x" * 3_000_000, capture_output=True, check=True
    )
    assert done.stdout == expected.stdout
    nothing_left(home)


@pytest.mark.parametrize(
    ("command", "code"),
    [(["nosuchcommand"], 127), (["/etc/passwd"], 126), (["sh", "-c", "kill -9 $$"], 137)],
)
def test_run_fails_like_podman(quick_home: Home, command: list[str], code: int) -> None:
    home = quick_home
    done = home.vmgr("run", *SMALL, "debian-minimal", "--", *command, check=False)
    assert done.returncode == code, sentence(done)
    nothing_left(home)


# -- Ctrl-C ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [0.1, 0.2, 0.4, 0.8, 1.5, 2.2])
def test_interrupting_run_at_any_stage_leaves_nothing(home: Home, pause: float) -> None:
    client = home.start(
        "run", *SMALL, "debian-minimal", "--", "sh", "-c", "echo begun; exec sleep 1000",
        start_new_session=True,
    )  # fmt: skip
    time.sleep(pause)  # which stage it hits is left to chance on purpose
    os.killpg(client.pid, signal.SIGINT)
    _, errors = client.communicate(timeout=60)
    # Before vmgr could take over the signal, it ends the process itself: 130 to a shell as well.
    assert client.returncode in {130, -signal.SIGINT}, errors
    assert b"Traceback" not in errors
    nothing_left(home)


def test_killing_the_client_of_run_leaves_nothing(quick_home: Home) -> None:
    home = quick_home
    client = home.start("run", *SMALL, "debian-minimal", "--", "sh", "-c", "echo begun; sleep 1000")
    assert client.stdout is not None
    assert client.stdout.readline() == b"begun\n"
    client.kill()
    client.communicate()
    wait_until_empty(home)
    nothing_left(home)


def wait_until_empty(home: Home) -> None:
    """Ask until the removal is done that the helper finishes after its client has gone."""
    deadline = time.monotonic() + 30
    while home.json("ls"):
        assert time.monotonic() < deadline, home.logs()


# -- the host --------------------------------------------------------------------------------------


def test_memory_above_the_hosts(home: Home) -> None:
    done = home.vmgr("run", "--memory", "900G", "debian-minimal", "--", "true", check=False)
    assert done.returncode == 2
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert sentence(done) == (
        f"vmgr: a machine of 900 GiB memory does not fit this host's {format_size(total)}.\n"
        "Try: ask for less with --memory.\n"
    )
    nothing_left(home)


@pytest.mark.parametrize("name", ["a b", "", "-a", "A", "ünï", "a" * 64, "a/../b", "a\n"])
def test_a_name_that_is_none(home: Home, name: str) -> None:
    done = home.vmgr("create", "--image", "debian-minimal", "--", name, check=False)
    assert done.returncode == 2
    assert sentence(done) == (
        f"vmgr: {name!r} cannot be a machine's name.\n"
        "Try: use 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit.\n"
    )
    nothing_left(home)


def test_an_unknown_image(home: Home) -> None:
    done = home.vmgr("run", "nosuch", "--", "true", check=False)
    assert done.returncode == 125
    assert sentence(done) == (
        "vmgr: there is no image named nosuch.\nTry: see those there are with: vmgr image ls.\n"
    )
    nothing_left(home)


def test_memory_that_is_not_free(home: Home) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    done = home.vmgr("run", "--memory", str(total), "debian-minimal", "--", "true", check=False)
    assert done.returncode == 125
    # How much is left changes, and the name was made up.
    assert re.fullmatch(
        rf"vmgr: machine [a-z]+-[a-z]+ needs {re.escape(format_size(total))} of memory, "
        r"but the host has only [0-9.]+ [KMG]iB left\.\n"
        r"Try: stop other machines or programs, or give it less memory\.\n",
        sentence(done),
    )
    nothing_left(home)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            None,
            (
                "the configured QEMU {0} is not an executable file.\n"
                f"Try: correct the setting qemu.path (or VMGR_QEMU), or {INSTALL}"
            ),
        ),
        (
            "echo 'QEMU emulator version 5.2.0'",
            f"{{0}} is QEMU 5.2.0, which is too old.\nTry: {INSTALL}",
        ),
        ("echo hello", f"{{0}} does not say that it is QEMU.\nTry: {INSTALL}"),
        (
            "exit 3",
            (
                "{0} does not run: {0} exited with 3.\nTry: reinstall it, on Debian and Ubuntu: "
                "apt-get install --reinstall qemu-system-x86"
            ),
        ),
    ],
)
def test_qemu_missing_or_too_old(
    quick_home: Home, tmp_path: Path, script: str | None, message: str
) -> None:
    home = quick_home
    program = tmp_path / "qemu"
    if script is not None:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    home.vmgr("config", "set", "qemu.path", str(program))
    done = home.vmgr("run", *SMALL, "debian-minimal", "--", "true", check=False)
    assert done.returncode == 125
    assert sentence(done) == f"vmgr: {message.format(program)}.\n"
    nothing_left(home)
    home.vmgr("config", "unset", "qemu.path")
    assert home.vmgr("run", *SMALL, "debian-minimal", "--", "true").returncode == 0


def test_a_damaged_disk(home: Home) -> None:
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    (disk,) = (home.root / "state/vmgr/machines").glob("*/disk.qcow2")
    # While nothing of a person's is on it, another one does as well.
    with disk.open("r+b") as file:
        file.write(b"nothing that QEMU would know")
    home.vmgr("start", "m")
    # Once it has run, there is something.
    home.vmgr("stop", "m")
    disk.write_bytes(b"")
    done = home.vmgr("start", "m", check=False)
    assert done.returncode == 1
    assert sentence(done) == (
        f"vmgr: the disk of machine m cannot be written or is empty: {disk}.\n"
        "Try: check its owner and permissions.\n"
    )
    assert home.vmms() == []
    assert home.json("info", "m")["status"] == "stopped"
    disk.unlink()
    assert sentence(home.vmgr("start", "m", check=False)) == (
        f"vmgr: the disk of machine m is missing: there is no file {disk}.\n"
        "Try: run: vmgr doctor.\n"
    )
    home.vmgr("rm", "m")
    nothing_left(home)


def test_a_damaged_kernel_is_made_anew(home: Home, tmp_path: Path) -> None:
    """It is a cache: whoever emptied it, nobody has to do anything about it."""
    cache = tmp_path / "cache"
    shutil.copytree(home.cache, cache)
    home.environment["XDG_CACHE_HOME"] = str(cache)
    home.vmgr("run", *SMALL, "debian-minimal", "--", "true")
    # The parts keep theirs. Bundles of earlier versions may lie there, too.
    kernels = [file.with_name("vmlinux") for file in cache.glob("vmgr/kernels/*/bundle.json")]
    for kernel in kernels:
        kernel.unlink()
        kernel.touch()
    home.vmgr("run", *SMALL, "debian-minimal", "--", "true")
    assert [kernel for kernel in kernels if kernel.stat().st_size > 1 << 20]
    nothing_left(home)


def test_a_guest_that_never_says_hello(home: Home) -> None:
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.vmgr("config", "set", "boot.timeout", "0.7")
    done = home.vmgr("start", "m", check=False)
    assert done.returncode == 1
    assert sentence(done) == (
        "vmgr: machine m was not ready after 0.7 s.\nTry: look at: vmgr logs m.\n"
    )
    assert home.vmms() == []
    info = home.json("info", "m")
    assert info["status"] == "stopped"
    assert "not ready after" in info["status_reason"]
    home.vmgr("config", "unset", "boot.timeout")
    home.vmgr("start", "m")


def test_a_guest_that_dies_in_the_middle_of_a_command(quick_home: Home) -> None:
    home = quick_home
    # It dies when its output has been seen: what the agent holds at that moment dies with it.
    client = home.start(
        "run", "-i", *SMALL, "debian-minimal", "--",
        "sh", "-c", "echo begun; read go; echo c > /proc/sysrq-trigger; sleep 100",
    )  # fmt: skip
    assert client.stdout is not None
    assert client.stdout.readline() == b"begun\n"
    out, errors = client.communicate(b"go\n", timeout=60)
    assert (client.returncode, out) == (125, b"")
    assert b"Traceback" not in errors
    assert b"lost the agent of" in errors
    wait_until_empty(home)
    nothing_left(home)


def test_a_panic_is_told(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.vmgr("start", "m")
    home.vmgr("exec", "m", "--", "sh", "-c", "echo c > /proc/sysrq-trigger", check=False)
    while (info := home.json("info", "m"))["status"] != "stopped":
        pass
    assert info["status_reason"].startswith("the machine's kernel panicked")
    assert b"Kernel panic" in home.vmgr("logs", "m").stdout


def test_no_space_left(home: Home) -> None:
    if os.getuid() != 0:
        pytest.skip("mounting a small file system takes root")
    home.helper_pid()
    machines = home.root / "state/vmgr/machines"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", machines], check=True
    )
    try:
        done = home.vmgr("run", *SMALL, "debian-minimal", "--", "true", check=False)
        assert done.returncode == 125
        assert "no space" in sentence(done).lower()
        assert list(machines.iterdir()) == []
    finally:
        subprocess.run(["umount", machines], check=True)
    nothing_left(home)


# -- vmgr own files -----------------------------------------------------------------------------


def test_a_newer_database(home: Home) -> None:
    home.kill_helper()
    database = home.root / "state/vmgr/vmgr.db"
    with sqlite3.connect(database) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    done = home.vmgr("ls", check=False)
    assert done.returncode == 1
    assert f"the state database {database} is of a newer vmgr (schema 99" in sentence(done)
    home.wait_for_no("vmgr.helper")


def test_a_damaged_database_is_rebuilt_with_running_machines(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.vmgr("start", "m")
    home.kill_helper()
    for file in (home.root / "state/vmgr").glob("vmgr.db*"):
        file.write_bytes(b"nothing that SQLite would know " * 300)
    done = home.vmgr("exec", "m", "--", "echo", "still here")
    assert done.stdout == b"still here\n"
    assert b"the state database was damaged and has been rebuilt: 1 machines found" in done.stderr
    assert b"damaged" not in home.vmgr("ls").stderr
    assert home.json("image", "ls")[0]["names"]


def test_a_socket_of_another_user(home: Home) -> None:
    if os.getuid() != 0:
        pytest.skip("giving a directory away takes root")
    runtime = home.root / "run/vmgr"
    home.kill_helper()
    os.chown(runtime, 65534, 65534)
    try:
        done = home.vmgr("ls", check=False)
        assert done.returncode == 1
        assert "belongs to another user" in sentence(done)
        home.wait_for_no("vmgr.helper")
    finally:
        os.chown(runtime, 0, 0)
    assert home.json("ls") == []


def test_a_config_file_with_a_mistake(home: Home) -> None:
    home.vmgr("config", "set", "machine.cpus", "1")
    file = home.root / "config/vmgr/config.toml"
    file.write_text(file.read_text() + "\n[broken\n")
    done = home.vmgr("ls", check=False)
    assert "Traceback" not in done.stderr.decode()
    done = home.vmgr("config", "ls", check=False)
    assert done.returncode == 1
    assert "config.toml" in sentence(done)


def test_the_helper_that_crashes_tells_once(home: Home) -> None:
    pid = home.helper_pid()
    # A database that goes away under a running helper is something nobody expects.
    os.kill(pid, signal.SIGSEGV)
    kill_and_wait(pid)
    assert home.helper_pid() != pid
