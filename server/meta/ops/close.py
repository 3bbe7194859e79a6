"""close_many: a session's blob becomes its path's content, or what comes behind it.

Previous hop: `service`; the client has made every chunk durable before. Next hop: `content` for
files that are there; one statement per table for the whole batch. Invariant: in one transaction the
blob's length is fixed, its reference counted, the old content's reference dropped, the version
grown and the session ended; readers see the old content or the new. A session remembers its
directory by inode, so a directory renamed meanwhile takes the file along, and one removed meanwhile
is a NotFoundError. What stands at the name counts as it is now: a file removed meanwhile is made
anew, in every mode, and a symbolic link that took the name gives it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ffs.errors import (
    AccessError,
    ExistsError,
    FFSError,
    FileExpectedError,
    InvalidError,
    LeaseExpiredError,
    NotFoundError,
    VersionError,
)
from ffs.limits import CHUNK_INDEX_MAX
from ffs.server.meta.ops.access import (
    CHANGE_NAMES,
    Caller,
    Permissions,
    allowed,
    denied,
    group_of_new,
)
from ffs.server.meta.ops.content import SEGMENT_COLUMNS, Closing, change_files
from ffs.server.meta.ops.context import Context, fault
from ffs.server.meta.ops.directories import INODE_COLUMNS, insert_names, touch_directories
from ffs.server.meta.ops.names import Found, Key, hold_inodes, hold_names, reserved_error
from ffs.server.meta.ops.release import doom, release_doomed
from ffs.server.meta.ops.sessions import SESSION_COLUMNS, forget, renew_lease
from ffs.server.meta.schema import RESERVED, BlobState
from ffs.server.meta.store import ConflictError, Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import CloseEntry, CloseManyReply, CloseManyRequest, CreateMode, Fault

_SESSIONS: Final = """
WITH keys(session) AS (VALUES {keys})
SELECT s.session, s.client, s.blob, b.chunk_size_bytes, s.parent, s.name, s.create_mode, s.mode
FROM keys CROSS JOIN sessions s CROSS JOIN blobs b
WHERE s.session = keys.session AND b.blob = s.blob
"""
_OCCUPY: Final = """
WITH keys(parent, name, inode, type) AS (VALUES {keys})
UPDATE dentries SET inode = keys.inode, type = keys.type
FROM keys WHERE dentries.parent = keys.parent AND dentries.name = keys.name
"""
_FIX_BLOBS: Final = f"""
WITH keys(blob, length) AS (VALUES {{keys}})
UPDATE blobs SET state = CASE WHEN keys.length = 0 THEN {BlobState.DEAD:d} ELSE {BlobState.LIVE:d}
    END, refs = CASE WHEN keys.length = 0 THEN 0 ELSE 1 END, length = keys.length, changed_ns = ?
FROM keys WHERE blobs.blob = keys.blob
"""


def close_many(tx: Transaction, context: Context, request: CloseManyRequest) -> CloseManyReply:
    """Publish each entry's blob; see `CloseManyRequest`."""
    renew_lease(tx, context, request.client)
    outcomes: dict[int, Attr | Fault] = {}
    closings: list[Closing] = []
    known = _sessions(tx, request)
    for place, entry in enumerate(request.entries):
        # popped: the same session twice in a batch is closed once
        closing = _check(place, entry, known.pop(entry.session, None), context.now_ns)
        if isinstance(closing, FFSError):
            outcomes[place] = fault(closing)
        else:
            closings.append(closing)
    # Ended before anything else is held, which takes less than to hold them and end them later.
    if forget(tx, [closing.session for closing in closings]) != len(closings):
        raise ConflictError("a session was ended meanwhile")
    waiting = closings
    while waiting:
        waiting = _publish(tx, context, waiting, outcomes)
    _keep(tx, request.client, [c for c in closings if isinstance(outcomes[c.place], Fault)])
    return CloseManyReply([outcomes[place] for place in range(len(request.entries))])


def _keep(tx: Transaction, client: bytes, refused: list[Closing]) -> None:
    """Let sessions go on that could not be closed: their client may abort them, or try again."""
    if refused:
        rows = [(c.session, client, c.blob, *c.key, c.create_mode, c.mode) for c in refused]
        tx.insert("sessions", SESSION_COLUMNS, rows)


def _sessions(tx: Transaction, request: CloseManyRequest) -> dict[int, Closing | FFSError]:
    """Load the sessions of a batch; `_check` fills in what the entries say."""
    wanted = [(session,) for session in sorted({entry.session for entry in request.entries})]
    found: dict[int, Closing | FFSError] = {}
    for session, client, blob, cut, parent, name, create_mode, mode in tx.rows_for(
        _SESSIONS, wanted
    ):
        if client != request.client:
            found[session] = AccessError("write session belongs to another client")
            continue
        found[session] = Closing(session, blob, cut, (parent, name), create_mode, mode)
    return found


def _check(
    place: int, entry: CloseEntry, session: Closing | FFSError | None, now_ns: int
) -> Closing | FFSError:
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
    if entry.segments_replaced:
        identified = entry.version_expected and entry.inode_expected
        if session.create_mode != CreateMode.APPEND or entry.segments_replaced < 0:
            return InvalidError("only an appending session takes the place of segments")
        if not identified or not entry.length:
            return InvalidError("segments are replaced in one version of one inode, by their bytes")
    session.place, session.entry, session.length = place, entry, entry.length
    session.mtime_ns = entry.mtime_ns or now_ns
    return session


def _publish(
    tx: Transaction,
    context: Context,
    closings: list[Closing],
    outcomes: dict[int, Attr | Fault],
) -> list[Closing]:
    """Close the first session of each name and of each file, and note the outcomes.

    Returns: the others, in order: what was closed before them is what they find
    """
    there, alive = hold_names(tx, {closing.key for closing in closings})
    fresh: list[Closing] = []
    changed: dict[int, Closing] = {}
    later: list[Closing] = []
    seen: set[Key | int] = set()
    for closing in closings:
        found = there.get(closing.key)
        # A file may have several names.
        file = found[0] if found is not None and found[1] == FileType.FILE else None
        same: Key | int = closing.key if file is None else file
        if closing.key in seen or same in seen:
            later.append(closing)
            continue
        problem = _refusal(closing, found, alive, context.caller)
        if problem is not None:
            outcomes[closing.place] = fault(problem)
            continue
        seen.update((closing.key, same))
        if file is None:
            fresh.append(closing)
        else:
            changed[file] = closing
    taken = {closing.key: there[closing.key] for closing in fresh if closing.key in there}
    if tx.shared and (going := {*changed, *_links(taken)}):
        hold_inodes(tx, going)
    published = _insert_files(tx, context, fresh, taken, alive)
    published += change_files(tx, context, changed, outcomes)
    outcomes.update((closing.place, attr) for closing, attr in published)
    # No bytes need no blob.
    lengths = sorted((closing.blob, closing.length) for closing, _ in published)
    tx.run_for(_FIX_BLOBS, lengths, (context.now_ns,))
    return later


def _is_mine(closing: Closing, found: Found | None) -> bool:
    """Whether the name is the one that the session itself reserves."""
    return found == (-closing.session, RESERVED)


def _refusal(
    closing: Closing, found: Found | None, alive: Mapping[int, Permissions], caller: Caller
) -> FFSError | None:
    """Return why a session cannot be closed over what stands at its name."""
    if _is_mine(closing, found):
        return None
    if closing.key[0] not in alive:
        return NotFoundError("the file's directory was removed meanwhile")
    if found is not None and found[1] == RESERVED:
        return reserved_error(closing.key[1])
    if found is not None and closing.create_mode == CreateMode.EXCLUSIVE:
        return ExistsError("name exists")
    if found is not None and found[1] == FileType.DIRECTORY:
        return FileExpectedError("is a directory")
    if found is not None and found[1] == FileType.FILE:
        return None
    if closing.entry.version_expected or closing.entry.inode_expected:
        return VersionError("the file was removed meanwhile")
    # A link that took the name meanwhile gives it up, as it would to a rename.
    return None if allowed(alive[closing.key[0]], caller, CHANGE_NAMES) else denied(closing.key[1])


def _links(taken: Mapping[Key, Found]) -> list[int]:
    return [inode for inode, type_ in taken.values() if type_ == FileType.SYMLINK]


def _insert_files(
    tx: Transaction,
    context: Context,
    fresh: list[Closing],
    taken: Mapping[Key, Found],
    alive: Mapping[int, Permissions],
) -> list[tuple[Closing, Attr]]:
    """Make inodes and names for files that are new.

    Args:    taken: names that keep their row: those that their sessions reserved, and links
    """
    if not fresh:
        return []
    now, type_, caller = context.now_ns, int(FileType.FILE), context.caller
    fresh.sort(key=lambda closing: closing.key)
    rows = [
        (
            *(inode, type_, c.mode, caller.uid, group_of_new(alive[c.key[0]], caller)),
            *(1, c.length, 1, c.mtime_ns, c.mtime_ns, now),
        )
        for c, inode in zip(fresh, tx.allocate("inode", len(fresh)), strict=True)
    ]
    names = [(*c.key, row[0], type_) for c, row in zip(fresh, rows, strict=True)]
    tx.insert("inodes", INODE_COLUMNS, rows)
    tx.run_for(_OCCUPY, [name for name in names if name[:2] in taken])
    if links := _links(taken):
        doom(tx, links)
        release_doomed(tx, now)
    insert_names(tx, [name for name in names if name[:2] not in taken])
    touch_directories(tx, now, dict.fromkeys({closing.key[0] for closing in fresh}, 0))
    tx.insert(
        "segments",
        SEGMENT_COLUMNS,
        [(row[0], 0, c.blob, c.length) for c, row in zip(fresh, rows, strict=True) if c.length],
    )
    return [(closing, Attr(*row)) for closing, row in zip(fresh, rows, strict=True)]
