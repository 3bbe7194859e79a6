"""symlink: a name that holds a path.

Previous hop: `service`. Next hop: `names` and the symlinks table. What it holds is kept as it is
written and need not exist; `resolve` follows it. Its size is the length of that.
"""

from __future__ import annotations

from typing import Final

from ffs.errors import BadNameError, NameTooLongError
from ffs.limits import PATH_BYTES_MAX
from ffs.server.meta.ops.access import group_of_new
from ffs.server.meta.ops.charges import charge
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import INODE_COLUMNS, insert_names, touch_directories
from ffs.server.meta.ops.new_name import hold_free_name
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.store import Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import AttrReply, SymlinkRequest

_MODE: Final = 0o777


def symlink(tx: Transaction, context: Context, request: SymlinkRequest) -> AttrReply:
    """Make a symbolic link. Raises ExistsError, NotFoundError, BadNameError, AccessError."""
    target = request.target
    if len(target) >= PATH_BYTES_MAX:
        raise NameTooLongError(
            f"a symbolic link holds {PATH_BYTES_MAX - 1} bytes at most", path=request.path
        )
    if not target or b"\0" in target:
        raise BadNameError("a symbolic link holds a path, without NUL", path=request.path)
    make = [request.path] if request.parents else []
    walker = Walker(tx, context.caller, [request.path], make=make, context=context)
    key, directory = hold_free_name(tx, walker)
    charge(tx, directory.quota, 0, 1)
    (inode,) = tx.allocate("inode", 1)
    now, type_ = context.now_ns, int(FileType.SYMLINK)
    owner = (context.caller.uid, group_of_new(directory, context.caller))
    row = (inode, type_, _MODE, *owner, 1, len(target), 1, now, now, now)
    tx.insert("inodes", INODE_COLUMNS, [row])
    tx.insert("symlinks", ("inode", "target"), [(inode, target)])
    insert_names(tx, [(*key, inode, type_)])
    touch_directories(tx, now, {key[0]: 0})
    return AttrReply(Attr(*row))
