"""The loop around the C engine: submit, look at each operation's status, decide, submit again.

Role: client/reader.py and client/writer.py describe their operations as a `Job`; THIS runs it over
connections of client/connections.py and asks client/retry.py what to do with what failed.

Invariants: the engine is never given an operation twice at the same time, and it has returned, so
it lends no memory any more, before anything is decided, waited for or raised; when `settle`
returns, every operation has status 0.

Failure behaviour: the first operation that cannot be saved raises its typed error; what is
unfinished then is given up, its destinations are already revoked. A caller that wants to hear of
all of them, as client/verify.py does, takes a list.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from ffs import _reader
from ffs.chains import NO_TARGET
from ffs.client.connections import Connections
from ffs.client.grants import Grants
from ffs.client.layouts import Route
from ffs.client.planner import PENDING
from ffs.client.replicas import Address, Patience, Replicas
from ffs.client.retry import Action, Decision, History, RetryPolicy
from ffs.client.suspects import Suspects
from ffs.errors import (
    OK,
    BusyError,
    CancelledOperationError,
    ChecksumError,
    ChunkMissingError,
    ConnectionLostError,
    DeadlineError,
    FFSError,
    GrantError,
    StalledError,
    StorageIOError,
    TransportError,
    UnavailableError,
)
from ffs.seams import Clock

PARALLEL_BYTES_MIN: Final = 16 << 20
"""A node gets more than one connection for a call from this many bytes on. Below it, one keeps up
and a second only adds CPU time: on loopback a fifth to calls of 4 or 8 MiB, 2 % to those of 32."""
PROBE_MS: Final = 60_000
"""A probe may take as long as any attempt to connect (client.connect_ms)."""
WRITE_STALL_MS: Final = 2_500
"""A chain's head that has taken or said nothing of its writes for so long is asked for anew:
writers wait for a dead one little longer than the cluster does. Less would be of no use, since a
chain goes round its head when a lease has ended, and does harm: a disk that needs a second for what
writers have under way would be sent all of it again. A head that is alive and has the chunk says so
at once."""
REPORTS_MAX: Final = 1_024
"""Damaged chunks that one client names in its log; `read_counters` counts all."""
LOCAL_VERDICTS: Final = (
    OK,
    StalledError.code,
    DeadlineError.code,
    CancelledOperationError.code,
)
"""What a local connection says that TCP would say as well, after as long a wait."""
_MS: Final = 1_000_000
_COUNTED: Final = {
    StalledError.code: "stalled",
    ConnectionLostError.code: "lost",
    UnavailableError.code: "unreachable",
    ChecksumError.code: "damaged",
    ChunkMissingError.code: "missing",
}


_SUSPECT: Final = frozenset({ChecksumError.code, ChunkMissingError.code, StorageIOError.code})
"""What the daemon should look into: a chunk that did not come though it serves."""

log = logging.getLogger("ffs.client.settle")


class Job(Protocol):
    """The operations of one call, as the loop sees them."""

    ops: npt.NDArray[Any]
    reads: bool
    """Whether operations may go over the same host, where that which fails is done over TCP."""
    writes: bool
    """Whether they are writes, which go to the heads of chains."""
    device: bool
    """Whether what is read into is memory of a device, which RDMA alone reaches."""

    def chain(self, index: int) -> int:
        """Return the chain that operation `index` belongs to."""

    def candidates(self, route: Route, chain: int) -> Sequence[int]:
        """Return the targets that may take operations of `chain`, best first."""

    def aim(self, index: int, target: int, route: Route) -> None:
        """Send operation `index` to `target` in the next submission."""

    def movable(self, route: Route) -> npt.NDArray[np.bool_] | bool:
        """Return of each operation, or of all, whether another target could do it as well, now or
        when the one it goes to has been replaced."""

    def submit(
        self, connections: Sequence[_reader.Connection], deadline_ms: int, patience: Patience
    ) -> int:
        """Run what is pending in the engine."""

    def error(self, index: int, status: int, route: Route) -> FFSError:
        """Return the error that says what failed on what."""


@dataclass(slots=True)
class _Leg:
    """What one submission has to do with one node: some operations, and the connections that
    share them. `stall_ms` is how long the node may say nothing; 0: until the deadline.
    `falls_back`: TCP does what they cannot."""

    address: Address
    indexes: npt.NDArray[np.intp]
    stall_ms: int
    connections: list[_reader.Connection]
    falls_back: bool = False


def left_to_tcp(statuses: npt.NDArray[np.uint16], *, local: bool) -> npt.NDArray[np.bool_]:
    """Return which operations with these statuses TCP is to do: what a local connection failed to
    do, and what RDMA cannot do with the caller's memory."""
    if local:
        return ~np.isin(statuses, LOCAL_VERDICTS)
    unfit: npt.NDArray[np.bool_] = statuses == TransportError.code
    return unfit


def _fall_back(job: Job, leg: _Leg) -> bool:
    """Have done again what is left to TCP; whether there is any."""
    if not leg.falls_back:
        return False
    statuses = job.ops["status"][leg.indexes]
    failed = leg.indexes[left_to_tcp(statuses, local=leg.connections[0].local)]
    job.ops["status"][failed] = PENDING
    return len(failed) > 0


def _blobs(ops: npt.NDArray[Any]) -> list[int]:
    found: list[int] = np.unique(ops["blob"]).tolist()
    return found


def in_thread(function: Callable[[], None]) -> None:
    """Run a function beside everything else."""
    threading.Thread(target=function, name="ffs-probe", daemon=True).start()


def _all_pending_for(target: int, ops: npt.NDArray[Any]) -> bool:
    """Return whether all operations are pending and for `target`: the common case, quickly."""
    return bool((ops["target"] == target).all() and (ops["status"] == PENDING).all())


class Settler:
    """Runs jobs; one per file system object.

    Args:    route, refresh: give the routing as known, and as the metadata server has it now
    Threads: any number of concurrent calls, each drives its own connections;
    Fork:    holds nothing but references to things that re-make themselves
    """

    def __init__(
        self,
        connections: Connections,
        policy: RetryPolicy,
        clock: Clock,
        replicas: Replicas,
        *,
        route: Callable[[], Route],
        refresh: Callable[[], Route],
        connections_per_node: int,
        stall_ms: int,
        grants: Grants | None = None,
        sleep: Callable[[float], None] = time.sleep,
        aside: Callable[[Callable[[], None]], None] = in_thread,
    ) -> None:
        self.connections = connections
        self.policy = policy
        self.clock = clock
        self.replicas = replicas
        self.route = route
        self._refresh = refresh
        self._connections_per_node = connections_per_node
        self.stall_ms = stall_ms
        self._grants = grants
        self._reported: set[tuple[object, ...]] = set()
        self._sleep = sleep
        self._aside = aside
        self._suspects = Suspects(connections, clock, aside)

    def settle(
        self, job: Job, deadline_ns: int, failures: list[tuple[int, FFSError]] | None = None
    ) -> None:
        """Run every pending operation of `job` to its end, or raise.

        Args:    failures: given, takes (index, error) of each operation that cannot be saved, and
                 the others go on
        Copies:  none here; Threads: blocks the caller, the engine releases the GIL
        """
        histories: dict[int, History] = {}
        waiting: dict[int, Decision] = {}
        fresh = False
        try:
            while True:
                self._submit(job, deadline_ns, histories, fresh=fresh)
                if not job.ops["status"].any():
                    return
                failed = np.flatnonzero(job.ops["status"]).tolist()
                fresh = self._decide(job, failed, histories, waiting, deadline_ns, failures)
        finally:
            self._suspects.send_soon()

    def _decide(
        self,
        job: Job,
        failed: list[int],
        histories: dict[int, History],
        waiting: dict[int, Decision],
        deadline_ns: int,
        failures: list[tuple[int, FFSError]] | None,
    ) -> bool:
        """Aim what failed at other targets, or wait; return whether fresh connections are
        wanted."""
        route = self.route()
        remaining_ns = deadline_ns - self.clock.monotonic_ns()
        counters = self.replicas.counters
        retrying = fresh = False
        for index in failed:
            if index in waiting:
                continue
            chain = job.chain(index)
            status, target = int(job.ops["status"][index]), int(job.ops["target"][index])
            if status in _COUNTED and not job.writes:
                name = _COUNTED[status]
                setattr(counters, name, getattr(counters, name) + 1)
            if status == ChecksumError.code:
                self._report(job.error(index, status, route))
            if status in _SUSPECT and not job.writes and self._grants is None:
                self._suspect(job.ops[index], route)
            decision = self.policy.decide(
                histories.setdefault(index, History()),
                status,
                target,
                job.candidates(route, chain),
                members=route.members(chain),
                remaining_ns=remaining_ns,
            )
            if decision.action is Action.FAIL:
                error = job.error(index, decision.status, route)
                if failures is None:
                    raise error
                failures.append((index, error))
                job.ops["status"][index] = OK
                continue
            if decision.action is Action.RETRY:
                job.aim(index, decision.target, route)
                counters.failed_over += decision.target != target
                retrying = True
                fresh = fresh or decision.fresh_connection
            else:
                waiting[index] = decision
        if waiting and not retrying:
            self._wait(job, waiting)
        return fresh

    def _report(self, error: FFSError) -> None:
        """Say once of each damaged chunk that a replica of it is: another one may well serve."""
        place = (error.where.get("target"), error.where.get("blob"), error.where.get("chunk"))
        if place not in self._reported and len(self._reported) < REPORTS_MAX:
            self._reported.add(place)
            log.warning("replica_damaged", extra=error.where)

    def _suspect(self, op: Any, route: Route) -> None:
        """Remember to tell the daemon that what it sent was not right."""
        target = int(op["target"])
        address = route.address(target)
        if address is not None:
            names = ("blob", "chunk", "offset", "length")
            place = {name: int(op[name]) for name in names}
            self._suspects.note(address, target=target, **place)

    def _wait(self, job: Job, waiting: dict[int, Decision]) -> None:
        self._sleep(min(d.delay_ns for d in waiting.values()) / 1e9)
        refresh = any(d.refresh for d in waiting.values())
        route = self._refresh() if refresh else self.route()
        for index in waiting:
            candidates = job.candidates(route, job.chain(index))
            if candidates:
                job.aim(index, candidates[0], route)
            else:
                job.ops["target"][index] = NO_TARGET
                job.ops["status"][index] = UnavailableError.code
        waiting.clear()

    # --- one submission -------------------------------------------------------------------------

    def _submit(
        self, job: Job, deadline_ns: int, histories: dict[int, History], *, fresh: bool
    ) -> None:
        again = self._submit_once(job, deadline_ns, histories, fresh=fresh, reads=job.reads)
        if again:
            self._submit_once(job, deadline_ns, histories, fresh=fresh, reads=False, plain=True)
        if self._grants is not None:
            refused = job.ops["status"] == GrantError.code
            if refused.any():
                self._grants.doubt(_blobs(job.ops[refused]), writes=job.writes)
                job.ops["status"][refused] = PENDING
                self._submit_once(job, deadline_ns, histories, fresh=fresh, reads=False)
        self.probe()

    def _submit_once(
        self,
        job: Job,
        deadline_ns: int,
        histories: dict[int, History],
        *,
        fresh: bool,
        reads: bool,
        plain: bool = False,
    ) -> bool:
        """Run what is pending; return whether some that failed is to be done by TCP (`plain`): what
        TCP has to say of it counts."""
        route = self.route()
        legs: list[_Leg] = []
        try:
            for leg in self._legs(job, route, histories):
                first = sum(len(other.connections) for other in legs)
                legs.append(leg)
                self._lease(job, leg, deadline_ns, fresh=fresh, reads=reads, plain=plain)
                job.ops["conn"][leg.indexes] = first  # the others help that one
                self.show(leg.connections, job.ops[leg.indexes], writes=job.writes)
            if any(leg.connections for leg in legs):
                self._run(job, [leg for leg in legs if leg.connections], deadline_ns)
        finally:
            for leg in legs:
                for connection in leg.connections:
                    self.connections.checkin(leg.address, connection)
        return sum(_fall_back(job, leg) for leg in legs if leg.connections) > 0

    def show(
        self,
        connections: Sequence[_reader.Connection],
        ops: npt.NDArray[Any],
        *,
        writes: bool = False,
    ) -> None:
        """Show connections what these operations take, where blobs are granted one by one."""
        if self._grants is not None:
            blobs = _blobs(ops)
            for connection in connections:
                self._grants.show(connection, blobs, writes=writes)

    def _legs(self, job: Job, route: Route, histories: dict[int, History]) -> list[_Leg]:
        """Group pending operations by node and by how long that node may say nothing to them."""
        ops = job.ops
        address = route.address(route.sole_target) if route.sole_target else None
        if address is not None and _all_pending_for(route.sole_target, ops):
            return [_Leg(address, np.arange(len(ops)), 0, [])]
        pending = np.flatnonzero(ops["status"] == PENDING)
        targets, patience = ops["target"][pending], self._patience(job, route, pending, histories)
        groups: dict[tuple[Address, int], list[npt.NDArray[np.intp]]] = {}
        for target in np.unique(targets).tolist():
            here = targets == target
            address = route.address(target)
            if address is None:
                ops["status"][pending[here]] = UnavailableError.code
                continue
            for stall_ms in np.unique(patience[here]).tolist():
                chosen = pending[here & (patience == stall_ms)]
                groups.setdefault((address, stall_ms), []).append(chosen)
        return [
            _Leg(address, np.sort(np.concatenate(parts)), stall_ms, [])
            for (address, stall_ms), parts in groups.items()
        ]

    def _patience(
        self,
        job: Job,
        route: Route,
        pending: npt.NDArray[np.intp],
        histories: dict[int, History],
    ) -> npt.NDArray[np.int64]:
        """Return for each pending operation how many ms its target may say nothing; 0: no end."""
        patience = np.zeros(len(job.ops), dtype=np.int64)
        if self.stall_ms and route.replicated:
            patience[job.movable(route)] = WRITE_STALL_MS if job.writes else self.stall_ms
            for index, history in histories.items():
                if patience[index] and not job.writes:
                    patience[index] = self.policy.patience_ms(history, self.stall_ms)
        return patience[pending]

    def idle(self, address: Address, count: int, total: int) -> list[_reader.Connection]:
        """Take what connections a read of `count` ranges, `total` bytes, would be given, if so many
        are idle; else none."""
        wanted = 1 if total < PARALLEL_BYTES_MIN else min(self._connections_per_node, count)
        return self.connections.idle_alike(address, wanted)

    def _lease(
        self, job: Job, leg: _Leg, deadline_ns: int, *, fresh: bool, reads: bool, plain: bool
    ) -> None:
        """Lease as many connections to a node as its share of the bytes deserves."""
        wanted = min(self._connections_per_node, len(leg.indexes))
        if wanted > 1:
            lengths = job.ops["length"][leg.indexes]
            wanted = wanted if int(lengths.sum(dtype=np.uint64)) >= PARALLEL_BYTES_MIN else 1
        for _ in range(wanted):
            timeout_ms = self._left_ms(deadline_ns)
            if leg.stall_ms:
                timeout_ms = min(timeout_ms, leg.stall_ms)
            try:
                # A local one is the only one: behind one by TCP none is asked for.
                connection = self.connections.checkout(
                    leg.address,
                    timeout_ms=timeout_ms,
                    fresh=fresh,
                    reads=reads and not leg.connections,
                    own_domain=job.writes or job.device,
                    plain=plain,
                )
            except (UnavailableError, DeadlineError, BusyError) as error:
                self._unreachable(job, leg, error)
                return
            leg.connections.append(connection)
            leg.falls_back = not job.device and (
                connection.local or self.connections.falls_back(connection)
            )
            if connection.local:
                return  # the calling thread reads: a second one would only locate once more

    def _unreachable(self, job: Job, leg: _Leg, error: FFSError) -> None:
        """A node gave us no connection, or no more than we have."""
        if leg.connections:
            return
        silent = bool(leg.stall_ms) and isinstance(error, DeadlineError)
        job.ops["status"][leg.indexes] = (StalledError if silent else UnavailableError).code
        if leg.stall_ms:
            self.replicas.failed(leg.address)

    def _run(self, job: Job, legs: list[_Leg], deadline_ns: int) -> None:
        """Submit, and remember how each node did."""
        connections = [c for leg in legs for c in leg.connections]
        deadline_ms = self._left_ms(deadline_ns)
        if not any(leg.stall_ms for leg in legs):
            job.submit(connections, deadline_ms, Patience((0,) * len(connections)))
            return
        stall_ms = [leg.stall_ms for leg in legs for _ in leg.connections]
        if job.writes:  # a head may be late for the sake of another member: it is not doubted
            job.submit(connections, deadline_ms, Patience(stall_ms))
            return
        indexes = np.concatenate([leg.indexes for leg in legs])
        length = int(job.ops["length"][indexes].sum(dtype=np.uint64))
        hedge_ms, hedge_ranges = self.replicas.hedge(length)
        started_ns, hedged = self.clock.monotonic_ns(), 0
        try:
            job.submit(connections, deadline_ms, Patience(stall_ms, hedge_ms, hedge_ranges))
            hedged = int((job.ops["status"][indexes] == CancelledOperationError.code).sum())
        finally:
            took_ns = self.clock.monotonic_ns() - started_ns
            self.replicas.finished(
                length, len(indexes), took_ns, hedged=hedged, set_aside=hedge_ranges
            )
        for leg in legs:
            self._observe(job, leg)

    def _observe(self, job: Job, leg: _Leg) -> None:
        statuses = job.ops["status"][leg.indexes]
        if (statuses == StalledError.code).any():
            self.replicas.failed(leg.address)
            return
        done, late = statuses == OK, (statuses == CancelledOperationError.code).any()
        if late or done.all():
            length = int(job.ops["length"][leg.indexes][done].sum(dtype=np.uint64))
            busy_ns = max(connection.served_ns for connection in leg.connections)
            tell = self.replicas.late if late else self.replicas.served
            tell(leg.address, length, busy_ns)

    # --- nodes that did not answer --------------------------------------------------------------

    def probe(self) -> None:
        """Have the doubted nodes tried that are due, beside the reads that go elsewhere."""
        for address in self.replicas.due():
            self._aside(lambda address=address: self._probe(address))  # type: ignore[misc]

    def _probe(self, address: Address) -> None:
        with contextlib.suppress(FFSError):
            connection = self.connections.checkout(address, timeout_ms=PROBE_MS, fresh=True)
            self.connections.checkin(address, connection)
            self.replicas.reached(address)
            return
        with contextlib.suppress(FFSError):  # it may have another address by now
            if address not in self._refresh().address_of_node.values():
                self.replicas.forget(address)

    def _left_ms(self, deadline_ns: int) -> int:
        return max(1, (deadline_ns - self.clock.monotonic_ns()) // _MS)
