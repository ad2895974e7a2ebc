"""Who may speak to whom: one nftables table, changed through libnftables.

Chains, in a packet's order: `origin` drops what a machine sends under an address that is not its
own; `input` is what machines may ask of the namespace itself (names, ping); `forward` leads each
machine to the chain of its access. What is denied is refused at once (reset, administratively
prohibited), never silently dropped, so nothing in a machine hangs. Whatever the helper connects
from the namespace to a machine is not filtered.
"""

from __future__ import annotations

import ctypes
from typing import Final

from vmgr.switchboard.links import GATEWAY4, GATEWAY6

__all__ = ["DENIED_GROUP", "EGRESS", "EGRESS_NETWORK", "Firewall", "FirewallError"]

EGRESS: Final = "egress"
"""The interface behind which the internet is."""
EGRESS_NETWORK: Final = "198.19.255.0/24"
DENIED_GROUP: Final = 7
"""Where the kernel tells of denied packets (NFLOG)."""

# Special-purpose addresses (RFC 6890) that are a LAN, this computer or nobody.
_PRIVATE: Final = (
    "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, "
    "192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3"
)

_TABLE: Final = f"""
add table inet vmgr
delete table inet vmgr
table inet vmgr {{
 set addresses4 {{ type ifname . ipv4_addr; }}
 set addresses6 {{ type ifname . ipv6_addr; }}
 set members {{ type ifname; }}
 set asking {{ type ifname; }}
 map access {{ type ifname : verdict; }}
 set private4 {{ type ipv4_addr; flags interval; elements = {{ {_PRIVATE} }}; }}
 set host4 {{ type ipv4_addr; }}
 chain origin {{
  type filter hook prerouting priority raw; policy accept;
  iifname "vm*" jump from_machine
 }}
 chain from_machine {{
  icmpv6 type {{ nd-router-advert, nd-redirect }} drop
  meta nfproto ipv4 iifname . ip saddr != @addresses4 counter drop
  ip6 saddr {{ ::, fe80::/10 }} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
  meta nfproto ipv6 iifname . ip6 saddr != @addresses6 counter drop
 }}
 chain denied {{
  limit rate 50/second burst 50 packets log group {DENIED_GROUP} snaplen 80
  meta l4proto tcp reject with tcp reset
  reject with icmpx admin-prohibited
 }}
 chain full {{
  oifname "{EGRESS}" ip daddr != {EGRESS_NETWORK} accept
  oifname @members accept
  goto denied
 }}
 chain internet {{
  oifname "{EGRESS}" ip daddr != @private4 ip daddr != @host4 accept
  goto denied
 }}
 chain none {{
  goto denied
 }}
 chain input {{
  type filter hook input priority filter; policy accept;
  iifname "{EGRESS}" ct state established,related accept
  iifname "{EGRESS}" drop
  iifname "vm*" jump to_us
 }}
 chain to_us {{
  ct state established,related accept
  icmp type echo-request accept
  icmpv6 type {{ echo-request, nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
  iifname @asking meta l4proto {{ tcp, udp }} th dport 53 ip daddr {GATEWAY4} accept
  iifname @asking meta l4proto {{ tcp, udp }} th dport 53 ip6 daddr {GATEWAY6} accept
  ip6 daddr ff00::/8 drop
  ip daddr 224.0.0.0/3 drop
  goto denied
 }}
 chain forward {{
  type filter hook forward priority filter; policy drop;
  ct state established,related accept
  ct state invalid drop
  iifname vmap @access
 }}
 chain outward {{
  type nat hook postrouting priority srcnat; policy accept;
  oifname "{EGRESS}" masquerade
 }}
}}
"""  # noqa: E501 (rules are lines)


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
        commands = ["flush set inet vmgr host4"]
        if addresses:
            commands.append(f"add element inet vmgr host4 {{ {', '.join(addresses)} }}")
        self.run("\n".join(commands))

    def admit(self, interface: str, address4: str, address6: str, access: str) -> None:
        """Rules for a machine behind `interface`."""
        self._elements("add", interface, address4, address6, access, f" : goto {access}")

    def dismiss(self, interface: str, address4: str, address6: str, access: str) -> None:
        """Take them away."""
        self._elements("delete", interface, address4, address6, access, "")

    def _elements(  # noqa: PLR0917 (two callers, above)
        self, verb: str, interface: str, address4: str, address6: str, access: str, verdict: str
    ) -> None:
        elements = [
            f'addresses4 {{ "{interface}" . {address4} }}',
            f'addresses6 {{ "{interface}" . {address6} }}',
            f'access {{ "{interface}"{verdict} }}',
        ]
        if access == "full":
            elements.append(f'members {{ "{interface}" }}')
        # Names leak too: a machine without any network asks for none.
        if access != "none":
            elements.append(f'asking {{ "{interface}" }}')
        self.run("\n".join(f"{verb} element inet vmgr {element}" for element in elements))
