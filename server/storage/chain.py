"""What a storage daemon decides about a write: pure logic, driven by the daemon and the simulator.

Write path: ffs._storage (chunk received, CRCs hold) -> server/storage/pump.py -> THIS -> pump.py,
which hands the operations back to ffs._storage. A message or an event goes in through a method of
`ChainLogic`, a list of operations comes out; nothing here knows time, randomness, files or sockets.

How a write goes:

1. It is refused unless the routing says that its target is one of ours, serving, and the head of
   its chain at exactly the version that the writer planned with.
2. A write of a chunk that is being written already waits behind the first. The chunk store then
   tells a repetition (same checksums: done already) from a conflict; writes of a chunk never race.
3. Each remaining leg (today the local disk; with successors also the forward) reports its status.
4. It is acknowledged once: done if every leg was and the chain is still the one of step 1.

Invariants: every write that came in is acknowledged exactly once, dead connection or not, since the
acknowledgement is what frees its buffer; `Ack(.., OK)` only follows a local persist that succeeded;
at most one write per (target, blob, chunk) has legs under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from ffs.errors import (
    OK,
    ConnectionLostError,
    InvalidError,
    StaleChainError,
    TargetStoppedError,
)
from ffs.types import ChainInfo, Routing, TargetState


@dataclass(frozen=True, slots=True)
class Write:
    """A chunk in a receive buffer, its checksums verified. `write_id` names the buffer."""

    write_id: int
    connection: int
    blob: int
    chunk: int
    target: int
    chain: int
    chain_version: int
    length: int


@dataclass(frozen=True, slots=True)
class Persist:
    """Make the chunk of this write durable on its target; `ChainLogic.persisted` must follow."""

    write_id: int


@dataclass(frozen=True, slots=True)
class Ack:
    """Answer the writer with `status` (a code of ffs.errors, 0: durable) and free the buffer."""

    write_id: int
    status: int


@dataclass(frozen=True, slots=True)
class RefreshRouting:
    """A writer knows a chain that we do not: ask the metadata server before the next heartbeat."""


Operation = Persist | Ack | RefreshRouting
_ChunkKey = tuple[int, int, int]


@dataclass(slots=True)
class _Progress:
    """A write that has legs under way: how many are still out, and the first bad status."""

    write: Write
    legs: int
    status: int = OK


@dataclass(slots=True)
class _ChunkQueue:
    """The writes of one chunk: the one under way, and repetitions that wait for its end."""

    active: _Progress
    waiting: deque[Write] = field(default_factory=deque)


class ChainLogic:
    """Decide about the writes that one daemon's targets receive.

    Args:    targets: ids of the daemon's own targets
    Threads: one caller at a time; Fork: not used after fork
    """

    def __init__(self, targets: Iterable[int]) -> None:
        self._own_targets = set(targets)
        self._stopped: set[int] = set()
        self._routing_version = -1
        self._chains: dict[int, ChainInfo] = {}
        self._states: dict[int, int] = {}
        self._chunks: dict[_ChunkKey, _ChunkQueue] = {}
        self._active: dict[int, _Progress] = {}

    @property
    def routing_version(self) -> int:
        """The version of the routing in force; -1 before there is one."""
        return self._routing_version

    @property
    def writes_pending(self) -> int:
        """Writes taken in and not yet acknowledged."""
        return len(self._active) + sum(len(queue.waiting) for queue in self._chunks.values())

    def routing_changed(self, routing: Routing) -> list[Operation]:
        """Take a routing table; one older than ours is ignored, whatever the order of arrival."""
        if routing.version < self._routing_version:
            return []
        self._routing_version = routing.version
        self._chains = {chain.chain: chain for chain in routing.chains}
        self._states = {target.target: target.state for target in routing.targets}
        return []

    def target_stopped(self, target: int) -> list[Operation]:
        """Take no more writes for a target that met a disk error; what is under way just ends."""
        self._stopped.add(target)
        return []

    def received(self, write: Write) -> list[Operation]:
        """Take in a write whose chunk has been received."""
        assert write.write_id not in self._active
        queue = self._chunks.get(_key(write))
        if queue is not None:
            queue.waiting.append(write)
            return []
        return self._start(write)

    def persisted(self, write_id: int, status: int) -> list[Operation]:
        """The local leg of a write ended with `status`."""
        return self._leg_ended(write_id, status)

    def connection_closed(self, connection: int) -> list[Operation]:
        """Give up the writes of a dead connection that have not begun; the rest run to their end.

        A chunk half way to the disk stays a good chunk: its writer's repetition will find it.
        """
        operations: list[Operation] = []
        for queue in self._chunks.values():
            orphans = [write for write in queue.waiting if write.connection == connection]
            if orphans:
                queue.waiting = deque(w for w in queue.waiting if w.connection != connection)
                operations += [Ack(w.write_id, ConnectionLostError.code) for w in orphans]
        return operations

    def _start(self, write: Write) -> list[Operation]:
        """Begin the legs of a write that has its chunk to itself, or refuse it."""
        status = self._refusal(write)
        if status != OK:
            operations: list[Operation] = [Ack(write.write_id, status)]
            if status == StaleChainError.code and self._is_behind(write):
                operations.append(RefreshRouting())
            return operations
        progress = _Progress(write, legs=1)
        self._active[write.write_id] = progress
        queue = self._chunks.get(_key(write))
        if queue is None:
            self._chunks[_key(write)] = _ChunkQueue(progress)
        else:
            queue.active = progress
        return [Persist(write.write_id)]

    def _refusal(self, write: Write) -> int:
        """Return why this write may not go on, as a code of ffs.errors; OK if it may."""
        if write.target in self._stopped:
            return TargetStoppedError.code
        if not self._is_current(write):
            return StaleChainError.code
        if len(self._chains[write.chain].targets) > 1:
            # Acknowledging without a forward would claim replicas that are not there.
            return InvalidError.code
        return OK

    def _is_current(self, write: Write) -> bool:
        """Tell whether the writer's view of the chain is ours, headed by our serving target."""
        chain = self._chains.get(write.chain)
        return (
            chain is not None
            and chain.version == write.chain_version
            and bool(chain.targets)
            and chain.targets[0] == write.target
            and write.target in self._own_targets
            and self._states.get(write.target) == TargetState.SERVING
        )

    def _is_behind(self, write: Write) -> bool:
        """Tell whether a newer routing than ours might know this write's chain."""
        chain = self._chains.get(write.chain)
        return chain is None or chain.version < write.chain_version

    def _leg_ended(self, write_id: int, status: int) -> list[Operation]:
        """Count one leg of a write as ended; acknowledge with the last."""
        progress = self._active[write_id]
        if progress.status == OK:
            progress.status = status
        progress.legs -= 1
        if progress.legs > 0:
            return []
        del self._active[write_id]
        status = progress.status
        if status == OK and not self._is_current(progress.write):
            # The chain changed meanwhile: whether all of *its* replicas have the chunk is unknown.
            status = StaleChainError.code
        return [Ack(write_id, status), *self._next(_key(progress.write))]

    def _next(self, key: _ChunkKey) -> list[Operation]:
        """Start the first waiting write of a chunk that may go on; forget the queue without one."""
        queue = self._chunks[key]
        operations: list[Operation] = []
        while queue.waiting:
            write = queue.waiting.popleft()
            operations += self._start(write)
            if write.write_id in self._active:
                return operations
        del self._chunks[key]
        return operations


def _key(write: Write) -> _ChunkKey:
    return (write.target, write.blob, write.chunk)
