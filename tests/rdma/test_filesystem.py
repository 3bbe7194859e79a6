"""A whole cluster over RDMA: the file system's reads and writes, and what is seen on the cable."""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffs.client.filesystem import FFSFileSystem
from ffs.errors import TransportError
from tests.harness import Cluster
from tests.rdma.capture import Capture

DAEMON = "10.77.0.1"
SIZE = 3 << 20


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(7).randbytes(SIZE)


@pytest.fixture(scope="module")
def far(cluster: Cluster, content: bytes) -> Iterator[FFSFileSystem]:
    """A file system on the cable's other end, so that what it reads goes over the cable."""
    options = {**cluster.storage_options, "rdma_device": "rxe1"}
    fs = FFSFileSystem(skip_instance_cache=True, **options)
    fs.pipe_file("/content", content)
    yield fs
    fs.close()


def test_what_was_written_is_read(far: Any, content: bytes) -> None:
    assert far.cat_file("/content") == content
    (report,) = far.transports().values()
    assert report == {"transport": "rdma rxe1", "why": ""}


@pytest.mark.parametrize("size", [1, 63, 64, 4095, 4096, 4097, 65_536, 1_000_001])
def test_ranges_of_a_size_land_where_they_belong(far: Any, content: bytes, size: int) -> None:
    rng = random.Random(size)
    offsets = [rng.randrange(SIZE - size + 1) for _ in range(min(64, SIZE // size))]
    out = np.full(size * len(offsets) + 2, 0xA5, np.uint8)
    far.readv_into([("/content", at, size) for at in offsets], memoryview(out.data)[1:-1])
    want = b"".join(content[at : at + size] for at in offsets)
    assert out[1:-1].tobytes() == want
    assert out[0] == out[-1] == 0xA5


@pytest.mark.parametrize("transport", ["auto", "rdma"])
def test_a_mapped_file_is_written(
    cluster: Cluster, content: bytes, tmp_path: Path, transport: str
) -> None:
    """Whether its kernel lets it be registered or not: by TCP where that may be."""
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    options = {**cluster.storage_options, "transport": transport, "same_host": "off"}
    fs: Any = FFSFileSystem(skip_instance_cache=True, **options)
    refused = ""
    try:
        fs.pipe_file("/mapped", memoryview(mapped))
        assert fs.cat_file("/mapped") == content
    except TransportError as error:
        refused = str(error)
    assert not refused or (transport == "rdma" and "no card can read" in refused)
    (report,) = fs.transports().values()
    assert report["transport"].startswith("rdma")
    fs.close()


def test_payload_comes_by_rdma_write_and_by_nothing_else(far: Any, content: bytes) -> None:
    out = bytearray(1 << 20)
    with Capture("rdma0") as wire:
        far.readv_into([("/content", 4096, len(out))], out)
    assert bytes(out) == content[4096:][: len(out)]
    sent = wire.payload_bytes[DAEMON]
    writes = sum(count for name, count in sent.items() if name.startswith("WRITE"))
    sends = sum(count for name, count in sent.items() if name.startswith("SEND"))
    assert writes >= len(out)
    assert 0 < sends <= 64 * wire.opcodes[DAEMON]["SEND_ONLY"]
    assert not any(name.startswith("READ") for name in sent)


def test_a_daemon_that_will_not_is_read_by_tcp(new_cluster: Any, content: bytes) -> None:
    cluster = new_cluster(config={"storage.transport": "tcp", "client.transport": "auto"})
    options = {**cluster.storage_options, "same_host": "off"}
    fs = FFSFileSystem(skip_instance_cache=True, **options)
    fs.pipe_file("/content", content)
    assert fs.cat_file("/content") == content
    (report,) = fs.transports().values()
    assert report["transport"] == "tcp"
    assert "switched off" in report["why"]
    fs.close()
    fs = FFSFileSystem(skip_instance_cache=True, **{**options, "transport": "rdma"})
    with pytest.raises(TransportError, match="switched off"):
        fs.cat_file("/content")
    fs.close()
