"""The real `apply_once` on several metadata servers over one database, and clients that go from one
to the next with the same mutation id.

A mutation enters a line into a book, which fails when another has taken the line. Whatever can die
does: servers and the database at any step, connections between them, messages on their way, which
are also delayed, repeated and overtaken. As the real engine does, a server runs an operation again
when the connection broke under it, in a commit too, and answers `UnavailableError` when the
database stays away; clients choose servers by the real `Addresses` and `RetryPolicy`.

Promises checked all the time, by the god's-eye `Checker`:

- once: no logical operation is ever in the book twice, whoever carried it out;
- acknowledged = durable: an entry that was acknowledged is there ever after;
- one answer: all successful answers to an operation are equal, and what was done is not refused;
- liveness: once faults stop, every client finishes.

`BUGS` are one mistake each; the test wants every one of them found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ffs.errors import OK, ExistsError, FFSError, UnavailableError
from ffs.rpc.addresses import Addresses
from ffs.server.meta.idempotency import MutationKey, Recorded, apply_once, retention_ns
from tests.sim.chain_of_one import Violation
from tests.sim.retrying_client import BUDGET_NS, CLIENTS, LINES, Client, Reply, Request
from tests.sim.shared_database import (
    Blocked,
    Broken,
    Entry,
    SharedDatabase,
    SharedLedger,
    SharedTransaction,
)
from tests.sim.world import MS, SECOND, Network, NetworkFaults, Process, World

SERVERS: Final = 3
FAULTS_END_NS: Final = 10 * SECOND
LIMIT_NS: Final = 120 * SECOND
REAP_EVERY_NS: Final = 500 * MS
DATABASE_WAIT_NS: Final = 500 * MS
"""How long a server waits for its database before it says that it is not available."""
RECONNECT_NS: Final = 20 * MS
_NUMBER: Final = ("counter", "entry")


class Checker:
    """Compares what was promised with what the book holds."""

    def __init__(self, database: SharedDatabase) -> None:
        self._database = database
        self._acknowledged: dict[bytes, tuple[int, int]] = {}

    def on_ok(self, request: Request, entry: int) -> None:
        """A server said that an operation is done."""
        now = (entry, request.line)
        before = self._acknowledged.setdefault(request.mutation, now)
        if before != now:
            raise Violation(f"one id answered for (entry, line) {before} and for {now}")

    def on_taken(self, request: Request) -> None:
        """A server said that an operation could not be done."""
        if any(entry.mutation == request.mutation for entry in self._book().values()):
            raise Violation("an operation that is in the book was refused")

    def _book(self) -> dict[int, Entry]:
        return {k[1]: v for k, v in self._database.committed.items() if k[0] == "book"}

    def check(self) -> None:
        """After every commit."""
        book = self._book()
        operations = {(entry.client, entry.operation) for entry in book.values()}
        if len(operations) != len(book):
            raise Violation("an operation was applied twice")
        for mutation, (number, _) in self._acknowledged.items():
            if number not in book or book[number].mutation != mutation:
                raise Violation(f"acknowledged entry {number} is not in the book")


class Work:
    """One request in one server, from its arrival to its answer."""

    def __init__(self, server: Server, request: Request) -> None:
        self.server = server
        self.request = request
        self.give_up_ns = server.world.now_ns + DATABASE_WAIT_NS
        self.tx: SharedTransaction | None = None

    def begin(self) -> None:
        """Open a transaction, or wait for the database."""
        try:
            self.tx = self.server.database.begin(self.broken)
        except Broken:
            self.broken()
            return
        self.attempt(self.tx)

    def attempt(self, tx: SharedTransaction) -> None:
        """Run the operation; after having waited for another transaction, run it again."""
        if tx is not self.tx:
            return  # the connection broke while we waited, and `broken` was called
        try:
            entry = self.server.apply(self, tx)
        except Blocked as blocked:
            blocked.by.wait(lambda: self.again(tx))
        except FFSError as error:
            tx.rollback()
            self.answer(error.code, 0)
        else:
            chance = self.server.world.random
            slow = chance.random() < 0.1  # longer than a client waits before it asks another server
            self.server.after(
                chance.randint(0, 400 * MS if slow else 5 * MS), self.finish, tx, entry
            )

    def again(self, tx: SharedTransaction) -> None:
        """Whoever was in our way has ended."""
        self.server.after(0, self.attempt, tx)

    def finish(self, tx: SharedTransaction, entry: int) -> None:
        """Commit what was done, then answer."""
        if tx is self.tx:
            self.server.commit(self, tx, entry)

    def broken(self) -> None:
        """No connection, or none any more: run again, for a while."""
        self.tx = None
        if self.server.world.now_ns >= self.give_up_ns:
            self.answer(UnavailableError.code, 0)
        else:
            self.server.after(RECONNECT_NS, self.begin)

    def answer(self, status: int, entry: int) -> None:
        """Tell the client."""
        self.server.works.pop(self, None)
        reply = Reply(self.request.operation, self.request.attempt, status, entry)
        if status == OK:
            self.server.checker.on_ok(self.request, entry)
        elif status == ExistsError.code:
            self.server.checker.on_taken(self.request)
        self.server.world.log("answer", self.server.name, self.request.client, reply)
        self.server.network.send(self.server.name, self.request.client, reply)


class Server(Process):
    """A metadata server: nothing but the operations under way, all of it lost in a crash."""

    ledger: type[SharedLedger] = SharedLedger
    retention_ns = retention_ns(BUDGET_NS)

    def __init__(
        self, world: World, network: Network, database: SharedDatabase, checker: Checker, index: int
    ) -> None:
        super().__init__(world, f"server-{index}")
        self.network = network
        self.database = database
        self.checker = checker
        self.works: dict[Work, None] = {}

    def on_start(self) -> None:
        """Begin with nothing."""
        self.works = {}
        self.after(REAP_EVERY_NS, self._reap)

    def on_crash(self) -> None:
        """The database finds out by and by."""
        for work in self.works:
            tx, work.tx = work.tx, None
            if tx is not None and not tx.ended:
                tx.disconnect()

    def on_message(self, source: str, message: object) -> None:
        """Begin to work on a request."""
        assert isinstance(message, Request)
        work = Work(self, message)
        self.works[work] = None
        work.begin()

    def cut_connections(self) -> None:
        """Something between here and the database drops what is open."""
        for work in list(self.works):
            if work.tx is not None:
                work.tx.cut()

    def apply(self, work: Work, tx: SharedTransaction) -> int:
        """Do the mutation once, by the real rule."""
        request = work.request
        entry = apply_once(
            self.ledger(tx),
            MutationKey(b"all", request.mutation, request.hash),
            self.world.clock.wall_ns(),
            lambda: b"%d" % self.enter(request, tx),
        )
        return int(entry)

    def commit(self, work: Work, tx: SharedTransaction, entry: int) -> None:
        """Make it durable, then answer."""
        tx.commit(lambda: work.answer(OK, entry))

    def enter(self, request: Request, tx: SharedTransaction) -> int:
        """Take a line and the next number."""
        self.world.log("apply", self.name, request)
        tx.hold(("line", request.line))
        if tx.read(("line", request.line)):
            raise ExistsError("line is taken")
        tx.hold(_NUMBER)
        number = int(tx.read(_NUMBER) or 0) + 1
        tx.write(_NUMBER, number)
        tx.write(("line", request.line), number)
        entry = Entry(request.client, request.operation, request.mutation, request.line)
        tx.write(("book", number), entry)
        return number

    def _reap(self) -> None:
        if self.database.alive:
            self.database.reap(self.world.clock.wall_ns() - self.retention_ns)
        self.after(REAP_EVERY_NS, self._reap)


class FailoverClient(Client):
    """The client of the other scenario, with several servers to choose from."""

    def __init__(self, world: World, network: Network, name: str) -> None:
        super().__init__(world, network, name)
        self.addresses = Addresses([("server", i) for i in range(SERVERS)])
        for address in world.random.sample(self.addresses.order, SERVERS):
            self.addresses.failed(address)

    def choose_server(self) -> str:
        """The one that worked last, or the one that failed longest ago."""
        host, index = self.addresses.order[0]
        return f"{host}-{index}"

    def _failed(self, status: int) -> None:
        if status == UnavailableError.code:
            self.addresses.failed(self.addresses.order[0])
        super()._failed(status)


class Scenario:
    """Clients, servers, their database, crashes and a bad network, from one seed."""

    def __init__(
        self,
        seed: int,
        *,
        server: type[Server] = Server,
        client: type[Client] = FailoverClient,
        keep_history: bool = False,
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
        self.database = SharedDatabase(self.world)
        self.checker = Checker(self.database)
        self.database.after_commit = self.checker.check
        self.servers = [
            server(self.world, self.network, self.database, self.checker, i) for i in range(SERVERS)
        ]
        self.clients = [client(self.world, self.network, f"c{i}") for i in range(CLIENTS)]
        for process in (*self.servers, *self.clients):
            self.network.attach(process)

    def run(self) -> World:
        """Play until every client has finished; raise Violation otherwise."""
        for process in (self.database, *self.servers, *self.clients):
            process.start()
        self._plan_faults()
        self.world.after(FAULTS_END_NS, self.network.heal)
        done = self.world.run_until(lambda: all(c.done for c in self.clients), LIMIT_NS)
        if not done:
            raise Violation("a client never finished")
        # Copies that are still on their way arrive now.
        self.world.run(self.world.now_ns + 4 * BUDGET_NS)
        self.checker.check()
        return self.world

    def _plan_faults(self) -> None:
        chance = self.world.random
        victims: list[Process] = [*self.servers, *self.servers, self.database]
        for _ in range(chance.randint(0, 30)):
            at_ns = chance.randint(0, FAULTS_END_NS - SECOND)
            victim = chance.choice(victims)
            self.world.after(at_ns, victim.crash)
            self.world.after(at_ns + chance.randint(MS, 800 * MS), self._restart, victim)
        for _ in range(chance.randint(0, 20)):
            at_ns = chance.randint(0, FAULTS_END_NS)
            self.world.after(at_ns, chance.choice(self.servers).cut_connections)
        for _ in range(120):
            self.world.after(chance.randint(0, FAULTS_END_NS), self._free_line)
        for process in victims:
            self.world.after(FAULTS_END_NS, self._restart, process)

    def _restart(self, process: Process) -> None:
        if not process.alive:
            process.start()

    def _free_line(self) -> None:
        """Somebody empties a line, so that a late copy would find it free."""
        line = ("line", self.world.random.randrange(LINES))
        if line not in self.database.locks:
            self.database.committed.pop(line, None)


def run(seed: int, *, keep_history: bool = False) -> World:
    """Run one seed; raises Violation."""
    return Scenario(seed, keep_history=keep_history).run()


# --- planted bugs ---------------------------------------------------------------------------------


class _Impatient(SharedLedger):
    """Does not wait for another transaction that has entered the key."""

    def claim(self, key: MutationKey, now_ns: int) -> Recorded | None:
        try:
            return super().claim(key, now_ns)
        except Blocked:
            return None

    def record(self, key: MutationKey, result: bytes) -> None:
        if self.tx.wrote((key.principal, key.mutation)):
            super().record(key, result)


class ServerThatDoesNotWait(Server):
    """Takes a key that another transaction has for free."""

    ledger = _Impatient


class _Absent(SharedLedger):
    """Looks for a record, and leaves recording to a later transaction."""

    def claim(self, key: MutationKey, now_ns: int) -> Recorded | None:
        found = super().claim(key, now_ns)
        if found is None:
            self.tx.take_back((key.principal, key.mutation))
        return found

    def record(self, key: MutationKey, result: bytes) -> None:
        return None


class ServerThatRecordsLater(Server):
    """Records what was done in a second transaction."""

    ledger = _Absent

    def commit(self, work: Work, tx: SharedTransaction, entry: int) -> None:
        request = work.request

        def record() -> None:
            key = MutationKey(b"all", request.mutation, request.hash)
            try:
                second = self.database.begin(lambda: None)
                ledger = SharedLedger(second)
                if ledger.claim(key, self.world.clock.wall_ns()) is None:
                    ledger.record(key, b"%d" % entry)
            except (Blocked, Broken):
                return
            second.commit(lambda: work.answer(OK, entry))

        tx.commit(record)


class ServerThatRemembersItsClaim(Server):
    """Runs again after a broken connection as if its first commit could not have been done."""

    def apply(self, work: Work, tx: SharedTransaction) -> int:
        if getattr(work, "claimed", False):
            return self.enter(work.request, tx)
        entry = super().apply(work, tx)
        work.claimed = True  # type: ignore[attr-defined]
        return entry


_CLAIMS: dict[Server, dict[bytes, int]] = {}


class ServerThatAsksItsMemory(Server):
    """Keeps claims in its own memory, where no other server sees them."""

    def apply(self, work: Work, tx: SharedTransaction) -> int:
        known = _CLAIMS.setdefault(self, {})
        if work.request.mutation in known:
            return known[work.request.mutation]
        return self.enter(work.request, tx)

    def commit(self, work: Work, tx: SharedTransaction, entry: int) -> None:
        def done() -> None:
            _CLAIMS.setdefault(self, {})[work.request.mutation] = entry
            work.answer(OK, entry)

        tx.commit(done)


class ServerThatAnswersEarly(Server):
    """Answers before the commit."""

    def commit(self, work: Work, tx: SharedTransaction, entry: int) -> None:
        work.answer(OK, entry)
        tx.commit(lambda: None)


class ClientThatForgets(FailoverClient):
    """Chooses a new id for another server."""

    def _failed(self, status: int) -> None:
        if status == UnavailableError.code:
            self._mutation = self.world.randomness.token(16)
        super()._failed(status)


BUGS: dict[str, Callable[[int], Any]] = {
    "does_not_wait": lambda seed: Scenario(seed, server=ServerThatDoesNotWait),
    "records_later": lambda seed: Scenario(seed, server=ServerThatRecordsLater),
    "remembers_its_claim": lambda seed: Scenario(seed, server=ServerThatRemembersItsClaim),
    "asks_its_memory": lambda seed: Scenario(seed, server=ServerThatAsksItsMemory),
    "answers_early": lambda seed: Scenario(seed, server=ServerThatAnswersEarly),
    "new_id_elsewhere": lambda seed: Scenario(seed, client=ClientThatForgets),
}
