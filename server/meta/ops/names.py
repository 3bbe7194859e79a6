"""What stands under a name, and holding what an operation decides by until it has committed.

Used by every operation that changes names or files. Next hop: row locks of the shared engine; one
writer needs none, and there the holding functions only look. The order, the same for everyone, so
that no two operations wait for each other in a circle: leases, sessions, directories, names
that are there, inodes, new names, blobs, each by its key.

- Who adds, takes or moves a name holds its directory (`hold_names`): the directory stays, and
  others may change other names in it meanwhile. A directory that is to go is held alone: nobody
  has a name of it in the works then, and it can be seen whether it is empty. Which directory that
  is was read before, and is read again when its name is held; if it is another, the operation has
  been beaten (`ConflictError`).
- Who changes or removes what stands under a name holds the name; a replaced name keeps its row. A
  name that is free cannot be held: the unique key decides, and who comes second is run again.
- Who changes a file, or shares its content, holds its inode.
- A new name waits for whoever is adding or removing the same, and so has its place in the order.

What these functions return was read after the last wait, and so is what is there until the commit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

from ffs.errors import ExistsError, InvalidError
from ffs.server.meta.ops.access import Permissions
from ffs.server.meta.schema import RESERVED, ROOT_PARENT
from ffs.server.meta.store import Transaction
from ffs.types import FileType

Key = tuple[int, bytes]
"""(parent inode, name)."""
Found = tuple[int, int]
"""(inode, type); the type is RESERVED and the inode a session's id, negative, where an exclusive
create in progress holds the name."""

ROOT_KEY: Final[Key] = (ROOT_PARENT, b"")
SNAPSHOTS: Final = b".snapshots"
"""The name, in any directory, of the directory that holds its snapshots."""

_LOOKUP: Final = """
WITH keys(parent, name) AS (VALUES {keys})
SELECT keys.parent, keys.name, d.inode, d.type
FROM keys CROSS JOIN dentries d WHERE d.parent = keys.parent AND d.name = keys.name
"""
_BETWEEN: Final = "SELECT 1 FROM dentries WHERE parent = ? AND name BETWEEN ? AND ? LIMIT 1"
_HOLD_NAMES: Final = f"{_LOOKUP} ORDER BY keys.parent, keys.name FOR UPDATE OF d"
_HOLD_INODES: Final = """
WITH keys(inode) AS (VALUES {keys})
SELECT i.inode FROM keys CROSS JOIN inodes i WHERE i.inode = keys.inode
ORDER BY i.inode FOR NO KEY UPDATE OF i
"""
_HOLD_ALONE: Final = f"""
WITH keys(inode) AS (VALUES {{keys}})
SELECT i.inode, i.mode, i.uid, i.gid, i.quota FROM keys CROSS JOIN inodes i
WHERE i.inode = keys.inode AND i.type = {FileType.DIRECTORY:d}
ORDER BY i.inode FOR UPDATE OF i
"""
_HOLD_DIRECTORIES: Final = _HOLD_ALONE.replace("UPDATE", "KEY SHARE")


# --- looking --------------------------------------------------------------------------------------


def lookup(tx: Transaction, keys: Collection[Key]) -> dict[Key, Found]:
    """Return what stands under each name that is there, reserved ones too; holds nothing."""
    rows = tx.rows_for(_LOOKUP, list(keys))
    return {(parent, name): (inode, type_) for parent, name, inode, type_ in rows}


def lookup_new(tx: Transaction, keys: Sequence[Key]) -> dict[Key, Found]:
    """Return what `lookup` does, for names that are to be made: most batches of them are in one
    directory and meet nothing between the first and the last, which one look tells.
    """
    return {} if not keys or _meet_nothing(tx, keys) else lookup(tx, keys)


def _meet_nothing(tx: Transaction, keys: Collection[Key]) -> bool:
    """Whether names are of one directory, in which none is from the first of them to the last."""
    parents, names = zip(*keys, strict=True)
    if parents.count(parents[0]) != len(parents):
        return False
    return tx.row(_BETWEEN, (parents[0], min(names), max(names))) is None


def visible(found: Found | None) -> Found | None:
    """Return what others see under a name: nothing where it is only reserved."""
    return None if found is None or found[1] == RESERVED else found


def refuse_reserved(found: Found | None, name: bytes) -> None:
    """Raise ExistsError if an exclusive create in progress holds the name."""
    if found is not None and found[1] == RESERVED:
        raise reserved_error(name)


def reserved_error(name: bytes) -> ExistsError:
    """Return what everyone is told who wants a reserved name."""
    return ExistsError("name is reserved by an exclusive create in progress", path=name)


def refuse_root(key: Key, what: str) -> None:
    """Raise InvalidError if `key` is the root, which cannot be removed, renamed or replaced."""
    if key == ROOT_KEY:
        raise InvalidError(f"the root directory cannot be {what}", path=b"/")


# --- holding --------------------------------------------------------------------------------------


def hold_directories(
    tx: Transaction, directories: Iterable[int], alone: Collection[int] = ()
) -> dict[int, Permissions]:
    """Keep directories from being removed, and from changing quotas; return those that are still
    there, and whose.

    Args:    alone: which to wait for until nobody is changing names in them, and to keep so
    """
    held: dict[int, Permissions] = {}
    wanted = sorted({*directories, *alone})
    # One statement for each run of equal kind: the order of the ids is the order of the locks.
    for sole, run in groupby(wanted, key=set(alone).__contains__):
        text = _HOLD_ALONE if sole else _HOLD_DIRECTORIES
        for inode, *owned in tx.rows_for(text, [(inode,) for inode in run]):
            held[inode] = Permissions(*owned)
    return held


def hold_names(
    tx: Transaction,
    keys: Collection[Key],
    more: Collection[int] = (),
    alone: Collection[int] = (),
    *,
    new: bool = False,
) -> tuple[dict[Key, Found], dict[int, Permissions]]:
    """Hold names and their directories.

    Args:    more: directories to hold besides; alone: those to hold alone, since they are to go;
             new: most of the names are free, and are looked for as `lookup_new` does it
    Returns: what stands under each name that is there, reserved ones too; the directories of
             `keys` that are there, and whose: in others no name can be added
    """
    alive = hold_directories(tx, {*map(itemgetter(0), keys), *more}, alone)
    if new and len(keys) > 1 and _meet_nothing(tx, keys):
        return {}, alive
    rows = tx.rows_for(_HOLD_NAMES, list(keys))
    return {(parent, name): (inode, type_) for parent, name, inode, type_ in rows}, alive


def hold_inodes(tx: Transaction, inodes: Iterable[int]) -> set[int]:
    """Keep others from changing files or their number of names; return those that are there.

    A directory may be held like this, to change its attributes, after it was held as one.
    """
    keys = [(inode,) for inode in sorted(set(inodes))]
    return {inode for (inode,) in tx.rows_for(_HOLD_INODES, keys)}
