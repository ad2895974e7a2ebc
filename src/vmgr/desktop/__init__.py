"""The person's desktop, by its session bus: who we are on it, notifications, showing a file.

`bus` holds the connection, `notifications` is what the rest of the helper uses: `notify(...)`
returns at once, never fails, and does nothing where there is no desktop.
"""

from vmgr.desktop.bus import SessionBus
from vmgr.desktop.notifications import Action, Notification, Notifications

__all__ = ["Action", "Notification", "Notifications", "SessionBus"]
