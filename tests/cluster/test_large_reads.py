"""Reads that are large enough for several connections, each driven by a thread of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ffs import _reader
from ffs.client.filesystem import RANGE_DTYPE, FFSFileSystem
from ffs.client.settle import PARALLEL_BYTES_MIN
from tests.harness import Cluster
from tests.native.test_reader_team import helpers

MIB = 1 << 20
CALL_BYTES = PARALLEL_BYTES_MIN


@pytest.fixture
def over_tcp(cluster: Cluster) -> Iterator[FFSFileSystem]:
    """A client with three connections to a node, none of them made yet."""
    options: dict[str, Any] = {"same_host": "off", "connections_per_node": 3}
    fs = FFSFileSystem(skip_instance_cache=True, **{**cluster.storage_options, **options})
    yield fs
    fs.close()


def connections(fs: FFSFileSystem) -> list[_reader.Connection]:
    """The idle connections of a client of one daemon."""
    (pool,) = fs.core.connections._pools.values()
    return pool.idle


def test_a_large_read_has_a_thread_a_connection(over_tcp: FFSFileSystem, fs_dir: str) -> None:
    path, data = f"{fs_dir}/large", os.urandom(CALL_BYTES)
    over_tcp.pipe_file(path, data)
    out = bytearray(CALL_BYTES)
    ranges = np.zeros(CALL_BYTES // MIB, dtype=RANGE_DTYPE)
    ranges["handle"] = int(over_tcp.open_many([path])[0])
    ranges["offset"] = np.arange(len(ranges)) * MIB
    ranges["length"] = MIB
    for _ in range(2):  # connections are made by the first, and there for the second
        over_tcp.readv_into(ranges, memoryview(out))
        assert out == data
        out[:] = bytes(CALL_BYTES)
    assert len(connections(over_tcp)) == 3
    assert helpers() >= 2
    over_tcp.rm_file(path)


def test_a_connection_that_breaks_is_replaced(over_tcp: FFSFileSystem, fs_dir: str) -> None:
    path, data = f"{fs_dir}/large", os.urandom(CALL_BYTES)
    over_tcp.pipe_file(path, data)
    assert over_tcp.cat_file(path) == data
    for broken in range(3):
        idle = connections(over_tcp)
        # The daemon is gone as far as this connection is concerned, but nobody knows yet.
        with socket.socket(fileno=os.dup(idle[broken].fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)
        assert over_tcp.cat_file(path) == data
        assert over_tcp.cat_file(path) == data
    over_tcp.rm_file(path)
