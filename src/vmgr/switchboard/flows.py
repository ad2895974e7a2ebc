"""Connections that the kernel tracks: forgetting a machine's, so that new rules count for them.

A rule is asked about a connection's first packet alone. One that is forgotten is asked about with
its next packet: what is still permitted goes on, the rest is refused.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

__all__ = ["forget_flows", "forget_flows_to"]

_NETLINK_NETFILTER: Final = 12
_DELETE: Final = (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_MARK, _MARK_MASK = 8, 21  # CTA_MARK, linux/netfilter/nfnetlink_conntrack.h
_REQUEST_ACK: Final = 5
_NESTED: Final = 1 << 15  # NLA_F_NESTED
# CTA_TUPLE_ORIG holds CTA_TUPLE_IP, and that CTA_IP_V4_DST or CTA_IP_V6_DST.
_ORIGINAL, _ADDRESSES, _TO4, _TO6 = 1, 1, 2, 4
# CTA_FILTER holds CTA_FILTER_ORIG_FLAGS: which parts of a tuple are to be compared
# (net/netfilter/nf_conntrack_netlink.c; Linux 5.8 and later).
_FILTER, _COMPARED, _DESTINATION = 25, 1, 1 << 1


def forget_flows(mark: int) -> None:
    """Forget the connections with a mark.

    Raises:
        OSError: this kernel cannot.
    """
    body = b"".join(
        _attribute(kind, struct.pack("!I", value))
        for kind, value in ((_MARK, mark), (_MARK_MASK, 0xFFFFFFFF))
    )
    _delete(socket.AF_UNSPEC, body)


def forget_flows_to(address: str) -> None:
    """Forget the connections that somebody has opened to an address.

    Raises:
        OSError: this kernel cannot.
    """
    family, kind = (socket.AF_INET6, _TO6) if ":" in address else (socket.AF_INET, _TO4)
    to = _attribute(kind, socket.inet_pton(family, address))
    tuple_ = _attribute(_ORIGINAL | _NESTED, _attribute(_ADDRESSES | _NESTED, to))
    compared = _attribute(_COMPARED, struct.pack("=I", _DESTINATION))
    _delete(family, tuple_ + _attribute(_FILTER | _NESTED, compared))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value  # all that is here fills 4 bytes


def _delete(family: int, attributes: bytes) -> None:
    body = struct.pack("=BBH", family, 0, 0) + attributes
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    ) as sock:
        sock.bind((0, 0))
        sock.send(struct.pack("=IHHII", 16 + len(body), _DELETE, _REQUEST_ACK, 0, 0) + body)
        # The kernel has answered when send() returns.
        answer = sock.recv(4096, socket.MSG_DONTWAIT)
    (code,) = struct.unpack_from("=i", answer, 16)
    if code:
        raise OSError(-code, "connections cannot be forgotten")
