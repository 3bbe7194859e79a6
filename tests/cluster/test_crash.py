"""kill -9 of every process at random moments during writes.

Afterwards every acknowledged file reads back with its digest; a file whose writing was not
acknowledged is wholly there or shows its old content; nothing else is visible; and once sessions
have run out and garbage is collected, the chunk stores hold the reachable blobs and no others.

FFS_ROUNDS sets the number of rounds (`make soak` uses 100), FFS_SEED the first seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ffs._storage import ChunkStore
from ffs.client.filesystem import FFSFileSystem
from ffs.key import ClusterKey
from ffs.layout import chunk_count
from ffs.rpc.blocking import RpcClient
from ffs.wire.messages import OPEN_MANY, OpenFile, OpenManyRequest
from ffs.wire.status import STATUS, StatusRequest
from tests.harness import Cluster, Process

ROUNDS = int(os.environ.get("FFS_ROUNDS", "12"))
SEED = int(os.environ.get("FFS_SEED", "1"))
ROOT = Path(__file__).parents[2]
DIRECTORY = "/crash"
WRITERS = 2
SETTLE_S = 60.0
CONFIG: dict[str, object] = {
    "meta.session_ttl_ms": 4_000,
    "meta.gc_delay_s": 0,
    "meta.heartbeat_ms": 100,
    "meta.node_lease_ms": 500,
    "meta.chunk_size_bytes": 65_536,
}
ABSENT = ""


class Writer:
    """A writing client process, and what it said."""

    def __init__(self, url: str, key_file: str, directory: str, seed: int) -> None:
        command = [sys.executable, "-m", "tests.cluster.crash_writer"]
        self._process = subprocess.Popen(
            [*command, url, key_file, directory, str(seed)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """End it, whatever it was about to say."""
        with self._process:
            self.kill()

    def finish(self) -> list[list[str]]:
        """Let it stop after the file in hand, and return its words."""
        out, _ = self._process.communicate()
        lines = out.splitlines(keepends=True)
        return [line.split() for line in lines if line.endswith("\n")]


class Expected:
    """What each path may hold: one digest when acknowledged, several when in doubt."""

    def __init__(self) -> None:
        self.digests: dict[str, set[str]] = {}
        self.acknowledged = 0

    def learn(self, words: list[list[str]]) -> None:
        """Take in what a writer said, in order."""
        pending: dict[str, str] = {}
        for verb, path, *facts in words:
            before = self.digests.setdefault(path, {ABSENT})
            if verb == "begin":
                pending[path] = facts[0]
                self.digests[path] = before | {facts[0]}
            elif verb == "done":
                self.digests[path] = {pending[path]}
                self.acknowledged += 1
            else:
                assert verb == "failed" and facts[0] in ("UnavailableError", "DeadlineError"), facts

    def check(self, fs: FFSFileSystem) -> None:
        """Compare with all that is visible; what was in doubt is settled by what is there."""
        seen = set(fs.find(DIRECTORY))
        assert seen <= self.digests.keys(), f"visible, never written: {seen - self.digests.keys()}"
        for path, digests in self.digests.items():
            found = hashlib.sha256(fs.cat_file(path)).hexdigest() if path in seen else ABSENT
            assert found in digests, f"{path} holds {found or 'nothing'}, expected {digests}"
            self.digests[path] = {found}


def write_while(
    url: str, key_file: Path, seed: int, expected: Expected, disturb: Callable[[list[Writer]], None]
) -> None:
    """Run writers, disturb them, let them finish, and learn what they were told."""
    writers = [
        Writer(url, str(key_file), f"{DIRECTORY}/{i}", seed * 100 + i) for i in range(WRITERS)
    ]
    try:
        disturb(writers)
        for words in [writer.finish() for writer in writers]:
            expected.learn(words)
    finally:
        for writer in writers:
            writer.close()


def rpc(url: str, key_file: Path) -> RpcClient:
    host, port = url.removeprefix("ffs://").split(":")
    return RpcClient([(host, int(port))], ClusterKey.load(key_file), connect_ms=2_000)


def reachable_chunks(client: RpcClient, paths: list[str]) -> dict[int, int]:
    """Blob -> chunks, of all files."""
    request = OpenManyRequest([path.encode() for path in paths])
    files = client.call(OPEN_MANY, request, deadline_ms=5_000).files
    found: dict[int, int] = {}
    for file in files:
        assert isinstance(file, OpenFile), file
        for segment in file.segments:
            if segment.length:
                count = chunk_count(segment.length, segment.layout.chunk_size_bytes)
                found[segment.blob] = count
    return found


def wait_until_collected(url: str, key_file: Path, fs: FFSFileSystem) -> set[int]:
    """Wait until the targets hold as many chunks as are reachable; return the reachable blobs."""
    client = rpc(url, key_file)
    try:
        reachable = reachable_chunks(client, fs.find(DIRECTORY))
        give_up = time.monotonic() + SETTLE_S
        while True:
            status = client.call(STATUS, StatusRequest(), deadline_ms=5_000)
            stored = sum(report.chunks for report in status.reports)
            wanted = sum(reachable.values())
            if (stored, status.sessions, status.dead_blobs) == (wanted, 0, 0):
                return set(reachable)
            assert time.monotonic() < give_up, f"{stored} chunks stored, {wanted} reachable"
            time.sleep(0.1)
    finally:
        client.close()


def stored_blobs(target_dir: Path) -> set[int]:
    """The blobs of a target whose daemon does not run."""
    superblock = ChunkStore.read_superblock(str(target_dir))
    assert superblock is not None
    store = ChunkStore(
        str(target_dir),
        cluster_id=superblock["cluster_id"],
        target_id=superblock["target_id"],
    )
    try:
        assert store.stats()["damaged_entries"] == 0
        return set(store.blobs(limit=1_000_000))
    finally:
        store.close()


@contextlib.contextmanager
def filesystem(url: str, key_file: Path) -> Iterator[FFSFileSystem]:
    fs = FFSFileSystem(url=url, key_file=str(key_file), skip_instance_cache=True)
    try:
        yield fs
    finally:
        fs.close()


def make_directories(url: str, key_file: Path) -> None:
    with filesystem(url, key_file) as fs:
        for i in range(WRITERS):
            fs.makedirs(f"{DIRECTORY}/{i}")


def disturb_cluster(
    cluster: Cluster, victim: str, chance: random.Random
) -> Callable[[list[Writer]], None]:
    """Kill `victim` at a random moment, start it again after another."""

    def disturb(writers: list[Writer]) -> None:
        time.sleep(0.4 + chance.random() * 0.6)
        if victim == "all":
            cluster.kill_all()
        elif victim == "client":
            writers[0].kill()
        else:
            cluster.kill(victim)
        time.sleep(chance.random() * 0.2)
        cluster.start_all()
        time.sleep(chance.random() * 0.3)

    return disturb


VICTIMS = ("storage", "meta", "all", "client")


@pytest.mark.timeout(110 + 20 * ROUNDS)
def test_kill_9_of_each_process_loses_and_leaks_nothing(
    new_cluster: Callable[..., Cluster],
) -> None:
    cluster = new_cluster(config=CONFIG)
    expected = Expected()
    make_directories(cluster.url, cluster.key_file)
    for round_number in range(ROUNDS):
        victim = VICTIMS[round_number % len(VICTIMS)]
        seed = SEED + round_number
        disturb = disturb_cluster(cluster, victim, random.Random(seed))
        write_while(cluster.url, cluster.key_file, seed, expected, disturb)
        with filesystem(cluster.url, cluster.key_file) as fs:
            check(expected, fs, f"FFS_SEED={seed} after kill -9 of {victim}")
    assert expected.acknowledged > 5 * ROUNDS
    with filesystem(cluster.url, cluster.key_file) as fs:
        reachable = wait_until_collected(cluster.url, cluster.key_file, fs)
        assert reachable
    cluster.stop()
    assert stored_blobs(cluster.target_dir()) == reachable


def check(expected: Expected, fs: FFSFileSystem, when: str) -> None:
    try:
        expected.check(fs)
    except AssertionError as error:
        raise AssertionError(f"{when}: {error}") from error


def up_process(tmp_path: Path) -> Process:
    argv = [sys.executable, "-m", "ffs.server.up", "--data", str(tmp_path / "dir")]
    for key, value in CONFIG.items():
        argv += ["--set", f"{key}={value}"]
    (tmp_path / "log").mkdir()
    return Process("up", argv, tmp_path / "log")


@pytest.mark.timeout(110 + 20 * ROUNDS)
def test_kill_9_of_the_supervisor_takes_all_down_and_loses_nothing(tmp_path: Path) -> None:
    up = up_process(tmp_path)
    up.start()
    url, key_file = up.ready.split()[0], tmp_path / "dir" / "cluster.key"
    expected = Expected()
    make_directories(url, key_file)
    try:
        for round_number in range(max(2, ROUNDS // 6)):
            seed = SEED + 1_000 + round_number
            chance = random.Random(seed)

            def disturb(_: list[Writer], chance: random.Random = chance) -> None:
                time.sleep(0.4 + chance.random() * 0.6)
                up.kill()
                up.start()
                assert up.ready.split()[0] == url

            write_while(url, key_file, seed, expected, disturb)
            with filesystem(url, key_file) as fs:
                check(expected, fs, f"FFS_SEED={seed - 1_000} after kill -9 of the supervisor")
        with filesystem(url, key_file) as fs:
            reachable = wait_until_collected(url, key_file, fs)
        assert up.terminate() == 0
    finally:
        up.kill()
    assert stored_blobs(tmp_path / "dir" / "storage-1" / "target-1") == reachable
