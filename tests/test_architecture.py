"""The code keeps to the table of packages in docs/architecture.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src/vmgr"
ROW = re.compile(r"^\| `vmgr\.(\w+)` \|[^|]+\|([^|]*)\|$", re.MULTILINE)


def permitted() -> dict[str, set[str]]:
    text = (ROOT / "docs/architecture.md").read_text()
    return {name: set(re.findall(r"\w+", imports)) for name, imports in ROW.findall(text)}


def files_of(package: str) -> list[Path]:
    directory = SOURCE / package
    return sorted(directory.rglob("*.py")) if directory.is_dir() else [SOURCE / f"{package}.py"]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vmgr."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {n.name.split(".")[1] for n in node.names if n.name.startswith("vmgr.")}
    return found - {"_version"}


def test_every_package_is_on_the_map() -> None:
    there = {
        entry.stem
        for entry in SOURCE.iterdir()
        if (entry.suffix == ".py" or (entry / "__init__.py").exists())
        and not entry.name.startswith("_")
    }
    assert there == set(permitted())


@pytest.mark.parametrize("package", sorted(permitted()))
def test_a_package_imports_only_what_it_may(package: str) -> None:
    allowed = permitted()[package] | {package}
    for path in files_of(package):
        assert imports_of(path) <= allowed, path
