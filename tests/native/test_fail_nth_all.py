"""No wrapper of a system call is left out: each is known, and used by what fails it in turn."""

from __future__ import annotations

from pathlib import Path

from ffs import _reader, _storage
from tests.native import test_fail_nth_cold as colds
from tests.native import test_fail_nth_local as local
from tests.native import test_fail_nth_loop as loops
from tests.native import test_fail_nth_reader as readers
from tests.native import test_fail_nth_store as stores
from tests.native import test_local_mapped as mapped
from tests.native.data_loop import fill, serving
from tests.native.fail_nth import VERBS, WAYS, uses_of


def served(path: Path, means: str) -> dict[str, int]:
    """What a loop uses that asks about the page cache in this way."""
    _storage.residency_force(means)
    try:
        store = loops.filled(path)
    finally:
        _storage.residency_force("cachestat")
    try:
        return uses_of(_storage, lambda: loops.conversation(store))
    finally:
        store.close()


def read_cold(path: Path) -> dict[str, int]:
    """What a loop uses that reads from the disk."""
    store = colds.filled(path)
    try:
        return uses_of(_storage, lambda: colds.read_cold(store, path, "ring"))
    finally:
        store.close()


def test_every_wrapper_is_used_by_a_scenario(tmp_path: Path) -> None:
    used = [
        uses_of(_storage, lambda: stores.life(tmp_path / "store", stores.Outcome())),
        *(served(tmp_path / means, means) for means in ("cachestat", "mincore", "none")),
        read_cold(tmp_path / "cold"),
        uses_of(_reader, lambda: readers.work(readers.Outcome())),
    ]
    (tmp_path / "local").mkdir()
    with serving(tmp_path / "local") as server:
        data = {chunk: fill(server, 1, chunk, length) for chunk, length in local.CHUNKS.items()}
        used.append(uses_of(_reader, lambda: local.talk(server, data)))
        ranges, _ = mapped.fill_file(server, 2)
        used.append(uses_of(_reader, lambda: mapped.map_ranges(server, ranges)))
    assert set(WAYS) | set(VERBS) == set(_storage.fault_counts()) == set(_reader.fault_counts())
    assert [call for call in WAYS if not any(counts[call] for counts in used)] == []
