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
from operator import attrgetter
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
from ffs.limits import CHUNK_BYTES_MIN, CHUNK_INDEX_MAX
from ffs.server.meta.ops.access import (
    CHANGE_NAMES,
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
from ffs.server.meta.store import ConflictError, Row, Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import CloseEntry, CloseManyReply, CloseManyRequest, CreateMode, Fault

_SESSIONS: Final = """
WITH keys(session) AS (VALUES {keys})
SELECT s.session, s.client, s.blob, s.parent, s.name, s.create_mode, s.mode
FROM keys CROSS JOIN sessions s WHERE s.session = keys.session
"""
_NO_SESSION: Final[Row] = ()
_CHUNK_SIZE: Final = "SELECT chunk_size_bytes FROM blobs WHERE blob = ?"
_LENGTH_ANY: Final = CHUNK_BYTES_MIN * (CHUNK_INDEX_MAX + 1)
"""What a blob may have of bytes however it is cut: 256 TiB."""
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
    wanted = [(session,) for session in sorted({entry.session for entry in request.entries})]
    known = {row[0]: row for row in tx.rows_for(_SESSIONS, wanted)}
    for place, entry in enumerate(request.entries):
        # popped: the same session twice in a batch is closed once
        row = known.pop(entry.session, _NO_SESSION)
        if (problem := _problem_of(tx, request.client, entry, row)) is not None:
            outcomes[place] = fault(problem)
            continue
        session, _, blob, parent, name, create_mode, mode = row
        mtime_ns = entry.mtime_ns or context.now_ns
        key = (parent, name)
        closings.append(
            Closing(place, entry, session, blob, key, create_mode, mode, entry.length, mtime_ns)
        )
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


def _problem_of(tx: Transaction, client: bytes, entry: CloseEntry, session: Row) -> FFSError | None:
    """Return why an entry cannot be closed, whatever stands at its name."""
    if session is _NO_SESSION:
        return LeaseExpiredError(
            "write session is unknown: reaped, aborted or closed before",
            hint="write the file again",
        )
    _, owner, blob, _, _, create_mode, _ = session
    if owner != client:
        return AccessError("write session belongs to another client")
    if not 0 <= entry.length <= _LENGTH_ANY and not _fits(tx, entry.length, blob):
        return InvalidError(f"a length of {entry.length} bytes is out of bounds")
    if entry.segments_replaced:
        identified = entry.version_expected and entry.inode_expected
        if create_mode != CreateMode.APPEND or entry.segments_replaced < 0:
            return InvalidError("only an appending session takes the place of segments")
        if not identified or not entry.length:
            return InvalidError("segments are replaced in one version of one inode, by their bytes")
    return None


def _fits(tx: Transaction, length: int, blob: int) -> bool:
    """Whether a blob can have so many bytes, as it is cut."""
    row = tx.row(_CHUNK_SIZE, (blob,))
    return row is not None and 0 <= length <= row[0] * (CHUNK_INDEX_MAX + 1)


def _publish(
    tx: Transaction,
    context: Context,
    closings: list[Closing],
    outcomes: dict[int, Attr | Fault],
) -> list[Closing]:
    """Close the first session of each name and of each file, and note the outcomes.

    Returns: the others, in order: what was closed before them is what they find
    """
    there, alive = hold_names(tx, list(dict.fromkeys([closing.key for closing in closings])))
    fresh: list[Closing] = []
    changed: dict[int, Closing] = {}
    later: list[Closing] = []
    seen: set[Key | int] = set()
    free = {parent: allowed(owned, context.caller, CHANGE_NAMES) for parent, owned in alive.items()}
    for closing in closings:
        key = closing.key
        found = there.get(key)
        # A file may have several names.
        file = found[0] if found is not None and found[1] == FileType.FILE else None
        if key in seen or (file is not None and file in seen):
            later.append(closing)
            continue
        if (problem := _refusal(closing, found, free)) is not None:
            outcomes[closing.place] = fault(problem)
            continue
        seen.add(key)
        if file is None:
            fresh.append(closing)
        else:
            seen.add(file)
            changed[file] = closing
    taken = {c.key: there[c.key] for c in fresh if c.key in there} if there else {}
    if tx.shared and (going := {*changed, *_links(taken)}):
        hold_inodes(tx, going)
    published = _insert_files(tx, context, fresh, taken, alive)
    published += change_files(tx, context, changed, outcomes)
    for closing, attr in published:
        outcomes[closing.place] = attr
    # No bytes need no blob.
    lengths = [(closing.blob, closing.length) for closing, _ in published]
    tx.run_for(_FIX_BLOBS, sorted(lengths), (context.now_ns,))
    return later


def _is_mine(closing: Closing, found: Found) -> bool:
    """Whether the name is the one that the session itself reserves."""
    return found == (-closing.session, RESERVED)


def _refusal(closing: Closing, found: Found | None, free: Mapping[int, bool]) -> FFSError | None:
    """Return why a session cannot be closed over what stands at its name.

    Args:    free: the directories that are there, and whether the caller may add names to each
    """
    if found is not None and _is_mine(closing, found):
        return None
    parent, name = closing.key
    if parent not in free:
        return NotFoundError("the file's directory was removed meanwhile")
    if found is not None:
        if found[1] == RESERVED:
            return reserved_error(name)
        if closing.create_mode == CreateMode.EXCLUSIVE:
            return ExistsError("name exists")
        if found[1] == FileType.DIRECTORY:
            return FileExpectedError("is a directory")
        if found[1] == FileType.FILE:
            return None
    if closing.entry.version_expected or closing.entry.inode_expected:
        return VersionError("the file was removed meanwhile")
    # A link that took the name meanwhile gives it up, as it would to a rename.
    return None if free[parent] else denied(name)


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
    groups = {inode: group_of_new(directory, caller) for inode, directory in alive.items()}
    fresh.sort(key=attrgetter("key"))
    published = [
        (
            c,
            Attr(
                inode,
                type_,
                c.mode,
                caller.uid,
                groups[c.key[0]],
                1,
                c.length,
                1,
                c.mtime_ns,
                c.mtime_ns,
                now,
            ),
        )
        for c, inode in zip(fresh, tx.allocate("inode", len(fresh)), strict=True)
    ]
    names = [(*c.key, attr.inode, type_) for c, attr in published]
    tx.insert("inodes", INODE_COLUMNS, [attr for _, attr in published])
    if taken:
        tx.run_for(_OCCUPY, [name for name in names if name[:2] in taken])
        names = [name for name in names if name[:2] not in taken]
        if links := _links(taken):
            doom(tx, links)
            release_doomed(tx, now)
    insert_names(tx, names)
    touch_directories(tx, now, dict.fromkeys((c.key[0] for c in fresh), 0))
    tx.insert(
        "segments",
        SEGMENT_COLUMNS,
        [(attr.inode, 0, c.blob, c.length) for c, attr in published if c.length],
    )
    return published
