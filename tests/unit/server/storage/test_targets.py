"""Targets: what is opened, what is refused, and what is left out, on real chunk stores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ffs._reader import block_crcs
from ffs.errors import FormatError, LockedError
from ffs.server.storage.targets import Targets

CLUSTER = bytes(range(16))


def made(*paths: Path, first_id: int = 7, cluster_id: bytes = CLUSTER) -> Targets:
    """Targets that were given ids by a metadata server."""
    targets = Targets(paths)
    targets.open_existing()
    targets.create_new(cluster_id, range(first_id, first_id + len(paths)))
    return targets


def damage(path: Path) -> None:
    superblock = path / "superblock"
    superblock.write_bytes(b"\x55" * superblock.stat().st_size)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [tmp_path / "a", tmp_path / "b"]


def test_new_targets_are_reported_without_an_id_and_then_made(paths: list[Path]) -> None:
    targets = Targets(paths)
    targets.open_existing()
    reports = targets.reports()
    assert [(r.target, r.stopped) for r in reports] == [(0, False), (0, False)]
    assert [r.label.rpartition("#")[0] for r in reports] == [str(path) for path in paths]
    assert reports[0].capacity_bytes > 0
    assert reports[0].disk == reports[1].disk != ""
    assert targets.stores == {} and targets.cluster_id == b""
    targets.create_new(CLUSTER, [3, 4])
    assert sorted(targets.stores) == [3, 4]
    assert [r.label for r in targets.reports()] == [str(path) for path in paths]
    assert not (paths[0] / "claim").exists()
    targets.close()


def test_new_target_keeps_its_label_until_it_has_its_id(paths: list[Path]) -> None:
    def labels() -> list[str]:
        targets = Targets(paths)
        targets.open_existing()
        return [report.label for report in targets.reports()]

    first = labels()
    assert labels() == first and first[0].rpartition("#")[2] != first[1].rpartition("#")[2]


def test_targets_keep_their_ids_and_chunks(paths: list[Path]) -> None:
    targets = made(*paths)
    data = b"x" * 5000
    assert targets.stores[8].put(1, 0, data, block_crcs(data, 1, 0)) == 0
    targets.close()
    again = Targets(paths)
    again.open_existing()
    assert again.cluster_id == CLUSTER
    assert [(r.target, r.chunks) for r in again.reports()] == [(7, 0), (8, 1)]
    again.create_new(CLUSTER, [7, 8])
    again.drop([1, 2])
    assert [r.chunks for r in again.reports()] == [0, 0]
    again.close()


def test_metadata_server_that_knows_other_ids_is_not_believed(paths: list[Path]) -> None:
    made(*paths).close()
    again = Targets(paths)
    again.open_existing()
    with pytest.raises(FormatError, match="knows target 7 as 9"):
        again.create_new(CLUSTER, [9, 8])
    again.close()


def test_directory_in_use_is_refused(paths: list[Path]) -> None:
    first = made(*paths)
    with pytest.raises(LockedError, match="another process uses this target"):
        Targets(paths).open_existing()
    first.close()


def test_directories_of_two_clusters_are_refused(paths: list[Path]) -> None:
    made(paths[0]).close()
    made(paths[1], cluster_id=bytes(16)).close()
    with pytest.raises(FormatError, match="different clusters"):
        Targets(paths).open_existing()


def test_only_target_with_a_damaged_superblock_is_refused(paths: list[Path]) -> None:
    made(paths[0]).close()
    damage(paths[0])
    with pytest.raises(FormatError) as caught:
        Targets(paths[:1]).open_existing()
    assert caught.value.where["path"] == str(paths[0])


def test_damaged_target_is_left_out_when_another_works(paths: list[Path]) -> None:
    made(*paths).close()
    damage(paths[0])
    targets = Targets(paths)
    targets.open_existing()
    assert [r.target for r in targets.reports()] == [8]
    targets.create_new(CLUSTER, [8])
    assert list(targets.stores) == [8]
    targets.close()


def test_chunks_without_a_superblock_are_not_overwritten(paths: list[Path]) -> None:
    targets = made(paths[0])
    data = b"x" * 5000
    targets.stores[7].put(1, 0, data, block_crcs(data, 1, 0))
    targets.close()
    (paths[0] / "superblock").unlink()
    before = sorted(os.listdir(paths[0]))
    with pytest.raises(FormatError, match="holds chunks but no superblock"):
        Targets(paths[:1]).open_existing()
    assert sorted(os.listdir(paths[0])) == before


def test_stopped_target_says_so_and_is_not_dropped_from(paths: list[Path]) -> None:
    targets = made(*paths)
    data = b"x" * 100
    for target_id in (7, 8):
        targets.stores[target_id].put(1, 0, data, block_crcs(data, 1, 0))
    targets.stop(7)
    targets.drop([1])
    assert [(r.stopped, r.chunks) for r in targets.reports()] == [(True, 1), (False, 0)]
    targets.close()


def test_targets_ordered_beside_any_are_found_again(paths: list[Path]) -> None:
    targets = made(*paths)
    targets.create_ordered(20, beside=8)
    targets.create_ordered(21, beside=20)  # which was ordered itself
    targets.close()
    again = Targets(paths)
    again.open_existing()
    try:
        assert sorted(again.stores) == [7, 8, 20, 21]
        assert again.path_of(21) == paths[1] / "targets" / "21"
    finally:
        again.close()
