"""list: one page of a directory, in name order, with what its symbolic links hold.

A directory's snapshots are not among its names: who walks through a tree means what it is now.
Previous hop: `service`. Next hop: the dentries table, whose primary key is that order.
"""

from __future__ import annotations

from typing import Final

from ffs.errors import DirectoryExpectedError, InvalidError
from ffs.limits import LIST_PAGE_BYTES_MAX, LIST_PAGE_MAX
from ffs.server.meta.ops.access import LIST_NAMES, Caller, allowed, denied
from ffs.server.meta.ops.names import SNAPSHOTS
from ffs.server.meta.ops.resolve import link_targets
from ffs.server.meta.ops.stat import ATTR_COLUMNS, attr_at, up_to_date
from ffs.server.meta.store import Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import DirEntry, ListReply, ListRequest

_ENTRY_BYTES: Final = 96
"""What an entry takes on the wire at most, besides its name and its link."""


def list_page(tx: Transaction, caller: Caller, request: ListRequest) -> ListReply:
    """Return up to `limit` entries after a name; names added meanwhile may or may not appear."""
    if request.limit < 1:
        raise InvalidError(f"a page of {request.limit} entries was asked for", path=request.path)
    limit = min(request.limit, LIST_PAGE_MAX)
    _, directory = attr_at(tx, caller, request.path)
    if directory.type != FileType.DIRECTORY:
        raise DirectoryExpectedError("not a directory", path=request.path)
    if not allowed(directory, caller, LIST_NAMES):
        raise denied(request.path)
    rows = tx.rows(
        f"SELECT d.name, {ATTR_COLUMNS} FROM dentries d JOIN inodes i ON i.inode = d.inode"
        " WHERE d.parent = ? AND d.name > ? AND d.name <> ? ORDER BY d.name LIMIT ?",
        (directory.inode, request.after, SNAPSHOTS, limit + 1),
    )
    names = [row[0] for row in rows[:limit]]
    page = [row[1:] for row in rows[:limit]]
    if tx.shared:
        up_to_date(tx, page)
    attrs = [Attr._make(row) for row in page]
    linked = [attr.inode for attr in attrs if attr.type == FileType.SYMLINK]
    links = link_targets(tx, linked) if linked else {}
    entries = [
        DirEntry(name, attr, links.get(attr.inode, b""))
        for name, attr in zip(names, attrs, strict=True)
    ]
    fitting = _fitting(entries)
    return ListReply(fitting, len(rows) > len(fitting))


def _fitting(entries: list[DirEntry]) -> list[DirEntry]:
    """Return the first entries, as many as a page has bytes for; never none of some."""
    left = LIST_PAGE_BYTES_MAX
    for place, entry in enumerate(entries):
        left -= _ENTRY_BYTES + len(entry.name) + len(entry.link)
        if left < 0:
            return entries[: max(place, 1)]
    return entries
