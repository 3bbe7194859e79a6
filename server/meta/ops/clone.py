"""clone: a whole tree by reference, in one transaction; no data moves.

Previous hop: `service`, and `snapshot`. Next hop: a handful of statements over the scratch table
`cloned`, however many names the tree has. A clone is what its source is at one moment: the shared
engine holds the tree's directories alone and its files too, so that who would change something in
it waits; reading goes on. Names with one inode below the source have one inode in the clone.
Snapshots below the source, and names that are only reserved, are not cloned.

Failure: nothing is left of a clone that fails. A tree of more than `CLONE_INODES_MAX` inodes is
refused: on the embedded engine all other changes wait while it is cloned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ffs.errors import DirectoryExpectedError, ExistsError, InvalidError, NotFoundError
from ffs.limits import CLONE_INODES_MAX
from ffs.server.meta.ops.access import CHANGE_NAMES, Permissions, Want, allowed, denied
from ffs.server.meta.ops.charges import charge
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import INODE_COLUMNS, insert_names, touch_directories
from ffs.server.meta.ops.names import SNAPSHOTS, Key, hold_names, refuse_reserved
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.stat import attr_at, attr_of
from ffs.server.meta.ops.tree import hold_tree, unlistable
from ffs.server.meta.schema import RESERVED
from ffs.server.meta.store import Transaction
from ffs.types import ZERO_BLOB, Attr, FileType
from ffs.wire.snapshots import CloneReply, CloneRequest

_FILE, _DIRECTORY, _SYMLINK = int(FileType.FILE), int(FileType.DIRECTORY), int(FileType.SYMLINK)

_GATHER_DIRECTORIES: Final = f"""
INSERT INTO cloned (source, type, links, inode)
WITH RECURSIVE tree(inode, parent) AS (
    SELECT CAST(? AS BIGINT), CAST(0 AS BIGINT)
    UNION ALL
    SELECT d.inode, d.parent FROM tree t CROSS JOIN dentries d
    WHERE d.parent = t.inode AND d.type = {_DIRECTORY} AND d.name <> ?
)
SELECT each_one.inode, {_DIRECTORY}, CAST(sum(each_one.links) AS BIGINT), 0 FROM (
    SELECT inode, 2 AS links FROM tree
    UNION ALL SELECT parent, 1 AS links FROM tree WHERE parent <> 0
) AS each_one GROUP BY each_one.inode
"""
_GATHER_FILES: Final = f"""
INSERT INTO cloned (source, type, links, inode)
SELECT d.inode, d.type, count(*), 0 FROM cloned c CROSS JOIN dentries d
WHERE d.parent = c.source AND d.type NOT IN ({RESERVED}, {_DIRECTORY}) GROUP BY d.inode, d.type
"""
_SIZE: Final = f"""
SELECT CAST(coalesce(sum(i.size), 0) AS BIGINT) FROM cloned c CROSS JOIN inodes i
WHERE c.type = {_FILE} AND i.inode = c.source
"""
_COUNT: Final = "SELECT type, count(*) FROM cloned GROUP BY type"
_NUMBER: Final = """
UPDATE cloned SET inode = each_one.place + ? FROM (
    SELECT source, row_number() OVER (ORDER BY source) AS place FROM cloned
) AS each_one WHERE cloned.source = each_one.source
"""
_NUMBER_SHARED: Final = "UPDATE cloned SET inode = nextval('ids_inode')"
_OWNED: Final = f"""
SELECT DISTINCT i.mode, i.uid, i.gid FROM cloned c CROSS JOIN inodes i
WHERE c.type = {_FILE} AND i.inode = c.source
"""
_HOLD_FILES: Final = f"""
SELECT count(*) FROM (
    SELECT i.inode FROM cloned c CROSS JOIN inodes i
    WHERE c.type <> {_DIRECTORY} AND i.inode = c.source ORDER BY i.inode FOR NO KEY UPDATE OF i
) AS held
"""
_HOLD_BLOBS: Final = """
SELECT count(*) FROM (
    SELECT b.blob FROM cloned c CROSS JOIN segments s CROSS JOIN blobs b
    WHERE s.inode = c.source AND b.blob = s.blob ORDER BY b.blob FOR UPDATE OF b
) AS held
"""
_INODES: Final = f"""
INSERT INTO inodes ({", ".join(INODE_COLUMNS)}, quota)
SELECT c.inode, i.type, {{owned}}, c.links, i.size, 1, i.atime_ns, i.mtime_ns,
    CAST(? AS BIGINT), CASE WHEN i.type = {_DIRECTORY} THEN CAST(? AS BIGINT) ELSE 0 END
FROM cloned c CROSS JOIN inodes i WHERE i.inode = c.source
"""
_SAME_OWNER: Final = "i.mode, i.uid, i.gid"
_NEW_OWNER: Final = f"i.mode & {0o777}, CAST(? AS BIGINT), CAST(? AS BIGINT)"
_PENDING_TIMES: Final = """
UPDATE inodes SET mtime_ns = late.changed_ns FROM (
    SELECT c.inode, max(d.changed_ns) AS changed_ns
    FROM cloned c CROSS JOIN directory_changes d WHERE d.inode = c.source GROUP BY c.inode
) AS late WHERE inodes.inode = late.inode AND inodes.mtime_ns < late.changed_ns
"""
_NAMES: Final = f"""
INSERT INTO dentries (parent, name, inode, type)
SELECT p.inode, d.name, c.inode, d.type FROM cloned p CROSS JOIN dentries d CROSS JOIN cloned c
WHERE p.type = {_DIRECTORY} AND d.parent = p.source AND c.source = d.inode
"""
_CONTENT: Final = (
    """
    INSERT INTO segments (inode, place, blob, length)
    SELECT c.inode, s.place, s.blob, s.length FROM cloned c CROSS JOIN segments s
    WHERE s.inode = c.source""",
    f"""
    UPDATE blobs SET refs = blobs.refs + held.n FROM (
        SELECT s.blob, count(*) AS n FROM cloned c CROSS JOIN segments s
        WHERE s.inode = c.inode AND s.blob <> {ZERO_BLOB} GROUP BY s.blob ORDER BY s.blob
    ) AS held WHERE blobs.blob = held.blob""",
    """
    INSERT INTO symlinks (inode, target)
    SELECT c.inode, s.target FROM cloned c CROSS JOIN symlinks s WHERE s.inode = c.source""",
    """
    INSERT INTO layouts (inode, chunk_size_bytes, stripe)
    SELECT c.inode, l.chunk_size_bytes, l.stripe FROM cloned c CROSS JOIN layouts l
    WHERE l.inode = c.source""",
)


@dataclass(frozen=True, slots=True)
class Source:
    """The directory to be cloned. `exact`: with its owners, and the caller need not be asked."""

    key: Key
    inode: int
    path: bytes
    exact: bool


def clone(tx: Transaction, context: Context, request: CloneRequest) -> CloneReply:
    """Clone a directory; see `CloneRequest`. Root's clone has the owners that its source has.

    Raises:  NotFoundError, DirectoryExpectedError, ExistsError, AccessError, ReadOnlyError;
             InvalidError for a tree that is too large
    """
    walker, top = attr_at(tx, context.caller, request.source)
    if top.type != FileType.DIRECTORY:
        raise DirectoryExpectedError(
            "not a directory", hint="`ffs cp` copies files by reference", path=request.source
        )
    make = [request.target] if request.parents else []
    target = Walker(tx, context.caller, [request.target], make=make, context=context).one()
    if unlistable(tx, context.caller, {top.inode}):
        raise denied(request.source)
    source = Source(walker.one(), top.inode, request.source, context.caller.is_root)
    return clone_tree(tx, context, source, target, request.target)


def clone_tree(
    tx: Transaction, context: Context, source: Source, target: Key, path: bytes
) -> CloneReply:
    """Clone a tree to a name, by `path` to its caller, that must be free.

    Why: 20,000 files a second and more are asked for: rows are copied inside SQL.
    """
    directory = _hold(tx, source, target, path)
    if not (source.exact or allowed(directory, context.caller, CHANGE_NAMES)):
        raise denied(path)
    counts = _gather(tx, source)
    if directory.quota:
        size = tx.row(_SIZE)
        assert size is not None
        charge(tx, directory.quota, size[0], sum(counts.values()))
    _refuse_unreadable(tx, context, source)
    if tx.shared:
        tx.row(_HOLD_FILES)
        tx.row(_HOLD_BLOBS)
    _copy_inodes(tx, context, source, directory.quota)
    tx.run(_NAMES)
    for statement in _CONTENT:
        tx.run(statement)
    row = tx.row("SELECT inode FROM cloned WHERE source = ?", (source.inode,))
    assert row is not None
    insert_names(tx, [(*target, row[0], _DIRECTORY)])
    touch_directories(tx, context.now_ns, {target[0]: 1})
    tx.run("DELETE FROM cloned")
    return _reply(attr_of(tx, row[0]), counts)


def _reply(attr: Attr, counts: dict[int, int]) -> CloneReply:
    return CloneReply(
        attr, counts.get(_FILE, 0), counts.get(_DIRECTORY, 0), counts.get(_SYMLINK, 0)
    )


def _hold(tx: Transaction, source: Source, target: Key, path: bytes) -> Permissions:
    """Hold the tree and the directory of the new name; return whose that is."""
    if tx.shared:
        _, (standing, alive) = hold_tree(tx, source.key, source.inode, more=[target])
    else:
        standing, alive = hold_names(tx, [target])
    refuse_reserved(standing.get(target), path)
    if target in standing:
        raise ExistsError("target exists", path=path)
    if target[0] not in alive:
        raise NotFoundError("no such directory", path=path)
    return alive[target[0]]


def _gather(tx: Transaction, source: Source) -> dict[int, int]:
    """Enter every inode of the tree into the scratch table, with a new id; return how many there
    are of each type.
    """
    tx.run(_GATHER_DIRECTORIES, (source.inode, SNAPSHOTS))
    tx.run(_GATHER_FILES)
    counts: dict[int, int] = dict(tx.rows(_COUNT))
    inodes = sum(counts.values())
    if inodes > CLONE_INODES_MAX:
        raise InvalidError(
            f"the tree has {inodes} inodes, {CLONE_INODES_MAX} can be cloned at once",
            hint="clone its directories one by one",
            path=source.path,
        )
    if tx.shared:
        tx.run(_NUMBER_SHARED)
    else:
        tx.run(_NUMBER, (tx.allocate("inode", inodes)[0] - 1,))
    return counts


def _refuse_unreadable(tx: Transaction, context: Context, source: Source) -> None:
    """Raise AccessError if the clone would give its owner what he may not read."""
    if source.exact:
        return
    for row in tx.rows(_OWNED):
        if not allowed(Permissions(*row), context.caller, Want.READ):
            raise denied(source.path)


def _copy_inodes(tx: Transaction, context: Context, source: Source, quota: int) -> None:
    if source.exact:
        tx.run(_INODES.format(owned=_SAME_OWNER), (context.now_ns, quota))
    else:
        caller = context.caller
        params = (caller.uid, caller.gid, context.now_ns, quota)
        tx.run(_INODES.format(owned=_NEW_OWNER), params)
    if tx.shared:
        tx.run(_PENDING_TIMES)
