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
from typing import Final, NamedTuple

from ffs.errors import (
    ExistsError,
    FFSError,
    FileExpectedError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from ffs.server.meta.cluster.view import CROWDED_PERCENT
from ffs.server.meta.ops.access import CHANGE_NAMES, Want
from ffs.server.meta.ops.charges import Charges
from ffs.server.meta.ops.context import Context, Defaults, fault
from ffs.server.meta.ops.directories import insert_names
from ffs.server.meta.ops.layout import DirectoryLayout, layout_problem, nearest_layouts
from ffs.server.meta.ops.names import Found, Key, hold_directories, lookup_new, reserved_error
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.sessions import SESSION_COLUMNS, lease
from ffs.server.meta.schema import RESERVED, BlobState
from ffs.server.meta.store import Transaction
from ffs.types import FileType, Layout
from ffs.wire.messages import CreateManyReply, CreateManyRequest, CreateMode, WriteSession
from ffs.wire.method import Fault

_BLOB_COLUMNS: Final = (
    *("blob", "state", "refs", "length", "chunk_size_bytes", "stripe", "chain_table"),
    *("seed", "changed_ns"),
)
# Half of what the classes' own constructors take.
_SESSION: Final = partial(tuple.__new__, WriteSession)
_LAYOUT: Final = partial(tuple.__new__, Layout)
_EXCLUSIVE: Final = int(CreateMode.EXCLUSIVE)
_MODES: Final = frozenset(int(mode) for mode in CreateMode)


_QUOTAS: Final = """
WITH keys(inode) AS (VALUES {keys})
SELECT i.inode, i.quota FROM keys CROSS JOIN inodes i WHERE i.inode = keys.inode
"""


class _Asked(NamedTuple):
    """The entries of a request, column by column, in order of `CreateEntry`."""

    paths: Sequence[bytes]
    create_modes: Sequence[int]
    modes: Sequence[int]
    makes_parents: Sequence[bool]
    chunk_sizes: Sequence[int]
    stripes: Sequence[int]


_NOTHING: Final = _Asked((), (), (), (), (), ())


@dataclass(frozen=True, slots=True)
class NewestTable:
    """The chain table that new layouts refer to; and whether any directory has a quota."""

    table: int
    chains: int
    quotas: bool


def newest_table(tx: Transaction) -> NewestTable:
    """Return the newest chain table, which avoids crowded chains while there are others.

    Raises:  UnavailableError while there is none; NoSpaceError if all of its chains are crowded
    """
    row = tx.row(
        "SELECT t.chain_table, count(*), CAST(sum(c.crowded) AS BIGINT),"
        " CASE WHEN EXISTS (SELECT 1 FROM quotas) THEN 1 ELSE 0 END"
        " FROM table_chains t JOIN chains c ON c.chain = t.chain"
        " WHERE t.chain_table = (SELECT max(chain_table) FROM table_chains) GROUP BY t.chain_table"
    )
    if row is None:
        raise UnavailableError(
            "no storage target has registered yet",
            hint="start a storage daemon for this metadata server, or as many as replicas",
        )
    table, chains, crowded, quotas = row
    if crowded == chains:
        raise NoSpaceError(
            f"all disks for new files are more than {CROWDED_PERCENT} % full",
            hint="remove files, or add storage",
        )
    return NewestTable(table, chains, bool(quotas))


def create_many(tx: Transaction, context: Context, request: CreateManyRequest) -> CreateManyReply:
    """Open a write session for each entry that may have one; see `CreateManyRequest`."""
    table = newest_table(tx)
    lease(tx, context, request.client)
    asked = _Asked(*zip(*request.entries, strict=True)) if request.entries else _NOTHING
    problems = _problems(asked)
    wanted = enumerate(asked.makes_parents) if any(asked.makes_parents) else ()
    make = [asked.paths[place] for place, makes in wanted if makes and place not in problems]
    walker = Walker(tx, context.caller, asked.paths, make=make, context=context)
    for place, problem in problems.items():
        walker.keys[place] = problem
    there = _refuse_taken(tx, asked, walker)
    if table.quotas:
        _refuse_full(tx, walker, there)
    return CreateManyReply(_open_sessions(tx, context, request.client, asked, walker, table))


def _problems(asked: _Asked) -> dict[int, FFSError]:
    """Return what is wrong with entries by themselves, by place."""
    wishes = list(zip(asked.create_modes, asked.chunk_sizes, asked.stripes, strict=True))
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


def _refuse_taken(tx: Transaction, asked: _Asked, walker: Walker) -> dict[Key, Found]:
    """Replace keys by errors where the name may not be written; return what is at names.

    Only an exclusive entry decides something here, that its name is free, and so holds its
    directory; for the others close decides.
    """
    keys = walker.keys
    exclusive: set[int] = set()
    if _EXCLUSIVE in asked.create_modes:
        exclusive = {place for place, mode in enumerate(asked.create_modes) if mode == _EXCLUSIVE}
    alive = hold_directories(
        tx,
        {key[0] for place in exclusive if not isinstance(key := keys[place], FFSError)},
    )
    there = _follow(walker, lookup_new(tx, walker.good()), exclusive)
    if not (there or exclusive or walker.slashed) and walker.guard.caller.is_root:
        return there  # all names are free, and may be taken
    _load_permissions(walker, there)
    taken = {key for key, found in there.items() if found[1] == RESERVED}
    for place, key in enumerate(keys):
        if isinstance(key, FFSError):
            continue
        alone = place in exclusive
        problem = _refusal(walker, place, there.get(key), alone=alone)
        if problem is not None:
            keys[place] = problem
        elif key in taken:
            keys[place] = reserved_error(key[1])
        elif alone and key[0] not in alive:
            keys[place] = NotFoundError(
                "the directory was removed meanwhile", path=asked.paths[place]
            )
        elif alone:
            taken.add(key)
    return there


def _refuse_full(tx: Transaction, walker: Walker, there: Mapping[Key, Found]) -> None:
    """Replace keys of new files by errors where a quota has no room for one more, with a byte.

    Why: close decides, but nobody shall write for hours before. Nothing is held, or charged.
    """
    new = {
        place: key
        for place, key in enumerate(walker.keys)
        if not isinstance(key, FFSError) and key not in there
    }
    rows = tx.rows_for(_QUOTAS, sorted({(parent,) for parent, _ in new.values()}))
    quotas: dict[int, int] = dict(rows)
    charges = Charges(tx, quotas.values())
    for place, (parent, _) in new.items():
        if (full := charges.refusal(quotas.get(parent, 0), 1, 1)) is not None:
            walker.keys[place] = full


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
    tx: Transaction, defaults: Defaults, asked: _Asked, walker: Walker, table: NewestTable
) -> list[tuple[int, int]]:
    """Return the chunk size and the stripe of each entry; of those without a key anything."""
    parents = [0 if isinstance(key, FFSError) else key[0] for key in walker.keys]
    wishes = list(zip(asked.chunk_sizes, asked.stripes, parents, strict=True))
    # Most of a batch wish for the same.
    different, places = set(wishes), dict(zip(parents, range(len(parents)), strict=True))
    trails: dict[int, Sequence[int]] = {}
    for chunk_size_bytes, stripe, parent in different:
        if parent and not (chunk_size_bytes and stripe >= 0):
            trails[parent] = walker.trail(places[parent])
    said = nearest_layouts(tx, trails)
    cut = {wish: _cut(wish[0], wish[1], said.get(wish[2]), defaults, table) for wish in different}
    return list(map(cut.__getitem__, wishes))


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
    client: bytes,
    asked: _Asked,
    walker: Walker,
    table: NewestTable,
) -> list[WriteSession | Fault]:
    """Insert blobs, sessions and reserved names of all entries that have a key."""
    layouts = _layouts(tx, context.defaults, asked, walker, table)
    each = zip(walker.keys, layouts, asked.create_modes, asked.modes, strict=True)
    good = [one for one in each if not isinstance(one[0], FFSError)]
    if not good:
        return [fault(key) for key in walker.keys if isinstance(key, FFSError)]
    keys, cuts, create_modes, modes = zip(*good, strict=True)
    (parents, names), (chunk_sizes, stripes) = zip(*keys, strict=True), zip(*cuts, strict=True)
    count = len(good)
    # 63 bits: SQL integers are signed.
    seeds = [n >> 1 for n in struct.unpack(f"<{count}Q", context.randomness.token(8 * count))]
    sessions, blobs = tx.allocate("session", count), tx.allocate("blob", count)
    writing, none, now = [int(BlobState.WRITING)] * count, [0] * count, [context.now_ns] * count
    layout = (chunk_sizes, stripes, [table.table] * count, seeds)
    tx.insert_columns("blobs", _BLOB_COLUMNS, (blobs, writing, none, none, *layout, now))
    allowed = [mode & 0o7777 for mode in modes]
    columns = (sessions, [client] * count, blobs, parents, names, create_modes, allowed)
    tx.insert_columns("sessions", SESSION_COLUMNS, columns)
    if _EXCLUSIVE in create_modes:
        named = zip(parents, names, sessions, create_modes, strict=True)
        insert_names(
            tx,
            [
                (parent, name, -session, RESERVED)
                for parent, name, session, create_mode in named
                if create_mode == _EXCLUSIVE
            ],
        )
    opened = map(
        _SESSION, zip(sessions, blobs, map(_LAYOUT, zip(*layout, strict=True)), strict=True)
    )
    if count == len(walker.keys):
        return list(opened)
    return [fault(key) if isinstance(key, FFSError) else next(opened) for key in walker.keys]
