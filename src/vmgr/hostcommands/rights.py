"""Whether a machine may run something here, by what its person has said."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

from vmgr.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmgr.api.hostcommands import HostCommands
    from vmgr.hostcommands.conversation import Asked

__all__ = ["LONGEST_QUESTION", "Verdict", "changed_list", "name_of", "shown", "verdict"]

Verdict = Literal["yes", "no", "ask"]
VERBS: Final = (":open", ":notify", ":copy", ":paste")
_MOST: Final = 256
_NAME: Final = re.compile(r"[^\s/:\x00-\x1f\x7f][^\s/\x00-\x1f\x7f]{0,254}")
_LONGEST: Final = 300
LONGEST_QUESTION: Final = 1_000
"""What is longer is not asked: a person could not see what they allow."""


def name_of(asked: Asked) -> str:
    """By what name rights know it: a command's, or `:open` and its like.

    A command is a name to be found on the person's PATH, never a path: what lies at one may have
    come from the machine, through a shared directory.

    Raises:
        UsageError: it is a path.
    """
    if asked.verb != "run":
        return f":{asked.verb}"
    name = asked.argv[0]
    if b"/" in name:
        raise UsageError("a host command is named, as on the host's PATH: a path is not run")
    return name.decode(errors="surrogateescape")


def verdict(rights: HostCommands, name: str) -> Verdict:
    """What the person has said of commands of that name."""
    if rights.mode == "all":
        return "yes"
    if rights.mode == "none":
        return "no"
    if name in rights.allow:
        return "yes"
    return "ask" if rights.mode == "ask" else "no"


def changed_list(before: Iterable[str], add: Iterable[str], remove: Iterable[str]) -> list[str]:
    """A list after a change, in order.

    Raises:
        UsageError: what is added is no command's name.
        NotFoundError: what is removed is not on the list.
    """
    after = set(before)
    for name in add:
        if name not in VERBS and _NAME.fullmatch(name) is None:
            raise UsageError(
                f"{shown([name.encode(errors='surrogateescape')])} is no command's name",
                next_step=f"name it as on your PATH, without directories and arguments; or one of: "
                f"{', '.join(VERBS)}",
            )
        after.add(name)
    for name in remove:
        if name not in after:
            raise NotFoundError(f"{name} is not on the list of allowed host commands")
        after.discard(name)
    if len(after) > _MOST:
        raise UsageError(f"at most {_MOST} host commands are on the list")
    return sorted(after)


def shown(argv: Iterable[bytes], longest: int | None = _LONGEST) -> str:
    """A command for people to read: one line, nothing that a terminal would obey, not too long.

    Quoted as a shell would read it, so that where an argument ends is seen.
    """
    words = []
    for argument in argv:
        text = argument.decode(errors="backslashreplace")
        plain = re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", text)
        words.append(text if plain else "'" + _escaped(text) + "'")
    line = " ".join(words)
    if longest is None or len(line) <= longest:
        return line
    # The end counts as much as the beginning, and that something is left out is seen.
    half = longest // 2 - 20
    return f"{line[:half]} …({len(line) - 2 * half} characters)… {line[-half:]}"


def _escaped(text: str) -> str:
    # isprintable is False for control, format (bidirectional overrides), unassigned characters and
    # all spaces but the ASCII one.
    return "".join(
        ("\\" + c if c in "\\'" else c) if c.isprintable() else c.encode("unicode_escape").decode()
        for c in text
    )
