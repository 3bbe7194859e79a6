"""The client across processes: fork in the middle of anything, forkserver, spawn, DataLoader."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ffs.client import _fork
from ffs.client.filesystem import RANGE_DTYPE, FFSFileSystem
from ffs.errors import ClosedError
from tests.harness import SLOW, Cluster

FORKS = 1_000
SAMPLE = 4096
SAMPLES = 512


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; return its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12+: fork with threads, on purpose
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def reap(pid: int, within_s: float = 20.0 * SLOW) -> None:
    """Wait for a child that must end well, and soon."""
    give_up = time.monotonic() + within_s
    while time.monotonic() < give_up:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.0005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError(f"child {pid} hung")


@pytest.fixture
def samples(fs: Any, fs_dir: str) -> tuple[str, bytes]:
    """A file of samples and its bytes."""
    data = random.Random(5).randbytes(SAMPLE * SAMPLES)
    fs.pipe_file(f"{fs_dir}/samples", data)
    return f"{fs_dir}/samples", data


def check_reads(fs: FFSFileSystem, path: str, data: bytes, seed: int) -> None:
    """Read some random samples in one call and compare them."""
    picks = random.Random(seed).sample(range(SAMPLES), 8)
    out = bytearray(SAMPLE * len(picks))
    fs.readv_into([(path, p * SAMPLE, SAMPLE) for p in picks], out)
    assert out == b"".join(data[p * SAMPLE : (p + 1) * SAMPLE] for p in picks)


def test_a_thousand_forks_lose_and_share_nothing(
    cluster: Cluster, fs: Any, fs_dir: str, samples: tuple[str, bytes]
) -> None:
    """Run in a process of ordinary size: forking this one, torch and all, takes far longer."""
    path, _ = samples
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fork_many.py")), path, fs_dir, str(FORKS)],
        env={**os.environ, **cluster.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)
    assert report["seconds"] <= 60 * SLOW and report["failed"] == 0
    assert report["identities"] == FORKS + 1
    for who in ("child", "parent"):
        for number in range(0, FORKS, 10):
            assert fs.cat_file(f"{fs_dir}/{who}-{number}") == f"{who} {number}".encode()
    assert len(fs.ls(fs_dir)) == 2 * FORKS // 10 + 1


def test_forks_while_other_threads_read_and_write(
    fs: Any, fs_dir: str, samples: tuple[str, bytes]
) -> None:
    path, data = samples
    stop = threading.Event()
    failures: list[BaseException] = []

    def busy(number: int) -> None:
        try:
            turn = 0
            while not stop.is_set():
                check_reads(fs, path, data, turn)
                if turn % 20 == number:
                    fs.pipe_file(f"{fs_dir}/t{number}", bytes(turn))
                turn += 1
        except BaseException as error:
            failures.append(error)

    def child() -> None:
        for turn in range(3):
            check_reads(fs, path, data, turn)
        fs.pipe_file(f"{fs_dir}/c{os.getpid()}", b"child")
        handle = fs.open_many([path])
        out = np.empty(SAMPLE, dtype=np.uint8)
        ranges = np.array([(handle[0], SAMPLE, SAMPLE)], dtype=RANGE_DTYPE)
        assert fs.readv_into(ranges, out) == SAMPLE

    threads = [threading.Thread(target=busy, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            reap(in_child(child))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


def test_an_inherited_writer_is_the_parent_s(fs: Any, fs_dir: str) -> None:
    files = [fs.open(f"{fs_dir}/x", "wb")]
    files[0].write(b"before ")

    def child() -> None:
        for use in (lambda: files[0].write(b"child"), files[0].flush, files[0].commit):
            with pytest.raises(ClosedError, match="before the fork"):
                use()
        files[0].discard()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            files.clear()
            gc.collect()
        fs.close()

    reap(in_child(child))
    with files[0] as file:
        file.write(b"after")
    assert fs.cat_file(f"{fs_dir}/x") == b"before after"


def test_an_inherited_reader_has_its_own_position(fs: Any, samples: tuple[str, bytes]) -> None:
    path, data = samples
    with fs.open(path, "rb") as file:
        file.seek(100)

        def child() -> None:
            assert file.read(50) == data[100:150]
            file.seek(0)

        reap(in_child(child))
        assert file.read(50) == data[100:150]


def test_a_child_of_a_child(fs: Any, fs_dir: str, samples: tuple[str, bytes]) -> None:
    path, data = samples

    def grandchild() -> None:
        assert _fork.generation() == 2
        check_reads(fs, path, data, 2)

    def child() -> None:
        check_reads(fs, path, data, 1)
        with fs.open(f"{fs_dir}/y", "wb") as file:
            file.write(b"1")
            reap(in_child(grandchild))
        assert fs.cat_file(f"{fs_dir}/y") == b"1"

    reap(in_child(child))


def test_the_event_loop_of_a_child_is_its_own(fs: Any, samples: tuple[str, bytes]) -> None:
    import fsspec.asyn

    path, data = samples

    def read() -> None:
        got = fsspec.asyn.sync(fs.loop, fs._cat_file, path, 0, 10)
        assert got == data[:10]

    read()
    reap(in_child(read))
    read()


# --- DataLoader -----------------------------------------------------------------------------------


class Samples(Dataset[torch.Tensor]):
    """Fixed-size samples read a batch at a time: what a user would write."""

    def __init__(self, fs: FFSFileSystem, path: str) -> None:
        self.fs = fs
        self.path = path

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        batch = torch.empty((len(indices), SAMPLE), dtype=torch.uint8)
        self.fs.readv_into([(self.path, i * SAMPLE, SAMPLE) for i in indices], batch.numpy())
        return batch


def as_it_is(batch: Any) -> Any:
    return batch


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_data_loader(fs: Any, samples: tuple[str, bytes], method: str) -> None:
    path, data = samples
    check_reads(fs, path, data, 0)  # the parent has connections of its own
    order = list(range(SAMPLES))
    random.Random(9).shuffle(order)
    loader = DataLoader(
        Samples(fs, path),
        batch_size=32,
        sampler=order,
        num_workers=2,
        collate_fn=as_it_is,
        multiprocessing_context=method,
        persistent_workers=True,
    )
    for _ in range(2):
        read = torch.cat([b.clone() for b in loader]).numpy().tobytes()
        assert read == b"".join(data[i * SAMPLE : (i + 1) * SAMPLE] for i in order)
    del loader
    check_reads(fs, path, data, 1)


def read_in_process(packed: bytes, path: str, queue: Any) -> None:
    fs = pickle.loads(packed)
    queue.put((fs.core.meta.client_id, fs.cat_file(path, 0, 100)))


@pytest.fixture
def queue() -> Iterator[Any]:
    made = multiprocessing.get_context("spawn").SimpleQueue()
    yield made
    made.close()


def test_pickles_are_configuration(fs: Any, samples: tuple[str, bytes], queue: Any) -> None:
    path, data = samples
    fs.open_many([path])
    packed = pickle.dumps(fs)
    assert len(packed) < 2_000 and fs.core.meta.client_id not in packed
    process = multiprocessing.get_context("spawn").Process(
        target=read_in_process, args=(packed, path, queue)
    )
    process.start()
    identity, got = queue.get()
    process.join()
    assert got == data[:100] and identity != fs.core.meta.client_id


def test_one_object_in_many_threads(cluster: Cluster, fs: Any, fs_dir: str) -> None:
    data = random.Random(5).randbytes(SAMPLE * SAMPLES)
    fs.pipe_file(f"{fs_dir}/samples", data)
    failures: list[BaseException] = []

    def hammer(number: int) -> None:
        try:
            for turn in range(60):
                check_reads(fs, f"{fs_dir}/samples", data, number * 1000 + turn)
                name = f"{fs_dir}/{number}-{turn % 5}"
                fs.pipe_file(name, f"{number} {turn}".encode() * 100)
                assert fs.cat_file(name) == f"{number} {turn}".encode() * 100
                assert fs.info(name)["size"] == len(f"{number} {turn}") * 100
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=hammer, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(fs.ls(fs_dir)) == 8 * 5 + 1
