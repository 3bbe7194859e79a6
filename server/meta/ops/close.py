"""close_many: a session's blob becomes its path's content, or what comes behind it.

Previous hop: `service`; the client has made every chunk durable before. Next hop: `content` for
files that are there; one statement per table for the whole batch. Invariant: in one transaction the
blob's length is fixed, its reference counted, the old content's reference dropped, the version
grown and the session ended; readers see the old content or the new. A session remembers its
directory by inode, so a directory renamed meanwhile takes the file along, and one removed meanwhile
is a NotFoundError; a file that does not fit into its quota is a QuotaExceededError. What stands at
the name counts as it is now: a file removed meanwhile is made anew, in every mode, and a symbolic
link that took the name gives it up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from operator import itemgetter
from typing import Final, NamedTuple

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
from ffs.server.meta.ops.charges import Charges, uncharge_names
from ffs.server.meta.ops.content import SEGMENT_COLUMNS, Closing, change_files
from ffs.server.meta.ops.context import Context, fault
from ffs.server.meta.ops.directories import INODE_COLUMNS, Name, insert_names, touch_directories
from ffs.server.meta.ops.names import (
    Found,
    Key,
    hold_directories,
    hold_inodes,
    hold_names,
    reserved_error,
)
from ffs.server.meta.ops.release import doom, release_doomed
from ffs.server.meta.ops.sessions import SESSION_COLUMNS, forget, is_range, renew_lease
from ffs.server.meta.schema import RESERVED, BlobState
from ffs.server.meta.store import ConflictError, Row, Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import CloseEntry, CloseManyReply, CloseManyRequest, CreateMode
from ffs.wire.method import Fault

_SESSION: Final = ", ".join(SESSION_COLUMNS)
_SESSIONS: Final = f"""
WITH keys(wanted) AS (VALUES {{keys}})
SELECT {_SESSION} FROM sessions WHERE session IN (SELECT wanted FROM keys)
"""
_SESSION_RANGE: Final = f"SELECT {_SESSION} FROM sessions WHERE session BETWEEN ? AND ?"
_NO_SESSION: Final[Row] = ()
_FIRST: Final = itemgetter(0)
# Half of what the class's own constructor takes.
_ATTR: Final = partial(tuple.__new__, Attr)
_CHUNK_SIZE: Final = "SELECT chunk_size_bytes FROM blobs WHERE blob = ?"
_LENGTH_ANY: Final = CHUNK_BYTES_MIN * (CHUNK_INDEX_MAX + 1)
"""What a blob may have of bytes however it is cut: 256 TiB."""
_OCCUPY: Final = """
WITH keys(parent, name, inode, type) AS (VALUES {keys})
UPDATE dentries SET inode = keys.inode, type = keys.type
FROM keys WHERE dentries.parent = keys.parent AND dentries.name = keys.name
"""
_TAKE_BACK: Final = """
WITH keys(parent, name, inode, type) AS (VALUES {keys})
DELETE FROM dentries WHERE (name, parent, inode) IN (SELECT name, parent, inode FROM keys)
"""
_FIX_RANGE: Final = """
UPDATE blobs SET state = ?, refs = ?, length = ?, changed_ns = ? WHERE blob BETWEEN ? AND ?
"""
_FIX_ALIKE: Final = """
WITH keys(blob) AS (VALUES {keys})
UPDATE blobs SET state = ?, refs = ?, length = ?, changed_ns = ?
WHERE blob IN (SELECT blob FROM keys)
"""
_FIX_BLOBS: Final = f"""
WITH keys(blob, length) AS (VALUES {{keys}})
UPDATE blobs SET state = CASE WHEN keys.length = 0 THEN {BlobState.DEAD:d} ELSE {BlobState.LIVE:d}
    END, refs = CASE WHEN keys.length = 0 THEN 0 ELSE 1 END, length = keys.length, changed_ns = ?
FROM keys WHERE blobs.blob = keys.blob
"""


class _Files(NamedTuple):
    """What a batch closes, column by column."""

    sessions: Sequence[int]
    blobs: Sequence[int]
    parents: Sequence[int]
    names: Sequence[bytes]
    create_modes: Sequence[int]
    modes: Sequence[int]
    lengths: Sequence[int]
    mtimes: Sequence[int]


def close_many(tx: Transaction, context: Context, request: CloseManyRequest) -> CloseManyReply:
    """Publish each entry's blob; see `CloseManyRequest`."""
    renew_lease(tx, context, request.client)
    rows = _sessions(tx, request.entries)
    known = dict(zip(map(_FIRST, rows), rows, strict=True))
    outcomes: dict[int, Attr | Fault] = {}
    plain, held = _plain_files(request, known, context.now_ns), None
    if plain is not None:
        _end(tx, plain.sessions)
        keys = dict.fromkeys(zip(plain.parents, plain.names, strict=True))
        if tx.shared:
            # Names that were reserved are there.
            new = CreateMode.EXCLUSIVE not in plain.create_modes
            there, alive = held = hold_names(tx, keys, new=new)
        else:
            there, alive = {}, hold_directories(tx, set(plain.parents))
        free = not there and len(keys) == len(plain.names) and _may_add(context, plain, alive)
        charges = Charges(tx, (owned.quota for owned in alive.values()))
        free = free and _have_room(charges, plain, alive)
        if free and (names := _enter_names(tx, plain)):
            charges.settle()
            attrs = _make_files(tx, context, plain, names, alive)
            _fix_blobs(tx, context, zip(plain.blobs, plain.lengths, strict=True))
            return CloseManyReply([*attrs])
        waiting = closings = _closings_of(plain, request.entries)
    else:
        waiting = closings = _good_closings(tx, context, request, known, outcomes)
        _end(tx, [closing.session for closing in closings])
    while waiting:
        waiting = _publish(tx, context, waiting, outcomes, held)
        held = None
    if any(type(outcome) is Fault for outcome in outcomes.values()):
        _keep(tx, request.client, [c for c in closings if isinstance(outcomes[c.place], Fault)])
    return CloseManyReply([outcomes[place] for place in range(len(request.entries))])


def _end(tx: Transaction, sessions: Sequence[int]) -> None:
    """End sessions before anything else is held: less work than to hold them and end them later."""
    if forget(tx, sessions) != len(sessions):
        raise ConflictError("a session was ended meanwhile")


def _sessions(tx: Transaction, entries: Sequence[CloseEntry]) -> list[Row]:
    ids = sorted({entry.session for entry in entries})
    if ids and is_range(ids):
        return tx.rows(_SESSION_RANGE, (ids[0], ids[-1]))
    return tx.rows_for(_SESSIONS, [(session,) for session in ids])


def _plain_files(request: CloseManyRequest, known: Mapping[int, Row], now_ns: int) -> _Files | None:
    """Return the files of a batch with nothing to object to by itself; of any other None.

    Why: a batch that is done column by column takes half of the time.
    """
    entries = request.entries
    if not entries or len(known) != len(entries):
        return None
    sessions, lengths, mtimes, *unusual = zip(*entries, strict=True)
    _, owners, blobs, parents, names, create_modes, modes = zip(
        *map(known.__getitem__, sessions), strict=True
    )
    if {*owners} != {request.client} or any(map(any, unusual)):
        return None
    if min(lengths) < 0 or max(lengths) > _LENGTH_ANY:
        return None
    times = mtimes if all(mtimes) else [mtime_ns or now_ns for mtime_ns in mtimes]
    return _Files(sessions, blobs, parents, names, create_modes, modes, lengths, times)


def _closings_of(files: _Files, entries: Sequence[CloseEntry]) -> list[Closing]:
    """Return a plain batch entry by entry."""
    sessions, blobs, parents, names, *rest = files
    columns = (entries, sessions, blobs, zip(parents, names, strict=True), *rest)
    return list(map(Closing, count(), *columns))


def _good_closings(
    tx: Transaction,
    context: Context,
    request: CloseManyRequest,
    known: dict[int, Row],
    outcomes: dict[int, Attr | Fault],
) -> list[Closing]:
    """Return the entries that can be closed, and note the outcomes of the others."""
    closings: list[Closing] = []
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
    return closings


def _keep(tx: Transaction, client: bytes, refused: list[Closing]) -> None:
    """Let sessions go on that could not be closed: their client may abort them, or try again."""
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
    held: tuple[dict[Key, Found], dict[int, Permissions]] | None,
) -> list[Closing]:
    """Close the first session of each name and of each file, and note the outcomes.

    Args:    held: what `hold_names` said of the names of `closings`, if it was asked already
    Returns: the others, in order: what was closed before them is what they find
    """
    there, alive = held or hold_names(tx, dict.fromkeys(c.key for c in closings))
    charges = Charges(tx, (owned.quota for owned in alive.values()))
    quotas = {parent: owned.quota for parent, owned in alive.items()}
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
        problem = _refusal(closing, found, free)
        if problem is None and file is None and (quota := quotas.get(key[0], 0)):
            problem = charges.add(quota, closing.length, 1)
        if problem is not None:
            outcomes[closing.place] = fault(problem)
            continue
        seen.add(key)
        if file is None:
            fresh.append(closing)
        else:
            seen.add(file)
            changed[file] = closing
    taken = {c.key: there[c.key] for c in fresh if c.key in there}
    if tx.shared and (going := {*changed, *_links(taken)}):
        hold_inodes(tx, going)
    uncharge_names(tx, [(f[0], quotas[key[0]]) for key, f in taken.items() if _is_link(f)])
    published = _insert_files(tx, context, fresh, taken, alive)
    published += change_files(tx, context, changed, outcomes, charges, quotas)
    charges.settle()
    outcomes.update((closing.place, attr) for closing, attr in published)
    _fix_blobs(tx, context, [(closing.blob, closing.length) for closing, _ in published])
    return later


def _files_of(closings: list[Closing]) -> _Files:
    rows = [
        (c.session, c.blob, *c.key, c.create_mode, c.mode, c.length, c.mtime_ns) for c in closings
    ]
    return _Files(*zip(*rows, strict=True)) if rows else _Files(*[()] * len(_Files._fields))


def _may_add(context: Context, files: _Files, alive: Mapping[int, Permissions]) -> bool:
    """Whether the directories of all files are there, and the caller may add names to them."""
    return alive.keys() >= {*files.parents} and all(
        allowed(owned, context.caller, CHANGE_NAMES) for owned in alive.values()
    )


def _have_room(charges: Charges, files: _Files, alive: Mapping[int, Permissions]) -> bool:
    """Whether all new files fit into the quotas of their directories, which are charged then."""
    if not charges.rooms:
        return True
    wanted: dict[int, tuple[int, int]] = {}
    for parent, length in zip(files.parents, files.lengths, strict=True):
        size, count = wanted.get(alive[parent].quota, (0, 0))
        wanted[alive[parent].quota] = (size + length, count + 1)
    return all(charges.add(quota, *more) is None for quota, more in wanted.items())


def _fix_blobs(tx: Transaction, context: Context, lengths: Iterable[tuple[int, int]]) -> None:
    """Say what blobs hold from now on, in order of the blobs. No bytes need no blob."""
    wanted = sorted(lengths)
    if not wanted:
        return
    blobs, (length, *others) = zip(*wanted, strict=True)
    if others.count(length) != len(others):
        tx.run_for(_FIX_BLOBS, wanted, (context.now_ns,))
        return
    state = BlobState.LIVE if length else BlobState.DEAD
    fixed = (int(state), int(length > 0), length, context.now_ns)
    if not tx.shared and is_range(blobs):
        # Made by one batch: found by their ends, in a third of the time.
        tx.run(_FIX_RANGE, (*fixed, blobs[0], blobs[-1]))
    else:
        tx.run_for(_FIX_ALIKE, [(blob,) for blob in blobs], fixed)


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


def _is_link(found: Found) -> bool:
    return found[1] == FileType.SYMLINK


def _links(taken: Mapping[Key, Found]) -> list[int]:
    return [found[0] for found in taken.values() if _is_link(found)]


def _insert_files(
    tx: Transaction,
    context: Context,
    fresh: list[Closing],
    taken: Mapping[Key, Found],
    alive: Mapping[int, Permissions],
) -> list[tuple[Closing, Attr]]:
    """Make files that are new.

    Args:    taken: names that keep their row: those that their sessions reserved, and links
    """
    if not fresh:
        return []
    files = _files_of(fresh)
    names = _new_names(tx, files)
    attrs = _make_files(tx, context, files, names, alive)
    if taken:
        tx.run_for(_OCCUPY, [name for name in names if name[:2] in taken])
        if links := _links(taken):
            doom(tx, links)
            release_doomed(tx, context.now_ns)
    insert_names(tx, [name for name in names if name[:2] not in taken])
    return list(zip(fresh, attrs, strict=True))


def _new_names(tx: Transaction, files: _Files) -> list[Name]:
    """Return rows of `DENTRY_COLUMNS`, with new inodes."""
    inodes = tx.allocate("inode", len(files.names))
    types = [int(FileType.FILE)] * len(files.names)
    return list(zip(files.parents, files.names, inodes, types, strict=True))


def _enter_names(tx: Transaction, files: _Files) -> list[Name]:
    """Enter names and return their rows; nothing, and an empty list, if not all are free.

    Why: one writer need not look first. Names that were reserved are there, and not tried.
    """
    if CreateMode.EXCLUSIVE in files.create_modes:
        return []
    names = _new_names(tx, files)
    entered = insert_names(tx, names, conflict="" if tx.shared else "DO NOTHING")
    if entered == len(names):
        return names
    tx.run_for(_TAKE_BACK, names)
    return []


def _make_files(
    tx: Transaction,
    context: Context,
    files: _Files,
    names: list[Name],
    alive: Mapping[int, Permissions],
) -> list[Attr]:
    """Make the inodes and the content of new files, whose names are the caller's."""
    count, now, caller = len(names), context.now_ns, context.caller
    groups = {inode: group_of_new(directory, caller) for inode, directory in alive.items()}
    _, _, inodes, types = zip(*names, strict=True)
    once = [1] * count
    columns = (
        *(inodes, types, files.modes),
        *([caller.uid] * count, [groups[parent] for parent in files.parents]),
        *(once, files.lengths, once, files.mtimes, files.mtimes, [now] * count),
    )
    tx.insert_columns("inodes", INODE_COLUMNS, columns)
    touch_directories(tx, now, dict.fromkeys(set(files.parents), 0))
    if any(files.lengths):
        segments = zip(inodes, [0] * count, files.blobs, files.lengths, strict=True)
        tx.insert("segments", SEGMENT_COLUMNS, [row for row in segments if row[-1]])
    return list(map(_ATTR, zip(*columns, strict=True)))
