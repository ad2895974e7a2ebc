"""Shares beside the machine's own disk, the same work on both in turn."""

from __future__ import annotations

import os
import secrets
import select
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from clock import Row, ratios, stopwatch
from vmgr.api.models import CreateMachine, ExecSpec
from vmgr.api.shares import Share

if TYPE_CHECKING:
    from vmgr.client.sync import Client

RATE_GOAL = 0.75
NAMES_GOAL = 0.5
EXTRA_GOAL_S = 0.12
TOLD_GOAL_S = 0.1
VMGR = Path(sys.executable).with_name("vmgr")
SHARED = "/mnt/share"
OWN = "/root/own"
TREE = "mkdir -p /root/src && cd /root/src && for i in $(seq 15); do mkdir -p d$i; \
for j in $(seq 100); do echo $i $j >d$i/f$j; done; done; tar cf /root/tree.tar -C /root/src ."
# Says a line for each inotify event of a directory: inotify_init1, inotify_add_watch.
WATCH = """
my ($init, $add) = `uname -m` =~ /x86_64/ ? (294, 254) : (26, 27);
my $fd = syscall($init, 0); open(my $in, "<&=", $fd) or die; $| = 1;
syscall($add, $fd, my $copy = $ARGV[0], 2) > 0 or die; print "watching\\n";
while (sysread($in, my $bytes, 65536)) { print "told\\n" }
"""
COLD = "sync; echo 3 >/proc/sys/vm/drop_caches"
WORK = {
    "write 64 MB": ("true", "dd if=/dev/zero of=big bs=1M count=64 conv=fsync", RATE_GOAL),
    "read 64 MB, cold": (COLD, "dd if=big of=/dev/null bs=1M", RATE_GOAL),
    "create, stat, remove 300 files": (
        "true",
        "seq 300 | xargs touch; ls -l >/dev/null; seq 300 | xargs rm",
        NAMES_GOAL,
    ),
    "untar 1,500 files": ("rm -rf tree; mkdir tree", "tar xf /root/tree.tar -C tree", NAMES_GOAL),
    "look at 1,500 files": (COLD, "find tree -type f -size +1M", NAMES_GOAL),
    "read 1,500 files": (COLD, "cat tree/*/*", NAMES_GOAL),
}


def inside(name: str, script: str) -> str:
    done = subprocess.run(
        [VMGR, "exec", name, "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def seconds(name: str, where: str, before: str, work: str) -> float:
    script = f"cd {where}; {before}; s=$(date +%s%N); ({work}) >/dev/null 2>&1; "
    return int(inside(name, f"{script} echo $(($(date +%s%N) - s))")) / 1e9


def measure(client: Client, image: str | None, rounds: int) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="vmgr-bench-") as directory:
        share = Share(host=directory, guest=SHARED)
        name = f"bench-{secrets.token_hex(3)}"
        client.machine_create(CreateMachine(name=name, image=image, shares=[share], consent=True))
        try:
            client.machine_start(name)
            inside(name, f"mkdir -p {OWN}; {TREE}")
            for what, (before, work, goal) in WORK.items():
                row = Row(f"own disk / share: {what}", "x", goal=f">= {goal}")
                own, shared = [], []
                for _ in range(max(1, rounds // 2)):
                    own.append(seconds(name, OWN, before, work))
                    shared.append(seconds(name, SHARED, before, work))
                row.samples = ratios(own, shared)
                row.met = statistics.median(row.samples) >= goal
                rows.append(row)
            rows.append(told(name, Path(directory), rounds))
        finally:
            client.machine_remove(name, force=True)
        rows.append(extra(client, image, rounds, share))
    return rows


def told(name: str, directory: Path, rounds: int) -> Row:
    """From a write here to a line of a program in the machine that watches, with its way back."""
    row = Row("a write here, told to a watcher in the machine", "s", goal=f"<= {TOLD_GOAL_S}")
    file = directory / "watched"
    file.touch()
    command = [VMGR, "exec", name, "--", "perl", "-e", WATCH, SHARED]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
    ) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        said = 0
        while not said:  # until the share server watches, too
            file.write_bytes(b"x")
            said = len(select.select([watching.stdout], [], [], 0.2)[0])
        while select.select([watching.stdout], [], [], 0.5)[0]:
            os.read(watching.stdout.fileno(), 65_536)
        for number in range(rounds * 3):
            with stopwatch() as watch:
                file.write_bytes(b"%d" % number)
                watching.stdout.readline()
            row.samples.append(watch.seconds)
            while select.select([watching.stdout], [], [], 0.2)[0]:
                os.read(watching.stdout.fileno(), 65_536)
        watching.kill()
    row.met = statistics.median(row.samples) <= TOLD_GOAL_S
    return row


def extra(client: Client, image: str | None, rounds: int, share: Share) -> Row:
    """What a share adds to a `run` that starts from a template."""
    row = Row("a share, beyond a run without one", "s", goal=f"<= {EXTRA_GOAL_S}")

    def run(shares: list[Share]) -> float:
        wanted = CreateMachine(image=image, memory_bytes=512 << 20, shares=shares, consent=True)
        with stopwatch() as watch:
            client.run(wanted, ExecSpec(argv=["true"])).communicate()
        return watch.seconds

    client.template_build(CreateMachine(image=image, memory_bytes=512 << 20))
    run([share])
    for _ in range(rounds):
        without = run([])
        row.samples.append(run([share]) - without)
    row.met = statistics.median(row.samples) <= EXTRA_GOAL_S
    return row
