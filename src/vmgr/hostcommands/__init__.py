"""Commands of machines on this computer, as far as the person lets them (docs/host-commands.md).

`conversation`, `paths`, `rights`, `bounds` and `desktop` know no I/O; `running` starts what was
allowed.
"""
