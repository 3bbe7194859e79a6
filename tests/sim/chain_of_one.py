"""The real ChainLogic on a daemon that crashes, with a disk that fails and clients that retry.

Promises checked all the time, by the god's-eye `Checker`:

- acknowledged = durable: a chunk that was acknowledged once is on the disk with those bytes ever
  after, through crashes and failed syncs;
- written once: no two acknowledgements of one chunk were for different bytes;
- fenced: nothing is acknowledged for a chain version older than the newest the daemon was told;
- exactly one answer for each write that a living daemon took in, and no buffer is kept after it;
- one persist at a time per chunk;
- liveness: once faults stop, every client gets an answer for every chunk.

`BUGS` are ChainLogic with one mistake each; the test wants every one of them found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ffs.errors import (
    OK,
    ChunkConflictError,
    NoSpaceError,
    StorageIOError,
    TargetStoppedError,
)
from ffs.server.storage.chain import Ack, ChainLogic, Operation, Persist, RefreshRouting, Write
from ffs.types import ChainInfo, NodeInfo, Routing, TableInfo, TargetInfo, TargetState
from tests.sim.world import MS, SECOND, Network, NetworkFaults, Process, World

TARGET = 1
CHAIN = 1
FAULTS_END_NS = 2 * SECOND
LIMIT_NS = 120 * SECOND
MAX_CHUNKS_PER_BLOB = 4

ChunkKey = tuple[int, int]


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """A WRITE frame; `crc` stands for the chunk's bytes."""

    client: str
    connection: int
    request: int
    blob: int
    chunk: int
    chain_version: int
    crc: int


@dataclass(frozen=True, slots=True)
class WriteReply:
    """The answer to one WriteRequest."""

    connection: int
    request: int
    status: int


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """The daemon learns that a connection is dead."""

    connection: int


@dataclass(frozen=True, slots=True)
class RoutingQuery:
    """Ask the manager for the routing."""

    asker: str


class Checker:
    """Knows what was acknowledged and compares it with what the disk holds."""

    def __init__(self) -> None:
        self.acknowledged: dict[ChunkKey, int] = {}

    def on_ack(self, key: ChunkKey, crc: int, durable: dict[ChunkKey, int]) -> None:
        """A daemon said "done" for these bytes."""
        before = self.acknowledged.setdefault(key, crc)
        if before != crc:
            raise Violation(f"chunk {key} acknowledged with bytes {before} and with {crc}")
        self.check(durable)

    def check(self, durable: dict[ChunkKey, int]) -> None:
        """Everything acknowledged is on the disk."""
        for key, crc in self.acknowledged.items():
            if durable.get(key) != crc:
                raise Violation(f"chunk {key} acknowledged as {crc}, on disk {durable.get(key)}")


class Disk:
    """What survives crashes: chunks by key, and a group commit that takes time and may fail."""

    def __init__(self, world: World) -> None:
        self.durable: dict[ChunkKey, int] = {}
        self.faulty = True
        self.stopped = False
        self._world = world
        self._group: dict[int, tuple[ChunkKey, int]] = {}

    def put(self, write_id: int, key: ChunkKey, crc: int) -> None:
        """Add a chunk to the group that the next commit makes durable."""
        if any(other == key for other, _ in self._group.values()):
            raise Violation(f"two persists of chunk {key} at once")
        self._group[write_id] = (key, crc)

    def commit(self) -> list[tuple[int, int]]:
        """End the group: (write id, status) for each member."""
        group, self._group = self._group, {}
        if self.stopped:
            return [(write_id, TargetStoppedError.code) for write_id in group]
        if self.faulty and group and self._world.random.random() < 0.03:
            self._world.log("sync_failed", len(group))
            self.stopped = True
            self._keep_some(group)
            return [(write_id, StorageIOError.code) for write_id in group]
        return [(write_id, self._store(*member)) for write_id, member in group.items()]

    def crash(self) -> None:
        """Power is gone: each chunk of the open group is whole or absent."""
        group, self._group = self._group, {}
        self._keep_some(group)

    def _keep_some(self, group: dict[int, tuple[ChunkKey, int]]) -> None:
        for key, crc in group.values():
            if self._world.random.random() < 0.5:
                self.durable.setdefault(key, crc)

    def _store(self, key: ChunkKey, crc: int) -> int:
        if key in self.durable:
            return OK if self.durable[key] == crc else ChunkConflictError.code
        if self.faulty and self._world.random.random() < 0.02:
            return NoSpaceError.code
        self.durable[key] = crc
        return OK


class Daemon(Process):
    """A storage daemon: does for ChainLogic what pump.py and the data loop do in a real one."""

    def __init__(
        self, world: World, network: Network, checker: Checker, logic: type[ChainLogic]
    ) -> None:
        super().__init__(world, "daemon")
        self.disk = Disk(world)
        self.buffers: dict[int, WriteRequest] = {}
        self._network, self._checker, self._logic_class = network, checker, logic
        self._next_write_id = 0

    def on_start(self) -> None:
        """A new life: no buffers, no routing, the disk as it was left."""
        self._logic = self._logic_class([TARGET])
        self._newest_version = -1
        self._closed: set[int] = set()
        self._commit_planned = False
        self.buffers = {}
        self.disk.stopped = False
        self._heartbeat()

    def on_crash(self) -> None:
        """Lose all buffers; the disk keeps what it keeps."""
        self.buffers = {}
        self.disk.crash()
        self._checker.check(self.disk.durable)

    def on_message(self, source: str, message: object) -> None:
        """A frame, a dead connection, or a routing table came in."""
        if isinstance(message, WriteRequest):
            if message.connection not in self._closed:
                self._receive(message)
        elif isinstance(message, CloseConnection):
            self._closed.add(message.connection)
            self._run(self._logic.connection_closed(message.connection))
        elif isinstance(message, Routing):
            self._newest_version = max(self._newest_version, message.chains[0].version)
            self._run(self._logic.routing_changed(message))

    def _receive(self, request: WriteRequest) -> None:
        self._next_write_id += 1
        self.buffers[self._next_write_id] = request
        write = Write(
            write_id=self._next_write_id,
            connection=request.connection,
            blob=request.blob,
            chunk=request.chunk,
            target=TARGET,
            chain=CHAIN,
            chain_version=request.chain_version,
            length=4096,
        )
        self._run(self._logic.received(write))

    def _heartbeat(self) -> None:
        self._network.send(self.name, "manager", RoutingQuery(self.name))
        self.after(100 * MS, self._heartbeat)

    def _run(self, operations: list[Operation]) -> None:
        for operation in operations:
            if isinstance(operation, Persist):
                self._persist(operation.write_id)
            elif isinstance(operation, Ack):
                self._ack(operation)
            elif isinstance(operation, RefreshRouting):
                self._network.send(self.name, "manager", RoutingQuery(self.name))

    def _persist(self, write_id: int) -> None:
        request = self.buffers[write_id]
        self.disk.put(write_id, (request.blob, request.chunk), request.crc)
        if not self._commit_planned:
            self._commit_planned = True
            slow = self.world.random.random() < 0.1
            delay_ms = self.world.random.randint(1, 300 if slow else 8)
            self.after(delay_ms * MS, self._commit)

    def _commit(self) -> None:
        self._commit_planned = False
        was_stopped = self.disk.stopped
        for write_id, status in self.disk.commit():
            self._run(self._logic.persisted(write_id, status))
        if self.disk.stopped and not was_stopped:
            self._run(self._logic.target_stopped(TARGET))

    def _ack(self, ack: Ack) -> None:
        request = self.buffers.pop(ack.write_id, None)
        if request is None:
            raise Violation(f"write {ack.write_id} answered twice")
        key = (request.blob, request.chunk)
        self.world.log("ack", key, request.crc, ack.status)
        if ack.status == OK:
            if request.chain_version < self._newest_version:
                raise Violation(f"chunk {key} acknowledged at stale version")
            self._checker.on_ack(key, request.crc, self.disk.durable)
        reply = WriteReply(request.connection, request.request, ack.status)
        self._network.send(self.name, request.client, reply)


class Manager(Process):
    """Hands out the routing; now and then the chain gets a new version."""

    def __init__(self, world: World, network: Network) -> None:
        super().__init__(world, "manager")
        self._network = network
        self._version = 1

    def bump(self) -> None:
        """The chain changes."""
        self._version += 1
        self.world.log("chain_version", self._version)

    def on_message(self, source: str, message: object) -> None:
        """Answer with the routing of this moment; the network may deliver it in any order."""
        self._network.send(self.name, source, self._routing())

    def _routing(self) -> Routing:
        return Routing(
            version=self._version,
            nodes=[NodeInfo(node=1, host="daemon", port=1)],
            targets=[TargetInfo(target=TARGET, node=1, state=TargetState.SERVING)],
            chains=[ChainInfo(chain=CHAIN, version=self._version, targets=[TARGET])],
            tables=[TableInfo(table=1, chains=[CHAIN])],
        )


class Client(Process):
    """Writes a list of chunks one after the other, each until it has a final answer.

    Two clients may be given the same chunk with different bytes: one of them must be refused.
    """

    def __init__(
        self, world: World, network: Network, name: str, chunks: list[tuple[ChunkKey, int]]
    ) -> None:
        super().__init__(world, name)
        self.answers: dict[ChunkKey, int] = {}
        self._network = network
        self._todo = list(reversed(chunks))
        self._connection_base = (world.random.randrange(1 << 30)) << 20
        self._attempt = 0
        self._version = 0

    @property
    def done(self) -> bool:
        """Every chunk has a final answer."""
        return not self._todo

    def on_start(self) -> None:
        """Begin with the first chunk."""
        self._send()

    def on_message(self, source: str, message: object) -> None:
        """Take a routing, or the answer to the attempt under way."""
        if isinstance(message, Routing):
            self._version = max(self._version, message.chains[0].version)
        elif isinstance(message, WriteReply):
            current = message.connection == self._connection and self._todo
            if current and message.request == self._attempt:
                self._answered(message.status)

    @property
    def _connection(self) -> int:
        return self._connection_base + self._attempt

    def _answered(self, status: int) -> None:
        self._timer.cancel()
        if status in (OK, ChunkConflictError.code):
            key, _ = self._todo.pop()
            self.answers[key] = status
            self._attempt += 1
            if self._todo:
                self._send()
        else:
            self._again(self.world.random.randint(1, 60) * MS)

    def _timed_out(self) -> None:
        self._network.send(self.name, "daemon", CloseConnection(self._connection))
        self._again(self.world.random.randint(0, 30) * MS)

    def _again(self, delay_ns: int) -> None:
        self._network.send(self.name, "manager", RoutingQuery(self.name))
        self._attempt += 1
        self.after(delay_ns, self._send)

    def _send(self) -> None:
        (blob, chunk), crc = self._todo[-1]
        request = WriteRequest(
            client=self.name,
            connection=self._connection,
            request=self._attempt,
            blob=blob,
            chunk=chunk,
            chain_version=self._version,
            crc=crc,
        )
        self._network.send(self.name, "daemon", request)
        self._timer = self.after(self.world.random.randint(10, 120) * MS, self._timed_out)


class Scenario:
    """One seed: three clients, one daemon, crashes and faults for two seconds, then peace."""

    def __init__(
        self,
        seed: int,
        *,
        logic: type[ChainLogic] = ChainLogic,
        keep_history: bool = False,
    ) -> None:
        self.world = World(seed, keep_history=keep_history)
        chance = self.world.random
        faults = NetworkFaults(
            drop=chance.choice([0.0, 0.05, 0.3]),
            duplicate=chance.choice([0.0, 0.1, 0.4]),
            delay_ns_min=50_000,
            delay_ns_max=chance.choice([1, 10, 40]) * MS,
            stall=0.02,
            stall_ns_max=500 * MS,
        )
        self.network = Network(self.world, faults)
        self.checker = Checker()
        self.daemon = Daemon(self.world, self.network, self.checker, logic)
        self.manager = Manager(self.world, self.network)
        self.clients = [self._client(f"client{i}") for i in range(3)]
        for process in (self.manager, self.daemon, *self.clients):
            self.network.attach(process)
            process.start()
        self._nemesis()

    def _client(self, name: str) -> Client:
        chance = self.world.random
        chunks = {}
        for _ in range(12):
            key = (chance.randint(1, 6), chance.randrange(MAX_CHUNKS_PER_BLOB))
            # Mostly the same bytes from everyone (a repetition), sometimes others (a conflict).
            chunks[key] = key[0] * 100 + key[1] + (50 if chance.random() < 0.15 else 0)
        return Client(self.world, self.network, name, list(chunks.items()))

    def _nemesis(self) -> None:
        if self.world.now_ns >= FAULTS_END_NS:
            self._peace()
            return
        choice = self.world.random.random()
        if choice < 0.35:
            self.daemon.crash()
            self.world.after(self.world.random.randint(1, 80) * MS, self._restart)
        elif choice < 0.55:
            self.manager.bump()
        elif choice < 0.65 and self.daemon.disk.stopped:
            self.daemon.crash()
            self._restart()
        self.world.after(self.world.random.randint(5, 150) * MS, self._nemesis)

    def _restart(self) -> None:
        if not self.daemon.alive:
            self.daemon.start()

    def _peace(self) -> None:
        self.world.log("peace")
        self.network.heal()
        self.daemon.disk.faulty = False
        if self.daemon.disk.stopped:
            self.daemon.crash()
        self._restart()

    def run(self) -> str:
        """Run the seed to its end; return the digest of its history.

        Raises: Violation naming the broken promise.
        """
        self.world.run(FAULTS_END_NS + 200 * MS)
        if not self.world.run_until(self._all_answered, LIMIT_NS):
            raise Violation("a client got no answer after faults had stopped")
        self.world.run(self.world.now_ns + SECOND)
        self.checker.check(self.daemon.disk.durable)
        if self.daemon.buffers:
            raise Violation(f"{len(self.daemon.buffers)} writes never answered")
        return self.world.digest()

    def _all_answered(self) -> bool:
        return all(client.done for client in self.clients)


class _AckBeforePersist(ChainLogic):
    def received(self, write: Write) -> list[Operation]:
        operations = super().received(write)
        if Persist(write.write_id) in operations:
            operations.append(Ack(write.write_id, OK))
        return operations

    def persisted(self, write_id: int, status: int) -> list[Operation]:
        return [op for op in super().persisted(write_id, status) if op != Ack(write_id, status)]


class _RepetitionRaces(ChainLogic):
    def received(self, write: Write) -> list[Operation]:
        return self._start(write)

    def _next(self, key: tuple[int, int, int]) -> list[Operation]:
        self._chunks.pop(key, None)
        return []


class _RepetitionForgotten(ChainLogic):
    def received(self, write: Write) -> list[Operation]:
        busy = (write.target, write.blob, write.chunk) in self._chunks
        return [] if busy else self._start(write)


class _StaleVersionTaken(ChainLogic):
    def _is_current(self, write: Write) -> bool:
        return write.chain in self._chains


class _OldRoutingApplied(ChainLogic):
    def routing_changed(self, routing: Routing) -> list[Operation]:
        self._routing = replace(self._routing, version=-1)
        return super().routing_changed(routing)


class _NotFencedAtTheEnd(ChainLogic):
    def _leg_ended(self, write_id: int, status: int) -> list[Operation]:
        write = self._active[write_id].write
        operations = super()._leg_ended(write_id, status)
        return [Ack(write.write_id, status), *operations[1:]]


class _OrphanNeverFreed(ChainLogic):
    def connection_closed(self, connection: int) -> list[Operation]:
        super().connection_closed(connection)
        return []


BUGS: dict[str, type[ChainLogic]] = {
    "ack_before_persist": _AckBeforePersist,
    "repetition_races": _RepetitionRaces,
    "repetition_forgotten": _RepetitionForgotten,
    "stale_version_taken": _StaleVersionTaken,
    "old_routing_applied": _OldRoutingApplied,
    "not_fenced_at_the_end": _NotFencedAtTheEnd,
    "orphan_never_freed": _OrphanNeverFreed,
}


def run(seed: int, *, keep_history: bool = False) -> World:
    """Run one seed with the real logic; return its world, whose digest names the history."""
    scenario = Scenario(seed, keep_history=keep_history)
    scenario.run()
    return scenario.world
