"""Calls of the metadata server: one logical call is as many attempts as its deadline allows.

Role: client/changes.py and client/meta.py build requests and call THIS; next hop is
ffs.rpc.blocking, one attempt at a time. What to do after a failed attempt is client/retry.py's
decision.

Invariant: a mutation keeps its 16 bytes over all attempts, so it is applied once, whichever server
each attempt reaches. With several metadata servers an attempt has a part of the deadline, and the
next one goes elsewhere; which servers there are is asked of each that is new to us.

Threads: any;
Fork:    the child drops the parent's connections and is another client; answers stay as they age.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from ffs.client import _fork
from ffs.client.grants import Grants
from ffs.client.layouts import Route
from ffs.client.memory import Memory
from ffs.client.retry import Action, RetryPolicy
from ffs.errors import AuthError, DeadlineError, FFSError, UnavailableError
from ffs.rpc.addresses import Address
from ffs.rpc.blocking import Pipeline, RpcClient
from ffs.seams import Clock, Randomness
from ffs.types import Layout
from ffs.wire import auth
from ffs.wire import messages as wire
from ffs.wire.method import Method

Req = TypeVar("Req")
Rep = TypeVar("Rep")
T = TypeVar("T")

SERVERS_TRIED: Final = 3
"""Servers that may hang one after the other within the deadline of one call."""
ASK_MS: Final = 1_000
REQUESTS_AHEAD: Final = 4
"""Requests of `call_each` that wait for their replies: one in work, one that waits for it, and as
many again for the time in which the caller is busy."""
_MS: Final = 1_000_000
_GRANTING: Final = (wire.OpenManyReply, wire.CreateManyReply)


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
        self._teller: Address | None = None
        """The server that was asked last for the others."""
        self.grants: Grants | None = None
        """What a token's holder may read and write; None: we hold the cluster key."""
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

    def call(self, method: Method[Req, Rep], request: Req, *, deadline_ms: int = 0) -> Rep:
        """Call with retries until the deadline.

        Args:    deadline_ms: for what is known to take long; 0: `meta_deadline_ms`
        Raises:  the server's typed error; UnavailableError when it stayed out of reach;
                 DeadlineError
        """
        reply = self._retrying(
            lambda left_ms: self._rpc.call(method, request, deadline_ms=left_ms), deadline_ms
        )
        if isinstance(reply, wire.ClusterReply):
            self._take(reply)
        self._granted(reply)
        self._learn_servers()
        return reply

    def _granted(self, reply: object) -> None:
        if self.grants is not None and isinstance(reply, _GRANTING):
            self.grants.learn(reply.grants)

    def renew_grants(self, grants: list[bytes], before: bytes = b"") -> list[bytes]:
        """Return grants in place of others, good for longer.

        Args:    before: the token that our user had before this one, if grants may be that one's
        """
        return self.call(auth.RENEW_GRANTS, auth.RenewGrantsRequest(grants, before)).grants

    def call_on(self, path: str, method: Method[Req, Rep], request: Req) -> Rep:
        """Call like `call`; an error that names no path names `path`, as those of `os` do."""
        try:
            return self.call(method, request)
        except OSError as error:
            if isinstance(error, FFSError) and not error.retryable and "path" not in error.where:
                error.where["path"] = error.filename = path
            raise

    def call_many(self, method: Method[Req, Rep], requests: Sequence[Req]) -> list[Rep]:
        """Call several times without waiting for each answer; all attempts are repeated
        together."""
        if len(requests) <= 1:
            return [self.call(method, request) for request in requests]
        replies = self._retrying(
            lambda left_ms: self._rpc.call_pipelined(method, requests, deadline_ms=left_ms)
        )
        self._learn_servers()
        return replies

    def call_each(self, method: Method[Req, Rep], requests: Iterable[Req]) -> Iterator[Rep]:
        """Call with one request after the other, a few ahead of the replies, which are yielded in
        order.

        A request is made when there is room for it, so that the server works meanwhile; `requests`
        may wait for other calls' replies. Each has the deadline for itself. What was answered is
        not asked again, whatever happens to those behind it.
        Raises:  as `call`, once there is nothing more to come of what was sent
        """
        with self._rpc.pipeline(method) as line:
            try:
                for request in requests:
                    self._retrying(line.connect)
                    with contextlib.suppress(UnavailableError, DeadlineError):
                        line.send(request)  # else it is sent again with the next attempt
                    if len(line) >= REQUESTS_AHEAD:
                        yield self._next_reply(line)
                while len(line) > 1:
                    yield self._next_reply(line)
                last = [self._next_reply(line)] if len(line) else []
            except FFSError:
                line.settle()
                raise
        self._learn_servers()
        yield from last  # the connection is free for what the caller does with it

    def _next_reply(self, line: Pipeline[Req, Rep]) -> Rep:
        reply = self._retrying(line.reply)
        self._granted(reply)
        return reply

    def _retrying(self, attempt: Callable[[int], T], deadline_ms: int = 0) -> T:
        whole_ms = deadline_ms or self._deadline_ms
        deadline_ns = self._clock.monotonic_ns() + whole_ms * _MS
        rounds = 0
        left_ms = whole_ms
        cause: FFSError | None = None
        while True:
            key = self._rpc.credential()
            try:
                return attempt(self._patience_ms(left_ms, whole_ms))
            except FFSError as error:
                if isinstance(error, AuthError) and self._rpc.credential(look=True) is not key:
                    continue  # the token's file has another one now
                if cause is None or not isinstance(error, DeadlineError):
                    cause = error  # that the time is over says less than why
                remaining_ns = deadline_ns - self._clock.monotonic_ns()
                decision = self._policy.decide_call(_status(error), rounds, remaining_ns)
                if decision.action is Action.FAIL:
                    raise cause from None
            rounds += 1
            self._sleep(decision.delay_ns / 1e9)
            left_ms = max(1, (deadline_ns - self._clock.monotonic_ns()) // _MS)

    def _patience_ms(self, left_ms: int, whole_ms: int) -> int:
        """How long one attempt may take: not all there is if another server may be asked.

        Why: a server whose machine died says nothing, and its connections stay open.
        """
        if not self._rpc.addresses.several:
            return left_ms
        return min(left_ms, max(1, whole_ms // SERVERS_TRIED))

    def _learn_servers(self) -> None:
        """Ask a server that is new to us which others there are."""
        if self._rpc.addresses.order[0] == self._teller:
            return
        with contextlib.suppress(FFSError):  # else the next call asks again
            self._take(self._rpc.call(wire.ROUTING, wire.RoutingRequest(), deadline_ms=ASK_MS))

    def mutation(self) -> bytes:
        """Return the identity of one logical operation."""
        return self._randomness.token(16)

    # --- routing ------------------------------------------------------------------------------

    def route(self) -> Route:
        """Return the routing as last heard; asks for it the first time."""
        return self._route or self.refresh_route()

    def refresh_route(self) -> Route:
        """Ask for the routing and return it; an older answer never replaces a newer one."""
        self.call(wire.ROUTING, wire.RoutingRequest())
        assert self._route is not None
        return self._route

    def _take(self, cluster: wire.ClusterReply) -> None:
        addresses = self._rpc.addresses
        addresses.learn(cluster.servers)
        self._teller = addresses.order[0]
        route, known = Route(cluster.routing), self._route
        if known is None or known.version < route.version:
            self._cluster, self._route = cluster, route
            self.memory.limit(cluster.attr_ttl_ms)

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


def _status(error: FFSError) -> int:
    """What an attempt's failure means for the call: its own time being over is no final answer."""
    return UnavailableError.code if isinstance(error, DeadlineError) else error.code
