"""Commands in a machine that runs: by API, by CLI, and `podman exec` beside them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from clock import Row, ratios, stopwatch
from vmgr.api.models import CreateMachine, ExecSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmgr.client.sync import Client

GOAL_MS = 100.0
VMGR = Path(sys.executable).with_name("vmgr")


def run_quietly(*command: str | Path) -> float:
    """Run it to its end; gives the milliseconds of CPU it took, which other load hardly changes."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"bench: {command[0]} exited with {process.returncode}")
    return (usage.ru_utime + usage.ru_stime) * 1000


def timed(action: Callable[[], object]) -> float:
    with stopwatch() as watch:
        action()
    return watch.milliseconds


class Podman:
    """A container on the root file system of one of our images, where podman works."""

    def __init__(self, root_disk: Path, directory: Path) -> None:
        self.root = directory / "rootfs"
        self.name = f"vmgr-bench-{os.getpid()}"
        self.root.mkdir()
        # Copies the files out of the ext4 image; ownership comes out right only for root.
        self._quiet("debugfs", "-R", f"rdump / {self.root}", root_disk)
        self.runtime = self._start()

    def _start(self) -> str:
        # runc as well: crun refuses a host that mixes both versions of cgroups.
        runtimes = [name for name in ("crun", "runc") if shutil.which(name)]
        reason = RuntimeError("podman has neither crun nor runc")
        for runtime in runtimes:
            try:
                self._quiet(
                    "podman", "--runtime", runtime, "run", "--detach", "--rm", "--network=none",
                    # Podman's own defaults may be above what this user may set.
                    "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024",
                    "--name", self.name, "--rootfs", self.root, "/bin/sleep", "infinity",
                )  # fmt: skip
            except RuntimeError as error:
                reason = error
            else:
                return runtime
        raise reason

    def exec(self) -> None:
        self._quiet("podman", "--runtime", self.runtime, "exec", self.name, "/bin/true")

    def remove(self) -> None:
        self._quiet("podman", "--runtime", self.runtime, "rm", "--force", "--time=0", self.name)

    @staticmethod
    def _quiet(*command: str | Path) -> None:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"{command[0]} failed: {' '.join(last)}")


def measure(client: Client, image: str | None, rounds: int) -> list[Row]:
    api = Row("exec true, by API", "ms")
    cli = Row("exec true, by CLI", "ms")
    beyond = Row("  CLI beyond the API", "ms", goal=f"<= {GOAL_MS:.0f} ms")
    cpu = Row("  CLI's own CPU time", "ms")
    ls = Row("vmgr ls", "ms", goal=f"<= {GOAL_MS:.0f} ms")
    python = Row("  of which: python -c pass", "ms")
    podman = Row("podman exec true", "ms")
    ratio = Row("vmgr exec / podman exec", "x")
    machine = client.machine_create(CreateMachine(name="bench-exec", image=image))
    container: Podman | None = None
    with tempfile.TemporaryDirectory(prefix="vmgr-bench-") as directory:
        try:
            machine = client.machine_start(machine.name)
            try:
                digest = client.image_info(machine.image_digest).digest.removeprefix("sha256:")
                disk = client.paths.images / digest / "root.ext4"
                container = Podman(disk, Path(directory))
                podman.note = f"with {container.runtime}"
            except (OSError, RuntimeError) as error:
                podman.note = f"not measured: {error}"

            def by_api() -> None:
                done = client.exec(machine.name, ExecSpec(argv=["/bin/true"])).communicate()
                assert done.exit.exit_code == 0

            def by_cli() -> None:
                cpu.samples.append(run_quietly(VMGR, "exec", machine.name, "--", "/bin/true"))

            # A machine that still boots is another measurement.
            if machine.init is not None:
                wait = ["systemctl", "is-system-running", "--wait"]
                client.exec(machine.name, ExecSpec(argv=wait)).communicate()
            # The first ones translate guest code and fill caches.
            for warm_up in (by_api, by_api, by_api, by_cli):
                warm_up()
            cpu.samples.clear()
            for _ in range(rounds):
                api.samples.append(timed(by_api))
                cli.samples.append(timed(by_cli))
                ls.samples.append(timed(lambda: run_quietly(VMGR, "ls")))
                python.samples.append(timed(lambda: run_quietly(sys.executable, "-c", "pass")))
                if container is not None:
                    podman.samples.append(timed(container.exec))
        finally:
            if container is not None:
                container.remove()
            client.machine_remove(machine.name, force=True)
    beyond.samples = [c - a for c, a in zip(cli.samples, api.samples, strict=True)]
    beyond.met = beyond.median is not None and beyond.median <= GOAL_MS
    ls.met = ls.median is not None and ls.median <= GOAL_MS
    if podman.samples:
        ratio.samples = ratios(cli.samples, podman.samples)
    return [api, cli, beyond, cpu, ls, python, podman, ratio]
