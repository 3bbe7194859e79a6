"""ffs.torch on a real cluster: what the loop gets, and what is left when it goes."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler, Subset, random_split
from torchdata.stateful_dataloader import StatefulDataLoader

import ffs.records
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ClosedError, InvalidError
from ffs.torch import (
    ConcatDataset,
    DataLoader,
    ElasticSampler,
    IterableRecordDataset,
    MixedDataset,
    RecordDataset,
)
from tests.harness import Cluster, close_idle
from tests.torch.samples import InMemory

ROUNDS = int(os.environ.get("FFS_ROUNDS", "1"))
SAMPLES, SAMPLE = 200, 4096
SEED = 0xFEDC_BA98_7654_3210
"""One as torch.initial_seed() gives them: of 64 bits."""
Rows = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def rows(cluster: Cluster) -> Rows:
    """The samples, which are written to /loader.ffr; /varied.ffr has their first 1 + 20 i bytes."""
    data = np.random.default_rng(6).integers(0, 256, (SAMPLES, SAMPLE), dtype=np.uint8)
    options = cluster.storage_options
    with ffs.records.create("ffs:///loader.ffr", storage_options=options) as fixed:
        for row in data:
            fixed.append(row)
    with ffs.records.create("ffs:///varied.ffr", storage_options=options) as varied:
        for i, row in enumerate(data):
            varied.append(row[: 1 + 20 * i])
    return data


@pytest.fixture
def dataset(cluster: Cluster, rows: Rows) -> RecordDataset:
    """The samples as a data set."""
    options = cluster.storage_options
    return RecordDataset(
        "ffs:///loader.ffr", dtype="uint8", shape=(SAMPLE,), storage_options=options
    )


def joined(loader: Any) -> Rows:
    """Return all samples that a loop gets, copied at once."""
    return np.concatenate([batch.numpy().copy() for batch in loader])


def idle(loader: DataLoader) -> bool:
    """Whether every slot of the last ring is free."""
    gc.collect()
    counters = loader.ring_counters()
    return counters["free"] == counters["slots"] > 0


def descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


# --- what the loop gets -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "method"),
    [(0, None), (1, "fork"), (2, "fork"), (1, "forkserver"), (1, "spawn")],
)
def test_batches_are_the_samples_in_order(
    dataset: RecordDataset, rows: Rows, workers: int, method: str | None
) -> None:
    order = random.Random(2).choices(range(SAMPLES), k=SAMPLES)  # some twice in a batch
    loader = DataLoader(
        dataset,
        batch_size=32,
        sampler=order,
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=workers > 0,
    )
    for _ in range(2):
        assert (joined(loader) == rows[order]).all()
    counters = loader.ring_counters()
    assert counters["batches"] == 14 and counters["fallbacks"] == 0
    assert idle(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_of_different_lengths_are_views(cluster: Cluster, rows: Rows, workers: int) -> None:
    options = cluster.storage_options
    varied = RecordDataset("ffs:///varied.ffr", dtype="uint8", shape=None, storage_options=options)
    loader = DataLoader(varied, batch_size=16, num_workers=workers)
    got = [sample.clone() for batch in loader for sample in batch]
    assert all((s.numpy() == rows[i, : 1 + 20 * i]).all() for i, s in enumerate(got))
    assert len(got) == SAMPLES
    assert loader.ring_counters()["batches"] == 13 and idle(loader)
    wrong = RecordDataset("ffs:///varied.ffr", dtype="uint8", shape=(21,), storage_options=options)
    assert wrong[1].shape == (21,)
    with pytest.raises(InvalidError, match="the sample has 41 bytes"):
        wrong[2]


def test_dtype_and_shape_are_what_the_bytes_mean(cluster: Cluster, rows: Rows) -> None:
    options = cluster.storage_options
    for dtype in ("float32", np.float32, torch.float32):
        floats = RecordDataset(
            "ffs:///loader.ffr", dtype=dtype, shape=(2, 512), storage_options=options
        )
        batch = next(iter(DataLoader(floats, batch_size=3)))
        assert batch.dtype == torch.float32 and batch.shape == (3, 2, 512)
        assert batch.numpy().tobytes() == rows[:3].tobytes()
        del batch
    with pytest.raises(InvalidError, match="no such dtype"):
        RecordDataset("ffs:///loader.ffr", dtype="word", shape=(1,), storage_options=options)


def test_torch_s_own_loader_and_samplers_work(dataset: RecordDataset, rows: Rows) -> None:
    stock = torch.utils.data.DataLoader(dataset, batch_size=50, num_workers=1)
    assert (joined(stock) == rows).all()

    def batches() -> Any:
        dice = torch.Generator().manual_seed(1)
        return BatchSampler(RandomSampler(dataset, generator=dice), 30, False)

    picked = [i for batch in batches() for i in batch]
    for loader in (
        DataLoader(dataset, batch_sampler=batches(), num_workers=1),
        DataLoader(dataset, batch_size=None, sampler=batches()),
    ):
        assert (joined(loader) == rows[picked]).all()
    part = Subset(dataset, range(20, 60))
    assert (joined(DataLoader(part, batch_size=7)) == rows[20:60]).all()
    halves = random_split(dataset, [100, 100], generator=torch.Generator().manual_seed(3))
    loader = DataLoader(halves[1], batch_size=8, num_workers=1)
    assert (joined(loader) == rows[halves[1].indices]).all()
    assert loader.ring_counters()["batches"] == 13


def test_a_collate_function_gets_samples(dataset: RecordDataset, rows: Rows) -> None:
    def collate(samples: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sums": torch.stack([s.sum(dtype=torch.int64) for s in samples])}

    for workers in (0, 1):
        loader = DataLoader(dataset, batch_size=32, num_workers=workers, collate_fn=collate)
        sums = torch.cat([batch["sums"] for batch in loader])
        assert (sums.numpy() == rows.sum(axis=1, dtype=np.int64)).all()
        assert idle(loader)
        again = DataLoader(dataset, batch_size=32, collate_fn=loader.collate_fn)
        assert next(iter(again))["sums"].shape == (32,)


class Halved(RecordDataset):
    """Makes something else of each sample, as torch's users do."""

    def __getitem__(self, i: Any) -> Any:
        return super().__getitem__(i)[: SAMPLE // 2]


def test_a_subclass_may_change_samples(cluster: Cluster, rows: Rows) -> None:
    options = cluster.storage_options
    halved = Halved("ffs:///loader.ffr", dtype="uint8", shape=(SAMPLE,), storage_options=options)
    for workers in (0, 1):
        loader = DataLoader(halved, batch_size=32, num_workers=workers)
        assert (joined(loader) == rows[:, : SAMPLE // 2]).all()
    with pytest.raises(InvalidError, match="makes its samples otherwise"):
        ConcatDataset([halved])


def test_bad_numbers_are_index_errors(dataset: RecordDataset) -> None:
    for bad in (-1, SAMPLES):
        with pytest.raises(IndexError):
            dataset[bad]
        with pytest.raises(IndexError):
            next(iter(DataLoader(dataset, batch_size=2, sampler=[0, bad])))


# --- several data sets ------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_concatenated_batches_keep_their_order(
    dataset: RecordDataset, rows: Rows, workers: int
) -> None:
    both = ConcatDataset([dataset, dataset, dataset])
    assert len(both) == 3 * SAMPLES
    order = random.Random(4).choices(range(3 * SAMPLES), k=100)
    loader = DataLoader(both, batch_size=20, sampler=order, num_workers=workers)
    assert (joined(loader) == rows[np.array(order) % SAMPLES]).all()
    assert loader.ring_counters()["batches"] == 5
    with pytest.raises(IndexError):
        both[3 * SAMPLES]


def test_a_combined_batch_is_one_call(
    cluster: Cluster, dataset: RecordDataset, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also nested, of different lengths, and held against the samples' checksums."""
    options = cluster.storage_options

    def varied() -> RecordDataset:
        return RecordDataset(
            "ffs:///varied.ffr", dtype="uint8", shape=None, verify="sample", storage_options=options
        )

    order = random.Random(4).choices(range(3 * SAMPLES), k=50)
    calls: list[int] = []
    real = FFSFileSystem.readv_into

    def counted(fs: FFSFileSystem, ranges: Any, out: Any) -> int:
        calls.append(len(ranges))
        return real(fs, ranges, out)

    monkeypatch.setattr(FFSFileSystem, "readv_into", counted)
    both = ConcatDataset([varied(), ConcatDataset([varied(), varied()])])
    len(both)
    calls.clear()
    got = both.__getitems__(order)
    assert calls == [50]
    for sample, i in zip(got, np.array(order) % SAMPLES, strict=True):
        assert sample.numpy().tobytes() == rows[i, : 1 + 20 * i].tobytes()
    elsewhere = ConcatDataset([dataset, InMemory(rows)])
    order = random.Random(5).choices(range(2 * SAMPLES), k=50)
    assert (
        torch.stack(elsewhere.__getitems__(order)).numpy() == rows[np.array(order) % SAMPLES]
    ).all()


def test_a_mix_has_its_weights_everywhere(cluster: Cluster, dataset: RecordDataset) -> None:
    small = ConcatDataset([dataset])
    mixed = MixedDataset([ConcatDataset([dataset] * 3), small], [1, 2])
    parts, numbers = mixed.locate(np.arange(len(mixed)))
    assert len(mixed) == 9 * SAMPLES
    assert np.bincount(parts).tolist() == [3 * SAMPLES, 6 * SAMPLES]
    assert len(np.unique(numbers[parts == 0])) == 3 * SAMPLES
    assert np.bincount(numbers[parts == 1]).tolist() == [6] * SAMPLES
    for start in range(0, len(mixed), 300):
        assert 55 < (parts[start : start + 300] == 0).sum() < 150
    assert len(joined(DataLoader(mixed, batch_size=100, num_workers=1))) == 9 * SAMPLES
    with pytest.raises(InvalidError, match="weights"):
        MixedDataset([small], [0])
    other = RecordDataset(
        "ffs:///varied.ffr", dtype="uint8", shape=None, storage_options=cluster.storage_options
    )
    with pytest.raises(InvalidError, match="data set 1 has samples of"):
        ConcatDataset([small, other])


# --- streams ----------------------------------------------------------------------------------


def stream(cluster: Cluster, **order: Any) -> IterableRecordDataset:
    """The samples as a stream."""
    return IterableRecordDataset(
        "ffs:///loader.ffr",
        dtype="uint8",
        shape=(SAMPLE,),
        storage_options=cluster.storage_options,
        **order,
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_is_the_same_for_any_number_of_workers(
    cluster: Cluster, rows: Rows, workers: int
) -> None:
    orders = [
        list(ElasticSampler(SAMPLES, seed=SEED, epoch=epoch, rank=1, world=3)) for epoch in range(2)
    ]
    data = stream(cluster, shuffle=True, seed=SEED, rank=1, world=3)
    loader = DataLoader(data, batch_size=9, num_workers=workers, persistent_workers=workers > 0)
    assert (joined(loader) == rows[orders[0]]).all()
    assert (joined(loader) == rows[orders[1]]).all()  # the epoch after
    data.set_epoch(0)
    taken = list(zip(range(3), loader, strict=False))
    state = loader.state_dict()
    assert state["order"] == {"seed": SEED, "epoch": 0, "consumed": 81}
    del taken
    resumed = DataLoader(stream(cluster, shuffle=True, seed=SEED, rank=0, world=1), batch_size=10)
    resumed.load_state_dict(state)
    rest = list(ElasticSampler(SAMPLES, seed=SEED, rank=0, world=1))[81:]
    assert (joined(resumed) == rows[rest]).all()
    assert len(loader) == 8 and len(data) == 67


def test_a_stream_in_torch_s_own_loaders(cluster: Cluster, rows: Rows) -> None:
    data = stream(cluster)
    for workers in (0, 2):
        stock = torch.utils.data.DataLoader(data, batch_size=16, num_workers=workers)
        got = {row.tobytes() for row in joined(stock)}
        assert got == {row.tobytes() for row in rows}


# --- position ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "then"), [(0, 2), (2, 0)])
def test_a_loop_goes_on_where_it_was(
    dataset: RecordDataset, rows: Rows, workers: int, then: int
) -> None:
    """What was read ahead of the loop does not count."""

    def loader(batch_size: int, workers: int) -> DataLoader:
        sampler = ElasticSampler(SAMPLES, seed=8)
        return DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=workers)

    first, order = loader(16, workers), list(ElasticSampler(SAMPLES, seed=8))
    it = iter(first)
    seen = [next(it).numpy().copy() for _ in range(4)]
    state = first.state_dict()
    del it
    second = loader(24, then)
    second.load_state_dict(state)
    assert (np.concatenate([*seen, joined(second)]) == rows[order]).all()
    following = list(ElasticSampler(SAMPLES, seed=8, epoch=1))
    assert (joined(second) == rows[following]).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_that_was_broken_off_starts_again(
    dataset: RecordDataset, rows: Rows, workers: int
) -> None:
    """However far was read ahead of it: here to the sampler's end."""
    order = list(ElasticSampler(SAMPLES, seed=8))
    sampler = ElasticSampler(SAMPLES, seed=8)
    loader = DataLoader(dataset, batch_size=16, sampler=sampler, num_workers=workers)
    for number, _ in enumerate(loader):
        if number == 11:  # of 13
            break
    assert (joined(loader) == rows[order]).all()
    following = list(ElasticSampler(SAMPLES, seed=8, epoch=1))
    assert (joined(loader) == rows[following]).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torch_sampler_s_order_is_found_again(dataset: RecordDataset, workers: int) -> None:
    torch.manual_seed(4)
    whole = DataLoader(dataset, batch_size=16, shuffle=True, num_workers=workers)
    epochs = [joined(whole), joined(whole)]
    torch.manual_seed(4)
    first = DataLoader(dataset, batch_size=16, shuffle=True, num_workers=workers)
    assert (joined(first) == epochs[0]).all()
    at_end = first.state_dict()
    it = iter(first)
    seen = [next(it).numpy().copy() for _ in range(5)]
    state = first.state_dict()
    del it
    for position, before in ((at_end, []), (state, seen)):
        again = DataLoader(dataset, batch_size=16, shuffle=True, num_workers=workers)
        again.load_state_dict(position)
        assert (np.concatenate([*before, joined(again)]) == epochs[1]).all()


def test_what_cannot_be_found_again_is_refused(dataset: RecordDataset) -> None:
    dice = DataLoader(dataset, batch_size=4, sampler=RandomSampler(dataset))
    with pytest.raises(InvalidError, match="another order each time"):
        dice.state_dict()
    loose = DataLoader(dataset, batch_size=4, num_workers=2, in_order=False)
    with pytest.raises(InvalidError, match="out of order"):
        loose.state_dict()
    elastic = DataLoader(dataset, sampler=ElasticSampler(SAMPLES))
    with pytest.raises(InvalidError, match="another kind of sampler"):
        elastic.load_state_dict({"batches": 1, "generator": None})
    uneven = DataLoader(dataset, batch_sampler=Uneven())
    next(iter(uneven))
    with pytest.raises(InvalidError, match="how many samples Uneven puts in a batch"):
        uneven.state_dict()


class Uneven:
    """Batches of one sample, two, three and so on."""

    def __init__(self) -> None:
        self.sampler = ElasticSampler(SAMPLES)

    def __iter__(self) -> Iterator[list[int]]:
        drawn = iter(self.sampler)
        for size in itertools.count(1):
            batch = list(itertools.islice(drawn, size))
            if not batch:
                return
            yield batch


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata's own use of torch
@pytest.mark.parametrize("kind", ["numbers", "stream"])
def test_torchdata_s_stateful_loader_goes_on(
    cluster: Cluster, dataset: RecordDataset, rows: Rows, kind: str
) -> None:
    def loader() -> Any:
        if kind == "stream":
            return StatefulDataLoader(stream(cluster), batch_size=16, num_workers=1)
        sampler = ElasticSampler(SAMPLES, seed=1)
        return StatefulDataLoader(dataset, batch_size=16, num_workers=1, sampler=sampler)

    order = range(SAMPLES) if kind == "stream" else list(ElasticSampler(SAMPLES, seed=1))
    first = loader()
    it = iter(first)
    seen = [next(it).numpy().copy() for _ in range(5)]
    state = first.state_dict()
    del it
    second = loader()
    second.load_state_dict(state)
    assert (np.concatenate([*seen, joined(second)]) == rows[list(order)]).all()


# --- what is left -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_may_hoard(dataset: RecordDataset, rows: Rows, workers: int) -> None:
    loader = DataLoader(dataset, batch_size=4, num_workers=workers)
    joined(loader)
    before = descriptors()
    hoard = list(loader)
    assert (np.concatenate([b.numpy() for b in hoard]) == rows).all()
    counters = loader.ring_counters()
    assert counters["held"] == counters["slots"]
    assert counters["fallbacks"] == 50 - counters["slots"]
    gc.collect()
    assert descriptors() <= before + (2 if workers else 0)  # the resource sharer's socket
    del hoard
    assert idle(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_breaking_off_leaves_nothing(
    cluster: Cluster, dataset: RecordDataset, workers: int
) -> None:
    fs = fsspec.filesystem("ffs", **cluster.storage_options)  # the data set's: fsspec keeps it
    loader = DataLoader(dataset, batch_size=8, num_workers=workers, shuffle=True)
    rounds = (3 if workers else 40) * ROUNDS  # more than what may be kept

    def epochs(count: int) -> None:
        for _ in range(count):
            for batch in loader:
                assert batch.shape == (8, SAMPLE)
                break
        del batch

    def settled() -> int:
        """Descriptors, but those of connections: threads that happen to read at once keep one each.

        A thread that was reading for a loop that is gone hands its slot back when it is done.
        """
        give_up = time.monotonic() + 60
        while not idle(loader):
            assert time.monotonic() < give_up, loader.ring_counters()
            time.sleep(0.01)
        close_idle(fs)
        return descriptors()

    epochs(3)
    assert fs.core.connections.transports()
    before, memory = settled(), resident_bytes()
    epochs(rounds)
    after = settled()
    assert workers == 0 or loader.ring_counters()["fallbacks"] == 0
    grown = resident_bytes() - memory
    print(f"{rounds} loops broken off, {workers} workers: {grown >> 10} KiB more,")
    print(f"{before} descriptors before, {after} now; {loader.ring_counters()}")
    assert after <= before
    assert grown < (1 << 20) * max(1, rounds // 1000) + (1 << 20)


def resident_bytes() -> int:
    """This process's memory, without what it shares."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * resource.getpagesize()


@pytest.mark.parametrize("persistent", [False, True])
def test_killed_workers_leave_no_slot(dataset: RecordDataset, persistent: bool) -> None:
    dice = random.Random(9)
    loader = two_workers(dataset, persistent)
    for _ in range(2 * ROUNDS):
        with contextlib.suppress(RuntimeError), at_any_time(dice, loader) as batches:
            for batch in batches:
                assert batch.shape[1] == SAMPLE
        batch = None
        if persistent:  # torch's loader does not start new ones
            loader = two_workers(dataset, persistent)
        assert len(joined(loader)) == SAMPLES
        assert idle(loader)
        counters = loader.ring_counters()
        if persistent:
            loader = two_workers(dataset, persistent)
    print(f"{2 * ROUNDS} workers killed, persistent={persistent}: after the last, {counters}")


def two_workers(dataset: RecordDataset, persistent: bool) -> DataLoader:
    """A loader of small batches with two workers."""
    return DataLoader(dataset, batch_size=2, num_workers=2, persistent_workers=persistent)


@contextlib.contextmanager
def at_any_time(dice: random.Random, loader: DataLoader) -> Iterator[Iterator[Any]]:
    """An iterator of which a worker is killed after some batches."""
    children = set(worker_ids())
    batches = iter(loader)
    workers = sorted(set(worker_ids()) - children)
    assert len(workers) == 2

    def killing() -> Iterator[Any]:
        victim, after = dice.choice(workers), dice.randrange(40)
        for number, batch in enumerate(batches):
            if number == after:
                os.kill(victim, signal.SIGKILL)
            yield batch

    yield killing()


def worker_ids() -> list[int]:
    """The processes that this one started."""
    found: list[int] = []
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


def test_two_loops_at_once_have_a_ring_each(dataset: RecordDataset, rows: Rows) -> None:
    loader = DataLoader(dataset, batch_size=25, num_workers=1)
    pairs = [(a.numpy().copy(), b.numpy().copy()) for a, b in zip(loader, loader, strict=True)]
    assert (np.concatenate([a for a, _ in pairs]) == rows).all()
    assert (np.concatenate([b for _, b in pairs]) == rows).all()
    assert loader.ring_counters()["fallbacks"] == 0


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_new_position_ends_the_loop_under_way(
    dataset: RecordDataset, rows: Rows, workers: int, persistent: bool
) -> None:
    sampler = ElasticSampler(len(dataset), seed=5, rank=0, world=1)
    loader = DataLoader(
        dataset, 8, sampler=sampler, num_workers=workers, persistent_workers=persistent
    )
    whole = joined(loader)
    loader.load_state_dict({"order": {"seed": 5, "epoch": 0, "consumed": 0}})
    old = iter(loader)
    for _ in range(3):
        next(old)
    state = loader.state_dict()
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    for _ in range(2):
        with pytest.raises(ClosedError, match="load_state_dict has placed the loader elsewhere"):
            next(old)
    assert loader.state_dict() == state
    assert (joined(loader) == whole[24:]).all()
    del old
    assert idle(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_position_is_that_of_the_newest_loop(dataset: RecordDataset, workers: int) -> None:
    loader = DataLoader(dataset, 10, num_workers=workers, shuffle=False)
    old, new = iter(loader), iter(loader)
    next(new)
    for _ in old:
        assert loader.state_dict()["batches"] == 1
    next(new)
    assert loader.state_dict()["batches"] == 2


def test_workers_that_stay_serve_one_loop(dataset: RecordDataset, rows: Rows) -> None:
    loader = DataLoader(dataset, 10, num_workers=1, persistent_workers=True)
    old = iter(loader)
    next(old)
    new = iter(loader)
    with pytest.raises(ClosedError, match="a loop that began later"):
        next(old)
    assert (np.concatenate([batch.numpy().copy() for batch in new]) == rows).all()


def test_the_ring_grows_for_workers_that_stay(cluster: Cluster, rows: Rows) -> None:
    options = cluster.storage_options
    varied = RecordDataset("ffs:///varied.ffr", dtype="uint8", shape=None, storage_options=options)
    batches = [[0, 1], [2, 3], list(range(100, 120))]  # no size is known beforehand
    loader = DataLoader(varied, batch_sampler=batches, num_workers=1, persistent_workers=True)
    for fallbacks in (1, 0, 0):
        for got, wanted in zip(loader, batches, strict=True):
            for sample, i in zip(got, wanted, strict=True):
                assert (sample.numpy() == rows[i, : 1 + 20 * i]).all()
        assert loader.ring_counters()["fallbacks"] == fallbacks
    iterator = loader._iterator
    assert len(list(loader)) == len(batches)
    assert loader._iterator is iterator  # started anew once, for the larger ring
    assert loader.ring_counters()["slot_bytes"] > 40_000
