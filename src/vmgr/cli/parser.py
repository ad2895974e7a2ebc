"""Arguments as people know them from docker and podman, and usage errors in one sentence."""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from vmgr.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmgr.api.models import PortForward, SecretUse
    from vmgr.api.shares import Share
    from vmgr.api.volumes import AttachVolume

__all__ = [
    "HOST_COMMANDS",
    "HostPorts",
    "Parser",
    "allow_option",
    "cold_option",
    "command_of",
    "environment",
    "host_access_option",
    "host_commands_options",
    "machine_argument",
    "machine_options",
    "machine_size",
    "net_option",
    "network_options",
    "port",
    "port_number",
    "secret",
    "size",
    "split_command",
    "user_options",
    "volume_option",
    "volume_use",
]

VERB: Final = "VERB"
"""How groups of verbs call theirs (`metavar`)."""
_SIZE_MIN: Final = 64 << 20  # of memory and of disks, as the API has it
_PORT: Final = re.compile(
    r"(?:(?P<address>\[[0-9a-fA-F:.]+\]|\d+(?:\.\d+){3}):)?(?P<host>\d{1,5})(?::(?P<guest>\d{1,5}))?"
    r"(?:/(?P<protocol>tcp|udp))?"
)
_HOST_PORT: Final = re.compile(r"([0-9]{1,5})(?:/(tcp|udp))?")
_PORT_MAX: Final = 65_535
HOST_COMMANDS: Final = ("none", "ask", "list", "all")
_UNITS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MAX_WIDTH: Final = 100
_REWRITES: Final = (
    (r"the following arguments are required: (.*)", r"\1 is missing"),
    (r"unrecognized arguments: (.*)", r"unknown argument \1"),
    (r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)", r'"\2" is none of \3'),
    (r"argument (\S+): expected one argument", r"\1 needs a value"),
    (r"argument (\S+): (.*)", r"\1: \2"),
)


class HostPorts(NamedTuple):
    """Ports of this computer's loopback."""

    tcp: list[int]
    udp: list[int]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `UsageError`s."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # No abbreviations: a script that uses one breaks when an option is added.
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Turn argparse's words into ours.

        Raises:
            UsageError: always.
        """
        if message == f"the following arguments are required: {VERB}":
            verbs = next(a.choices for a in self._actions if a.metavar == VERB)
            raise UsageError(
                f"{self.prog} needs a verb: {', '.join(verbs or ())}",
                next_step=f'see "{self.prog} --help"',
            )
        for pattern, words in _REWRITES:
            if re.fullmatch(pattern, message):
                message = re.sub(pattern, words, message)
                break
        raise UsageError(message, next_step=f'see "{self.prog} --help"')


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        # argparse makes one for each argument. Left to find the width out, it imports shutil.
        super().__init__(prog, max_help_position=28, width=_width())


def _width() -> int:
    try:
        columns = os.get_terminal_size(1).columns
    except OSError:
        return _MAX_WIDTH
    return max(40, min(columns - 2, _MAX_WIDTH)) if columns else _MAX_WIDTH


def size(text: str) -> int:
    """A size in bytes from text like `512M`, `2G`, `1.5GiB`; units are powers of 1,024.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f'"{text}" is not a size like 512M or 2G')
    return int(float(match[1]) * 1024 ** _UNITS[match[2]])


def machine_size(text: str) -> int:
    """The same, of a machine's memory or disk.

    Raises:
        argparse.ArgumentTypeError: it is no size, or too small for a machine.
    """
    found = size(text)
    if found < _SIZE_MIN:
        raise argparse.ArgumentTypeError(f'"{text}" is less than 64M')
    return found


def environment(text: str) -> tuple[str, str | None]:
    """`NAME=VALUE`, or `NAME` alone for the caller's own value (None).

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    name, equals, value = text.partition("=")
    if not name or "\0" in text:
        raise argparse.ArgumentTypeError(f'"{text}" is not NAME=VALUE')
    return name, value if equals else None


def secret(text: str) -> SecretUse:
    """`NAME`, `NAME=VARIABLE` or `NAME:PATH`."""
    from vmgr.api.models import SecretUse

    name, colon, path = text.partition(":")
    if colon and "=" not in name:
        return SecretUse(name=name, path=path)
    name, equals, variable = text.partition("=")
    if equals and not variable:
        raise argparse.ArgumentTypeError(f'"{text}" names no variable')
    return SecretUse(name=name, env=variable or None)


def machine_argument(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    """Declare the machine that a verb is about, or machines."""
    argument = (
        parser.add_argument("names", metavar="NAME", nargs="+", help="a machine's name")
        if many
        else parser.add_argument("name", metavar="NAME", help="the machine's name")
    )
    argument.completer = "machines"  # type: ignore[attr-defined]  # read by vmgr.cli.completing


def machine_options(parser: argparse.ArgumentParser) -> None:
    """Declare what a new machine can be given."""
    parser.add_argument("--cpus", type=_cpus, metavar="N", help="virtual CPUs")
    parser.add_argument(
        "--memory", "-m", type=machine_size, metavar="SIZE", help="memory, like 512M or 2G"
    )
    parser.add_argument(
        "--disk", type=machine_size, metavar="SIZE", help="the disk's size, like 20G"
    )


def cold_option(parser: argparse.ArgumentParser) -> None:
    """Declare that a start is to be a boot."""
    parser.add_argument(
        "--cold", action="store_true", help="boot, also where it could start from a template"
    )


def user_options(parser: argparse.ArgumentParser) -> None:
    """Declare as whom commands run in a new machine."""
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--user", dest="as_user", metavar="NAME",
        help="commands in it run as this user, who is made with your number and with sudo; "
        "otherwise as user.default says (vmgr config)",
    )  # fmt: skip
    who.add_argument("--root", action="store_true", help="commands in it run as root")


def network_options(parser: argparse.ArgumentParser) -> None:
    """Declare what a new machine may reach."""
    parser.add_argument(
        "-p", "--publish", action="append", type=port, default=[], dest="ports",
        metavar="[IP:]HOST:GUEST[/udp]", help="forward a port of this computer to it",
    )  # fmt: skip
    net_option(parser)
    allow_option(parser)
    host_access_option(parser)


def host_commands_options(parser: argparse.ArgumentParser) -> None:
    """Declare what a new machine may run on this computer."""
    parser.add_argument(
        "--host-commands", choices=HOST_COMMANDS, metavar="MODE",
        help="what its programs may run on this computer, as you, with host COMMAND: none, ask, "
        "list (see vmgr host-commands), all",
    )  # fmt: skip


def volume_option(parser: argparse.ArgumentParser) -> None:
    """Declare volumes of a new machine."""
    volume = parser.add_argument(
        "--volume", action="append", type=volume_use, default=[], dest="volumes",
        metavar="NAME[:PATH][:ro]", help="a volume and where it is (else /mnt/NAME); several times",
    )  # fmt: skip
    volume.completer = "volumes"  # type: ignore[attr-defined]  # read by vmgr.cli.completing


def volume_use(text: str) -> AttachVolume:
    """`NAME[:PATH][:ro]`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    from vmgr.api.volumes import AttachVolume

    name, _, rest = text.partition(":")
    path, colon, how = rest.rpartition(":")
    if how == "ro":
        read_only = True
    else:
        path, read_only = (f"{path}{colon}{how}", False)
    if not name or (path and not path.startswith("/")):
        raise argparse.ArgumentTypeError(f'"{text}" is not a volume like data:/srv/data or data')
    return AttachVolume(volume=name, path=path or None, read_only=read_only)


def share_option(parser: argparse._ActionsContainer) -> None:
    """Declare directories of this computer."""
    parser.add_argument(
        "--share", action="append", type=share, default=[], dest="shares",
        metavar="HOST[:GUEST][:ro]", help="let it see this directory of this computer",
    )  # fmt: skip


def share(text: str) -> Share:
    """`HOST[:GUEST][:ro]`; the host's path may be relative, the machine's not.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    from vmgr.api.shares import Share

    rest, read_only = text, False
    for ending in (":ro", ":rw"):
        if rest.endswith(ending):
            rest, read_only = rest.removesuffix(ending), ending == ":ro"
            break
    host, colon, guest = rest.rpartition(":")
    if not colon or (not guest.startswith("/") and os.path.isdir(rest)):  # noqa: PTH112 (no Path on the CLI's way)
        host, guest = rest, ""
    elif not guest.startswith("/"):
        raise argparse.ArgumentTypeError(
            f'"{guest}" is not an absolute path in the machine, as in DIR:/mnt/dir'
        )
    if not host:
        raise argparse.ArgumentTypeError(f'"{text}" is not HOST[:GUEST][:ro]')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the path is not UTF-8, which shares need") from None
    return Share(
        host=os.path.abspath(os.path.expanduser(host)),  # noqa: PTH100, PTH111 (likewise)
        guest=guest or None,
        read_only=read_only,
    )


def net_option(parser: argparse.ArgumentParser) -> None:
    """Declare which networks a machine reaches."""
    parser.add_argument(
        "--auto-ports", action=argparse.BooleanOptionalAction,
        help="whether what it listens on appears on this computer by itself",
    )  # fmt: skip
    parser.add_argument(
        "--net", choices=("full", "internet", "none"), metavar="WHAT",
        help="what it may reach: full, internet (not this computer, its LAN, other machines), none",
    )  # fmt: skip


def allow_option(parser: argparse._ActionsContainer) -> None:
    """Declare an allow-list."""
    parser.add_argument(
        "--allow", action="append", metavar="DOMAIN|ADDRESS|CIDR[:PORT][/udp]",
        help="of that, let it reach this and nothing else; may be given several times",
    )  # fmt: skip


def host_access_option(parser: argparse.ArgumentParser, *, none: bool = False) -> None:
    """Declare ports of this computer's loopback."""
    parser.add_argument(
        "--host-access", type=_none_or_ports if none else _ports, metavar="PORT[/udp][,PORT…]",
        help="let it reach these ports of this computer's 127.0.0.1, as host.vmgr.internal"
        + ("; or: none" if none else ""),
    )  # fmt: skip


def _none_or_ports(text: str) -> HostPorts:
    return HostPorts([], []) if text == "none" else _ports(text)


def _ports(text: str) -> HostPorts:
    found = HostPorts([], [])
    for one in text.split(","):
        match = _HOST_PORT.fullmatch(one)
        if match is None or not 0 < int(match[1]) <= _PORT_MAX:
            raise argparse.ArgumentTypeError(f'"{text}" is not a list of ports like 5432,53/udp')
        (found.udp if match[2] == "udp" else found.tcp).append(int(match[1]))
    return found


def port(text: str) -> PortForward:
    """`[IP:]HOST:GUEST[/udp]`, or one port for both.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    from vmgr.api.models import PortForward

    match = _PORT.fullmatch(text)
    if match is not None:
        host = int(match["host"])
        guest = int(match["guest"] or host)
        if 0 < host <= _PORT_MAX and 0 < guest <= _PORT_MAX:
            return PortForward(
                host_port=host,
                guest_port=guest,
                protocol="udp" if match["protocol"] == "udp" else "tcp",
                address=(match["address"] or "127.0.0.1").strip("[]"),
            )
    raise argparse.ArgumentTypeError(f'"{text}" is not a port like 8080:80 or 127.0.0.1:53:53/udp')


def port_number(text: str) -> int:
    """One port.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or not 0 < int(text) <= _PORT_MAX:
        raise argparse.ArgumentTypeError(f'"{text}" is not a port from 1 to {_PORT_MAX}')
    return int(text)


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Split arguments at the first `--`: what is ours, and the command (None: there is no `--`)."""
    if "--" not in argv:
        return list(argv), None
    at = argv.index("--")
    return list(argv[:at]), list(argv[at + 1 :])


def command_of(words: list[str], after_dashes: list[str] | None) -> list[str]:
    """The command, given docker's way (`exec NAME CMD`) or after `--`.

    A `--` after words that already belong to the command is one of its arguments.
    """
    if after_dashes is None:
        return words
    return [*words, "--", *after_dashes] if words else after_dashes


def _cpus(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:  # noqa: PLR2004 (as the API has it)
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of CPUs from 1 to 256')
    return int(text)
