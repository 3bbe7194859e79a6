"""mkdir: one directory, with its parents if asked for.

Previous hop: `service`. Next hop: `directories.make_directories`. A symbolic link in the last place
is in the way, unless it leads to a directory and one that exists is fine.
"""

from __future__ import annotations

from ffs.errors import ExistsError, FFSError
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import make_directories
from ffs.server.meta.ops.names import lookup, refuse_reserved
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.stat import attr_of
from ffs.server.meta.store import Transaction
from ffs.types import FileType
from ffs.wire.messages import AttrReply, MkdirRequest


def mkdir(tx: Transaction, context: Context, request: MkdirRequest) -> AttrReply:
    """Make a directory. Raises ExistsError, NotFoundError, DirectoryExpectedError."""
    make = [request.path] if request.parents else []
    walker = Walker(tx, context.caller, [request.path], make=make, context=context)
    key = walker.one()
    there = lookup(tx, [key]).get(key)
    refuse_reserved(there, request.path)
    if there is not None:
        if request.exist_ok:
            there = walker.end_of_link(there)
            if there is not None and there[1] == FileType.DIRECTORY:
                return AttrReply(attr_of(tx, there[0]))
        raise ExistsError("name exists", path=request.path)
    made = make_directories(tx, context, [key], request.mode)[key]
    if isinstance(made, FFSError):
        raise made
    return AttrReply(attr_of(tx, made[0]))
