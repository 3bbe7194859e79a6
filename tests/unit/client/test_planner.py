"""The planner against a model: each plan, carried out on a model store, is the file."""

from __future__ import annotations

import pathlib
import random
import struct
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffs import _reader, layout
from ffs.client import handles as handle_table
from ffs.client import planner
from ffs.client.handles import HandleTable
from ffs.client.layouts import Content, Route
from ffs.client.planner import OP_DTYPE, PENDING, RANGE_DTYPE, Plan
from ffs.errors import InvalidError, UnavailableError
from ffs.types import (
    Attr,
    ChainInfo,
    Layout,
    NodeInfo,
    Routing,
    Segment,
    TableInfo,
    TargetInfo,
    TargetState,
)
from ffs.wire.messages import OpenFile

CHUNK = 64 << 10
ROW = struct.Struct("<QQQ")


def routing(chains: int, replicas: int = 1, nodes: int = 1) -> Routing:
    """Chain c (from 10) has `replicas` targets, spread over the nodes."""
    targets, members = [], []
    for chain in range(chains):
        ids = [chain * replicas + r + 1 for r in range(replicas)]
        members.append(ChainInfo(10 + chain, 1, ids))
        targets += [TargetInfo(t, 1 + t % nodes, TargetState.SERVING) for t in ids]
    infos = [NodeInfo(n, "127.0.0.1", 7000 + n) for n in range(1, nodes + 1)]
    return Routing(1, infos, targets, members, [TableInfo(1, [c.chain for c in members])])


def attr(size: int) -> Attr:
    return Attr(5, 1, 0o644, 0, 0, 1, size, 1, 0, 0, 0)


def content(route: Route, segments: list[tuple[int, int]], path: str = "/f") -> Content:
    """A file of (blob, length) segments."""
    made = [Segment(b, n, Layout(CHUNK, 0, 1, 99 + b)) for b, n in segments]
    size = sum(n for _, n in segments)
    return Content(path, OpenFile(attr(size), made), route.tables)


def byte(blob: int, position: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What blob `blob` holds at a position; zeros for blob 0."""
    if blob == 0:
        return np.zeros(len(position), dtype=np.uint8)
    return ((position * 31 + blob * 7) % 251 + 1).astype(np.uint8)


def whole(file: Content) -> bytes:
    parts = [byte(s.blob, np.arange(s.length)) for s in file.segments]
    return b"".join(p.tobytes() for p in parts)


def carry_out(plan: Plan, route: Route) -> bytes:
    """Do what the engine would, from the model, checking each operation on the way."""
    out = bytearray(b"\xee" * plan.total)
    planner.zero_fill(memoryview(out), plan.zeros)
    for op in plan.ops:
        blob, chunk, length = int(op["blob"]), int(op["chunk"]), int(op["length"])
        start = int(op["offset"])
        assert op["status"] == PENDING and blob != 0
        assert 0 < length <= CHUNK and start + length <= CHUNK
        chain = planner.chain_of(plan.content(int(op["tag"])), blob, chunk)
        assert int(op["target"]) in route.serving[chain]
        position = np.arange(chunk * CHUNK + start, chunk * CHUNK + start + length)
        dest = int(op["dest_offset"])
        out[dest : dest + length] = byte(blob, position).tobytes()
    return bytes(out)


segment_lists = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 5 * CHUNK)), min_size=0, max_size=4
).map(lambda pairs: [(b and b + 10 * i, n) for i, (b, n) in enumerate(pairs)])


def some_ranges(draw: Any, files: list[Content]) -> list[tuple[int, int, int]]:
    """(file index, offset, length) triples that lie inside their files."""
    ranges = []
    for _ in range(draw(st.integers(1, 8))):
        index = draw(st.integers(0, len(files) - 1))
        edge = st.sampled_from([0, 1, 4095, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
        offset = min(draw(edge | st.integers(0, 20 * CHUNK)), files[index].size)
        length = min(draw(edge | st.integers(0, 3 * CHUNK)), files[index].size - offset)
        ranges.append((index, offset, length))
    return ranges


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_plans_are_the_file(data: st.DataObject) -> None:
    nodes = data.draw(st.integers(1, 3))
    route = Route(routing(data.draw(st.integers(1, 5)), nodes=nodes))
    files = [content(route, data.draw(segment_lists), f"/{i}") for i in range(3)]
    ranges = some_ranges(data.draw, files)
    expected = b"".join(whole(files[i])[o : o + n] for i, o, n in ranges)

    chosen = [files[i] for i, _, _ in ranges]
    scalar = planner.plan_ranges(chosen, [o for _, o, _ in ranges], [n for *_, n in ranges], route)
    assert carry_out(scalar, route) == expected

    table = HandleTable()
    handles = table.add(files)
    array = np.array([(handles[i], o, n) for i, o, n in ranges], dtype=RANGE_DTYPE)
    assert carry_out(planner.plan_table(array, table, route), route) == expected


def test_handles_of_many_threads_are_their_own() -> None:
    route = Route(routing(3))
    files = [content(route, [(7 + i, 1 + i)], f"/{i}") for i in range(40)]
    table = HandleTable()
    wrong: list[object] = []

    def work() -> None:
        for _ in range(100):
            handles = table.add(files)
            ranges = np.zeros(len(files), dtype=RANGE_DTYPE)
            ranges["handle"], ranges["length"] = handles, range(1, 41)
            blobs = planner.plan_table(ranges, table, route).ops["blob"].tolist()
            if [table.content(int(h)) for h in handles] != files or blobs != [*range(7, 47)]:
                wrong.append(handles)
            table.forget(handles.tolist()[:5])

    threads = [threading.Thread(target=work) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong and len(table.contents) <= 4 * (100 * 35 + 40) + 1


def test_slots_are_used_again_and_handles_never(monkeypatch: pytest.MonkeyPatch) -> None:
    route = Route(routing(3))
    shapes = [[(7, 5 * CHUNK)], [(8, 1)], [(0, 5)], [], [(9, 3), (10, 4)]]
    files = [content(route, shape, f"/{i}") for i, shape in enumerate(shapes)]
    table, seen = HandleTable(), set[int]()
    (kept,) = table.add(files[:1])
    for step in range(60):
        order = files[step % 5 :] + files[: step % 5]
        handles = table.add(order)
        assert not seen & set(handles.tolist()) and 0 not in handles
        seen |= set(handles.tolist())
        assert [table.content(h) for h in handles.tolist()] == order
        lengths = [file.size for file in order]
        array = np.array(list(zip(handles, [0] * 5, lengths, strict=True)), dtype=RANGE_DTYPE)
        plan = planner.plan_table(array, table, route)
        assert carry_out(plan, route) == b"".join(map(whole, order))
        table.forget(handles.tolist())
        for handle in handles.tolist():
            with pytest.raises(InvalidError, match="no such handle"):
                table.content(handle)
            with pytest.raises(InvalidError, match="no such handle"):
                table.forget([handle])
            with pytest.raises(InvalidError, match="no such handle"):
                planner.plan_table(np.array([(handle, 0, 0)], dtype=RANGE_DTYPE), table, route)
    assert table.content(int(kept)) is files[0]
    assert len(table.contents) == len(table.packed) == len(table.numbers) == 7
    monkeypatch.setattr(handle_table, "USES_MAX", 0)
    (last,) = table.add(files[1:2])
    table.forget([int(last)])
    assert int(last) & handle_table.SLOT_MAX not in table._free


def test_a_plan_is_of_the_handle_s_file_or_refused_while_slots_are_used_again() -> None:
    route = Route(routing(3))
    files = [content(route, [(100 + i, CHUNK)], f"/{i}") for i in range(2)]
    table, wrong = HandleTable(), list[object]()
    current = table.add(files).tolist()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            chosen = list(current)
            array = np.array([(handle, 5, 7) for handle in chosen], dtype=RANGE_DTYPE)
            try:
                blobs = planner.plan_table(array, table, route).ops["blob"].tolist()
            except InvalidError:
                continue
            if blobs != [100, 101]:
                wrong.append(blobs)

    thread = threading.Thread(target=read)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        for _ in range(2000):
            table.forget(current)
            swapped = table.add(files[::-1]).tolist()
            table.forget(swapped)
            current[:] = table.add(files).tolist()
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not wrong and len(table.contents) == 3


def test_parsed_tuples_are_planned_as_the_general_form_does() -> None:
    route = Route(routing(3))
    shapes = [[(7, 5 * CHUNK)], [(8, 1000)], [(9, 3), (10, 4)], [(0, 5)]]
    files = {f"/{i}": content(route, shape, f"/{i}") for i, shape in enumerate(shapes)}
    cases: list[list[tuple[str, Any, Any]]] = [
        [("/0", 0, 5 * CHUNK), ("/1", 1, 2), ("/0", CHUNK - 1, 2), ("/0", 5, 1)],
        [("/0", 0, 1), ("/2", 1, 5), ("/3", 0, 5), ("/1", 0, 0)],
        [("/1", np.int64(3), np.uint8(4))] * 3,
    ]
    for ranges in cases:
        parsed = _reader.parse_ranges(ranges)
        assert parsed is not None
        names, rows = parsed
        assert names == list(dict.fromkeys(name for name, _, _ in ranges))
        plan = planner.plan_parsed(rows, [files[str(name)] for name in names], route)
        chosen = [files[name] for name, _, _ in ranges]
        general = planner.plan_ranges(
            chosen, [int(o) for _, o, _ in ranges], [int(n) for *_, n in ranges], route
        )
        assert plan.ops.tobytes() == general.ops.tobytes() and list(plan.zeros) == general.zeros
        assert plan.chains.tolist() == general.chains.tolist()
        assert plan.total == general.total
        assert [plan.content(t) for t in range(len(ranges))] == chosen


def test_neighbours_in_a_chunk_become_one_operation() -> None:
    route = Route(routing(2))
    table = HandleTable()
    chunk = 4 << 20
    layout_ = Layout(chunk, 0, 1, 5)
    big = Content("/b", OpenFile(attr(chunk), [Segment(9, chunk, layout_)]), route.tables)
    first, second, third = table.add(
        [content(route, [(7, 3 * CHUNK)]), content(route, [(8, 9)]), big]
    )
    rows = [(first, i * 1000, 1000) for i in range(64)]  # to the end of the chunk, but for 1536
    rows += [
        (first, 64_000, CHUNK - 64_000),
        (first, CHUNK, 5),
        (second, 5, 4),
        (first, CHUNK + 5, 1),
    ]
    rows += [(first, CHUNK + 4, 1), (first, CHUNK + 6, 1)]
    rows += [(third, i << 18, 1 << 18) for i in range(6)]
    plan = planner.plan_table(np.array(rows, dtype=RANGE_DTYPE), table, route)
    found = [tuple(map(int, row)) for row in plan.ops[["blob", "chunk", "offset", "length", "tag"]]]
    assert found == [
        (7, 0, 0, CHUNK, 0),
        (7, 1, 0, 5, 65),
        (8, 0, 5, 4, 66),
        (7, 1, 5, 1, 67),
        (7, 1, 4, 1, 68),
        (7, 1, 6, 1, 69),
        (9, 0, 0, 1 << 20, 70),
        (9, 0, 1 << 20, 1 << 19, 74),
    ]
    assert len(plan.chains) == len(found)
    none = planner.plan_table(np.zeros(0, dtype=RANGE_DTYPE), table, route)
    assert len(none.ops) == len(none.chains) == none.total == 0
    ends = plan.ops["dest_offset"] + plan.ops["length"]
    assert ends.tolist() == [*plan.ops["dest_offset"][1:].tolist(), plan.total]


def test_what_is_no_plain_list_of_tuples_is_left_to_python() -> None:
    assert _reader.parse_ranges([]) is None and _reader.parse_ranges([("/a", 0, 1)]) is None
    numbers = _reader.parse_ranges(
        ((np.uint64(7), 1, 2), (7, 1, 2), ("7", 1, 2), (2**64 - 1, 0, 1))
    )
    assert numbers is not None and numbers[0] == [7, "7", 2**64 - 1]
    assert np.frombuffer(numbers[1], dtype=RANGE_DTYPE)["handle"].tolist() == [0, 0, 1, 2]
    good = ("/a", 0, 1)
    odd: list[Any] = [
        iter([good, good]),
        [good, ["/a", 0, 1]],
        [good, ("/a", 0)],
        [good, ("/a", -1, 1)],
        [good, ("/a", 0, 2**64)],
        [good, ("/a", 0.0, 1)],
        [good, ("/a", 0, None)],
        [good, (pathlib.PurePosixPath("/a"), 0, 1)],
        [good, (b"/a", 0, 1)],
        {good, ("/a", 0, 2)},
        None,
    ]
    for ranges in odd:
        assert _reader.parse_ranges(ranges) is None

    class Broken:
        def __index__(self) -> int:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _reader.parse_ranges([good, ("/a", Broken(), 1)])


def test_the_engine_plans_only_what_is_described_to_it() -> None:
    route = Route(routing(3))
    file = content(route, [(7, 3 * CHUNK)])
    assert file.packed is not None
    ids, targets = route.chain_ids, route.chain_ops_target
    row = ROW.pack(0, CHUNK, CHUNK)
    planned = _reader.plan_ranges(row, [file.packed], None, ids, targets, 0)
    assert planned is not None and len(planned[0]) == OP_DTYPE.itemsize
    for packed in (None, b"", file.packed[:-1], file.packed[:24], file.packed + b"0000"):
        assert _reader.plan_ranges(row, [packed], None, ids, targets, 0) is None
    for bad in (
        ROW.pack(1, 0, 1),
        ROW.pack(0, 0, 0),
        ROW.pack(0, 0, 2**64 - 1),
    ):
        assert _reader.plan_ranges(row + bad, [file.packed], None, ids, targets, 0) is None
    with pytest.raises(TypeError):
        _reader.plan_ranges(row, ["no bytes"], None, ids, targets, 0)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="odd lengths"):
        _reader.plan_ranges(row[:-1], [file.packed], None, ids, targets, 0)
    with pytest.raises(ValueError, match="odd lengths"):
        _reader.plan_ranges(row, [file.packed], None, ids, targets[:-1], 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4 * CHUNK - 1), st.integers(1, 2 * CHUNK), st.integers(1, 4))
def test_the_fast_path_is_the_general_one_or_declines(
    offset: int, length: int, chains: int
) -> None:
    route = Route(routing(chains))
    file = content(route, [(7, 4 * CHUNK)])
    length = min(length, file.size - offset)
    planned = planner.plan_one(file, offset, length, route, lambda chain, _: route.target(chain))
    one_chunk = offset // CHUNK == (offset + length - 1) // CHUNK
    assert (planned is not None) == one_chunk
    if planned is not None:
        target, serving, packed = planned
        assert serving == 1
        general = planner.plan_ranges([file], [offset], [length], route)
        assert packed == general.ops.tobytes()
        assert target == general.ops["target"][0]


def test_the_layout_of_an_operation_is_the_engine_s() -> None:
    assert OP_DTYPE.itemsize == _reader.READ_OP_BYTES == 40
    fields = OP_DTYPE.fields
    assert fields is not None
    offsets = {name: fields[name][1] for name in OP_DTYPE.names or ()}
    assert offsets["status"] == 34 and offsets["tag"] == 36


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 101), (100, 1), (101, 0), (-1, 1), (0, -1), (1 << 63, 1)]
)
def test_a_range_outside_the_file_is_refused(offset: int, length: int) -> None:
    route = Route(routing(1))
    file = content(route, [(7, 100)])
    with pytest.raises(InvalidError, match="not inside") as caught:
        planner.plan_ranges([file], [offset], [length], route)
    assert caught.value.where["path"] == "/f" and caught.value.where["size"] == 100


def test_a_structured_range_outside_is_refused_before_anything_else() -> None:
    route = Route(routing(1))
    table = HandleTable()
    (handle,) = table.add([content(route, [(7, 100)])])
    for bad in [(handle, 0, 101), (handle, 2**64 - 1, 2), (handle, 2, 2**64 - 1)]:
        with pytest.raises(InvalidError, match="not inside"):
            planner.plan_table(np.array([(handle, 0, 1), bad], dtype=RANGE_DTYPE), table, route)
    for unknown in (0, 2, 2**63):
        with pytest.raises(InvalidError, match="no such handle"):
            planner.plan_table(np.array([(unknown, 0, 1)], dtype=RANGE_DTYPE), table, route)
    table.forget([handle])
    for length in (0, 1):
        with pytest.raises(InvalidError):
            planner.plan_table(np.array([(handle, 0, length)], dtype=RANGE_DTYPE), table, route)


def test_the_table_grows() -> None:
    route = Route(routing(3))
    table = HandleTable()
    rng = random.Random(1)
    files = [content(route, [(i + 1, rng.randrange(1, 9 * CHUNK))]) for i in range(500)]
    handles = np.concatenate([table.add(files[:3]), table.add(files[3:])])
    array = np.zeros(500, dtype=RANGE_DTYPE)
    array["handle"] = handles
    array["offset"] = [f.size - 1 for f in files]
    array["length"] = 1
    plan = planner.plan_table(array, table, route)
    assert carry_out(plan, route) == b"".join(whole(f)[-1:] for f in files)


def test_a_chain_that_nobody_serves_is_unavailable_at_once() -> None:
    table = routing(2)
    offline = [TargetInfo(t.target, t.node, TargetState.OFFLINE) for t in table.targets[1:]]
    route = Route(Routing(1, table.nodes, [table.targets[0], *offline], table.chains, table.tables))
    assert route.sole_target == 0
    file = content(route, [(7, 4 * CHUNK)])
    handles = HandleTable()
    (handle,) = handles.add([file])
    ranges = np.array([(handle, 0, 4 * CHUNK)], dtype=RANGE_DTYPE)
    expected = [
        PENDING if route.target(chain) else UnavailableError.code
        for chain in (file.pieces[0].chain(i) for i in range(4))
    ]
    assert sorted(expected) == [4, 4, PENDING, PENDING]
    for plan in (
        planner.plan_ranges([file], [0], [4 * CHUNK], route),
        planner.plan_table(ranges, handles, route),
    ):
        assert plan.ops["status"].tolist() == expected


@pytest.mark.parametrize("stripe", [0, 1, 3, 7, 99])
@pytest.mark.parametrize("chunks", [1, 2, 7, 20])
def test_chains_follow_the_layout(stripe: int, chunks: int) -> None:
    route = Route(routing(7))
    table = route.tables[1]
    for seed in range(20):
        how = Layout(CHUNK, stripe, 1, seed)
        opened = OpenFile(attr(chunks * CHUNK), [Segment(7, chunks * CHUNK, how)])
        (piece,) = Content("/f", opened, route.tables).pieces
        for chunk in range(chunks):
            assert piece.chain(chunk) == layout.chain_of_chunk(table, stripe, seed, chunk)
