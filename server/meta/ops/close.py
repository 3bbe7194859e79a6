"""close_many: a session's blob becomes its path's content.

Previous hop: `service`; the client has made every chunk durable before. Next hop: one statement per
table for the whole batch. Invariant: in one transaction the blob's length is fixed, its reference
counted, the old content's reference dropped, the version grown and the session ended; readers see
the old content or the new. A session remembers its directory by inode, so a directory renamed
meanwhile takes the file along, and one removed meanwhile is a NotFoundError.
"""

from __future__ import annotations

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
from ffs.server.meta.ops.context import Context, fault
from ffs.server.meta.ops.directories import INODE_COLUMNS, insert_names, touch_directories
from ffs.server.meta.ops.names import Found, Key, hold_inodes, hold_names, reserved_error
from ffs.server.meta.ops.release import release_content
from ffs.server.meta.ops.sessions import forget, renew_lease
from ffs.server.meta.ops.stat import ATTR_COLUMNS
from ffs.server.meta.schema import RESERVED, BlobState
from ffs.server.meta.store import Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import CloseEntry, CloseManyReply, CloseManyRequest, CreateMode, Fault

_SESSIONS: Final = """
WITH keys(session) AS (VALUES {keys})
SELECT s.session, s.client, s.blob, b.chunk_size_bytes, s.parent, s.name, s.create_mode, s.mode
FROM keys CROSS JOIN sessions s CROSS JOIN blobs b
WHERE s.session = keys.session AND b.blob = s.blob ORDER BY s.session FOR UPDATE OF s
"""
_OCCUPY: Final = """
WITH keys(parent, name, inode, type) AS (VALUES {keys})
UPDATE dentries SET inode = keys.inode, type = keys.type
FROM keys WHERE dentries.parent = keys.parent AND dentries.name = keys.name
"""
_RENEW: Final = """
WITH keys(inode, size, mtime_ns, ctime_ns) AS (VALUES {keys})
UPDATE inodes SET size = keys.size, version = version + 1, mtime_ns = keys.mtime_ns,
    ctime_ns = keys.ctime_ns
FROM keys WHERE inodes.inode = keys.inode
"""
_FIX_BLOBS: Final = """
WITH keys(blob, state, refs, length, changed_ns) AS (VALUES {keys})
UPDATE blobs SET state = keys.state, refs = keys.refs, length = keys.length,
    changed_ns = keys.changed_ns
FROM keys WHERE blobs.blob = keys.blob
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
    while closings:
        closings = _publish(tx, context, closings, outcomes)
    return CloseManyReply([outcomes[place] for place in range(len(request.entries))])


def _sessions(tx: Transaction, request: CloseManyRequest) -> dict[int, _Closing | FFSError]:
    """Load the sessions of a batch; `place`, `length` and `mtime_ns` are the entries' to fill."""
    wanted = [(session,) for session in sorted({entry.session for entry in request.entries})]
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


def _publish(
    tx: Transaction,
    context: Context,
    closings: list[_Closing],
    outcomes: dict[int, Attr | Fault],
) -> list[_Closing]:
    """Close the first session of each name and of each file, and note the outcomes.

    Returns: the others, in order: what was closed before them is what they find
    """
    there, alive = hold_names(tx, {closing.key for closing in closings})
    fresh: list[_Closing] = []
    renewed: list[tuple[int, _Closing]] = []
    later: list[_Closing] = []
    seen: set[Key | int] = set()
    for closing in closings:
        found = there.get(closing.key)
        mine = found == (-closing.session, RESERVED)
        # A file may have several names.
        same: Key | int = closing.key if found is None or mine else found[0]
        if closing.key in seen or same in seen:
            later.append(closing)
            continue
        problem = None if mine else _refusal(closing, found, alive)
        if problem is not None:
            outcomes[closing.place] = fault(problem)
            continue
        seen.update((closing.key, same))
        if found is None or mine:
            fresh.append(closing)
        else:
            renewed.append((found[0], closing))
    reserved = {closing.key for closing in fresh if closing.key in there}
    published = _replace_files(tx, context, renewed) + _insert_files(tx, context, fresh, reserved)
    _attach(tx, context, [(attr.inode, closing) for closing, attr in published])
    outcomes.update((closing.place, attr) for closing, attr in published)
    return later


def _refusal(closing: _Closing, found: Found | None, alive: set[int]) -> FFSError | None:
    """Return why a session cannot be closed over what stands at its name."""
    if closing.key[0] not in alive:
        return NotFoundError("the file's directory was removed meanwhile")
    if found is None:
        return None
    if found[1] == RESERVED:
        return reserved_error(closing.key[1])
    if found[1] == FileType.DIRECTORY:
        return FileExpectedError("is a directory")
    return ExistsError("name exists") if closing.exclusive else None


def _insert_files(
    tx: Transaction, context: Context, fresh: list[_Closing], reserved: set[Key]
) -> list[tuple[_Closing, Attr]]:
    """Make inodes and names for files that are new; names that they reserved keep their row."""
    if not fresh:
        return []
    now, type_ = context.now_ns, int(FileType.FILE)
    fresh.sort(key=lambda closing: closing.key)
    rows = [
        (inode, type_, c.mode, 0, 0, 1, c.length, 1, c.mtime_ns, c.mtime_ns, now)
        for c, inode in zip(fresh, tx.allocate("inode", len(fresh)), strict=True)
    ]
    names = [(*c.key, row[0], type_) for c, row in zip(fresh, rows, strict=True)]
    tx.insert("inodes", INODE_COLUMNS, rows)
    insert_names(tx, [name for name in names if name[:2] not in reserved])
    tx.run_for(_OCCUPY, [name for name in names if name[:2] in reserved])
    touch_directories(tx, now, dict.fromkeys({closing.key[0] for closing in fresh}, 0))
    return [(closing, Attr(*row)) for closing, row in zip(fresh, rows, strict=True)]


def _replace_files(
    tx: Transaction, context: Context, renewed: list[tuple[int, _Closing]]
) -> list[tuple[_Closing, Attr]]:
    """Take the old content off files that stay, and give them their new size and times."""
    if not renewed:
        return []
    inodes = sorted(inode for inode, _ in renewed)
    if tx.shared:
        hold_inodes(tx, inodes)
    release_content(tx, context.now_ns, inodes)
    tx.run_for(
        _RENEW, sorted((inode, c.length, c.mtime_ns, context.now_ns) for inode, c in renewed)
    )
    attrs = {row[0]: Attr(*row) for row in tx.rows_for(_ATTRS, [(inode,) for inode in inodes])}
    return [(closing, attrs[inode]) for inode, closing in renewed]


def _attach(tx: Transaction, context: Context, published: list[tuple[int, _Closing]]) -> None:
    """Make the blobs the files' content and end the sessions. An empty file needs no blob."""
    tx.insert(
        "segments",
        ("inode", "place", "blob", "length"),
        [(inode, 0, c.blob, c.length) for inode, c in published if c.length],
    )
    now, live, dead = context.now_ns, int(BlobState.LIVE), int(BlobState.DEAD)
    tx.run_for(
        _FIX_BLOBS,
        sorted(
            (c.blob, live, 1, c.length, now) if c.length else (c.blob, dead, 0, 0, now)
            for _, c in published
        ),
    )
    forget(tx, [c.session for _, c in published])
