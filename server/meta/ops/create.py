"""create_many: write sessions, each with a new blob.

Previous hop: `service`. Next hop: `resolve`, then one statement per table for the whole batch.
Invariant: blobs and sessions are committed before the answer leaves, so that no chunk can ever be
stored under a blob that the database does not know. Nothing is visible before close; an exclusive
create reserves its name from here on.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ffs.errors import (
    ExistsError,
    FFSError,
    FileExpectedError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from ffs.server.meta.ops.access import CHANGE_NAMES, Want
from ffs.server.meta.ops.context import Context, Defaults, fault
from ffs.server.meta.ops.directories import insert_names
from ffs.server.meta.ops.layout import DirectoryLayout, layout_problem, nearest_layouts
from ffs.server.meta.ops.names import Found, Key, hold_directories, lookup, reserved_error
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.sessions import SESSION_COLUMNS, lease
from ffs.server.meta.schema import RESERVED, BlobState
from ffs.server.meta.store import Transaction
from ffs.types import FileType, Layout
from ffs.wire.messages import (
    CreateEntry,
    CreateManyReply,
    CreateManyRequest,
    CreateMode,
    Fault,
    WriteSession,
)

_BLOB_COLUMNS: Final = (
    *("blob", "state", "refs", "length", "chunk_size_bytes", "stripe", "chain_table"),
    *("seed", "changed_ns"),
)
_MODES: Final = frozenset(int(mode) for mode in CreateMode)


@dataclass(frozen=True, slots=True)
class NewestTable:
    """The chain table that new layouts refer to."""

    table: int
    chains: int


def newest_table(tx: Transaction) -> NewestTable:
    """Return the newest chain table. Raises UnavailableError while there is none."""
    row = tx.row(
        "SELECT chain_table, count(*) FROM table_chains WHERE chain_table ="
        " (SELECT max(chain_table) FROM table_chains) GROUP BY chain_table"
    )
    if row is None:
        raise UnavailableError(
            "no storage target has registered yet",
            hint="start a storage daemon for this metadata server",
        )
    return NewestTable(*row)


def create_many(tx: Transaction, context: Context, request: CreateManyRequest) -> CreateManyReply:
    """Open a write session for each entry that may have one; see `CreateManyRequest`."""
    table = newest_table(tx)
    lease(tx, context, request.client)
    problems = [_problem_of(entry) for entry in request.entries]
    walker = Walker(
        tx,
        context.caller,
        [entry.path for entry in request.entries],
        make=[
            entry.path
            for entry, problem in zip(request.entries, problems, strict=True)
            if entry.parents and problem is None
        ],
        context=context,
    )
    for place, problem in enumerate(problems):
        if problem is not None:
            walker.keys[place] = problem
    _refuse_taken(tx, request.entries, walker)
    return CreateManyReply(_open_sessions(tx, context, request, walker, table))


def _problem_of(entry: CreateEntry) -> FFSError | None:
    """Return what is wrong with an entry by itself."""
    if entry.create_mode not in _MODES:
        return InvalidError(f"unknown create mode {entry.create_mode}")
    return layout_problem(entry.chunk_size_bytes, entry.stripe)


def _refuse_taken(tx: Transaction, entries: list[CreateEntry], walker: Walker) -> None:
    """Replace keys by errors where the name may not be written.

    Only an exclusive entry decides something here, that its name is free, and so holds its
    directory; for the others close decides.
    """
    keys = walker.keys
    exclusive = [entry.create_mode == CreateMode.EXCLUSIVE for entry in entries]
    alive = hold_directories(
        tx,
        (
            key[0]
            for key, alone in zip(keys, exclusive, strict=True)
            if alone and not isinstance(key, FFSError)
        ),
    )
    there = _follow(walker, lookup(tx, walker.good()), exclusive)
    _load_permissions(walker, there)
    taken = {key for key, found in there.items() if found[1] == RESERVED}
    for place, (entry, key, alone) in enumerate(zip(entries, keys, exclusive, strict=True)):
        if isinstance(key, FFSError):
            continue
        problem = _refusal(walker, place, there.get(key), alone=alone)
        if problem is not None:
            keys[place] = problem
        elif key in taken:
            keys[place] = reserved_error(key[1])
        elif alone and key[0] not in alive:
            keys[place] = NotFoundError("the directory was removed meanwhile", path=entry.path)
        elif alone:
            taken.add(key)


def _follow(walker: Walker, there: dict[Key, Found], exclusive: Sequence[bool]) -> dict[Key, Found]:
    """Let entries that may write to what is there follow links; return what is where they led."""
    linked = {key: found[0] for key, found in there.items() if found[1] == FileType.SYMLINK}
    if not linked:
        return there
    links = {
        place: linked[key]
        for place, (key, alone) in enumerate(zip(walker.keys, exclusive, strict=True))
        if not alone and not isinstance(key, FFSError) and key in linked
    }
    return {**there, **walker.follow(links)}


def _load_permissions(walker: Walker, there: Mapping[Key, Found]) -> None:
    if walker.guard.caller.is_root:
        return
    walker.guard.load(parent for parent, _ in walker.good())
    walker.guard.load(inode for inode, type_ in there.values() if type_ == FileType.FILE)


def _refusal(walker: Walker, place: int, found: Found | None, *, alone: bool) -> FFSError | None:
    """Return why a path may not be written, whoever else is writing."""
    key, path = walker.keys[place], walker.paths[place]
    assert not isinstance(key, FFSError)
    if walker.slashed and place in walker.slashed:
        return FileExpectedError("a slash at the end names a directory", path=path)
    if found is None or found[1] == RESERVED:
        return walker.guard.refusal(key[0], CHANGE_NAMES, path)
    if alone:
        return ExistsError("name exists", path=path)
    if found[1] == FileType.DIRECTORY:
        return FileExpectedError("is a directory", path=path)
    return walker.guard.refusal(found[0], Want.WRITE, path)


def _said_layouts(
    tx: Transaction, entries: Sequence[CreateEntry], walker: Walker
) -> dict[int, DirectoryLayout]:
    """Return what directories say, by parent, for entries that leave something open."""
    trails: dict[int, Sequence[int]] = {}
    for place, (entry, key) in enumerate(zip(entries, walker.keys, strict=True)):
        if isinstance(key, FFSError) or (entry.chunk_size_bytes and entry.stripe >= 0):
            continue
        if key[0] not in trails:
            trails[key[0]] = walker.trail(place)
    return nearest_layouts(tx, trails)


def _layout(
    entry: CreateEntry,
    said: DirectoryLayout | None,
    defaults: Defaults,
    table: NewestTable,
    seed: int,
) -> Layout:
    chunk_size_bytes, wanted = entry.chunk_size_bytes, entry.stripe
    if said is not None:
        chunk_size_bytes = chunk_size_bytes or said.chunk_size_bytes
        wanted = said.stripe if wanted < 0 else wanted
    chunk_size_bytes = chunk_size_bytes or defaults.chunk_size_bytes
    wanted = defaults.stripe if wanted < 0 else wanted
    stripe = min(wanted, table.chains) if wanted else table.chains
    return Layout(chunk_size_bytes, stripe, table.table, seed)


def _open_sessions(
    tx: Transaction,
    context: Context,
    request: CreateManyRequest,
    walker: Walker,
    table: NewestTable,
) -> list[WriteSession | Fault]:
    """Insert blobs, sessions and reserved names of all entries that have a key."""
    count = sum(not isinstance(key, FFSError) for key in walker.keys)
    if not count:
        return [fault(key) for key in walker.keys if isinstance(key, FFSError)]
    said = _said_layouts(tx, request.entries, walker)
    ids = zip(tx.allocate("session", count), tx.allocate("blob", count), strict=True)
    blobs: list[tuple[object, ...]] = []
    sessions: list[tuple[object, ...]] = []
    reserved: list[tuple[int, bytes, int, int]] = []
    replies: list[WriteSession | Fault] = []
    seeds = iter(struct.unpack(f"<{count}Q", context.randomness.token(8 * count)))
    defaults, now = context.defaults, context.now_ns
    writing = int(BlobState.WRITING)
    for entry, key in zip(request.entries, walker.keys, strict=True):
        if isinstance(key, FFSError):
            replies.append(fault(key))
            continue
        session, blob = next(ids)
        # 63 bits: SQL integers are signed.
        layout = _layout(entry, said.get(key[0]), defaults, table, next(seeds) >> 1)
        cut, stripe, seed = layout.chunk_size_bytes, layout.stripe, layout.seed
        blobs.append((blob, writing, 0, 0, cut, stripe, table.table, seed, now))
        sessions.append(
            (session, request.client, blob, *key, entry.create_mode, entry.mode & 0o7777)
        )
        if entry.create_mode == CreateMode.EXCLUSIVE:
            reserved.append((*key, -session, RESERVED))
        replies.append(WriteSession(session, blob, layout))
    tx.insert("blobs", _BLOB_COLUMNS, blobs)
    tx.insert("sessions", SESSION_COLUMNS, sessions)
    insert_names(tx, reserved)
    return replies
