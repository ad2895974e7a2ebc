"""The file that makes our action known to polkit."""

from __future__ import annotations

from typing import Final

__all__ = ["ACTION", "policy"]

ACTION: Final = "internal.vmgr.vmgr.host-command"


def policy(uid: int) -> str:
    """The file that makes the action known to polkit, with `uid` as its owner."""
    message = "Machine $(machine) wants to run a command on this computer, as you: $(command)"
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE policyconfig PUBLIC "-//freedesktop//DTD PolicyKit Policy Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/PolicyKit/1/policyconfig.dtd">
<policyconfig>
  <vendor>vmgr</vendor>
  <icon_name>internal.vmgr.vmgr</icon_name>
  <action id="{ACTION}">
    <description>Run a command of a machine's on this computer</description>
    <message>{message}</message>
    <defaults>
      <allow_any>auth_self</allow_any>
      <allow_inactive>auth_self</allow_inactive>
      <allow_active>auth_self</allow_active>
    </defaults>
    <annotate key="org.freedesktop.policykit.owner">unix-user:{uid}</annotate>
  </action>
</policyconfig>
"""
