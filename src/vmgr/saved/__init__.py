"""Saved machines: the memory and device state of a VMM that stands still, in files, and back."""

from vmgr.saved.files import LoadedMachine, SavedMachine
from vmgr.saved.memory import load_memory, memory_checksum, seal
from vmgr.saved.model import SavedState, SavedVolume
from vmgr.saved.saving import Saver

__all__ = [
    "LoadedMachine",
    "SavedMachine",
    "SavedState",
    "SavedVolume",
    "Saver",
    "load_memory",
    "memory_checksum",
    "seal",
]
