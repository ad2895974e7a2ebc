"""`python -m vmgr.helper`: run the helper in the foreground."""

from __future__ import annotations

import os
import sys

from vmgr.service.environment import is_passed_on


def _start_clean() -> None:
    """Begin again with an environment of our own, where this one holds anything else (rule 9).

    systemd's user manager gives its services all that a desktop has imported into it. It must be
    gone from the process itself: a child's is made from ours.
    """
    clean = {name: value for name, value in os.environ.items() if is_passed_on(name)}
    if clean.keys() != os.environ.keys():
        from vmgr.spawner.becoming import become

        become(sys.executable, sys.orig_argv, clean)


if __name__ == "__main__":
    _start_clean()
    from vmgr.helper.main import main

    main()
