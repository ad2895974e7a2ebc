"""Saved machines: the memory and device state of a VMM that stands still, in files, and back."""

from vmgr.saved.memory import load_memory, memory_checksum
from vmgr.saved.model import SavedState
from vmgr.saved.saving import Saver

__all__ = [
    "SavedState",
    "Saver",
    "load_memory",
    "memory_checksum",
]
