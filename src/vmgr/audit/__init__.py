"""Whether the live processes keep the process rules, from /proc of each."""

from vmgr.audit.audit import NetworkPart, SharePart, Vmm, audit

__all__ = ["NetworkPart", "SharePart", "Vmm", "audit"]
