"""What a process that guest-controlled bytes reach may see and do. By bubblewrap, not by us."""

from vmgr.sandbox.bubblewrap import bubblewrap_argv, find_bubblewrap
from vmgr.sandbox.libraries import program_need
from vmgr.sandbox.need import Need, Rights
from vmgr.sandbox.probe import Answers, probe_sandbox
from vmgr.sandbox.sandbox import LEVELS, Sandbox

__all__ = [
    "LEVELS",
    "Answers",
    "Need",
    "Rights",
    "Sandbox",
    "bubblewrap_argv",
    "find_bubblewrap",
    "probe_sandbox",
    "program_need",
]
