"""Completion as a shell asks for it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest

from vmgr.api import models as m
from vmgr.cli.verbs import VERBS

from .peer import Connection, Peer

if TYPE_CHECKING:
    from .conftest import Command


def complete(vmgr: Command, line: str) -> list[str]:
    """What the shell would offer after `line`."""
    with tempfile.NamedTemporaryFile() as answer:
        environment = {
            **vmgr.environment,
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_STDOUT_FILENAME": answer.name,
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "COMP_TYPE": "9",
        }
        done = vmgr(env=environment)
        assert (done.stdout, done.stderr) == ("", "")
        return answer.read().decode().split()


def machine(name: str) -> m.MachineInfo:
    return m.MachineInfo(
        id="0123456789ab", name=name, status="stopped", status_reason=None, image="debian",
        image_digest="sha256:0", kernel="k", cpus=1, memory_bytes=1, disk_bytes=1,
        disk_used_bytes=1, ephemeral=False, created_at=0, started_at=None, boot_seconds=None,
        boot_id=None, init=None, vmm=None,
    )  # fmt: skip


def test_verbs_and_options(vmgr: Command) -> None:
    assert set(complete(vmgr, "vmgr ")) >= VERBS.keys()
    assert complete(vmgr, "vmgr sta") == ["start"]
    assert complete(vmgr, "vmgr create --mem") == ["--memory"]
    assert set(complete(vmgr, "vmgr helper st")) == {"start", "stop", "status"}


def test_names_come_from_the_helper(vmgr: Command) -> None:
    def script(connection: Connection) -> None:
        connection.answer([machine("web"), machine("worker"), machine("db")])

    with Peer(vmgr.paths.helper_socket, script):
        assert complete(vmgr, "vmgr shell w") == ["web", "worker"]


def test_no_helper_is_started_to_complete_a_word(vmgr: Command) -> None:
    assert complete(vmgr, "vmgr shell w") == []
    assert not vmgr.paths.state.exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(vmgr: Command, shell: str) -> None:
    done = vmgr("completion", shell)
    assert done.returncode == 0
    assert "vmgr" in done.stdout


def test_bash_takes_the_script(vmgr: Command) -> None:
    script = vmgr("completion", "bash").stdout
    done = subprocess.run(
        ["bash", "-c", script + "\ncomplete -p vmgr"],
        capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.endswith(" vmgr\n")
