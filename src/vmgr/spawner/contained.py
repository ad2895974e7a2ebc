"""A process that runs below a monitor, as bubblewrap's does.

The monitor is our child: it waits for the process and passes on how that ended. The process is our
grandchild, in namespaces of its own: what is watched, asked and killed is the process, by its own
pidfd. It is what a later helper adopts, which knows no monitor.
"""

from __future__ import annotations

import os
from signal import SIGKILL
from typing import TYPE_CHECKING, Final

from vmgr.spawner.process import ExitStatus, Process, parent_of

if TYPE_CHECKING:
    import asyncio

__all__ = ["Contained"]

_SIGNALLED: Final = 128  # a shell, and bubblewrap, exit with 128 + n for a signal n
_MONITOR_LINGERS: Final = 5.0  # seconds it gets to tell the end


class Contained(Process):
    """A process below a monitor. Its end is told when both have ended."""

    def __init__(self, pid: int, pidfd: int, monitor: Process) -> None:
        super().__init__(pid, pidfd, None)
        self.monitor = monitor
        self._gone = False  # it has ended; its monitor has not told yet

    @classmethod
    def under(cls, monitor: Process, pid: int) -> Contained | None:
        """Watch the process `pid` if the monitor is its parent; else it has ended already.

        Raises:
            OSError: it cannot be watched; it has been killed.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        except OSError:
            # No fd is free: what cannot be watched must not go on.
            if parent_of(pid) == monitor.pid:
                os.kill(pid, SIGKILL)
            raise
        # The number may be another's by now; the monitor's cannot, since we have not reaped it.
        if parent_of(pid) != monitor.pid:
            os.close(pidfd)
            return None
        return cls(pid, pidfd, monitor)

    @property
    def running(self) -> bool:
        """Whether its end has not been seen yet."""
        return not self._gone

    def _on_exit(self) -> None:
        import asyncio

        self._gone = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.pidfd)
        os.close(self.pidfd)
        # It is running no more, but how it ended only the monitor knows.
        late = loop.call_later(_MONITOR_LINGERS, self.monitor.kill)

        def told(future: asyncio.Future[ExitStatus]) -> None:
            late.cancel()
            if not self._exit.done():
                self._exit.set_result(_passed_on(future.result()))

        self.monitor.when_ended(told)


def _passed_on(status: ExitStatus) -> ExitStatus:
    """How the process ended, by how its monitor did."""
    if status.code is not None and status.code > _SIGNALLED:
        return ExitStatus(signal=status.code - _SIGNALLED)
    return status
