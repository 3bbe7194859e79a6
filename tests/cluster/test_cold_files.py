"""Files that no server has in memory, read through the whole client."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy
import pytest

from tests.harness import Cluster
from tests.native.data_loop import evict_below

FILE_BYTES = 6 << 20


def evict(cluster: Cluster) -> None:
    for superblock in Path(cluster.directory).glob("**/superblock"):
        evict_below(superblock.parent)


@pytest.mark.parametrize("io", ["auto", "buffered", "direct"])
def test_a_cold_file_is_read_right(new_cluster: Callable[..., Cluster], io: str) -> None:
    cluster = new_cluster(config={"storage.io": io})
    fs = fsspec.filesystem("ffs", **cluster.storage_options, skip_instance_cache=True)
    data = os.urandom(FILE_BYTES)
    fs.pipe("/cold", data)
    evict(cluster)
    assert fs.cat("/cold") == data
    rng = random.Random(1)
    sizes = [1, 4096, 65_536, 700_000]
    for _ in range(2):  # what is read again goes another way
        evict(cluster)
        ranges = [(rng.randrange(FILE_BYTES - 700_000), rng.choice(sizes)) for _ in range(40)]
        out = numpy.empty(sum(size for _, size in ranges), dtype=numpy.uint8)
        assert fs.readv_into([("/cold", start, size) for start, size in ranges], out) == len(out)
        assert out.tobytes() == b"".join(data[start : start + size] for start, size in ranges)
    fs.close()
