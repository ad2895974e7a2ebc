"""`host true` in a machine, beside `/bin/true` there: what a command on the host costs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clock import Row, ratios
from vmgr.api.hostcommands import HostCommands
from vmgr.api.models import CreateMachine, ExecSpec

if TYPE_CHECKING:
    from vmgr.client.sync import Client

GOAL_MS = 20.0
LOOP = 20
# By the machine's clock, and in one shell, so that nothing but the commands is in it.
SCRIPT = f"""
s=$(date +%s%N); i=0; while [ $i -lt {LOOP} ]; do "$@"; i=$((i+1)); done; e=$(date +%s%N)
echo $((e-s))
"""


def measure(client: Client, image: str | None, rounds: int) -> list[Row]:
    host = Row("host true, in a machine", "ms", goal=f"<= {GOAL_MS:.0f} ms")
    own = Row("  /bin/true there", "ms")
    ratio = Row("  host true / /bin/true", "x")
    wanted = CreateMachine(name="bench-host", image=image, host_commands=HostCommands(mode="all"))
    machine = client.machine_start(client.machine_create(wanted).name)

    def one(*command: str) -> float:
        spec = ExecSpec(argv=["sh", "-c", SCRIPT, "sh", *command])
        done = client.exec(machine.name, spec).communicate()
        assert done.exit.exit_code == 0, done.stderr
        return int(done.stdout) / LOOP / 1e6

    try:
        if machine.init is not None:
            wait = ["systemctl", "is-system-running", "--wait"]
            client.exec(machine.name, ExecSpec(argv=wait)).communicate()
        one("host", "true")  # the person's environment is asked for, guest code translated
        for _ in range(rounds):
            host.samples.append(one("host", "true"))
            own.samples.append(one("/bin/true"))
    finally:
        client.machine_remove(machine.name, force=True)
    host.met = host.median is not None and host.median <= GOAL_MS
    ratio.samples = ratios(host.samples, own.samples)
    return [host, own, ratio]
