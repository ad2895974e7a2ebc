"""The file that makes our actions known to polkit."""

from __future__ import annotations

from typing import Final

__all__ = ["HOST_COMMAND", "OPENING", "policy"]

HOST_COMMAND: Final = "internal.vmgr.vmgr.host-command"
OPENING: Final = "internal.vmgr.vmgr.opening"

# Action: what it is, and what is asked. The details are `vmgr.authorization.polkit`'s.
_ACTIONS: Final = {
    HOST_COMMAND: (
        "Run a command of a machine's on this computer",
        "Machine $(machine) wants to run a command on this computer, as you: $(command)",
    ),
    OPENING: (
        "Open something of this computer to a machine, or a machine to others",
        "$(command)?",
    ),
}


def policy(uid: int) -> str:
    """The file that makes the actions known to polkit, with `uid` as their owner."""
    actions = "\n".join(_action(action, *texts, uid) for action, texts in _ACTIONS.items())
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE policyconfig PUBLIC "-//freedesktop//DTD PolicyKit Policy Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/PolicyKit/1/policyconfig.dtd">
<policyconfig>
  <vendor>vmgr</vendor>
  <icon_name>internal.vmgr.vmgr</icon_name>
{actions}
</policyconfig>
"""


def _action(action: str, description: str, message: str, uid: int) -> str:
    return f"""  <action id="{action}">
    <description>{description}</description>
    <message>{message}</message>
    <defaults>
      <allow_any>auth_self</allow_any>
      <allow_inactive>auth_self</allow_inactive>
      <allow_active>auth_self</allow_active>
    </defaults>
    <annotate key="org.freedesktop.policykit.owner">unix-user:{uid}</annotate>
  </action>"""
