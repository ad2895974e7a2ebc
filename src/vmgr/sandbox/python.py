"""What a Python program with our modules is made of, for those that are locked in."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import vmgr

__all__ = ["python_files"]


def python_files() -> list[Path]:
    """Python's real program, then the files and directories that it reads. Blocks."""
    places = sysconfig.get_paths()
    found = [Path(places[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = Path(vmgr.__file__).resolve().parent
    # A virtual environment's program is a link, and finds itself by the file beside it.
    program = Path(sys.executable)
    found += [ours, program, program.resolve(), Path(sys.prefix, "pyvenv.cfg")]
    # One that is built as a library has it here.
    found += Path(sys.base_prefix, "lib").glob("libpython3*.so*")
    # Not all of `sys.path`: what a program was started in may be on it.
    added = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    found += [Path(path) for path in added if len(path) > 1 and path.startswith("/")]
    return [program.resolve(), *found, *(path.resolve() for path in found)]
