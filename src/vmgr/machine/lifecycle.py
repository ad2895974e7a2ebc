"""The life of a machine: a table of transitions, and what each status permits.

::

    creating --created--> stopped --start--> starting --ready--> running
                           ^  ^ |               |                  |
                           |  | +--remove-->    | vmm-exited       | stop
                           |  |   removing      |                  v
                           |  +-----------------+---vmm-exited-- stopping
                           +--------- vmm-exited (from running) ---+

    running --suspend--> suspending --suspended--> suspended --start--> starting
                             |                         | drop
                             +-- ready: running        +----> stopped
    stopped, suspended --restore--> restoring --restored--> stopped
                                              --suspended-> suspended

Every change of status is one of these transitions; whoever wants another has found a mistake, and
gets a `WrongStateError` rather than a machine in an impossible status.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from vmgr.api.models import MachineStatus
from vmgr.errors import WrongStateError

__all__ = [
    "ACTIONS",
    "PERMITS",
    "STATUSES",
    "TRANSITIONS",
    "TRIGGERS",
    "Action",
    "Trigger",
    "check_permits",
    "next_status",
]

Trigger = Literal[
    "created", "start", "ready", "stop", "stop-failed", "vmm-exited", "remove",
    "suspend", "suspended", "drop", "restore", "restored",
]  # fmt: skip
Action = Literal[
    "start", "stop", "restart", "kill", "remove", "exec", "suspend", "fork", "snapshot", "restore"
]

STATUSES: Final[tuple[MachineStatus, ...]] = get_args(MachineStatus)
TRIGGERS: Final[tuple[Trigger, ...]] = get_args(Trigger)
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)

TRANSITIONS: Final[dict[tuple[MachineStatus, Trigger], MachineStatus]] = {
    ("creating", "created"): "stopped",
    ("creating", "remove"): "removing",
    ("stopped", "start"): "starting",
    ("stopped", "remove"): "removing",
    ("starting", "ready"): "running",
    ("starting", "stop"): "stopping",
    ("starting", "vmm-exited"): "stopped",
    ("running", "stop"): "stopping",
    ("running", "vmm-exited"): "stopped",
    ("stopping", "vmm-exited"): "stopped",
    # Its VMM could not be ended (it hangs in the kernel): it is as alive as before.
    ("stopping", "stop-failed"): "running",
    # Its VMM was found alive with its agent answering after the helper died while stopping it.
    ("stopping", "ready"): "running",
    ("running", "suspend"): "suspending",
    ("suspending", "suspended"): "suspended",
    # It could not be saved, and goes on.
    ("suspending", "ready"): "running",
    ("suspending", "vmm-exited"): "stopped",
    ("suspended", "start"): "starting",
    # What it had in memory is given up.
    ("suspended", "drop"): "stopped",
    ("suspended", "remove"): "removing",
    # Nothing of it ran, or it could not be begun: it stands where it stood.
    ("starting", "suspended"): "suspended",
    ("stopped", "restore"): "restoring",
    ("suspended", "restore"): "restoring",
    ("restoring", "restored"): "stopped",
    ("restoring", "suspended"): "suspended",
    # A new machine that begins as another one was saved.
    ("creating", "suspended"): "suspended",
}

PERMITS: Final[dict[MachineStatus, frozenset[Action]]] = {
    "creating": frozenset(),
    "stopped": frozenset({"start", "restart", "remove", "snapshot", "restore"}),
    "starting": frozenset({"stop", "restart", "kill"}),
    "running": frozenset({"stop", "restart", "kill", "exec", "suspend", "fork", "snapshot"}),
    "stopping": frozenset({"kill"}),
    "suspending": frozenset({"kill"}),
    "suspended": frozenset({"start", "stop", "restart", "kill", "snapshot", "restore"}),
    "restoring": frozenset(),
    "removing": frozenset(),
}

_DOING: Final[dict[Action, str]] = {
    "start": "be started",
    "stop": "be stopped",
    "restart": "be restarted",
    "kill": "be killed",
    "remove": "be removed",
    "exec": "run commands",
    "suspend": "be suspended",
    "fork": "be forked",
    "snapshot": "be saved",
    "restore": "be restored",
}
_NEXT_STEP: Final[dict[tuple[MachineStatus, Action], str]] = {
    ("stopped", "exec"): "start it with: vmgr start {name}",
    ("starting", "remove"): "stop it first, or use: vmgr rm -f {name}",
    ("running", "remove"): "stop it first, or use: vmgr rm -f {name}",
    ("stopping", "remove"): "wait until it has stopped, or use: vmgr rm -f {name}",
    ("starting", "exec"): "wait until it runs",
    ("stopping", "exec"): "start it again once it has stopped",
    ("stopping", "start"): "wait until it has stopped",
    ("stopping", "stop"): "wait until it has stopped, or use: vmgr kill {name}",
    ("stopping", "restart"): "start it again once it has stopped",
    ("stopped", "stop"): "nothing needs to be done",
    ("stopped", "kill"): "nothing needs to be done",
    ("stopped", "suspend"): "nothing runs in it; start it with: vmgr start {name}",
    ("stopped", "fork"): "start it with: vmgr start {name}",
    ("suspended", "suspend"): "nothing needs to be done",
    ("suspended", "remove"): "what runs in it would be lost; if so be it: vmgr rm -f {name}",
    ("suspended", "exec"): "resume it with: vmgr resume {name}",
    ("running", "restore"): "stop it first, or use: vmgr snapshot restore -f",
}


def next_status(name: str, status: MachineStatus, trigger: Trigger) -> MachineStatus:
    """The status that `trigger` leads to from `status`.

    Args:
        name: the machine's, for the error.

    Raises:
        WrongStateError: the table has no such transition.
    """
    try:
        return TRANSITIONS[status, trigger]
    except KeyError:
        needed = [before for before in STATUSES if (before, trigger) in TRANSITIONS]
        raise WrongStateError(
            f"machine {name} is {status}, where {trigger!r} cannot happen",
            details={"machine": name, "seen": status, "needed": needed},
        ) from None


def check_permits(name: str, status: MachineStatus, action: Action) -> None:
    """See that a machine in `status` may do `action`.

    Args:
        name: the machine's, for the error.

    Raises:
        WrongStateError: it may not; `details` has the status seen and those needed.
    """
    if action in PERMITS[status]:
        return
    needed = [s for s in STATUSES if action in PERMITS[s]]
    step = _NEXT_STEP.get((status, action), "wait until that is done")
    if status == "removing":
        step = "create it again once it is gone"
    raise WrongStateError(
        f"machine {name} is {status}, so it cannot {_DOING[action]}",
        next_step=step.format(name=name),
        details={"machine": name, "seen": status, "needed": needed},
    )
