"""Rules about the code itself, each with its reason."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from pathlib import Path

import pytest

from vmgr.artifact.tools import PACKAGES

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {
    ".git", ".venv", ".dev", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis",
    "__pycache__", "target", "dist", "results", "_bin", "artifacts", "corpus",
}  # fmt: skip


def project_files() -> list[Path]:
    found: list[Path] = []
    for directory, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in SKIPPED]
        found += [Path(directory) / name for name in files]
    return found


SOURCES = sorted((ROOT / "src").rglob("*.py"))
OWN_SPAWNER = ROOT / "src/vmgr/spawner"


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


# -- one way to start a process ------------------------------------------------------------------
# What a child inherits is decided in one place (vmgr.spawner); every other way is banned.

FORBIDDEN_MODULES = {
    "subprocess", "multiprocessing", "_posixsubprocess", "pty", "popen2", "pexpect",
    "concurrent.futures.process",
}  # fmt: skip
FORBIDDEN_CALLS = re.compile(
    r"os\.(fork|forkpty|system|popen|(exec|spawn)[lv]p?e?|posix_spawnp?)"
    r"|asyncio\.create_subprocess_(exec|shell)|asyncio\.subprocess(\.\w+)*"
    r"|\w+\.subprocess_(exec|shell)|(concurrent\.)?futures\.ProcessPoolExecutor"
    r"|pty\.(fork|spawn)"
)


def dotted(node: ast.expr) -> str:
    """`a.b.c` for the expression a.b.c; an unknown base becomes `_`."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "_"


def names_used(tree: ast.AST) -> list[tuple[int, str]]:
    """Every module, imported name and attribute in full, with import aliases resolved."""
    aliases: dict[str, str] = {}
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                aliases[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.partition(".")[0]
                )
                found.append((node.lineno, name.name))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append((node.lineno, node.module))
            for name in node.names:
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"
                found.append((node.lineno, f"{node.module}.{name.name}"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            base, _, rest = dotted(node).partition(".")
            found.append((node.lineno, f"{aliases.get(base, base)}.{rest}"))
    return found


def ways_to_start_a_process(source: str) -> list[str]:
    return [
        f"line {line}: {name}"
        for line, name in names_used(ast.parse(source))
        if name in FORBIDDEN_MODULES or FORBIDDEN_CALLS.fullmatch(name)
    ]


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess",
        "from subprocess import run",
        "import subprocess as s",
        "def f():\n    import multiprocessing.pool, multiprocessing",
        "import os\nos.fork()",
        "import os as o\no.execvpe('a', [], {})",
        "from os import posix_spawn",
        "from os import system as s",
        "import asyncio\nasyncio.create_subprocess_exec('x')",
        "from asyncio import create_subprocess_shell",
        "import asyncio\nasyncio.get_running_loop().subprocess_exec(None)",
        "from concurrent.futures import ProcessPoolExecutor",
        "import pty",
    ],
)
def test_the_rule_sees_every_way(source: str) -> None:
    assert ways_to_start_a_process(source)


def test_the_rule_lets_the_rest_pass() -> None:
    source = "import os, asyncio\nos.execute_nothing\nos.path.join('a')\nasyncio.create_task\n"
    assert ways_to_start_a_process(source) == []


def test_only_the_spawner_starts_processes() -> None:
    broken = {
        relative(path): ways
        for path in SOURCES
        if not path.is_relative_to(OWN_SPAWNER)
        and (ways := ways_to_start_a_process(path.read_text()))
    }
    assert broken == {}


# -- nothing sleeps to wait ----------------------------------------------------------------------
# A sleep is either too short, on a busy computer, or too long. Events, fds and deadlines instead.


def sleeps(source: str) -> list[str]:
    # asyncio.sleep(0) does not wait: it gives others a turn.
    tree = ast.parse(source)
    turns = {
        node.func.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and len(node.args) == 1
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value == 0
        and dotted(node.func) == "asyncio.sleep"
    }
    return [
        f"line {line}: {name}"
        for line, name in names_used(tree)
        if name in {"asyncio.sleep", "time.sleep"} and line not in turns
    ]


def test_the_sleep_rule_has_teeth() -> None:
    assert sleeps("import time as t\nt.sleep(1)")
    assert sleeps("from asyncio import sleep")
    assert sleeps("import asyncio\nasync def f():\n    await asyncio.sleep(0.1)")
    assert not sleeps("import asyncio\nasync def f():\n    await asyncio.sleep(0)")


def test_nothing_sleeps() -> None:
    broken = {relative(path): found for path in SOURCES if (found := sleeps(path.read_text()))}
    assert broken == {}


# -- only programs' main modules install signal handlers -----------------------------------------
# A library that does takes them from the program it is in. context.py is main's own first step.


def test_only_main_modules_install_signal_handlers() -> None:
    allowed = {"src/vmgr/helper/main.py", "src/vmgr/helper/context.py", "src/vmgr/ssh/main.py"}
    handlers = re.compile(r"signal\.(signal|set_wakeup_fd|siginterrupt)|\w+\.add_signal_handler")
    broken = [
        f"{relative(path)}:{line}: {name}"
        for path in SOURCES
        if relative(path) not in allowed and not relative(path).startswith("src/vmgr/cli/")
        for line, name in names_used(ast.parse(path.read_text()))
        if handlers.fullmatch(name)
    ]
    assert broken == []


# -- where packages come from is the person's configuration --------------------------------------

# Spelled in pieces, so that this file passes its own test.
REGISTRY_HOSTS = ["pypi" + ".org", "python" + "hosted.org", "crates" + ".io", "deb.debian" + ".org"]


def test_no_file_names_a_package_registry() -> None:
    # Cargo.lock's `source` lines are cargo's own names for the default registry.
    found = [
        f"{relative(path)}: {host}"
        for path in project_files()
        if path.name != "Cargo.lock"
        for host in REGISTRY_HOSTS
        if host.encode() in path.read_bytes()
    ]
    assert found == []


def test_locks_hold_versions_only() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        for line in lock.read_text().splitlines():
            assert line.startswith("#") or re.fullmatch(r"[a-z0-9._-]+==[\w.+!]+", line), line


# -- every dependency is explained ---------------------------------------------------------------


def declared_dependencies() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
    ]
    names = {re.split(r"[<>=!~\[; ]", requirement)[0] for requirement in requirements}
    for manifest in ("agent/Cargo.toml", "share-server/Cargo.toml"):
        crate = tomllib.loads((ROOT / manifest).read_text())
        for table in ("dependencies", "dev-dependencies", "build-dependencies"):
            names |= set(crate.get(table, {}))
    return names


def explained_dependencies() -> set[str]:
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_dependency_is_explained() -> None:
    assert declared_dependencies() - explained_dependencies() == set()


def test_every_explained_package_is_one_that_dev_installs() -> None:
    text = (ROOT / "scripts/packages.sh").read_text()
    packages = set(" ".join(re.findall(r"^  '([^:']+):", text, re.MULTILINE)).split())
    assert packages, "the table in packages.sh was not found"
    explained = explained_dependencies()
    assert packages - explained == set()
    asked_for = set(PACKAGES.values())  # what vmgr itself may tell a person to install
    assert asked_for - explained == set()
    assert explained - packages - asked_for - declared_dependencies() == set(), "no longer used"


# -- sizes ---------------------------------------------------------------------------------------

LONGEST = 600


def test_files_are_short() -> None:
    """One subject each. A file that has to be longer is two subjects."""
    kinds = {".py", ".rs", ".sh"}
    long = {
        relative(path): lines
        for path in project_files()
        if path.suffix in kinds and (lines := path.read_bytes().count(b"\n")) > LONGEST
    }
    assert long == {}


def test_tests_mirror_packages() -> None:
    """tests/x/test_*.py test the package src/vmgr/x; beside them stand tests of the whole."""
    lost = {
        relative(path.parent)
        for path in (ROOT / "tests").glob("*/**/test_*.py")
        if not (ROOT / "src/vmgr" / path.relative_to(ROOT / "tests").parent).is_dir()
    }
    assert lost == set()
