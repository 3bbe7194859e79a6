"""A model of one database that several servers share: what PostgreSQL promises, and no more.

Facts modelled: transactions overlap and see what was committed (READ COMMITTED); whoever enters a
key that another open transaction has entered waits for its end, and then sees what it left; a
commit takes time and is whole or absent if the database dies in it; a connection that broke leaves
its transaction open until the database notices, and a commit that was under way goes on without
anybody to hear of it.

Waiting: `Blocked` is raised before anything was done, and names whom to wait for; the same
statements are run again when that one has ended, which is what waiting amounts to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ffs.server.meta.idempotency import MutationKey, Recorded
from tests.sim.world import MS, Process, World

DATABASE: Final = "database"
NOTICE_NS_MAX: Final = 400 * MS
"""How long a transaction of a broken connection may stay open."""


class Blocked(Exception):
    """Wait for `by` to end, then do the same again."""

    def __init__(self, by: SharedTransaction) -> None:
        super().__init__("blocked")
        self.by = by


class Broken(Exception):
    """There is no connection to the database."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the book."""

    client: str
    operation: int
    mutation: bytes
    line: int


class SharedTransaction:
    """One transaction: its uncommitted writes and its locks, which are the keys it has entered."""

    def __init__(self, database: SharedDatabase, on_broken: Callable[[], None]) -> None:
        self._database = database
        self._writes: dict[Any, Any] = {}
        self._on_broken: Callable[[], None] | None = on_broken
        self.ended = False
        self.committing = False
        self._waiting: list[Callable[[], None]] = []

    def wait(self, then: Callable[[], None]) -> None:
        """Call `then` once this has ended."""
        assert not self.ended
        self._waiting.append(then)

    def read(self, key: Any) -> Any:
        """What is committed, or our own."""
        return self._writes.get(key, self._database.committed.get(key))

    def wrote(self, key: Any) -> bool:
        """Whether a key is our own, uncommitted."""
        return key in self._writes

    def write(self, key: Any, value: Any) -> None:
        """Enter or change a key; raises Blocked while another open transaction has."""
        self.hold(key)
        self._writes[key] = value

    def take_back(self, key: Any) -> None:
        """Undo our write of a key."""
        self._writes.pop(key, None)

    def hold(self, key: Any) -> None:
        """Lock a key to the end; raises Blocked while another open transaction has it."""
        assert not self.ended
        holder = self._database.locks.get(key)
        if holder is not None and holder is not self:
            raise Blocked(holder)
        self._database.locks[key] = self

    def commit(self, then: Callable[[], None]) -> None:
        """Begin to commit; `then` is called once it is durable, unless the connection breaks."""
        assert not self.ended and not self.committing
        self.committing = True
        self._database.commit_later(self, then)

    def rollback(self) -> None:
        """End without a trace."""
        self._end()

    def disconnect(self) -> None:
        """The server at the other end is gone, or the line to it."""
        self._on_broken = None
        self._database.notice_later(self)

    def cut(self) -> None:
        """The connection broke while both ends live: the server hears of it."""
        broken, self._on_broken = self._on_broken, None
        if broken is not None and not self.ended:
            self._database.notice_later(self)
            broken()

    def apply(self) -> None:
        """Become durable and visible, all at once."""
        self._database.committed.update(self._writes)
        self._end()

    def lose(self, *, whole: bool) -> None:
        """The database died."""
        broken, self._on_broken = self._on_broken, None
        if whole and self.committing:
            self.apply()
        else:
            self._end()
        if broken is not None:
            broken()

    @property
    def connected(self) -> bool:
        """Whether the server still listens."""
        return self._on_broken is not None

    def _end(self) -> None:
        if self.ended:
            return
        self.ended = True
        self._database.forget(self)
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()


class SharedDatabase(Process):
    """The database: what is committed survives everything."""

    def __init__(self, world: World) -> None:
        super().__init__(world, DATABASE)
        self.committed: dict[Any, Any] = {}
        self.locks: dict[Any, SharedTransaction] = {}
        self.after_commit: Callable[[], None] = lambda: None
        self._open: dict[SharedTransaction, None] = {}

    def begin(self, on_broken: Callable[[], None]) -> SharedTransaction:
        """Open a transaction; raises Broken while the database is down."""
        if not self.alive:
            raise Broken
        transaction = SharedTransaction(self, on_broken)
        self._open[transaction] = None
        return transaction

    @property
    def open(self) -> list[SharedTransaction]:
        """The transactions under way, in the order they began."""
        return list(self._open)

    def commit_later(self, transaction: SharedTransaction, then: Callable[[], None]) -> None:
        """Commit after a while; tell the server if it still listens."""

        def commit() -> None:
            if transaction.ended:
                return
            transaction.apply()
            self.after_commit()
            if transaction.connected:
                then()

        self.after(self.world.random.randint(MS // 2, 8 * MS), commit)

    def notice_later(self, transaction: SharedTransaction) -> None:
        """Roll a transaction back that nobody owns any more, unless its commit is under way."""

        def notice() -> None:
            if not transaction.ended and not transaction.committing:
                transaction.rollback()

        self.after(self.world.random.randint(0, NOTICE_NS_MAX), notice)

    def forget(self, transaction: SharedTransaction) -> None:
        """Release what an ended transaction had."""
        self._open.pop(transaction, None)
        self.locks = {key: holder for key, holder in self.locks.items() if holder != transaction}

    def on_crash(self) -> None:
        """Whatever was under way is whole or absent."""
        for transaction in self.open:
            transaction.lose(whole=self.world.random.random() < 0.5)
        self.after_commit()

    def reap(self, before_ns: int) -> None:
        """Delete old records, as every server does from time to time."""
        for key, value in list(self.committed.items()):
            old = isinstance(value, Record) and value.recorded_ns < before_ns
            if old and key not in self.locks:
                del self.committed[key]


@dataclass(frozen=True, slots=True)
class Record:
    """A row of the mutations table."""

    request_hash: bytes
    recorded_ns: int
    result: bytes | None


class SharedLedger:
    """The ledger over the model, as `SqlLedger` has it: enter the key or wait, then look."""

    def __init__(self, tx: SharedTransaction) -> None:
        self.tx = tx

    def claim(self, key: MutationKey, now_ns: int) -> Recorded | None:
        """Enter the key, or return what is recorded under it."""
        place = (key.principal, key.mutation)
        self.tx.hold(place)
        record = self.tx.read(place)
        if record is None or self.tx.wrote(place):  # ours, from before we had to wait for a line
            self.tx.write(place, Record(key.request_hash, now_ns, None))
            return None
        assert record.result is not None, "a committed mutation has a result"
        return Recorded(record.request_hash, record.result)

    def record(self, key: MutationKey, result: bytes) -> None:
        """Keep the result of a claimed key."""
        place = (key.principal, key.mutation)
        record = self.tx.read(place)
        self.tx.write(place, Record(record.request_hash, record.recorded_ns, result))
