"""Taking one name that must be free, for something that is no directory: symlink, link.

Previous hop: `symlink`, `link`. Next hop: `names`, which holds the directory; the unique key of the
names has the last word.
"""

from __future__ import annotations

from ffs.errors import ExistsError, NotFoundError
from ffs.server.meta.ops.access import CHANGE_NAMES, Permissions, allowed, denied
from ffs.server.meta.ops.names import Key, hold_names, refuse_reserved
from ffs.server.meta.ops.quota import border_error
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.store import ConflictError, Transaction


def hold_free_name(
    tx: Transaction, walker: Walker, source: tuple[Key, int] | None = None
) -> tuple[Key, Permissions]:
    """Hold the directory of a walker's only path; return the key, and whose the directory is.

    Args:    source: another name and its inode, which is to get the free name too: held as well
    Raises:  ExistsError, NotFoundError, AccessError, in the order in which POSIX decides
    """
    key, path = walker.one(), walker.paths[0]
    standing, alive = hold_names(tx, [key] if source is None else {key, source[0]})
    refuse_reserved(standing.get(key), path)
    if key in standing:
        raise ExistsError("name exists", path=path)
    if key[0] not in alive or walker.slashed:
        # A slash at the end names a directory, and there is none.
        raise NotFoundError("no such directory", path=path)
    if not allowed(alive[key[0]], walker.guard.caller, CHANGE_NAMES):
        raise denied(path)
    if source is not None:
        (directory, _), inode = source
        if standing.get(source[0], (0, 0))[0] != inode:
            raise ConflictError("the file was removed, or replaced")
        if alive[directory].quota != alive[key[0]].quota:
            raise border_error()
    return key, alive[key[0]]
