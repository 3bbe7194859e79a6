"""S6: links planted in a target's directory lead the daemon nowhere, to read or to write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ffs import _storage
from ffs._reader import block_crcs
from ffs.errors import OK
from ffs.server.storage import mark, small_file
from ffs.server.storage.directory import open_directory
from ffs.server.storage.mark import Mark

SECRET = b"somebody else's\n" * 1_000
CLUSTER = bytes(range(16))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside that nobody may read or change through the daemon."""
    path = tmp_path / "outside"
    path.write_bytes(SECRET)
    return path


def store_at(path: Path, *, create: bool) -> _storage.ChunkStore:
    """A chunk store, made or opened again."""
    return _storage.ChunkStore(str(path), cluster_id=CLUSTER, target_id=3, create=create)


def put(store: _storage.ChunkStore, blob: int, size: int) -> int:
    """The status of writing one chunk."""
    data = os.urandom(size)
    return store.put(blob, 0, data, block_crcs(data, blob, 0))


def replace_by_link(path: Path, victim: Path) -> None:
    """What somebody who may write there could do."""
    path.unlink(missing_ok=True)
    path.symlink_to(victim)


@pytest.mark.parametrize("name", ["superblock", "8192.index", "8192.data", "8192.crc"])
def test_s06_a_planted_link_keeps_a_store_from_opening(
    tmp_path: Path, victim: Path, name: str
) -> None:
    path = tmp_path / "target"
    store = store_at(path, create=True)
    assert put(store, 1, 8_192) == OK
    store.close()
    assert (path / name).is_file()
    replace_by_link(path / name, victim)
    with pytest.raises((OSError, ValueError)):
        store_at(path, create=False)
    assert victim.read_bytes() == SECRET


@pytest.mark.parametrize("name", ["16384.index", "16384.data", "16384.crc"])
def test_s06_a_link_planted_while_a_store_is_open_is_not_written_through(
    tmp_path: Path, victim: Path, name: str
) -> None:
    path = tmp_path / "target"
    store = store_at(path, create=True)
    assert put(store, 1, 8_192) == OK
    (path / name).symlink_to(victim)
    assert put(store, 2, 16_384) != OK
    assert victim.read_bytes() == SECRET
    store.close()


@pytest.mark.parametrize("name", ["claim", mark.FILE])
def test_s06_small_files_are_no_links_either(tmp_path: Path, victim: Path, name: str) -> None:
    replace_by_link(tmp_path / name, victim)
    with pytest.raises(OSError, match="symbolic links"):
        small_file.read(tmp_path, name)
    replace_by_link(tmp_path / f"{name}.new", victim)
    with pytest.raises(OSError, match="symbolic links"):
        small_file.replace(tmp_path, name, "x")
    with pytest.raises(OSError):
        mark.save(tmp_path, Mark(1, 2)) if name == mark.FILE else small_file.read(tmp_path, name)
    assert victim.read_bytes() == SECRET


def test_s06_a_target_with_a_link_for_a_claim_is_refused(tmp_path: Path, victim: Path) -> None:
    replace_by_link(tmp_path / "claim", victim)
    (target,) = open_directory(tmp_path)
    assert target.store is None and target.claim == ""
    assert victim.read_bytes() == SECRET


def test_s06_directories_that_a_daemon_makes_are_its_own(tmp_path: Path) -> None:
    store_at(tmp_path / "target", create=True).close()
    assert (tmp_path / "target").stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in (tmp_path / "target").iterdir())
