"""Quotas on PostgreSQL, while others change what they count: nobody waits, nothing is miscounted.

The first operation stops before a statement, the second runs from there (`test_interleaving`); that
the counters are right is counted again afterwards.
"""

from __future__ import annotations

from typing import Any

import pytest

from ffs.errors import FFSError, QuotaBorderError, QuotaExceededError
from ffs.server.meta.ops import charges, close, link, mkdir, quota, rename
from ffs.server.meta.ops import setattr as attributes
from ffs.types import Attr
from ffs.wire import messages as wire
from ffs.wire.messages import CloseEntry
from tests.namespace import ME, good, kind
from tests.unit.server.meta.test_interleaving import Meeting, Operation, meeting, ns
from tests.unit.server.meta.test_quotas import ANY, used

__all__ = ["meeting", "ns"]


def setting(meeting: Meeting, path: bytes, most: int) -> Operation:
    """Return what bounds the files of a directory."""
    return meeting.mutation(quota.set_quota, wire.SetQuotaRequest(b"", path, ANY, most))


def test_writers_of_one_tree_do_not_wait_and_overrun_by_what_is_under_way(
    meeting: Meeting,
) -> None:
    ns = meeting.ns
    ns.mkdir(b"/q")
    ns.set_quota(b"/q", bytes_max=100)
    sessions = [good(one) for one in ns.create(b"/q/a", b"/q/b", b"/q/c")]

    def closing(session: wire.WriteSession) -> Operation:
        entries = [CloseEntry(session.session, 60)]
        return meeting.mutation(close.close_many, wire.CloseManyRequest(b"", ME, entries))

    first, second = meeting.run(
        closing(sessions[0]), closing(sessions[1]), at="insert_columns inodes"
    )
    assert isinstance(first.attrs[0], Attr) and isinstance(second.attrs[0], Attr)
    assert used(ns, b"/q") == (120, 2), "each saw room for itself"
    late = ns.close_sessions(CloseEntry(sessions[2].session, 1))
    assert kind(late[0]) is QuotaExceededError
    ns.transact(charges.fold_charges)
    assert ns.tx.rows("SELECT * FROM quota_changes") == []
    assert used(ns, b"/q") == (120, 2)


def operations(meeting: Meeting) -> dict[str, Operation]:
    """What may happen below /t while a quota is set there."""
    session = good(meeting.ns.create(b"/t/d/new")[0])
    entries = [CloseEntry(session.session, 7)]
    return {
        "close": meeting.mutation(close.close_many, wire.CloseManyRequest(b"", ME, entries)),
        "mkdir": meeting.mutation(mkdir.mkdir, wire.MkdirRequest(b"", b"/t/d/e")),
        "resize": meeting.mutation(
            attributes.setattr_path, wire.SetattrRequest(b"", b"/t/d/f", size=90)
        ),
        "link": meeting.mutation(link.link, wire.LinkRequest(b"", b"/t/d/f", b"/t/g")),
        "link out": meeting.mutation(link.link, wire.LinkRequest(b"", b"/t/d/f", b"/g")),
        "move in": meeting.mutation(
            rename.rename, wire.RenameRequest(b"", b"/other", b"/t/d/other")
        ),
        "move out": meeting.mutation(rename.rename, wire.RenameRequest(b"", b"/t/d", b"/moved")),
    }


@pytest.mark.parametrize(
    "what", ["close", "mkdir", "resize", "link", "link out", "move in", "move out"]
)
@pytest.mark.parametrize("order", ["quota first", "quota second"])
def test_a_quota_that_is_set_meanwhile_counts_right(
    meeting: Meeting, what: str, order: str
) -> None:
    """`check` counts again: in whatever order they come, one of them sees the other."""
    ns = meeting.ns
    ns.mkdir(b"/t/d", parents=True)
    ns.write(b"/t/d/f", 5)
    ns.mkdir(b"/other")
    ns.write(b"/other/f", 9)
    change, bound = operations(meeting)[what], setting(meeting, b"/t", 100)
    if order == "quota first":
        done = meeting.run(bound, change, at="insert quotas")
    else:
        done = meeting.run(change, bound, at=_last_of(what))
    for one in done:
        assert not isinstance(one, FFSError) or isinstance(one, QuotaBorderError), one


def _last_of(what: str) -> str:
    """A statement of an operation by which it holds what it decided by."""
    return {
        "close": "insert_columns inodes",
        "mkdir": "insert inodes",
        "resize": "UPDATE inodes SET",
        "link": "SET nlink",
        "link out": "SET nlink",
        "move in": "UPDATE inodes SET ctime_ns",
        "move out": "UPDATE inodes SET ctime_ns",
    }[what]


def test_trees_that_move_while_files_come_in(meeting: Meeting) -> None:
    ns = meeting.ns
    ns.mkdir(b"/q")
    ns.mkdir(b"/t/d", parents=True)
    ns.set_quota(b"/q", files_max=100)
    session = good(ns.create(b"/t/d/new")[0])
    entries = [CloseEntry(session.session, 7)]
    closing: Any = meeting.mutation(close.close_many, wire.CloseManyRequest(b"", ME, entries))
    moving = meeting.mutation(rename.rename, wire.RenameRequest(b"", b"/t", b"/q/t"))
    moved, closed = meeting.run(moving, closing, at="UPDATE dentries")
    assert not isinstance(moved, FFSError) and isinstance(closed.attrs[0], Attr)
    assert used(ns, b"/q") == (7, 3)
