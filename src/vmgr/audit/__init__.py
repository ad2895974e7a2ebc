"""Whether the live processes keep the process rules, from /proc of each."""

from vmgr.audit.audit import Vmm, audit

__all__ = ["Vmm", "audit"]
