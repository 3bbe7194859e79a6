"""close_many: a session's blob becomes its path's content.

Previous hop: `service`; the client has made every chunk durable before. Next hop: one statement per
table for the whole batch. Invariant: in one transaction the blob's length is fixed, its reference
counted, the old content's reference dropped, the version grown and the session ended; readers see
the old content or the new. A session remembers its directory by inode, so a directory renamed
meanwhile takes the file along, and one removed meanwhile is a NotFoundError.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from ffs.errors import (
    AccessError,
    ExistsError,
    FFSError,
    FileExpectedError,
    InvalidError,
    LeaseExpiredError,
    NotFoundError,
)
from ffs.limits import CHUNK_INDEX_MAX
from ffs.server.meta.ops.context import Context, allocate, fault
from ffs.server.meta.ops.release import release_content
from ffs.server.meta.ops.resolve import (
    Key,
    insert_dentries,
    lookup,
    reserved,
    touch_directories,
)
from ffs.server.meta.ops.sessions import forget, renew_lease
from ffs.server.meta.ops.stat import ATTR_COLUMNS
from ffs.server.meta.schema import BlobState
from ffs.server.meta.store import Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import CloseEntry, CloseManyReply, CloseManyRequest, CreateMode, Fault

_SESSIONS: Final = """
WITH keys(session) AS (VALUES {keys})
SELECT s.session, s.client, s.blob, b.chunk_size_bytes, s.parent, s.name, s.create_mode, s.mode
FROM keys CROSS JOIN sessions s CROSS JOIN blobs b
WHERE s.session = keys.session AND b.blob = s.blob
"""
_ALIVE: Final = """
WITH keys(inode) AS (VALUES {keys})
SELECT i.inode FROM keys CROSS JOIN inodes i WHERE i.inode = keys.inode
"""
_ATTRS: Final = f"""
WITH keys(inode) AS (VALUES {{keys}})
SELECT {ATTR_COLUMNS} FROM keys CROSS JOIN inodes i WHERE i.inode = keys.inode
"""


@dataclass(frozen=True, slots=True)
class _Closing:
    """One entry with the session it closes."""

    place: int
    session: int
    blob: int
    chunk_size_bytes: int
    key: Key
    exclusive: bool
    mode: int
    length: int
    mtime_ns: int


def close_many(tx: Transaction, context: Context, request: CloseManyRequest) -> CloseManyReply:
    """Publish each entry's blob; see `CloseManyRequest`."""
    renew_lease(tx, context, request.client)
    outcomes: dict[int, Attr | Fault] = {}
    closings: list[_Closing] = []
    known = _sessions(tx, request)
    for place, entry in enumerate(request.entries):
        # popped: the same session twice in a batch is closed once
        closing = _check(place, entry, known.pop(entry.session, None), context.now_ns)
        if isinstance(closing, FFSError):
            outcomes[place] = fault(closing)
        else:
            closings.append(closing)
    for wave in _waves(closings):
        outcomes.update(_publish(tx, context, wave))
    return CloseManyReply([outcomes[place] for place in range(len(request.entries))])


def _sessions(tx: Transaction, request: CloseManyRequest) -> dict[int, _Closing | FFSError]:
    """Load the sessions of a batch; `place`, `length` and `mtime_ns` are the entries' to fill."""
    wanted = [(session,) for session in {entry.session for entry in request.entries}]
    found: dict[int, _Closing | FFSError] = {}
    for session, client, blob, cut, parent, name, create_mode, mode in tx.rows_for(
        _SESSIONS, wanted
    ):
        if client != request.client:
            found[session] = AccessError("write session belongs to another client")
            continue
        exclusive = create_mode == CreateMode.EXCLUSIVE
        found[session] = _Closing(0, session, blob, cut, (parent, name), exclusive, mode, 0, 0)
    return found


def _check(
    place: int, entry: CloseEntry, session: _Closing | FFSError | None, now_ns: int
) -> _Closing | FFSError:
    """Return the entry joined with its session, or why it cannot be closed."""
    if session is None:
        return LeaseExpiredError(
            "write session is unknown: reaped, aborted or closed before",
            hint="write the file again",
        )
    if isinstance(session, FFSError):
        return session
    if not 0 <= entry.length <= session.chunk_size_bytes * (CHUNK_INDEX_MAX + 1):
        return InvalidError(f"a length of {entry.length} bytes is out of bounds")
    mtime_ns = entry.mtime_ns or now_ns
    return replace(session, place=place, length=entry.length, mtime_ns=mtime_ns)


def _waves(closings: list[_Closing]) -> Iterable[list[_Closing]]:
    """Cut a batch so that no name is twice in a part; order between equal names is kept."""
    waves: list[list[_Closing]] = []
    seen: dict[Key, int] = {}
    for closing in closings:
        wave = seen.get(closing.key, 0)
        seen[closing.key] = wave + 1
        if wave == len(waves):
            waves.append([])
        waves[wave].append(closing)
    return waves


def _publish(
    tx: Transaction, context: Context, wave: list[_Closing]
) -> Iterable[tuple[int, Attr | Fault]]:
    """Close sessions of different names and return (place, outcome) of each."""
    keys = [closing.key for closing in wave]
    there = lookup(tx, keys)
    held = reserved(tx, keys)
    alive = {row[0] for row in tx.rows_for(_ALIVE, [(p,) for p in {key[0] for key in keys}])}
    outcomes: list[tuple[int, Attr | Fault]] = []
    fresh: list[_Closing] = []
    renewed: list[tuple[int, _Closing]] = []
    for closing in wave:
        found = there.get(closing.key)
        problem: FFSError | None = None
        if closing.key[0] not in alive:
            problem = NotFoundError("the file's directory was removed meanwhile")
        elif held.get(closing.key, closing.session) != closing.session:
            problem = ExistsError("name is reserved by an exclusive create in progress")
        elif found is None:
            fresh.append(closing)
        elif found[1] == FileType.DIRECTORY:
            problem = FileExpectedError("is a directory")
        elif closing.exclusive:
            problem = ExistsError("name exists")
        else:
            renewed.append((found[0], closing))
        if problem is not None:
            outcomes.append((closing.place, fault(problem)))
    published = _insert_files(tx, context, fresh) + _replace_files(tx, context, renewed)
    _attach(tx, context, [(attr.inode, closing) for closing, attr in published])
    outcomes += [(closing.place, attr) for closing, attr in published]
    return outcomes


def _insert_files(
    tx: Transaction, context: Context, fresh: list[_Closing]
) -> list[tuple[_Closing, Attr]]:
    """Make inodes and names for files that are new."""
    if not fresh:
        return []
    now = context.now_ns
    published = [
        (
            closing,
            Attr(
                inode=inode,
                type=int(FileType.FILE),
                mode=closing.mode,
                uid=0,
                gid=0,
                nlink=1,
                size=closing.length,
                version=1,
                atime_ns=closing.mtime_ns,
                mtime_ns=closing.mtime_ns,
                ctime_ns=now,
            ),
        )
        for closing, inode in zip(fresh, allocate(tx, "inode", len(fresh)), strict=True)
    ]
    tx.run_each(
        "INSERT INTO inodes (inode, type, mode, uid, gid, nlink, size, version, atime_ns,"
        " mtime_ns, ctime_ns) VALUES (?, 1, ?, 0, 0, 1, ?, 1, ?, ?, ?)",
        [(a.inode, a.mode, a.size, a.atime_ns, a.mtime_ns, a.ctime_ns) for _, a in published],
    )
    insert_dentries(tx, [(*c.key, attr.inode, FileType.FILE) for c, attr in published])
    touch_directories(tx, now, dict.fromkeys({closing.key[0] for closing in fresh}, 0))
    return published


def _replace_files(
    tx: Transaction, context: Context, renewed: list[tuple[int, _Closing]]
) -> list[tuple[_Closing, Attr]]:
    """Take the old content off files that stay, and give them their new size and times."""
    if not renewed:
        return []
    release_content(tx, context.now_ns, [inode for inode, _ in renewed])
    tx.run_each(
        "UPDATE inodes SET size = ?, version = version + 1, mtime_ns = ?, ctime_ns = ?"
        " WHERE inode = ?",
        [(c.length, c.mtime_ns, context.now_ns, inode) for inode, c in renewed],
    )
    rows = tx.rows_for(_ATTRS, [(inode,) for inode, _ in renewed])
    attrs = {row[0]: Attr(*row) for row in rows}
    return [(closing, attrs[inode]) for inode, closing in renewed]


def _attach(tx: Transaction, context: Context, published: list[tuple[int, _Closing]]) -> None:
    """Make the blobs the files' content and end the sessions. An empty file needs no blob."""
    tx.run_each(
        "INSERT INTO segments (inode, place, blob, length) VALUES (?, 0, ?, ?)",
        [(inode, c.blob, c.length) for inode, c in published if c.length],
    )
    tx.run_each(
        "UPDATE blobs SET state = ?, refs = ?, length = ?, changed_ns = ? WHERE blob = ?",
        [
            (
                BlobState.LIVE if c.length else BlobState.DEAD,
                1 if c.length else 0,
                c.length,
                context.now_ns,
                c.blob,
            )
            for _, c in published
        ],
    )
    forget(tx, [c.session for _, c in published])
