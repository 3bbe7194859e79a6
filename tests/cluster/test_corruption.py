"""Flipped bytes on a target: right bytes or a ChecksumError that names the place, never wrong ones.

Extents and checksum files are damaged under a running store, index entries under a closed one.
FFS_FLIP_STRIDE is the distance between flipped bytes (`make soak` uses 10, the suite samples).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ffs.client.filesystem import FFSFileSystem
from ffs.client.layouts import Content
from ffs.errors import ChecksumError, FFSError
from tests.cluster.rig import CHUNK_BYTES, TARGET, Rig
from tests.harness import Cluster, ProcessError

STRIDE = int(os.environ.get("FFS_FLIP_STRIDE", "127"))
INDEX_STRIDE = max(1, STRIDE // 16)
SIZES = (1, 4_095, 4_096, 10_000, 65_536, 70_000, 140_000)
ENTRY_BYTES = 64
SOAK_S = 3_600


class Files:
    """Files on a rig: their content, and what a reader needs to find them."""

    def __init__(self, rig: Rig) -> None:
        chance = random.Random(1)
        self.rig = rig
        self.bytes: dict[int, bytes] = {}
        self.contents: dict[int, Content] = {}
        for blob, size in enumerate(SIZES, start=1):
            self.bytes[blob] = chance.randbytes(size)
            self.contents[blob] = rig.write(f"/file-{blob}", blob, self.bytes[blob])

    def read_all(self) -> list[ChecksumError]:
        """Read every file; wrong bytes fail the test, damage that was noticed is returned."""
        noticed: list[ChecksumError] = []
        for blob, content in self.contents.items():
            try:
                found = self.rig.read(content)
            except ChecksumError as error:
                self._check_names_the_place(error, blob)
                noticed.append(error)
            else:
                assert found == self.bytes[blob], f"wrong bytes of blob {blob} were delivered"
        return noticed

    def _check_names_the_place(self, error: ChecksumError, blob: int) -> None:
        where = error.where
        assert where["path"] == f"/file-{blob}"
        assert where["blob"] == blob
        assert where["target"] == TARGET
        assert 0 <= where["chunk"] <= len(self.bytes[blob]) // CHUNK_BYTES
        assert 0 <= where["offset"] < len(self.bytes[blob])
        assert f"path=/file-{blob}" in str(error) and "chunk=" in str(error)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    rig = Rig(tmp_path / "target")
    rig.open()
    yield Files(rig)
    rig.close()


def flip(path: Path, offset: int) -> None:
    """Invert one byte of a file."""
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, offset)
        os.pwrite(fd, bytes([byte[0] ^ 0xFF]), offset)
    finally:
        os.close(fd)


def used_bytes(path: Path) -> int:
    """Where the last byte that is not zero lies: what is behind it was never written."""
    return len(path.read_bytes().rstrip(b"\0"))


@pytest.mark.timeout(SOAK_S)
@pytest.mark.parametrize("suffix", ["data", "crc"])
def test_flipped_byte_of_a_chunk_or_its_checksums_is_noticed(files: Files, suffix: str) -> None:
    stride = STRIDE if suffix == "data" else max(1, STRIDE // 40)
    noticed = flips = 0
    for path in sorted(files.rig.directory.glob(f"*.{suffix}")):
        for offset in range(0, used_bytes(path), stride):
            flip(path, offset)
            found = files.read_all()
            flip(path, offset)
            assert len(found) <= 1, f"one byte of {path.name} damaged several files"
            noticed += len(found)
            flips += 1
    assert flips > 20
    assert noticed > 0.9 * flips, f"{noticed} of {flips} flips noticed"
    assert files.read_all() == []


@pytest.mark.timeout(SOAK_S)
def test_flipped_byte_of_the_index_loses_at_most_that_chunk(files: Files) -> None:
    rig = files.rig
    for path in sorted(rig.directory.glob("*.index")):
        for offset in range(0, used_bytes(path), INDEX_STRIDE):
            rig.close()
            flip(path, offset)
            rig.open()
            found = files.read_all()
            assert len(found) <= 1
            assert rig.store.stats()["damaged_entries"] == 1
            rig.close()
            flip(path, offset)
            rig.open()
    assert files.read_all() == []
    assert rig.store.stats()["damaged_entries"] == 0


def test_deleted_index_entries_are_missing_chunks(files: Files) -> None:
    rig, chance = files.rig, random.Random(2)
    for path in sorted(rig.directory.glob("*.index")):
        entries = -(-used_bytes(path) // ENTRY_BYTES)
        slot = chance.randrange(entries)
        before = path.read_bytes()
        rig.close()
        with path.open("r+b") as index:
            index.seek(slot * ENTRY_BYTES)
            index.write(bytes(ENTRY_BYTES))
        rig.open()
        assert len(files.read_all()) == 1
        rig.close()
        path.write_bytes(before)
        rig.open()
    assert files.read_all() == []


def test_swapped_index_entries_deliver_no_wrong_byte(files: Files) -> None:
    """Entries that are whole but lie at each other's place: misdirected writes."""
    rig = files.rig
    path = max(rig.directory.glob("*.index"), key=used_bytes)
    entries = path.read_bytes()
    assert used_bytes(path) > ENTRY_BYTES, "no class with two chunks"
    rig.close()
    swapped = entries[ENTRY_BYTES : 2 * ENTRY_BYTES] + entries[:ENTRY_BYTES]
    path.write_bytes(swapped + entries[2 * ENTRY_BYTES :])
    rig.open()
    assert len(files.read_all()) >= 1


def test_truncated_files_of_a_target_deliver_no_wrong_byte(files: Files) -> None:
    rig = files.rig
    for path in sorted((*rig.directory.glob("*.data"), *rig.directory.glob("*.crc"))):
        before = path.read_bytes()
        os.truncate(path, used_bytes(path) // 2)
        found = [_read_or_error(rig, content) for content in files.contents.values()]
        path.write_bytes(before)
        for (blob, content), result in zip(files.contents.items(), found, strict=True):
            if isinstance(result, FFSError):
                assert result.where["path"] == content.path
            else:
                assert result == files.bytes[blob]
    assert files.read_all() == []


def _read_or_error(rig: Rig, content: Content) -> bytes | FFSError:
    try:
        return rig.read(content)
    except FFSError as error:
        return error


def test_damage_on_a_real_cluster_ends_in_a_typed_error(
    new_cluster: Callable[..., Cluster],
) -> None:
    cluster = new_cluster(config={"meta.chunk_size_bytes": CHUNK_BYTES})
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    content = random.Random(3).randbytes(100_000)
    fs.pipe_file("/good", content[:3_000])
    fs.pipe_file("/bad", content)
    for suffix in ("data", "crc", "index"):
        path = cluster.target_dir() / f"65536.{suffix}"
        cluster.kill("storage")
        flip(path, 8)
        cluster.restart("storage")
        with pytest.raises(ChecksumError) as caught:
            fs.cat_file("/bad")
        assert caught.value.where["path"] == "/bad"
        assert {"chunk", "target", "offset", "node"} <= caught.value.where.keys()
        assert fs.cat_file("/good") == content[:3_000]
        assert cluster.process("storage").alive
        cluster.kill("storage")
        flip(path, 8)
        cluster.restart("storage")
        assert fs.cat_file("/bad") == content
    fs.close()


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damaged_superblock_is_refused(new_cluster: Callable[..., Cluster], damage: str) -> None:
    cluster = new_cluster()
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    fs.pipe_file("/file", b"content")
    fs.close()
    cluster.kill("storage")
    superblock = cluster.target_dir() / "superblock"
    if damage == "flip":
        flip(superblock, 20)
    elif damage == "truncate":
        os.truncate(superblock, 10)
    else:
        superblock.unlink()
    with pytest.raises(ProcessError, match=r"exited with 1(?s:.*)target") as caught:
        cluster.process("storage").start()
    assert "Traceback" not in str(caught.value)
    assert str(cluster.target_dir()) in str(caught.value)


def test_target_of_another_cluster_is_refused(new_cluster: Callable[..., Cluster]) -> None:
    ours, theirs = new_cluster(), new_cluster()
    ours.kill("storage")
    theirs.kill("storage")
    process = ours.process("storage")
    process.argv = [
        str(theirs.target_dir()) if argument == str(ours.target_dir()) else argument
        for argument in process.argv
    ]
    with pytest.raises(ProcessError, match="storage daemon belongs to another cluster"):
        process.start()
