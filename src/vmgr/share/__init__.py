"""Directories of this computer in machines: what may be shared, and the process that serves one.

How it works as a whole is in docs/shares.md; the process itself is share-server/, its other end
agent/src/share.
"""

from vmgr.share.process import KEY_BYTES, ShareSandbox, start_server
from vmgr.share.wanted import check_guest, check_host, check_shares

__all__ = [
    "KEY_BYTES",
    "ShareSandbox",
    "check_guest",
    "check_host",
    "check_shares",
    "start_server",
]
