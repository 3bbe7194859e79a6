"""Reads into memory of a device where the card takes none: a typed error, and nothing else.

Soft-RoCE of Linux 6.1 registers no dma-buf, and refuses before it looks at one; so pages of a
memfd stand for it here. Where a GPU and a card are: tests/torch/cuda_rdma.py.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffs import _reader
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import OK, InvalidError, TransportError
from tests.harness import Cluster
from tests.native.data_loop import KIB, TARGET, fill
from tests.native.server import PENDING, READ_OP, read_statuses
from tests.rdma.test_daemon import wired

LENGTH, PLACE = 256 * KIB, 1 << 40
REFUSED = TransportError.code


class Pages:
    """What a device might have at PLACE."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("pages")
        os.ftruncate(self.fd, LENGTH)
        self.bytes = mmap.mmap(self.fd, LENGTH)

    def memory(self, start: int = 0, length: int = LENGTH) -> _reader.DeviceMemory:
        """A part of them."""
        return _reader.DeviceMemory(self.fd, length, PLACE + start, offset=start)


@pytest.fixture
def pages() -> Iterator[Pages]:
    """Pages that nothing has been written to, in the end either."""
    made = Pages()
    yield made
    assert made.bytes[:] == bytes(LENGTH)
    os.close(made.fd)


def read_into(connection: _reader.Connection, out: Any) -> int:
    """The status of one range of blob 7."""
    ops = bytearray(READ_OP.pack(7, 100, 0, TARGET, 5, 5_000, 0, PENDING, 0))
    _reader.read_batch([connection], ops, out, deadline_ms=20_000, verify=False)
    (status,) = read_statuses(ops)
    return status


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "domain"])
def test_the_card_refuses_and_the_connection_goes_on(
    pages: Pages, tmp_path: Path, windows: bool
) -> None:
    """Kernels bind no memory windows over such memory: it is not even asked for then."""
    with wired(tmp_path) as wire:
        data = fill(wire.server, 7, 0, 64 * KIB)
        connection = wire.rdma(windows=windows)
        assert read_into(connection, pages.memory(4_096, 9_000)) == REFUSED
        fault, reason = connection.rdma_fault
        assert fault == 0 and "does not take dma-buf memory" in reason
        assert _reader.rdma_usage() == {"regions": 0, "bytes_asked": 0}
        out = np.zeros(5_100, np.uint8)
        assert read_into(connection, out) == OK
        assert out[100:].tobytes() == data[5:5_005]


OLD_LIBRARY = """
import sys
from pathlib import Path
from ffs import _reader
from tests.native.data_loop import fill
from tests.rdma.test_daemon import wired
from tests.rdma.test_device_memory import Pages, read_into
with wired(Path(sys.argv[1])) as wire:
    fill(wire.server, 7, 0, 65536)
    connection = wire.rdma(windows=False)
    print(read_into(connection, Pages().memory()), *connection.rdma_fault)
"""


def test_an_old_library_goes_without(tmp_path: Path) -> None:
    """A copy of the library in which the function has another name: as if there were none."""
    paths = (Path(place) for place in ("/lib", "/usr/lib"))
    library = next(found for path in paths for found in path.glob("*/libibverbs.so.1"))
    code, name = library.read_bytes(), b"\0ibv_reg_dmabuf_mr\0"
    assert code.count(name) == 1
    (tmp_path / library.name).write_bytes(code.replace(name, b"\0ibv_reg_dmabuf_xx\0"))
    done = subprocess.run(
        [sys.executable, "-c", OLD_LIBRARY, str(tmp_path / "store")],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{REFUSED} 0 libibverbs has no ibv_reg_dmabuf_mr")


def test_a_file_system_says_what_stands_in_the_way(pages: Pages, cluster: Cluster) -> None:
    checked: Any = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    checked.pipe_file("/device", bytes(range(256)) * 400)
    with pytest.raises(InvalidError, match="cannot be checked"):
        checked.readv_into([("/device", 0, 5_000)], pages.memory())
    checked.close()
    options = {**cluster.storage_options, "verify": False}
    fs: Any = FFSFileSystem(skip_instance_cache=True, **options)
    for ranges in ([("/device", 0, 5_000)], [("/device", i * 500, 300) for i in range(20)]):
        with pytest.raises(TransportError, match="does not take dma-buf memory"):
            fs.readv_into(ranges, pages.memory())
    with pytest.raises(InvalidError, match="out has"):
        fs.readv_into([("/device", 0, 5_000)], pages.memory(0, 100))
    fs.close()
