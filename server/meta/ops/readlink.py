"""readlink: what a symbolic link holds, as it was written.

Previous hop: `service`. Next hop: the symlinks table.
"""

from __future__ import annotations

from ffs.errors import InvalidError
from ffs.server.meta.ops.access import Caller
from ffs.server.meta.ops.resolve import link_targets
from ffs.server.meta.ops.stat import attr_at
from ffs.server.meta.store import Transaction
from ffs.types import FileType
from ffs.wire.messages import ReadlinkReply, ReadlinkRequest


def readlink(tx: Transaction, caller: Caller, request: ReadlinkRequest) -> ReadlinkReply:
    """Return a link's target. Raises NotFoundError; InvalidError for what is no link."""
    _, attr = attr_at(tx, caller, request.path, follow=False)
    if attr.type != FileType.SYMLINK:
        raise InvalidError("not a symbolic link", path=request.path)
    return ReadlinkReply(link_targets(tx, [attr.inode])[attr.inode])
