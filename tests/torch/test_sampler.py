"""ElasticSampler: one order of all samples, whoever draws it and wherever it was broken off."""

from __future__ import annotations

import itertools
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

import ffs.torch
from ffs.client.permutation import Permutation
from ffs.client.torch import sampler as module
from ffs.errors import InvalidError
from ffs.torch import ElasticSampler

State = dict[str, int]


def whole_order(length: int, seed: int = 0, epoch: int = 0) -> list[int]:
    """The order of an epoch, as one process would see it."""
    return list(ElasticSampler(length, seed=seed, epoch=epoch, rank=0, world=1))


def run(
    start: ElasticSampler, world: int, batch: int, batches: int, ahead: int = 0
) -> tuple[list[int], State]:
    """What `world` ranks consume until each has used so many batches, in global order.

    Each rank's loader has drawn `ahead` more samples by then, as one with workers does.
    """
    begin = start.state_dict()
    drawn, states = [], []
    for rank in range(world):
        one = ElasticSampler(start.length, rank=rank, world=world, drop_last=start.drop_last)
        one.load_state_dict(begin)
        used = min(batches * batch, len(one))
        drawn.append(list(itertools.islice(iter(one), used + ahead))[:used])
        states.append(one.state_after(batches * batch))
    assert all(state == states[0] for state in states), "ranks disagree"
    return list(itertools.chain.from_iterable(zip(*drawn, strict=True))), states[0]


WORLD = st.integers(1, 7)
BATCH = st.integers(1, 9)


@given(
    st.integers(0, 200),
    st.lists(st.tuples(WORLD, st.integers(0, 4), BATCH, st.integers(0, 12)), max_size=4),
    st.tuples(WORLD, BATCH),
    st.booleans(),
    st.integers(0, 2**64 - 1),
)
def test_resumed_runs_see_one_order(
    length: int,
    pieces: list[tuple[int, int, int, int]],
    last: tuple[int, int],
    drop_last: bool,
    seed: int,
) -> None:
    """Broken off any number of times, gone on with by other ranks, workers and batches each time:
    no sample is lost, none comes twice but the padding, and the order is one."""
    sampler = ElasticSampler(length, seed=seed, epoch=2, rank=0, world=1, drop_last=drop_last)
    seen: list[int] = []
    for world, workers, batch, batches in pieces:
        some, state = run(sampler, world, batch, batches, ahead=workers * 2 * batch)
        seen += some
        sampler.load_state_dict(state)
        if state["consumed"] == length:
            break
    else:
        world, batch = last
        some, state = run(sampler, world, batch, length)
        seen += some
    order = whole_order(length, seed, 2)
    if drop_last and state["consumed"] == length:
        assert length - world < len(seen) <= length and seen == order[: len(seen)]
    else:
        extra = len(seen) - state["consumed"]
        assert 0 <= extra < world
        assert seen == (order[: state["consumed"]] + order * world)[: len(seen)]


class Squares(Dataset[int]):
    """A data set that says which sample it was asked for."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index * index


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_torch_data_loader(workers: int) -> None:
    """A plain DataLoader: workers change nothing, and `state_after` tells where the loop is."""
    length, batch = 103, 4
    sampler = ElasticSampler(length, seed=5, rank=1, world=2)
    loader = DataLoader(Squares(length), batch, sampler=sampler, num_workers=workers)
    expected = [i * i for i in (whole_order(length, 5) * 2)[1:104:2]]
    assert len(loader) == 13
    batches = [x.tolist() for x in itertools.islice(loader, 3)]
    assert [*itertools.chain(*batches)] == expected[:12]
    again = ElasticSampler(length, rank=1, world=2)
    again.load_state_dict(sampler.state_after(3 * batch))
    rest = DataLoader(Squares(length), batch, sampler=again, num_workers=workers)
    assert torch.cat(list(rest)).tolist() == expected[12:]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it
@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_data_loader(workers: int) -> None:
    """torchdata's loader keeps the state of the batch that the loop got last."""
    length = 57

    def loader() -> StatefulDataLoader[int]:
        sampler = ElasticSampler(length, seed=3, rank=0, world=2)
        return StatefulDataLoader(Squares(length), 4, sampler=sampler, num_workers=workers)

    expected = [i * i for i in whole_order(length, 3)[::2]]
    first, second = loader(), loader()
    found = torch.cat(list(itertools.islice(first, 3))).tolist()
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert found + torch.cat(list(second)).tolist() == expected
    following = whole_order(length, 3, 1)[::2]
    assert torch.cat(list(second)).tolist() == [i * i for i in following]


@pytest.mark.parametrize("workers", [0, 1])
def test_our_data_loader(workers: int) -> None:
    """Its state is the loop's, at any time: in an epoch, behind it, and when it was moved."""
    sampler = ElasticSampler(22, seed=3, rank=0, world=1, consumed=6)
    loader = ffs.torch.DataLoader(Squares(22), 4, sampler=sampler, num_workers=workers)

    def stands() -> tuple[int, int]:
        order = loader.state_dict()["order"]
        return order["epoch"], order["consumed"]

    assert stands() == (0, 6)
    assert [stands() for _ in loader] == [(0, 10), (0, 14), (0, 18), (0, 22)]
    assert stands() == (0, 22)
    sampler.set_epoch(1)
    assert stands() == (1, 0)
    next(iter(loader))
    assert stands() == (1, 4)
    sampler.set_epoch(5)
    assert stands() == (5, 0)


def test_epochs_follow_one_another() -> None:
    sampler = ElasticSampler(20, seed=1, rank=0, world=1, consumed=5)
    assert (len(sampler), list(sampler)) == (15, whole_order(20, 1)[5:])
    assert sampler.state_dict() == {"seed": 1, "epoch": 0, "consumed": 20}
    assert (len(sampler), list(sampler)) == (20, whole_order(20, 1, 1))
    sampler.set_epoch(2)
    assert list(itertools.islice(sampler, 7)) == whole_order(20, 1, 2)[:7]
    assert sampler.state_dict() == {"seed": 1, "epoch": 2, "consumed": 7}
    assert list(sampler) == whole_order(20, 1, 2), "what was broken off starts again"
    sampler.set_epoch(2)
    assert list(sampler) == whole_order(20, 1, 2), "asked for once more"


def test_set_epoch_keeps_the_place_in_the_epoch_that_was_loaded() -> None:
    """Training loops load a state and then call set_epoch with the epoch it holds."""
    sampler = ElasticSampler(20, rank=0, world=1)
    sampler.load_state_dict({"seed": 9, "epoch": 4, "consumed": 12})
    sampler.set_epoch(4)
    assert list(sampler) == whole_order(20, 9, 4)[12:]
    sampler.load_state_dict({"seed": 9, "epoch": 4, "consumed": 20})
    assert list(sampler) == []
    assert list(sampler) == whole_order(20, 9, 5)


def test_unshuffled() -> None:
    sampler = ElasticSampler(7, rank=1, world=3, shuffle=False)
    assert list(sampler) == [1, 4, 0]
    assert list(ElasticSampler(7, rank=1, world=3, shuffle=False, drop_last=True)) == [1, 4]
    assert list(ElasticSampler(2, rank=4, world=5, shuffle=False)) == [0]


def test_rank_and_world_are_read_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sampler = ElasticSampler(10, shuffle=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert list(sampler) == [1, 5, 9]
    copy = pickle.loads(pickle.dumps(sampler))
    meeting = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        assert list(copy) == list(range(10)), "the process group comes before the environment"
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"length": -1}, "length"),
        ({"rank": 0}, "both or neither"),
        ({"rank": 2, "world": 2}, "world of 2"),
        ({"consumed": 11}, "10 samples"),
        ({"seed": -1}, "seed"),
        ({"epoch": 2**64}, "epoch"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        ElasticSampler(**{"length": 10, **arguments})


def test_a_foreign_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = ElasticSampler(10, rank=0, world=1)
    with pytest.raises(InvalidError, match="consumed"):
        sampler.load_state_dict({"seed": 0, "epoch": 0})
    with pytest.raises(InvalidError, match="-1 samples used"):
        sampler.state_after(-1)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(InvalidError, match="RANK"):
        list(ElasticSampler(10))


def test_resume_at_a_billion_costs_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: the first sample after 10^9 others needs one block of the order."""
    permuted = []

    class Counting(Permutation):
        def __getitem__(self, positions: Any) -> Any:
            permuted.append(len(positions))
            return super().__getitem__(positions)

    monkeypatch.setattr(module, "Permutation", Counting)
    started = time.perf_counter()
    sampler = ElasticSampler(2 * 10**9, seed=4, rank=3, world=8)
    sampler.load_state_dict({"seed": 4, "epoch": 1, "consumed": 10**9})
    first = next(iter(sampler))
    print(f"resumed at sample 10^9 in {time.perf_counter() - started:.4f} s")
    expected = Permutation(2 * 10**9, seed=4, epoch=1)[np.array([10**9 + 3], dtype=np.uint64)]
    assert first == expected[0]
    assert permuted == [module.BLOCK_SAMPLES]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("length", "size"), [(0, 4), (7, 4), (8, 4), (40_000, 1000), (40_000, 17)])
def test_batches_are_those_of_torch_s_batch_sampler(
    length: int, size: int, drop_last: bool
) -> None:
    ours, theirs = (ElasticSampler(length, seed=3, rank=0, world=1) for _ in range(2))
    for _ in range(2):  # epochs
        found = ours.batches(size, drop_last=drop_last)
        for wanted in BatchSampler(theirs, size, drop_last):
            assert next(found).tolist() == wanted
            assert ours.state_dict() == theirs.state_dict()
        assert next(found, None) is None
        assert ours.state_dict() == theirs.state_dict()
