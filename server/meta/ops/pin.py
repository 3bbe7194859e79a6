"""pin, unpin, pins: content that stays, whatever becomes of the files that have it now.

Previous hop: `service`, and its chore that ends pins whose time is over. Next hop: the pins tables.
A pin is one more reference to each blob at and below its path, taken in one moment: replacing,
removing and renaming go on, and the blobs die only after the pin has gone too. Pins name blobs and
no paths, so a tree of a million files is a handful of statements. Pinning follows a link in the
last place: what it leads to is pinned.

Invariant: a blob's `refs` counts its rows in `pin_blobs` as it counts its segments. A blob that
died between the look at the tree and the reference comes to life again; one that is being dropped
cannot, and the operation runs again.
"""

from __future__ import annotations

from typing import Final

from ffs.errors import BusyError, InvalidError, NotFoundError
from ffs.limits import OWNER_BYTES_MAX, PINS_MAX
from ffs.server.meta.ops.access import Caller, denied
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.names import SNAPSHOTS
from ffs.server.meta.ops.stat import attr_at
from ffs.server.meta.ops.tree import INODES
from ffs.server.meta.schema import BlobState
from ffs.server.meta.store import ConflictError, Transaction
from ffs.types import ZERO_BLOB, FileType
from ffs.wire.messages import PinInfo, PinReply, PinRequest, PinsReply, PinsRequest, UnpinRequest
from ffs.wire.method import Empty

TTL_MS_MAX: Final = 1 << 40
_MS: Final = 1_000_000
_COLUMNS: Final = ("pin", "path", "owner", "created_ns", "expires_ns", "files", "stored_bytes")

_TAKE: Final = f"""
INSERT INTO pin_blobs (pin, blob)
WITH RECURSIVE keys(pin, top) AS (SELECT CAST(? AS BIGINT), CAST(? AS BIGINT)), {INODES}
SELECT DISTINCT keys.pin, s.blob FROM keys CROSS JOIN found f CROSS JOIN segments s
WHERE s.inode = f.inode AND s.blob <> {ZERO_BLOB}
"""
_FILES: Final = f"""
WITH RECURSIVE keys(top) AS (SELECT CAST(? AS BIGINT)), {INODES}
SELECT count(*) FROM found f CROSS JOIN inodes i
WHERE i.inode = f.inode AND i.type = {FileType.FILE:d}
"""
_HOLD: Final = """
SELECT count(*) FROM (
    SELECT b.blob FROM pin_blobs p CROSS JOIN blobs b
    WHERE p.pin = ? AND b.blob = p.blob ORDER BY b.blob FOR UPDATE OF b
) AS held
"""
_COUNT: Final = f"""
UPDATE blobs SET refs = refs + 1, state = {BlobState.LIVE:d}
WHERE state IN ({BlobState.LIVE:d}, {BlobState.DEAD:d})
    AND blob IN (SELECT blob FROM pin_blobs WHERE pin = ?)
"""
_UNCOUNT: Final = f"""
UPDATE blobs SET refs = refs - 1,
    state = CASE WHEN refs = 1 THEN {BlobState.DEAD:d} ELSE state END,
    changed_ns = CASE WHEN refs = 1 THEN CAST(? AS BIGINT) ELSE changed_ns END
WHERE blob IN (SELECT blob FROM pin_blobs WHERE pin = ?)
"""
_STORED: Final = """
SELECT CAST(coalesce(sum(b.length), 0) AS BIGINT) FROM pin_blobs p CROSS JOIN blobs b
WHERE p.pin = ? AND b.blob = p.blob
"""


def pin(tx: Transaction, context: Context, request: PinRequest) -> PinReply:
    """Take a reference to all content at and below a path. For root: it takes room from everyone.

    Raises:  NotFoundError, AccessError, InvalidError; BusyError while there are `PINS_MAX` pins
    """
    _refuse_others(context.caller, request.path)
    if not 0 <= request.ttl_ms <= TTL_MS_MAX:
        raise InvalidError(f"a pin for {request.ttl_ms} ms, 0 (for good) to {TTL_MS_MAX} can be")
    if len(request.owner.encode()) > OWNER_BYTES_MAX or "\0" in request.owner:
        raise InvalidError(f"a pin's owner has {OWNER_BYTES_MAX} bytes at most and no NUL")
    # Before the others are counted: who adds one waits here for who is adding another.
    (number,) = tx.allocate("pin", 1)
    row = tx.row("SELECT count(*) FROM pins")
    if row is not None and row[0] >= PINS_MAX:
        raise BusyError(f"there are {PINS_MAX} pins", hint="take off those that nobody needs")
    _, top = attr_at(tx, context.caller, request.path)
    taken = tx.run(_TAKE, (number, top.inode, SNAPSHOTS))
    if tx.shared:
        tx.row(_HOLD, (number,))
    if tx.run(_COUNT, (number,)) != taken:
        raise ConflictError("a blob was dropped before it could be pinned")
    info = PinInfo(
        pin=number,
        path=request.path,
        owner=request.owner,
        created_ns=context.now_ns,
        expires_ns=context.now_ns + request.ttl_ms * _MS if request.ttl_ms else 0,
        files=_one(tx, _FILES, top.inode, SNAPSHOTS),
        stored_bytes=_one(tx, _STORED, number),
    )
    tx.insert("pins", _COLUMNS, [tuple(getattr(info, column) for column in _COLUMNS)])
    return PinReply(info)


def unpin(tx: Transaction, context: Context, request: UnpinRequest) -> Empty:
    """Take a pin off. Raises NotFoundError for one that is unknown, or whose time was over."""
    _refuse_others(context.caller, b"")
    if tx.row("SELECT pin FROM pins WHERE pin = ? FOR UPDATE", (request.pin,)) is None:
        raise NotFoundError("no such pin", pin=request.pin)
    _release(tx, context.now_ns, request.pin)
    return Empty()


def pins(tx: Transaction, request: PinsRequest) -> PinsReply:
    """Return all pins."""
    rows = tx.rows(f"SELECT {', '.join(_COLUMNS)} FROM pins ORDER BY pin")
    return PinsReply([PinInfo(*row) for row in rows])


def reap_pin(tx: Transaction, now_ns: int) -> int:
    """End one pin whose time is over, that no other server is ending; return it, or 0."""
    row = tx.row(
        "SELECT pin FROM pins WHERE expires_ns > 0 AND expires_ns <= ?"
        " ORDER BY pin LIMIT 1 FOR UPDATE SKIP LOCKED",
        (now_ns,),
    )
    if row is None:
        return 0
    _release(tx, now_ns, row[0])
    return int(row[0])


def _release(tx: Transaction, now_ns: int, number: int) -> None:
    if tx.shared:
        tx.row(_HOLD, (number,))
    tx.run(_UNCOUNT, (now_ns, number))
    tx.run("DELETE FROM pin_blobs WHERE pin = ?", (number,))
    tx.run("DELETE FROM pins WHERE pin = ?", (number,))


def _one(tx: Transaction, sql: str, *params: object) -> int:
    row = tx.row(sql, params)
    assert row is not None
    return int(row[0])


def _refuse_others(caller: Caller, path: bytes) -> None:
    if not caller.is_root:
        raise denied(path)
