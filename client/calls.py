"""Calls of the metadata server: one logical call is as many attempts as its deadline allows.

Role: client/changes.py and client/meta.py build requests and call THIS; next hop is
ffs.rpc.blocking, one attempt at a time. What to do after a failed attempt is client/retry.py's
decision.

Invariant: a mutation keeps its 16 bytes over all attempts, so the server applies it once.

Threads: any;
Fork:    the child drops the parent's connections and is another client; answers stay as they age.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from ffs.client import _fork
from ffs.client.layouts import Route
from ffs.client.memory import Memory
from ffs.client.retry import Action, RetryPolicy
from ffs.errors import FFSError
from ffs.rpc.blocking import RpcClient
from ffs.seams import Clock, Randomness
from ffs.types import Layout
from ffs.wire import messages as wire
from ffs.wire.messages import Method

Req = TypeVar("Req")
Rep = TypeVar("Rep")
T = TypeVar("T")

_MS: Final = 1_000_000


class MetaCalls:
    """One client of the metadata server, and what it knows of the cluster.

    Args:    rpc: makes single attempts; deadline_ms: for an operation with all its retries;
             attr_ttl_ms: how long answers may be used (the server may say less)
    """

    def __init__(
        self,
        rpc: RpcClient,
        policy: RetryPolicy,
        clock: Clock,
        randomness: Randomness,
        *,
        deadline_ms: int,
        attr_ttl_ms: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rpc = rpc
        self._policy = policy
        self._clock = clock
        self._randomness = randomness
        self._deadline_ms = deadline_ms
        self._sleep = sleep
        self._cluster: wire.ClusterReply | None = None
        self._route: Route | None = None
        self.memory = Memory(clock, attr_ttl_ms)
        self.client_id = randomness.token(16)
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Become another client. What is remembered stays true for as long as it would have."""
        self._rpc.abandon()
        self.client_id = self._randomness.token(16)

    def close(self) -> None:
        """Close the connections."""
        self._rpc.close()

    # --- calling ------------------------------------------------------------------------------

    def call(self, method: Method[Req, Rep], request: Req) -> Rep:
        """Call with retries until the deadline.

        Raises:  the server's typed error; UnavailableError when it stayed out of reach;
                 DeadlineError
        """
        return self._retrying(lambda left_ms: self._rpc.call(method, request, deadline_ms=left_ms))

    def call_many(self, method: Method[Req, Rep], requests: Sequence[Req]) -> list[Rep]:
        """Call several times without waiting for each answer; all attempts are repeated
        together."""
        if len(requests) == 1:
            return [self.call(method, requests[0])]
        return self._retrying(
            lambda left_ms: self._rpc.call_pipelined(method, requests, deadline_ms=left_ms)
        )

    def _retrying(self, attempt: Callable[[int], T]) -> T:
        deadline_ns = self._clock.monotonic_ns() + self._deadline_ms * _MS
        rounds = 0
        left_ms = self._deadline_ms
        while True:
            try:
                return attempt(left_ms)
            except FFSError as error:
                remaining_ns = deadline_ns - self._clock.monotonic_ns()
                decision = self._policy.decide_call(error.code, rounds, remaining_ns)
                if decision.action is Action.FAIL:
                    raise
            rounds += 1
            self._sleep(decision.delay_ns / 1e9)
            left_ms = max(1, (deadline_ns - self._clock.monotonic_ns()) // _MS)

    def mutation(self) -> bytes:
        """Return the identity of one logical operation."""
        return self._randomness.token(16)

    # --- routing ------------------------------------------------------------------------------

    def route(self) -> Route:
        """Return the routing as last heard; asks for it the first time."""
        return self._route or self.refresh_route()

    def refresh_route(self) -> Route:
        """Ask for the routing and return it; an older answer never replaces a newer one."""
        cluster = self.call(wire.ROUTING, wire.RoutingRequest())
        route, known = Route(cluster.routing), self._route
        if known is not None and known.version >= route.version:
            return known
        self._cluster, self._route = cluster, route
        self.memory.limit(cluster.attr_ttl_ms)
        return route

    def cluster(self) -> wire.ClusterReply:
        """Return what the server said of itself: identity, session lifetime, default layout."""
        if self._cluster is None:
            self.refresh_route()
        assert self._cluster is not None
        return self._cluster

    @property
    def default_layout(self) -> Layout:
        """How files are laid out when the writer does not say."""
        return self.cluster().default_layout
