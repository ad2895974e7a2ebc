"""Checks on this host as it is, and on hosts made of directories that say what others would."""

from __future__ import annotations

import asyncio
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmgr.config import Config
from vmgr.config.settings import SETTINGS
from vmgr.doctor import examine, kernel, network, places, programs
from vmgr.doctor.examine import CHECKS, conduct
from vmgr.doctor.host import Host, good
from vmgr.errors import StateError, UnsupportedError
from vmgr.paths import Paths
from vmgr.vmm import Accelerator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmgr.api.models import Check


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths.from_environment({"VMGR_HOME": str(tmp_path / "home")})
    paths.ensure()
    return paths


@pytest.fixture
def host(paths: Paths, tmp_path: Path) -> Iterator[Host]:
    """A host of which nothing is known but what a test writes down."""
    roots = {name: tmp_path / name for name in ("proc", "sys", "etc", "dev")}
    for root in roots.values():
        root.mkdir()
    with ThreadPoolExecutor(2) as executor:
        yield Host(paths, Config.load(paths), executor, **roots)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def outcome(check: Check) -> tuple[str, str, str | None]:
    return check.status, check.summary, check.fix


def carry_out(fix: str, tmp_path: Path) -> str:
    """Let a shell do what the fix says, in a directory, with its last step left out.

    Gives what it wrote.
    """
    first, _, _ = fix.partition(" && ")
    target = tmp_path / "written"
    command, _, file = first.rpartition(" ")
    assert file.startswith("/etc/")
    subprocess.run(
        ["/bin/sh", "-c", f"{command.replace('sudo ', '')} {target}"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return target.read_text()


# -- all of it -------------------------------------------------------------------------------------


async def test_this_host_is_examined_within_its_deadline(paths: Paths) -> None:
    async with asyncio.timeout(30):
        report = await examine(paths, Config.load(paths))
    assert [check.name for check in report.checks] == list(CHECKS)
    for check in report.checks:
        assert check.summary
        assert not check.summary.endswith(".")
        assert "\n" not in check.summary + (check.fix or "")
    by_name = {check.name: check for check in report.checks}
    assert by_name["QEMU"].status == "ok"
    assert by_name["directories"].status == "ok"


async def test_who_knows_the_accelerator_is_asked(paths: Paths) -> None:
    async def known() -> Accelerator:
        return Accelerator("kvm", "seen to run")

    report = await examine(paths, Config.load(paths), accelerator=known)
    [check] = [c for c in report.checks if c.name == "accelerator"]
    assert outcome(check) == ("ok", "seen to run", None)


async def test_a_check_that_hangs_is_a_warning() -> None:
    async def hang() -> Check:
        await asyncio.Event().wait()
        return good("x", "never")

    check = await conduct("x", hang(), deadline=0.01)
    assert outcome(check) == ("warning", "no answer within 0.01 s", None)


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (StateError("it is broken", next_step="mend it"), ("error", "it is broken", "mend it")),
        (
            PermissionError(13, "Permission denied", "/x"),
            ("warning", "could not be looked at: [Errno 13] Permission denied: '/x'", None),
        ),
    ],
)
async def test_a_check_that_fails_is_a_result(
    problem: Exception, expected: tuple[str, str, str | None]
) -> None:
    async def fail() -> Check:
        raise problem

    assert outcome(await conduct("x", fail())) == expected


# -- programs --------------------------------------------------------------------------------------


async def test_a_missing_qemu_says_how_to_get_it(host: Host) -> None:
    host.config.set("qemu.path", "/nowhere/qemu")
    with pytest.raises(UnsupportedError) as caught:
        await programs.qemu(host)
    assert caught.value.next_step is not None


async def test_missing_tools_are_named_with_their_packages(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_TOOLS", ("tar", "mke2fs", "mmdebstrap"))
    monkeypatch.setattr(programs, "missing_tools", lambda *tools: [t for t in tools if t != "tar"])
    check = await programs.build_tools(replace(host, uid=1000))
    assert outcome(check) == (
        "error",
        "mke2fs, mmdebstrap are not installed, so images cannot be built",
        "sudo apt-get install e2fsprogs mmdebstrap",
    )


async def test_a_missing_sshfs_is_no_fault_and_named(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "missing_tools", lambda *tools: list(tools))
    said = "cannot be used until sshfs is installed: apt-get install sshfs"
    assert outcome(await programs.mounting(host)) == ("ok", said, None)


async def test_apt_without_debian(host: Host) -> None:
    write(host.etc / "os-release", "ID=debian\nVERSION_CODENAME=bookworm\n")
    write(host.etc / "apt/sources.list", "# nothing\n")
    assert (await programs.mirrors(host)).status == "warning"
    write(host.etc / "apt/sources.list", "deb http://mirror.example/debian bookworm main\n")
    assert outcome(await programs.mirrors(host)) == ("ok", "apt has 1 for bookworm", None)


# -- the kernel ------------------------------------------------------------------------------------


async def test_kvm_that_is_not_there(host: Host) -> None:
    write(host.proc / "cpuinfo", "flags : fpu vmx\n")
    check = await kernel.accelerator(host)
    assert check.status == "warning"
    assert "modprobe" in (check.fix or "")


@pytest.mark.parametrize(
    ("file", "value", "why"),
    [
        ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone is 0"),
        ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces is 0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor denies it to"),
    ],
)
async def test_who_forbids_namespaces_is_named(host: Host, file: str, value: str, why: str) -> None:
    write(host.proc / "sys" / file, f"{value}\n")
    check = await kernel.user_namespaces(host, probe=("false",))
    assert check.status == "warning"
    assert why in check.summary
    assert check.fix is not None


async def test_the_apparmor_fix_writes_a_profile_for_the_program(
    host: Host, tmp_path: Path
) -> None:
    write(host.proc / "sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")
    check = await kernel.user_namespaces(replace(host, uid=1000), probe=("false",))
    assert check.fix is not None
    file = "/etc/apparmor.d/vmgr-false"
    assert check.fix.endswith(f"| sudo tee {file} && sudo apparmor_parser -r {file}")
    assert carry_out(check.fix, tmp_path).splitlines() == [
        "abi <abi/4.0>,",
        "include <tunables/global>",
        "profile vmgr-false /usr/bin/false flags=(unconfined) {",
        "  userns,",
        "}",
    ]


async def test_the_sysctl_fix_writes_its_line(host: Host, tmp_path: Path) -> None:
    write(host.proc / "sys/user/max_user_namespaces", "0\n")
    check = await kernel.user_namespaces(host, probe=("false",))
    assert check.fix is not None
    assert carry_out(check.fix, tmp_path) == "user.max_user_namespaces=28633\n"


async def test_namespaces_that_nobody_is_known_to_forbid(host: Host) -> None:
    check = await kernel.user_namespaces(host, probe=("sh", "-c", "echo no luck >&2; exit 1"))
    assert "no luck" in check.summary
    assert check.fix is None


async def test_namespaces_without_the_program(host: Host) -> None:
    check = await kernel.user_namespaces(host, probe=("no-such-unshare",))
    assert check.status == "warning"
    assert "apt-get install util-linux" in (check.fix or "")


async def test_the_sandbox_of_this_host(host: Host) -> None:
    check = await kernel.sandbox(host)
    assert check.status == "ok", check
    assert check.summary.startswith(("namespaces: ", "full: "))


async def test_a_sandbox_that_is_refused_names_the_fix(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmgr.sandbox.probe.find_bubblewrap", lambda: Path("/usr/bin/false"))
    write(host.proc / "sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")
    check = await kernel.sandbox(replace(host, uid=1000))
    assert check.status == "warning"
    assert "AppArmor denies it to" in check.summary
    assert "/etc/apparmor.d/vmgr-bwrap" in (check.fix or "")
    host.config.set("sandbox.require", "namespaces")
    assert (await kernel.sandbox(host)).status == "error"


async def test_in_a_container_the_fix_is_the_containers(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmgr.sandbox.probe.find_bubblewrap", lambda: Path("/usr/bin/false"))
    write(host.proc.parent / ".dockerenv", "")
    check = await kernel.sandbox(host)
    assert "seccomp=unconfined" in (check.fix or "")


async def test_without_bubblewrap_it_is_to_be_installed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmgr.sandbox.probe.find_bubblewrap", lambda: None)
    check = await kernel.sandbox(replace(host, uid=1000))
    assert check.fix == "sudo apt-get install bubblewrap"


def test_a_range_of_ids_is_one_that_nobody_has(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "missing_tools", lambda *_: [])
    write(host.etc / "subuid", "ann:100000:65536\nbob:165536:65536\nbroken\n")
    write(host.etc / "subgid", "ann:100000:65536\ncarl:300000:65536\n")
    fix = kernel.range_fix(replace(host, uid=65_534))
    assert fix == ("sudo usermod --add-subuids 365536-431071 --add-subgids 365536-431071 nobody")
    for name in ("subuid", "subgid"):
        write(host.etc / name, "nobody:100000:65536\n")
    assert kernel.range_fix(replace(host, uid=65_534)) is None


async def test_control_groups(host: Host) -> None:
    check = await kernel.control_groups(host)
    assert check.status == "warning"
    write(host.proc / "self/cgroup", "0::/user.slice/me\n")
    write(host.sys / "fs/cgroup/cgroup.controllers", "cpu memory\n")
    write(host.sys / "fs/cgroup/user.slice/me/cgroup.procs", "")
    assert outcome(await kernel.control_groups(host)) == (
        "ok", "delegated: /user.slice/me", None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("4:memory:/\n1:name=systemd:/\n", "this host's are of version 1"),
        ("4:memory:/\n0::/\n", "this host's are of both versions, and version 1 has the limits"),
        ("1:name=systemd:/\n", "this host has none of version 2"),
    ],
)
async def test_control_groups_of_version_1(host: Host, groups: str, said: str) -> None:
    write(host.proc / "self/cgroup", groups)
    expected = ("warning", f"{said}, so machines have no limit of their own")
    assert outcome(await kernel.control_groups(host)) == (*expected, None)
    (host.proc.parent / "run/systemd/system").mkdir(parents=True)
    fix = "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line and boot"
    assert outcome(await kernel.control_groups(host)) == (*expected, fix)


async def test_systemd_can_be_asked_for_a_group(host: Host) -> None:
    write(host.proc / "self/cgroup", "0::/user.slice/session\n")
    write(host.sys / "fs/cgroup/cgroup.controllers", "cpu memory pids\n")
    host = replace(host, uid=1000)
    (host.proc.parent / "run/systemd/system").mkdir(parents=True)
    check = await kernel.control_groups(host)
    assert check.fix == f"loginctl enable-linger {host.user}, then log in again"
    write(host.proc.parent / "run/user/1000/bus", "")
    assert outcome(await kernel.control_groups(host)) == (
        "ok", "systemd gives the helper a group of its own", None,
    )  # fmt: skip


async def test_the_udev_fix_writes_a_rule(host: Host, tmp_path: Path) -> None:
    fix = replace(host, uid=1000).write_as_root(
        'KERNEL=="tun", MODE="0666"\n', "/etc/udev/rules.d/x.rules", "chmod 0666 /dev/net/tun"
    )
    assert fix.endswith("&& sudo chmod 0666 /dev/net/tun")
    assert carry_out(fix, tmp_path) == 'KERNEL=="tun", MODE="0666"\n'


# -- places ----------------------------------------------------------------------------------------


async def test_a_machine_that_does_not_fit_into_memory(host: Host) -> None:
    write(host.proc / "meminfo", "MemTotal: 999 kB\nMemAvailable:   524288 kB\n")
    host.config.set("machine.memory", "1G")
    assert outcome(await places.memory(host)) == (
        "warning",
        "512 MiB available; a new machine gets 1 GiB",
        "vmgr config set machine.memory 256M",
    )
    write(host.proc / "meminfo", "MemAvailable:   2097152 kB\n")
    assert (await places.memory(host)).status == "ok"


async def test_directories_that_are_open_to_others(host: Host) -> None:
    host.paths.data.chmod(0o755)
    assert outcome(await places.directories(host)) == (
        "error",
        f"{host.paths.data} is open to other users",
        f"chmod 700 {host.paths.data}",
    )


async def test_directories_of_somebody_else(host: Host) -> None:
    check = await places.directories(replace(host, uid=host.uid + 4321))
    assert check.status == "error"
    assert "belongs to another user" in check.summary


async def test_a_file_where_a_directory_should_be(host: Host) -> None:
    host.paths.config.rmdir()
    host.paths.config.write_text("")
    check = await places.directories(host)
    assert check.summary == f"{host.paths.config} is not a directory"
    assert check.fix is not None
    await asyncio.to_thread(subprocess.run, ["/bin/sh", "-c", check.fix], check=True)
    assert (await places.directories(host)).status == "ok"


async def test_directories_that_are_yet_to_be_made(host: Host) -> None:
    host.paths.config.rmdir()
    assert (await places.directories(host)).status == "ok"


async def test_free_space(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in ((10 << 30, "ok"), (2 << 30, "warning"), (100 << 20, "error")):
        monkeypatch.setattr(places, "_free", lambda _place, free=free: free)
        check = await places.disk_space(host)
        assert check.status == status
        assert (check.fix is None) is (status == "ok")


async def test_settings(host: Host) -> None:
    host.config.set("machine.cpus", "1")
    assert outcome(await places.settings(host)) == (
        "ok",
        f"1 of {len(SETTINGS)} differ from the default",
        None,
    )
    write(host.paths.config_file, "[machine]\ncpu = 1\n")
    check = await places.settings(replace(host, config=Config.load(host.paths)))
    assert check.status == "warning"
    assert "did you mean machine.cpus?" in check.summary
    write(host.paths.config_file, "[machine]\ncpus = 0\n")
    with pytest.raises(StateError):
        await places.settings(replace(host, config=Config.load(host.paths)))


async def test_names_are_plugged_into_what_resolves(host: Host, tmp_path: Path) -> None:
    host = replace(host, uid=1_000)
    assert "vmgr ip" in (await network.names(host)).summary
    write(host.etc / "NetworkManager/NetworkManager.conf", "")
    manager = await network.names(host)
    assert manager.status == "ok"
    assert manager.fix is not None
    assert "server=/vmgr.internal/127.118.0.1#5354" in manager.fix
    write(host.etc / "resolv.conf", "nameserver 127.0.0.53\n")
    resolved = await network.names(host)
    assert resolved.fix is not None
    made, _, rest = resolved.fix.partition(" && ")
    assert made.endswith("mkdir -p /etc/systemd/resolved.conf.d")
    written = carry_out(rest, tmp_path)
    assert written.startswith("[Resolve]\nDNS=127.118.0.1:5354\nDomains=~vmgr.internal\n")
    write(host.etc / "systemd/resolved.conf.d/vmgr.conf", written)
    done = await network.names(host)
    assert (done.fix, "resolves" in done.summary) == (None, True)


async def test_names_that_another_user_answers(host: Host) -> None:
    lines = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout
  1: 0100007F:14EA 00000000:0000 07 00000000:00000000 00:00000000 00000000  1007        0
  2: 0100767F:14EA 00000000:0000 07 00000000:00000000 00:00000000 00000000  %s        0
"""
    write(host.proc / "net/udp", lines % 1_100)
    taken = await network.names(replace(host, uid=1_000))
    assert taken.status == "warning"
    assert (
        "127.118.0.1:5354, where names of machines are answered, is taken by 1100" in taken.summary
    )
    assert taken.fix == "vmgr config set names.port 5355 && vmgr helper restart"
    assert (await network.names(replace(host, uid=1_001))).status == "ok", "it has its own address"
    write(host.proc / "net/udp", lines % 1_000)
    assert (await network.names(replace(host, uid=1_000))).status == "ok", "ours"


async def test_what_leads_to_the_internet(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    monkeypatch.setattr(
        network, "missing_tools", lambda *tools: [tool for tool in tools if tool not in there]
    )
    nothing = await network.egress(host)
    assert outcome(nothing)[:2] == (
        "warning", "slirp4netns is not installed, so machines have no internet",
    )  # fmt: skip
    assert nothing.fix is not None
    there.add("pasta")
    assert (await network.egress(host)).summary == "pasta is installed, and is used where it works"
    there.add("slirp4netns")
    assert (await network.egress(host)).summary == "slirp4netns is installed"
    # Where a helper knows, what it knows.
    used = await network.egress(replace(host, egress=("pasta", None)))
    assert (used.status, used.summary) == ("ok", "pasta leads there")
    fell = await network.egress(replace(host, egress=("slirp4netns", "pasta did not start")))
    assert outcome(fell) == (
        "warning", "slirp4netns leads there: pasta did not start",
        "vmgr config set network.egress auto",
    )  # fmt: skip
