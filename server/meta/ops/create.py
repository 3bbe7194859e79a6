"""create_many: write sessions, each with a new blob.

Previous hop: `service`. Next hop: `resolve`, then one statement per table for the whole batch.
Invariant: blobs and sessions are committed before the answer leaves, so that no chunk can ever be
stored under a blob that the database does not know. Nothing is visible before close; an exclusive
create reserves its name from here on.
"""

from __future__ import annotations

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
from ffs.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN
from ffs.server.meta.ops.context import Context, Defaults, fault
from ffs.server.meta.ops.directories import insert_names
from ffs.server.meta.ops.names import Key, hold_directories, lookup, reserved_error
from ffs.server.meta.ops.resolve import locate_many
from ffs.server.meta.ops.sessions import lease
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
_SESSION_COLUMNS: Final = ("session", "client", "blob", "parent", "name", "create_mode", "mode")


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
    keys = locate_many(
        tx,
        [entry.path for entry in request.entries],
        make=[
            entry.path
            for entry, problem in zip(request.entries, problems, strict=True)
            if entry.parents and problem is None
        ],
        context=context,
    )
    outcome = [problem or key for problem, key in zip(problems, keys, strict=True)]
    _refuse_taken(tx, request.entries, outcome)
    return CreateManyReply(_open_sessions(tx, context, request, outcome, table))


def _problem_of(entry: CreateEntry) -> FFSError | None:
    """Return what is wrong with an entry by itself."""
    size = entry.chunk_size_bytes
    if size and not (CHUNK_BYTES_MIN <= size <= CHUNK_BYTES_MAX and size & (size - 1) == 0):
        return InvalidError(
            f"chunk size of {size} bytes is no power of two from {CHUNK_BYTES_MIN}"
            f" to {CHUNK_BYTES_MAX}"
        )
    if entry.stripe < -1:
        return InvalidError(f"stripe of {entry.stripe} chains")
    if entry.create_mode not in (CreateMode.REPLACE, CreateMode.EXCLUSIVE):
        return InvalidError(f"unknown create mode {entry.create_mode}")
    return None


def _refuse_taken(
    tx: Transaction, entries: list[CreateEntry], outcome: list[Key | FFSError]
) -> None:
    """Replace keys by errors where the name may not be written.

    Only an exclusive entry decides something here, that its name is free, and so holds its
    directory; for the others close decides.
    """
    exclusive = [entry.create_mode == CreateMode.EXCLUSIVE for entry in entries]
    alive = hold_directories(
        tx,
        (
            key[0]
            for key, alone in zip(outcome, exclusive, strict=True)
            if alone and not isinstance(key, FFSError)
        ),
    )
    there = lookup(tx, {key for key in outcome if not isinstance(key, FFSError)})
    taken = {key for key, found in there.items() if found[1] == RESERVED}
    for place, (entry, key, alone) in enumerate(zip(entries, outcome, exclusive, strict=True)):
        if isinstance(key, FFSError):
            continue
        found = there.get(key)
        if key in taken:
            outcome[place] = reserved_error(key[1])
        elif found is not None and found[1] == FileType.DIRECTORY:
            outcome[place] = FileExpectedError("is a directory", path=entry.path)
        elif alone and found is not None:
            outcome[place] = ExistsError("name exists", path=entry.path)
        elif alone and key[0] not in alive:
            outcome[place] = NotFoundError("the directory was removed meanwhile", path=entry.path)
        elif alone:
            taken.add(key)


def _layout(entry: CreateEntry, defaults: Defaults, table: NewestTable, seed: int) -> Layout:
    wanted = defaults.stripe if entry.stripe < 0 else entry.stripe
    stripe = min(wanted, table.chains) if wanted else table.chains
    return Layout(entry.chunk_size_bytes or defaults.chunk_size_bytes, stripe, table.table, seed)


def _open_sessions(
    tx: Transaction,
    context: Context,
    request: CreateManyRequest,
    outcome: list[Key | FFSError],
    table: NewestTable,
) -> list[WriteSession | Fault]:
    """Insert blobs, sessions and reserved names of all entries that have a key."""
    count = sum(not isinstance(key, FFSError) for key in outcome)
    if not count:
        return [fault(key) for key in outcome if isinstance(key, FFSError)]
    ids = zip(tx.allocate("session", count), tx.allocate("blob", count), strict=True)
    blobs: list[tuple[object, ...]] = []
    sessions: list[tuple[object, ...]] = []
    reserved: list[tuple[int, bytes, int, int]] = []
    replies: list[WriteSession | Fault] = []
    draw, defaults, now = context.randomness.u64, context.defaults, context.now_ns
    writing = int(BlobState.WRITING)
    for entry, key in zip(request.entries, outcome, strict=True):
        if isinstance(key, FFSError):
            replies.append(fault(key))
            continue
        session, blob = next(ids)
        # 63 bits: SQL integers are signed.
        layout = _layout(entry, defaults, table, draw() >> 1)
        cut, stripe, seed = layout.chunk_size_bytes, layout.stripe, layout.seed
        blobs.append((blob, writing, 0, 0, cut, stripe, table.table, seed, now))
        sessions.append(
            (session, request.client, blob, *key, entry.create_mode, entry.mode & 0o7777)
        )
        if entry.create_mode == CreateMode.EXCLUSIVE:
            reserved.append((*key, -session, RESERVED))
        replies.append(WriteSession(session, blob, layout))
    tx.insert("blobs", _BLOB_COLUMNS, blobs)
    tx.insert("sessions", _SESSION_COLUMNS, sessions)
    insert_names(tx, reserved)
    return replies
