"""Asking the person whether something may be done (docs/host-commands.md, "Being asked")."""

from vmgr.authorization.authorization import Authorization
from vmgr.authorization.listener import Listener
from vmgr.authorization.polkit import Polkit

__all__ = ["Authorization", "Listener", "Polkit"]
