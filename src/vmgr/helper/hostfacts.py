"""What this computer knows that its machines should know too, read where it stands.

Nothing here writes; all that reads files may block.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

from vmgr.spawner import minimal_environment, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Proxies", "Zone", "certificates", "git_identity", "git_places", "proxies", "timezone"]

LOCALTIME: Final = Path("/etc/localtime")
# Where people put certificates of their own: Debian, Alpine and relatives; Fedora; Arch; SUSE.
TRUSTED: Final = tuple(
    map(
        Path,
        (
            "/usr/local/share/ca-certificates",
            "/etc/pki/ca-trust/source/anchors",
            "/etc/ca-certificates/trust-source/anchors",
            "/etc/pki/trust/anchors",
        ),
    )
)
_ZONES: Final = "/zoneinfo/"
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")
_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_CERTIFICATES: Final = 64
_CERTIFICATE: Final = 64 * 1024
_TZIF: Final = 64 * 1024
_LOOPBACK: Final = re.compile(r"localhost|ip6-localhost|127\.[0-9.]+|::1|0\.0\.0\.0|::")
_PROXIES: Final = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")
_IDENTITY: Final = r"^user\.(name|email)$"
_GIT_DEADLINE: Final = 5.0


@dataclass(frozen=True)
class Zone:
    """A time zone: its name, and what the file of that name says."""

    name: str
    content: bytes


def timezone(path: Path = LOCALTIME) -> Zone | None:
    """This computer's; None: it has none, or one without a name."""
    try:
        name = os.path.realpath(path).rpartition(_ZONES)[2]
        content = path.read_bytes()
    except OSError:
        return None
    known = _ZONE.fullmatch(name) and content.startswith(b"TZif") and len(content) <= _TZIF
    return Zone(name, content) if known else None


def certificates(places: Sequence[Path] = TRUSTED) -> dict[str, str]:
    """What was added to the certificates that this computer trusts: PEM by a name of our own.

    Only certificates are taken out of the files, whatever else is in them.
    """
    found: dict[str, str] = {}
    for place in places:
        for directory, _, names in os.walk(place):
            for name in sorted(names):
                if not name.endswith((".crt", ".pem", ".cer")):
                    continue
                with contextlib.suppress(OSError, ValueError):
                    path = Path(directory) / name
                    if path.stat().st_size > _CERTIFICATE:
                        continue
                    for match in _PEM.findall(path.read_text(encoding="ascii", errors="replace")):
                        der = ssl.PEM_cert_to_DER_cert(match)
                        digest = hashlib.sha256(der).hexdigest()[:16]
                        found[f"vmgr-host-{digest}.crt"] = ssl.DER_cert_to_PEM_cert(der)
    return dict(sorted(found.items())[:_CERTIFICATES])


def git_places() -> list[Path]:
    """The files that git_identity() may come from."""
    home = Path.home()
    configuration = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return [home / ".gitconfig", configuration / "git/config"]


async def git_identity() -> dict[str, str]:
    """`name` and `email`, as git knows this person."""
    try:
        done = await run(
            ["git", "config", "--global", "--includes", "-z", "--get-regexp", _IDENTITY],
            env={**minimal_environment(), **_own("HOME"), **_own("XDG_CONFIG_HOME")},
            deadline=_GIT_DEADLINE,
            limit=4_096,
            check=False,
        )  # fmt: skip
    except (OSError, TimeoutError):
        return {}
    found = {}
    for entry in done.stdout.decode(errors="replace").split("\0"):
        key, _, value = entry.partition("\n")
        if value.isprintable() and 0 < len(value) <= 256:  # noqa: PLR2004 (a bound)
            found[key.removeprefix("user.")] = value
    return found


def _own(name: str) -> dict[str, str]:
    return {name: os.environ[name]} if name in os.environ else {}


@dataclass(frozen=True)
class Proxies:
    """Variables for a machine's commands, and which proxies they could not use."""

    variables: dict[str, str]
    unreachable: tuple[str, ...] = ()


def proxies(environ: Mapping[str, str], host_ports: Sequence[int], host_name: str) -> Proxies:
    """This computer's proxies, as a machine reaches them.

    Args:
        environ: where they stand.
        host_ports: ports of this computer's loopback that the machine reaches.
        host_name: by which name.
    """
    variables: dict[str, str] = {}
    unreachable: list[str] = []
    for name in _PROXIES:
        url = environ.get(name) or environ.get(name.upper())
        if not url or not url.isprintable():
            continue
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            host, port = parts.hostname or "", parts.port
        except ValueError:
            continue
        if _LOOPBACK.fullmatch(host):
            if port not in host_ports:
                unreachable.append(f"{host}:{port}" if port else host)
                continue
            login, at, _ = parts.netloc.rpartition("@")
            url = urlunsplit(parts._replace(netloc=f"{login}{at}{host_name}:{port}"))
        variables[name] = variables[name.upper()] = url
    if variables:
        given = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
        own = ("localhost", "127.0.0.1", "::1", "vmgr.internal", ".vmgr.internal")
        words = [word.strip() for word in given.split(",") if word.strip()]
        # The machines' own names, and the machine itself.
        exceptions = ",".join([*words, *(name for name in own if name not in words)])
        variables["no_proxy"] = variables["NO_PROXY"] = exceptions
    return Proxies(variables, tuple(dict.fromkeys(unreachable)))
