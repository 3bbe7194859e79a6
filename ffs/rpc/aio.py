"""The RPC driver of servers: asyncio protocols on whatever loop runs (uvloop in our processes).

Previous hop: clients by ffs.rpc.blocking or `AsyncRpcClient`, let in by ffs.rpc.door; next hop: a
ServerConnection for each client, then the handlers, such as the metadata server's operations.

Server invariants: nothing but the handshake is read from a stranger; what all connections hold
together (request bytes, reply bytes, places) is bounded by docs/limits.md. Where a bound is reached
it is the one who has kept the others waiting longest that goes: the longest idle connection, the
oldest unfinished frame, the reply that is not taken. Connections within their pace never notice.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ffs.auth.verifier import TokenVerifier
from ffs.errors import BusyError, DeadlineError, InvalidError
from ffs.handshake import ClusterKey, HandshakeKind
from ffs.limits import (
    IDLE_MS_MIN,
    RPC_CONNECTIONS_MAX,
    RPC_SERVER_BYTES_MAX,
    RPC_SERVER_REPLY_BYTES_MAX,
)
from ffs.rpc._aio_client import AsyncRpcClient
from ffs.rpc._aio_connection import CLOSE_GRACE_MS, Handler, Peer, ServerConnection, end_of
from ffs.rpc._aio_tls import over
from ffs.rpc.codec import METHODS
from ffs.rpc.door import Door, listen
from ffs.rpc.greeting import Greeting
from ffs.rpc.room import Room
from ffs.rpc.shares import Shares
from ffs.seams import Clock, SystemClock
from ffs.tls import Tls
from ffs.wire.method import Method

log = logging.getLogger("ffs.rpc")

__all__ = ["AsyncRpcClient", "Handler", "Peer", "RpcServer"]

_TICK_S: Final = 0.5
"""How often the pace of peers is looked at."""


class RpcServer:
    """Serves methods to holders of the cluster key, and of tokens if `tokens` says which count.

    Args:    handlers: method name -> coroutine function of (request, Peer); it returns the reply,
             or raises FFSError, which travels typed. Any other exception is logged with its
             traceback and the client learns only that it happened; tls: lets nobody in without
    Threads: the running loop's alone; Fork: not after `start`
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        key: ClusterKey,
        *,
        max_connections: int = RPC_CONNECTIONS_MAX,
        methods: Mapping[str, Method[Any, Any]] = METHODS,
        clock: Clock | None = None,
        tls: Tls | None = None,
        tokens: TokenVerifier | None = None,
    ) -> None:
        unknown = handlers.keys() - methods.keys()
        if unknown:
            raise InvalidError(f"handlers for methods that do not exist: {sorted(unknown)}")
        self.handlers = dict(handlers)
        self.methods = dict(methods)
        self.clock = clock or SystemClock()
        self.request_bytes = 0
        """Of all connections: received, and in work."""
        self.replies: Room[ServerConnection] = Room(RPC_SERVER_REPLY_BYTES_MAX)
        self.receiving: dict[ServerConnection, None] = {}
        """Those with a frame that has begun or waits, the oldest first."""
        self.owing: dict[ServerConnection, None] = {}
        """Those whose client has not taken its replies, the longest so first."""
        self.idle: dict[ServerConnection, int] = {}
        """Those for which nothing is received, worked on or sent, and since when (ns), the longest
        so first."""
        self._key = key
        self._tls = tls
        self._tokens = tokens
        self._max_connections = max_connections
        self._listener: socket.socket | None = None
        self._door: Door | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._connections: dict[ServerConnection, str] = {}
        """And the hosts at their other ends, in the order in which they came."""
        self._shares = Shares()
        self._arriving: set[asyncio.Task[None]] = set()
        self._unheard: set[asyncio.Task[None]] = set()
        """Handlers at work whose clients are gone."""

    @property
    def connections(self) -> int:
        """How many connections there are, those in their handshake included."""
        return len(self._connections) + (self._door.strangers if self._door else 0)

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen and serve from now on; return the address, with the port chosen for port 0."""
        listener = await asyncio.get_running_loop().run_in_executor(None, listen, host, port)
        self._listener = listener
        self._door = Door(
            listener,
            self._key,
            HandshakeKind.RPC,
            admit=self._admit,
            welcome=self._welcome,
            tls=self._tls,
            tokens=self._tokens,
        )
        self._tasks = [
            asyncio.create_task(self._door.serve(), name="rpc door"),
            asyncio.create_task(self._watch(), name="rpc watch"),
        ]
        bound = listener.getsockname()
        return bound[0], bound[1]

    async def close(self, grace_ms: int = CLOSE_GRACE_MS) -> None:
        """Stop listening, let requests in progress finish and be answered, close. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await asyncio.gather(*self._arriving)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        closing = [connection.drain(grace_ms) for connection in self._connections]
        await asyncio.gather(*closing, end_of(self._unheard, grace_ms))

    # what connections tell and ask

    def forget(self, connection: ServerConnection) -> None:
        """Drop a connection that is gone from the count."""
        host = self._connections.pop(connection, None)
        if host is not None:
            self._shares.remove(host)
        self.idle.pop(connection, None)
        self.receiving.pop(connection, None)
        self.serve_waiting()

    def go_on_with(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        """Let handlers go on whose client is gone; `close` waits for them, too."""
        for task in tasks:
            self._unheard.add(task)
            task.add_done_callback(self._unheard.discard)

    @property
    def crowded(self) -> bool:
        """Whether requests have to be refused for want of memory."""
        return self.request_bytes > RPC_SERVER_BYTES_MAX

    def take_reply_room(self, connection: ServerConnection, size: int) -> bool:
        """Set room aside for a reply; False if the connection has to wait for its turn."""
        if self.replies.take(connection, size):
            return True
        self._shed_replies()
        return not connection.gone and self.replies.take(connection, size)

    def serve_waiting(self) -> None:
        """Let those who wait for reply room go on, the first first, while there is some."""
        while (first := self.replies.first_waiting) is not None:
            first.advance()
            if self.replies.first_waiting is first:
                return

    # who has to go

    def shed_requests(self) -> None:
        """Free memory for requests: unfinished frames go, the oldest first, then who is stalled."""
        for connection in [c for c in self.receiving if not c.waits]:
            if not self.crowded:
                return
            connection.cut(BusyError("no memory is left for a request that takes so long"))
        if self.crowded:
            self._shed_replies()

    def _shed_replies(self) -> None:
        now_ns = self.clock.monotonic_ns()
        for connection in [c for c in self.owing if c.stalls(now_ns)]:
            connection.cut(BusyError("others wait for the memory of replies that are not taken"))

    async def _watch(self) -> None:
        """Cut off, twice a second, who does not keep its pace."""
        while True:
            await asyncio.sleep(_TICK_S)
            await asyncio.sleep(0)  # what has arrived meanwhile counts
            now_ns = self.clock.monotonic_ns()
            for connection in [c for c in self.receiving if c.dawdles(now_ns)]:
                connection.cut(DeadlineError("a request that was begun did not come in"))
            if self.replies.first_waiting is not None:
                self._shed_replies()
                self.serve_waiting()

    # who comes in

    def _admit(self, guest: Greeting) -> bool:
        """Have a place for one more; who holds more than others makes it if somebody must, or else
        the longest idle connection."""
        if len(self._connections) < self._max_connections:
            return True
        greedy = self._shares.greedier_than(guest.host)
        if greedy is not None:
            self._take_place_of(greedy)
            return True
        if not self.idle:
            raise BusyError("too many connections")
        longest_idle, since_ns = next(iter(self.idle.items()))
        if self.clock.monotonic_ns() - since_ns < IDLE_MS_MIN * 1_000_000:
            return False  # what its client sends next may be on its way
        log.info("rpc_idle_connection_closed")
        longest_idle.leave()
        self.forget(longest_idle)
        return True

    def _take_place_of(self, host: str) -> None:
        """Close one connection of a host: the longest idle one, or else the oldest."""
        held = self._connections
        idle = (connection for connection in self.idle if held.get(connection) == host)
        victim = next(idle, None) or next(c for c, its in held.items() if its == host)
        victim.cut(BusyError("too many connections from one address; others want a place"))
        self.forget(victim)

    def _welcome(self, guest: Greeting) -> None:
        connection = ServerConnection(self, Peer(guest.address, guest.version, guest.claims))
        self._connections[connection] = guest.host
        self._shares.add(guest.host)
        task = asyncio.create_task(self._attach(connection, guest))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    async def _attach(self, connection: ServerConnection, guest: Greeting) -> None:
        protocol = over(guest.channel, connection)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, guest.sock)
        except OSError as error:
            guest.sock.close()
            self.forget(connection)
            facts = {"peer": guest.address, "reason": error.strerror}
            log.info("rpc_connection_lost", extra=facts)
