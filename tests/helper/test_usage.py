"""`vmgr top` on real machines that work."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import SMALL, Home

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.vm

LISTEN = (
    "use IO::Socket::INET; $s = IO::Socket::INET->new(LocalPort => 7000, Listen => 1); $| = 1;"
    'print "ready\\n"; $c = $s->accept; 1 while sysread($c, $b, 65536)'
)


@pytest.fixture(scope="module")
def pair(module_home: Home) -> tuple[str, str]:
    for name in ("one", "two"):
        module_home.vmgr("create", name, *SMALL, "--image", "debian-minimal")
    module_home.vmgr("start", "one", "two")
    return "one", "two"


@contextlib.contextmanager
def working(home: Home, machine: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs in a machine until the block ends."""
    with home.start("exec", machine, "--", *command) as process:
        try:
            yield process
        finally:
            process.terminate()


def wait_for(home: Home, seen: Callable[[dict[str, Any]], bool], *arguments: str) -> None:
    """Follow `vmgr top --json` until machines, by name, are seen to do something."""
    with home.start("top", "--json", "-n", "0.3", *arguments, bufsize=0) as following:
        assert following.stdout is not None
        try:
            for _ in range(300):
                assert select.select([following.stdout], [], [], 60)[0]
                load = json.loads(following.stdout.readline())
                if seen({machine["name"]: machine for machine in load["machines"]}):
                    return
        finally:
            following.kill()
    pytest.fail(f"it is not seen: {load}")


def test_a_busy_loop_is_seen_and_comes_first(module_home: Home, pair: tuple[str, str]) -> None:
    one, two = pair

    def busy(machines: dict[str, Any]) -> bool:
        return (
            machines[two]["cpu_percent"] > 20
            and machines[two]["cpu_percent"] > machines[one]["cpu_percent"]
            and list(machines) == [two, one]
        )

    with working(module_home, two, "sh", "-c", "while :; do :; done"):
        wait_for(module_home, busy)


def test_writing_to_the_disk_is_seen(module_home: Home, pair: tuple[str, str]) -> None:
    one, two = pair
    script = "while :; do dd if=/dev/zero of=/root/x bs=1M count=16 conv=fsync; done 2>&1"

    def written(machines: dict[str, Any]) -> bool:
        return bool(
            machines[one]["disk_written_bytes_per_second"] > 1 << 20
            and machines[two]["disk_written_bytes_per_second"] < 1 << 20
        )

    with working(module_home, one, "sh", "-c", script):
        wait_for(module_home, written)
    module_home.vmgr("exec", one, "--", "rm", "-f", "/root/x")


@pytest.mark.skipif(
    not os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="machines have no network here"
)
def test_what_machines_send_each_other_is_seen(module_home: Home, pair: tuple[str, str]) -> None:
    one, two = pair

    def moved(machines: dict[str, Any]) -> bool:
        return bool(
            machines[one]["network_sent_bytes_per_second"] > 1 << 20
            and machines[two]["network_received_bytes_per_second"] > 1 << 20
            and machines[two]["network_sent_bytes_per_second"]
            < machines[two]["network_received_bytes_per_second"]
        )

    with working(module_home, two, "perl", "-e", LISTEN) as listening:
        assert listening.stdout is not None
        assert listening.stdout.readline() == b"ready\n"
        send = f"while :; do head -c 1000000 /dev/zero; done > /dev/tcp/{two}/7000"
        with working(module_home, one, "bash", "-c", send):
            wait_for(module_home, moved)


def test_memory_is_that_of_the_vmm(module_home: Home, pair: tuple[str, str]) -> None:
    load = module_home.json("top", "--once", "-n", "0.1", pair[0])
    (one,) = load["machines"]
    assert one["name"] == pair[0]
    assert 32 << 20 < one["pss_bytes"] < (256 + 640) << 20
    assert one["memory_bytes"] == 256 << 20
    assert one["uptime"] > 0
    assert load["host"]["cpus"] == os.cpu_count()


def test_a_vmm_that_hangs_holds_nobody_up(module_home: Home, pair: tuple[str, str]) -> None:
    one, two = pair
    pid = module_home.json("info", one)["vmm"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        machines = module_home.json("top", "--once", "-n", "0.1")["machines"]
    finally:
        os.kill(pid, signal.SIGCONT)
    by_name = {machine["name"]: machine for machine in machines}
    assert by_name[one]["disk_read_bytes_per_second"] is None
    assert by_name[one]["pss_bytes"] > 0
    assert by_name[two]["disk_read_bytes_per_second"] is not None
    wait_for(module_home, lambda seen: seen[one]["disk_read_bytes_per_second"] is not None)


def test_a_person_sees_a_table(module_home: Home, pair: tuple[str, str]) -> None:
    shown = module_home.vmgr("top", "--once", "-n", "0.1").stdout.decode().splitlines()
    assert shown[0].startswith("This computer: ")
    assert shown[2].split()[:3] == ["NAME", "CPU", "MEMORY"]
    assert {line.split()[0] for line in shown[3:5]} == set(pair)
    assert shown[5].startswith("2 machines")


def test_q_ends_it_on_a_terminal(module_home: Home, pair: tuple[str, str]) -> None:
    ours, theirs = pty.openpty()
    with module_home.start("top", stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while b"2 machines" not in seen:
            assert select.select([ours], [], [], 60)[0], seen
            seen += os.read(ours, 65_536)
        assert pair[0].encode() in seen
        os.write(ours, b"q")
        assert process.wait(30) == 0
    os.close(ours)


def test_ctrl_c_ends_it(module_home: Home) -> None:
    with module_home.start("top", "-n", "0.1") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"This computer")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, b"")


def test_mistakes_are_told(module_home: Home) -> None:
    for arguments, words in (
        (["-n", "0"], b'"0" is not a number of seconds from 0.1 to 3600'),
        (["nobody"], b"there is no machine named nobody"),
    ):
        done = module_home.vmgr("top", *arguments, check=False)
        assert done.returncode in {1, 2}
        assert words in done.stderr
