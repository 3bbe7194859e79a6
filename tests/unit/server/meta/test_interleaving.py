"""Two operations on PostgreSQL, the second begun at one statement of the first, every time.

What storms (`test_concurrency`) meet by chance is met here for certain. The first operation stops
before a statement, the second runs until it is done or waits for the first, and then the first goes
on. A deadlock is a failure; an operation that was beaten runs again, as the engine would run it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asyncpg.exceptions import DeadlockDetectedError

from ffs.errors import BusyError, FFSError, NotFoundError
from ffs.limits import PINS_MAX
from ffs.seams import SystemRandomness
from ffs.server.meta.ops import (
    clone,
    close,
    copy,
    create,
    directories,
    link,
    pin,
    remove,
    rename,
    repair,
    rmdir,
    sessions,
    storage,
)
from ffs.server.meta.ops import setattr as attributes
from ffs.server.meta.ops.check import CHECKS
from ffs.server.meta.postgres import Connection
from ffs.server.meta.postgres_connection import is_beaten
from ffs.server.meta.store import Transaction
from ffs.wire import messages as wire
from ffs.wire import snapshots as versions
from ffs.wire.maintenance import RepairRequest
from ffs.wire.messages import CreateMode
from ffs.wire.method import Fault
from tests.databases import new_database, server
from tests.namespace import ME, OTHER, SESSION_TTL_NS, Namespace, good
from tests.unit.server.meta.seen import tree_of

Operation = Callable[[Transaction], Any]

WAIT_S_MAX = 60.0


class Watched:
    """A transaction that calls somebody before the first statement that holds a text."""

    def __init__(self, tx: Transaction, text: str, then: Callable[[], None]) -> None:
        self._tx = tx
        self._text = text
        self._then: Callable[[], None] | None = then

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tx, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            then = self._then
            if then is not None and self._text in f"{name} {args[0]}":
                self._then = None
                then()
            return found(*args, **kwargs)

        return call


class Meeting:
    """Two connections to one database, and a namespace to look at it."""

    def __init__(self, ns: Namespace) -> None:
        self.ns = ns
        self.first = Connection(server().url(), writes=True)
        self.second = Connection(server().url(), writes=True)
        self._pid = self.second.open().rows("SELECT pg_backend_pid()")[0][0]
        self.threads = ThreadPoolExecutor(1)
        self._beaten = threading.Event()

    def close(self) -> None:
        """End both connections."""
        self.threads.shutdown()
        self.first.close()
        self.second.close()

    def run(self, first: Operation, second: Operation, *, at: str) -> tuple[Any, Any]:
        """Run both, the second from where the first is about to say `at`.

        Returns: for each what it returned, or the error that its caller would get
        """
        begun: list[Any] = []
        self._beaten.clear()

        def begin() -> None:
            if not begun:
                begun.append(self.threads.submit(self.outcome, self.second, second))
                self.until_it_waits(begun[0])

        def watched(tx: Transaction) -> Any:
            transaction: Any = Watched(tx, at, begin)
            return first(transaction)

        outcome = self.outcome(self.first, watched)
        assert begun, f"the first operation says nothing with {at!r}"
        return outcome, begun[0].result(WAIT_S_MAX)

    def until_it_waits(self, running: Any) -> None:
        """Wait until the second operation has ended, waits for the first, or was beaten by it."""
        give_up = time.monotonic() + WAIT_S_MAX
        waits = "SELECT 1 FROM pg_stat_activity WHERE pid = ? AND wait_event_type = 'Lock'"
        pause = threading.Event()
        while not (running.done() or self._beaten.is_set() or self.ns.tx.rows(waits, (self._pid,))):
            assert time.monotonic() < give_up, "the second operation neither ends nor waits"
            pause.wait(0.005)

    def outcome(self, connection: Connection, operation: Operation) -> Any:
        """Return what an operation returned, or the error that its caller would get."""
        while True:
            try:
                return connection.transact(operation)
            except FFSError as error:
                return error
            except DeadlockDetectedError:
                raise
            except Exception as error:
                if not is_beaten(error):
                    raise
                self._beaten.set()

    def mutation(self, operation: Callable[..., Any], request: object) -> Operation:
        """Return a mutating operation with its request."""
        context = self.ns.context()
        return lambda tx: operation(tx, context, request)


@pytest.fixture
def ns(tmp_path: Any) -> Iterator[Namespace]:
    """An empty database, held against all invariants afterwards."""
    namespace = Namespace(new_database("postgres", tmp_path))
    yield namespace
    namespace.check()


@pytest.fixture
def meeting(ns: Namespace) -> Iterator[Meeting]:
    """Two that will meet there."""
    both = Meeting(ns)
    yield both
    both.close()


def copying(meeting: Meeting, source: bytes, target: bytes) -> Operation:
    """Return a copy over what is there."""
    return meeting.mutation(copy.copy, wire.CopyRequest(b"", source, target, True))


def renaming(meeting: Meeting, source: bytes, target: bytes) -> Operation:
    """Return a rename over what is there."""
    return meeting.mutation(rename.rename, wire.RenameRequest(b"", source, target, True))


# --- nothing is lost ------------------------------------------------------------------------------


def test_a_blob_that_is_pinned_as_it_dies_is_not_dropped(meeting: Meeting) -> None:
    ns = meeting.ns
    ns.write(b"/f")
    seen, go = threading.Event(), threading.Event()

    def pause() -> None:
        seen.set()
        assert go.wait(WAIT_S_MAX)

    def pinning(tx: Transaction) -> Any:
        watched: Any = Watched(tx, "FOR UPDATE OF b", pause)
        return pin.pin(watched, ns.context(), wire.PinRequest(b"", b"/", "", 0))

    running = meeting.threads.submit(meeting.outcome, meeting.second, pinning)
    assert seen.wait(WAIT_S_MAX)
    ns.remove(b"/f")
    late = ns.now_ns + SESSION_TTL_NS

    def resume() -> None:
        go.set()
        meeting.until_it_waits(running)

    def dropping(tx: Transaction) -> int:
        watched: Any = Watched(tx, "UPDATE blobs", resume)
        return storage.schedule_drops(watched, late, 100)

    assert meeting.outcome(meeting.first, dropping) == 1
    pinned = running.result(WAIT_S_MAX).pin
    kept = ns.tx.rows("SELECT count(*) FROM pin_blobs WHERE pin = ?", (pinned.pin,))
    assert kept == ns.tx.rows("SELECT count(*) FROM blobs WHERE refs = 1 AND state = 2")
    assert kept == [(0,)], "it was being dropped, and nothing else is below the path"


@pytest.mark.parametrize(("what", "size"), [("copy", 9), ("link", 5), ("setattr", 9)])
def test_a_name_that_is_always_there_is_never_missing(
    meeting: Meeting, what: str, size: int
) -> None:
    """A link holds the name that it is given by, so that the rename comes after it."""
    ns = meeting.ns
    ns.write(b"/f", 5)
    ns.write(b"/new", 9)
    operations = {
        "copy": copying(meeting, b"/f", b"/to"),
        "link": meeting.mutation(link.link, wire.LinkRequest(b"", b"/f", b"/to")),
        "setattr": meeting.mutation(
            attributes.setattr_path, wire.SetattrRequest(b"", b"/f", mode=0o600)
        ),
    }
    done, moved = meeting.run(operations[what], renaming(meeting, b"/new", b"/f"), at="FOR NO KEY")
    assert not isinstance(moved, FFSError)
    assert not isinstance(done, FFSError), done
    assert done.attr.size == size


def test_pins_are_bounded_however_many_come_at_once(meeting: Meeting) -> None:
    ns = meeting.ns
    columns = ("pin", "path", "owner", "created_ns", "expires_ns", "files", "stored_bytes")
    ns.tx.insert("pins", columns, [(n, b"/", "", 1, 0, 0, 0) for n in range(1, PINS_MAX)])
    ns.transact(lambda tx: tx.pass_id("pin", PINS_MAX - 1))
    pinning = meeting.mutation(pin.pin, wire.PinRequest(b"", b"/", "", 0))
    first, second = meeting.run(pinning, pinning, at="INSERT INTO pin_blobs")
    assert sorted(isinstance(one, BusyError) for one in (first, second)) == [False, True]
    assert len(ns.pins()) == PINS_MAX


def cloning(meeting: Meeting) -> Operation:
    """Return a clone of /d, which has something of everything."""
    ns = meeting.ns
    for name in (b"f", b"sub/g", b"sub/h"):
        ns.write(b"/d/" + name, 10, parents=True)
    ns.link(b"/d/f", b"/outside")
    ns.transact(directories.fold_changes)
    return meeting.mutation(clone.clone, versions.CloneRequest(b"", b"/d", b"/c"))


def changing(meeting: Meeting, what: str) -> Operation:
    """Return a change of something in /d."""
    ns = meeting.ns
    if what == "close":
        opened = [good(one) for one in ns.create(b"/d/f", b"/d/sub/new")]
        entries = [wire.CloseEntry(session.session, 3) for session in opened]
        return meeting.mutation(close.close_many, wire.CloseManyRequest(b"", ME, entries))
    requests: dict[str, tuple[Callable[..., Any], object]] = {
        "cut": (attributes.setattr_path, wire.SetattrRequest(b"", b"/outside", size=4)),
        "remove": (remove.remove_many, wire.RemoveManyRequest(b"", [b"/d/f", b"/d/sub/g"])),
        "rmdir": (rmdir.rmdir, wire.RmdirRequest(b"", b"/d/sub", True)),
        "replace": (rename.rename, wire.RenameRequest(b"", b"/d/sub/g", b"/d/f", True)),
        "move out": (rename.rename, wire.RenameRequest(b"", b"/d/sub", b"/sub")),
        "move top": (rename.rename, wire.RenameRequest(b"", b"/d", b"/e")),
        "link": (link.link, wire.LinkRequest(b"", b"/outside", b"/d/sub/again")),
    }
    return meeting.mutation(*requests[what])


CHANGES = ("close", "cut", "remove", "rmdir", "replace", "move out", "move top", "link")


@pytest.mark.parametrize(
    ("what", "at"),
    [(what, at) for what in CHANGES for at in ("FOR UPDATE OF i", "INSERT INTO cloned")]
    + [("cut", "FOR NO KEY"), ("link", "FOR NO KEY")],
)
def test_a_clone_is_of_one_moment(meeting: Meeting, what: str, at: str) -> None:
    ns = meeting.ns
    first, second = cloning(meeting), changing(meeting, what)
    before = tree_of(ns, b"/d")
    ns.now_ns += 1
    cloned, changed = meeting.run(first, second, at=at)
    assert not isinstance(changed, FFSError), changed
    if isinstance(cloned, FFSError):
        assert what == "move top" and isinstance(cloned, NotFoundError)
        return
    after = tree_of(ns, b"/e" if what == "move top" else b"/d")
    assert tree_of(ns, b"/c") in (before, after)


@pytest.mark.parametrize("what", CHANGES)
def test_a_clone_waits_for_who_was_first(meeting: Meeting, what: str) -> None:
    ns = meeting.ns
    second, first = cloning(meeting), changing(meeting, what)
    before = tree_of(ns, b"/d")
    changed, cloned = meeting.run(first, second, at="run")
    assert not isinstance(changed, FFSError), changed
    if isinstance(cloned, FFSError):
        assert what == "move top" and isinstance(cloned, NotFoundError)
        return
    after = tree_of(ns, b"/e" if what == "move top" else b"/d")
    assert tree_of(ns, b"/c") in (before, after)


# --- nobody waits in a circle ---------------------------------------------------------------------


def test_copies_that_exchange_content(meeting: Meeting) -> None:
    ns = meeting.ns
    for low, high in ((b"/a", b"/x"), (b"/y", b"/b")):
        ns.write(low)
        ns.write(high, 9)
    ns.copy(b"/a", b"/b", replace=True)
    ns.copy(b"/x", b"/y", replace=True)
    # Each takes what the other lets go: a's blob and x's, from files that nobody else uses.
    one = copying(meeting, b"/x", b"/a")
    other = copying(meeting, b"/b", b"/y")
    for done in meeting.run(one, other, at="FOR UPDATE OF b"):
        assert not isinstance(done, FFSError)
    for done in meeting.run(other, one, at="UPDATE segments SET inode"):
        assert not isinstance(done, FFSError)


def test_a_copy_and_a_pin_of_both_files(meeting: Meeting) -> None:
    ns = meeting.ns
    ns.write(b"/old")
    ns.write(b"/new", 9)
    number = ns.pin(b"/").pin
    unpinning = meeting.mutation(pin.unpin, wire.UnpinRequest(b"", number))
    copied, gone = meeting.run(copying(meeting, b"/new", b"/old"), unpinning, at="FOR UPDATE OF b")
    assert not isinstance(copied, FFSError)
    assert not isinstance(gone, FFSError)


def test_a_session_over_a_link_and_the_end_of_other_names(meeting: Meeting) -> None:
    ns = meeting.ns
    ns.symlink(b"/l", b"nowhere")
    ns.write(b"/f")
    for name in (b"/l", b"/f"):
        ns.link(name, name + b"2")
    ns.rename(b"/l", b"/later")
    opened = [good(one) for one in ns.create(b"/l", b"/f")]
    ns.rename(b"/later", b"/l")
    entries = [wire.CloseEntry(session.session, 3) for session in opened]
    closing = meeting.mutation(close.close_many, wire.CloseManyRequest(b"", ME, entries))
    removing = meeting.mutation(remove.remove_many, wire.RemoveManyRequest(b"", [b"/l2", b"/f2"]))
    closed, removed = meeting.run(closing, removing, at="insert_columns inodes")
    assert all(not isinstance(one, Fault) for one in (*closed.attrs, *removed.results))


def test_a_reaper_and_a_tree_that_goes(meeting: Meeting) -> None:
    ns = meeting.ns
    ns.mkdir(b"/t")
    names = [b"/t/%d" % i for i in range(40)]
    entries = [wire.CreateEntry(n, create_mode=CreateMode.EXCLUSIVE) for n in reversed(names)]
    ns.mutate(create.create_many, wire.CreateManyRequest(b"", OTHER, entries))
    late = ns.now_ns + 2 * SESSION_TTL_NS
    removing = meeting.mutation(rmdir.rmdir, wire.RmdirRequest(b"", b"/t", True))
    gone, ended = meeting.run(removing, lambda tx: sessions.reap(tx, late), at="run_for")
    assert (gone.removed, ended) == (1, 40)


def test_two_closes_of_the_same_sessions(meeting: Meeting) -> None:
    ns = meeting.ns
    opened = [good(one) for one in ns.create(*(b"/%d" % i for i in range(60)))]
    middle = opened[len(opened) // 2].session

    def closing(*chosen: wire.WriteSession) -> Operation:
        entries = [wire.CloseEntry(session.session, 3) for session in chosen]
        return meeting.mutation(close.close_many, wire.CloseManyRequest(b"", ME, entries))

    def held_first(tx: Transaction) -> Any:
        # What a close of all is doing when it has come to the middle one.
        tx.rows(
            "SELECT session FROM sessions WHERE session <= ? ORDER BY session FOR UPDATE",
            (middle,),
        )
        return closing(*reversed(opened))(tx)

    first, second = meeting.run(held_first, closing(*opened), at="DELETE FROM sessions")
    assert not any(isinstance(attr, Fault) for attr in first.attrs)
    assert all(isinstance(attr, Fault) for attr in second.attrs)


def test_a_repair_and_a_reaper(meeting: Meeting) -> None:
    ns = meeting.ns
    ns.create(b"/f")
    late = ns.now_ns + 2 * SESSION_TTL_NS
    mending = meeting.mutation(repair.repair, RepairRequest(b"", _step("link_count")))
    ended, mended = meeting.run(
        lambda tx: sessions.reap(tx, late), mending, at="DELETE FROM sessions"
    )
    assert (ended, mended.repaired) == (1, 0)


def test_a_repair_and_confirmed_drops(meeting: Meeting) -> None:
    ns = meeting.ns
    ns.write(b"/f")
    blob, target = ns.tx.rows("SELECT s.blob, t.target FROM segments s CROSS JOIN targets t")[0]
    ns.remove(b"/f")
    assert ns.transact(lambda tx: storage.schedule_drops(tx, ns.now_ns, 9)) == 1
    mending = meeting.mutation(repair.repair, RepairRequest(b"", _step("blob_references")))
    ns.tx.run("UPDATE blobs SET refs = 5")  # there is something to mend until it has gone
    _, mended = meeting.run(
        lambda tx: storage.confirm_drops(tx, [target], [blob]), mending, at="DELETE FROM drops"
    )
    assert mended.repaired == 0
    assert ns.tx.rows("SELECT * FROM drops") == ns.tx.rows("SELECT * FROM blobs") == []


def test_two_repairs(meeting: Meeting) -> None:
    mending = meeting.mutation(repair.repair, RepairRequest(b"", _step("link_count")))

    def after_the_ledger(tx: Transaction) -> Any:
        tx.run(
            "INSERT INTO mutations (principal, mutation, request_hash, recorded_ns)"
            " VALUES (?, ?, ?, 0)",
            (b"", SystemRandomness().token(16), b""),
        )
        return mending(tx)

    for mended in meeting.run(after_the_ledger, after_the_ledger, at="LOCK TABLE"):
        assert mended.repaired == 0
    meeting.ns.tx.run("DELETE FROM mutations")


def test_folding_waits_for_nobody(meeting: Meeting) -> None:
    ns = meeting.ns
    for name in (b"/a", b"/b"):
        ns.mkdir(name)
        ns.write(name + b"/f")
    ns.remove(b"/b/f")
    versions = [ns.stat(name).version for name in (b"/", b"/a")]
    moved, folded = meeting.run(
        renaming(meeting, b"/a", b"/b"), directories.fold_changes, at="FOR NO KEY"
    )
    assert not isinstance(moved, FFSError)
    assert folded == 2, "the directory that goes was held"
    assert [ns.stat(name).version for name in (b"/", b"/b")] == [versions[0] + 1, versions[1]]


def test_requests_of_one_client_do_not_wait_for_each_other(meeting: Meeting) -> None:
    ns = meeting.ns
    good(ns.create(b"/f", client=ME)[0])

    def creating(path: bytes) -> Operation:
        request = wire.CreateManyRequest(b"", ME, [wire.CreateEntry(path)])
        return meeting.mutation(create.create_many, request)

    order: list[str] = []

    def other(tx: Transaction) -> Any:
        return creating(b"/b")(tx)

    def first(tx: Transaction) -> Any:
        value = creating(b"/a")(tx)
        order.append("first")
        return value

    def second(tx: Transaction) -> Any:
        value = other(tx)
        order.append("second")
        return value

    meeting.run(first, second, at="insert_columns sessions")
    assert order == ["second", "first"]


def _step(kind: str) -> int:
    return next(i for i, one in enumerate(CHECKS) if one.kind == kind)
