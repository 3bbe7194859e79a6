"""Memory of a device that is read into: what it may be, and that nothing but a card gets there."""

from __future__ import annotations

import gc
import mmap
import os
import weakref
from collections.abc import Iterator

import pytest

from ffs import _reader
from ffs.errors import TransportError
from tests.native.server import PENDING, READ_OP, Peer, honest, read_statuses

PAGE = mmap.PAGESIZE
PLACE = 1 << 40
"""Where a device might have memory: nobody here may touch it."""


@pytest.fixture
def fd() -> Iterator[int]:
    """Stands for a dma-buf, which only a card would look at."""
    made = os.memfd_create("memory")
    yield made
    os.close(made)


def test_it_is_a_part_of_a_dmabuf(fd: int) -> None:
    memory = _reader.DeviceMemory(fd, 5_000, PLACE + 100, offset=3 * PAGE + 100)
    assert (memory.nbytes, memory.address) == (5_000, PLACE + 100)


@pytest.mark.parametrize(
    ("nbytes", "address", "offset"),
    [(0, PLACE, 0), (1, 0, 0), (1, PLACE + 1, 0), (2, 2**64 - 1, PAGE - 1), (2, PLACE, 2**64 - 1)],
)
def test_what_cannot_be_is_refused(fd: int, nbytes: int, address: int, offset: int) -> None:
    with pytest.raises(ValueError, match=r"memory there|within a page"):
        _reader.DeviceMemory(fd, nbytes, address, offset=offset)


def test_it_has_a_descriptor_of_its_own_and_keeps_its_owner(fd: int) -> None:
    class Owner:
        """Whose memory it is."""

    owner = Owner()
    alive, before = weakref.ref(owner), len(os.listdir("/proc/self/fd"))
    memory = _reader.DeviceMemory(fd, 1, PLACE, owner=owner)
    del owner
    gc.collect()
    assert alive() is not None
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del memory
    assert alive() is None
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        _reader.DeviceMemory(-1, 1, PLACE)


def operations(count: int) -> bytearray:
    """As many reads of 100 bytes, back to back."""
    return bytearray().join(
        READ_OP.pack(7, 100 * i, 0, 3, 100 * i, 100, 0, PENDING, 0) for i in range(count)
    )


def test_a_socket_leads_to_no_device(fd: int) -> None:
    """Nothing is asked for, and the connection is as before."""
    memory = _reader.DeviceMemory(fd, 1_000, PLACE)
    with Peer(honest, {(7, 0): bytes(1_000)}) as peer:
        ops = operations(10)
        connections = [peer.connection]
        assert _reader.read_batch(connections, ops, memory, deadline_ms=5_000, verify=False) == 0
        assert read_statuses(ops) == [TransportError.code] * 10
        ops, out = operations(10), bytearray(1_000)
        assert _reader.read_batch(connections, ops, out, deadline_ms=5_000) == 10
        assert len(peer.requests) == 1


def test_what_cannot_be_checked_is_not_read(fd: int) -> None:
    memory = _reader.DeviceMemory(fd, 1_000, PLACE)
    with Peer(honest, {(7, 0): bytes(1_000)}) as peer:
        with pytest.raises(ValueError, match="verified"):
            _reader.read_batch([peer.connection], operations(1), memory, deadline_ms=5_000)
        with pytest.raises(ValueError, match="does not fit"):
            _reader.read_batch(
                [peer.connection], operations(11), memory, deadline_ms=5_000, verify=False
            )
        with pytest.raises(TypeError):
            _reader.write_batch([peer.connection], bytearray(), memory, deadline_ms=5_000)
        assert peer.requests == []
