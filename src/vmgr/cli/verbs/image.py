"""`vmgr image`: what machines start from."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from vmgr.api.models import ImageBuild, ImageImport
from vmgr.cli.connection import client
from vmgr.cli.output import age, bytes_text, fields, print_json, table
from vmgr.cli.parser import Parser, environment
from vmgr.cli.progress import ProgressLine
from vmgr.cli.several import for_each

if TYPE_CHECKING:
    import argparse

    from vmgr.api.models import ImageInfo, ImageRemoved

DESCRIPTION = "Build, import, list and remove images: the read-only disks that machines start from."
EXAMPLES = """examples:
  vmgr image build debian
  vmgr image import --name mine root.tar.gz
  vmgr image prune"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, dest="image_verb", parser_class=Parser
    )

    def verb(name: str, action: object, summary: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
        made.set_defaults(action=action)
        return made

    listing = verb("ls", _list, "list images")
    listing.add_argument("-q", "--quiet", action="store_true", help="only the names")
    info = verb("info", _info, "show all about an image")
    _image(info.add_argument("image", metavar="IMAGE", help="its name or digest"))
    build = verb("build", _build, "build an image")
    build.add_argument("recipe", metavar="RECIPE", help="what to build: debian, …")
    build.add_argument("--name", metavar="NAME", help="the image's name (default: the recipe's)")
    build.add_argument("-f", "--force", action="store_true", help="build even what is there")
    source = verb("import", _import, "make an image from a root file system's tarball")
    source.add_argument("path", metavar="TARBALL", help="plain or compressed")
    source.add_argument("--name", metavar="NAME", required=True, help="the image's name")
    source.add_argument("--init", metavar="PATH", help="what becomes PID 1; '' for none")
    source.add_argument("--user", metavar="USER", default="root", help="as whom commands run")
    source.add_argument(
        "-e", "--env", action="append", type=environment, default=[], metavar="NAME=VALUE",
        help="a variable for every command",
    )  # fmt: skip
    remove = verb("rm", _remove, "remove images")
    _image(remove.add_argument("images", metavar="IMAGE", nargs="+", help="its name or digest"))
    verb("prune", _prune, "remove the images and kernels that nothing uses")
    for made in (build, source):
        made.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    for name in ("ls", "info", "build", "import", "prune"):
        verbs.choices[name].add_argument("--json", action="store_true", help="as JSON")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    result: int = options.action(options)
    return result


def _image(argument: argparse.Action) -> None:
    argument.completer = "images"  # type: ignore[attr-defined]  # read by vmgr.cli.completing


def _list(options: argparse.Namespace) -> int:
    images = client().image_list()
    if options.json:
        print_json(images)
    elif options.quiet:
        for image in images:
            print(_name(image))
    else:
        now = time.time()
        table(
            ("NAME", "DIGEST", "SIZE", "INIT", "USED BY", "CREATED"),
            [
                (
                    ", ".join(i.names) or None, _short(i.digest), bytes_text(i.size_bytes),
                    i.init or "agent", len(i.used_by), f"{age(now - i.created_at)} ago",
                )
                for i in images
            ],
        )  # fmt: skip
    return 0


def _info(options: argparse.Namespace) -> int:
    _show(client().image_info(options.image), json=options.json)
    return 0


def _build(options: argparse.Namespace) -> int:
    request = ImageBuild(recipe=options.recipe, name=options.name, force=options.force)
    with ProgressLine(quiet=options.quiet, delay=0) as progress:
        image = client().image_build(request, progress.show)
    _made(image, options)
    return 0


def _import(options: argparse.Namespace) -> int:
    request = ImageImport(
        path=os.path.abspath(options.path),  # noqa: PTH100 (links stay as the person named them)
        name=options.name,
        init=options.init,
        default_user=options.user,
        env={name: value or "" for name, value in options.env},
    )
    with ProgressLine(quiet=options.quiet, delay=0) as progress:
        image = client().image_import(request, progress.show)
    _made(image, options)
    return 0


def _remove(options: argparse.Namespace) -> int:
    helper = client()
    return for_each(options.images, lambda name: _removed(helper.image_remove(name)))


def _prune(options: argparse.Namespace) -> int:
    removed = client().image_prune()
    if options.json:
        print_json(removed)
    else:
        print(_removed(removed))
    return 0


def _made(image: ImageInfo, options: argparse.Namespace) -> None:
    if options.json:
        print_json(image)
    else:
        print(_name(image))


def _removed(result: ImageRemoved) -> str:
    names = ", ".join(result.removed) or "nothing"
    return f"removed {names} ({bytes_text(result.freed_bytes)})"


def _name(image: ImageInfo) -> str:
    return image.names[0] if image.names else _short(image.digest)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _show(image: ImageInfo, *, json: bool) -> None:
    if json:
        print_json(image)
        return
    fields([
        ("Names", ", ".join(image.names) or "none"),
        ("Digest", image.digest),
        ("Source", image.source),
        ("Created", f"{age(time.time() - image.created_at)} ago"),
        ("Size", bytes_text(image.size_bytes)),
        ("Architecture", image.architecture),
        ("Init", image.init or "agent"),
        ("User", image.default_user),
        ("Entry point", " ".join(image.entrypoint) or None),
        *(("Variable", f"{name}={value}") for name, value in image.env.items()),
        ("Used by", ", ".join(image.used_by) or None),
    ])  # fmt: skip
