"""`python -m vmgr.cli.unit begin|end`: the commands of the unit `vmgr-session.service`."""

from __future__ import annotations

import sys

from vmgr.cli.service import session_begin, session_end
from vmgr.errors import VmgrError

__all__ = ["main"]

_COMMANDS = {"begin": session_begin, "end": session_end}


def main() -> int:
    """Do it; gives the exit code."""
    if len(sys.argv) != 2 or sys.argv[1] not in _COMMANDS:  # noqa: PLR2004 (and our name)
        print("vmgr: this is for systemd; it takes begin or end", file=sys.stderr)
        return 2
    try:
        return _COMMANDS[sys.argv[1]]()
    except VmgrError as error:  # in the journal
        print(f"vmgr: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
