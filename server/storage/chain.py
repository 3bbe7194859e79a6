"""What a storage daemon decides about a write: pure logic, driven by the daemon and the simulator.

Write path: ffs._storage (chunk received, CRCs hold) -> server/storage/pump.py -> THIS -> pump.py,
which hands the operations back to ffs._storage. A message or an event goes in through a method of
`ChainLogic`, a list of operations comes out; nothing here knows time, randomness, files or sockets.

How a write goes (docs/replication.md):

1. It is refused unless the routing says that its target is one of ours, at the place in its chain
   that the write has come to (`hop`), at exactly the version that the writer planned with. The head
   also refuses it while too few members serve.
2. A write of a chunk that is being written already waits behind the first. The chunk store then
   tells a repetition (same checksums: done already) from a conflict; writes of a chunk never race.
3. Its legs begin at once: to the local disk, and to the next member, which does the same.
4. When all legs have ended it is acknowledged once: done if every leg was and the chain is still
   the one of step 1.

Invariants: every write that came in is acknowledged exactly once, dead connection or not, since the
acknowledgement is what frees its buffer; `Ack(.., OK)` only follows a local persist and a forward
(where there is a next member) that both succeeded; at most one write per (target, blob, chunk) has
legs under way. What waits was planned with the version that we have, so that what a write waits for
has an older version or a later place in the chain: no two members wait for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from ffs import chains
from ffs.errors import (
    OK,
    ConnectionLostError,
    StaleChainError,
    TargetStoppedError,
    TooFewReplicasError,
    UnavailableError,
)
from ffs.types import ChainInfo, Routing


@dataclass(frozen=True, slots=True)
class Write:
    """A chunk in a receive buffer, its checksums verified. `write_id` names the buffer.

    `hop` is the place in the chain that it was sent to: 0 by a client, n by the member before.
    """

    write_id: int
    connection: int
    blob: int
    chunk: int
    target: int
    chain: int
    chain_version: int
    length: int
    hop: int = 0


@dataclass(frozen=True, slots=True)
class Persist:
    """Make the chunk of this write durable on its target; `ChainLogic.persisted` must follow."""

    write_id: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the chunk of this write to the next member; `ChainLogic.forwarded` must follow.

    `hop` is the next member's place, as its `Write` will have it.
    """

    write_id: int
    node: int
    target: int
    hop: int


@dataclass(frozen=True, slots=True)
class Ack:
    """Answer the writer with `status` (a code of ffs.errors, 0: durable) and free the buffer."""

    write_id: int
    status: int


@dataclass(frozen=True, slots=True)
class RefreshRouting:
    """Somebody knows a chain that we do not: ask the metadata server before the next heartbeat."""


@dataclass(frozen=True, slots=True)
class SetChainVersion:
    """From now on `target` lists its chunks to who asks for this version of its chain, or an older
    one: no write of an older version is acknowledged any more. 0: it has no chain."""

    target: int
    version: int


Operation = Persist | Forward | Ack | RefreshRouting | SetChainVersion
_ChunkKey = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one of our targets stands among the members of its chain that take writes."""

    chain: int
    version: int
    hop: int
    serving: int
    successor: tuple[int, int, int] | None
    """Node, target and place of the next member."""


@dataclass(slots=True)
class _Progress:
    """A write that has legs under way: how many are still out, and the first bad status.

    `owed_by`: node and hop of the next member, while its answer is out.
    """

    write: Write
    legs: int
    owed_by: tuple[int, int] | None = None
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
        self._routing = Routing(-1, [], [], [], [])
        self._chains: dict[int, ChainInfo] = {}
        self._places: dict[int, _Place] = {}
        self._versions: dict[int, int] = {}
        self._chunks: dict[_ChunkKey, _ChunkQueue] = {}
        self._active: dict[int, _Progress] = {}

    @property
    def routing_version(self) -> int:
        """The version of the routing in force; -1 before there is one."""
        return self._routing.version

    @property
    def writes_pending(self) -> int:
        """Writes taken in and not yet acknowledged."""
        return len(self._active) + sum(len(queue.waiting) for queue in self._chunks.values())

    @property
    def successors(self) -> set[tuple[int, int]]:
        """The nodes that we forward to, and as which hop, as of the routing in force."""
        following = (place.successor for place in self._places.values())
        return {(node, hop) for node, _, hop in filter(None, following)}

    @property
    def outdated_forwards(self) -> dict[int, tuple[int, int]]:
        """Writes of chains that have changed, and the node and hop that owes an answer to each.

        The next member may never give one, if its disk hangs, and nothing depends on it any more.
        """
        return {
            write_id: progress.owed_by
            for write_id, progress in self._active.items()
            if progress.owed_by is not None and not self._is_current(progress.write)
        }

    def routing_changed(self, routing: Routing) -> list[Operation]:
        """Take a routing table; one older than ours is ignored, whatever the order of arrival."""
        if routing.version < self.routing_version:
            return []
        self._routing = routing
        self._chains = {chain.chain: chain for chain in routing.chains}
        return [*self._take_places(), *self._refuse_outdated()]

    def add_target(self, target: int) -> list[Operation]:
        """A target was created: it may be member of a chain."""
        self._own_targets.add(target)
        return self._take_places()

    def target_stopped(self, target: int) -> list[Operation]:
        """Take no more writes for a target that met a disk error; what is under way just ends."""
        self._stopped.add(target)
        return []

    def target_revived(self, target: int) -> None:
        """Take writes again: its disk works."""
        self._stopped.discard(target)

    def goes_on_without(self, target: int) -> bool:
        """Tell whether writes need not wait for a target: another member of its chain serves, or
        none are made to it."""
        place = self._places.get(target)
        if place is None:
            return True
        itself = place.hop < place.serving
        return place.serving > itself

    def received(self, write: Write) -> list[Operation]:
        """Take in a write whose chunk has been received."""
        assert write.write_id not in self._active
        queue = self._chunks.get(_key(write))
        if queue is None or self._refusal(write) != OK:
            return self._start(write)
        queue.waiting.append(write)
        return []

    def persisted(self, write_id: int, status: int) -> list[Operation]:
        """The local leg of a write ended with `status`."""
        return self._leg_ended(write_id, status)

    def forwarded(self, write_id: int, status: int) -> list[Operation]:
        """The next member has answered with `status`, or cannot be reached.

        A connection that was lost is not the writer's: he is told that a member is unavailable.
        """
        if status == ConnectionLostError.code:
            status = UnavailableError.code
        self._active[write_id].owed_by = None
        operations = self._leg_ended(write_id, status)
        return [*operations, RefreshRouting()] if status == StaleChainError.code else operations

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

    # --- places in chains -------------------------------------------------------------------------

    def _take_places(self) -> list[Operation]:
        """Find where our targets stand; say of which the chain has another version now."""
        routing = self._routing
        states = chains.target_states(routing)
        nodes = {target.target: target.node for target in routing.targets}
        places: dict[int, _Place] = {}
        versions: dict[int, int] = {}
        for chain in routing.chains:
            own = self._own_targets.intersection(chain.targets)
            if not own:
                continue
            versions |= dict.fromkeys(own, chain.version)
            served = len(chains.serving(chain, states))
            members = chains.writable(chain, states)
            for hop, target in enumerate(members):
                if target in own:
                    following = members[hop + 1 : hop + 2]
                    successor = None
                    if following:
                        successor = (nodes[following[0]], following[0], hop + 1)
                    places[target] = _Place(chain.chain, chain.version, hop, served, successor)
        before, self._versions, self._places = self._versions, versions, places
        return [
            SetChainVersion(target, versions.get(target, 0))
            for target in sorted(self._own_targets)
            if before.get(target, 0) != versions.get(target, 0)
        ]

    def _refuse_outdated(self) -> list[Operation]:
        """Refuse what waits with an older version: its turn may not come before its writer's next
        attempt, on another member, waits for us."""
        operations: list[Operation] = []
        for queue in self._chunks.values():
            outdated = [write for write in queue.waiting if not self._is_current(write)]
            if outdated:
                queue.waiting = deque(w for w in queue.waiting if self._is_current(w))
                operations += [Ack(w.write_id, StaleChainError.code) for w in outdated]
        return operations

    # --- one write --------------------------------------------------------------------------------

    def _start(self, write: Write) -> list[Operation]:
        """Begin the legs of a write that has its chunk to itself, or refuse it."""
        status = self._refusal(write)
        if status != OK:
            operations: list[Operation] = [Ack(write.write_id, status)]
            if status == StaleChainError.code and self._is_behind(write):
                operations.append(RefreshRouting())
            return operations
        legs = self._legs(write)
        progress = _Progress(write, len(legs), _owed_by(legs))
        self._active[write.write_id] = progress
        queue = self._chunks.get(_key(write))
        if queue is None:
            self._chunks[_key(write)] = _ChunkQueue(progress)
        else:
            queue.active = progress
        return legs

    def _legs(self, write: Write) -> list[Operation]:
        """Return what makes a write durable: here, and on all members behind us."""
        place = self._places.get(write.target)
        if place is None or place.successor is None:
            return [Persist(write.write_id)]
        # The forward first: the next member's disk is the farther one.
        return [Forward(write.write_id, *place.successor), Persist(write.write_id)]

    def _refusal(self, write: Write) -> int:
        """Return why this write may not go on, as a code of ffs.errors; OK if it may."""
        if write.target in self._stopped:
            return TargetStoppedError.code
        if not self._is_current(write):
            return StaleChainError.code
        if write.hop == 0 and self._lacks_replicas(write.target):
            return TooFewReplicasError.code
        return OK

    def _is_current(self, write: Write) -> bool:
        """Tell whether the writer's view of the chain, and of our place in it, is ours."""
        place = self._places.get(write.target)
        return place is not None and (place.chain, place.version, place.hop) == (
            write.chain,
            write.chain_version,
            write.hop,
        )

    def _lacks_replicas(self, target: int) -> bool:
        """Tell whether fewer members of a target's chain serve than a write needs."""
        place = self._places.get(target)
        return place is None or place.serving < self._routing.min_replicas

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
        if not self._is_current(progress.write):
            # The chain changed meanwhile: whether all of *its* replicas have the chunk is unknown,
            # and what failed may be a member that is none any more.
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


def _owed_by(legs: list[Operation]) -> tuple[int, int] | None:
    return next(((leg.node, leg.hop) for leg in legs if isinstance(leg, Forward)), None)


def _key(write: Write) -> _ChunkKey:
    return (write.target, write.blob, write.chunk)
