"""Reads from two daemons with two replicas, one of which stops, dies, lies or is slow.

No error, no wrong byte, and no more than a moment: `ffs-bench replicas` has the exact figure. The
leases are so long that no chain changes: it is the client alone that copes.
"""

from __future__ import annotations

import asyncio
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
from ffs.client import connections, replicas
from ffs.client.filesystem import RANGE_DTYPE, FFSFileSystem
from ffs.client.replicas import HEDGE_SHARE
from ffs.errors import ChecksumError, UnavailableError
from ffs.rpc.dial import dial
from tests.cluster.relay import Relay
from tests.harness import Cluster, stopped_at_exit

ROUNDS = int(os.environ.get("FFS_ROUNDS", "6"))
SEED = int(os.environ.get("FFS_SEED", "1"))
MIB = 1 << 20
CHUNK = 256 << 10
BYTES = 32 * MIB
PATH, BEHIND = "/data", "/behind"
DEADLINE_MS = 100_000
CONFIG = {
    "meta.replicas": 2,
    "meta.node_lease_ms": 25_000,
    # It is the client that meets damage here, not a daemon that has looked before.
    "storage.scrub_bytes_per_s": 0,
}
EXTRA_S_MAX = 60.0
"""Generous: the machine may be busy. Waiting for the deadline instead would take longer."""


@pytest.fixture(scope="module")
def data() -> bytes:
    """What the file holds."""
    return np.random.default_rng(7).bytes(BYTES)


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> Iterator[Cluster]:
    """Two daemons with the same chunks; tests leave both running and whole."""
    made = Cluster(tmp_path_factory.mktemp("mirrored"), storage=2, config=CONFIG)
    with stopped_at_exit(made) as cluster:
        store(cluster, {PATH: data})
        yield cluster


def store(cluster: Cluster, files: dict[str, bytes]) -> None:
    """Write files to both daemons, once both serve."""
    with client(cluster) as fs:
        give_up = time.monotonic() + EXTRA_S_MAX
        while not fs.core.meta.refresh_route().replicated_everywhere:
            assert time.monotonic() < give_up, "no chain of two came up"
            time.sleep(0.02)
        for path, content in files.items():
            fs.pipe_file(path, content, chunk_size_bytes=CHUNK)


def lose(cluster: Cluster, index: int, path: str) -> None:
    """Have one daemon's disk forget the chunks of a file."""
    with client(cluster) as fs:
        blobs = [segment.blob for segment in fs.core.meta.open(path).segments]
    cluster.process("storage", index).terminate()
    directory = str(cluster.target_dir(index))
    known = ChunkStore.read_superblock(directory)
    assert known is not None
    facts = {name: known[name] for name in ("cluster_id", "target_id")}
    with contextlib.closing(ChunkStore(directory, **facts)) as chunks:
        assert chunks.drop(blobs) > 0
    cluster.restart("storage", index)


@contextlib.contextmanager
def client(cluster: Cluster, **options: Any) -> Iterator[FFSFileSystem]:
    """A file system object of its own, over TCP: with its own connections and its own opinion of
    nodes."""
    defaults = {**cluster.storage_options, "same_host": "off", "read_deadline_ms": DEADLINE_MS}
    fs = FFSFileSystem(skip_instance_cache=True, **{**defaults, **options})
    yield fs
    fs.close()


@pytest.fixture(autouse=True)
def healed(mirrored: Cluster) -> Iterator[None]:
    """Whatever a test has done to a daemon, or left undone, the next one finds both at work."""
    yield
    for index in range(2):
        heal(mirrored, index)


@contextlib.contextmanager
def soon(action: Callable[[], None], delay_s: float) -> Iterator[None]:
    """Do something beside what happens meanwhile."""
    timer = threading.Timer(delay_s, action)
    timer.start()
    try:
        yield
    finally:
        timer.join()


class Batch:
    """Ranges all over the file, and what they must come to."""

    def __init__(self, fs: FFSFileSystem, data: bytes, seed: int, count: int = 200) -> None:
        self.fs = fs
        dice = np.random.default_rng(seed)
        self.ranges = np.zeros(count, dtype=RANGE_DTYPE)
        self.ranges["handle"] = fs.open_many([PATH])[0]
        self.ranges["length"] = dice.integers(1, CHUNK, count)
        self.ranges["offset"] = dice.integers(0, BYTES - CHUNK, count)
        pairs = zip(self.ranges["offset"].tolist(), self.ranges["length"].tolist(), strict=True)
        self.expected = b"".join(data[o : o + n] for o, n in pairs)
        self.out = np.zeros(len(self.expected), dtype=np.uint8)

    def read(self) -> float:
        """Read it and compare; return how long the call took."""
        self.out[:] = 0
        start = time.monotonic()
        assert self.fs.readv_into(self.ranges, self.out) == len(self.expected)
        took = time.monotonic() - start
        assert self.out.tobytes() == self.expected
        return took


def heal(cluster: Cluster, index: int) -> None:
    """Have a daemon run and answer again."""
    process = cluster.process("storage", index)
    if process.alive:
        process.signal(signal.SIGCONT)
    else:
        process.start()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_replica_that_stops_or_dies_mid_batch(
    mirrored: Cluster, data: bytes, number: signal.Signals
) -> None:
    extra = []
    for turn in range(ROUNDS):
        victim = turn % 2
        with client(mirrored) as fs:
            batch = Batch(fs, data, SEED * 1000 + turn)
            usual = min(batch.read() for _ in range(3))
            delay_s = np.random.default_rng(turn).uniform(0.0, usual)

            def strike(index: int = victim) -> None:
                mirrored.process("storage", index).signal(number)

            with soon(strike, delay_s):
                extra.append(batch.read() - usual)
            extra.append(batch.read() - usual)
            extra.append(batch.read() - usual)
            if number == signal.SIGKILL:
                mirrored.kill("storage", victim)
            heal(mirrored, victim)
    assert max(extra) < EXTRA_S_MAX


def test_every_way_of_reading_survives_a_stopped_replica(mirrored: Cluster, data: bytes) -> None:
    with client(mirrored) as warm, client(mirrored) as cold:
        assert warm.cat_file(PATH) == data
        cold.info(PATH)
        mirrored.pause("storage", 1)
        try:
            for fs in (warm, cold):
                assert fs.cat_file(PATH, 5, 5 * MIB) == data[5 : 5 * MIB]
                assert fs.cat_ranges([PATH] * 8, list(range(8)), list(range(9, 17))) == [
                    data[i : i + 9] for i in range(8)
                ]
                with fs.open(PATH, "rb") as file:
                    file.seek(3 * MIB + 1)
                    assert file.read(4 * MIB) == data[3 * MIB + 1 : 7 * MIB + 1]
                for offset in range(0, BYTES, BYTES // 16):
                    assert fs.cat_file(PATH, offset, offset + 100) == data[offset : offset + 100]
                assert asyncio.run(fs._cat_file(PATH)) == data
                assert fs.cat([PATH, PATH]) == data or fs.cat(PATH) == data
                assert fs.read_counters()["doubts"] >= 1
        finally:
            mirrored.resume("storage", 1)


def test_many_threads_survive_a_stopped_replica(mirrored: Cluster, data: bytes) -> None:
    with client(mirrored) as fs:
        batches = [Batch(fs, data, 50 + i, count=40) for i in range(6)]
        failures: list[BaseException] = []

        def work(batch: Batch) -> None:
            try:
                for _ in range(6):
                    assert batch.read() < EXTRA_S_MAX
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(batch,)) for batch in batches]
        with soon(lambda: mirrored.pause("storage", 0), 0.05):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        mirrored.resume("storage", 0)
        assert not failures


def test_a_stopped_replica_is_read_from_again_when_it_runs(mirrored: Cluster, data: bytes) -> None:
    with client(mirrored) as fs:
        batch = Batch(fs, data, 3, count=20)
        mirrored.pause("storage", 0)
        batch.read()
        assert fs.read_counters()["stalled"] > 0
        mirrored.resume("storage", 0)
        give_up = time.monotonic() + 100
        while fs.core.settler.replicas._doubts:
            batch.read()
            assert time.monotonic() < give_up, "it was never trusted again"
            time.sleep(0.05)
        assert fs.read_counters()["probes"] >= 1
        batch.read()


def test_with_both_replicas_gone_the_error_names_the_cause(
    mirrored: Cluster, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FFS_META__HEARTBEAT_MS", "50")
    monkeypatch.setenv("FFS_META__NODE_LEASE_MS", "300")
    with client(mirrored, read_deadline_ms=1_500) as fs:
        assert fs.cat_file(PATH, 0, 9) == data[:9]
        for index in range(2):
            mirrored.kill("storage", index)
        with pytest.raises(UnavailableError) as caught:
            fs.cat_file(PATH, 0, 9)
        assert caught.value.where["path"] == PATH
        for index in range(2):
            heal(mirrored, index)
    with client(mirrored) as fs:
        assert fs.cat_file(PATH) == data


def damage(cluster: Cluster, index: int, bit: int) -> None:
    """Flip a bit four times in each chunk that one daemon's disk holds; it is stopped meanwhile."""
    for extents in cluster.target_dir(index).rglob("*.data"):
        held = np.fromfile(extents, dtype=np.uint8)
        held[CHUNK // 8 :: CHUNK // 4] ^= 1 << bit
        held.tofile(extents)


def read_until_met(fs: FFSFileSystem, path: str, content: bytes, what: str) -> None:
    """Read a file a few times, and until the client has met what is wrong with a replica."""
    give_up, reads = time.monotonic() + EXTRA_S_MAX, 0
    while reads < 4 or not fs.read_counters()[what]:
        assert time.monotonic() < give_up, "only the other one is read from"
        assert fs.cat_file(path) == content
        reads += 1


def test_a_corrupt_replica_is_read_around_and_reported(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with stopped_at_exit(Cluster(tmp_path / "corrupt", storage=2, config=CONFIG)) as cluster:
        store(cluster, {PATH: data[: 4 * MIB]})
        cluster.process("storage", 1).terminate()
        damage(cluster, 1, bit=0)
        cluster.restart("storage", 1)
        with client(cluster) as fs:
            read_until_met(fs, PATH, data[: 4 * MIB], "damaged")
            counters = fs.read_counters()
            reports = [r for r in caplog.records if r.message == "replica_damaged"]
            places = {(vars(r)["target"], vars(r)["blob"], vars(r)["chunk"]) for r in reports}
            assert 0 < len(places) == len(reports) and {t for t, _, _ in places} == {2}
            assert counters["damaged"] > 0 and counters["failed_over"] >= counters["damaged"]
        # Both at once: one that is whole mends what the other was told of.
        for index in range(2):
            cluster.process("storage", index).terminate()
            damage(cluster, index, bit=1)
        for index in range(2):
            cluster.restart("storage", index)
        with client(cluster) as fs, pytest.raises(ChecksumError) as caught:
            fs.cat_file(PATH)
        assert {"path", "blob", "chunk", "target", "node", "offset"} <= caught.value.where.keys()


def test_a_replica_without_the_chunks_is_read_around(mirrored: Cluster, data: bytes) -> None:
    store(mirrored, {BEHIND: data[: 4 * MIB]})
    lose(mirrored, 1, BEHIND)
    with client(mirrored) as fs:
        read_until_met(fs, BEHIND, data[: 4 * MIB], "missing")
        counters = fs.read_counters()
        assert 0 < counters["missing"] <= counters["failed_over"]


# --- what a network does ------------------------------------------------------------------------


@pytest.fixture
def relay(mirrored: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """The client's connections to the second daemon go through it."""
    host, port = mirrored.process("storage", 1).ready.rsplit(":", 1)
    with Relay((host, int(port))) as relay:

        def redirected(to_host: str, to_port: int, *args: Any, **options: Any) -> Any:
            via = relay.address if to_port == int(port) else (to_host, to_port)
            return dial(*via, *args, **options)

        monkeypatch.setattr(connections, "dial", redirected)
        yield relay


def test_a_connection_that_is_reset_mid_batch(
    mirrored: Cluster, data: bytes, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "SLOW_FROM", 1e9)  # or the relay may get next to nothing
    with client(mirrored) as fs:
        batch = Batch(fs, data, 21)
        usual = batch.read()
        for turn in range(ROUNDS):
            with soon(relay.reset, usual * turn / ROUNDS):
                assert batch.read() < EXTRA_S_MAX
        assert fs.read_counters()["lost"] > 0


def test_a_network_that_swallows_everything(mirrored: Cluster, data: bytes, relay: Relay) -> None:
    with client(mirrored) as fs, client(mirrored) as cold:
        batch, later = Batch(fs, data, 22), Batch(cold, data, 23)
        usual = batch.read()
        with soon(relay.swallow, usual / 2):
            assert batch.read() < EXTRA_S_MAX
        assert batch.read() < EXTRA_S_MAX
        assert later.read() < EXTRA_S_MAX, "connecting costs no more where another serves"
        assert cold.read_counters()["stalled"] > 0
        relay.pass_on()


def moved_since(before: dict[str, int], now: dict[str, int]) -> bool:
    """Whether ranges were hedged or stalled since."""
    return any(now[name] > before[name] for name in ("hedged", "stalled"))


def test_a_slow_replica_is_hedged_and_then_spared(
    mirrored: Cluster, data: bytes, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine it may stall as well; the simulator is exact, this is real."""
    with client(mirrored) as fs:
        batch, known = Batch(fs, data, 24, count=20), fs.core.settler.replicas
        with monkeypatch.context() as patch:
            patch.setattr(replicas, "SLOW_FROM", 1e9)  # the relay is slow on a busy machine
            for _ in range(100):
                batch.read()
            known._late = 8.0  # as after some hundred more calls
            before = fs.read_counters()
            relay.pace = 400_000
            for _ in range(40):  # until the relay has its turn: the machine may have held it up
                batch.read()
                if moved_since(before, fs.read_counters()):
                    break
        for _ in range(40):
            batch.read()
        counters = fs.read_counters()
        assert moved_since(before, counters)
        assert counters["failed_over"] > before["failed_over"]
        assert counters["hedged"] * HEDGE_SHARE <= counters["ranges"]
        slow = max(known._slowness(list(known._paces)))
        assert slow > 4 or known._doubts, "it gets little, or nothing"
        relay.pass_on()
