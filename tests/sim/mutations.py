"""The real ledger and `apply_once` on a server that crashes, with clients that retry through a
network that loses, delays, repeats and reorders.

A mutation here enters a line into a book, which fails when another has taken the line. The server
shares commits as the real one does: requests gather, run in savepoints of one transaction, the
commit takes its time, and answers leave after it. A crash in a commit leaves it whole or absent.

Promises checked all the time, by the god's-eye `Checker`:

- once: no logical operation is ever in the book twice, also not by a copy that comes late;
- acknowledged = durable: an entry that was acknowledged once is there ever after;
- one answer: all successful answers to an operation are equal;
- an id that was used for another request is refused, and that request is never applied;
- liveness: once faults stop, every client finishes.

`BUGS` are one mistake each; the test wants every one of them found.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from ffs.errors import OK, ExistsError, FFSError
from ffs.server.meta.idempotency import (
    MutationKey,
    Recorded,
    SqlLedger,
    apply_once,
    reap_records,
    retention_ns,
)
from ffs.server.meta.schema import SQLITE, upgrade_statements
from ffs.server.meta.sqlite import SqliteTransaction
from ffs.server.meta.store import Transaction
from tests.sim.chain_of_one import Violation
from tests.sim.retrying_client import BUDGET_NS, CLIENTS, LINES, Client, Reply, Request
from tests.sim.world import MS, SECOND, Network, NetworkFaults, Process, World

SERVER = "server"
FAULTS_END_NS = 10 * SECOND
LIMIT_NS = 120 * SECOND
REAP_EVERY_NS = 500 * MS


class Checker:
    """Compares what was promised with what the book holds."""

    def __init__(self, book: Callable[[], list[tuple[bytes, int]]]) -> None:
        self._book = book
        self._acknowledged: dict[bytes, tuple[int, int]] = {}

    def on_ok(self, request: Request, entry: int) -> None:
        """The server said that an operation is done."""
        now = (entry, request.line)
        before = self._acknowledged.setdefault(request.mutation, now)
        if before != now:
            raise Violation(f"one id answered for (entry, line) {before} and for {now}")

    def check(self) -> None:
        """Between transactions."""
        book = self._book()
        if len({mutation for mutation, _ in book}) != len(book):
            raise Violation("an operation was applied twice")
        present = dict(book)
        for mutation, (entry, _) in self._acknowledged.items():
            if present.get(mutation) != entry:
                raise Violation(f"acknowledged entry {entry} is not in the book")


class Server(Process):
    """Runs requests as the metadata server does; its disk is a database in memory."""

    ledger: type[SqlLedger] = SqlLedger
    retention_ns = retention_ns(BUDGET_NS)
    answers_before_commit = False

    def __init__(self, world: World, network: Network) -> None:
        super().__init__(world, SERVER)
        self.network = network
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for statement in upgrade_statements(SQLITE, 0):
            self.connection.execute(statement)
        self.connection.execute(
            "CREATE TABLE book (entry INTEGER PRIMARY KEY, mutation BLOB, line INTEGER)"
        )
        self.tx = SqliteTransaction(self.connection)
        self.checker = Checker(
            lambda: [(m, e) for e, m in self.tx.rows("SELECT entry, mutation FROM book")]
        )
        self.crash_in_next_commit = False
        self._waiting: list[Request] = []
        self._replies: list[tuple[Request, Reply]] = []

    def on_start(self) -> None:
        """Nothing but the database is left."""
        self._waiting, self._replies = [], []
        self.checker.check()
        self.after(REAP_EVERY_NS, self._reap)

    def on_crash(self) -> None:
        """A commit in progress is whole or absent."""
        if self.connection.in_transaction:
            whole = self.world.random.random() < 0.5
            self.connection.execute("COMMIT" if whole else "ROLLBACK")

    def on_message(self, source: str, message: object) -> None:
        """Queue a request for the next shared commit."""
        assert isinstance(message, Request)
        self._waiting.append(message)
        if not self.connection.in_transaction:
            self._begin()

    def _begin(self) -> None:
        self.connection.execute("BEGIN")
        requests, self._waiting = self._waiting, []
        for request in requests:
            self.connection.execute("SAVEPOINT operation")
            reply = self._run(request)
            if reply.status != OK:
                self.connection.execute("ROLLBACK TO operation")
            self.connection.execute("RELEASE operation")
            self._replies.append((request, reply))
        if self.answers_before_commit:
            self._answer()
        sync_ns = self.world.random.randint(MS // 2, 5 * MS)
        self.after(sync_ns, self._commit)
        if self.crash_in_next_commit:
            self.crash_in_next_commit = False
            self.after(sync_ns // 2, self.crash)

    def _commit(self) -> None:
        self.connection.execute("COMMIT")
        self.checker.check()
        self._answer()
        if self._waiting:
            self._begin()

    def _answer(self) -> None:
        replies, self._replies = self._replies, []
        for request, reply in replies:
            if reply.status == OK:
                self.checker.on_ok(request, reply.entry)
            self.world.log("answer", request.client, reply)
            self.network.send(SERVER, request.client, reply)

    def _run(self, request: Request) -> Reply:
        key = MutationKey(b"all", request.mutation, request.hash)
        try:
            entry = apply_once(
                self.ledger(self.tx),
                key,
                self.world.clock.wall_ns(),
                lambda: b"%d" % self._enter(request),
            )
        except FFSError as error:
            return Reply(request.operation, request.attempt, error.code, 0)
        return Reply(request.operation, request.attempt, OK, int(entry))

    def _enter(self, request: Request) -> int:
        self.world.log("apply", request)
        if self.tx.row("SELECT 1 FROM book WHERE line = ?", (request.line,)):
            raise ExistsError("line is taken")
        row = self.tx.row(
            "INSERT INTO book (mutation, line) VALUES (?, ?) RETURNING entry",
            (request.mutation, request.line),
        )
        assert row is not None
        return int(row[0])

    def free_line(self) -> None:
        """Somebody empties a line, so that a late copy would find it free."""
        if not self.connection.in_transaction:
            self.tx.run(
                "UPDATE book SET line = -entry WHERE line = ?",
                (self.world.random.randrange(LINES),),
            )

    def _reap(self) -> None:
        if not self.connection.in_transaction:
            reap_records(self.tx, self.world.clock.wall_ns() - self.retention_ns)
            self.after(REAP_EVERY_NS, self._reap)
        else:
            self.after(MS // 4, self._reap)


class Scenario:
    """Clients, a server, crashes and a bad network, from one seed."""

    def __init__(
        self, seed: int, *, server: type[Server] = Server, keep_history: bool = False
    ) -> None:
        self.world = World(seed, keep_history=keep_history)
        chance = self.world.random
        self.network = Network(
            self.world,
            NetworkFaults(
                drop=chance.uniform(0, 0.2),
                duplicate=chance.uniform(0, 0.4),
                stall=chance.uniform(0, 0.2),
                stall_ns_max=3 * BUDGET_NS,
            ),
        )
        self.server = server(self.world, self.network)
        self.clients = [Client(self.world, self.network, f"c{i}", SERVER) for i in range(CLIENTS)]
        for process in (self.server, *self.clients):
            self.network.attach(process)

    def run(self) -> World:
        """Play until every client has finished; raise Violation otherwise."""
        for process in (self.server, *self.clients):
            process.start()
        self._plan_faults()
        self.world.after(FAULTS_END_NS, self.network.heal)
        done = self.world.run_until(lambda: all(c.done for c in self.clients), LIMIT_NS)
        if not done:
            raise Violation("a client never finished")
        # Copies that are still on their way arrive now.
        self.world.run(self.world.now_ns + 4 * BUDGET_NS)
        self.server.crash()
        self.server.checker.check()
        self.server.connection.close()
        return self.world

    def _plan_faults(self) -> None:
        chance = self.world.random
        for _ in range(chance.randint(0, 12)):
            at_ns = chance.randint(0, FAULTS_END_NS - SECOND)
            self.world.after(at_ns, self._crash, chance.random() < 0.5)
            self.world.after(at_ns + chance.randint(MS, 500 * MS), self._restart)
        for _ in range(60):
            self.world.after(chance.randint(0, FAULTS_END_NS), self.server.free_line)
        self.world.after(FAULTS_END_NS, self._end_of_crashes)

    def _end_of_crashes(self) -> None:
        self.server.crash_in_next_commit = False
        self._restart()

    def _crash(self, in_commit: bool) -> None:
        if in_commit:
            self.server.crash_in_next_commit = True
        else:
            self.server.crash()

    def _restart(self) -> None:
        if not self.server.alive:
            self.server.start()


def run(seed: int, *, keep_history: bool = False) -> World:
    """Run one seed; raises Violation."""
    return Scenario(seed, keep_history=keep_history).run()


# --- planted bugs ---------------------------------------------------------------------------------


class _Forgetful(SqlLedger):
    """Claims, and does not keep the claim."""

    def claim(self, key: MutationKey, now_ns: int) -> Recorded | None:
        return None

    def record(self, key: MutationKey, result: bytes) -> None:
        return None


class _Trusting(SqlLedger):
    """Does not compare requests."""

    def claim(self, key: MutationKey, now_ns: int) -> Recorded | None:
        before = super().claim(key, now_ns)
        return None if before is None else Recorded(key.request_hash, before.result)


class _InMemory(SqlLedger):
    """Keeps claims beside the database, not in its transactions."""

    def __init__(self, tx: Transaction) -> None:
        super().__init__(tx)
        self._memory: dict[Any, Recorded] = _MEMORY

    def claim(self, key: MutationKey, now_ns: int) -> Recorded | None:
        return self._memory.get((key.principal, key.mutation))

    def record(self, key: MutationKey, result: bytes) -> None:
        self._memory[(key.principal, key.mutation)] = Recorded(key.request_hash, result)


_MEMORY: dict[Any, Recorded] = {}


class ServerThatForgets(Server):
    """Applies every copy."""

    ledger = _Forgetful


class ServerThatTrusts(Server):
    """Answers another request with the recorded result."""

    ledger = _Trusting


class ServerWithLedgerInMemory(Server):
    """Answers "done" for what a crash has undone."""

    ledger = _InMemory


class ServerThatAnswersEarly(Server):
    """Answers before the commit."""

    answers_before_commit = True


class ServerThatReapsEarly(Server):
    """Keeps records for less than copies can take."""

    retention_ns = SECOND


BUGS: dict[str, type[Server]] = {
    "forgets": ServerThatForgets,
    "trusts": ServerThatTrusts,
    "ledger_in_memory": ServerWithLedgerInMemory,
    "answers_early": ServerThatAnswersEarly,
    "reaps_early": ServerThatReapsEarly,
}
