"""link: one more name for a file or a symbolic link.

Previous hop: `service`. Next hop: `names`. The inode is held while its names are counted, so that
it does not go meanwhile. A link is not followed; a directory has one name, ever.
"""

from __future__ import annotations

from ffs.errors import LinksError, NotPermittedError
from ffs.limits import LINKS_MAX
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import insert_names, touch_directories
from ffs.server.meta.ops.names import hold_inodes
from ffs.server.meta.ops.new_name import hold_free_name
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.stat import attr_at, attr_of
from ffs.server.meta.store import ConflictError, Transaction
from ffs.types import FileType
from ffs.wire.messages import AttrReply, LinkRequest


def link(tx: Transaction, context: Context, request: LinkRequest) -> AttrReply:
    """Add a name. Raises NotPermittedError for directories, ExistsError, LinksError."""
    place, source = attr_at(tx, context.caller, request.source, follow=False, context=context)
    make = [request.target] if request.parents else []
    walker = Walker(tx, context.caller, [request.target], make=make, context=context)
    linked = None if source.type == FileType.DIRECTORY else (place.one(), source.inode)
    key, _ = hold_free_name(tx, walker, linked)
    if source.type == FileType.DIRECTORY:
        raise NotPermittedError("a directory has one name only", path=request.source)
    if not hold_inodes(tx, [source.inode]):
        raise ConflictError("the file was removed, or replaced")
    if attr_of(tx, source.inode).nlink >= LINKS_MAX:
        raise LinksError(f"a file has {LINKS_MAX} names at most", path=request.source)
    tx.run(
        "UPDATE inodes SET nlink = nlink + 1, ctime_ns = ? WHERE inode = ?",
        (context.now_ns, source.inode),
    )
    insert_names(tx, [(*key, source.inode, source.type)])
    touch_directories(tx, context.now_ns, {key[0]: 0})
    return AttrReply(attr_of(tx, source.inode))
