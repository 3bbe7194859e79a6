"""What a target remembers about itself, and what is reported of it, on real chunk stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from ffs._reader import block_crcs
from ffs.errors import StorageIOError
from ffs.server.storage import mark
from ffs.server.storage.mark import Mark
from ffs.server.storage.targets import Targets
from ffs.wire.membership import EMPTIED
from tests.unit.server.storage.test_targets import made


def reopened(path: Path) -> Targets:
    targets = Targets([path])
    targets.open_existing()
    return targets


def reported(path: Path) -> tuple[bool, int]:
    """Whether a target that is opened now is damaged, and what it holds."""
    targets = reopened(path)
    (report,) = targets.reports()
    targets.close()
    return report.damaged, report.holds


def test_a_target_that_was_emptied_says_so_until_it_has_synced(tmp_path: Path) -> None:
    targets = made(tmp_path)
    assert targets.reports()[0].holds == 0
    targets.remember_synced(7, chain=3, damage=0)
    assert targets.reports()[0].holds == 0  # never emptied: every database is right about it
    targets.remember_emptied(7)
    assert targets.reports()[0].holds == EMPTIED
    targets.close()
    assert reported(tmp_path) == (False, EMPTIED)
    targets = reopened(tmp_path)
    targets.remember_synced(7, chain=5, damage=0)
    targets.close()
    assert reported(tmp_path) == (False, 5)


def test_damage_that_was_made_up_for_is_none_after_a_restart(tmp_path: Path) -> None:
    targets = made(tmp_path)
    for chunk in range(3):
        assert targets.stores[7].put(1, chunk, b"data", block_crcs(b"data", 1, chunk)) == 0
    targets.close()
    flip(tmp_path, 0)
    assert reported(tmp_path) == (True, 0)
    targets = reopened(tmp_path)
    targets.remember_synced(7, chain=3, damage=targets.stores[7].stats()["damage"])
    assert not targets.reports()[0].damaged
    targets.close()
    assert reported(tmp_path) == (False, 0)
    flip(tmp_path, 1)
    assert reported(tmp_path) == (True, 0)


def flip(path: Path, slot: int) -> None:
    """Damage an entry of the index."""
    with (path / "4096.index").open("r+b") as index:
        index.seek(64 * slot)
        index.write(b"\x55")


def test_a_mark_that_is_damaged_is_not_believed(tmp_path: Path) -> None:
    assert mark.load(tmp_path) == Mark()
    mark.save(tmp_path, Mark(4, 9))
    assert mark.load(tmp_path) == Mark(4, 9)
    (tmp_path / mark.FILE).write_text("{")
    assert mark.load(tmp_path) == Mark(holds=EMPTIED)


def test_what_cannot_be_noted_is_not_done(tmp_path: Path) -> None:
    targets = made(tmp_path)
    (tmp_path / f"{mark.FILE}.new").mkdir()
    with pytest.raises(StorageIOError):
        targets.remember_emptied(7)
    assert targets.reports()[0].holds == 0
    targets.close()
