"""Who may speak to whom: one nftables table, changed through libnftables.

Chains, in a packet's order: `origin` drops what a machine sends under an address that is not its
own; `input` is what machines may ask of the namespace itself (names, ping); `forward` leads each
machine to the chain of its access, or to that of its allow-list (`allowlist`). What is denied is
refused at once (reset, administratively prohibited), never silently dropped, so nothing in a
machine hangs. Whatever the helper connects from the namespace to a machine is not filtered.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

from vmgr.switchboard import allowlist
from vmgr.switchboard.links import GATEWAY4, GATEWAY6, HOST4, HOST6
from vmgr.switchboard.namespace import INTERFACE_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmgr.switchboard.messages import Plug

__all__ = ["DENIED_GROUP", "EGRESS", "EGRESS_NETWORK", "Firewall", "FirewallError", "mark_of"]

EGRESS: Final = "egress"
"""The interface behind which the internet is."""
EGRESS_NETWORK: Final = "198.19.255.0/24"
_JSON: Final = 1 << 4  # NFT_CTX_OUTPUT_JSON, nftables/libnftables.h
_QUESTIONS: Final = 300  # for names, by one machine in a second; more are lost
_AT_ONCE: Final = 100  # a part of what the resolver's socket holds, so that others have room
DENIED_GROUP: Final = 7
"""Where the kernel tells of denied packets (NFLOG)."""

EGRESS_NETWORK6: Final = "fd00::/64"
"""As slirp4netns has it, unchangeable."""


_PRIVATE4: Final = ", ".join(map(str, allowlist.PRIVATE4))
_PRIVATE6: Final = ", ".join(map(str, allowlist.PRIVATE6))

_TABLE: Final = f"""
add table inet vmgr
delete table inet vmgr
table inet vmgr {{
 set addresses4 {{ type ifname . ipv4_addr; }}
 set addresses6 {{ type ifname . ipv6_addr; }}
 set members {{ type ifname; }}
 map access {{ type ifname : verdict; }}
 map marks {{ type ifname : mark; }}
 set host_ports {{ type ifname . inet_service; }}
 set host_udp_ports {{ type ifname . inet_service; }}
 set private4 {{ type ipv4_addr; flags interval; elements = {{ {_PRIVATE4} }}; }}
 set private6 {{ type ipv6_addr; flags interval; elements = {{ {_PRIVATE6} }}; }}
 set slirp4 {{ type ipv4_addr; flags interval; elements = {{ {EGRESS_NETWORK} }}; }}
 set slirp6 {{ type ipv6_addr; flags interval; elements = {{ {EGRESS_NETWORK6} }}; }}
 set host4 {{ type ipv4_addr; }}
 set host6 {{ type ipv6_addr; }}
 set asked {{ type ifname; size 65535; flags dynamic; }}
 set told {{ type ifname; size 65535; flags dynamic; }}
 chain origin {{
  type filter hook prerouting priority raw; policy accept;
  iifname "vm*" jump from_machine
 }}
 chain from_machine {{
  icmpv6 type {{ nd-router-advert, nd-redirect }} drop
  meta nfproto ipv4 iifname . ip saddr != @addresses4 counter drop
  ip6 saddr {{ ::, fe80::/10 }} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
  meta nfproto ipv6 iifname . ip6 saddr != @addresses6 counter drop
  udp dport 53 update @asked {{ iifname limit rate over {_QUESTIONS}/second burst {_AT_ONCE} packets }} drop
 }}
 chain denied {{
  update @told {{ iifname limit rate 20/second burst 50 packets }} log group {DENIED_GROUP} snaplen 80
  meta l4proto tcp reject with tcp reset
  reject with icmpx admin-prohibited
 }}
 chain full {{
  oifname "{EGRESS}" ip daddr != @slirp4 accept
  oifname "{EGRESS}" ip6 daddr != @slirp6 accept
  oifname @members accept
  goto denied
 }}
 chain internet {{
  oifname "{EGRESS}" ip daddr != @private4 ip daddr != @host4 accept
  oifname "{EGRESS}" ip6 daddr != @private6 ip6 daddr != @host6 accept
  goto denied
 }}
 chain none {{
  goto denied
 }}
 chain input {{
  type filter hook input priority filter; policy accept;
  iifname "{EGRESS}" ct state established,related accept
  iifname "{EGRESS}" icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
  iifname "{EGRESS}" drop
  iifname "vm*" jump to_us
 }}
 chain to_us {{
  ct state established,related accept
  icmp type echo-request accept
  icmpv6 type {{ echo-request, nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
  meta l4proto {{ tcp, udp }} th dport 53 ip daddr {GATEWAY4} accept
  meta l4proto {{ tcp, udp }} th dport 53 ip6 daddr {GATEWAY6} accept
  ip daddr {HOST4} iifname . tcp dport @host_ports accept
  ip6 daddr {HOST6} iifname . tcp dport @host_ports accept
  ip daddr {HOST4} iifname . udp dport @host_udp_ports accept
  ip6 daddr {HOST6} iifname . udp dport @host_udp_ports accept
  ip6 daddr ff00::/8 drop
  ip daddr 224.0.0.0/3 drop
  goto denied
 }}
 chain forward {{
  type filter hook forward priority filter; policy drop;
  ct state established,related accept
  ct state invalid drop
  ct mark set iifname map @marks
  iifname vmap @access
 }}
 chain outward {{
  type nat hook postrouting priority srcnat; policy accept;
  oifname "{EGRESS}" masquerade
 }}
}}
"""  # noqa: E501, S608 (rules are lines, and no SQL)


class FirewallError(Exception):
    """nftables refused; the sentence is its own."""


class Firewall:
    """The table. Commands are transactions: all of one or nothing.

    libnftables is the library that the nft program is made of. Calling it takes half a millisecond,
    where starting the program for each machine would take ten.

    Raises:
        FirewallError: the library is missing.
    """

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise FirewallError("libnftables is not installed") from error
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = ctypes.c_char_p
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library = library
        self._context = library.nft_ctx_new(0)
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> str:
        """Do `commands`, or none of them; gives what they print.

        Raises:
            FirewallError: they cannot be done.
        """
        failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output = self._library.nft_ctx_get_output_buffer(self._context) or b""
        errors = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            lines = errors.decode(errors="replace").strip().splitlines()
            raise FirewallError(lines[0] if lines else "nftables refused")
        return output.decode(errors="replace")

    def open(self) -> None:
        """Make the table, in place of one that was there."""
        self.run(_TABLE)

    def know_host(self, addresses: list[str]) -> None:
        """These are the computer's own addresses, as they are now."""
        commands = ["flush set inet vmgr host4", "flush set inet vmgr host6"]
        for address in addresses:
            name = "host6" if ":" in address else "host4"
            commands.append(f"add element inet vmgr {name} {{ {address} }}")
        self.run("\n".join(commands))

    def admit(self, interface: str, plug: Plug, before: Plug | None = None) -> None:
        """Rules for a machine behind `interface`, in place of those of `before`: all or nothing."""
        commands = [] if before is None else self._dismissal(interface, before)
        target: str = plug.access
        if _listed(plug):
            commands.append(allowlist.chain(interface, plug.access, plug.rules or [], EGRESS))
            target = f"allow_{interface}"
        commands += self._elements("add", interface, plug, f" : goto {target}")
        self.run("\n".join(commands))

    def dismiss(self, interface: str, plug: Plug) -> None:
        """Take them away."""
        self.run("\n".join(self._dismissal(interface, plug)))

    def pin(self, interface: str, pins: Iterable[tuple[allowlist.Pin, str, int]]) -> None:
        """Let a machine with an allow-list reach addresses, by their names, for seconds."""
        self.run(allowlist.pinned(interface, pins))

    def pins(self) -> list[tuple[str, allowlist.Pin, str, int]]:
        """What an earlier switchboard pinned: interface, pin, its name, seconds that are left."""
        self._library.nft_ctx_output_set_flags(self._context, _JSON)
        try:
            listed = self.run("list sets inet")
        except FirewallError:
            return []
        finally:
            self._library.nft_ctx_output_set_flags(self._context, 0)
        return allowlist.recovered(listed)

    def _dismissal(self, interface: str, plug: Plug) -> list[str]:
        commands = self._elements("delete", interface, plug, "")
        return [*commands, allowlist.removal(interface)] if _listed(plug) else commands

    def _elements(self, verb: str, interface: str, plug: Plug, verdict: str) -> list[str]:
        mark = f" : {mark_of(interface)}" if verdict else ""
        elements = [
            f'addresses4 {{ "{interface}" . {plug.address4} }}',
            f'addresses6 {{ "{interface}" . {plug.address6} }}',
            f'access {{ "{interface}"{verdict} }}',
            f'marks {{ "{interface}"{mark} }}',
            *(f'host_ports {{ "{interface}" . {port} }}' for port in plug.host_ports),
            *(f'host_udp_ports {{ "{interface}" . {port} }}' for port in plug.host_udp_ports),
        ]
        if plug.access == "full":
            elements.append(f'members {{ "{interface}" }}')
        return [f"{verb} element inet vmgr {element}" for element in elements]


def mark_of(interface: str) -> int:
    """What connections of the machine behind `interface` are marked with."""
    return int(interface.removeprefix(INTERFACE_PREFIX))


def _listed(plug: Plug) -> bool:
    return plug.rules is not None and plug.access != "none"
