"""A machine's allow-list as rules of nftables: a chain of its own, and sets for what names mean.

Networks are rules, since they may overlap, which sets forbid. What a domain resolves to is an
element with a time-out, put there before the machine is told the address (`guard`). Elements are
put in with `add`, `delete`, `add`: an `add` alone would not begin the time-out anew.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmgr.switchboard.messages import Rule

__all__ = [
    "PRIVATE4",
    "PRIVATE6",
    "Pin",
    "chain",
    "is_private",
    "pinned",
    "recovered",
    "removal",
]

# Special-purpose addresses (RFC 6890) that are a LAN, this computer or nobody.
PRIVATE4: Final = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3",
    )
)  # fmt: skip
# The translated ones (mapped, NAT64, 6to4, Teredo) may mean any IPv4 address.
PRIVATE6: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/32",
        "2002::/16", "fc00::/7", "fe80::/9", "ff00::/8",
    )
)  # fmt: skip
_COMMENT: Final = re.compile(r"[a-z0-9_.-]{1,120}")
_SET: Final = re.compile(r"(?:any|ports)[46]_(vm\d+)")
_SIZE: Final = 8_192  # of each set; the guard keeps to less


@dataclass(frozen=True)
class Pin:
    """An address that a machine may reach since a name that it may ask for means it."""

    address: str
    protocol: Literal["tcp", "udp"] | None
    port: int | None


def is_private(address: str) -> bool:
    """Whether an address is not of the internet."""
    ip = ipaddress.ip_address(address)
    networks = PRIVATE4 if ip.version == 4 else PRIVATE6  # noqa: PLR2004
    return any(ip in network for network in networks)


def chain(interface: str, access: str, rules: Iterable[Rule], egress: str) -> str:
    """The sets and the chain `allow_INTERFACE`, which ends in `denied`."""
    full = access == "full"
    with_port, without = [], []
    for rule in rules:
        if rule.network is None:
            continue
        network = ipaddress.ip_network(rule.network)
        ip = "ip" if network.version == 4 else "ip6"  # noqa: PLR2004
        guard = "" if full or _meant(network) else _public(ip)
        line = f"{ip} daddr {network} {guard}"
        if rule.port is None:
            without.append(f"{line} accept")
        else:
            with_port.append(f"{line} {rule.protocol} dport {rule.port} accept")
    for ip, version in (("ip", 4), ("ip6", 6)):
        guard = "" if full else _public(ip)
        with_port.append(
            f"{guard} {ip} daddr . meta l4proto . th dport @ports{version}_{interface} accept"
        )
        without.append(f"{guard} {ip} daddr @any{version}_{interface} accept")
    ways = f'oifname != "{egress}"' + (" oifname != @members" if full else "")
    lines = [
        f"{ways} goto denied",
        "ip daddr @slirp4 goto denied",
        "ip6 daddr @slirp6 goto denied",
        *with_port,
        # Whoever names an address or a domain does not mean it as a resolver of its own.
        "meta l4proto { tcp, udp } th dport { 53, 853 } goto denied",
        *without,
        "goto denied",
    ]
    sets = "".join(
        f" set any{version}_{interface} {{ type {kind}; flags timeout; size {_SIZE}; }}\n"
        f" set ports{version}_{interface} "
        f"{{ type {kind} . inet_proto . inet_service; flags timeout; size {_SIZE}; }}\n"
        for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))
    )
    body = "\n  ".join(lines)
    return f"table inet vmgr {{\n{sets} chain allow_{interface} {{\n  {body}\n }}\n}}"


def removal(interface: str) -> str:
    """Commands that take `chain` back, once nothing leads there."""
    sets = [f"{kind}{version}_{interface}" for kind in ("any", "ports") for version in (4, 6)]
    return "\n".join(
        [
            f"delete chain inet vmgr allow_{interface}",
            *(f"delete set inet vmgr {name}" for name in sets),
        ]
    )


def pinned(interface: str, pins: Iterable[tuple[Pin, str, int]]) -> str:
    """Commands that let a machine reach addresses, by their names, for seconds from now."""
    lines = []
    for pin, name, seconds in pins:
        version = 6 if ":" in pin.address else 4
        if pin.port is None:
            where, element = f"any{version}_{interface}", pin.address
        else:
            where = f"ports{version}_{interface}"
            element = f"{pin.address} . {pin.protocol} . {pin.port}"
        # The name is for the switchboard that comes after this one.
        comment = f'comment "{name}"' if _COMMENT.fullmatch(name) else ""
        add = f"add element inet vmgr {where} {{ {element} timeout {seconds}s {comment} }}"
        lines += [add, f"delete element inet vmgr {where} {{ {element} }}", add]
    return "\n".join(lines)


def recovered(listed: str) -> list[tuple[str, Pin, str, int]]:
    """The pins in what nftables lists as JSON: interface, pin, its name, seconds that are left."""
    found = []
    for entry in json.loads(listed).get("nftables", []) if listed else []:
        made = entry.get("set", {})
        match = _SET.fullmatch(made.get("name", ""))
        if made.get("table") != "vmgr" or match is None:
            continue
        for element in made.get("elem", []):
            about = element.get("elem", {}) if isinstance(element, dict) else {}
            value, name, left = about.get("val"), about.get("comment"), about.get("expires")
            if not name or not left:
                continue
            if isinstance(value, str):
                found.append((match[1], Pin(value, None, None), name, int(left)))
            elif isinstance(value, dict):
                address, protocol, port = value["concat"]
                # A sandbox without /etc/protocols shows numbers.
                protocol = {"6": "tcp", "17": "udp"}.get(str(protocol), protocol)
                found.append((match[1], Pin(address, protocol, port), name, int(left)))
    return found


def _meant(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    """Whether a network is named for what it is: one address, or a private network.

    A wide one, like all addresses, does not open the LAN to a machine that is kept from it.
    """
    private = PRIVATE4 if network.version == 4 else PRIVATE6  # noqa: PLR2004
    return network.num_addresses == 1 or any(
        network.subnet_of(p)  # type: ignore[arg-type]  # of the same version
        for p in private
    )


def _public(ip: str) -> str:
    version = 4 if ip == "ip" else 6
    return f"{ip} daddr != @private{version} {ip} daddr != @host{version}"
