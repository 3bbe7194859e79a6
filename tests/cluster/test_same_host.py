"""Reading from daemons on the same host, through fsspec: found by itself, and safe to fall off."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ffs import _reader
from ffs.client.filesystem import FFSFileSystem
from tests.harness import Cluster

MIB = 1 << 20


def client(cluster: Cluster, **options: Any) -> FFSFileSystem:
    return FFSFileSystem(skip_instance_cache=True, **{**cluster.storage_options, **options})


@pytest.fixture
def data() -> bytes:
    return random.Random(9).randbytes(5 * MIB + 77)


def local_bytes() -> int:
    return _reader.counters()["local_bytes"]


def test_reads_take_the_files_and_off_takes_the_network(
    cluster: Cluster, fs: Any, fs_dir: str, data: bytes
) -> None:
    path = f"{fs_dir}/f"
    fs.pipe_file(path, data)
    before = local_bytes()
    assert fs.cat_file(path) == data
    assert fs.cat_file(path, 3, 5_000) == data[3:5_000]
    assert local_bytes() - before >= len(data) + 4_997
    far = client(cluster, same_host="off")
    before = local_bytes()
    assert far.cat_file(path) == data
    assert local_bytes() == before
    far.close()
