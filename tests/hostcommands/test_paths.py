from __future__ import annotations

import pytest

from vmgr.hostcommands.paths import Shared, Translation

HOME = Translation([
    Shared(b"/home/me/code", b"/code"),
    Shared(b"/home/me/code/deep", b"/elsewhere"),
    Shared(b"/srv", b"/code/inner"),
])  # fmt: skip


@pytest.mark.parametrize(
    ("guest", "host"),
    [
        (b"/code", b"/home/me/code"),
        (b"/code/", b"/home/me/code"),
        (b"/code/a/b", b"/home/me/code/a/b"),
        (b"//code//a/./b", b"/home/me/code/a/b"),
        (b"/code/inner/x", b"/srv/x"),  # the innermost counts
        (b"/elsewhere/x", b"/home/me/code/deep/x"),
        (b"/code/a/../b", b"/home/me/code/b"),
        (b"/code/\xff\xfe", b"/home/me/code/\xff\xfe"),
    ],
)
def test_what_is_shared_is_found(guest: bytes, host: bytes) -> None:
    assert HOME.to_host(guest) == host


@pytest.mark.parametrize(
    "guest",
    [
        b"/", b"/codex", b"/etc/passwd", b"code", b"", b"/code/../etc/passwd",
        b"/code/inner/../../etc", b"/code\0/x", b"../code",
    ],
)  # fmt: skip
def test_what_is_not_shared_is_nowhere(guest: bytes) -> None:
    assert HOME.to_host(guest) is None


def test_the_way_back() -> None:
    assert HOME.to_guest(b"/home/me/code/a") == b"/code/a"
    assert HOME.to_guest(b"/home/me/code/deep/a") == b"/elsewhere/a"
    assert HOME.to_guest(b"/home/me") is None


def test_nothing_is_shared() -> None:
    assert Translation([]).to_host(b"/root") is None
    assert Translation([]).argument(b"/root") == b"/root"


def test_a_whole_directory_tree_may_be_shared() -> None:
    everything = Translation([Shared(b"/", b"/host")])
    assert everything.to_host(b"/host/etc") == b"/etc"
    assert everything.to_host(b"/host") == b"/"
    assert everything.to_guest(b"/etc") == b"/host/etc"


def test_only_whole_arguments_that_are_paths_are_translated() -> None:
    assert HOME.argument(b"/code/a") == b"/home/me/code/a"
    assert HOME.argument(b"--file=/code/a") == b"--file=/code/a"
    assert HOME.argument(b"a") == b"a"
