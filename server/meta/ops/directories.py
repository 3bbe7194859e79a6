"""Making directories, and what changes of their entries do to their attributes.

Previous hop: operations that add, take or move names. Next hop: SQL. Every change of a name makes
its directory's times and version newer, and with a subdirectory its number of links: a row that
all writers of a directory would wait for. So where the database is shared, a change is a row of its
own in `directory_changes`; who reads a directory's attributes adds what is pending, and the server
folds pending rows into the inodes from time to time. One writer changes the inode at once.
Invariant: an inode and its pending rows together are what the directory is; folding changes nothing
that can be seen. Rows of a directory that has gone mean nothing and go with the next folding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final

from ffs.errors import ExistsError, FFSError, NotFoundError
from ffs.server.meta.ops.access import (
    CHANGE_NAMES,
    allowed,
    denied,
    group_of_new,
    mode_of_new_directory,
)
from ffs.server.meta.ops.charges import Charges
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.names import Found, Key, hold_directories, lookup
from ffs.server.meta.store import Row, Transaction
from ffs.types import FileType

INODE_COLUMNS: Final = (
    *("inode", "type", "mode", "uid", "gid", "nlink", "size", "version"),
    *("atime_ns", "mtime_ns", "ctime_ns"),
)
Name = tuple[int, bytes, int, int]
"""(parent, name, inode, type)."""
DENTRY_COLUMNS: Final = ("parent", "name", "inode", "type")
_CHANGE_COLUMNS: Final = ("inode", "changed_ns", "changes", "subdirectories")

_DELETE_NAMES: Final = """
WITH keys(parent, name) AS (VALUES {keys})
DELETE FROM dentries WHERE (name, parent) IN (SELECT name, parent FROM keys)
"""
"""The name first: with the parent first SQLite searches by that alone, a whole directory."""
SUMMED: Final = (
    "inode, max(changed_ns) AS changed_ns, CAST(sum(changes) AS BIGINT) AS changes,"
    " CAST(sum(subdirectories) AS BIGINT) AS subdirectories"
)
"""Columns of `directory_changes` by inode."""
_TOUCH: Final = """
WITH keys(inode, delta) AS (VALUES {keys})
UPDATE inodes SET mtime_ns = ?, ctime_ns = ?, version = version + 1, nlink = nlink + keys.delta
FROM keys WHERE inodes.inode = keys.inode
"""
_PENDING: Final = f"""
WITH keys(inode) AS (VALUES {{keys}})
SELECT {SUMMED} FROM directory_changes WHERE inode IN (SELECT inode FROM keys) GROUP BY inode
"""
_HOLD_CHANGED: Final = """
SELECT i.inode FROM inodes i WHERE i.inode IN (SELECT inode FROM directory_changes)
ORDER BY i.inode FOR NO KEY UPDATE OF i SKIP LOCKED
"""
_TAKE: Final = f"""
WITH keys(inode) AS (VALUES {{keys}}),
taken AS (DELETE FROM directory_changes WHERE inode IN (SELECT inode FROM keys)
          RETURNING inode, changed_ns, changes, subdirectories)
SELECT {SUMMED} FROM taken GROUP BY inode ORDER BY inode
"""
_FORGET: Final = """
DELETE FROM directory_changes
WHERE NOT EXISTS (SELECT 1 FROM inodes i WHERE i.inode = directory_changes.inode)
"""
_FOLD: Final = """
WITH keys(inode, changed_ns, changes, subdirectories) AS (VALUES {keys})
UPDATE inodes SET version = version + keys.changes, nlink = nlink + keys.subdirectories,
    mtime_ns = CASE WHEN mtime_ns < keys.changed_ns THEN keys.changed_ns ELSE mtime_ns END,
    ctime_ns = CASE WHEN ctime_ns < keys.changed_ns THEN keys.changed_ns ELSE ctime_ns END
FROM keys WHERE inodes.inode = keys.inode
"""


def make_directories(
    tx: Transaction, context: Context, keys: Collection[Key], mode: int
) -> dict[Key, Found | FFSError]:
    """Make directories at names that were seen to be free; each gets (inode, type) or an error."""
    if not keys:
        return {}
    alive, caller = hold_directories(tx, (parent for parent, _ in keys)), context.caller
    made: dict[Key, Found | FFSError] = {}
    for key in keys:
        if key[0] not in alive:
            made[key] = NotFoundError("the directory was removed meanwhile", path=key[1])
        elif not allowed(alive[key[0]], caller, CHANGE_NAMES):
            made[key] = denied(key[1])
    charges = Charges(tx, (alive[parent].quota for parent, _ in keys if parent in alive))
    free: list[Key] = []
    for key in sorted(key for key in keys if key not in made):
        if problem := charges.add(alive[key[0]].quota, 0, 1):
            made[key] = problem
        else:
            free.append(key)
    charges.settle()
    if not free:
        return made
    ids = tx.allocate("inode", len(free))
    now, type_ = context.now_ns, int(FileType.DIRECTORY)
    tx.insert(
        "inodes",
        (*INODE_COLUMNS, "quota"),
        [
            (
                *(inode, type_, mode_of_new_directory(mode, above)),
                *(caller.uid, group_of_new(above, caller), 2, 0, 1, now, now, now),
                above.quota,
            )
            for inode, above in zip(ids, (alive[parent] for parent, _ in free), strict=True)
        ],
    )
    insert_names(tx, [(*key, inode, type_) for key, inode in zip(free, ids, strict=True)])
    touch_directories(tx, now, Counter(parent for parent, _ in free))
    made.update((key, (inode, type_)) for key, inode in zip(free, ids, strict=True))
    return made


def have_directory(tx: Transaction, context: Context, key: Key, mode: int) -> int:
    """Return the inode of the directory at a name, made unless it is there.

    Raises:  ExistsError if it is something else; what `make_directories` says
    """
    found = lookup(tx, [key]).get(key)
    if found is None:
        made = make_directories(tx, context, [key], mode)[key]
        if isinstance(made, FFSError):
            raise made
        found = made
    if found[1] != FileType.DIRECTORY:
        raise ExistsError(
            "what stands where a directory is needed is none",
            hint="rename it, then try again",
            path=key[1],
        )
    return found[0]


def insert_names(tx: Transaction, rows: Collection[Name], *, conflict: str = "") -> int:
    """Add names and return how many; the unique key has the last word on duplicates.

    In order of the keys, so that two who add the same names do not wait for each other in a circle.
    """
    return tx.insert("dentries", DENTRY_COLUMNS, sorted(rows), conflict=conflict)


def delete_names(tx: Transaction, keys: Collection[Key]) -> None:
    """Take names away that are held."""
    tx.run_for(_DELETE_NAMES, sorted(keys))


def touch_directories(tx: Transaction, now_ns: int, subdirectories: dict[int, int]) -> None:
    """Note that entries of directories changed, and by how many directories among them."""
    parents = sorted(subdirectories.items())
    if tx.shared:
        tx.insert(
            "directory_changes",
            _CHANGE_COLUMNS,
            [(parent, now_ns, 1, delta) for parent, delta in parents],
        )
    else:
        tx.run_for(_TOUCH, parents, (now_ns, now_ns))


def pending_changes(tx: Transaction, directories: Collection[int]) -> dict[int, tuple[int, ...]]:
    """Return (changed_ns, changes, subdirectories) of directories whose inodes lag behind."""
    if not tx.shared or not directories:
        return {}
    rows = tx.rows_for(_PENDING, [(inode,) for inode in directories])
    return {inode: (changed_ns, changes, delta) for inode, changed_ns, changes, delta in rows}


def with_pending(row: Row, changed_ns: int, changes: int, subdirectories: int) -> Row:
    """Return a directory's attributes, in order of `INODE_COLUMNS`, with what was pending."""
    *same, nlink, size, version, atime_ns, mtime_ns, ctime_ns = row
    return (
        *same,
        nlink + subdirectories,
        size,
        version + changes,
        atime_ns,
        max(mtime_ns, changed_ns),
        max(ctime_ns, changed_ns),
    )


def fold_directory(tx: Transaction, inode: int) -> None:
    """Put the pending changes of a directory, which is held, into its inode: its times are set."""
    if tx.shared:
        tx.run_for(_FOLD, tx.rows_for(_TAKE, [(inode,)]))


def fold_changes(tx: Transaction) -> int:
    """Put pending changes into the inodes, and return how many directories had some.

    New rows may come in meanwhile, and stay; so do those of directories that somebody holds: this
    waits for nobody, since it holds many in an order of its own. One server at a time does it
    (`service`).
    """
    if not tx.shared:
        return 0
    changed = tx.rows_for(_TAKE, tx.rows(_HOLD_CHANGED))
    tx.run_for(_FOLD, changed)
    tx.run(_FORGET)
    return len(changed)
