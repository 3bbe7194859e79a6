"""Checkpoints by torch.distributed.checkpoint: whole, partial, resharded, replaced, damaged."""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import math
import multiprocessing
import pickle
import traceback
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan

from ffs.client.checkpoint import metadata, published, storage_writer
from ffs.client.checkpoint.blocks import runs_of
from ffs.client.checkpoint.metadata import pack, unpack
from ffs.client.reader import Reader
from ffs.client.writer import Writing
from ffs.errors import InvalidError
from ffs.torch import StorageReader, StorageWriter, latest
from tests.harness import Cluster

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

Options = dict[str, Any]


def some_state(seed: int = 0) -> dict[str, Any]:
    """Tensors of many kinds and sizes, nested, and objects."""
    generator = torch.Generator().manual_seed(seed)
    big = torch.randn(1_200, 700, generator=generator)
    return {
        "model": {
            "big": big,
            "half": big[:300].to(torch.bfloat16),
            "turned": big[:50].t(),
            "odd": torch.randint(0, 255, (1_000_003,), dtype=torch.uint8, generator=generator),
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(float(seed)),
            "flags": big[0] > 0,
        },
        "step": seed,
        "note": {"a": [1, 2], "b": "text"},
    }


def blank(value: Any) -> Any:
    """The same state with nothing in its tensors."""
    if isinstance(value, dict):
        return {key: blank(inner) for key, inner in value.items()}
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else None


def same(one: Any, other: Any) -> bool:
    """Whether two states agree."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one.equal(other)) if isinstance(one, torch.Tensor) else one == other


def save(state: Any, path: str, options: Options) -> None:
    """Save without a process group."""
    state_dict_saver.save(
        state, storage_writer=StorageWriter(path, storage_options=options), no_dist=True
    )


def load(state: Any, path: str, options: Options) -> Any:
    """Load without a process group; returns the state."""
    state_dict_loader.load(
        state, storage_reader=StorageReader(path, storage_options=options), no_dist=True
    )
    return state


@pytest.fixture
def options(cluster: Cluster) -> Options:
    return cluster.storage_options


def test_round_trip(options: Options, fs: Any, fs_dir: str) -> None:
    state = some_state(3)
    save(state, f"{fs_dir}/c", options)
    assert same(load(blank(state), f"{fs_dir}/c", options), state)
    names = fs.ls(f"{fs_dir}/c", detail=False)
    assert len(names) == storage_writer.FILES + 1 and fs.ls(fs_dir, detail=False) == [f"{fs_dir}/c"]


def test_by_checkpoint_id_and_pickled(cluster: Cluster, options: Options, fs_dir: str) -> None:
    state = some_state(1)
    writer = pickle.loads(pickle.dumps(StorageWriter("ffs:///x", storage_options=options)))
    url = f"{cluster.url}{fs_dir}/c"
    state_dict_saver.save(state, checkpoint_id=url, storage_writer=writer, no_dist=True)
    assert writer.checkpoint_id == url and writer.validate_checkpoint_id(url)
    reader = pickle.loads(pickle.dumps(StorageReader(url, storage_options=options)))
    target = blank(state)
    state_dict_loader.load(target, checkpoint_id=url, storage_reader=reader, no_dist=True)
    assert same(target, state) and reader.checkpoint_id == url


def test_part_of_a_checkpoint(options: Options, fs_dir: str) -> None:
    """Only what is asked for is read, into tensors of other types and layouts too."""
    state = some_state(2)
    save(state, f"{fs_dir}/c", options)
    wanted = {"model": {"half": torch.zeros(300, 700), "big": torch.zeros(700, 1_200).t()}}
    load(wanted, f"{fs_dir}/c", options)
    assert wanted["model"]["big"].equal(state["model"]["big"])
    assert wanted["model"]["half"].equal(state["model"]["half"].float())


def test_bytes_go_straight_from_and_to_tensors(
    options: Options, fs_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of the engine fills all tensors, where they are; whole chunks leave from there."""
    state = {f"w{i}": torch.randn(3_000, 400) for i in range(4)}
    places = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in state.values()]
    sent: list[tuple[int, int]] = []
    sends, read = Writing.send, Reader.read_scattered

    def address(view: memoryview) -> int:
        return int(np.frombuffer(view, dtype=np.uint8).__array_interface__["data"][0])

    def send(self: Any, ops: Any, data: memoryview, paths: Any) -> None:
        lengths = ops["length"].tolist()
        starts = (address(data) + ops["source_offset"].astype(np.int64)).tolist()
        sent.extend(zip(starts, lengths, strict=True))
        sends(self, ops, data, paths)

    monkeypatch.setattr(Writing, "send", send)
    save(state, f"{fs_dir}/c", options)
    inside = sum(n for at, n in sent if any(a <= at and at + n <= b for a, b in places))
    assert inside >= 0.6 * sum(t.nbytes for t in state.values()), "chunks of 1 MiB, files of 10 MB"
    target, landed = blank(state), []

    def read_scattered(
        self: Any, contents: Any, offsets: Any, lengths: Any, at: Any, out: Any
    ) -> None:
        landed.append({address(out) + place for place in at})
        read(self, contents, offsets, lengths, at, out)

    monkeypatch.setattr(Reader, "read_scattered", read_scattered)
    load(target, f"{fs_dir}/c", options)
    assert landed == [{tensor.data_ptr() for tensor in target.values()}]
    assert same(target, state)


def test_replacing_a_checkpoint(options: Options, fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/c"
    for seed in (1, 2, 3):
        save(some_state(seed), path, options)
        assert same(load(blank(some_state()), path, options), some_state(seed))
    assert len(fs.ls(path)) == storage_writer.FILES + 1 and len(fs.ls(fs_dir)) == 1


def test_latest_is_the_one_published_last(options: Options, fs: Any, fs_dir: str) -> None:
    def newest() -> str | None:
        return latest(fs_dir, storage_options=options)

    assert newest() is None and latest(f"{fs_dir}/no", storage_options=options) is None
    fs.pipe_file(f"{fs_dir}/step-9/half", b"of a checkpoint")
    fs.pipe_file(f"{fs_dir}/file", b"")
    fs.pipe_file(f"{fs_dir}/.step-8.saving/{published.METADATA}", b"")
    assert newest() is None
    for name in ("step-2", "step-1"):
        save({"w": torch.ones(3)}, f"{fs_dir}/{name}", options)
        assert newest() == fs.unstrip_protocol(f"{fs_dir}/{name}")


def test_an_error_while_saving_leaves_the_old_one(
    options: Options, fs: Any, fs_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{fs_dir}/c"
    save(some_state(1), path, options)
    with pytest.raises(CheckpointException, match="layout"):
        save({**some_state(2), "sparse": torch.eye(9).to_sparse()}, path, options)

    def fail(*_: Any) -> None:
        raise OSError("the coordinator fails")

    with monkeypatch.context() as patched:
        patched.setattr(storage_writer, "pack", fail)
        with pytest.raises(CheckpointException, match="the coordinator fails"):
            save(some_state(2), path, options)
    assert same(load(blank(some_state()), path, options), some_state(1))
    save(some_state(3), path, options)
    assert same(load(blank(some_state()), path, options), some_state(3))
    assert len(fs.ls(fs_dir)) == 1, "what the failed ones left is gone"


class Dangerous:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("code of a checkpoint ran",)


def test_foreign_metadata_is_refused(options: Options, fs: Any, fs_dir: str) -> None:
    def describe(data: bytes) -> None:
        fs.pipe_file(f"{fs_dir}/c/{published.METADATA}", data)

    evil = io.BytesIO()
    torch.save(Dangerous(), evil)
    other = io.BytesIO()
    torch.save({"w": 1}, other)
    called = metadata.MAGIC + msgpack.packb(msgpack.ExtType(metadata._CONSTANT, b"load"))
    foreign = (b"", b"nonsense", evil.getvalue(), other.getvalue(), pickle.dumps({"w": 1}), called)
    for data in foreign:
        describe(data)
        with pytest.raises(CheckpointException, match="no checkpoint of FFS"):
            load({"w": torch.ones(3)}, f"{fs_dir}/c", options)
    with pytest.raises(InvalidError, match="no place in FFS"):
        StorageWriter("file:///tmp/x")


def described(planner_data: Any) -> Metadata:
    """A description with all that torch's has in it."""
    properties = TensorProperties(torch.bfloat16, requires_grad=True)
    chunk = ChunkStorageMetadata(torch.Size([0]), torch.Size([3]))
    tensor = TensorStorageMetadata(properties, torch.Size([3]), [chunk])
    return Metadata(
        {"w": tensor, "o": BytesStorageMetadata()},
        planner_data,
        {MetadataIndex("w", torch.Size([0]), 0): ("file", 0, 6, torch.bfloat16, (3,))},
        StorageMeta("ffs:///c", "save"),
    )


@pytest.mark.parametrize(
    "planner_data",
    [{"w": ("a", 1)}, collections.OrderedDict(w=("a", 1)), {"w": torch.arange(2).tolist()}],
)
def test_a_description_is_read_as_it_was_written(planner_data: Any) -> None:
    wanted = described(planner_data)
    found = unpack(pack(wanted), "path")
    assert found == wanted and type(found.planner_data) is type(planner_data)


def test_what_cannot_be_described_is_refused() -> None:
    with pytest.raises(InvalidError, match="cannot hold a set"):
        pack(described({1, 2}))


@given(st.data())
def test_a_damaged_description_is_refused_or_another(data: st.DataObject) -> None:
    packed = bytearray(pack(described({"w": ("a", 1)})))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(packed)))
    with contextlib.suppress(InvalidError):
        assert isinstance(unpack(bytes(packed[:end]), "path"), Metadata)


def test_a_tensor_of_another_shape_is_refused(options: Options, fs_dir: str) -> None:
    """torch's own planner looks at that itself; another one may not."""

    class Planner(DefaultLoadPlanner):
        def resolve_tensor(self, read_item: Any) -> torch.Tensor:
            return torch.zeros(5)

    save({"w": torch.ones(3, 4)}, f"{fs_dir}/c", options)
    reader = StorageReader(f"{fs_dir}/c", storage_options=options)
    with pytest.raises(CheckpointException, match=r"'w' is \(5,\) where \(3, 4\)"):
        state_dict_loader.load(
            {"w": torch.ones(3, 4)}, storage_reader=reader, planner=Planner(), no_dist=True
        )


# --- shards ---------------------------------------------------------------------------------------


@given(st.data())
def test_a_block_is_the_runs_that_it_is_said_to_be(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 40), max_size=4))
    offsets = [data.draw(st.integers(0, n - 1)) for n in sizes]
    lengths = [data.draw(st.integers(1, n - o)) for n, o in zip(sizes, offsets, strict=True)]
    itemsize = data.draw(st.sampled_from([1, 2, 8]))
    whole = np.arange(math.prod(sizes)).reshape(sizes)
    block = whole[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]
    runs = runs_of(sizes, offsets, lengths, itemsize)
    found = [
        element
        for start in runs.starts.tolist()
        for element in range(start // itemsize, (start + runs.run_bytes) // itemsize)
    ]
    assert found == block.reshape(-1).tolist()
    covered = {e for a, b in runs.merged() for e in range(a // itemsize, b // itemsize)}
    assert covered >= set(found)
    merged = runs.merged()
    assert all(right[0] - left[1] >= 4096 for left, right in itertools.pairwise(merged))


def in_ranks(world: int, work: Any, meeting: Path, *arguments: Any) -> None:
    """Run `work(rank, world, *arguments)` in processes that are ranks of one gloo group."""
    forked = multiprocessing.get_context("fork")
    failures = forked.SimpleQueue()

    def one(rank: int) -> None:
        try:
            torch.set_num_threads(1)  # OpenMP's threads did not come along
            dist.init_process_group(
                "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world
            )
            work(rank, world, *arguments)
            dist.destroy_process_group()
        except BaseException:
            failures.put(traceback.format_exc())
            raise

    ranks = [forked.Process(target=one, args=(rank,)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert all(rank.exitcode == 0 for rank in ranks), failures.get()


def sharded(world: int, dimensions: dict[str, int], tensors: dict[str, torch.Tensor]) -> Any:
    """The tensors as DTensors, each divided in one dimension."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    return {
        name: distribute_tensor(tensor, mesh, [Shard(dimensions[name])])
        for name, tensor in tensors.items()
    }


def whole_tensors() -> dict[str, torch.Tensor]:
    """What the ranks hold together."""
    generator = torch.Generator().manual_seed(5)
    return {
        "matrix": torch.randn(130, 5_000, generator=generator),
        "cube": torch.randn(30, 7, 20, generator=generator),
    }


def save_shards(rank: int, world: int, path: str, options: Options) -> None:
    state = sharded(world, {"matrix": 0, "cube": 1}, whole_tensors())
    writer = StorageWriter(path, storage_options=options)
    state_dict_saver.save(
        {**state, "everywhere": torch.arange(10), "step": 7}, storage_writer=writer
    )


def load_shards(rank: int, world: int, path: str, options: Options) -> None:
    blanks = {name: torch.zeros_like(tensor) for name, tensor in whole_tensors().items()}
    state = sharded(world, {"matrix": 1, "cube": 2}, blanks)
    state |= {"everywhere": torch.zeros(10, dtype=torch.int64), "step": 0}
    state_dict_loader.load(state, storage_reader=StorageReader(path, storage_options=options))
    for name, tensor in whole_tensors().items():
        assert state[name].full_tensor().equal(tensor), name
    assert state["everywhere"].equal(torch.arange(10)) and state["step"] == 7


def test_other_ranks_load_other_shards(
    options: Options, fs: Any, fs_dir: str, tmp_path: Path
) -> None:
    """Two ranks save rows; one and three load columns: each reads its blocks of both files."""
    in_ranks(2, save_shards, tmp_path / "saving", f"{fs_dir}/c", options)
    files = [p.rpartition("/")[2] for p in fs.ls(f"{fs_dir}/c", detail=False)]
    assert {name.partition("-")[0] for name in files} == {".metadata", "0", "1"}
    for world in (1, 3):
        in_ranks(world, load_shards, tmp_path / f"loading-{world}", f"{fs_dir}/c", options)


def test_without_collectives_nobody_could_publish(options: Options, fs_dir: str) -> None:
    writer = StorageWriter(f"{fs_dir}/c", storage_options=options)
    writer.set_up_storage_writer(True, rank=0, use_collectives=False)
    with pytest.raises(InvalidError, match="collectives"):
        writer.prepare_local_plan(SavePlan([]))


def test_saving_in_the_background(options: Options, fs_dir: str, tmp_path: Path) -> None:
    """async_save, twice with one writer and cached plans, as training loops do."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        writer = StorageWriter(f"{fs_dir}/0", storage_options=options)
        planner = DefaultSavePlanner(enable_plan_caching=True)
        for step in (1, 2):
            state = some_state(step)
            path = f"{writer.fs.unstrip_protocol(fs_dir)}/{step}"
            saving = state_dict_saver.async_save(
                state, checkpoint_id=path, storage_writer=writer, planner=planner
            )
            assert isinstance(saving, Future)
            saving.result()
        assert same(load(blank(some_state()), f"{fs_dir}/2", options), some_state(2))
    finally:
        dist.destroy_process_group()
