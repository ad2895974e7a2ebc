from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.helper import crash

if TYPE_CHECKING:
    from pathlib import Path


def test_a_report_is_told_once_and_old_ones_go(tmp_path: Path) -> None:
    for number in range(crash.KEPT + 5):
        try:
            raise RuntimeError(f"broken {number}")
        except RuntimeError as error:
            written = crash.write_report(tmp_path, error, ["a line of the log"])
        unique = tmp_path / f"{number:020}.txt"
        written.rename(unique)
        (tmp_path / f"{written.name}.untold").rename(tmp_path / f"{unique.name}.untold")
    assert len(list(tmp_path.glob("*.txt"))) <= crash.KEPT + 1
    reports = crash.take_untold(tmp_path)
    assert reports
    text = reports[-1].read_text()
    assert f"RuntimeError: broken {crash.KEPT + 4}" in text
    assert "a line of the log" in text
    assert crash.take_untold(tmp_path) == []
