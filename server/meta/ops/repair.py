"""repair: mend one kind of damage that `check` found, as far as that is safe.

Previous hop: `service`, as a mutation with its ledger record. Next hop: SQL. Nothing that can still
be read is taken away: what lost its name or its directory gets a name in /lost+found; what is
deleted stands for nothing. What no database can mend (blobs or targets of links that are gone) has
no repair here and is only told.
Invariant: what is mended was found while no other transaction changed files. Where the database is
shared, all other mutations wait meanwhile; reading goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from ffs.errors import InvalidError
from ffs.server.meta.ops.charges import delete_quota
from ffs.server.meta.ops.check import CHECKS, plan_for_whole_tables, step_of
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import (
    INODE_COLUMNS,
    have_directory,
    insert_names,
    touch_directories,
)
from ffs.server.meta.ops.names import ROOT_KEY, Key
from ffs.server.meta.schema import RESERVED, BlobState
from ffs.server.meta.store import ConflictError, Row, Transaction
from ffs.types import ROOT_INODE, FileType
from ffs.wire.maintenance import RepairReply, RepairRequest

Repair = Callable[[Transaction, Context, Sequence[Row]], None]

REPAIRS_MAX: Final = 4_096
"""Findings mended by one request: the caller asks again while there are more."""
WHOLE: Final = 1 << 30
"""For what cannot be mended by parts: a circle of directories."""
LOST_AND_FOUND: Final[Key] = (ROOT_INODE, b"lost+found")
_LOST_MODE: Final = 0o700
_ROOT_MODE: Final = 0o755
_HOLD_ALL: Final = "LOCK TABLE mutations, sessions, blobs, drops IN EXCLUSIVE MODE"
"""Whoever changes files or blobs holds a row of one of these before anything else, and touches
them in this order."""


def repair(tx: Transaction, context: Context, request: RepairRequest) -> RepairReply:
    """Mend what one step finds now; see `RepairRequest`."""
    one = step_of(request.step)
    if one.kind not in REPAIRS:
        raise InvalidError(f"findings of the kind {one.kind} cannot be mended")
    plan_for_whole_tables(tx)
    if tx.shared:
        # Each has written to the ledger before: two would wait for each other.
        if not tx.try_lock("repair"):
            raise ConflictError("another repair is under way")
        tx.run(_HOLD_ALL)
    mend, action = REPAIRS[one.kind]
    limit = WHOLE if mend is _untie else REPAIRS_MAX
    found = one.find(tx, limit)
    if found:
        mend(tx, context, found)
    # There is more to do only if this has come on: else the caller would ask for ever.
    more = len(found) == limit and not set(one.find(tx, 1)) & set(found)
    return RepairReply(repaired=len(found), more=more, action=action)


# --- names ----------------------------------------------------------------------------------------


def _root(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    now, type_ = context.now_ns, int(FileType.DIRECTORY)
    tx.run("DELETE FROM inodes WHERE inode = ? AND type <> ?", (ROOT_INODE, type_))
    row = (ROOT_INODE, type_, _ROOT_MODE, 0, 0, 2, 0, 1, now, now, now)
    tx.insert("inodes", INODE_COLUMNS, [row], conflict="DO NOTHING")
    tx.run("DELETE FROM dentries WHERE parent = ? AND name = ?", ROOT_KEY)
    insert_names(tx, [(*ROOT_KEY, ROOT_INODE, type_)])


def _delete_names(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    tx.run_for(
        "WITH keys(parent, name) AS (VALUES {keys}) DELETE FROM dentries"
        " WHERE (parent, name) IN (SELECT parent, name FROM keys)",
        [row[:2] for row in found],
    )


def _retype_names(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    tx.run_for(
        "WITH keys(parent, name, type) AS (VALUES {keys}) UPDATE dentries SET type = keys.type"
        " FROM keys WHERE dentries.parent = keys.parent AND dentries.name = keys.name",
        [(parent, name, type_) for parent, name, _, type_ in found],
    )


def _move_names(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    _delete_names(tx, context, found)
    _adopt(tx, context, [(inode, type_) for _, _, inode, type_ in found])


def _keep_one_name(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    names = tx.rows_for(
        "WITH keys(inode) AS (VALUES {keys}) SELECT inode, parent, name FROM dentries"
        f" WHERE type = {FileType.DIRECTORY:d} AND inode IN (SELECT inode FROM keys)"
        " ORDER BY inode, parent, name",
        [(inode,) for inode, _ in found],
    )
    first = {inode: (parent, name) for inode, parent, name in reversed(names)}
    spare = [(parent, name) for inode, parent, name in names if first[inode] != (parent, name)]
    _delete_names(tx, context, spare)
    touch_directories(tx, context.now_ns, {p: -n for p, n in Counter(p for p, _ in spare).items()})


def _name_inodes(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    _adopt(tx, context, [(inode, type_) for inode, type_, _ in found])


def _untie(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    """Open each circle of directories where its smallest inode has its name.

    Why: what has no name or no directory was mended before, so all that is left are circles and
    what lies below them.
    """
    lost = {inode for (inode,) in found}
    above = {
        inode: (parent, name)
        for inode, parent, name in tx.rows_for(
            "WITH keys(inode) AS (VALUES {keys}) SELECT inode, parent, name FROM dentries"
            f" WHERE type = {FileType.DIRECTORY:d} AND inode IN (SELECT inode FROM keys)",
            [(inode,) for inode in lost],
        )
    }
    cut = _smallest_of_circles(above)
    moved = [(*above[inode], inode, int(FileType.DIRECTORY)) for inode in sorted(cut)]
    _move_names(tx, context, moved)
    parents = Counter(parent for parent, _, _, _ in moved)
    touch_directories(tx, context.now_ns, {parent: -n for parent, n in parents.items()})


def _smallest_of_circles(above: dict[int, Key]) -> set[int]:
    cut: set[int] = set()
    done: set[int] = set()
    for start in above:
        trail: list[int] = []
        inode = start
        while inode in above and inode not in done:
            done.add(inode)
            trail.append(inode)
            inode = above[inode][0]
        if inode in trail:
            cut.add(min(trail[trail.index(inode) :]))
    return cut


def _adopt(tx: Transaction, context: Context, inodes: Sequence[tuple[int, int]]) -> None:
    """Give inodes names in /lost+found that say which they are."""
    directory = have_directory(tx, context, LOST_AND_FOUND, _LOST_MODE)
    taken = {
        bytes(name)
        for (name,) in tx.rows("SELECT name FROM dentries WHERE parent = ?", (directory,))
    }
    rows: list[tuple[int, bytes, int, int]] = []
    for inode, type_ in inodes:
        name, times = b"inode-%d" % inode, 1
        while name in taken:
            times += 1
            name = b"inode-%d-%d" % (inode, times)
        taken.add(name)
        rows.append((directory, name, inode, type_))
    insert_names(tx, rows)
    directories = sum(type_ == FileType.DIRECTORY for _, type_ in inodes)
    touch_directories(tx, context.now_ns, {directory: directories})


# --- inodes ---------------------------------------------------------------------------------------


def _count_links(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    tx.run_for(
        "WITH keys(inode, links, now_ns) AS (VALUES {keys})"
        " UPDATE inodes SET nlink = keys.links, ctime_ns = keys.now_ns"
        " FROM keys WHERE inodes.inode = keys.inode",
        [(inode, links, context.now_ns) for inode, _, links in found],
    )


def _count_subdirectories(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    # Added, not set: changes that are not folded yet still count.
    tx.run_for(
        "WITH keys(inode, more) AS (VALUES {keys}) UPDATE inodes SET nlink = nlink + keys.more"
        " FROM keys WHERE inodes.inode = keys.inode",
        [(inode, expected - counted) for inode, counted, expected in found],
    )


def _delete_attributes(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    for table in ("symlinks", "layouts"):
        tx.run_for(
            f"WITH keys(inode) AS (VALUES {{keys}}) DELETE FROM {table}"
            " WHERE inode IN (SELECT inode FROM keys)",
            [(inode,) for inode, held in found if held == table],
        )


def _find_files(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    """Make a file of content that belongs to none."""
    now, type_ = context.now_ns, int(FileType.FILE)
    there = {
        inode
        for (inode,) in tx.rows_for(
            "WITH keys(inode) AS (VALUES {keys}) SELECT i.inode FROM keys CROSS JOIN inodes i"
            " WHERE i.inode = keys.inode",
            [(inode,) for inode, _, _ in found],
        )
    }
    spare = iter(tx.allocate("inode", len(there)))
    files = [(inode, next(spare) if inode in there else inode, size) for inode, _, size in found]
    tx.insert(
        "inodes",
        INODE_COLUMNS,
        [(new, type_, 0o600, 0, 0, 1, size, 1, now, now, now) for _, new, size in files],
    )
    tx.run_for(
        "WITH keys(inode, new) AS (VALUES {keys}) UPDATE segments SET inode = keys.new"
        " FROM keys WHERE segments.inode = keys.inode",
        [(inode, new) for inode, new, _ in files if inode != new],
    )
    _adopt(tx, context, [(new, type_) for _, new, _ in files])


def _set_sizes(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    tx.run_for(
        "WITH keys(inode, size, now_ns) AS (VALUES {keys})"
        " UPDATE inodes SET size = keys.size, version = version + 1, ctime_ns = keys.now_ns"
        " FROM keys WHERE inodes.inode = keys.inode",
        [(inode, size, context.now_ns) for inode, _, size in found],
    )


# --- sessions, pins, blobs ------------------------------------------------------------------------


def _end_sessions(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    keys = [(session,) for session, _ in found]
    tx.run_for(
        f"WITH keys(session) AS (VALUES {{keys}}) DELETE FROM dentries WHERE type = {RESERVED}"
        " AND inode IN (SELECT -session FROM keys)",
        keys,
    )
    tx.run_for(
        "WITH keys(session) AS (VALUES {keys}) DELETE FROM sessions"
        " WHERE session IN (SELECT session FROM keys)",
        keys,
    )


def _lease_sessions(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    """Let clients without a lease have one term more: they renew it or are reaped."""
    tx.run(
        "INSERT INTO leases (client, expires_ns) SELECT DISTINCT client, CAST(? AS BIGINT)"
        " FROM sessions WHERE true ON CONFLICT DO NOTHING",
        (context.now_ns + context.defaults.session_ttl_ns,),
    )


def _unpin(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    tx.run_for(
        "WITH keys(pin, blob) AS (VALUES {keys}) DELETE FROM pin_blobs"
        " WHERE (pin, blob) IN (SELECT pin, blob FROM keys)",
        found,
    )


def _count_references(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    tx.run_for(
        "WITH keys(blob, refs) AS (VALUES {keys}) UPDATE blobs SET refs = keys.refs"
        " FROM keys WHERE blobs.blob = keys.blob",
        [(blob, refs) for blob, _, refs in found],
    )
    _set_states(tx, context, found)


def _set_states(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    """Say that blobs live or are dead, by their references; one that lives is dropped nowhere."""
    keys = [(row[0], context.now_ns) for row in found]
    tx.run_for(
        f"WITH keys(blob, now_ns) AS (VALUES {{keys}}) UPDATE blobs SET state ="
        f" CASE WHEN refs > 0 THEN {BlobState.LIVE:d} ELSE {BlobState.DEAD:d} END,"
        " changed_ns = keys.now_ns FROM keys WHERE blobs.blob = keys.blob"
        " AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.blob = blobs.blob AND refs = 0)",
        keys,
    )
    tx.run_for(
        "WITH keys(blob) AS (VALUES {keys}) DELETE FROM drops"
        " WHERE blob IN (SELECT blob FROM keys)",
        [(blob,) for blob, _ in keys],
    )


def _lengthen_blobs(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    tx.run_for(
        "WITH keys(blob, length) AS (VALUES {keys}) UPDATE blobs SET length = keys.length"
        " FROM keys WHERE blobs.blob = keys.blob",
        [(blob, length) for blob, _, length in found],
    )


def _delete_drops(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    tx.run_for(
        "WITH keys(target, blob) AS (VALUES {keys}) DELETE FROM drops"
        " WHERE (target, blob) IN (SELECT target, blob FROM keys)",
        found,
    )


def _raise_counters(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    for counter, _, used in found:
        if not tx.row("SELECT 1 FROM counters WHERE name = ?", (counter,)):
            tx.insert("counters", ("name", "value"), [(counter, 0)])
        tx.pass_id(counter, used)


# --- quotas ---------------------------------------------------------------------------------------


def _delete_quotas(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    for (inode,) in found:
        delete_quota(tx, inode)


def _set_quotas(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    tx.run_for(
        "WITH keys(inode, quota) AS (VALUES {keys}) UPDATE inodes SET quota = keys.quota"
        " FROM keys WHERE inodes.inode = keys.inode",
        [(inode, quota) for inode, _, quota in found],
    )


def _set_above(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    tx.run_for(
        "WITH keys(inode, above) AS (VALUES {keys}) UPDATE quotas SET above = keys.above"
        " FROM keys WHERE quotas.inode = keys.inode",
        [(inode, above) for inode, _, above in found],
    )


def _count_usage(tx: Transaction, context: Context, found: Sequence[Row]) -> None:
    # Added, not set: charges that are not folded yet still count.
    tx.run_for(
        "WITH keys(inode, bytes, files) AS (VALUES {keys})"
        " UPDATE quotas SET bytes = quotas.bytes + keys.bytes, files = quotas.files + keys.files"
        " FROM keys WHERE quotas.inode = keys.inode",
        [(inode, size - was, files - were) for inode, was, were, size, files in found],
    )


REPAIRS: Final[dict[str, tuple[Repair, str]]] = {
    "root": (_root, "made again"),
    "counter": (_raise_counters, "raised"),
    "name_without_inode": (_delete_names, "the name is removed"),
    "name_type": (_retype_names, "the name's type is set"),
    "reserved_name": (_delete_names, "the name is free again"),
    "name_without_directory": (_move_names, "moved to /lost+found"),
    "directory_with_names": (_keep_one_name, "the first name is kept"),
    "inode_without_name": (_name_inodes, "named in /lost+found"),
    "unreachable_directory": (_untie, "moved to /lost+found"),
    "link_count": (_count_links, "counted again"),
    "subdirectory_count": (_count_subdirectories, "counted again"),
    "attribute_without_inode": (_delete_attributes, "removed"),
    "segment_without_file": (_find_files, "made a file in /lost+found"),
    "file_size": (_set_sizes, "the size is set"),
    "session_without_blob": (_end_sessions, "the session is ended"),
    "session_without_lease": (_lease_sessions, "it ends unless its client is heard of"),
    "pin_blob": (_unpin, "removed from the pin"),
    "blob_references": (_count_references, "counted again"),
    "blob_state": (_set_states, "the state is set"),
    "blob_length": (_lengthen_blobs, "the length is set"),
    "drop": (_delete_drops, "not dropped"),
    "dropping_without_drop": (_set_states, "dropped anew"),
    "quota_without_directory": (_delete_quotas, "the quota is removed"),
    "quota_of_directory": (_set_quotas, "the directory's quota is set"),
    "quota_above": (_set_above, "set"),
    "quota_usage": (_count_usage, "counted again"),
}
"""Kind -> what mends it, and what that does in words."""
assert set(REPAIRS) <= {one.kind for one in CHECKS}
