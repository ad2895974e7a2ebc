"""Live forks: copies of a running machine that run, and are machines of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import SMALL, kill_and_wait

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Home

pytestmark = pytest.mark.vm

COUNTER = "n=0; while sleep 0.2; do n=$((n + 1)); echo $n > /tmp/counter; done"


def shell(home: Home, machine: str, script: str) -> list[str]:
    """Lines that a script in a machine prints."""
    done = home.vmgr("exec", machine, "--", "sh", "-c", script)
    return done.stdout.decode().splitlines()


@pytest.fixture(scope="module")
def parent(module_home: Home) -> Iterator[Home]:
    """A home with a machine `web` that counts."""
    home = module_home
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "web")
    home.vmgr("start", "web")
    home.vmgr("exec", "-d", "web", "--", "sh", "-c", COUNTER)
    keys = "mkdir -p /etc/ssh; echo key > /etc/ssh/ssh_host_ed25519_key"
    shell(
        home,
        "web",
        f"{keys}; echo before > /root/file; until [ -s /tmp/counter ]; do sleep 0.1; done",
    )
    yield home
    home.vmgr("rm", "-f", "web")


IDENTITY = """
hostname
head -c 16 /dev/urandom | od -An -tx1
cat /proc/sys/kernel/random/uuid
ip -o link show eth0 | grep -o "ether [^ ]*"
"""


def test_a_child_goes_on_and_is_another_machine(parent: Home) -> None:
    home = parent
    made = home.vmgr("fork", "web", "child", "--count", "2").stdout.decode().split()
    assert made == ["child", "web-1"]
    try:
        # What ran goes on in all of them, from the same moment.
        for name in ("web", "child", "web-1"):
            first, second = shell(
                home, name,
                "a=$(cat /tmp/counter); until [ $(cat /tmp/counter) -gt $a ]; do sleep 0.1; done;"
                "echo $a; cat /tmp/counter",
            )  # fmt: skip
            assert int(second) > int(first) > 0
            assert shell(home, name, "cat /root/file") == ["before"]
            assert len(home.json("jobs", name)) == 1
        identities = [shell(home, name, IDENTITY) for name in ("web", "child", "web-1")]
        assert [lines[0] for lines in identities] == ["web", "child", "web-1"]
        for one in range(3):
            for other in range(one):
                assert not set(identities[one]) & set(identities[other])
        infos = [home.json("info", name) for name in ("web", "child", "web-1")]
        assert len({info["network"]["address"] for info in infos}) == 3
        assert [info["started_from"] for info in infos] == ["boot", "fork", "fork"]
        # What its VMM was lent for the capture it has no more.
        assert home.json("doctor", "--audit")["problems"] == []
        # Nobody takes one for the other by its SSH host keys.
        keys = "ls /etc/ssh/ssh_host_ed25519_key 2>/dev/null || echo none"
        assert shell(home, "web", keys) == ["/etc/ssh/ssh_host_ed25519_key"]
        assert shell(home, "child", keys) == ["none"]
        # Disks part: neither sees what the other writes from now on.
        shell(home, "child", "echo child > /root/file; sync")
        assert shell(home, "web", "cat /root/file") == ["before"]
        assert shell(home, "web-1", "cat /root/file") == ["before"]
        # A child of a child, and a child that boots again, keeps its own.
        assert home.vmgr("fork", "child", "grandchild").stdout == b"grandchild\n"
        assert shell(home, "grandchild", "cat /root/file; hostname") == ["child", "grandchild"]
        home.vmgr("rm", "-f", "child")
        home.vmgr("restart", "grandchild")
        assert shell(home, "grandchild", "cat /root/file; hostname") == ["child", "grandchild"]
    finally:
        for machine in home.json("ls"):
            if machine["name"] != "web":
                home.vmgr("rm", "-f", machine["name"])


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("web", "web"), "there is a machine named web already", 1),
        (("web", "a", "a"), "a name is given twice", 2),
        (("web", "A"), "cannot be a machine's name", 2),
        (("web", "a b"), "cannot be a machine's name", 2),
        (("web", "a", "b", "--count", "1"), "2 names are too many for 1 machines", 2),
        (("web", "--count", "0"), "is not a number of copies", 2),
        (("web", "--count", "101"), "is not a number of copies", 2),
        (("none",), "there is no machine named none", 1),
    ],
)
def test_what_cannot_be_forked(
    parent: Home, arguments: tuple[str, ...], message: str, code: int
) -> None:
    done = parent.vmgr("fork", *arguments, check=False)
    assert (done.returncode, done.stdout) == (code, b"")
    assert message in done.stderr.decode()
    assert [machine["name"] for machine in parent.json("ls")] == ["web"]


def test_a_stopped_machine_is_not_forked(parent: Home) -> None:
    parent.vmgr("create", *SMALL, "--image", "debian-minimal", "idle")
    done = parent.vmgr("fork", "idle", check=False)
    assert b"machine idle is stopped, so it cannot be forked" in done.stderr
    assert b"vmgr start idle" in done.stderr
    parent.vmgr("rm", "idle")


def test_twenty_at_once(parent: Home) -> None:
    home = parent
    made = home.vmgr("fork", "web", "--count", "20").stdout.decode().split()
    try:
        assert len(made) == 20
        assert len(home.vmms()) == 21
        assert shell(home, made[0], "hostname") == [made[0]]
        assert shell(home, made[-1], "hostname") == [made[-1]]
        assert len({m["network"]["address"] for m in home.json("ls")}) == 21
    finally:
        home.vmgr("rm", "-f", *made)


def test_no_space_left_for_a_childs_disk(parent: Home) -> None:
    home = parent
    if os.getuid() != 0:
        pytest.skip("mounting a small file system takes root")
    # Larger than what is left where the children's disks are made.
    shell(home, "web", "head -c 3000000 /dev/urandom > /root/large; sync")
    machines = home.root / "state/vmgr/machines"
    before = home.machine_directories()
    lower, upper = home.root / "lower", home.root / "upper"
    subprocess.run(["mount", "--bind", machines, _made(lower)], check=True)
    try:
        size = "size=1m,mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", _made(upper)], check=True)
        layers = f"lowerdir={lower},upperdir={_made(upper / 'u')},workdir={_made(upper / 'w')}"
        mounted = subprocess.run(
            ["mount", "-t", "overlay", "-o", layers, "overlay", machines], check=False
        )
        if mounted.returncode != 0:
            pytest.skip("this kernel has no overlay file system")
        try:
            done = home.vmgr("fork", "web", "child", check=False)
        finally:
            subprocess.run(["umount", machines], check=True)
    finally:
        for place in (upper, lower):
            subprocess.run(["umount", place], check=False)
    assert done.returncode == 1
    assert b"no space left" in done.stderr.lower()
    assert home.machine_directories() == before
    assert [m["name"] for m in home.json("ls")] == ["web"]
    assert shell(home, "web", "cat /root/file") == ["before"]


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def test_more_than_fits_is_refused_before_anything_starts(parent: Home) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total > 100 * (256 << 20):
        pytest.skip("100 small machines fit this computer")
    done = parent.vmgr("fork", "web", "--count", "100", check=False)
    assert done.returncode == 1
    assert b"available" in done.stderr
    assert [machine["name"] for machine in parent.json("ls")] == ["web"]


def test_a_helper_killed_while_it_forks_leaves_whole_machines(parent: Home) -> None:
    home = parent
    for delay in (0.05, 0.2, 0.5):
        client = home.start("fork", "web", "--count", "2")
        with contextlib.suppress(subprocess.TimeoutExpired):  # it is to be still at it
            client.wait(delay)
        home.kill_helper()
        client.communicate(timeout=60)
        # The parent goes on, whatever it was stopped in.
        assert shell(home, "web", "cat /root/file") == ["before"]
        machines: list[dict[str, Any]] = home.json("ls")
        # One that was being started is still being taken over by the new helper.
        assert {m["status"] for m in machines} <= {"running", "starting", "stopped"}
        for machine in machines:
            if machine["name"] != "web":
                assert machine["status"] == "stopped" or shell(
                    home, machine["name"], "hostname"
                ) == [machine["name"]]
                home.vmgr("rm", "-f", machine["name"])
        assert len(home.vmms()) == 1
        assert len(home.machine_directories()) == 2


def test_a_vmm_killed_while_it_is_forked_leaves_no_children(parent: Home) -> None:
    home = parent
    home.vmgr("fork", "web", "victim")
    pid = home.json("info", "victim")["vmm"]["pid"]
    client = home.start("fork", "victim", "--count", "3")
    kill_and_wait(pid)
    client.communicate(timeout=60)
    for machine in home.json("ls"):
        if machine["name"] != "web":
            assert machine["status"] == "stopped" or machine["name"] != "victim"
            home.vmgr("rm", "-f", machine["name"])
    assert len(home.vmms()) == 1
