"""trash, trashed, and the reaping of what has been there for long: removing that can be undone.

Previous hop: `service`. Next hop: `rename`, `symlink`, `rmdir`. What a user removes is moved to
`/.trash/UID/TIME-RANDOM/content`, beside a symbolic link `origin` that holds what its path was. So
an entry of the trash is a directory like others: it is looked into, copied from, restored by
renaming its content, and emptied by removing it. Times are the server's, as text that sorts.

Invariant: an entry is made and filled in one transaction. Who may look into a user's trash is that
user, and root. Failure: what cannot be renamed by its caller cannot be trashed.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from ffs.errors import InvalidError, NameTooLongError, NotFoundError
from ffs.limits import PATH_BYTES_MAX, TRASHED_PAGE_MAX
from ffs.server.meta.ops.access import ROOT, Caller, denied
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import have_directory
from ffs.server.meta.ops.names import Key, lookup, refuse_root, visible
from ffs.server.meta.ops.rename import rename
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.rmdir import remove_tree
from ffs.server.meta.ops.stat import ATTR_COLUMNS
from ffs.server.meta.ops.symlink import symlink
from ffs.server.meta.ops.tree import refuse_snapshots
from ffs.server.meta.store import Transaction
from ffs.types import ROOT_INODE, Attr, FileType
from ffs.wire.messages import RenameRequest, SymlinkRequest
from ffs.wire.snapshots import Trashed, TrashedReply, TrashedRequest, TrashReply, TrashRequest

TRASH: Final[Key] = (ROOT_INODE, b".trash")
CONTENT: Final = b"content"
ORIGIN: Final = b"origin"
_PATH: Final = b"/" + TRASH[1]
_TRASH_MODE: Final = 0o711
_HOME_MODE: Final = 0o700
_RANDOM_BYTES: Final = 4
_NO_MUTATION: Final = b""

_TRASHED: Final = f"""
SELECT h.name, e.name, o.target, t.ctime_ns, {ATTR_COLUMNS}
FROM dentries h CROSS JOIN dentries e CROSS JOIN inodes t CROSS JOIN dentries n
CROSS JOIN symlinks o CROSS JOIN dentries c CROSS JOIN inodes i
WHERE h.parent = ? AND h.name >= ? AND h.name <= ? AND e.parent = h.inode
AND (h.name > ? OR e.name > ?) AND t.inode = e.inode
AND n.parent = e.inode AND n.name = ? AND o.inode = n.inode
AND c.parent = e.inode AND c.name = ? AND i.inode = c.inode
ORDER BY h.name, e.name LIMIT ?
"""
_EXPIRED: Final = f"""
SELECT e.parent, e.name, e.inode FROM dentries h CROSS JOIN dentries e
WHERE h.parent = ? AND h.type = {FileType.DIRECTORY:d} AND e.parent = h.inode AND e.name < ?
AND e.type = {FileType.DIRECTORY:d} ORDER BY e.name LIMIT 1
"""


def trash(tx: Transaction, context: Context, request: TrashRequest) -> TrashReply:
    """Move a file, link or directory into the caller's trash; see `TrashRequest`.

    Raises:  NotFoundError, AccessError as a rename would; NotEmptyError for what has snapshots;
             InvalidError for what is in the trash
    """
    walker = Walker(tx, context.caller, [request.path], context=context)
    key = walker.one()
    refuse_root(key, "removed")
    found = visible(lookup(tx, [key]).get(key))
    if found is None:
        raise NotFoundError("no such file or directory", path=request.path)
    origin = walker.real_path()
    if is_trash(origin):
        raise InvalidError(
            "is in the trash", hint="`ffs trash empty` removes it for good", path=request.path
        )
    if len(origin) >= PATH_BYTES_MAX:
        raise NameTooLongError(
            f"its real path has {len(origin)} bytes", hint="`--no-trash`", path=request.path
        )
    if found[1] == FileType.DIRECTORY:
        refuse_snapshots(tx, found[0], request.path)
    entry = _new_entry(tx, context)
    symlink(tx, context, SymlinkRequest(_NO_MUTATION, entry + b"/" + ORIGIN, origin))
    target = entry + b"/" + CONTENT
    rename(tx, context, RenameRequest(_NO_MUTATION, request.path, target, replace=False))
    return TrashReply(entry)


def trashed(tx: Transaction, caller: Caller, request: TrashedRequest) -> TrashedReply:
    """Return a page of what is in the caller's trash, or for root in everyone's."""
    if request.everyone and not caller.is_root:
        raise denied(_PATH)
    top = visible(lookup(tx, [TRASH]).get(TRASH))
    if top is None:
        return TrashedReply([], more=False)
    mine = b"%d" % caller.uid
    first, last = (b"", b":") if request.everyone else (mine, mine)  # `:` follows the digits
    home, _, name = request.after.removeprefix(_PATH + b"/").partition(b"/")
    after = (max(home, first), home, name)
    rows = tx.rows(
        _TRASHED,
        (top[0], after[0], last, after[1], after[2], ORIGIN, CONTENT, TRASHED_PAGE_MAX + 1),
    )
    entries = [
        Trashed(b"/".join((_PATH, home, name)), origin, removed_ns, Attr(*attr))
        for home, name, origin, removed_ns, *attr in rows[:TRASHED_PAGE_MAX]
    ]
    return TrashedReply(entries, more=len(rows) > TRASHED_PAGE_MAX)


def reap_trash(tx: Transaction, now_ns: int, removed_before_ns: int) -> bytes:
    """Remove one entry that is older, of whomever, for good; return its name, empty: none is."""
    top = visible(lookup(tx, [TRASH]).get(TRASH))
    row = top and tx.row(_EXPIRED, (top[0], _stamp(removed_before_ns)))
    if not row:
        return b""
    parent, name, inode = row
    remove_tree(tx, now_ns, (parent, name), inode)
    return bytes(name)


def is_trash(path: bytes) -> bool:
    """Return whether a real path is the trash, or leads into it."""
    return path == _PATH or path.startswith(_PATH + b"/")


def _new_entry(tx: Transaction, context: Context) -> bytes:
    """Make a directory in the caller's trash and return its path."""
    caller = context.caller
    top = have_directory(tx, replace(context, caller=ROOT), TRASH, _TRASH_MODE)
    uid = b"%d" % caller.uid
    home = have_directory(tx, replace(context, caller=ROOT), (top, uid), _HOME_MODE)
    if not caller.is_root:
        owner = (caller.uid, caller.gid, home, ROOT.uid)
        tx.run("UPDATE inodes SET uid = ?, gid = ? WHERE inode = ? AND uid = ?", owner)
    name = _stamp(context.now_ns) + b"-" + context.randomness.token(_RANDOM_BYTES).hex().encode()
    have_directory(tx, context, (home, name), _HOME_MODE)
    return b"/".join((_PATH, uid, name))


def _stamp(time_ns: int) -> bytes:
    """Return a time as the names of entries begin: `20261123T084242.012345Z`, in UTC."""
    seconds, rest = divmod(max(time_ns, 0), 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return b"%s.%06dZ" % (moment.strftime("%Y%m%dT%H%M%S").encode(), rest // 1_000)
