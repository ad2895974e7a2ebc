from __future__ import annotations

import pytest

from vmgr.api.hostcommands import HostCommands
from vmgr.errors import NotFoundError, UsageError
from vmgr.hostcommands.conversation import Asked
from vmgr.hostcommands.rights import changed_list, name_of, shown, verdict


@pytest.mark.parametrize(
    ("mode", "name", "said"),
    [
        ("none", "make", "no"), ("list", "make", "yes"), ("list", "rm", "no"),
        ("ask", "make", "yes"), ("ask", "rm", "ask"), ("all", "rm", "yes"),
        ("list", ":open", "no"), ("list", "mak", "no"), ("list", "make ", "no"),
    ],
)  # fmt: skip
def test_what_the_person_has_said_counts(mode: str, name: str, said: str) -> None:
    assert verdict(HostCommands(mode=mode, allow=["make"]), name) == said  # type: ignore[arg-type]


@pytest.mark.parametrize("argv0", [b"/bin/sh", b"./x", b"a/b", b"/"])
def test_a_path_is_no_command(argv0: bytes) -> None:
    with pytest.raises(UsageError):
        name_of(Asked(verb="run", argv=[argv0]))


def test_desktop_words_have_names_of_their_own() -> None:
    assert name_of(Asked(verb="open", argv=[b"x"])) == ":open"
    assert name_of(Asked(verb="run", argv=[b"open"])) == "open"


def test_a_list_is_changed() -> None:
    assert changed_list(["make"], ["git", ":open", "make"], []) == [":open", "git", "make"]
    assert changed_list(["a", "b"], [], ["a"]) == ["b"]
    with pytest.raises(NotFoundError):
        changed_list(["a"], [], ["b"])


@pytest.mark.parametrize(
    "name", ["/bin/sh", "ls -l", "a/b", ":other", "", " x", "a\nb", "\x1b[0m", "x" * 256]
)
def test_what_cannot_be_a_commands_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        changed_list([], [name], [])


def test_a_list_is_bounded() -> None:
    with pytest.raises(UsageError):
        changed_list([], [f"c{n}" for n in range(257)], [])


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([b"git", b"push"], "git push"),
        ([b"a b", b""], "'a b' ''"),
        ([b"x", b"\x1b[2J\x07"], "x '\\x1b[2J\\x07'"),
        ([b"x", b"a\nb\r"], "x 'a\\nb\\r'"),
        ([b"x", b"\xff"], "x '\\\\xff'"),
        ([b"x", "\u202egnp".encode()], "x '\\u202egnp'"),
        ([b"x", b"it's \\"], "x 'it\\'s \\\\'"),
        ([b"x", "\u00a0".encode()], "x '\\xa0'"),
    ],
)
def test_a_command_is_shown_so_that_nothing_in_it_acts(argv: list[bytes], line: str) -> None:
    assert shown(argv) == line
    assert line.isprintable()


def test_a_long_command_shows_both_ends_and_that_something_is_missing() -> None:
    line = shown([b"start", b"x" * 10_000, b"end"])
    assert len(line) < 320
    assert line.startswith("start x")
    assert line.endswith("x end")
    assert "characters" in line
    assert len(shown([b"x" * 10_000], None)) == 10_000
