"""Connections that the kernel tracks: forgetting a machine's, so that new rules count for them.

A rule is asked about a connection's first packet alone. One that is forgotten is asked about with
its next packet: what is still permitted goes on, the rest is refused.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

__all__ = ["forget_flows"]

_NETLINK_NETFILTER: Final = 12
_DELETE: Final = (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_MARK, _MARK_MASK = 8, 21  # CTA_MARK, linux/netfilter/nfnetlink_conntrack.h
_REQUEST_ACK: Final = 5


def forget_flows(mark: int) -> None:
    """Forget the connections with a mark.

    Raises:
        OSError: this kernel cannot.
    """
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    for kind, value in ((_MARK, mark), (_MARK_MASK, 0xFFFFFFFF)):
        body += struct.pack("=HH", 8, kind) + struct.pack("!I", value)
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
