"""Build hook: a wheel carries the programs in Rust, built here with cargo, in `vmgr/_bin`.

Editable installs carry nothing: `vmgr.agent_binary` finds the checkout's own builds.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# They are static programs, so they need nothing of any C library; the oldest tag that the
# installers of every supported Python know says so.
_TAG = "py3-none-manylinux_2_17_x86_64"
_CRATES = ("agent", "share-server")  # each makes the program vmgr-NAME
_PT_INTERP = 3  # the program header that asks for a dynamic linker, see elf(5)


class AgentBuildHook(BuildHookInterface[Any]):
    """Build the programs and put them into the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a build of kind `version` ("standard" or "editable")."""
        if self.target_name != "wheel" or version == "editable":
            return
        build_data["pure_python"] = False
        build_data["tag"] = _TAG
        for name in _CRATES:
            program = self._build(Path(self.root) / name, f"vmgr-{name}")
            build_data["force_include"][str(program)] = f"vmgr/_bin/{program.name}"

    def _build(self, crate: Path, name: str) -> Path:
        cargo = shutil.which("cargo")
        if cargo is None:
            raise SystemExit(
                "vmgr's programs are built with cargo and there is none on PATH; install a Rust "
                "toolchain (Debian: apt-get install rustc-web cargo-web gcc libc6-dev)"
            )
        target = crate / "target"
        # In the crate's directory, whose .cargo/config.toml asks for a static program.
        result = subprocess.run(
            [cargo, "build", "--release", "--locked"],
            cwd=crate,
            env={**os.environ, "CARGO_TARGET_DIR": str(target)},
            check=False,
        )
        program = target / "release" / name
        if result.returncode or not program.is_file():
            raise SystemExit(f"{name} could not be built; cargo's messages above say why")
        if _asks_for_dynamic_linker(program.read_bytes()):
            raise SystemExit(f"{program} is not a static program, so it would not run everywhere")
        program.chmod(0o755)
        return program


def _asks_for_dynamic_linker(elf: bytes) -> bool:
    """Whether a 64-bit little-endian ELF file has a PT_INTERP program header, see elf(5)."""
    (offset,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    types = (struct.unpack_from("<I", elf, offset + size * i)[0] for i in range(count))
    return _PT_INTERP in types
