"""vmgr as a service of the person's systemd: units, the socket that is handed over, notification.

`docs/service.md` tells it for people. What the helper needs of this is small and imports nothing
(`activation`); writing the units is the CLI's.
"""
