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
from functools import partial
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
# Half of what the classes' own constructors take.
_SESSION: Final = partial(tuple.__new__, WriteSession)
_LAYOUT: Final = partial(tuple.__new__, Layout)
_EXCLUSIVE: Final = int(CreateMode.EXCLUSIVE)
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
    problems = _problems(request.entries)
    walker = Walker(
        tx,
        context.caller,
        [entry.path for entry in request.entries],
        make=[
            entry.path
            for place, entry in enumerate(request.entries)
            if entry.parents and place not in problems
        ],
        context=context,
    )
    for place, problem in problems.items():
        walker.keys[place] = problem
    _refuse_taken(tx, request.entries, walker)
    return CreateManyReply(_open_sessions(tx, context, request, walker, table))


def _problems(entries: list[CreateEntry]) -> dict[int, FFSError]:
    """Return what is wrong with entries by themselves, by place."""
    wishes = [(entry.create_mode, entry.chunk_size_bytes, entry.stripe) for entry in entries]
    # Most of a batch wish for the same, which is judged once.
    judged = {wish: _problem_of(*wish) for wish in set(wishes)}
    if not any(judged.values()):
        return {}
    return {
        place: problem for place, wish in enumerate(wishes) if (problem := judged[wish]) is not None
    }


def _problem_of(create_mode: int, chunk_size_bytes: int, stripe: int) -> FFSError | None:
    if create_mode not in _MODES:
        return InvalidError(f"unknown create mode {create_mode}")
    return layout_problem(chunk_size_bytes, stripe)


def _refuse_taken(tx: Transaction, entries: list[CreateEntry], walker: Walker) -> None:
    """Replace keys by errors where the name may not be written.

    Only an exclusive entry decides something here, that its name is free, and so holds its
    directory; for the others close decides.
    """
    keys = walker.keys
    exclusive = {place for place, entry in enumerate(entries) if entry.create_mode == _EXCLUSIVE}
    alive = hold_directories(
        tx,
        {key[0] for place in exclusive if not isinstance(key := keys[place], FFSError)},
    )
    there = _follow(walker, lookup(tx, walker.good()), exclusive)
    if not (there or exclusive or walker.slashed) and walker.guard.caller.is_root:
        return  # all names are free, and may be taken
    _load_permissions(walker, there)
    taken = {key for key, found in there.items() if found[1] == RESERVED}
    for place, (entry, key) in enumerate(zip(entries, keys, strict=True)):
        if isinstance(key, FFSError):
            continue
        alone = place in exclusive
        problem = _refusal(walker, place, there.get(key), alone=alone)
        if problem is not None:
            keys[place] = problem
        elif key in taken:
            keys[place] = reserved_error(key[1])
        elif alone and key[0] not in alive:
            keys[place] = NotFoundError("the directory was removed meanwhile", path=entry.path)
        elif alone:
            taken.add(key)


def _follow(walker: Walker, there: dict[Key, Found], exclusive: set[int]) -> dict[Key, Found]:
    """Let entries that may write to what is there follow links; return what is where they led."""
    linked = {key: found[0] for key, found in there.items() if found[1] == FileType.SYMLINK}
    if not linked:
        return there
    links = {
        place: linked[key]
        for place, key in enumerate(walker.keys)
        if place not in exclusive and not isinstance(key, FFSError) and key in linked
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


def _layouts(
    tx: Transaction,
    defaults: Defaults,
    entries: Sequence[CreateEntry],
    walker: Walker,
    table: NewestTable,
) -> list[tuple[int, int]]:
    """Return the chunk size and the stripe of each entry; of those without a key anything."""
    wishes = [
        (entry.chunk_size_bytes, entry.stripe, 0 if isinstance(key, FFSError) else key[0])
        for entry, key in zip(entries, walker.keys, strict=True)
    ]
    trails: dict[int, Sequence[int]] = {}
    for place, (chunk_size_bytes, stripe, parent) in enumerate(wishes):
        if parent not in trails and parent and not (chunk_size_bytes and stripe >= 0):
            trails[parent] = walker.trail(place)
    said = nearest_layouts(tx, trails)
    # Most of a batch wish for the same.
    cut = {wish: _cut(wish[0], wish[1], said.get(wish[2]), defaults, table) for wish in set(wishes)}
    return [cut[wish] for wish in wishes]


def _cut(
    chunk_size_bytes: int,
    stripe: int,
    said: DirectoryLayout | None,
    defaults: Defaults,
    table: NewestTable,
) -> tuple[int, int]:
    """Return chunk size and stripe by what is wished for, then the directory's word, then ours."""
    if said is not None:
        chunk_size_bytes = chunk_size_bytes or said.chunk_size_bytes
        stripe = said.stripe if stripe < 0 else stripe
    stripe = defaults.stripe if stripe < 0 else stripe
    chains = min(stripe, table.chains) if stripe else table.chains
    return chunk_size_bytes or defaults.chunk_size_bytes, chains


def _open_sessions(
    tx: Transaction,
    context: Context,
    request: CreateManyRequest,
    walker: Walker,
    table: NewestTable,
) -> list[WriteSession | Fault]:
    """Insert blobs, sessions and reserved names of all entries that have a key."""
    layouts = _layouts(tx, context.defaults, request.entries, walker, table)
    good = [
        (key, entry, cut)
        for key, entry, cut in zip(walker.keys, request.entries, layouts, strict=True)
        if not isinstance(key, FFSError)
    ]
    count, now, writing = len(good), context.now_ns, int(BlobState.WRITING)
    # 63 bits: SQL integers are signed.
    seeds = [n >> 1 for n in struct.unpack(f"<{count}Q", context.randomness.token(8 * count))]
    ids = zip(tx.allocate("session", count), tx.allocate("blob", count), seeds, strict=True)
    opened = [
        _SESSION((session, blob, _LAYOUT((*cut, table.table, seed))))
        for (_, _, cut), (session, blob, seed) in zip(good, ids, strict=True)
    ]
    tx.insert(
        "blobs",
        _BLOB_COLUMNS,
        [(blob, writing, 0, 0, *layout, now) for _, blob, layout in opened],
    )
    client = request.client
    rows = [
        (session, client, blob, *key, entry.create_mode, entry.mode & 0o7777)
        for (session, blob, _), (key, entry, _) in zip(opened, good, strict=True)
    ]
    tx.insert("sessions", SESSION_COLUMNS, rows)
    insert_names(
        tx,
        [
            (parent, name, -session, RESERVED)
            for session, _, _, parent, name, create_mode, _ in rows
            if create_mode == _EXCLUSIVE
        ],
    )
    if count == len(walker.keys):
        return [*opened]
    replies = iter(opened)
    return [fault(key) if isinstance(key, FFSError) else next(replies) for key in walker.keys]
