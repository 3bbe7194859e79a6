"""Three daemons with three replicas: what comes back is complete again, what is damaged is mended.

The disks are looked at after the daemons have ended: there is no other way to be sure.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ffs._storage import ChunkStore
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import OK
from ffs.types import TargetState
from ffs.wire.status import STATUS, StatusReply, StatusRequest
from tests.harness import Cluster, stopped_at_exit

CHUNK = 64 << 10
GIVE_UP_S = 100.0
CONFIG: dict[str, object] = {
    "meta.replicas": 3,
    "meta.heartbeat_ms": 200,
    "meta.node_lease_ms": 1_000,
    "storage.scrub_bytes_per_s": 0,
}
SCRUBBING = CONFIG | {"storage.scrub_bytes_per_s": 1 << 30, "storage.scrub_interval_s": 1}


@contextlib.contextmanager
def replicated(path: Path, config: dict[str, object]) -> Iterator[tuple[Cluster, FFSFileSystem]]:
    """Three daemons of one chain that all serve, and a client."""
    cluster = Cluster(path, storage=3, config=config)
    with stopped_at_exit(cluster):
        fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
        try:
            until(lambda: states(fs) == [TargetState.SERVING] * 3)
            yield cluster, fs
        finally:
            fs.close()


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + GIVE_UP_S
    while not condition():
        assert time.monotonic() < give_up, "it never came to that"
        time.sleep(0.02)


def status(fs: FFSFileSystem) -> StatusReply:
    return fs.core.meta.call(STATUS, StatusRequest())


def states(fs: FFSFileSystem) -> list[int]:
    """The states of all members of chains."""
    routing = status(fs).routing
    found = {target.target: target.state for target in routing.targets}
    return sorted(found[target] for chain in routing.chains for target in chain.targets)


def repaired(fs: FFSFileSystem) -> int:
    return sum(r.health.repaired_total for r in status(fs).reports if r.health is not None)


def flip(cluster: Cluster, daemon: int, data: bytes) -> None:
    """Damage the chunk that holds these bytes on one daemon's disk."""
    for file in cluster.target_dir(daemon).glob("*.data"):
        at = file.read_bytes().find(data)
        if at >= 0:
            with file.open("r+b") as opened:
                opened.seek(at + len(data) // 2)
                opened.write(bytes([data[len(data) // 2] ^ 1]))
            return
    raise AssertionError("the bytes are not on this disk")


def listed(cluster: Cluster, daemon: int) -> bytes:
    """What a daemon that has ended holds, every chunk of it checked against its checksums."""
    path = str(cluster.target_dir(daemon))
    known = ChunkStore.read_superblock(path)
    assert known is not None
    store = ChunkStore(path, cluster_id=known["cluster_id"], target_id=known["target_id"])
    with contextlib.closing(store):
        for blob in store.blobs():
            for chunk, _ in store.chunks(blob):
                assert store.verify(blob, chunk) == OK, (daemon, blob, chunk)
        return store.keys(0, 0, 1 << 20)


def check_equal(cluster: Cluster) -> None:
    """All three disks hold the same chunks, whole."""
    cluster.kill_all()
    held = [listed(cluster, daemon) for daemon in range(3)]
    assert held[0]
    assert held[0] == held[1] == held[2]


def test_a_daemon_that_comes_back_gets_what_was_written_meanwhile(tmp_path: Path) -> None:
    dice = np.random.default_rng(1)
    files = {f"/f{i}": dice.bytes(3 * CHUNK + i) for i in range(30)}
    with replicated(tmp_path / "c", CONFIG) as (cluster, fs):
        fs.pipe({path: files[path] for path in list(files)[:10]}, chunk_size_bytes=CHUNK)
        cluster.kill("storage", 1)
        until(lambda: states(fs).count(TargetState.SERVING) == 2)
        fs.pipe({path: files[path] for path in list(files)[10:]}, chunk_size_bytes=CHUNK)
        fs.rm("/f0")
        cluster.restart("storage", 1)
        until(lambda: states(fs) == [TargetState.SERVING] * 3)
        for path in list(files)[1:]:
            assert fs.cat_file(path) == files[path]
        check_equal(cluster)


def test_bytes_that_rot_are_right_for_readers_and_then_on_the_disk(tmp_path: Path) -> None:
    dice = np.random.default_rng(2)
    chunks = [dice.bytes(CHUNK) for _ in range(24)]
    with replicated(tmp_path / "c", CONFIG) as (cluster, fs):
        fs.pipe_file("/f", b"".join(chunks), chunk_size_bytes=CHUNK)
        for chunk in chunks[:4]:
            flip(cluster, 0, chunk)
        for chunk in chunks[4:8]:
            flip(cluster, 2, chunk)

        def mended() -> bool:
            for number, chunk in enumerate(chunks):
                assert fs.cat_file("/f", number * CHUNK, (number + 1) * CHUNK) == chunk
            return repaired(fs) >= 8

        until(mended)
        check_equal(cluster)


def test_scrubbing_mends_what_nobody_reads(tmp_path: Path) -> None:
    dice = np.random.default_rng(3)
    chunks = [dice.bytes(CHUNK) for _ in range(24)]
    with replicated(tmp_path / "c", SCRUBBING) as (cluster, fs):
        fs.pipe_file("/f", b"".join(chunks), chunk_size_bytes=CHUNK)
        flip(cluster, 0, chunks[5])
        flip(cluster, 1, chunks[6])
        until(lambda: repaired(fs) >= 2)
        check_equal(cluster)


def test_a_target_that_lost_entries_of_its_index_syncs_before_it_serves(tmp_path: Path) -> None:
    data = np.random.default_rng(4).bytes(40 * CHUNK)
    with replicated(tmp_path / "c", CONFIG) as (cluster, fs):
        fs.pipe_file("/f", data, chunk_size_bytes=CHUNK)
        cluster.kill("storage", 2)
        [index] = cluster.target_dir(2).glob(f"{CHUNK}.index")
        content = bytearray(index.read_bytes())
        for slot in (0, 7, 20):
            content[slot * 64 + 9] ^= 1
        index.write_bytes(content)
        before = status(fs).routing.version
        cluster.restart("storage", 2)
        until(lambda: synced(fs, before) and states(fs) == [TargetState.SERVING] * 3)
        assert fs.cat_file("/f") == data
        check_equal(cluster)


def synced(fs: FFSFileSystem, routing_version: int) -> bool:
    """Whether a target has synced in a routing newer than one."""
    reply = status(fs)
    return reply.routing.version > routing_version and any(r.synced for r in reply.reports)
