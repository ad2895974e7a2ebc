"""Checks of this host, each with the exact fix.

`examine` runs them all; `programs`, `kernel` and `places` hold them by what they look at.
"""

from vmgr.doctor.examine import examine

__all__ = ["examine"]
