"""The state database: damage, newer schema, full disk, names."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import ConflictError, StateError
from vmgr.helper.store import SCHEMA_VERSION, MachineRow, Store
from vmgr.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def row(machine_id: str = "0123456789ab", name: str = "web", **changes: object) -> MachineRow:
    values: dict[str, object] = {
        "id": machine_id,
        "name": name,
        "status": "stopped",
        "image": "debian",
        "image_digest": "sha256:" + "0" * 64,
        "cpus": 1,
        "memory_bytes": 1 << 30,
        "disk_bytes": 64 << 30,
        "created_at": 1.5,
        **changes,
    }
    return MachineRow(**values)  # type: ignore[arg-type]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths.from_environment({"VMGR_HOME": str(tmp_path / "h"), "HOME": str(tmp_path)})
    found.ensure()
    return found


@pytest.fixture
def store(paths: Paths) -> Iterator[Store]:
    opened = Store(paths)
    opened.open()
    yield opened
    opened.close()


def test_a_machine_is_there_after_reopening(paths: Paths, store: Store) -> None:
    saved = row(resync_keys=[bytes(range(16))], env={"LANG": "C"})
    store.save_machine(saved)
    store.close()
    again = Store(paths)
    again.open()
    assert again.machines() == [saved]
    again.close()


def test_the_database_is_private(paths: Paths, store: Store) -> None:
    store.save_machine(row())
    assert paths.database.stat().st_mode & 0o777 == 0o600


def test_two_machines_cannot_have_one_name(store: Store) -> None:
    store.save_machine(row())
    with pytest.raises(ConflictError, match="there is a machine named web already"):
        store.save_machine(row(machine_id="ffffffffffff"))
    assert [m.id for m in store.machines()] == ["0123456789ab"]


def test_a_newer_schema_is_refused_and_left_alone(paths: Paths, store: Store) -> None:
    store.save_machine(row())
    store.close()
    with sqlite3.connect(paths.database) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 6}")
    db.close()
    with pytest.raises(StateError) as caught:
        Store(paths).open()
    assert caught.value.message == (
        f"the state database {paths.database} is of a newer vmgr "
        f"(schema {SCHEMA_VERSION + 6}, this one knows up to {SCHEMA_VERSION})"
    )
    with sqlite3.connect(paths.database) as db:
        assert db.execute("SELECT count(*) FROM machines").fetchone() == (1,)
    db.close()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "no-table"])
def test_a_damaged_database_is_rebuilt_from_the_records(
    paths: Paths, store: Store, damage: str
) -> None:
    for number in range(40):
        saved = row(machine_id=f"{number:012x}", name=f"m{number}")
        paths.machine(saved.id).state.mkdir()
        store.save_machine(saved)
    before = store.machines()
    store.close()
    content = paths.database.read_bytes()
    match damage:
        case "garbage":
            paths.database.write_bytes(b"not a database at all " * 500)
        case "truncated":
            paths.database.write_bytes(content[: len(content) // 2])
        case _:
            with sqlite3.connect(paths.database) as db:
                db.execute("DROP TABLE machines")
            db.close()
    again = Store(paths)
    again.open()
    assert again.machines() == before
    (notice,) = again.take_notices()
    assert "40 machines found" in notice
    assert again.take_notices() == []
    again.close()
    assert len(list(paths.state.glob("vmgr.db.damaged-*"))) >= 1


def test_an_empty_file_is_a_fresh_start(paths: Paths) -> None:
    paths.database.touch()
    store = Store(paths)
    store.open()
    assert store.machines() == []
    store.close()


def test_an_unreadable_database_is_one_sentence(paths: Paths) -> None:
    paths.database.mkdir()
    with pytest.raises(StateError, match="cannot open the state database"):
        Store(paths).open()


def test_image_names_move(store: Store) -> None:
    store.name_image("debian", "sha256:1")
    store.name_image("debian", "sha256:2")
    store.name_image("web", "sha256:2")
    assert store.image_names() == {"debian": "sha256:2", "web": "sha256:2"}
    store.unname_image("web")
    assert store.image_names() == {"debian": "sha256:2"}
