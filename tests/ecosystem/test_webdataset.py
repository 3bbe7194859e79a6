"""WebDataset writes and reads shards by ffs:// URLs, in this process and in workers."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from torch.utils.data import DataLoader
from webdataset.gopen import gopen_schemes

import ffs.webdataset
from ffs.errors import NotFoundError

SAMPLES = 60


@pytest.fixture(autouse=True)
def _registered(options: dict[str, Any]) -> Iterator[None]:
    ffs.webdataset.register(**options)
    yield
    del gopen_schemes["ffs"]


@pytest.fixture
def shards(url: str, fs: Any, fs_dir: str) -> str:
    """Three shards, written through WebDataset."""
    for shard in range(3):
        with wds.TarWriter(f"{url}/shard-{shard}.tar") as writer:
            for i in range(shard, SAMPLES, 3):
                sample = {"npy": np.full(20_000, i, "int32"), "cls": i}
                writer.write({"__key__": f"{i:04d}", **sample})
    with fs.open(f"{fs_dir}/shard-1.tar") as file, tarfile.open(fileobj=file) as tar:
        assert tar.getnames()[:2] == ["0001.cls", "0001.npy"]
    return f"{url}/shard-{{0..2}}.tar"


def numbers(loader: Any) -> list[int]:
    """What the samples say they are, twice, in order."""
    found = []
    for array, number in loader:
        assert array.shape == (20_000,) and (array == number).all()
        found.append(int(number))
    return sorted(found)


def samples(shards: str) -> Any:
    return wds.WebDataset(shards, shardshuffle=False).decode().to_tuple("npy", "cls")


def test_shards_are_read_back(shards: str) -> None:
    assert numbers(samples(shards)) == list(range(SAMPLES))
    shuffled = wds.WebDataset(shards, shardshuffle=3, seed=1).shuffle(50).decode()
    assert numbers(shuffled.to_tuple("npy", "cls")) == list(range(SAMPLES))


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_share_the_shards(
    shards: str, options: dict[str, Any], method: str, workers: int
) -> None:
    loader = DataLoader(
        samples(shards),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=method,
        worker_init_fn=partial(register_in_worker, options),
    )
    assert numbers(loader) == list(range(SAMPLES))


def register_in_worker(options: dict[str, Any], worker: int) -> None:
    """What a spawned worker must do, and a forked one may."""
    ffs.webdataset.register(**options)


def test_a_missing_shard_is_named(url: str) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.tar"):
        next(iter(wds.WebDataset(f"{url}/absent.tar", shardshuffle=False)))


def test_a_misspelt_option_is_told_at_once() -> None:
    with pytest.raises(TypeError, match="did you mean 'key_file'"):
        ffs.webdataset.register(keyfile="x")
