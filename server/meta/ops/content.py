"""What closing does to files that are there: other content, more of it, or fewer pieces of it.

Previous hop: `close`. Next hop: inodes, segments and, through `release`, blobs; a handful of
statements for the whole batch. An appended blob comes behind what the file holds now, whatever that
was when its session began. A blob that takes the place of the last segments changes no byte and no
time, only the version, by which the next one to do so sees that it read something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from ffs.errors import BusyError, FFSError, InvalidError, VersionError
from ffs.limits import SEGMENTS_MAX
from ffs.server.meta.ops.access import Want, allowed, denied, drop_privileges
from ffs.server.meta.ops.charges import Charges
from ffs.server.meta.ops.context import Context, fault
from ffs.server.meta.ops.names import Key
from ffs.server.meta.ops.release import hold_content, release_blobs, release_content
from ffs.server.meta.ops.stat import ATTR_COLUMNS
from ffs.server.meta.store import Row, Transaction
from ffs.types import ZERO_BLOB, Attr
from ffs.wire.messages import CloseEntry, CreateMode
from ffs.wire.method import Fault

SEGMENT_COLUMNS: Final = ("inode", "place", "blob", "length")
SIZE_MAX: Final = (1 << 63) - 1

_ATTRS: Final = f"""
WITH keys(inode) AS (VALUES {{keys}})
SELECT {ATTR_COLUMNS} FROM keys CROSS JOIN inodes i WHERE i.inode = keys.inode
"""
_SEGMENTS: Final = """
WITH keys(inode) AS (VALUES {keys})
SELECT s.inode, s.place, s.blob, s.length FROM keys CROSS JOIN segments s
WHERE s.inode = keys.inode ORDER BY s.inode, s.place
"""
_RENEW: Final = """
WITH keys(inode, size, mtime_ns) AS (VALUES {keys})
UPDATE inodes SET size = keys.size, version = version + 1, mtime_ns = keys.mtime_ns, ctime_ns = ?
FROM keys WHERE inodes.inode = keys.inode
"""
_GROW: Final = """
WITH keys(inode, size, mtime_ns, ctime_ns) AS (VALUES {keys})
UPDATE inodes SET size = keys.size, version = version + 1, mtime_ns = keys.mtime_ns,
    ctime_ns = keys.ctime_ns
FROM keys WHERE inodes.inode = keys.inode
"""
DELETE_SEGMENTS: Final = """
WITH keys(inode, place) AS (VALUES {keys})
DELETE FROM segments WHERE (inode, place) IN (SELECT inode, place FROM keys)
"""


class Closing(NamedTuple):
    """One entry, by its place in the batch, with the session it closes."""

    place: int
    entry: CloseEntry
    session: int
    blob: int
    key: Key
    create_mode: int
    mode: int
    length: int
    mtime_ns: int

    @property
    def appends(self) -> bool:
        """Whether what the file holds stays."""
        return self.create_mode == CreateMode.APPEND


@dataclass(frozen=True, slots=True)
class _Tail:
    """Where an appended blob comes: the file before, and the last segments that it replaces."""

    closing: Closing
    attr: Attr
    place: int
    replaced: list[Row]


def change_files(
    tx: Transaction,
    context: Context,
    changed: Mapping[int, Closing],
    outcomes: dict[int, Attr | Fault],
    charges: Charges,
    quotas: Mapping[int, int],
) -> list[tuple[Closing, Attr]]:
    """Give files, by inode and held, what their closings say; note the outcome of others.

    Args:    quotas: of directories; `charges` are charged what files grow by
    Returns: the others, with their attributes after the change
    """
    if not changed:
        return []
    before = _attrs_before(tx, context, changed, quotas)
    refused = {
        inode: problem
        for inode, attr in before.items()
        if (problem := _refusal(context, changed[inode], attr)) is not None
    }
    wanted = {inode: c for inode, c in changed.items() if inode not in refused}
    tails, too_long = _tails(tx, before, {i: c for i, c in wanted.items() if c.appends})
    refused.update(too_long)
    for inode, closing in wanted.items():
        quota = quotas[closing.key[0]]
        if quota and inode not in refused:
            growth = _growth(closing, before[inode])
            if (full := charges.add(quota, growth, 0)) is not None:
                refused[inode] = full
    tails = [tail for tail in tails if tail.attr.inode not in refused]
    for inode, problem in refused.items():
        outcomes[changed[inode].place] = fault(problem)
    if any(tail.replaced for tail in tails):
        hold_content(tx, wanted)
    replaced = {i: c for i, c in wanted.items() if not c.appends and i not in refused}
    _replace(tx, context, replaced)
    _append(tx, context, [tail for tail in tails if tail.closing.length])
    good = {inode: closing for inode, closing in wanted.items() if inode not in refused}
    if not context.caller.is_root:
        drop_privileges(tx, context.caller, [before[i] for i, c in good.items() if _writes(c)])
    attrs = _attrs(tx, good)
    return [(closing, attrs[inode]) for inode, closing in good.items()]


def _attrs(tx: Transaction, inodes: Mapping[int, Closing]) -> dict[int, Attr]:
    keys = [(inode,) for inode in sorted(inodes)]
    return {row[0]: Attr(*row) for row in tx.rows_for(_ATTRS, keys)}


def _writes(closing: Closing) -> bool:
    return bool(closing.length) or not closing.appends


def _growth(closing: Closing, before: Attr) -> int:
    """Return how many bytes a file gets more."""
    if not closing.appends:
        return closing.length - before.size
    return 0 if closing.entry.segments_replaced else closing.length


def _attrs_before(
    tx: Transaction,
    context: Context,
    changed: Mapping[int, Closing],
    quotas: Mapping[int, int],
) -> dict[int, Attr]:
    """Return what files are before, where anything is decided by that: plain replacing is not."""
    if context.caller.is_root and not any(
        c.appends or c.entry.version_expected or c.entry.inode_expected or quotas[c.key[0]]
        for c in changed.values()
    ):
        return {}
    return _attrs(tx, changed)


def _refusal(context: Context, closing: Closing, attr: Attr) -> FFSError | None:
    entry = closing.entry
    if not allowed(attr, context.caller, Want.WRITE):
        return denied(closing.key[1])
    if entry.version_expected not in (0, attr.version):
        return VersionError(f"the file is at version {attr.version}, not {entry.version_expected}")
    if entry.inode_expected not in (0, attr.inode):
        return VersionError("another file has the name now")
    if closing.appends and attr.size + entry.length > SIZE_MAX:
        return InvalidError(f"a size of {attr.size} and {entry.length} bytes is out of bounds")
    return None


def _tails(
    tx: Transaction, before: Mapping[int, Attr], appending: Mapping[int, Closing]
) -> tuple[list[_Tail], dict[int, FFSError]]:
    """Return where appended blobs come, and why some cannot."""
    segments: dict[int, list[Row]] = {}
    for row in tx.rows_for(_SEGMENTS, [(inode,) for inode in sorted(appending)]):
        segments.setdefault(row[0], []).append(row)
    tails: list[_Tail] = []
    refused: dict[int, FFSError] = {}
    for inode, closing in appending.items():
        there = segments.get(inode, [])
        replaced = closing.entry.segments_replaced
        last = there[len(there) - replaced :] if replaced <= len(there) else []
        if len(last) != replaced or (replaced and sum(r[3] for r in last) != closing.length):
            refused[inode] = InvalidError(
                f"the last {replaced} of {len(there)} segments do not hold {closing.length} bytes"
            )
        elif len(there) - replaced >= SEGMENTS_MAX and closing.length:
            refused[inode] = BusyError(
                f"the file has {SEGMENTS_MAX} segments: write its last ones again as one, or the"
                " whole file"
            )
        else:
            place = last[0][1] if last else (there[-1][1] + 1 if there else 0)
            tails.append(_Tail(closing, before[inode], place, last))
    return tails, refused


def _replace(tx: Transaction, context: Context, replaced: Mapping[int, Closing]) -> None:
    """Take the old content off files that stay, and give them the new one."""
    if not replaced:
        return
    release_content(tx, context.now_ns, sorted(replaced))
    sizes = sorted((inode, c.length, c.mtime_ns) for inode, c in replaced.items())
    tx.run_for(_RENEW, sizes, (context.now_ns,))
    tx.insert(
        "segments",
        SEGMENT_COLUMNS,
        [(inode, 0, c.blob, c.length) for inode, c in replaced.items() if c.length],
    )


def _append(tx: Transaction, context: Context, tails: list[_Tail]) -> None:
    """Put blobs behind what files hold, or in the place of the last of it."""
    if not tails:
        return
    gone = [row for tail in tails for row in tail.replaced]
    tx.run_for(DELETE_SEGMENTS, [(inode, place) for inode, place, _, _ in gone])
    release_blobs(tx, context.now_ns, [blob for _, _, blob, _ in gone if blob != ZERO_BLOB])
    rows = []
    for tail in tails:
        attr, closing = tail.attr, tail.closing
        if tail.replaced:
            rows.append((attr.inode, attr.size, attr.mtime_ns, attr.ctime_ns))
        else:
            size = attr.size + closing.length
            rows.append((attr.inode, size, closing.mtime_ns, context.now_ns))
    tx.run_for(_GROW, sorted(rows))
    tx.insert(
        "segments",
        SEGMENT_COLUMNS,
        [(t.attr.inode, t.place, t.closing.blob, t.closing.length) for t in tails],
    )
