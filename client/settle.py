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

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from ffs import _reader
from ffs.client.connections import Address, Connections
from ffs.client.layouts import NO_TARGET, Route
from ffs.client.planner import PENDING
from ffs.client.retry import Action, Decision, History, RetryPolicy
from ffs.errors import OK, BusyError, DeadlineError, FFSError, UnavailableError
from ffs.seams import Clock

PARALLEL_BYTES_MIN: Final = 4 << 20
"""A node gets more than one connection for a call from this many bytes on: below it, one keeps up
and a second only adds system calls."""
_MS: Final = 1_000_000


class Job(Protocol):
    """The operations of one call, as the loop sees them."""

    ops: npt.NDArray[Any]

    def chain(self, index: int) -> int:
        """Return the chain that operation `index` belongs to."""

    def candidates(self, route: Route, chain: int) -> Sequence[int]:
        """Return the targets that may take operations of `chain`, best first."""

    def aim(self, index: int, target: int, route: Route) -> None:
        """Send operation `index` to `target` in the next submission."""

    def submit(
        self, connections: Sequence[_reader.Connection], deadline_ms: int, stall_ms: int
    ) -> int:
        """Run what is pending in the engine."""

    def error(self, index: int, status: int, route: Route) -> FFSError:
        """Return the error that says what failed on what."""


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
        *,
        route: Callable[[], Route],
        refresh: Callable[[], Route],
        connections_per_node: int,
        stall_ms: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.connections = connections
        self.policy = policy
        self.clock = clock
        self.route = route
        self._refresh = refresh
        self._connections_per_node = connections_per_node
        self._stall_ms = stall_ms
        self._sleep = sleep

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
        while True:
            self._submit(job, deadline_ns, histories, fresh=fresh)
            failed = np.flatnonzero(job.ops["status"]).tolist()
            if not failed:
                return
            fresh = self._decide(job, failed, histories, waiting, deadline_ns, failures)

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
        retrying = fresh = False
        for index in failed:
            if index in waiting:
                continue
            chain = job.chain(index)
            decision = self.policy.decide(
                histories.setdefault(index, History()),
                int(job.ops["status"][index]),
                int(job.ops["target"][index]),
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
                retrying = True
                fresh = fresh or decision.fresh_connection
            else:
                waiting[index] = decision
        if waiting and not retrying:
            self._wait(job, waiting)
        return fresh

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

    def _submit(
        self, job: Job, deadline_ns: int, histories: dict[int, History], *, fresh: bool
    ) -> None:
        route = self.route()
        leased: list[tuple[Address, _reader.Connection]] = []
        try:
            self._connect(job, route, deadline_ns, leased, fresh=fresh)
            if leased:
                stall_ms = self._stall(job, route, histories)
                job.submit([c for _, c in leased], self._left_ms(deadline_ns), stall_ms)
        finally:
            for address, connection in leased:
                self.connections.checkin(address, connection)

    def _connect(
        self,
        job: Job,
        route: Route,
        deadline_ns: int,
        leased: list[tuple[Address, _reader.Connection]],
        *,
        fresh: bool,
    ) -> None:
        """Lease connections to every node that pending operations go to, and number them."""
        ops = job.ops
        pending = ops["status"] == PENDING
        by_address: dict[Address, npt.NDArray[np.bool_]] = {}
        for target in np.unique(ops["target"][pending]).tolist():
            chosen = pending & (ops["target"] == target)
            address = route.address_of_node.get(route.node_of_target.get(target, -1))
            if address is None:
                ops["status"][chosen] = UnavailableError.code
            elif address in by_address:
                by_address[address] |= chosen
            else:
                by_address[address] = chosen
        for address, chosen in by_address.items():
            indexes = np.flatnonzero(chosen)
            first = len(leased)
            if self._lease(leased, address, ops["length"][indexes], deadline_ns, fresh=fresh):
                count = len(leased) - first
                ops["conn"][indexes] = first + np.arange(len(indexes)) % count
            else:
                ops["status"][indexes] = UnavailableError.code

    def _lease(
        self,
        leased: list[tuple[Address, _reader.Connection]],
        address: Address,
        lengths: npt.NDArray[Any],
        deadline_ns: int,
        *,
        fresh: bool,
    ) -> bool:
        """Lease as many connections to one node as its share of the bytes deserves."""
        wanted = 1
        if len(lengths) > 1 and int(lengths.sum(dtype=np.uint64)) >= PARALLEL_BYTES_MIN:
            wanted = min(self._connections_per_node, len(lengths))
        got = 0
        for _ in range(wanted):
            try:
                timeout_ms = self._left_ms(deadline_ns)
                connection = self.connections.checkout(address, timeout_ms=timeout_ms, fresh=fresh)
            except (UnavailableError, DeadlineError, BusyError):
                break
            leased.append((address, connection))
            got += 1
        return got > 0

    def _left_ms(self, deadline_ns: int) -> int:
        return max(1, (deadline_ns - self.clock.monotonic_ns()) // _MS)

    def _stall(self, job: Job, route: Route, histories: dict[int, History]) -> int:
        """Return the stall time: only where each operation could go somewhere else."""
        if not self._stall_ms or not route.replicated:
            return 0
        for index in np.flatnonzero(job.ops["status"] == PENDING).tolist():
            history = histories.get(index)
            tried = {int(job.ops["target"][index]), *(history.tried if history else ())}
            if all(t in tried for t in job.candidates(route, job.chain(index))):
                return 0
        return self._stall_ms
