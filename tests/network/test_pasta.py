"""pasta as the way to the internet: tried before it is taken, locked in like the other one."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.network.test_processes import only_namespaces, paths
from tests.pasta import debian_12s_pasta, newer_pasta

from vmgr.audit.proc import look, unix_sockets
from vmgr.audit.rules import Surroundings, network_problems
from vmgr.errors import UnsupportedError
from vmgr.network import confined, egress_choice, halfclose
from vmgr.network.egress_choice import EgressChoice
from vmgr.network.egress_programs import EgressProgram
from vmgr.network.processes import NetworkProcesses
from vmgr.network.strays import marked

if TYPE_CHECKING:
    from vmgr.paths import Paths

__all__ = ["paths"]

pytestmark = pytest.mark.skipif(
    not os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="this user may not make taps"
)


class Kept:
    """Answers in memory."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, Any]] = {}

    def get(self, key: str) -> dict[str, Any] | None:
        return self.known.get(key)

    def put(self, key: str, answer: dict[str, Any]) -> None:
        self.known[key] = answer


class Installed:
    """What is installed, and a choice among it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runtime: Path, **programs: Path) -> None:
        self.answers = Kept()
        self.wanted = "pasta"
        self.choice = EgressChoice(self._wanted, only_namespaces, self.answers, runtime)

        async def find(name: Any) -> EgressProgram | None:
            path = programs.get(name) or confined.which(name)
            return EgressProgram(name, path) if path and path.exists() else None

        monkeypatch.setattr(egress_choice, "find_program", find)

    async def _wanted(self) -> str:
        return self.wanted


async def test_one_that_loses_the_end_is_found_out_and_not_used(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = Installed(monkeypatch, paths.runtime, pasta=debian_12s_pasta())
    choice = await installed.choice.choose()
    assert [program.name for program in choice.programs] == ["slirp4netns"]
    assert choice.note is not None
    assert "does not carry half-closed connections rightly" in choice.note
    assert list(installed.answers.known.values()) == [{"keeps_half_closes": False}]
    assert marked(paths.runtime) == []
    # Kept, and no way out rather than a bad one.
    monkeypatch.setattr(halfclose, "_ask", None)
    nothing = Installed(
        monkeypatch, paths.runtime, pasta=debian_12s_pasta(), slirp4netns=Path("/nowhere")
    )
    nothing.answers.known = installed.answers.known
    for wanted in ("auto", "pasta"):
        nothing.wanted = wanted
        with pytest.raises(UnsupportedError) as refused:
            await nothing.choice.choose()
        assert "half-closed" in refused.value.message
        assert "slirp4netns" in str(refused.value.next_step)


async def test_one_that_works_leads_out_locked_in(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = Installed(monkeypatch, paths.runtime, pasta=newer_pasta())
    network = NetworkProcesses(paths, only_namespaces, installed.choice.choose)
    await network.start_egress()
    assert (network.egress_program, network.egress_note) == ("pasta", None)
    (egress,) = (part for part in network.parts() if part.name == "egress")
    assert (egress.program, egress.level) == ("pasta", "namespaces")
    own, seen = look(os.getpid()), look(egress.pid)
    around = Surroundings((), unix_sockets(), own.namespaces, os.getuid())
    assert list(network_problems("egress", seen, egress.level, around, program="pasta")) == []
    assert list(network_problems("egress", seen, egress.level, around)), "it is not slirp4netns"
    command = Path(f"/proc/{egress.pid}/cmdline").read_text()  # noqa: ASYNC240 (procfs)
    assert "--no-map-gw" in command.split("\0")
    after = NetworkProcesses(paths, only_namespaces, installed.choice.choose)
    await after.adopt()
    assert after.egress_program == "pasta"
    # What was found out is known: nothing is tried again.
    assert list(installed.answers.known.values()) == [{"keeps_half_closes": True}]
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert [p.name for p in (await installed.choice.choose()).programs] == ["pasta", "slirp4netns"]
    installed.wanted = "auto"
    assert [p.name for p in (await installed.choice.choose()).programs] == ["slirp4netns"]


async def test_one_that_does_not_start_leaves_it_to_the_other(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "pasta"
    shutil.copy("/bin/false", broken)
    installed = Installed(monkeypatch, paths.runtime, pasta=broken)
    choice = await installed.choice.choose()
    assert [program.name for program in choice.programs] == ["slirp4netns"]
    assert choice.note == "pasta could not be tried (pasta did not start)"
    assert not installed.answers.known
    # And where the trial passed, but the start does not.
    monkeypatch.setattr(
        installed.answers, "get", lambda _: {"keeps_half_closes": True}, raising=True
    )
    network = NetworkProcesses(paths, only_namespaces, installed.choice.choose)
    await network.start_egress()
    assert (network.egress_program, network.egress_note) == ("slirp4netns", "pasta did not start")


async def test_one_that_was_wanted_and_is_not_there(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = Installed(monkeypatch, paths.runtime, pasta=Path("/nowhere"))
    choice = await installed.choice.choose()
    assert ([p.name for p in choice.programs], choice.note) == (
        ["slirp4netns"], "pasta is not installed",
    )  # fmt: skip
