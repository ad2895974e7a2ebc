from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import UnsupportedError, UsageError
from vmgr.hostcommands.conversation import Asked
from vmgr.hostcommands.desktop import program_for, session_of
from vmgr.hostcommands.paths import Shared, Translation

if TYPE_CHECKING:
    from pathlib import Path

X11 = {"DISPLAY": ":0"}
WAYLAND = {"WAYLAND_DISPLAY": "wayland-0", "DISPLAY": ":0"}
SHARED = Translation([Shared(b"/home/me", b"/me")])


def program(verb: str, *argv: bytes, env: dict[str, str] = X11, cwd: bytes = b"/") -> list[str]:
    asked = Asked(verb=verb, argv=list(argv), cwd=cwd)  # type: ignore[arg-type]
    return program_for(asked, "web", env, SHARED)


@pytest.mark.parametrize(
    "link", [b"https://example.org/a?b#c", b"http://127.0.0.1:8080/", b"mailto:me@example.org"]
)
def test_links_are_opened(link: bytes) -> None:
    assert program("open", link) == ["xdg-open", link.decode()]


@pytest.mark.parametrize(
    "link",
    [
        b"file:///etc/passwd", b"javascript:alert(1)", b"smb://x", b"ssh://x", b"vscode://x",
        b"https://a b", b"https://a\nb", b"https:", b"HTTPS://x", b"data:text/html,x",
        b"/etc/passwd", b"../x", b"--help", "https://ex\u202eample".encode(),
    ],
)  # fmt: skip
def test_other_things_are_not(link: bytes) -> None:
    with pytest.raises(UsageError):
        program("open", link)


def test_a_shared_file_is_opened() -> None:
    assert program("open", b"/me/a.txt") == ["xdg-open", "/home/me/a.txt"]
    assert program("open", b"a.txt", cwd=b"/me/x") == ["xdg-open", "/home/me/x/a.txt"]
    assert program("open", b"-x", cwd=b"/me") == ["xdg-open", "/home/me/-x"]


def test_the_clipboard_is_that_of_the_session() -> None:
    assert program("copy")[0] == "xclip"
    assert program("copy", env=WAYLAND) == ["wl-copy"]
    assert program("paste", env=WAYLAND) == ["wl-paste", "--no-newline"]


def test_a_notification_says_whose_it_is_and_holds_no_markup() -> None:
    argv = program("notify", b"--icon=x", b"<b>\x1b</b>", env={"DBUS_SESSION_BUS_ADDRESS": "x"})
    assert argv[-3:] == [
        "--",
        "Machine web",
        "--icon=x &lt;b&gt;\N{REPLACEMENT CHARACTER}&lt;/b&gt;",
    ]


@pytest.mark.parametrize("verb", ["open", "copy", "paste", "notify"])
def test_without_a_desktop_there_is_none_of_it(verb: str) -> None:
    argv = [b"https://example.org"] if verb in {"open", "notify"} else []
    with pytest.raises(UnsupportedError):
        program(verb, *argv, env=X11 if verb == "notify" else {"DBUS_SESSION_BUS_ADDRESS": "x"})


def test_a_session_is_found_by_its_sockets(tmp_path: Path) -> None:
    x11 = tmp_path / "x"
    x11.mkdir()
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert session_of(runtime, x11) == {}
    (tmp_path / "bus").write_text("no socket")
    assert session_of(runtime, x11) == {}
    (tmp_path / "bus").unlink()
    opened = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for one, name in zip(opened, ("bus", "wayland-0", "x/X1"), strict=True):
        one.bind(str(tmp_path / name))
    assert session_of(runtime, x11) == {
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={tmp_path}/bus",
        "WAYLAND_DISPLAY": "wayland-0",
        "DISPLAY": ":1",
    }
    known = {"DBUS_SESSION_BUS_ADDRESS": "x", "WAYLAND_DISPLAY": "y", "DISPLAY": "z"}
    assert session_of({**runtime, **known}, x11) == {}
    for one in opened:
        one.close()
