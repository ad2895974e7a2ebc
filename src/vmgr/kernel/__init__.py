"""Kernel bundles: kernel, initramfs with the agent, and the module tree as a read-only disk."""

from vmgr.kernel.files import KernelFiles
from vmgr.kernel.model import KernelBundle

__all__ = ["KernelBundle", "KernelFiles"]
