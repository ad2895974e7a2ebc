"""Write requirements/*.lock: the exact versions that ./dev installs.

pip itself resolves (`--dry-run --report`), from whatever index it is configured with, so the files
name versions and no addresses. Run it with the oldest Python that vmgr supports.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def resolve(requirements: list[str], pinned: list[str]) -> list[str]:
    """Give `name==version` for `requirements` and all they need, `pinned` kept as they are."""
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
        "--report", "-", *requirements, *pinned,
    ]  # fmt: skip
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    report: dict[str, Any] = json.loads(output)
    found = (entry["metadata"] for entry in report["install"])
    return sorted(f"{entry['name'].lower()}=={entry['version']}" for entry in found)


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = resolve(project["project"]["dependencies"], [])
    build = resolve([*project["build-system"]["requires"], "editables"], runtime)
    dev = resolve(project["dependency-groups"]["dev"], sorted({*runtime, *build}))
    for name, lines in (
        ("runtime", runtime),
        ("build", [line for line in build if line not in runtime]),
        ("dev", [line for line in dev if line not in runtime and line not in build]),
    ):
        text = "# Written by ./dev lock; do not edit.\n" + "\n".join(lines) + "\n"
        (ROOT / "requirements" / f"{name}.lock").write_text(text)
        print(f"requirements/{name}.lock: {len(lines)} packages")


if __name__ == "__main__":
    main()
