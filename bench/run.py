"""Measure vmgr on this computer: a table here, JSON in bench/results/.

Ratios are of pairs measured back to back within one run; compare those between computers and days,
not the seconds. Nothing of the person's own machines or helper is touched: the bench has a home of
its own (.dev/bench), where the image it built is kept for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import boot
import egress
import forwarding
import helper
import host_commands
import ports
import roundtrip
import sandbox
import saved
import shares
import ssh
import template
from clock import Row, table
from vmgr.api.models import ImageBuild
from vmgr.client.sync import Client
from vmgr.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
PARTS: dict[str, Callable[[Client, str | None, int], list[Row]]] = {
    "boot": boot.measure,
    "egress": egress.measure,
    "exec": roundtrip.measure,
    "forwarding": forwarding.measure,
    "helper": helper.measure,
    "host": host_commands.measure,
    "ports": ports.measure,
    "sandbox": sandbox.measure,
    "saved": saved.measure,
    "shares": shares.measure,
    "ssh": ssh.measure,
    "template": template.measure,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench", description="Measure vmgr here.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("-n", "--rounds", type=int, default=7, help="pairs per row (default 7)")
    parser.add_argument("--image", help="the image of the machines (default: the configured one)")
    parser.add_argument("--home", type=Path, default=ROOT / ".dev/bench", help="VMGR_HOME to use")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    return given


def about(client: Client) -> dict[str, object]:
    """What the numbers depend on."""
    status, version = client.helper_status(), client.version()
    return {
        "vmgr": version.version,
        "qemu": version.qemu,
        "python": platform.python_version(),
        "accelerator": status.accelerator,
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main() -> None:
    given = arguments()
    os.environ["VMGR_HOME"] = str(given.home.resolve())
    rows: list[Row] = []
    with Client(Paths.from_environment()) as client:
        try:
            facts = about(client)
            image = given.image or str(client.config_get("image.default").value)
            print(f"==> the image {image} (built when it is missing)", file=sys.stderr)
            client.image_build(ImageBuild(recipe=image))
            for name in given.parts or PARTS:
                print(f"==> measuring: {name}", file=sys.stderr)
                rows += PARTS[name](client, given.image, given.rounds)
        finally:
            helper.stop(client)
    results = ROOT / "bench/results"
    results.mkdir(exist_ok=True)
    out = results / f"{str(facts['at']).replace(':', '')}.json"
    out.write_text(json.dumps({"about": facts, "rows": [row.as_json() for row in rows]}, indent=1))
    print(", ".join(f"{key} {value}" for key, value in facts.items()), table(rows), sep="\n")
    print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
