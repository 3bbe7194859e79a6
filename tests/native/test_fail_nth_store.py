"""The chunk store with every use of every system call and every allocation failing in turn.

Promised: an error that says what failed, or success; afterwards the target opens, everything that
was acknowledged is there and right, nothing is there by halves, and nothing is leaked.
"""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from ffs import _reader, _storage
from ffs.errors import (
    OK,
    BusyError,
    ChunkMissingError,
    NoSpaceError,
    StorageIOError,
    TargetStoppedError,
)
from tests.native.fail_nth import WAYS, Fault, Ledger, faults, injected, uses_of

CLUSTER = bytes(range(16))
TARGET = 3
LENGTHS = {1: 4096, 2: 9_000, 3: 70_000, 4: 5}
"""Blob -> length of its only chunk: several classes, two of them in one."""
WRITE_FAILURES = {NoSpaceError.code, BusyError.code, TargetStoppedError.code}
READ_FAILURES = {StorageIOError.code, TargetStoppedError.code}
CALLS = tuple(call for call in WAYS if call in _storage.fault_counts())


@pytest.fixture(autouse=True)
def _no_fault_left() -> Iterator[None]:
    yield
    _storage.fault_set("*", 0, 0)


@cache
def content(blob: int) -> bytes:
    return random.Random(blob).randbytes(LENGTHS[blob])


def open_store(path: Path, *, create: bool = True) -> _storage.ChunkStore:
    return _storage.ChunkStore(
        str(path), cluster_id=CLUSTER, target_id=TARGET, create=create, drop_delay_ms=0
    )


def put(store: _storage.ChunkStore, blob: int) -> int:
    data = content(blob)
    return store.put(blob, 0, data, _reader.block_crcs(data, blob, 0))


@dataclass
class Outcome:
    """What a run was told: blobs that must be there, must not be, and may be."""

    stored: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    errors: list[BaseException] = field(default_factory=list)


def write_all(store: _storage.ChunkStore, outcome: Outcome) -> None:
    for blob in LENGTHS:
        status = put(store, blob)
        assert status in WRITE_FAILURES | {OK}
        (outcome.stored if status == OK else outcome.unknown).add(blob)


def use(store: _storage.ChunkStore, outcome: Outcome) -> None:
    """Read everything, drop one, list, count."""
    for blob in sorted(outcome.stored):
        status, data, crcs = store.read(blob, 0, 0, LENGTHS[blob])
        assert status in READ_FAILURES | {OK}
        if status == OK:
            assert (data, crcs) == (content(blob), _reader.block_crcs(data, blob, 0))
    questions: tuple[Callable[[], object], ...]
    questions = (store.blobs, lambda: store.chunks(3), lambda: store.keys(0, 0, 9), store.stats)
    for question in questions:
        try:
            question()
        except (OSError, MemoryError) as error:
            outcome.errors.append(error)
    for blob in sorted(outcome.stored):
        assert store.verify(blob, 0) in READ_FAILURES | {OK, BusyError.code}
    data = content(1)
    status = store.replace(1, 0, data, _reader.block_crcs(data, 1, 0))
    assert status in WRITE_FAILURES | READ_FAILURES | {OK}
    if status == OK:
        outcome.stored.add(1)
        outcome.unknown.discard(1)
    outcome.stored.discard(2)
    try:
        store.drop([2])
        outcome.dropped.add(2)
        outcome.unknown.discard(2)
    except (OSError, MemoryError) as error:
        outcome.errors.append(error)
        outcome.unknown.add(2)


def life(path: Path, outcome: Outcome) -> None:
    """Make a target, write, use it, close; open it again, write what is not there, close."""
    for _ in range(2):
        try:
            store = open_store(path)
        except (OSError, MemoryError) as error:
            outcome.errors.append(error)
            continue
        try:
            if not outcome.stored:
                write_all(store, outcome)
                use(store, outcome)
        finally:
            store.close()


def check_afterwards(path: Path, outcome: Outcome, what: Fault) -> None:
    store = open_store(path)
    try:
        stats = store.stats()
        assert (stats["stopped"], stats["damaged_entries"]) == (0, 0), what
        for blob in LENGTHS:
            status, data, _ = store.read(blob, 0, 0, LENGTHS[blob])
            absent = status == ChunkMissingError.code
            assert absent or (status, data) == (OK, content(blob)), (what, blob)
            assert not absent or blob not in outcome.stored, (what, blob)
            assert absent or blob not in outcome.dropped, (what, blob)
            assert put(store, blob) == OK, (what, blob)
        assert store.blobs() == sorted(LENGTHS), what
        assert store.drop(list(LENGTHS)) == len(LENGTHS), what
    finally:
        store.close()
    block = _storage.ChunkStore.read_superblock(str(path))
    assert block is not None and block["clean"], (what, "something is still pinned")


@pytest.mark.parametrize("call", CALLS)
def test_a_target_survives_the_nth_failure(quick_path: Path, call: str) -> None:
    uses = uses_of(_storage, lambda: life(quick_path / "count", Outcome()))
    ledger = Ledger()
    for fault in faults(call, uses[call]):
        path = quick_path / "target"
        outcome = Outcome()
        with injected(_storage, fault):
            life(path, outcome)
        check_afterwards(path, outcome, fault)
        ledger.settle(fault)
        for error in outcome.errors:
            assert isinstance(error, MemoryError) or getattr(error, "errno", None), (fault, error)
        shutil.rmtree(path)


def test_a_directory_of_chunks_is_not_taken_for_empty(quick_path: Path) -> None:
    """Without its superblock it is refused, whatever cannot be looked at."""
    store = open_store(quick_path / "t")
    assert put(store, 1) == OK
    store.close()
    (quick_path / "t" / "superblock").unlink()
    for nth in range(1, 60):
        with (
            injected(_storage, Fault("open", nth, errno.EMFILE)),
            pytest.raises((OSError, ValueError)),
        ):
            open_store(quick_path / "t")
