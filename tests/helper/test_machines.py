"""Machines through the CLI: their life, their listings, and what wrong requests are told."""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL

if TYPE_CHECKING:
    from tests.conftest import Home

pytestmark = pytest.mark.vm


def note_the_shutdown(home: Home, name: str) -> None:
    """Have a machine's systemd write a file when it shuts down in order."""
    # A machine is ready when commands run in it; its init may still be starting services.
    wait = (
        "until [ -S /run/systemd/private ]; do sleep 0.1; done; systemctl is-system-running --wait"
    )
    home.vmgr("exec", name, "--", "sh", "-c", wait, check=False)
    unit = (
        "[Unit]\nDefaultDependencies=no\nBefore=shutdown.target\nConflicts=shutdown.target\n"
        "[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        "ExecStop=/bin/sh -c 'echo yes > /root/stopped; sync'\n"
    )
    home.vmgr(
        "exec", "-i", name, "--", "sh", "-c",
        "cat > /etc/systemd/system/mark.service; systemctl daemon-reload; systemctl start mark",
        stdin=unit.encode(),
    )  # fmt: skip


def come_and_go(home: Home, machine: str) -> None:
    """A volume and a share, while it runs: their place is seen from its init's root."""
    volume = f"life-{secrets.token_hex(3)}"
    home.vmgr("volume", "create", volume, "--size", "64M")
    shared = home.root / "shared"
    shared.mkdir()
    home.vmgr("volume", "attach", machine, volume)
    home.vmgr("share", "add", machine, f"{shared}:/mnt/shared")
    try:
        script = f"echo x >/mnt/{volume}/file; cp /mnt/{volume}/file /mnt/shared/"
        home.vmgr("exec", machine, "--", "sh", "-c", script)
        assert (shared / "file").read_text() == "x\n"
    finally:
        home.vmgr("share", "rm", machine, "/mnt/shared")
        home.vmgr("volume", "detach", machine, volume)
        home.vmgr("volume", "rm", volume)
    there = home.vmgr("exec", machine, "--", "sh", "-c", f"ls /mnt/{volume} /mnt/shared").stdout
    assert b"file" not in there


@pytest.mark.parametrize("image", ["debian", "debian-minimal"])
def test_a_whole_life(home: Home, image: str) -> None:
    home.vmgr("create", "web", "--image", image, "--memory", "384M", "--disk", "80G")
    assert home.json("ls")[0]["status"] == "stopped"
    home.vmgr("start", "web")
    info = home.json("info", "web")
    assert info["status"] == "running"
    assert info["init"] == ("agent" if image == "debian-minimal" else info["init"])
    (vmm,) = home.vmms()
    assert info["vmm"]["pid"] == vmm
    # What was asked for is what the machine has.
    size = home.vmgr("exec", "web", "--", "sh", "-c", "df -B1 --output=size / | tail -1")
    assert 0.9 * (80 << 30) < int(size.stdout) <= 80 << 30
    memory = home.vmgr("exec", "web", "--", "grep", "MemTotal", "/proc/meminfo").stdout.split()[1]
    assert 300 << 10 < int(memory) <= 384 << 10
    assert home.vmgr("exec", "web", "--", "hostname").stdout == b"web\n"
    home.vmgr("exec", "web", "--", "sh", "-c", "echo kept > /root/file")
    come_and_go(home, "web")
    if image == "debian":
        note_the_shutdown(home, "web")

    stopped = home.vmgr("stop", "web")
    # It would say so if the agent's way had not been enough.
    assert (stopped.stdout, stopped.stderr) == (b"web\n", b"")
    assert home.json("info", "web")["status"] == "stopped"
    assert home.vmms() == []
    home.vmgr("start", "web")
    assert home.vmgr("exec", "web", "--", "cat", "/root/file").stdout == b"kept\n"
    if image == "debian":
        shut_down = home.vmgr("exec", "web", "--", "cat", "/root/stopped").stdout
        assert shut_down == b"yes\n", "an orderly stop runs the init's shutdown"
    before = home.json("info", "web")["boot_id"]
    home.vmgr("restart", "web")
    assert home.json("info", "web")["boot_id"] != before

    refused = home.vmgr("rm", "web", check=False)
    assert refused.returncode == 1
    assert b"machine web is running, so it cannot be removed" in refused.stderr
    assert b"vmgr rm -f web" in refused.stderr
    home.vmgr("rm", "-f", "web")
    assert home.json("ls") == []
    assert home.machine_directories() == []
    assert home.vmms() == []


def test_power_off_and_reboot_from_inside(home: Home) -> None:
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.vmgr("start", "m")
    boot = home.json("info", "m")["boot_id"]
    events = home.start("events", "--json")
    home.vmgr("exec", "m", "--", "sh", "-c", "echo b > /proc/sysrq-trigger", check=False)
    wait_for_status(events, "running")
    assert home.json("info", "m")["boot_id"] != boot
    home.vmgr("exec", "m", "--", "sh", "-c", "echo o > /proc/sysrq-trigger", check=False)
    wait_for_status(events, "stopped")
    events.kill()
    events.communicate()
    info = home.json("info", "m")
    assert info["status"] == "stopped"
    assert info["status_reason"] == "the machine powered itself off"


def wait_for_status(events: object, status: str) -> None:
    for line in events.stdout:  # type: ignore[attr-defined]
        event = json.loads(line)
        if event["kind"] == "machine.status" and event["data"]["after"] == status:
            return
    pytest.fail(f"no event said {status}")


def test_kill_ends_it_at_once(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.vmgr("start", "m")
    home.vmgr("kill", "m")
    assert home.vmms() == []
    assert home.json("info", "m")["status_reason"] == "killed by vmgr kill"
    again = home.vmgr("kill", "m", check=False)
    assert again.returncode == 1
    assert b"machine m is stopped, so it cannot be killed" in again.stderr


def test_starting_and_stopping_twice_is_no_error(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.vmgr("stop", "m")
    home.vmgr("start", "m")
    home.vmgr("start", "m")
    assert len(home.vmms()) == 1


def test_two_starts_at_once_are_one(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    both = [home.start("start", "m") for _ in range(2)]
    for starting in both:
        _, errors = starting.communicate(timeout=120)
        assert starting.returncode == 0, errors
    assert len(home.vmms()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["create", "Web"], "'Web' cannot be a machine's name"),
        (["create", "a b"], "'a b' cannot be a machine's name"),
        (["create", "-"], "cannot be a machine's name"),
        (["create", "x" * 64], "cannot be a machine's name"),
        (["create", "../../etc"], "cannot be a machine's name"),
        (["create", ""], "cannot be a machine's name"),
        (["start", "caf\u00e9"], "cannot be a machine's name"),
        (["create", "m", "--memory", "plenty"], '"plenty" is not a size'),
        (["create", "m", "--memory", "1000T"], "does not fit this host"),
        (["create", "m", "--cpus", "0"], "cpus"),
        (["create", "m", "--cpus", "200"], "too much for this host's"),
        (["create", "m", "--image", "../x"], "is not an image's name"),
        (["frobnicate"], 'there is no verb "frobnicate"'),
        (["exec", "m"], "command"),
    ],
)
def test_bad_input_is_one_sentence_and_2(home: Home, arguments: list[str], sentence: str) -> None:
    done = home.vmgr(*arguments, check=False)
    errors = done.stderr.decode()
    assert done.returncode == 2, errors
    assert sentence in errors
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) <= 2
    assert home.json("ls") == []


def test_what_is_not_there_is_said(home: Home) -> None:
    for arguments, sentence in (
        (["start", "ghost"], "there is no machine named ghost"),
        (["info", "ghost"], "there is no machine named ghost"),
        (["rm", "ghost"], "there is no machine named ghost"),
        (["create", "m", "--image", "ghost"], "there is no image named ghost"),
    ):
        done = home.vmgr(*arguments, check=False)
        assert done.returncode == 1, done.stderr
        assert sentence in done.stderr.decode()
    for arguments in (["exec", "ghost", "--", "true"], ["run", "ghost", "--", "true"]):
        assert home.vmgr(*arguments, check=False).returncode == 125
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    taken = home.vmgr("create", "m", check=False)
    assert taken.returncode == 1
    assert b"there is a machine named m already" in taken.stderr
    stopped = home.vmgr("exec", "m", "--", "true", check=False)
    assert stopped.returncode == 125
    assert b"machine m is stopped, so it cannot run commands" in stopped.stderr
    assert b"vmgr start m" in stopped.stderr


def test_a_machine_without_a_name_gets_one(home: Home) -> None:
    home.vmgr("create", "--image", "debian-minimal")
    (machine,) = home.json("ls")
    assert "-" in machine["name"]


def test_disk_of_a_machine_is_sparse_and_counted(home: Home) -> None:
    home.vmgr("create", "m", "--image", "debian-minimal", "--disk", "2T")
    info = home.json("info", "m")
    assert info["disk_bytes"] == 2 << 40
    assert info["disk_used_bytes"] < 16 << 20


def test_many_names_are_reported_each(home: Home) -> None:
    home.vmgr("create", "a", "--image", "debian-minimal")
    done = home.vmgr("rm", "a", "ghost", check=False)
    assert done.returncode == 1
    assert b"ghost" in done.stderr
    assert home.json("ls") == []


def test_prune_removes_what_a_disk_of_another_size_left(home: Home) -> None:
    def bases() -> int:
        return len(list((home.data / "vmgr/images").glob("*/root-3221225472.ext4")))

    home.vmgr("create", "m", "--image", "debian-minimal", "--disk", "3G")
    assert bases() == 1
    home.vmgr("image", "prune")
    assert bases() == 1
    home.vmgr("rm", "m")
    home.vmgr("image", "prune")
    assert bases() == 0


@pytest.mark.parametrize("image", ["debian", "debian-minimal"])
def test_all_cpus_are_there_when_a_machine_is_ready(home: Home, image: str) -> None:
    online = "cat /sys/devices/system/cpu/online"
    done = home.vmgr("run", "--cpus", "2", image, "--", "sh", "-c", f"nproc; {online}")
    assert done.stdout == b"2\n0-1\n"


def test_a_machines_seconds_are_this_computers(module_home: Home) -> None:
    """A guest that measured its clock's speed on a busy host lived several times too fast."""
    home = module_home
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "clock")
    home.vmgr("start", "clock")
    began = time.monotonic()
    two = "cat /proc/uptime; sleep 3; cat /proc/uptime"
    lines = home.vmgr("exec", "clock", "--", "sh", "-c", two).stdout.split()
    took = time.monotonic() - began
    home.vmgr("rm", "-f", "clock")
    # What the guest counts between its two looks lies between ours, which are further apart.
    assert 3.0 <= float(lines[2]) - float(lines[0]) <= took * 1.02


def test_other_commands_in_the_machine_of_a_run_end_alone(quick_home: Home) -> None:
    """Also those whose client comes back to them, as after the helper's death."""
    home = quick_home
    run = home.start(
        "run", *SMALL, "--name", "x", "debian-minimal", "--", "sh", "-c", "echo up; cat"
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"up\n"
    other = home.start("exec", "x", "--", "sh", "-c", "echo other; read line; exit 4")
    assert other.stdout is not None
    assert other.stdout.readline() == b"other\n"
    job = home.vmgr("exec", "-d", "x", "--", "sh", "-c", "exit 3").stdout.decode().split()[-1]
    assert home.vmgr("attach", "x", job, check=False).returncode == 3
    assert home.json("info", "x")["status"] == "running"
    home.kill_helper()
    other.communicate(b"now\n", timeout=60)
    assert other.returncode == 4
    assert home.json("info", "x")["status"] == "running"
    out, errors = run.communicate(b"end\n", timeout=60)
    assert (run.returncode, out) == (0, b"end\n"), errors
    assert home.json("ls") == []
