from __future__ import annotations

import json

import pytest

from vmgr.cli.output import age, bytes_text, fields, print_json, printable, table
from vmgr.cli.verbs.logs import Harmless


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (64 << 30, "64 GiB"),
     (183_500_800, "175 MiB"), (5 << 50, "5120 TiB"), (None, None)],
)  # fmt: skip
def test_bytes(count: int | None, text: str | None) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 seconds"), (-5, "0 seconds"), (1, "1 second"), (59.9, "59 seconds"), (60, "1 minute"),
     (7200, "2 hours"), (90_000, "1 day"), (None, None)],
)  # fmt: skip
def test_ages(seconds: float | None, text: str | None) -> None:
    assert age(seconds) == text


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    table(("NAME", "SIZE"), [("a-long-name", 1), ("b", None)])
    assert capsys.readouterr().out == "NAME         SIZE\na-long-name  1\nb            -\n"


def test_fields_leave_out_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    fields([("Name", "web"), ("Boot took", None), ("Id", 7)])
    assert capsys.readouterr().out == "Name: web\nId:   7\n"


def test_control_characters_are_shown_as_such() -> None:
    assert printable("a\x1b[31m\nb\u202ec") == "a\ufffd[31m\ufffdb\ufffdc"


def test_json_does_not_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    label = "\x9b31m \x1b[0m \x7f ä"
    print_json({"label": label})
    printed = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in printed)
    assert json.loads(printed) == {"label": label}


def test_a_log_does_not_steer_a_terminal() -> None:
    harmless = Harmless()
    # The two bytes of U+009B (CSI) in two pieces, an escape, and what is no UTF-8.
    said = b"".join(map(harmless.clean, (b"\xc3\xa4\t\xc2", b"\x9b31m\x1b[0m\xff\n")))
    assert said.decode() == "ä\t31m[0m\N{REPLACEMENT CHARACTER}\n"
