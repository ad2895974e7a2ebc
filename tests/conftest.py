"""Fixtures for tests that drive the real thing: a home, the CLI, the helper, machines."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.helper.watchdog import MESSAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[1]
# Images and the kernel bundle are built once and shared; machines and databases never are.
SHARED = Path(os.environ.get("VMGR_TEST_HOME") or CHECKOUT / ".dev" / f"test-home-{os.getuid()}")
COMMAND_DEADLINE = 180.0
SMALL = ("--memory", "256M", "--cpus", "1")


@dataclass
class Home:
    """One user's vmgr, apart from all others: state, configuration and runtime of its own."""

    root: Path
    data: Path
    cache: Path
    templates: bool = False
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("home", "state", "config", "run"):
            (self.root / name).mkdir(mode=0o700)
        # Most tests are about root's commands, whoever runs them: tests/helper/test_accounts.py is
        # about the others.
        settings = '[user]\ndefault = "root"\n'
        # Machines are not to differ by what the tests' computer has.
        settings += "[host]\n" + "".join(
            f'{what} = "off"\n' for what in ("certificates", "git", "proxies", "timezone")
        )
        # QEMU before 8.1 may run stale code while another CPU patches it (docs/decisions/0003):
        # now and then a kernel panics. Tests of several CPUs ask for them.
        settings += "[machine]\ncpus = 1\n"
        # tests/helper/test_consent.py is about this.
        settings += '[authorize]\nports = "allow"\nshares = "allow"\n'
        if not self.templates:
            # A template is built in the background after a boot: work that most tests do not want.
            settings += "[template]\nmax = 0\n"
        configuration = self.root / "config/vmgr/config.toml"
        configuration.parent.mkdir(mode=0o700)
        configuration.write_text(settings)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root / "home"),
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "XDG_STATE_HOME": str(self.root / "state"),
            "XDG_CONFIG_HOME": str(self.root / "config"),
            "XDG_RUNTIME_DIR": str(self.root / "run"),
            "XDG_DATA_HOME": str(self.data),
            "XDG_CACHE_HOME": str(self.cache),
            "VMGR_LOOP_WATCHDOG": "1",
            **{
                name: value
                for name, value in os.environ.items()
                if name.lower().endswith("_proxy") or "CERT" in name or "SSL" in name
            },
        }

    # -- the CLI -------------------------------------------------------------------------------

    def command(self, *arguments: str) -> list[str]:
        """The command line of a vmgr call."""
        return [sys.executable, "-m", "vmgr.cli", *arguments]

    def vmgr(
        self,
        *arguments: str,
        check: bool = True,
        stdin: bytes | None = None,
        deadline: float = COMMAND_DEADLINE,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the CLI to its end; with `check`, it must succeed."""
        done = subprocess.run(
            self.command(*arguments),
            input=b"" if stdin is None else stdin,
            capture_output=True,
            timeout=deadline,
            env=self.environment,
            cwd=self.root,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(
                f"vmgr {' '.join(arguments)} exited with {done.returncode}:\n"
                f"{done.stdout.decode(errors='replace')}{done.stderr.decode(errors='replace')}"
                f"\n{self.logs()}"
            )
        return done

    def json(self, *arguments: str) -> Any:
        """What the CLI prints with --json."""
        return json.loads(self.vmgr(*arguments, "--json").stdout)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start the CLI and go on."""
        options = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **options,
        }
        return subprocess.Popen(
            self.command(*arguments), env=self.environment, cwd=self.root, **options
        )

    # -- the helper ----------------------------------------------------------------------------

    def helper_pid(self) -> int:
        """The helper's process; it is started when there is none."""
        self.vmgr("ls")
        return int(self.json("helper", "status")["pid"])

    def kill_helper(self) -> int:
        """SIGKILL the helper and wait until it is gone; gives the pid it had."""
        pid = self.helper_pid()
        kill_and_wait(pid)
        return pid

    def logs(self) -> str:
        """The end of the helper's log."""
        path = self.root / "state/vmgr/helper.log"
        return path.read_text(errors="replace")[-6000:] if path.exists() else "(no helper log)"

    def held_loop(self) -> list[str]:
        """What the helpers' watchdogs said."""
        logs = (self.root / "state/vmgr").glob("helper.log*")
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        return [line for line in lines if MESSAGE in line]

    # -- what happens ------------------------------------------------------------------------------

    def last_event(self) -> int:
        """A number that comes after all events so far: they count microseconds."""
        self.helper_pid()
        return time.time_ns() // 1_000

    def wait_for_event(self, kind: str, since: int, **data: Any) -> dict[str, Any]:
        """The first event of a kind after `since` whose data hold `data`."""
        with self.start("events", "--json", "--since", "0", bufsize=0) as following:
            assert following.stdout is not None
            try:
                while select.select([following.stdout], [], [], 120)[0]:
                    event: dict[str, Any] = json.loads(following.stdout.readline())
                    if (
                        event["kind"] == kind
                        and event["at"] * 1e6 > since
                        and data.items() <= event["data"].items()
                    ):
                        return event
            finally:
                following.kill()
        pytest.fail(f"no {kind} came:\n{self.logs()}")

    # -- what is left ----------------------------------------------------------------------------

    def machine_directories(self) -> list[Path]:
        """Directories of machines, state and runtime."""
        found: list[Path] = []
        for where in ("state/vmgr/machines", "run/vmgr/machines"):
            directory = self.root / where
            if directory.is_dir():
                found += sorted(directory.iterdir())
        return found

    def processes(self, name: str = "") -> list[int]:
        """Live processes of this home whose command line holds `name`: helpers, VMMs, builders."""
        # A VMM that a template is built with has all its files in the cache, which homes share.
        markers = [os.fsencode(self.root), os.fsencode(templates_of(self.cache))]
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
                if name.encode() in command and any(m in command + environment for m in markers):
                    found.append(int(entry.name))
        return found

    def wait_for_no(self, name: str) -> None:
        """Wait until the processes that `processes(name)` gives have ended."""
        for pid in self.processes(name):
            wait_for_end(pid)

    def vmms(self) -> list[int]:
        """Live VMMs of this home."""
        # Not bubblewrap's monitors, on whose command lines QEMU stands too.
        return [pid for pid in self.processes("qemu-system") if "qemu" in program_of(pid)]

    def close(self) -> None:
        """End everything; by pid, and only what belongs to this home."""
        for pid in [*self.processes("vmgr.helper"), *self.processes()]:
            kill_and_wait(pid)
        held = self.held_loop()
        shutil.rmtree(self.root, ignore_errors=True)
        if held:
            pytest.fail("process rule 5, see vmgr.helper.watchdog:\n" + "\n".join(held))


def program_of(pid: int) -> str:
    """The name of a process's program, empty when it has ended."""
    try:
        return Path(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()).name
    except OSError:
        return ""


def kill_and_wait(pid: int, number: int = signal.SIGKILL, deadline: float = 30.0) -> None:
    """Signal a process that need not be our child, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        wait_for_end(pid, deadline)


def wait_for_end(pid: int, deadline: float = 30.0) -> None:
    """Wait until a process is gone, whose child it may be."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], deadline)[0], f"process {pid} does not end"
    finally:
        os.close(pidfd)


def children() -> set[int]:
    """Children of this process that any of its threads started, zombies too."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def pytest_configure() -> None:
    """Let what the tests start have the signals that its user would have.

    A shell without job control (`./dev test &` in a script) starts what it runs in the background
    with SIGINT and SIGQUIT ignored, nohup does it with SIGHUP, and all children would inherit it:
    Ctrl-C in a test would do nothing. A handler that does nothing is as deaf, and not inherited.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(autouse=True)
def no_child_outlives_its_test() -> Iterator[None]:
    """A test that fails half-way must not fail others by what it had started.

    A `Popen` whose process is not reaped or whose pipes are open is a warning, so an error, in
    whichever test it is collected in; its zombie is seen by tests that count our children.
    """
    before = children()
    yield
    if left := children() - before:
        for process in gc.get_objects():
            if isinstance(process, subprocess.Popen) and process.pid in left:
                process.kill()
                process.wait(30)
                for pipe in (process.stdin, process.stdout, process.stderr):
                    if pipe is not None:
                        with contextlib.suppress(BrokenPipeError):  # what was not flushed
                            pipe.close()


def short_directory() -> Path:
    """A directory with a short path: sockets' addresses hold 107 bytes."""
    return Path(tempfile.mkdtemp(prefix="vmgr-t-", dir="/tmp"))


@pytest.fixture(scope="session")
def shared_images() -> tuple[Path, Path]:
    """Data and cache directories with both images and a kernel bundle; built when missing."""
    data, cache = SHARED / "data", SHARED / "cache"
    for directory in (SHARED, data, cache):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    builder = Home(short_directory(), data, cache)
    try:
        # scripts/suite.sh names fewer where the tests are few.
        recipes = os.environ.get("VMGR_TEST_IMAGES", "debian debian-minimal").split()
        builds = {r: builder.start("image", "build", r, stderr=subprocess.STDOUT) for r in recipes}
        for recipe, build in builds.items():
            said, _ = build.communicate(timeout=900)
            if build.returncode != 0:
                pytest.fail(f"{recipe} is not built: {said.decode(errors='replace')}")
    finally:
        builder.close()
    return data, cache


@pytest.fixture
def bare_home() -> Iterator[Home]:
    """A home in which nothing has happened yet, without images."""
    root = short_directory()
    for name in ("data", "cache"):
        (root / name).mkdir(mode=0o700)
    home = Home(root, root / "data", root / "cache")
    yield home
    home.close()


@pytest.fixture
def home(shared_images: tuple[Path, Path], request: pytest.FixtureRequest) -> Iterator[Home]:
    """A home with images; its machines are ended afterwards, and nothing else may be left."""
    home = Home(short_directory(), *shared_images)
    yield home
    if getattr(request.node, "failed", False):
        sys.stderr.write(home.logs())
    home.close()


def templates_of(cache: Path) -> Path:
    """Where a home with that cache keeps its templates."""
    return cache / "vmgr/templates"


@pytest.fixture(scope="session")
def small_template(shared_images: tuple[Path, Path]) -> Iterator[Path]:
    """A directory with one template, of a `SMALL` machine of `debian-minimal`; not a home's.

    Made in each session: a key that is wrong, or a template that does not serve, is not hidden.
    """
    data, cache = shared_images
    kept = SHARED / "templates-of-tests"
    for directory in (kept, templates_of(cache)):
        shutil.rmtree(directory, ignore_errors=True)
    builder = Home(short_directory(), data, cache, templates=True)
    try:
        builder.vmgr("template", "build", *SMALL, "debian-minimal")
    finally:
        builder.close()
    templates_of(cache).rename(kept)
    yield kept
    shutil.rmtree(kept, ignore_errors=True)


@contextlib.contextmanager
def home_with(template: Path, images: tuple[Path, Path]) -> Iterator[Home]:
    """A home that has a template; its machines must not write to the template's files."""
    data, cache = images
    templates = templates_of(cache)
    shutil.rmtree(templates, ignore_errors=True)
    # Links: the checksum is over the pages that were ever touched, and a copy has other holes.
    shutil.copytree(template, templates, copy_function=os.link)
    home = Home(short_directory(), data, cache, templates=True)
    yield home
    home.close()
    shutil.rmtree(templates, ignore_errors=True)


@pytest.fixture
def quick_home(shared_images: tuple[Path, Path], small_template: Path) -> Iterator[Home]:
    """A home in which `SMALL` machines of `debian-minimal` first start from a template.

    For tests whose subject is not the boot.
    """
    with home_with(small_template, shared_images) as home:
        yield home


@pytest.fixture(scope="module")
def quick_module_home(shared_images: tuple[Path, Path], small_template: Path) -> Iterator[Home]:
    """The same for a whole module; it has no other home with templates meanwhile."""
    with home_with(small_template, shared_images) as home:
        yield home


@pytest.fixture
def template_home(shared_images: tuple[Path, Path]) -> Iterator[Home]:
    """The same, in which machines start from templates; there is none yet."""
    data, cache = shared_images
    root = short_directory()
    shutil.rmtree(templates_of(cache), ignore_errors=True)
    home = Home(root, data, cache, templates=True)
    yield home
    home.close()
    shutil.rmtree(templates_of(cache), ignore_errors=True)


@pytest.fixture(scope="module")
def module_home(shared_images: tuple[Path, Path]) -> Iterator[Home]:
    """The same for a whole module, where starting machines again would take long."""
    home = Home(short_directory(), *shared_images)
    yield home
    home.close()


@pytest.fixture(scope="module")
def machine(module_home: Home) -> str:
    """A running machine with systemd, for tests that only use it."""
    name = f"m{secrets.token_hex(3)}"
    module_home.vmgr("create", name, "--image", "debian")
    module_home.vmgr("start", name)
    return name


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write down why tests failed, for scripts/suite.sh, which says it at its very end."""
    path = os.environ.get("VMGR_TEST_FAILURES")
    failed = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
    if not path or not failed:
        return
    with Path(path).open("a", encoding="utf-8") as file:
        for report in failed:
            file.write(f"{report.nodeid} ({report.when})\n")
            errors = [line for line in report.longreprtext.splitlines() if line.startswith("E  ")]
            file.writelines(f"  {line[:300]}\n" for line in errors[:12])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.failed:
        item.failed = True  # type: ignore[attr-defined]
    return report
