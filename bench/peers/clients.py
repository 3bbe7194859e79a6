"""Clients of the peers: each reads the ranges of one call in the fastest way that it documents.

A client is made with the range's length and called with the offsets of one call, all of one file;
it returns the delivered bytes as buffers in the order of the offsets. What it needs is imported
when it is made: a missing package is a ConfigError that names the extra.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ffs.bench.cases.common import DEST_BYTES, touched
from ffs.bench.peers.servers import BUCKET, HOST
from ffs.client.filesystem import FFSFileSystem
from ffs.client.planner import RANGE_DTYPE
from ffs.errors import ConfigError

Buffers: TypeAlias = Sequence[Any]
Client: TypeAlias = Callable[[Sequence[int]], Buffers]
"""Reads ranges at these offsets; the buffers' concatenation is the call's bytes."""

REGION = "us-east-1"
S3_THREADS = 8


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the comparison needs the package {name.partition('.')[0]}",
            hint='pip install "ffs[compare]"',
        ) from error


def ffs(fs: FFSFileSystem, path: str, range_bytes: int, ranges_a_call: int) -> Client:
    """Return a reader of a handle's ranges into memory that is reused, as a training loop does."""
    handle = int(fs.open_many([path])[0])
    outs = _outs(range_bytes * ranges_a_call)
    ranges = np.zeros(ranges_a_call, dtype=RANGE_DTYPE)
    ranges["handle"], ranges["length"] = handle, range_bytes

    def read(offsets: Sequence[int]) -> Buffers:
        out = next(outs)
        ranges["offset"] = offsets
        fs.readv_into(ranges, out)
        return [out]

    return read


def _outs(call_bytes: int) -> Iterator[memoryview]:
    """Return the places that calls land in, over and over; their pages are all there already."""
    view = touched(DEST_BYTES).data
    return itertools.cycle(
        [view[i : i + call_bytes] for i in range(0, DEST_BYTES - call_bytes + 1, call_bytes)]
    )


@contextmanager
def local_file(path: Path, range_bytes: int, ranges_a_call: int) -> Iterator[Client]:
    """Read the file on this machine with os.preadv into memory that is reused."""
    outs = _outs(range_bytes * ranges_a_call)
    fd = os.open(path, os.O_RDONLY)

    def read(offsets: Sequence[int]) -> Buffers:
        out = next(outs)
        for at, offset in zip(range(0, len(out), range_bytes), offsets, strict=True):
            os.preadv(fd, [out[at : at + range_bytes]], offset)
        return [out]

    try:
        yield read
    finally:
        os.close(fd)


def obstore(port: int, key: str, range_bytes: int) -> Client:
    """Read through object_store's Rust client: one `get_ranges` a call, no range widened."""
    module = _module("obstore")
    store = _module("obstore.store").S3Store(
        BUCKET,
        endpoint=f"http://{HOST}:{port}",
        region=REGION,
        skip_signature=True,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )

    def read(offsets: Sequence[int]) -> Buffers:
        lengths = [range_bytes] * len(offsets)
        found: Buffers = module.get_ranges(store, key, starts=offsets, lengths=lengths, coalesce=0)
        return found

    return read


def s3fs(port: int, key: str, range_bytes: int) -> Client:
    """Read through s3fs: `cat_ranges`, which keeps many requests in flight."""
    fs = _module("s3fs").S3FileSystem(
        anon=True,
        endpoint_url=f"http://{HOST}:{port}",
        client_kwargs={"region_name": REGION},
        skip_instance_cache=True,
    )
    return _cat_ranges(fs, f"{BUCKET}/{key}", range_bytes)


def http(port: int, key: str, range_bytes: int) -> Client:
    """Read through fsspec's HTTP file system."""
    _module("aiohttp")
    fs = _module("fsspec").filesystem("http", skip_instance_cache=True)
    return _cat_ranges(fs, f"http://{HOST}:{port}/{BUCKET}/{key}", range_bytes)


def _cat_ranges(fs: Any, path: str, range_bytes: int) -> Client:
    def read(offsets: Sequence[int]) -> Buffers:
        ends = [offset + range_bytes for offset in offsets]
        found: Buffers = fs.cat_ranges([path] * len(offsets), offsets, ends, on_error="raise")
        return found

    return read


@contextmanager
def s3torchconnector(port: int, key: str, range_bytes: int) -> Iterator[Client]:
    """Read through the S3 connector for PyTorch: range readers, one of eight threads each.

    It has no call for many ranges; eight threads are what its readers use of one process.
    """
    package = _module("s3torchconnector")
    client = _module("s3torchconnector._s3client").S3Client(
        REGION,
        endpoint=f"http://{HOST}:{port}",
        s3client_config=package.S3ClientConfig(unsigned=True, force_path_style=True),
    )
    constructor = package.S3ReaderConstructor.range_based(buffer_size=0)

    def read_some(offsets: Sequence[int]) -> list[bytearray]:
        found = []
        with client.get_object(BUCKET, key, reader_constructor=constructor) as reader:
            for offset in offsets:
                piece = bytearray(range_bytes)
                reader.seek(offset)
                reader.readinto(piece)
                found.append(piece)
        return found

    with ThreadPoolExecutor(S3_THREADS) as pool:

        def read(offsets: Sequence[int]) -> Buffers:
            share = -(-len(offsets) // S3_THREADS)
            parts = [offsets[i : i + share] for i in range(0, len(offsets), share)]
            return [piece for part in pool.map(read_some, parts) for piece in part]

        yield read


@contextmanager
def flight(port: int, range_bytes: int) -> Iterator[Client]:
    """Read record batches from an Arrow Flight server (bench/peers/flight_server.py)."""
    module = _module("pyarrow.flight")
    with contextlib.closing(module.connect(f"grpc://{HOST}:{port}")) as client:

        def read(offsets: Sequence[int]) -> Buffers:
            ticket = np.array([range_bytes, *offsets], dtype="<u8").tobytes()
            batches = client.do_get(module.Ticket(ticket))
            return [batch.data.column(0).buffers()[1] for batch in batches]

        yield read


@contextmanager
def redis(port: int, data: np.ndarray[Any, Any], range_bytes: int) -> Iterator[Client]:
    """Read values of a Redis that was filled with every range of the file: one MGET a call."""
    with contextlib.closing(_module("redis").Redis(HOST, port)) as client:
        client.flushall()
        for start in range(0, len(data), range_bytes << 4):
            pipe = client.pipeline(transaction=False)
            for at in range(start, min(start + (range_bytes << 4), len(data)), range_bytes):
                pipe.set(str(at), data[at : at + range_bytes].tobytes())
            pipe.execute()

        def read(offsets: Sequence[int]) -> Buffers:
            found: Buffers = client.mget(list(map(str, offsets)))
            return found

        yield read
