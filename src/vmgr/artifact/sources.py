"""Which package sources this host is configured with, and which of them are Debian's.

Builds take packages only from Debian's own archive, from the mirrors that the host's administrator
chose. Hosts carry other repositories too (browsers, container engines); those are left alone, and
are not even asked. Formats: sources.list(5), both styles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Source", "debian_sources", "parse_deb822", "parse_one_line", "read_sources"]

_ONE_LINE: Final = re.compile(r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<rest>\S.*)$")
_SOURCES_LIMIT: Final = 1 << 20


@dataclass(frozen=True)
class Source:
    """Some suites at one place."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()
    """Further deb822 fields as they stand, `Signed-By` above all."""

    def option(self, name: str) -> str | None:
        """The value of a field, whatever its letter case."""
        return next((v for n, v in self.options if n.lower() == name.lower()), None)

    def deb822(self) -> str:
        """As a paragraph of a `.sources` file."""
        fields = [
            ("Types", "deb"),
            ("URIs", " ".join(self.uris)),
            ("Suites", " ".join(self.suites)),
            *([("Components", " ".join(self.components))] if self.components else []),
            *self.options,
        ]
        return "".join(f"{name}: {value}\n" for name, value in fields)


def read_sources(directory: Path) -> list[Source]:
    """All enabled binary sources of an apt directory (`/etc/apt`); unreadable files are skipped."""
    found: list[Source] = []
    parts = directory / "sources.list.d"
    for path in (directory / "sources.list", *sorted(parts.glob("*.list"))):
        found.extend(parse_one_line(_read(path)))
    for path in sorted(parts.glob("*.sources")):
        found.extend(parse_deb822(_read(path)))
    return found


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_SOURCES_LIMIT).decode(errors="replace")
    except OSError:
        return ""


def parse_one_line(text: str) -> list[Source]:
    """Read the one-line style; lines that are none are skipped."""
    found = []
    for raw in text.splitlines():
        match = _ONE_LINE.match(raw.split("#", 1)[0].strip())
        if match is None:
            continue
        uri, *rest = match["rest"].split()
        if not rest:
            continue
        options = []
        for word in (match["options"] or "").split():
            name, _, value = word.partition("=")
            field = _ONE_LINE_OPTIONS.get(name.rstrip("+-").lower(), name)
            options.append((field, value.replace(",", " ")))
        found.append(Source((uri,), (rest[0],), tuple(rest[1:]), tuple(options)))
    return found


# How options are called in the one-line style and as deb822 fields, see sources.list(5).
_ONE_LINE_OPTIONS: Final = {
    "arch": "Architectures",
    "by-hash": "By-Hash",
    "check-date": "Check-Date",
    "check-valid-until": "Check-Valid-Until",
    "date-max-future": "Date-Max-Future",
    "inrelease-path": "InRelease-Path",
    "lang": "Languages",
    "pdiffs": "PDiffs",
    "signed-by": "Signed-By",
    "snapshot": "Snapshot",
    "target": "Targets",
    "trusted": "Trusted",
    "valid-until-max": "Valid-Until-Max",
    "valid-until-min": "Valid-Until-Min",
}


def parse_deb822(text: str) -> list[Source]:
    """Read the deb822 style; disabled paragraphs and those for sources only are skipped."""
    found = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for line in paragraph.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in {" ", "\t"} and last:
                fields[last] += "\n" + line
            elif ":" in line:
                last, _, value = line.partition(":")
                last = last.strip()
                fields[last] = value.strip()
        lower = {name.lower(): value for name, value in fields.items()}
        uris, suites = lower.get("uris", "").split(), lower.get("suites", "").split()
        enabled = lower.get("enabled", "yes").lower() not in {"no", "false", "without", "off", "0"}
        if not enabled or "deb" not in lower.get("types", "").split() or not uris or not suites:
            continue
        known = {"types", "uris", "suites", "components", "enabled"}
        options = tuple((n, v) for n, v in fields.items() if n.lower() not in known)
        components = tuple(lower.get("components", "").split())
        found.append(Source(tuple(uris), tuple(suites), components, options))
    return found


def debian_sources(sources: Iterable[Source], codename: str) -> list[Source]:
    """Those that may be Debian's own for the release `codename`, cut down to its suites.

    Only names are looked at here: the release itself, its updates and its security suite (not
    backports). Whether it is really Debian's is told by the signed Release file,
    see `vmgr.artifact.apt`.
    """
    bases = (codename, "stable", "oldstable", "testing", "unstable")
    wanted = {base + suffix for base in bases for suffix in ("", "-updates", "-security")}
    wanted.add("sid")
    wanted.update(f"{base}/updates" for base in bases)
    chosen = []
    for source in sources:
        suites = tuple(s for s in source.suites if s in wanted)
        if suites and source.components:
            chosen.append(Source(source.uris, suites, source.components, source.options))
    return chosen
