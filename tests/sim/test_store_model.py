"""Ten thousand random runs of the chunk store against its model, with power cuts."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs import _storage
from ffs.errors import OK, ChunkConflictError
from tests.sim.store_model import (
    CLUSTER,
    TARGET,
    Content,
    Disk,
    Run,
    memory_directory,
    parse_journal,
    random_content,
    run_seeds,
    write_sparse,
)

BATCHES = 10
RUNS_PER_BATCH = 1_000


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    directory = memory_directory()
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_thousand_runs_agree_with_the_model(batch: int, root: Path) -> None:
    run_seeds(range(batch * RUNS_PER_BATCH, (batch + 1) * RUNS_PER_BATCH), root)


def test_a_disk_that_lies_about_syncs_is_noticed(root: Path) -> None:
    noticed = 0
    lying = root / "lying"
    lying.mkdir()
    for seed in range(100):
        try:
            Run(seed, lying, honest_disk=False).play()
        except (AssertionError, ValueError):
            noticed += 1
    assert noticed > 30


@pytest.mark.parametrize("seed", range(20))
def test_a_power_cut_during_group_commits(seed: int, root: Path) -> None:
    run = Run(seed, root)
    rng = run.rng
    path = root / f"group-{seed}"
    wanted = {(blob, chunk): random_content(rng) for blob in range(8) for chunk in range(10)}
    acknowledged: dict[tuple[int, int], int] = {}

    def write(store: _storage.ChunkStore, blob: int) -> None:
        for chunk in range(10):
            content = wanted[blob, chunk]
            assert store.put(blob, chunk, content.data, content.crcs) == OK
            acknowledged[blob, chunk] = _storage.journal_bytes()

    _storage.journal_start()
    store = _storage.ChunkStore(str(path), cluster_id=CLUSTER, target_id=TARGET, create=True)
    threads = [threading.Thread(target=write, args=(store, blob)) for blob in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = list(parse_journal(_storage.journal_take()))
    store.close()
    for _ in range(5):
        count = rng.randint(1, len(records))
        disk = Disk({})
        for record in records[:count]:
            disk.apply(record)
        shutil.rmtree(path)
        path.mkdir()
        for name, content in disk.after_power_cut(rng).items():
            write_sparse(path / name, content)
        check_cut(path, wanted, acknowledged, records[count - 1].end)


def check_cut(
    path: Path,
    wanted: dict[tuple[int, int], Content],
    acknowledged: dict[tuple[int, int], int],
    cut: int,
) -> None:
    """Everything acknowledged before the cut is there; the rest is absent or right."""
    store = _storage.ChunkStore(str(path), cluster_id=CLUSTER, target_id=TARGET, create=True)
    found = 0
    for key, content in wanted.items():
        there = store.lookup(*key) is not None
        found += there
        assert there or acknowledged[key] > cut
        if there:
            assert store.read(*key, 0, len(content.data)) == (OK, content.data, content.crcs)
            assert store.put(*key, content.data, content.crcs) == OK
            other = bytes(len(content.crcs))
            assert store.put(*key, content.data, other) == ChunkConflictError.code
    assert store.stats()["chunks"] == found
    assert store.stats()["damaged_entries"] == 0
    store.close()
