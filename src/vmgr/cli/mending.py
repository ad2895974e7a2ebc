"""`vmgr doctor --fix`: run the commands that mend this host, each after a question.

They are run as they are shown: most begin with `sudo`, which asks for the password itself. Nothing
of vmgr is ever root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.confirming import can_be_asked, confirmed
from vmgr.cli.output import note
from vmgr.errors import UsageError
from vmgr.spawner import run_in_foreground

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmgr.api.models import Check

__all__ = ["mend"]


def mend(checks: Iterable[Check], *, yes: bool) -> bool:
    """Offer each fix that is a command; whether any was run.

    Raises:
        UsageError: nobody is there to be asked.
        CancelledByUserError: Ctrl-C; what was run by then was run.
    """
    wanted: dict[str, Check] = {}
    for check in checks:
        if check.runnable and check.fix is not None:
            wanted.setdefault(check.fix, check)  # one package may be what several lack
    if wanted and not yes and not can_be_asked():
        raise UsageError(
            "nobody is there to be asked before something of this computer is changed",
            next_step="call it at a terminal, or with --yes",
        )
    ran = False
    for command, check in wanted.items():
        note(f"vmgr: {check.name}: {check.summary}")
        question = f"  run this now?  {command} "
        if not (yes or confirmed(question, cancelled="nothing more was changed")):
            continue
        ran = True
        status = run_in_foreground(["/bin/sh", "-c", command])
        if not status.ok:
            note(f"vmgr: that did not work ({status}): {command}")
    return ran
