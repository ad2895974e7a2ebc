"""The host half of the agent protocol (docs/agent-protocol.md).

`frames`, `messages`, `keys`, `flows` and `session` know no I/O; `wire` and `channel` put them on
the event loop.
"""

from vmgr.agent.channel import AgentChannel
from vmgr.agent.flows import CreditError
from vmgr.agent.job import Completed, Job, JobSink, Stream
from vmgr.agent.keys import FIRST_KEY, KeyStore, MemoryKeyStore
from vmgr.agent.messages import (
    AgentEvent,
    AgentHello,
    ExecRequest,
    JobExit,
    JobRecord,
    Network,
    PortListener,
    TerminalSize,
    listeners_of,
)

__all__ = [
    "FIRST_KEY",
    "AgentChannel",
    "AgentEvent",
    "AgentHello",
    "Completed",
    "CreditError",
    "ExecRequest",
    "Job",
    "JobExit",
    "JobRecord",
    "JobSink",
    "KeyStore",
    "MemoryKeyStore",
    "Network",
    "PortListener",
    "Stream",
    "TerminalSize",
    "listeners_of",
]
