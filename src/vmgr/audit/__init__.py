"""Whether the live processes keep the process rules, from /proc of each."""

from vmgr.audit.audit import NetworkPart, Vmm, audit

__all__ = ["NetworkPart", "Vmm", "audit"]
