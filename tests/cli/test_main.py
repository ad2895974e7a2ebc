from __future__ import annotations

import contextlib
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from vmgr.api import models as m
from vmgr.cli.main import build_parser, overview
from vmgr.cli.verbs import VERBS

from .peer import Connection, Peer

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Command


def test_without_arguments_it_shows_every_verb(vmgr: Command) -> None:
    done = vmgr()
    assert done.returncode == 0
    assert done.stdout == overview() + "\n"
    for verb, about in VERBS.items():
        assert f"  {verb} " in done.stdout
        assert about.summary in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    parser = build_parser(verb)
    text = parser.format_help()
    assert text.startswith(f"usage: vmgr {verb}")
    assert "examples:" in text
    assert f"vmgr {verb}" in (parser.epilog or "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lss"], 'vmgr: there is no verb "lss".\nTry: use "vmgr ls", or see "vmgr --help".\n'),
        (["qqq"], 'vmgr: there is no verb "qqq".\nTry: see "vmgr --help".\n'),
        (["--qqq"], 'vmgr: unknown option "--qqq".\nTry: see "vmgr --help".\n'),
        (["ls", "--qqq"], 'vmgr: unknown argument --qqq.\nTry: see "vmgr ls --help".\n'),
        (["start"], 'vmgr: NAME is missing.\nTry: see "vmgr start --help".\n'),
        (["create", "--memory", "much"],
         ('vmgr: --memory/-m: "much" is not a size like 512M or 2G.\n'
          'Try: see "vmgr create --help".\n')),
        (["create", "--cpus", "0"],
         ('vmgr: --cpus: "0" is not a number of CPUs from 1 to 256.\n'
          'Try: see "vmgr create --help".\n')),
        (["helper", "explode"],
         ("vmgr: \"explode\" is none of 'start', 'stop', 'restart', 'status', 'logs', 'install', "
          "'uninstall'.\n"
          'Try: see "vmgr helper --help".\n')),
        (["config"],
         'vmgr: vmgr config needs a verb: ls, get, set, unset.\nTry: see "vmgr config --help".\n'),
        (["helper"],
         ("vmgr: vmgr helper needs a verb: start, stop, restart, status, logs, install, "
          "uninstall.\n"
          'Try: see "vmgr helper --help".\n')),
        (["exec", "web"],
         'vmgr: the command is missing.\nTry: say it as in "vmgr exec web -- COMMAND".\n'),
    ],
)  # fmt: skip
def test_usage_errors_are_a_sentence_and_exit_with_2(
    vmgr: Command, arguments: list[str], message: str
) -> None:
    done = vmgr(*arguments)
    assert (done.returncode, done.stderr, done.stdout) == (2, message, "")
    assert not vmgr.paths.helper_socket.exists()


def test_help_and_version_do_not_start_a_helper(vmgr: Command) -> None:
    for arguments in (["--help"], ["help", "exec"], ["exec", "--help"], ["--version"], ["api"]):
        assert vmgr(*arguments).returncode == 0
    assert not vmgr.paths.state.exists()


def test_the_helpers_error_is_a_sentence_a_step_and_1(vmgr: Command) -> None:
    def script(connection: Connection) -> None:
        error = m.ErrorBody(
            code="not-found", message="there is no machine web", next_step='see "vmgr ls"'
        )
        connection.answer(m.Error(error=error), 404)

    with Peer(vmgr.paths.helper_socket, script):
        done = vmgr("info", "web")
    assert done.returncode == 1
    assert done.stderr == 'vmgr: there is no machine web.\nTry: see "vmgr ls".\n'


def test_names_from_outside_cannot_steer_the_terminal(vmgr: Command) -> None:
    def script(connection: Connection) -> None:
        error = m.ErrorBody(code="not-found", message="evil \x1b[2J\x07name")
        connection.answer(m.Error(error=error), 404)

    with Peer(vmgr.paths.helper_socket, script):
        done = vmgr("info", "web")
    assert done.stderr == "vmgr: evil \ufffd[2J\ufffdname.\n"


def test_several_are_each_tried_and_one_failure_is_a_failure(vmgr: Command) -> None:
    asked: list[str] = []

    def works(connection: Connection) -> None:
        asked.append(connection.target)
        connection.answer(m.StopReport(machine="a", method="agent", seconds=0.1))

    def fails(connection: Connection) -> None:
        asked.append(connection.target)
        connection.answer(m.Error(error=m.ErrorBody(code="conflict", message="b is busy")), 409)

    with Peer(vmgr.paths.helper_socket, works, fails, works):
        done = vmgr("kill", "a", "b", "c", "a")
    assert asked == [f"/v1/machines/{name}/kill" for name in "abc"]
    assert (done.returncode, done.stdout, done.stderr) == (1, "a\na\n", "vmgr: b is busy.\n")


def test_a_bug_is_one_line_and_a_saved_trace(vmgr: Command, tmp_path: Path) -> None:
    vmgr.paths.ensure()
    for day in range(1, 13):
        (vmgr.paths.state / f"cli-202001{day:02}T000000-1.txt").touch()
    # What looks for a verb's likes fails: nobody expected that.
    (tmp_path / "difflib.py").write_text("1 / 0\n")
    done = vmgr("lss", env={**vmgr.environment, "PYTHONPATH": str(tmp_path)})
    *others, trace = sorted(vmgr.paths.state.glob("cli-*.txt"))
    assert [path.name for path in others] == [
        f"cli-202001{day:02}T000000-1.txt" for day in range(4, 13)
    ], "the newest are kept"
    assert done.returncode == 70
    assert done.stderr == (
        f"vmgr: vmgr has a bug: ZeroDivisionError.\nTry: report it with {trace}.\n"
    )
    assert "ZeroDivisionError" in trace.read_text()
    assert "Traceback" not in done.stderr


def test_what_a_terminal_cannot_show_is_a_question_mark(vmgr: Command) -> None:
    def unicode_name(connection: Connection) -> None:
        entry = m.ConfigEntry(key="k", value="\u2713", default=1, is_set=True, description="")
        connection.answer([entry])

    with Peer(vmgr.paths.helper_socket, unicode_name):
        done = vmgr("config", "ls", env={**vmgr.environment, "PYTHONIOENCODING": "ascii:strict"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["info", "\udcff"], ["exec", "-w", "/\udcff", "web", "--", "ls"], ["cp", "web:/\udcff", "x"]],
)
def test_arguments_are_utf8(vmgr: Command, arguments: list[str]) -> None:
    with Peer(vmgr.paths.helper_socket):
        done = vmgr(*arguments)
    assert done.returncode == 2
    assert "is not UTF-8" in done.stderr


def test_a_missing_module_is_a_broken_installation_and_no_bug(
    vmgr: Command, tmp_path: Path
) -> None:
    # As if it had never been there: whoever imports it is told so.
    (tmp_path / "msgspec.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'msgspec'\", name='msgspec')"
    )
    done = vmgr("ls", env={**vmgr.environment, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr == (
        "vmgr: vmgr's installation is broken: its Python module msgspec is missing.\n"
        "Try: install vmgr again as you did before (in a checkout: ./dev clean; ./dev setup).\n"
    )
    assert list(vmgr.paths.state.parent.rglob("cli-*.txt")) == []


def test_doctor_looks_itself_where_there_is_no_helper_to_be_had(vmgr: Command) -> None:
    vmgr.paths.ensure()
    vmgr.paths.helper_lock.mkdir()  # so the helper cannot start
    done = vmgr("doctor", "--json")
    assert done.returncode == 1
    first, *rest = json.loads(done.stdout)["checks"]
    assert (first["name"], first["status"]) == ("helper", "error")
    assert first["summary"] == (
        "it cannot be asked, so this command looked itself: "
        f"cannot open {vmgr.paths.helper_lock}: Is a directory"
    )
    assert {"QEMU", "disk space", "settings"} <= {check["name"] for check in rest}


def test_a_reader_that_has_seen_enough_ends_it_quietly(vmgr: Command) -> None:
    def script(connection: Connection) -> None:
        connection.accept()
        for _ in range(200):
            connection.output(b"a line of the log\n" * 500)
        connection.vanish()

    def tolerant(connection: Connection) -> None:
        with contextlib.suppress(OSError):
            script(connection)

    with Peer(vmgr.paths.helper_socket, tolerant):
        read, write = os.pipe()
        process = vmgr.start("helper", "logs", stdout=write)
        os.close(write)
        os.read(read, 10)
        os.close(read)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (141, b"")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_standard_fd_is_no_trap(vmgr: Command, closed: int) -> None:
    def script(connection: Connection) -> None:
        connection.answer([])

    with Peer(vmgr.paths.helper_socket, script) as peer:
        shell = f'exec {closed}>&-; exec "$@"'
        done = subprocess.run(
            ["sh", "-c", shell, "sh", *vmgr.argv("ls")],
            env=vmgr.environment, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert peer.served == 1


def test_notices_of_the_helper_are_told_once_on_stderr(vmgr: Command) -> None:
    def script(connection: Connection) -> None:
        connection.answer([], Vmgr_Notice="the helper crashed; see /x", Vmgr_Version="0.0.1")

    with Peer(vmgr.paths.helper_socket, script):
        done = vmgr("ls", "-q")
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first == "vmgr: the helper crashed; see /x"
    assert second.startswith("vmgr: the helper is version 0.0.1, this command ")
    assert second.endswith('run "vmgr helper restart" (machines go on)')
