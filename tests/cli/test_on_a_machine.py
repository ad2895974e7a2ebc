"""The verbs that reach into a machine, on a real one with systemd."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import select
import signal
import struct
import subprocess
import tarfile
import termios
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Home

pytestmark = pytest.mark.vm


def in_machine(home: Home, machine: str, script: str) -> str:
    return home.vmgr("exec", machine, "--", "sh", "-c", script).stdout.decode()


# -- exec ------------------------------------------------------------------------------


def test_exec_passes_what_it_is_given(module_home: Home, machine: str) -> None:
    done = module_home.vmgr(
        "exec", "-e", "GREETING=hello you", "-w", "/var", "-u", "daemon", machine, "--",
        "sh", "-c", 'echo "$GREETING|$PWD|$(id -un)|$1|$2"', "x", "a b", "*",
    )  # fmt: skip
    assert done.stdout == b"hello you|/var|daemon|a b|*\n"


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -9 $$", 137), ("exit 255", 255)],
)
def test_exec_passes_the_exit_code(module_home: Home, machine: str, script: str, code: int) -> None:
    done = module_home.vmgr("exec", machine, "--", "sh", "-c", script, check=False)
    assert done.returncode == code


def test_exec_moves_much_data_both_ways(module_home: Home, machine: str) -> None:
    data = os.urandom(1 << 20) * 24
    done = module_home.vmgr("exec", "-i", machine, "--", "cat", stdin=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_exec_keeps_output_and_errors_apart(module_home: Home, machine: str) -> None:
    done = module_home.vmgr("exec", machine, "--", "sh", "-c", "echo o; echo e >&2")
    assert (done.stdout, done.stderr) == (b"o\n", b"e\n")


def test_a_signal_reaches_the_command(module_home: Home, machine: str) -> None:
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    client = module_home.start("exec", machine, "--", "sh", "-c", script)
    assert client.stdout is not None
    assert client.stdout.readline() == b"ready\n"
    client.send_signal(signal.SIGTERM)
    out, _ = client.communicate(timeout=30)
    assert (out, client.returncode) == (b"caught\n", 5)


def test_a_stuck_reader_holds_back_nobody_else(module_home: Home, machine: str) -> None:
    stuck = module_home.start("exec", machine, "--", "cat", "/dev/zero")
    assert stuck.stdout is not None
    stuck.stdout.read(1)
    assert in_machine(module_home, machine, "echo free") == "free\n"
    stuck.kill()
    stuck.communicate()


def test_background_jobs_are_listed_and_attached(module_home: Home, machine: str) -> None:
    script = "echo begun; until [ -e /run/go ]; do sleep 0.05; done; echo gone; exit 9"
    module_home.vmgr("exec", "-d", machine, "--", "sh", "-c", script)
    (job,) = [j for j in module_home.json("jobs", machine) if "begun" in j["label"]]
    assert job["exit"] is None
    attached = module_home.start("attach", machine, str(job["job"]))
    assert attached.stdout is not None
    assert attached.stdout.readline() == b"begun\n"
    in_machine(module_home, machine, "touch /run/go")
    out, errors = attached.communicate(timeout=30)
    assert (out, attached.returncode) == (b"gone\n", 9), errors
    assert job["job"] not in [j["job"] for j in module_home.json("jobs", machine)]


# -- shell -----------------------------------------------------------------------------


class Terminal:
    """The CLI on a terminal of 33 by 111."""

    def __init__(self, home: Home, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(33, 111)
        self.process = subprocess.Popen(
            home.command(*arguments), stdin=slave, stdout=slave, stderr=slave, close_fds=True,
            env=home.environment, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.seen = b""

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, cols, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> None:
        while text.encode() not in self.seen:
            assert select.select([self.master], [], [], 60)[0], (text, self.seen)
            self.seen += os.read(self.master, 65536)
        self.seen = self.seen.partition(text.encode())[2]

    def end(self) -> int:
        try:
            while chunk := os.read(self.master, 65536):
                self.seen += chunk
        except OSError:
            pass  # EIO: the other side has closed
        os.close(self.master)
        return self.process.wait(30)


def test_shell_is_a_real_terminal(module_home: Home, machine: str) -> None:
    # Each line is typed at a prompt, and Ctrl-C when the command runs. What is typed while a shell
    # switches its terminal between lines and commands is any terminal's, and any shell's, to lose.
    terminal = Terminal(module_home, "shell", machine)
    terminal.expect("# ")
    terminal.type("PS1='next'-'line> '\n")
    terminal.expect("next-line> ")
    terminal.type("stty size; tty; echo $TERM-$((40+2))\n")
    terminal.expect("33 111")
    terminal.expect("/dev/pts/")
    terminal.expect("xterm-256color-42")
    terminal.expect("next-line> ")
    terminal.resize(20, 70)
    os.kill(terminal.process.pid, signal.SIGWINCH)
    terminal.type("sh -c 'echo run''ning; exec sleep 1000'\n")
    terminal.expect("running")
    terminal.type("\x03")
    terminal.expect("^C")
    terminal.expect("next-line> ")
    terminal.type("echo it-was-$?; stty size; echo after-$((1+1))\n")
    terminal.expect("it-was-130")
    terminal.expect("20 70")
    terminal.expect("after-2")
    terminal.expect("next-line> ")
    terminal.type("exit 7\n")
    assert terminal.end() == 7


# -- cp --------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "some tree"
    (root / "empty").mkdir(parents=True)
    (root / "sub/deep").mkdir(parents=True)
    (root / "sub/plain.txt").write_text("plain\n")
    (root / "sub/deep/run me").write_text("#!/bin/sh\n")
    (root / "sub/deep/run me").chmod(0o750)
    (root / "read-only").write_bytes(os.urandom(300_000))
    (root / "read-only").chmod(0o444)
    (root / "link").symlink_to("sub/plain.txt")
    (root / "dangling").symlink_to("/nowhere/at all")
    (root / ("n" * 200 + "\u00e9")).write_text("long name")
    os.utime(root / "sub/plain.txt", ns=(1_000_000_000_123_456_789, 1_500_000_000_123_456_789))
    return root


def described(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)  # noqa: PTH115 (its exact text)
        elif path.is_file():
            content = (status.st_mode & 0o7777, path.read_bytes(), status.st_mtime_ns)
        else:
            content = status.st_mode & 0o7777
        found[str(path.relative_to(root))] = (content,)
    return found


def test_cp_there_and_back_keeps_everything(
    module_home: Home, machine: str, tree: Path, tmp_path: Path
) -> None:
    module_home.vmgr("cp", str(tree), f"{machine}:/root/")
    listing = in_machine(
        module_home, machine, "cd '/root/some tree' && stat -c '%a %s %n' read-only"
    )
    assert listing == "444 300000 read-only\n"
    assert in_machine(module_home, machine, "readlink '/root/some tree/dangling'") == (
        "/nowhere/at all\n"
    )
    back = tmp_path / "back"
    back.mkdir()
    module_home.vmgr("cp", f"{machine}:/root/some tree", str(back))
    assert described(back / "some tree") == described(tree)
    in_machine(module_home, machine, "rm -rf '/root/some tree'")


def test_cp_of_files_and_streams(module_home: Home, machine: str, tmp_path: Path) -> None:
    # Not to /tmp, which an init that is still starting empties.
    source = tmp_path / "file"
    source.write_bytes(os.urandom(2_000_000))
    module_home.vmgr("cp", str(source), f"{machine}:/root/renamed")
    module_home.vmgr("cp", f"{machine}:/root/renamed", str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == source.read_bytes()
    module_home.vmgr("cp", "-", f"{machine}:/root/from-stdin", stdin=b"streamed\n")
    assert module_home.vmgr("cp", f"{machine}:/root/from-stdin", "-").stdout == b"streamed\n"
    # A file of the kernel's says that it is empty, and is not.
    module_home.vmgr("cp", f"{machine}:/proc/cpuinfo", str(tmp_path / "cpuinfo"))
    assert (tmp_path / "cpuinfo").read_bytes().startswith(b"processor")


def test_cp_says_what_is_wrong(module_home: Home, machine: str, tmp_path: Path) -> None:
    for arguments in (
        [f"{machine}:/no/such/file", str(tmp_path)],
        [str(tmp_path / "missing"), f"{machine}:/tmp"],
        [str(tmp_path), f"{machine}:/no/such/directory/x"],
    ):
        done = module_home.vmgr("cp", *arguments, check=False)
        assert done.returncode == 1, arguments
        assert b"Traceback" not in done.stderr
        assert done.stderr.startswith(b"vmgr: ")
    done = module_home.vmgr("cp", str(tmp_path), str(tmp_path), check=False)
    assert done.returncode == 2


# -- logs, images ----------------------------------------------------------------------


def test_logs(module_home: Home, machine: str) -> None:
    in_machine(module_home, machine, "echo to-the-console > /dev/console")
    follower = module_home.start("logs", "-f", machine)
    assert follower.stdout is not None
    for line in follower.stdout:
        if b"to-the-console" in line:
            break
    in_machine(module_home, machine, "echo and-more > /dev/console")
    for line in follower.stdout:
        if b"and-more" in line:
            break
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=20)
    assert b"Traceback" not in (follower.stderr.read() if not follower.stderr.closed else b"")  # type: ignore[union-attr]
    helper_view = module_home.vmgr("logs", "--source", "helper", machine).stdout
    assert b"starting -> running" in helper_view


def test_an_image_from_a_tarball_runs(module_home: Home, machine: str, tmp_path: Path) -> None:
    busybox = module_home.vmgr("cp", f"{machine}:/bin/dash", "-").stdout
    loader = in_machine(module_home, machine, "ldd /bin/dash").split()
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/sh").write_bytes(busybox)
    (root / "bin/sh").chmod(0o755)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    for library in [word for word in loader if word.startswith("/")]:
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(module_home.vmgr("cp", f"{machine}:{library}", "-").stdout)
        target.chmod(0o755)
    archive = tmp_path / "tiny.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, arcname=".")
    module_home.vmgr("image", "import", "--name", "tiny", str(archive))
    try:
        done = module_home.vmgr("run", "--memory", "256M", "tiny", "--", "sh", "-c", "echo tiny $$")
        assert done.stdout.startswith(b"tiny ")
        (image,) = [i for i in module_home.json("image", "ls") if i["names"] == ["tiny"]]
        assert image["init"] is None
    finally:
        module_home.vmgr("image", "rm", "tiny")
    used = module_home.vmgr("image", "rm", "debian", check=False)
    assert used.returncode == 1
    assert b"is in use by" in used.stderr
