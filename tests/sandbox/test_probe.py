"""What this host permits is tried, kept while it is good, and asked again when it was not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.errors import UnsupportedError
from vmgr.sandbox import Sandbox, probe_sandbox
from vmgr.sandbox.probe import Trial

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

TRUE = Path("/usr/bin/true")


async def no_data() -> Sequence[Path]:
    return ()


TRIAL = Trial([str(TRUE)], "build 1", no_data)


class Answers(dict[str, Any]):
    """Kept in memory; `get` is dict's."""

    def put(self, key: str, answer: dict[str, Any]) -> None:
        self[key] = answer


def counting(tmp_path: Path, body: str) -> Path:
    """A bubblewrap that writes down each call before it does what `body` says."""
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\necho call >>{tmp_path}/calls\n{body}\n")
    program.chmod(0o755)
    return program


def calls(tmp_path: Path) -> int:
    path = tmp_path / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


async def test_the_level_is_reached_by_trying(executor: Executor) -> None:
    found = await probe_sandbox(TRIAL, Answers(), executor)
    assert found.level == "namespaces", found.reason
    assert found.bubblewrap is not None
    assert TRUE in found.program.read_only


async def test_a_good_answer_is_kept_for_this_build(executor: Executor, tmp_path: Path) -> None:
    bwrap, answers = counting(tmp_path, 'exec /usr/bin/bwrap "$@"'), Answers()
    first = await probe_sandbox(TRIAL, answers, executor, bubblewrap=bwrap)
    again = await probe_sandbox(TRIAL, answers, executor, bubblewrap=bwrap)
    assert first == again
    assert calls(tmp_path) == 1
    other = Trial([str(TRUE)], "build 2", no_data)
    await probe_sandbox(other, answers, executor, bubblewrap=bwrap)
    assert calls(tmp_path) == 2


async def test_changed_settings_of_the_kernel_are_noticed(
    executor: Executor, tmp_path: Path
) -> None:
    bwrap, answers = counting(tmp_path, 'exec /usr/bin/bwrap "$@"'), Answers()
    settings = tmp_path / "sys"
    (settings / "kernel").mkdir(parents=True)
    for text in ("0", "1"):
        (settings / "kernel/apparmor_restrict_unprivileged_userns").write_text(text)
        await probe_sandbox(TRIAL, answers, executor, bubblewrap=bwrap, settings=settings)
    assert calls(tmp_path) == 2


async def test_a_refusal_is_told_and_not_kept(executor: Executor, tmp_path: Path) -> None:
    says = "bwrap: setting up uid map: Permission denied"  # Ubuntu 24.04's words
    bwrap, answers = counting(tmp_path, f"echo '{says}' >&2; exit 1"), Answers()
    for count in (1, 2):
        found = await probe_sandbox(TRIAL, answers, executor, bubblewrap=bwrap)
        assert found.level == "filter"
        assert "setting up uid map: Permission denied" in found.reason
        assert calls(tmp_path) == count
    assert answers == {}


async def test_a_damaged_answer_is_asked_again(executor: Executor) -> None:
    answers = Answers()
    found = await probe_sandbox(TRIAL, answers, executor)
    for key in answers:
        answers[key] = {"read_only": [1, None]}
    assert await probe_sandbox(TRIAL, answers, executor) == found


async def test_without_bubblewrap_it_says_how_to_get_it(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmgr.sandbox.probe.find_bubblewrap", lambda: None)
    found = await probe_sandbox(TRIAL, Answers(), executor)
    assert (found.level, found.reason) == ("filter", "bubblewrap is not installed")
    assert found.fix == "apt-get install bubblewrap"


@pytest.mark.parametrize(
    ("level", "wanted", "enough"),
    [
        ("filter", "filter", True), ("filter", "namespaces", False), ("filter", "full", False),
        ("namespaces", "filter", True), ("namespaces", "full", False), ("full", "full", True),
    ],
)  # fmt: skip
def test_the_weakest_acceptable_level(level: Any, wanted: Any, enough: bool) -> None:  # noqa: FBT001
    sandbox = Sandbox(level, "so it is")
    if enough:
        sandbox.require(wanted)
        return
    with pytest.raises(
        UnsupportedError, match=rf"only the sandbox level {level}.*so it is"
    ) as told:
        sandbox.require(wanted)
    assert told.value.next_step is not None
    assert "vmgr doctor" in told.value.next_step
