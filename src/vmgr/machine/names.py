"""Names of machines: what is allowed, and making one up.

The rule is that of a DNS label (RFC 1123, section 2.1) in lower case, since a machine's name
becomes its host name: 1 to 63 letters, digits and hyphens, the first a letter or digit.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Final

from vmgr.api.models import MACHINE_NAME_PATTERN
from vmgr.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = ["NAME_LENGTH_MAX", "check_name", "make_up_name"]

NAME_LENGTH_MAX: Final = 63
_NAME: Final = re.compile(MACHINE_NAME_PATTERN.removeprefix("^").removesuffix("$"))
_SHOWN_MAX: Final = 80  # characters of a refused name that the error repeats

_ADJECTIVES: Final = (
    "agile", "amber", "apt", "bold", "brave", "bright", "brisk", "calm", "clear", "clever",
    "cool", "cosmic", "crisp", "daring", "deft", "eager", "early", "easy", "fair", "fancy",
    "fast", "fleet", "fond", "frank", "free", "fresh", "gentle", "glad", "golden", "grand",
    "happy", "hardy", "honest", "humble", "jolly", "keen", "kind", "lively", "lucid", "lucky",
    "merry", "mild", "modest", "neat", "nimble", "noble", "patient", "placid", "plucky",
    "polite", "prime", "proud", "quick", "quiet", "rapid", "ready", "robust", "rosy", "serene",
    "sharp", "silent", "smart", "snug", "solid", "spry", "steady", "still", "stout", "sunny",
    "swift", "tidy", "true", "vivid", "warm", "wise", "witty", "zesty",
)  # fmt: skip
_NOUNS: Final = (
    "acorn", "alder", "anchor", "aspen", "aster", "badger", "beaver", "birch", "bison", "brook",
    "cedar", "clover", "comet", "condor", "coral", "crane", "cricket", "dahlia", "daisy",
    "dolphin", "eagle", "elm", "ember", "falcon", "fern", "finch", "fjord", "fox", "garnet",
    "gecko", "glade", "grove", "harbor", "hawk", "hazel", "heron", "ibis", "iris", "island",
    "jasper", "kestrel", "lagoon", "lark", "laurel", "lemur", "lilac", "linden", "lotus",
    "lynx", "maple", "marlin", "martin", "meadow", "moss", "myrtle", "oak", "onyx", "opal",
    "orchid", "osprey", "otter", "owl", "panda", "pebble", "pine", "plover", "poplar", "puffin",
    "quail", "raven", "reef", "robin", "rowan", "salmon", "sparrow", "spruce", "swan", "tern",
    "thistle", "tulip", "walnut", "willow", "wren", "zinnia",
)  # fmt: skip
_ATTEMPTS: Final = 20


def check_name(name: str) -> None:
    """See that `name` can be a machine's name.

    Raises:
        UsageError: it cannot.
    """
    if _NAME.fullmatch(name):
        return
    shown = name if len(name) <= _SHOWN_MAX else f"{name[:_SHOWN_MAX]}…"
    raise UsageError(
        f"{shown!r} cannot be a machine's name",
        next_step=f"use 1 to {NAME_LENGTH_MAX} of a-z, 0-9 and -, beginning with a letter or digit",
        details={"name": shown},
    )


def make_up_name(taken: Container[str]) -> str:
    """A name such as `calm-otter` that is not among `taken`."""
    for _ in range(_ATTEMPTS):
        if (name := _pair()) not in taken:
            return name
    # So many names are taken that chance no longer finds a free pair.
    while (name := f"{_pair()}-{secrets.token_hex(3)}") in taken:
        pass
    return name


def _pair() -> str:
    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}"
