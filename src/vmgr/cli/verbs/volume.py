"""`vmgr volume`: named disks for data that outlives machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.api.volumes import CreateVolume
from vmgr.cli.connection import client
from vmgr.cli.output import bytes_text, print_json, table
from vmgr.cli.parser import Parser, machine_argument, size, volume_use
from vmgr.cli.several import for_each

if TYPE_CHECKING:
    import argparse

    from vmgr.api.volumes import VolumeInfo, VolumeUser

DESCRIPTION = """Make, list, grow and remove volumes, and give them to machines, also to running
ones. A volume is a disk with a name: it is as quick as the machine's own, stays when the machine
goes, and takes no more space than what is in it. One machine at a time writes to it; several may
read it (:ro) while none writes."""
EXAMPLES = """examples:
  vmgr volume create data --size 50G
  vmgr create --volume data:/srv/data web
  vmgr run --volume data:/srv:ro -- ls /srv
  vmgr volume attach web cache:/var/cache
  vmgr volume resize data 100G
  vmgr volume detach web cache"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, dest="volume_verb", parser_class=Parser
    )

    def verb(name: str, action: object, summary: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
        made.set_defaults(action=action)
        return made

    create = verb("create", _create, "make an empty volume")
    create.add_argument("volume", metavar="NAME", help="what to call it")
    create.add_argument("--size", type=size, metavar="SIZE", help="like 50G (default: 10G)")
    listing = verb("ls", _list, "list volumes and which machines have them")
    listing.add_argument("-q", "--quiet", action="store_true", help="only the names")
    remove = verb("rm", _remove, "remove volumes that no machine has")
    resize = verb("resize", _resize, "grow a volume, also while a machine uses it")
    attach = verb("attach", _attach, "give a machine a volume, also while it runs")
    machine_argument(attach)
    detach = verb("detach", _detach, "take a volume from a machine, also while it runs")
    machine_argument(detach)
    for name in (
        remove.add_argument("volumes", metavar="NAME", nargs="+", help="volumes"),
        resize.add_argument("volume", metavar="NAME", help="the volume"),
        attach.add_argument(
            "use", type=volume_use, metavar="NAME[:PATH][:ro]",
            help="the volume, where it is to be (else /mnt/NAME), and whether it is only read",
        ),
        detach.add_argument("volume", metavar="VOLUME", help="the volume"),
    ):  # fmt: skip
        name.completer = "volumes"  # type: ignore[attr-defined]  # read by vmgr.cli.completing
    resize.add_argument("size", type=size, metavar="SIZE", help="its new size, like 100G")
    for made in (create, listing, resize, attach, detach):
        made.add_argument("--json", action="store_true", help="as JSON")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    result: int = options.action(options)
    return result


def _create(options: argparse.Namespace) -> int:
    made = client().volume_create(CreateVolume(name=options.volume, size_bytes=options.size))
    return _show(options, made, made.name)


def _list(options: argparse.Namespace) -> int:
    volumes = client().volume_list()
    if options.json:
        print_json(volumes)
    elif options.quiet:
        for volume in volumes:
            print(volume.name)
    else:
        table(
            ("NAME", "SIZE", "USED", "MACHINES"),
            [
                (
                    v.name, bytes_text(v.size_bytes), bytes_text(v.used_bytes),
                    ", ".join(map(_user, v.machines)) or None,
                )
                for v in volumes
            ],
        )  # fmt: skip
    return 0


def _user(user: VolumeUser) -> str:
    return f"{user.machine}:{user.path}{':ro' if user.read_only else ''}"


def _remove(options: argparse.Namespace) -> int:
    helper = client()

    def remove(name: str) -> str:
        removed = helper.volume_remove(name)
        return f"removed {removed.name} ({bytes_text(removed.used_bytes)})"

    return for_each(options.volumes, remove)


def _resize(options: argparse.Namespace) -> int:
    resized = client().volume_resize(options.volume, options.size)
    return _show(options, resized, f"{resized.name} has {bytes_text(resized.size_bytes)}")


def _attach(options: argparse.Namespace) -> int:
    machine = client().volume_attach(options.name, options.use)
    path = next(use.path for use in machine.volumes if use.volume == options.use.volume)
    return _show(options, machine, f"{options.use.volume} is at {machine.name}:{path}")


def _detach(options: argparse.Namespace) -> int:
    machine = client().volume_detach(options.name, options.volume)
    return _show(options, machine, f"{machine.name} is without {options.volume}")


def _show(options: argparse.Namespace, made: VolumeInfo | object, line: str) -> int:
    if options.json:
        print_json(made)
    else:
        print(line)
    return 0
