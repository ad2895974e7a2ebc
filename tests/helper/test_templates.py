"""Machines that start from templates: fresh, of their own, whatever becomes of the template."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import SMALL, kill_and_wait
from tests.helper.test_reconcile import edit_rows

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Home

pytestmark = pytest.mark.vm

KIND = (*SMALL, "debian-minimal")


def shell(home: Home, machine: str, script: str) -> list[str]:
    """Lines that a script in a machine prints."""
    done = home.vmgr("exec", machine, "--", "sh", "-c", script)
    return done.stdout.decode().splitlines()


def started(home: Home, name: str, *image: str) -> Any:
    """A new machine of the kind the templates here are for, running."""
    home.vmgr("create", *SMALL, "--image", *(image or ("debian-minimal",)), name)
    home.vmgr("start", name)
    return home.json("info", name)


def directory_of(home: Home) -> Path:
    (template,) = [
        entry
        for entry in (home.cache / "vmgr/templates").iterdir()
        if not entry.name.startswith(".")
    ]
    return template


IDENTITY = """
cat /proc/sys/kernel/hostname
head -c 16 /dev/urandom | od -An -tx1
cat /proc/sys/kernel/random/uuid
ip -o -4 address show eth0 2>/dev/null | tr -s " " | cut -d" " -f4
ip -o link show eth0 | grep -o "ether [^ ]*"
date +%s
"""


def test_two_machines_of_one_template_share_nothing_that_they_should_not(
    template_home: Home,
) -> None:
    home = template_home
    made = home.vmgr("template", "build", *KIND).stdout.decode().strip()
    (listed,) = home.json("template", "ls")
    assert listed["key"].startswith(made)
    assert (listed["image"], listed["cpus"]) == ("debian-minimal", 1)
    one, two = started(home, "one"), started(home, "two")
    assert (one["started_from"], two["started_from"]) == ("template", "template")
    first, second = shell(home, "one", IDENTITY), shell(home, "two", IDENTITY)
    assert (first[0], second[0]) == ("one", "two")
    # Where there is no switchboard, QEMU's own network gives all machines this one address.
    apart = [line for line in first[:-1] if not line.startswith("10.0.2.15/")]
    assert not set(apart) & set(second)
    assert len(apart) >= 4
    # The clock is the host's, however old the template is.
    assert abs(int(first[-1]) - time.time()) < 60
    # One disk is not the other's, and the template's is neither's.
    shell(home, "one", "echo mine > /root/file; sync")
    assert shell(home, "two", "ls /root/file 2>/dev/null || echo none") == ["none"]
    home.vmgr("restart", "one")
    assert home.json("info", "one")["started_from"] == "boot"
    assert shell(home, "one", "cat /root/file; cat /proc/sys/kernel/hostname") == ["mine", "one"]
    assert started(home, "three")["started_from"] == "template"
    assert shell(home, "three", "ls /root/file 2>/dev/null || echo none") == ["none"]


def test_a_machine_with_systemd_is_one_of_its_own(template_home: Home) -> None:
    home = template_home
    home.vmgr("template", "build", "debian", deadline=400)
    home.vmgr("create", "--image", "debian", "one")
    home.vmgr("create", "--image", "debian", "two")
    home.vmgr("start", "one", "two")
    assert home.json("info", "one")["started_from"] == "template"
    script = """
    cat /etc/machine-id
    od -An -tx1 -N16 /var/lib/systemd/random-seed 2>/dev/null || echo
    hostname
    """
    first, second = shell(home, "one", script), shell(home, "two", script)
    assert len(first[0]) == 32
    assert first[0] != second[0]
    assert first[1] != second[1] or not first[1].strip()
    # It goes on fully booted: nothing is left to start, and its services answer.
    state = home.vmgr("exec", "one", "--", "systemctl", "is-system-running", check=False)
    assert state.stdout.strip() in {b"running", b"degraded"}
    assert shell(home, "one", "systemctl list-jobs --no-legend | wc -l") == ["0"]
    home.vmgr("stop", "one", "two")
    assert home.vmms() == []


def test_many_at_once(quick_home: Home) -> None:
    home = quick_home
    clients = [
        home.start("run", *KIND, "--", "cat", "/proc/sys/kernel/random/uuid") for _ in range(8)
    ]
    ends = [client.communicate(timeout=180) for client in clients]
    assert [client.returncode for client in clients] == [0] * 8, ends
    assert len({out for out, _ in ends}) == 8
    assert "boots, as its template failed" not in home.logs()
    assert home.vmms() == []


def test_a_boot_leaves_a_template_for_the_next(template_home: Home) -> None:
    home = template_home
    assert started(home, "one")["started_from"] == "boot"
    events = home.start("events", "--json", "--since", "0")
    assert events.stdout is not None
    for line in events.stdout:
        assert b"template.failed" not in line, line
        if b"template.built" in line:
            break
    events.kill()
    events.communicate()
    assert started(home, "two")["started_from"] == "template"
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "--cold", "three")
    home.vmgr("start", "three")
    assert home.json("info", "three")["started_from"] == "boot"


@pytest.mark.parametrize("damage", ["memory", "short memory", "devices", "disk", "gone"])
def test_a_damaged_template_is_not_used(template_home: Home, damage: str) -> None:
    home = template_home
    home.vmgr("template", "build", *KIND)
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "one")
    home.vmgr("helper", "stop")
    template = directory_of(home)
    match damage:
        case "short memory":
            os.truncate(template / "memory", 1 << 20)
        case "gone":
            (template / "template.json").unlink()
        case name:
            path = template / {"disk": "disk.qcow2"}.get(name, name)
            with path.open("r+b") as file:
                at = os.lseek(file.fileno(), 0, os.SEEK_DATA) + 1000
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1]))
    home.vmgr("start", "one")
    assert home.json("info", "one")["started_from"] == "boot"
    assert shell(home, "one", "cat /proc/sys/kernel/hostname") == ["one"]
    assert not (template / "template.json").exists() or directory_of(home) != template


def test_a_machine_that_does_not_come_up_from_its_template_boots(template_home: Home) -> None:
    home = template_home
    home.vmgr("template", "build", *KIND)
    template = directory_of(home)
    # Sound by its checksum, and nothing that QEMU could read.
    record = (template / "template.json").read_bytes()
    import zlib

    import msgspec

    changed = msgspec.json.decode(record)
    (template / "devices").write_bytes(b"no device state")
    changed["devices_checksum"] = zlib.crc32(b"no device state")
    (template / "template.json").write_bytes(msgspec.json.encode(changed))
    home.vmgr("helper", "stop")
    assert started(home, "one")["started_from"] == "boot"
    assert "boots, as its template failed" in home.logs()
    assert shell(home, "one", "cat /proc/sys/kernel/hostname") == ["one"]


def test_a_helper_killed_while_it_builds_leaves_nothing(template_home: Home) -> None:
    home = template_home
    pid = home.helper_pid()
    builder = home.start("template", "build", *KIND)
    assert builder.stderr is not None
    for line in builder.stderr:
        if b"settled" in line:
            break
    assert len(home.vmms()) == 1
    home.kill_helper()
    builder.communicate(timeout=60)
    assert builder.returncode != 0
    assert home.helper_pid() != pid
    home.wait_for_no("qemu-system")
    assert list((home.cache / "vmgr/templates").iterdir()) == []
    assert home.json("template", "ls") == []
    home.vmgr("template", "build", *KIND)
    assert started(home, "one")["started_from"] == "template"


def test_a_vmm_killed_while_it_is_built_from_leaves_nothing(template_home: Home) -> None:
    home = template_home
    home.vmgr("ls")
    builder = home.start("template", "build", *KIND)
    assert builder.stderr is not None
    for line in builder.stderr:
        if b"settled" in line:
            break
    (pid,) = home.vmms()
    kill_and_wait(pid)
    builder.communicate(timeout=60)
    assert builder.returncode == 1
    assert list((home.cache / "vmgr/templates").iterdir()) == []
    home.vmgr("template", "build", *KIND)


def test_no_space_left_for_a_template(template_home: Home) -> None:
    home = template_home
    if os.getuid() != 0:
        pytest.skip("mounting a small file system takes root")
    home.vmgr("ls")
    templates = home.cache / "vmgr/templates"
    size = "size=8m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", templates], check=True)
    try:
        done = home.vmgr("template", "build", *KIND, check=False)
        assert done.returncode == 1
        assert b"no space left" in done.stderr.lower()
        assert list(templates.iterdir()) == []
        # A machine starts all the same.
        assert started(home, "one")["started_from"] == "boot"
    finally:
        home.vmgr("rm", "-f", "one", check=False)
        home.vmgr("helper", "stop")
        subprocess.run(["umount", templates], check=True)


def test_what_a_new_helper_finds_starting_keeps_its_disk(quick_home: Home) -> None:
    """A first start that its helper did not see the end of is one all the same."""
    home = quick_home
    assert started(home, "one")["started_from"] == "template"
    home.kill_helper()
    edit_rows(home, '"status":"running"', '"status":"starting"')
    edit_rows(home, '"pristine":false', '"pristine":true')
    assert shell(home, "one", "echo mine > /root/file; sync; hostname") == ["one"]
    home.vmgr("restart", "one")
    assert home.json("info", "one")["started_from"] == "boot"
    assert shell(home, "one", "cat /root/file") == ["mine"]


def test_a_first_start_that_failed_begins_again_with_a_fresh_disk(quick_home: Home) -> None:
    home = quick_home
    assert started(home, "one")["started_from"] == "template"
    shell(home, "one", "echo left > /root/file; sync")
    home.kill_helper()
    # As if it had been killed, with its VMM, before the machine was ready.
    for pid in home.vmms():
        kill_and_wait(pid)
    edit_rows(home, '"status":"running"', '"status":"starting"')
    edit_rows(home, '"pristine":false,"template":null', '"pristine":true,"template":"written to"')
    home.vmgr("start", "one")
    assert home.json("info", "one")["started_from"] == "template"
    assert shell(home, "one", "ls /root/file 2>/dev/null || echo none") == ["none"]


def test_removing(quick_home: Home) -> None:
    home = quick_home
    one = started(home, "one")
    removed = home.vmgr("template", "rm", "--all").stdout.decode()
    assert removed.startswith("removed ")
    assert home.json("template", "ls") == []
    # What runs from it goes on.
    assert shell(home, "one", "echo alive") == ["alive"]
    assert one["started_from"] == "template"
    refused = home.vmgr("template", "rm", "0123", check=False)
    assert refused.returncode == 1
    assert b"there is no template 0123" in refused.stderr
    assert home.vmgr("template", "rm", check=False).returncode == 2
