from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmgr.config import SETTINGS, Config
from vmgr.errors import NotFoundError, StateError, UsageError
from vmgr.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.from_environment({"VMGR_HOME": str(tmp_path)})


def write(paths: Paths, text: str | bytes) -> None:
    paths.config.mkdir(exist_ok=True)
    paths.config_file.write_bytes(text.encode() if isinstance(text, str) else text)


def test_without_a_file_everything_has_its_default(paths: Paths) -> None:
    entries = Config.load(paths).entries()
    assert [e.key for e in entries] == sorted(SETTINGS)
    assert not any(e.is_set for e in entries)
    assert all(e.value == e.default and e.description for e in entries)
    assert not paths.config.exists()


def test_values_come_from_the_file(paths: Paths) -> None:
    write(paths, '[machine]\nmemory = "2G"\ncpus = 3\n[boot]\ntimeout = "2m"\n')
    config = Config.load(paths)
    assert config.get("machine.memory") == 2 << 30
    assert config.get("machine.cpus") == 3
    assert config.get("boot.timeout") == 120.0
    entry = config.entry("machine.memory")
    assert (entry.value, entry.is_set) == ("2G", True)


def test_setting_keeps_comments_and_order(paths: Paths) -> None:
    text = (
        "# mine\n[stop]\nagent_timeout = 5 # short\n\n[machine]\n# cpus of the office\ncpus = 1\n"
    )
    write(paths, text)
    config = Config.load(paths)
    entry = config.set("machine.cpus", "2")
    assert (entry.value, entry.is_set) == (2, True)
    assert config.get("machine.cpus") == 2
    assert paths.config_file.read_text() == text.replace("cpus = 1", "cpus = 2")
    config.set("machine.memory", "1.5G")
    assert '\ncpus = 2\nmemory = "1536M"\n' in paths.config_file.read_text()
    assert Config.load(paths).get("machine.memory") == 1536 << 20


def test_unsetting_gives_back_the_file_as_it_was(paths: Paths) -> None:
    write(paths, "# mine\n[stop]\nagent_timeout = 5 # short\n")
    before = paths.config_file.read_text()
    config = Config.load(paths)
    config.set("boot.timeout", "5")
    entry = config.unset("boot.timeout")
    assert (entry.value, entry.is_set) == (120, False)
    assert paths.config_file.read_text().strip() == before.strip()
    config.unset("boot.timeout")
    assert Config.load(paths).get("stop.agent_timeout") == 5.0


def test_settings_written_with_dots(paths: Paths) -> None:
    write(paths, "machine.cpus = 1\n")
    config = Config.load(paths)
    config.set("machine.cpus", "2")
    config.set("machine.memory", "1G")
    assert Config.load(paths).get("machine.memory") == 1 << 30
    config.unset("machine.cpus")
    assert not Config.load(paths).entry("machine.cpus").is_set


def test_edits_made_meanwhile_are_kept(paths: Paths) -> None:
    config = Config.load(paths)
    write(paths, "[machine]\ncpus = 2 # edited by hand\n")
    config.set("boot.timeout", "7")
    text = paths.config_file.read_text()
    assert "cpus = 2 # edited by hand" in text
    assert "timeout = 7" in text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[machine]\ncpus = \n", 2),
        ("[machine\n", 1),
        ("[machine]\ncpus = 1\n[machine]\n", 3),
        ("a = 1\n\nb = 'open", 3),
        (b"a = 1\nb = '\xff'\n", 2),
    ],
)
def test_a_broken_file_is_named_with_its_line(paths: Paths, text: str | bytes, line: int) -> None:
    write(paths, text)
    with pytest.raises(StateError) as caught:
        Config.load(paths)
    assert str(paths.config_file) in caught.value.message
    assert caught.value.message.endswith(f"in line {line}")
    assert caught.value.next_step is not None


def test_a_broken_file_is_not_overwritten(paths: Paths) -> None:
    config = Config.load(paths)
    write(paths, "[machine\n")
    with pytest.raises(StateError):
        config.set("machine.cpus", "1")
    assert paths.config_file.read_text() == "[machine\n"


def test_a_wrong_value_stops_only_who_needs_it_and_unset_mends_it(paths: Paths) -> None:
    write(paths, '[machine]\ncpus = "many"\nmemory = "1G"\n')
    config = Config.load(paths)
    assert config.get("machine.memory") == 1 << 30
    with pytest.raises(StateError) as caught:
        config.get("machine.cpus")
    assert caught.value.message == (
        f"the setting machine.cpus in {paths.config_file} is wrong: 'many' is not a whole number"
    )
    assert caught.value.next_step is not None
    assert "vmgr config unset machine.cpus" in caught.value.next_step
    config.unset("machine.cpus")
    assert Config.load(paths).get("machine.cpus") == SETTINGS["machine.cpus"].default()


def test_unknown_settings_are_warnings_with_what_was_meant(paths: Paths) -> None:
    write(paths, "[machine]\ncpu = 2\n[colours]\nsky = 'blue'\nsea = { deep = true }\n")
    config = Config.load(paths)
    assert config.warnings == [
        f"{paths.config_file} has the unknown setting machine.cpu; did you mean machine.cpus?",
        f"{paths.config_file} has the unknown setting colours.sky",
        f"{paths.config_file} has the unknown setting colours.sea",
    ]
    assert config.get("machine.cpus") == SETTINGS["machine.cpus"].default()


def test_a_setting_that_does_not_exist(paths: Paths) -> None:
    config = Config.load(paths)
    for call in (config.get, config.entry, config.unset, lambda key: config.set(key, "1")):
        with pytest.raises(NotFoundError) as caught:
            call("machine.mem")
        assert caught.value.next_step == "did you mean machine.memory?"


def test_a_value_that_means_nothing_changes_nothing(paths: Paths) -> None:
    config = Config.load(paths)
    with pytest.raises(UsageError, match=r"^machine\.cpus: 'many' is not a whole number"):
        config.set("machine.cpus", "many")
    assert not paths.config_file.exists()


def test_a_table_that_is_none(paths: Paths) -> None:
    write(paths, "machine = 3\n")
    config = Config.load(paths)
    with pytest.raises(StateError, match=r"machine in .* is not a table"):
        config.set("machine.cpus", "1")


def test_the_file_is_replaced_in_one_step_and_keeps_its_mode_and_its_link(
    paths: Paths, tmp_path: Path
) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text("# mine\n")
    real.chmod(0o640)
    paths.config.mkdir()
    paths.config_file.symlink_to(real)
    held = real.open()
    Config.load(paths).set("machine.cpus", "1")
    assert paths.config_file.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert "cpus = 1" in real.read_text()
    assert held.read() == "# mine\n"
    held.close()
    assert sorted(os.listdir(tmp_path)) == ["config", "dotfiles.toml"]  # noqa: PTH208 (names)


def test_a_new_file_is_private(paths: Paths) -> None:
    Config.load(paths).set("machine.cpus", "1")
    assert stat.S_IMODE(paths.config_file.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_or_read(paths: Paths) -> None:
    paths.config.write_text("a file where the directory should be")
    with pytest.raises(StateError, match="cannot be read: Not a directory"):
        Config.load(paths)
    paths.config.unlink()
    config = Config.load(paths)
    paths.config_file.mkdir(parents=True)
    with pytest.raises(StateError, match="cannot be read: Is a directory"):
        config.set("machine.cpus", "1")


def test_a_file_that_never_ends(paths: Paths) -> None:
    paths.config.mkdir()
    paths.config_file.symlink_to("/dev/zero")
    with pytest.raises(StateError, match="too large"):
        Config.load(paths)


@given(st.binary(max_size=80))
def test_any_file_loads_or_is_a_state_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    home = Paths.from_environment({"VMGR_HOME": str(tmp_path_factory.mktemp("home"))})
    write(home, data)
    try:
        config = Config.load(home)
    except StateError:
        return
    for key in SETTINGS:
        config.get(key)


def test_the_mark_is_another_one_when_the_file_is(paths: Paths) -> None:
    marks = [Config.mark(paths)]
    Config.load(paths).set("machine.cpus", "2")
    marks.append(Config.mark(paths))
    assert Config.mark(paths) == marks[-1]
    Config.load(paths).set("machine.cpus", "3")
    marks.append(Config.mark(paths))
    with paths.config_file.open("a") as file:
        file.write("# by hand\n")
    marks.append(Config.mark(paths))
    paths.config_file.unlink()
    assert Config.mark(paths) == marks[0]
    assert len(set(marks)) == 4
