"""Writes to three daemons with three replicas of which one is killed or stopped meanwhile.

What is acknowledged lies on every member that serves, with the same checksums; no writer hears of a
fault that leaves enough members, and one that does not is told how many there are.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffs._storage import ChunkStore
from ffs.client.filesystem import FFSFileSystem
from ffs.client.layouts import Content
from ffs.errors import TooFewReplicasError
from tests.harness import Cluster, stopped_at_exit

ROUNDS = int(os.environ.get("FFS_ROUNDS", "2"))
SEED = int(os.environ.get("FFS_SEED", "1"))
FAULTS = [
    (signal.SIGKILL, 0),
    (signal.SIGSTOP, 2),
    (signal.SIGKILL, 2),
    (signal.SIGSTOP, 0),
    (signal.SIGKILL, 1),
    (signal.SIGSTOP, 1),
]
"""Daemons 0 and 1 head a chain each, 2 is behind in both."""
MIB = 1 << 20
CHUNK = 256 << 10
GIVE_UP_S = 100.0
CONFIG = {"meta.replicas": 3, "meta.heartbeat_ms": 200, "meta.node_lease_ms": 1_000}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three daemons with two targets each, in two chains of three, all in service."""
    made = Cluster(tmp_path / "replicated", storage=3, targets=2, config=CONFIG)
    with stopped_at_exit(made) as cluster, client(cluster) as fs:
        wait_serving(fs, 3)
        yield cluster


@contextlib.contextmanager
def client(cluster: Cluster, **options: Any) -> Iterator[FFSFileSystem]:
    """A file system object of its own."""
    fs = FFSFileSystem(skip_instance_cache=True, **{**cluster.storage_options, **options})
    yield fs
    fs.close()


def wait_serving(fs: FFSFileSystem, count: int) -> None:
    """Wait until so many members of every chain serve."""
    until(lambda: {len(s) for s in fs.core.meta.refresh_route().serving.values()} == {count})


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + GIVE_UP_S
    while not condition():
        assert time.monotonic() < give_up, "it never came to that"
        time.sleep(0.02)


class Writer:
    """Writes files one after the other until it is stopped, and remembers which are done."""

    def __init__(self, fs: FFSFileSystem, seed: int) -> None:
        self.done: dict[str, bytes] = {}
        self.error: BaseException | None = None
        self._fs, self._dice = fs, np.random.default_rng(seed)
        self._seed, self._stop = seed, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def goes_on(self, files: int = 3) -> None:
        """Return once it has written so many more files."""
        wanted = len(self.done) + files
        until(lambda: len(self.done) >= wanted or self.error is not None)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                path, data = f"/w{self._seed}-{len(self.done)}", self._dice.bytes(5 * CHUNK + 7)
                self._fs.pipe_file(path, data, chunk_size_bytes=CHUNK)
                self.done[path] = data
        except BaseException as error:
            self.error = error


def stored(cluster: Cluster, daemon: int) -> dict[tuple[int, int], tuple[int, int] | None]:
    """Length and checksum of every chunk on a daemon that has ended."""
    chunks: dict[tuple[int, int], tuple[int, int] | None] = {}
    for target in range(cluster.targets):
        path = str(cluster.target_dir(daemon, target))
        known = ChunkStore.read_superblock(path)
        assert known is not None
        with contextlib.closing(
            ChunkStore(path, cluster_id=known["cluster_id"], target_id=known["target_id"])
        ) as store:
            for blob in store.blobs():
                for chunk, _ in store.chunks(blob):
                    assert (blob, chunk) not in chunks
                    chunks[blob, chunk] = store.lookup(blob, chunk)
    return chunks


def check_all_have(cluster: Cluster, blobs: set[int], daemons: tuple[int, ...]) -> None:
    """Daemons that ended without warning hold the same chunks of acknowledged blobs."""
    held = [
        {key: fact for key, fact in stored(cluster, daemon).items() if key[0] in blobs}
        for daemon in daemons
    ]
    assert {key[0] for key in held[0]} == blobs
    assert all(other == held[0] for other in held)


def blobs_of(fs: FFSFileSystem, paths: list[str]) -> set[int]:
    """The blobs of files."""
    contents = fs.core.meta.open_many(paths)
    return {
        s.blob for content in contents if isinstance(content, Content) for s in content.segments
    }


def test_what_is_acknowledged_is_on_all_three(cluster: Cluster) -> None:
    data = np.random.default_rng(SEED).bytes(3 * MIB + 5)
    with client(cluster) as fs:
        fs.pipe_file("/large", data, chunk_size_bytes=CHUNK)
        fs.pipe({f"/small{i}": data[i : i + 1000] for i in range(50)})
        blobs = blobs_of(fs, ["/large", *(f"/small{i}" for i in range(50))])
    cluster.kill_all()
    check_all_have(cluster, blobs, (0, 1, 2))


@pytest.mark.parametrize(("number", "victim"), FAULTS[:ROUNDS])
def test_writers_go_on_when_one_daemon_dies_or_stops(
    cluster: Cluster, number: signal.Signals, victim: int
) -> None:
    rest = tuple(index for index in range(3) if index != victim)
    with client(cluster) as fs, client(cluster) as other:
        with Writer(fs, 2 * SEED) as one, Writer(other, 2 * SEED + 1) as two:
            one.goes_on()
            cluster.process("storage", victim).signal(number)
            for _ in range(3):  # what was under way, what met the fault, and what came after
                one.goes_on()
                two.goes_on()
        wait_serving(fs, 2)
        done = {**one.done, **two.done}
        for path, data in done.items():
            assert fs.cat_file(path) == data
        blobs = blobs_of(fs, list(done))
    cluster.kill_all()
    check_all_have(cluster, blobs, rest)


def test_too_few_replicas_are_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("meta.heartbeat_ms", "meta.node_lease_ms"):  # the deadline has to exceed them
        monkeypatch.setenv(f"FFS_{key.upper().replace('.', '__')}", str(CONFIG[key]))
    with client(cluster) as fs:
        fs.pipe_file("/before", b"x" * CHUNK)
    with client(cluster, write_deadline_ms=2_000) as fs:
        for victim in (0, 1):
            cluster.kill("storage", victim)
        wait_serving(fs, 1)
        with pytest.raises(TooFewReplicasError) as caught:
            fs.pipe_file("/after", b"y" * CHUNK)
        facts = caught.value.where
        assert (facts["replicas"], facts["serving"], facts["needed"]) == (3, 1, 2)
        assert fs.cat_file("/before") == b"x" * CHUNK, "what there is can be read"
