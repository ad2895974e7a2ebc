"""The one place where vmgr starts processes. A test bans every other way."""

from vmgr.spawner.contained import Contained
from vmgr.spawner.foreground import run_in_foreground
from vmgr.spawner.pipes import chunks, first_line
from vmgr.spawner.process import (
    Completed,
    ExitStatus,
    Process,
    ProcessFailedError,
    StopPolicy,
    minimal_environment,
    run,
    spawn,
    spawn_detached,
)

__all__ = [
    "Completed",
    "Contained",
    "ExitStatus",
    "Process",
    "ProcessFailedError",
    "StopPolicy",
    "chunks",
    "first_line",
    "minimal_environment",
    "run",
    "run_in_foreground",
    "spawn",
    "spawn_detached",
]
