"""What a machine may reach, as people write it and as the switchboard enforces it."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Literal, cast

from vmgr.errors import UsageError
from vmgr.switchboard.messages import Rule

__all__ = ["Access", "Reach", "canonical", "parse_rule"]

Access = Literal["full", "internet", "none"]

_MOST: Final = 256  # rules of one machine
_PORT_MAX: Final = 65_535
_NAME_MAX: Final = 253  # RFC 1035, as text
_TAIL: Final = re.compile(r"(?::(?P<port>\d{1,5}))?(?:/(?P<protocol>tcp|udp))?")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


@dataclass(frozen=True)
class Reach:
    """All that bounds what a machine connects to."""

    access: Access
    allow: tuple[str, ...] | None = None
    """Rules as text; None: no allow-list."""
    host_ports: tuple[int, ...] = ()
    """TCP ports of this computer's loopback."""
    host_udp_ports: tuple[int, ...] = ()

    @property
    def rules(self) -> list[Rule] | None:
        """The allow-list for the switchboard."""
        return None if self.allow is None else [parse_rule(text) for text in self.allow]

    @property
    def needs_switchboard(self) -> bool:
        """Whether QEMU's own network would not do: nothing enforces it there."""
        return self.allow is not None or bool(self.host_ports or self.host_udp_ports)


def canonical(rules: list[str]) -> list[str]:
    """The rules, each once and written one way.

    Raises:
        UsageError: one is none, or there are too many.
    """
    found = list(dict.fromkeys(_text(parse_rule(rule)) for rule in rules))
    if len(found) > _MOST:
        raise UsageError(f"a machine's allow-list has at most {_MOST} rules")
    return found


def parse_rule(text: str) -> Rule:
    """`DOMAIN|ADDRESS|CIDR[:PORT][/udp]`, IPv6 with a port in brackets.

    Raises:
        UsageError: it is none.
    """
    where, port, protocol = _split(text)
    if port is None:
        if protocol is not None:
            raise _wrong(text, "/udp and /tcp go with a port")
    elif not 0 < port <= _PORT_MAX:
        raise _wrong(text, "ports are from 1 to 65535")
    protocol = protocol if port is None else protocol or "tcp"
    kind = cast("Literal['tcp', 'udp'] | None", protocol)
    with contextlib.suppress(ValueError):
        network = ipaddress.ip_network(where, strict=False)
        return Rule(network=str(network), port=port, protocol=kind)
    domain = _domain(where)
    if domain is None:
        raise _wrong(text, "it is neither a domain nor an address")
    return Rule(domain=domain, port=port, protocol=kind)


def _split(text: str) -> tuple[str, int | None, str | None]:
    where, tail = text, ""
    if text.startswith("["):
        where, closed, tail = text[1:].partition("]")
        if not closed or ":" not in where:
            raise _wrong(text, "brackets are around an IPv6 address")
    elif match := re.fullmatch(r"(.*?)((?::\d{1,5})?(?:/(?:tcp|udp))?)", text, re.DOTALL):
        # A colon in an IPv6 address is none before a port.
        where, tail = match[1], match[2]
        if ":" in where or (tail.startswith(":") and _is_ipv6(text)):
            where, tail = text, ""
    found = _TAIL.fullmatch(tail)
    if found is None:
        raise _wrong(text, "after the address comes :PORT, then /udp")
    return where, int(found["port"]) if found["port"] else None, found["protocol"]


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Network(text, strict=False)
    except ValueError:
        return False
    return True


def _domain(text: str) -> str | None:
    """A domain as DNS writes it; None: it is none."""
    star = text.startswith("*.")
    name = text.removeprefix("*.").removesuffix(".").lower()
    try:
        name = name.encode("idna").decode() if not name.isascii() else name
    except UnicodeError:
        return None
    labels = name.split(".")
    if len(name) > _NAME_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        return None
    if labels[-1].isdecimal():  # 10.0.0.300 is a mistake, no domain
        return None
    return f"*.{name}" if star else name


def _text(rule: Rule) -> str:
    if rule.network is not None:
        network = ipaddress.ip_network(rule.network)
        single = network.num_addresses == 1
        where = str(network.network_address) if single else str(network)
        if rule.port is not None and network.version == 6:  # noqa: PLR2004
            where = f"[{where}]"
    else:
        where = str(rule.domain)
    if rule.port is None:
        return where
    return f"{where}:{rule.port}" + ("/udp" if rule.protocol == "udp" else "")


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(
        f"{text[:80]!r} is not a rule of an allow-list: {why}",
        next_step="write it like example.org, *.example.org:443, 192.0.2.7, 192.0.2.0/24:53/udp "
        "or [2001:db8::7]:443",
    )
