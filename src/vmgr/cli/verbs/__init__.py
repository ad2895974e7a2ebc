"""The table of verbs.

Each verb is the module of the same name in this package, which has

- `DESCRIPTION` and `EXAMPLES`: text for `--help`,
- `arguments(parser)`: declares its arguments,
- `execute(options)`: does it and gives the exit code.

Only the module of the verb that was called is imported.
"""

from __future__ import annotations

from typing import Final

__all__ = ["GROUPS", "VERBS", "Verb"]

GROUPS: Final = ("Machines", "In a machine", "Images", "The helper and this host")


class Verb:
    """One verb: where the overview lists it and what it says there.

    A plain class, since the tools that write classes take longer than all the rest of this file.
    """

    def __init__(self, group: str, summary: str, own_failure: int = 1) -> None:
        self.group = group
        self.summary = summary
        self.own_failure = own_failure
        """Exit code of vmgr's own failures: 125 where others belong to a command in a machine."""


VERBS: Final[dict[str, Verb]] = {
    "run": Verb(GROUPS[0], "run a command in a fresh machine, then remove it", 125),
    "create": Verb(GROUPS[0], "create a machine"),
    "start": Verb(GROUPS[0], "start machines"),
    "stop": Verb(GROUPS[0], "stop machines in an orderly way"),
    "restart": Verb(GROUPS[0], "stop and start machines"),
    "suspend": Verb(GROUPS[0], "save machines' memory to disk and free their RAM"),
    "resume": Verb(GROUPS[0], "let suspended machines go on where they stood"),
    "fork": Verb(GROUPS[0], "make running copies of a running machine"),
    "snapshot": Verb(GROUPS[0], "take, list and restore machines as they were"),
    "kill": Verb(GROUPS[0], "end machines at once, as if the power was cut"),
    "rm": Verb(GROUPS[0], "remove machines and their disks"),
    "ls": Verb(GROUPS[0], "list machines, or what is in a directory of one"),
    "info": Verb(GROUPS[0], "show all about a machine"),
    "top": Verb(GROUPS[0], "show what running machines use, as it changes"),
    "net": Verb(GROUPS[0], "show and change what a machine may reach"),
    "host-commands": Verb(GROUPS[0], "show and change what a machine may run on this computer"),
    "authorize": Verb(GROUPS[0], "answer what machines ask of you"),
    "port": Verb(GROUPS[0], "forward ports of this computer to machines"),
    "share": Verb(GROUPS[0], "let a machine see directories of this computer"),
    "ip": Verb(GROUPS[0], "show a machine's address on this computer"),
    "open": Verb(GROUPS[0], "open a machine's web page in the browser"),
    "volume": Verb(GROUPS[0], "make, list, grow, attach and detach disks for data that stays"),
    "logs": Verb(GROUPS[0], "show a machine's console and what the helper says about it"),
    "exec": Verb(GROUPS[1], "run a command in a running machine", 125),
    "shell": Verb(GROUPS[1], "open a login shell in a running machine", 125),
    "cp": Verb(GROUPS[1], "copy files into, out of and between machines"),
    "cat": Verb(GROUPS[1], "show files of machines"),
    "edit": Verb(GROUPS[1], "edit a machine's file in your editor"),
    "mount": Verb(GROUPS[1], "mount a machine's files on this computer"),
    "umount": Verb(GROUPS[1], "take machines' files from this computer again"),
    "jobs": Verb(GROUPS[1], "list the commands that run in a machine"),
    "attach": Verb(GROUPS[1], "take over the streams of a running command", 125),
    "ssh-config": Verb(GROUPS[1], "let ssh and all that uses it reach your machines"),
    "image": Verb(GROUPS[2], "build, import, list and remove images"),
    "template": Verb(GROUPS[2], "list, build and remove what machines start from in a blink"),
    "secret": Verb(GROUPS[3], "keep secrets for commands in machines"),
    "helper": Verb(GROUPS[3], "start, stop and watch the helper"),
    "doctor": Verb(GROUPS[3], "check this host and say what would mend it"),
    "config": Verb(GROUPS[3], "show and change settings"),
    "events": Verb(GROUPS[3], "follow what happens"),
    "api": Verb(GROUPS[3], "print the OpenAPI document of the helper's API"),
    "version": Verb(GROUPS[3], "show versions"),
    "completion": Verb(GROUPS[3], "print the script that completes words in your shell"),
}
