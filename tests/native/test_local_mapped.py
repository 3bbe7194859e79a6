"""Mappings of extent files: what they show, what keeps it, and what is left when they end."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ffs import _reader, _storage
from ffs.errors import OK, ChecksumError
from tests.native.data_loop import CLUSTER, TARGET, Server, fill, serving
from tests.native.fail_nth import COUNT_ONLY, WAYS, Ledger, faults, injected, uses_of
from tests.native.local import PENDING, READ_OP, connect, open_files, read, wait_until

CHUNK = 65_536
Range = tuple[int, int, int, int]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as made:
        yield made
    for module in (_reader, _storage):
        module.fault_set("*", 0, 0)


def pack_ops(ranges: list[Range]) -> bytes:
    return b"".join(READ_OP.pack(b, 0, c, TARGET, o, n, 0, PENDING, 0) for b, c, o, n in ranges)


def map_ranges(server: Server, ranges: list[Range]) -> memoryview | None:
    """Locate and check ranges, and map them; the memory alone keeps the connection."""
    connection = connect(server.loop, mapped=True)
    if any(status != OK for status, _ in read(connection, ranges)):
        return None
    ops = pack_ops(ranges)
    mapping = _reader.map_located((connection,), ops, [connection])
    return None if mapping is None else memoryview(mapping)


def fill_file(server: Server, blob: int, last: int = 5_000) -> tuple[list[Range], bytes]:
    """Chunks that lie side by side in a file; the last one is shorter."""
    lengths = [CHUNK, CHUNK, CHUNK, last]
    data = b"".join(fill(server, blob, chunk, length) for chunk, length in enumerate(lengths))
    return [(blob, chunk, 0, length) for chunk, length in enumerate(lengths)], data


def test_chunks_lie_side_by_side(server: Server) -> None:
    ranges, data = fill_file(server, 7)
    before = _reader.counters()
    view = map_ranges(server, ranges)
    assert view is not None
    assert view.readonly and view == data
    assert _reader.counters()["copied_bytes"] == before["copied_bytes"]
    inner = map_ranges(server, [(7, 0, 4_097, CHUNK - 4_097), (7, 1, 0, 77)])
    assert inner is not None and inner == data[4_097 : CHUNK + 77]
    with pytest.raises(TypeError):
        view[0] = 1
    with pytest.raises(TypeError):
        type(view.obj)()


def test_what_pages_do_not_allow_is_not_mapped(server: Server) -> None:
    fill_file(server, 1)
    assert map_ranges(server, [(1, 0, 0, 100), (1, 1, 0, 100)]) is None
    assert map_ranges(server, [(1, 0, 0, CHUNK), (1, 1, 1, 100)]) is None
    assert map_ranges(server, [(1, 0, 0, CHUNK), (1, 9, 0, 100)]) is None
    connection = connect(server.loop, mapped=True)
    unknown = pack_ops([(1, 0, 0, CHUNK)])
    assert _reader.map_located((connection,), unknown, None) is None, "it was not located"
    assert read(connection, [(1, 0, 0, 1), (1, 3, 0, 1)])[0][0] == OK
    for offset, length in ((0, CHUNK + 1), (CHUNK, 1), (1 << 31, 1), (0, 0), (1, (1 << 32) - 1)):
        wrong = pack_ops([(1, 0, offset, length)])
        assert _reader.map_located((connection,), wrong, None) is None
    plain = connect(server.loop)
    connection.close()
    for refused in (plain, connection):
        with pytest.raises(ValueError, match="not for mapping"):
            _reader.map_located((refused,), unknown, None)


def test_damage_is_seen_before_anything_is_mapped(server: Server) -> None:
    ranges, data = fill_file(server, 1)
    with open(server.path / f"{CHUNK}.data", "r+b") as file:
        file.seek(CHUNK + 9)
        file.write(bytes([data[CHUNK + 9] ^ 1]))
    connection = connect(server.loop, mapped=True)
    assert read(connection, ranges)[1][0] == ChecksumError.code


def use_up(store: _storage.ChunkStore, first_blob: int, count: int = 30) -> None:
    """Write over whatever is free."""
    for blob in range(first_blob, first_blob + count):
        other = bytes([blob & 255]) * CHUNK
        assert store.put(blob, 0, other, _reader.block_crcs(other, blob, 0)) == OK


def test_a_drop_waits_for_the_last_view(server: Server) -> None:
    ranges, data = fill_file(server, 1)
    view = map_ranges(server, ranges)
    assert view is not None
    part = view[CHUNK:]
    held = server.store.stats()["allocated_bytes"]
    assert server.store.drop([1]) == len(ranges)
    use_up(server.store, 100)
    assert view == data
    view.release()
    use_up(server.store, 200)
    assert part == data[CHUNK:]
    assert server.store.drop(list(range(100, 300))) == 60
    part.release()
    wait_until(lambda: server.store.stats()["allocated_bytes"] < held)
    assert server.loop.stats()["located"] == 0


@pytest.mark.parametrize("dropped_before", [True, False])
def test_a_mapping_outlives_the_daemon(server: Server, dropped_before: bool) -> None:
    """Its pins go with the process; what the kernel knows of the mapping stays."""
    ranges, data = fill_file(server, 1)
    view = map_ranges(server, ranges)
    assert view is not None
    if dropped_before:
        server.store.drop([1])
    server.loop.close()
    server.store.close()
    store = _storage.ChunkStore(
        str(server.path), cluster_id=CLUSTER, target_id=TARGET, drop_delay_ms=0
    )
    allocated = store.stats()["allocated_bytes"]
    assert allocated >= 3 * CHUNK + 8_192, "the slots are taken"
    if not dropped_before:
        assert store.drop([1]) == len(ranges)
    use_up(store, 100)
    assert view == data
    assert store.drop(list(range(100, 130))) == 30
    wait_until(lambda: store.stats()["allocated_bytes"] == allocated)
    view.release()
    wait_until(lambda: store.stats()["allocated_bytes"] == 0)
    store.close()


def test_a_connection_that_the_daemon_ends_changes_nothing(server: Server) -> None:
    ranges, data = fill_file(server, 1)
    view = map_ranges(server, ranges)
    assert view is not None
    server.loop.close()
    server.store.drop([1])
    use_up(server.store, 100)
    assert view == data


def test_what_was_mapped_in_part_is_kept_whole(server: Server) -> None:
    _, data = fill_file(server, 1)
    view = map_ranges(server, [(1, 1, 20_000, 30_000)])
    assert view is not None
    server.loop.close()
    server.store.drop([1])
    use_up(server.store, 100)
    assert view == data[CHUNK + 20_000 : CHUNK + 50_000]


def test_a_child_has_neither_memory_nor_views(server: Server) -> None:
    ranges, data = fill_file(server, 1)
    view = map_ranges(server, ranges)
    assert view is not None
    mapping = view.obj
    address = np.frombuffer(view, dtype=np.uint8).ctypes.data
    pid = os.fork()
    if pid == 0:
        try:
            memoryview(mapping)  # type: ignore[arg-type]
        except BufferError:
            with open("/proc/self/mem", "rb", buffering=0) as memory:
                memory.seek(address)
                try:
                    memory.read(1)
                except OSError:
                    os._exit(0)  # there is nothing
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert view == data
    pid = os.fork()
    if pid == 0:
        del view, mapping
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    server.store.drop([1])
    use_up(server.store, 100)
    assert view == data, "the child's end is not the parent's"


def test_nothing_is_left(server: Server) -> None:
    ranges, _ = fill_file(server, 1)
    before = open_files()
    parts = own_mappings(server)
    for _ in range(20):
        views = [map_ranges(server, ranges) for _ in range(3)]
        assert all(view is not None for view in views)
        assert own_mappings(server) > parts
        del views
    wait_until(lambda: server.loop.stats()["connections"] == 0)
    assert own_mappings(server) == parts
    assert open_files() == before


def own_mappings(server: Server) -> int:
    """Parts of extent files that are mapped and not for children: the daemon's are."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("VmFlags:"):
            found += ours and " dc" in line
        elif "-" in line.split(" ", 1)[0]:
            ours = f"{server.path}/" in line
    return found


CALLS = ("alloc", "mmap", "madvise", "lock", "fstat", "recvmsg")


@pytest.mark.parametrize("call", CALLS)
def test_the_nth_failure_maps_nothing_or_everything(server: Server, call: str) -> None:
    ranges, data = fill_file(server, 1)

    def scenario() -> memoryview | None:
        try:
            view = map_ranges(server, ranges)
        except (OSError, MemoryError):
            return None
        assert view is None or view == data
        return view

    uses = uses_of(_reader, scenario)[call]
    assert uses
    ledger, parts = Ledger(), own_mappings(server)
    for fault in faults(call, uses):
        with injected(_reader, fault):
            scenario()
        wait_until(lambda: server.loop.stats()["connections"] == 0)
        assert own_mappings(server) == parts, fault
        assert scenario() is not None, fault
        wait_until(lambda: server.loop.stats()["connections"] == 0)
        ledger.settle(fault)


@pytest.mark.parametrize("error", WAYS["lock"])
def test_what_the_kernel_does_not_tell_is_asked_again(server: Server, error: int) -> None:
    fill_file(server, 1)
    _storage.fault_set("lock", 1, error)
    assert server.store.drop([1]) == 4
    wait_until(lambda: server.store.stats()["allocated_bytes"] == 0)


def test_freeing_asks_once_for_neighbours(server: Server) -> None:
    for chunk in range(50):
        fill(server, 1, chunk, CHUNK)
    _storage.fault_set("*", COUNT_ONLY, errno.EIO)
    assert server.store.drop([1]) == 50
    wait_until(lambda: server.store.stats()["allocated_bytes"] == 0)
    _storage.fault_set("*", 0, 0)
    assert _storage.fault_counts()["lock"] == 1
