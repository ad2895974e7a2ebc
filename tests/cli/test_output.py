from __future__ import annotations

import pytest

from vmgr.cli.output import age, bytes_text, fields, printable, table


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
