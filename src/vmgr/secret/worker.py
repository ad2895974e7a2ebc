"""One request to the Secret Service: `ls`, `get NAME`, `set NAME` (from stdin), `rm NAME`.

Exit codes: 0 done, 3 no Secret Service, 4 it failed (why: the last line of stderr), 5 no such
secret.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from vmgr.secret.names import MAX_SECRET

__all__ = ["main"]

DONE: Final = 0
NO_SERVICE: Final = 3
FAILED: Final = 4
MISSING: Final = 5
_APPLICATION: Final = "vmgr"
_UNLOCK: Final = 50.0


def main(arguments: list[str]) -> int:
    """See the module's description."""
    from secretstorage.exceptions import SecretServiceNotAvailableException, SecretStorageException

    verb, name = arguments
    try:
        return _ask(verb, name)
    except SecretServiceNotAvailableException:
        return NO_SERVICE
    except (SecretStorageException, OSError) as error:
        sys.stderr.write(f"{str(error) or type(error).__name__}\n")
        return FAILED


def _ask(verb: str, name: str) -> int:
    import secretstorage

    try:
        bus = secretstorage.dbus_init()
    except OSError:  # the session has ended
        return NO_SERVICE
    if not secretstorage.check_service_availability(bus):
        return NO_SERVICE
    return _use(bus, verb, name)


def _use(bus: Any, verb: str, name: str) -> int:
    import secretstorage

    collection = secretstorage.get_default_collection(bus)
    # Says True where that was refused.
    if collection.is_locked() and collection.unlock(timeout=_UNLOCK):
        sys.stderr.write("it is locked\n")
        return FAILED
    wanted = {"application": _APPLICATION, **({"name": name} if name else {})}
    if verb == "set":
        value = sys.stdin.buffer.read(MAX_SECRET)
        collection.create_item(f"vmgr secret {name}", wanted, value, replace=True)
        return DONE
    found = list(collection.search_items(wanted))
    if verb == "ls":
        names = [item.get_attributes().get("name", "") for item in found]
        sys.stdout.write("".join(f"{n}\n" for n in names if n))
    elif not found:
        return MISSING
    elif verb == "rm":
        for item in found:
            item.delete()
    else:
        os.write(1, found[0].get_secret())
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
