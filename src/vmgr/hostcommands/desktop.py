"""Which program of the desktop's shows, tells, copies and pastes.

A seam: what notifies by itself (over D-Bus) takes the place of `notify-send` here.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmgr.hostcommands.conversation import Asked
    from vmgr.hostcommands.paths import Translation

__all__ = ["program_for", "session_of"]

# Nothing that a handler of links might run, read from this computer's files, or type for a person.
_WEB: Final = re.compile(rb"(https?|mailto):[!-~]{1,2000}")
_ANY_SCHEME: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*:")
_TEXT: Final = 2_000
_X11: Final = Path("/tmp/.X11-unix")  # noqa: S108 (X's own place)


def session_of(environment: Mapping[str, str], x11: Path = _X11) -> dict[str, str]:
    """What an environment lacks to reach this user's desktop session: where its sockets are.

    A login shell that a helper started is no part of the session, and is told of none.
    """
    found = {}
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime is not None:
        if "WAYLAND_DISPLAY" not in environment and _is_ours(Path(runtime, "wayland-0")):
            found["WAYLAND_DISPLAY"] = "wayland-0"
        if "DBUS_SESSION_BUS_ADDRESS" not in environment and _is_ours(Path(runtime, "bus")):
            found["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={runtime}/bus"
    if "DISPLAY" not in environment:
        displays = [n for n in range(10) if _is_ours(x11 / f"X{n}")]
        found |= {"DISPLAY": f":{displays[0]}"} if displays else {}
    return found


def _is_ours(path: Path) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid()


def program_for(
    asked: Asked, machine: str, environment: Mapping[str, str], translation: Translation
) -> list[str]:
    """The command that does what was asked with `host open|notify|copy|paste`.

    Raises:
        UsageError: it may not be opened.
        UnsupportedError: there is no desktop here.
    """
    wayland = "WAYLAND_DISPLAY" in environment
    graphical = wayland or "DISPLAY" in environment
    bus = "DBUS_SESSION_BUS_ADDRESS" in environment
    if not (bus if asked.verb == "notify" else graphical):
        raise UnsupportedError(
            f"the host has no desktop session that vmgr knows of, which host {asked.verb} needs"
        )
    match asked.verb:
        case "open":
            return ["xdg-open", _target(asked, translation)]
        case "notify":
            text = b" ".join(asked.argv).decode(errors="replace")
            clean = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}"
                            for c in text[:_TEXT])  # fmt: skip
            # The body may hold markup, which the machine's text is not to be read as.
            body = clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            return ["notify-send", "--app-name=vmgr", "--", f"Machine {machine}", body]
        case "copy":
            return ["wl-copy"] if wayland else ["xclip", "-in", "-selection", "clipboard"]
        case _:
            return (
                ["wl-paste", "--no-newline"]
                if wayland
                else ["xclip", "-out", "-selection", "clipboard"]
            )


def _target(asked: Asked, translation: Translation) -> str:
    text = asked.argv[0]
    if _WEB.fullmatch(text):
        return text.decode("ascii")
    if _ANY_SCHEME.match(text):
        raise UsageError("host open takes files and links of http, https and mailto")
    path = text if text.startswith(b"/") else (asked.cwd or b"/") + b"/" + text
    there = translation.to_host(path)
    if there is None:
        raise UsageError(
            "the file is in no directory that the machine shares with its host, so the host "
            "cannot open it"
        )
    return there.decode(errors="surrogateescape")
