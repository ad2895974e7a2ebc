"""Build hook: a wheel carries the agent, built here with cargo, as `vmgr/_bin/vmgr-agent`.

Editable installs carry nothing: `vmgr.agent_binary` finds the checkout's own build.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The agent is a static program, so it needs nothing of any C library; the oldest tag that the
# installers of every supported Python know says so.
_TAG = "py3-none-manylinux_2_17_x86_64"
_PT_INTERP = 3  # the program header that asks for a dynamic linker, see elf(5)


class AgentBuildHook(BuildHookInterface[Any]):
    """Build the agent and put it into the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a build of kind `version` ("standard" or "editable")."""
        if self.target_name != "wheel" or version == "editable":
            return
        agent = self._build(Path(self.root) / "agent")
        build_data["pure_python"] = False
        build_data["tag"] = _TAG
        build_data["force_include"][str(agent)] = "vmgr/_bin/vmgr-agent"

    def _build(self, crate: Path) -> Path:
        cargo = shutil.which("cargo")
        if cargo is None:
            raise SystemExit(
                "vmgr's agent is built with cargo and there is none on PATH; install a Rust "
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
        agent = target / "release" / "vmgr-agent"
        if result.returncode or not agent.is_file():
            raise SystemExit("vmgr's agent could not be built; cargo's messages above say why")
        if _asks_for_dynamic_linker(agent.read_bytes()):
            raise SystemExit(f"{agent} is not a static program, so no machine could run it")
        agent.chmod(0o755)
        return agent


def _asks_for_dynamic_linker(elf: bytes) -> bool:
    """Whether a 64-bit little-endian ELF file has a PT_INTERP program header, see elf(5)."""
    (offset,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    types = (struct.unpack_from("<I", elf, offset + size * i)[0] for i in range(count))
    return _PT_INTERP in types
