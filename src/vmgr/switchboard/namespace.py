"""What the namespace that the holder keeps is set to."""

from __future__ import annotations

from typing import Final

__all__ = ["INTERFACE_PREFIX", "setup_script"]

INTERFACE_PREFIX: Final = "vm"

_SYSCTLS: Final = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # Thousands of connections to one port of a machine: waiting ones cost milliseconds each.
    "net/ipv4/tcp_tw_reuse": "1",
    "net/ipv4/ip_local_port_range": "1024 65535",
    # A machine that claims to be elsewhere is not believed, and no router but us is.
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/accept_redirects": "0",
    # Addresses that only we give: nobody to find duplicates with.
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv4/ip_unprivileged_port_start": "0",
    # A refusal that is not said is a hang: the kernel says one a second to each, if let.
    "net/ipv4/icmp_ratelimit": "0",
    "net/ipv6/icmp/ratelimit": "0",
}


def setup_script() -> str:
    """What a shell does in the namespace before it turns into its arguments.

    A sandbox has no /proc to set them in. What a kernel does not let us set, the shell says.
    """
    lines = [f"echo '{value}' >/proc/sys/{name}" for name, value in _SYSCTLS.items()]
    return "\n".join([*lines, 'exec "$@"'])
