"""Each rule sees what breaks it, on real processes where one can be made to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.api.audit import AuditedMemory
from vmgr.audit.proc import Seen, look, unix_sockets
from vmgr.audit.rules import Surroundings, problems, purpose_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLEAN = """
import os, resource, signal, sys
os.setsid(); os.chdir("/"); os.umask(0o077); signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""
WAIT = "\nprint('ready', flush=True); sys.stdin.read()"


def around(**changes: Any) -> Surroundings:
    own = look(os.getpid())
    given: dict[str, Any] = {
        "directories": ("/ours/",), "sockets": unix_sockets(), "namespaces": own.namespaces,
        "uid": os.getuid(),
    }  # fmt: skip
    return Surroundings(**(given | changes))


@pytest.fixture
def process() -> Iterator[Callable[[str], Seen]]:
    """Starts a process that does this to itself, and looks at it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(source: str) -> Seen:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CLEAN + source + WAIT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return look(child.pid)

    yield start
    for child in started:
        child.kill()
        child.communicate()


def test_a_clean_helper_breaks_no_rule(process: Callable[[str], Seen]) -> None:
    assert list(problems("helper", process(""), None, around())) == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("os.umask(0o022)", "its umask is 0022"),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})", "it blocks SIGTERM"),
        ("signal.signal(signal.SIGCHLD, signal.SIG_IGN)", "it ignores SIGCHLD"),
        ("signal.signal(signal.SIGPIPE, signal.SIG_DFL)", "SIGPIPE would end it"),
        ("os.open('/etc/passwd', os.O_RDONLY)", "fd 3 is /etc/passwd, of which it has no use"),
        ("os.chdir('/usr')", "its working directory is /usr"),
        ("resource.setrlimit(resource.RLIMIT_CORE, (0, 0))", None),
    ],
)
def test_what_a_helper_must_not_be(
    process: Callable[[str], Seen], source: str, said: str | None
) -> None:
    found = list(problems("helper", process(source), None, around()))
    assert len(found) == (said is not None), found
    if said is not None:
        assert found[0].startswith(said)


def test_what_only_a_look_can_tell(process: Callable[[str], Seen]) -> None:
    seen = process("")
    memory = AuditedMemory(name="/memfd:memory-backend-memfd (deleted)", bytes=1, dumped=False)
    for changes, said in (
        ({"core_limit": None}, "core dump"),
        ({"uids": [0, 12345, 0, 0]}, "12345"),
        ({"terminal": True}, "terminal"),
        ({"session_leader": False}, "session"),
        ({"environment": ["AWS_SECRET"]}, "AWS_SECRET"),
        ({"guest_memory": [memory]}, "maps a machine's memory"),
    ):
        found = list(problems("helper", replace(seen, **changes), None, around()))  # type: ignore[arg-type]
        assert len(found) == 1, found
        assert said in found[0]


def test_a_vmm_that_is_not_locked_in(process: Callable[[str], Seen]) -> None:
    found = " ".join(problems("vmm", process(""), "namespaces", around()))
    for said in (
        "no_new_privs", "no filter", "memory is not seen", "the helper's net namespace",
        "its I/O priority is",
    ):  # fmt: skip
        assert said in found
    # Where the host permits no more than the filter, that is not held against it.
    assert "namespace" not in " ".join(problems("vmm", process(""), "filter", around()))


def test_the_io_priority_is_of_all_threads() -> None:
    work = (
        "import sys, threading; threading.Thread(target=sys.stdin.read).start(); print(flush=True)"
    )
    command = ["ionice", "-c", "best-effort", "-n", "5", sys.executable, "-c", work]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert look(child.pid).io_priorities == ["best-effort 5"]
        (other,) = {int(t.name) for t in Path(f"/proc/{child.pid}/task").iterdir()} - {child.pid}
        subprocess.run(["ionice", "-c", "idle", "-p", str(other)], check=True)
        assert look(child.pid).io_priorities == ["best-effort 5", "idle"]


def test_a_dump_must_not_hold_the_machines_memory(process: Callable[[str], Seen]) -> None:
    memory = AuditedMemory(name="/memfd:memory-backend-memfd (deleted)", bytes=1, dumped=True)
    seen = replace(process(""), guest_memory=[memory])
    assert any("a dump of it" in said for said in problems("vmm", seen, "filter", around()))


@pytest.mark.parametrize(
    ("role", "target", "fits"),
    [
        ("vmm", "/ours/machines/x/disk.qcow2", True),
        ("vmm", "/home/person/.ssh/id_ed25519", False),
        ("vmm", "socket:[1]", False),
        ("vmm", "/dev/kvm", True),
        ("vmm", "/dev/sda", False),
        ("helper", "/dev/kvm", False),
        ("helper", "socket:[1]", True),
        ("monitor", "/ours/vmm.log", True),
        ("monitor", "/dev/kvm", False),
        ("worker", "/etc/shadow", False),
    ],
)
def test_what_an_open_file_is_for(role: Any, target: str, *, fits: bool) -> None:
    assert (purpose_of(role, 9, target, around(sockets={})) is not None) == fits


def test_signals_and_memory_are_read_as_they_are(process: Callable[[str], Seen]) -> None:
    seen = process("signal.signal(signal.SIGUSR1, lambda *_: None)")
    assert signal.SIGUSR1 in seen.caught
    assert seen.parent == os.getpid()
    assert seen.environment == ["PATH"] or set(seen.environment) == {"LC_CTYPE", "PATH"}
    assert seen.core_limit == 0
    assert Path(seen.program).name.startswith("python")
