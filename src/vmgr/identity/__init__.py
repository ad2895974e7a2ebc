"""Who vmgr is to the desktop and to systemd: one name, in one place (process rule 10).

The id is a reverse domain name, as desktop entries, D-Bus and AppStream ask. Its domain is the one
under which machines have their names already, `vmgr.internal`: `.internal` is set aside for private
use, so that nobody else owns it, now or later, as they may any domain that we did not register.
"""

from __future__ import annotations

from typing import Final

__all__ = ["APP_ID", "APP_NAME", "SERVICE_UNIT", "SESSION_UNIT", "SOCKET_UNIT", "UNITS"]

APP_ID: Final = "internal.vmgr.vmgr"
"""Of the desktop entry, the icon, the AppStream data, and the helper's name on the session bus."""
APP_NAME: Final = "vmgr"
SOCKET_UNIT: Final = "vmgr-helper.socket"
SERVICE_UNIT: Final = "vmgr-helper.service"
SESSION_UNIT: Final = "vmgr-session.service"
UNITS: Final = (SOCKET_UNIT, SERVICE_UNIT, SESSION_UNIT)
