"""Drives one machine's VMM and agent: boot, adopt, stop, kill, exec.

Who changes a machine's status here holds its lock, but for `kill` and the watcher of the VMM's
exit:
those only end the process, and the status follows from its end.
"""

from __future__ import annotations
