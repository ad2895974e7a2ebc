"""The lifecycle table is small, so all of it is tested: each status, trigger and action."""

import itertools

import pytest

from vmgr.api.models import MachineStatus
from vmgr.errors import WrongStateError
from vmgr.machine.lifecycle import (
    ACTIONS,
    PERMITS,
    STATUSES,
    TRANSITIONS,
    TRIGGERS,
    Action,
    Trigger,
    check_permits,
    next_status,
)

# Written down a second time on purpose: a change of the table must be meant.
EXPECTED: dict[str, dict[str, str]] = {
    "creating": {"created": "stopped", "remove": "removing", "suspended": "suspended"},
    "stopped": {"start": "starting", "remove": "removing", "restore": "restoring"},
    "starting": {
        "ready": "running",
        "stop": "stopping",
        "vmm-exited": "stopped",
        "suspended": "suspended",
    },
    "running": {"stop": "stopping", "vmm-exited": "stopped", "suspend": "suspending"},
    "suspending": {"suspended": "suspended", "ready": "running", "vmm-exited": "stopped"},
    "suspended": {
        "start": "starting",
        "drop": "stopped",
        "remove": "removing",
        "restore": "restoring",
    },
    "restoring": {"restored": "stopped", "suspended": "suspended"},
    "stopping": {"vmm-exited": "stopped", "stop-failed": "running", "ready": "running"},
    "removing": {},
}


@pytest.mark.parametrize(("status", "trigger"), [*itertools.product(STATUSES, TRIGGERS)])
def test_every_transition(status: MachineStatus, trigger: Trigger) -> None:
    expected = EXPECTED[status].get(trigger)
    if expected is not None:
        assert next_status("box", status, trigger) == expected
        return
    with pytest.raises(WrongStateError) as caught:
        next_status("box", status, trigger)
    assert caught.value.details["machine"] == "box"
    assert caught.value.details["seen"] == status
    needed = caught.value.details["needed"]
    assert needed == [s for s in STATUSES if trigger in EXPECTED[s]]


@pytest.mark.parametrize(("status", "action"), [*itertools.product(STATUSES, ACTIONS)])
def test_every_permission(status: MachineStatus, action: Action) -> None:
    if action in PERMITS[status]:
        check_permits("box", status, action)
        return
    with pytest.raises(WrongStateError) as caught:
        check_permits("box", status, action)
    error = caught.value
    assert error.message.startswith(f"machine box is {status}, so it cannot be ") or (
        error.message == f"machine box is {status}, so it cannot run commands"
    )
    assert error.next_step
    assert "{" not in error.next_step
    assert error.details == {
        "machine": "box",
        "seen": status,
        "needed": [s for s in STATUSES if action in PERMITS[s]],
    }


def test_what_is_permitted_has_a_transition() -> None:
    triggers: dict[Action, Trigger] = {"start": "start", "stop": "stop", "remove": "remove"}
    for status, action in itertools.product(STATUSES, triggers):
        # A suspended machine goes on before it is stopped.
        if action in PERMITS[status] and (status, action) != ("suspended", "stop"):
            assert (status, triggers[action]) in TRANSITIONS


def test_a_vmm_can_end_in_every_status_that_has_one() -> None:
    for status in STATUSES:
        if "kill" in PERMITS[status] and status != "suspended":
            assert next_status("box", status, "vmm-exited") == "stopped"


def test_every_status_is_reached_and_every_life_can_end() -> None:
    reached = {"creating", *TRANSITIONS.values()}
    assert reached == set(STATUSES)
    ending = {"removing"}
    while more := {s for (s, _), after in TRANSITIONS.items() if after in ending} - ending:
        ending |= more
    assert ending == set(STATUSES)
