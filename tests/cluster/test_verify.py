"""Verifying: every kind of damage is found, named and told apart, on every target, in one run."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ffs import _reader
from ffs._storage import ChunkStore
from ffs.client import verify as verifying
from ffs.client.filesystem import FFSFileSystem
from ffs.client.verify import Checked, Finding, probe, verify
from ffs.errors import (
    ChecksumError,
    ChunkLengthError,
    ChunkMissingError,
    NotFoundError,
    UnavailableError,
)
from tests.harness import Cluster

NewCluster = Callable[..., Cluster]
CHUNK = 64 << 10
SIZE = 5 * CHUNK + 10_000


def payload(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def client(cluster: Cluster, **options: Any) -> FFSFileSystem:
    return FFSFileSystem(skip_instance_cache=True, **cluster.storage_options, **options)


@contextlib.contextmanager
def store_of(cluster: Cluster, target: int) -> Iterator[ChunkStore]:
    """Open a target's store while its daemon is away."""
    blocks = [
        ChunkStore.read_superblock(str(cluster.target_dir(i))) for i in range(cluster.storage)
    ]
    ids = [block["target_id"] if block else 0 for block in blocks]
    index = ids.index(target)
    block = blocks[index]
    assert block is not None
    cluster.process("storage", index).terminate()
    store = ChunkStore(
        str(cluster.target_dir(index)), cluster_id=block["cluster_id"], target_id=target
    )
    yield store
    store.close()
    cluster.restart("storage", index)


def place(fs: FFSFileSystem, path: str, chunk: int) -> tuple[int, int]:
    """Return the blob of a file's first segment and the target of one of its chunks."""
    content = fs.core.meta.open(path)
    piece = content.pieces[0]
    return piece.blob, fs.core.meta.route().target(piece.chain(chunk))


def damage(cluster: Cluster, fs: FFSFileSystem, path: str, chunk: int, how: str) -> Finding:
    """Rot, cut or lose one chunk of a file; return what is to be found."""
    blob, target = place(fs, path, chunk)
    with store_of(cluster, target) as store:
        kept = [(c, store.read(blob, c, 0, length)) for c, length in store.chunks(blob)]
        assert store.drop([blob]) == len(kept) > 0
        for number, (_, data, crcs) in kept:
            if number == chunk and how == "lost":
                continue
            if number == chunk and how == "short":
                data = data[: len(data) // 2]
                crcs = _reader.block_crcs(data, blob, number)
            if number == chunk and how == "rotten":
                data = bytes([data[0] ^ 1]) + data[1:]
            assert store.put(blob, number, data, crcs) == 0
    error = {"lost": ChunkMissingError, "short": ChunkLengthError, "rotten": ChecksumError}[how]
    node = fs.core.meta.route().node_of_target[target]
    return Finding(path, error(""), blob, chunk, target, node)


def told(findings: Any) -> set[tuple[Any, ...]]:
    return {(f.path, type(f.error), f.blob, f.chunk, f.target, f.node) for f in findings}


def test_all_damage_is_found_in_one_run(
    new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "BATCH_BYTES", 3 * CHUNK)
    cluster = new_cluster(storage=2)
    fs = client(cluster)
    files = {f"/d/{i % 3}/{i}": payload(SIZE, i) for i in range(30)}
    fs.pipe(files, chunk_size_bytes=CHUNK, stripe=0)
    fs.truncate("/d/0/6", SIZE + (1 << 40))
    assert not list(verify(fs, ["/d"])) and not list(probe(fs, ["/d"]))
    lost = damage(cluster, fs, "/d/0/3", 4, "lost")
    short = damage(cluster, fs, "/d/1/7", 0, "short")
    rotten = damage(cluster, fs, "/d/2/5", 1, "rotten")
    seen: list[Checked] = []
    assert told(verify(fs, ["/d"], on_progress=seen.append)) == told([lost, short, rotten])
    assert seen[-1] == Checked(30, 30 * 6, 30 * SIZE, 3)
    assert told(probe(fs, ["/d"], on_progress=seen.append)) == told([lost, short])
    assert seen[-1] == Checked(30, 30 * 6, 30 * 6, 2)
    assert told(verify(fs, ["/d/2", "/d/1/7"])) == told([short, rotten])
    gone = list(verify(fs, ["/nowhere", "/d/2/8"]))
    assert [(f.path, type(f.error)) for f in gone] == [("/nowhere", NotFoundError)]


def test_a_file_that_was_replaced_meanwhile_is_no_finding(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    fs, other = client(cluster), client(cluster)
    fs.pipe({f"/d/{i}": payload(SIZE, i) for i in range(4)}, chunk_size_bytes=CHUNK)
    blobs = [place(fs, f"/d/{i}", 0)[0] for i in range(4)]
    reader: Any = fs.core.reader
    survey = reader.survey

    def lose_all_first(*args: Any) -> Any:
        other.pipe_file("/d/1", b"new")
        other.rm_file("/d/2")
        with store_of(cluster, 1) as store:
            store.drop(blobs[1:])
        return survey(*args)

    reader.survey = lose_all_first
    assert {f.path for f in verify(fs, ["/d"])} == {"/d/3"}


def test_a_target_that_is_away_is_waited_for_once(
    new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FFS_META__NODE_LEASE_MS", "200")
    monkeypatch.setenv("FFS_META__HEARTBEAT_MS", "50")
    cluster = new_cluster(storage=2)
    fs = client(cluster, read_deadline_ms=2_000)
    fs.pipe({f"/d/{i}": payload(SIZE, i) for i in range(8)}, chunk_size_bytes=CHUNK, stripe=0)
    cluster.kill("storage", 0)
    findings = list(verify(fs, ["/d"]))
    assert len(findings) == 8 * 3 and len({f.target for f in findings}) == 1
    assert all(isinstance(f.error, UnavailableError) for f in findings)
    cluster.restart("storage", 0)
    assert not list(verify(fs, ["/d"]))
