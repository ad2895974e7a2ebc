from pathlib import Path

import pytest

from vmgr.vmm.probecache import ProbeCache, fingerprint


def test_answers_outlive_the_object(tmp_path: Path) -> None:
    path = tmp_path / "probes.json"
    ProbeCache(path).put("a", {"x": 1})
    ProbeCache(path).put("b", {"y": None})
    assert ProbeCache(path).get("a") == {"x": 1}
    assert ProbeCache(path).get("b") == {"y": None}
    assert ProbeCache(path).get("c") is None
    assert [f.name for f in tmp_path.iterdir()] == ["probes.json"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": 3}', b'{"a": null}'])
def test_damage_means_asking_again(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "probes.json"
    path.write_bytes(damage)
    cache = ProbeCache(path)
    assert cache.get("a") is None
    cache.put("a", {"x": 1})
    assert cache.get("a") == {"x": 1}


def test_old_answers_go(tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path / "probes.json")
    for i in range(100):
        cache.put(str(i), {})
    cache.put("99", {"again": True})
    kept = [i for i in range(100) if cache.get(str(i)) is not None]
    assert kept == list(range(68, 100))


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path / "missing" / "probes.json")
    cache.put("a", {"x": 1})
    assert cache.get("a") is None


def test_a_replaced_file_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    before = fingerprint(path)
    assert fingerprint(path) == before
    other = tmp_path / "other"
    other.write_bytes(b"two")
    other.replace(path)
    assert fingerprint(path) != before
