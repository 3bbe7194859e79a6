"""The RPC driver of servers: asyncio protocols on whatever loop runs (uvloop in our processes).

Previous hop: clients by ffs.rpc.blocking or `AsyncRpcClient`; next hop: the handlers, such as the
metadata server's operations.

Server invariants: nothing but the handshake is read from a stranger; a connection has at most
RPC_IN_FLIGHT_MAX requests being worked on and is not read from while it has, or while its client
does not take replies; every request is answered exactly once, in the order in which they finish.
Broken bytes end the connection, after the client was told why; a failed request does not.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from ffs.errors import (
    BusyError,
    DeadlineError,
    FFSError,
    InvalidError,
    ProtocolError,
    UnavailableError,
)
from ffs.handshake import ClusterKey, HandshakeKind, accept, connect_async, refuse
from ffs.limits import (
    HANDSHAKE_MS_MAX,
    RPC_CONNECTIONS_MAX,
    RPC_IN_FLIGHT_MAX,
)
from ffs.rpc.codec import (
    CONNECTION_ERROR_ID,
    METHODS,
    FrameDecoder,
    ReplyFrame,
    RequestFrame,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
    parse_reply,
    parse_request,
)
from ffs.seams import Clock, SystemClock
from ffs.wire.messages import Method

log = logging.getLogger("ffs.rpc")

Req = TypeVar("Req")
Rep = TypeVar("Rep")

_ACCEPT_PAUSE_S: Final = 0.1
_CLOSE_GRACE_MS: Final = 5_000
_BACKLOG: Final = 1_024


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a request: the authenticated connection it came by."""

    address: str
    version: int


Handler = Callable[[Any, Peer], Awaitable[Any]]


# --- server ---------------------------------------------------------------------------------------


class RpcServer:
    """Serves methods to holders of the cluster key.

    Args:    handlers: method name -> coroutine function of (request, Peer); it returns the reply,
             or raises FFSError, which travels typed. Any other exception is logged with its
             traceback and the client learns only that it happened.
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
    ) -> None:
        unknown = handlers.keys() - methods.keys()
        if unknown:
            raise InvalidError(f"handlers for methods that do not exist: {sorted(unknown)}")
        self.handlers = dict(handlers)
        self.methods = dict(methods)
        self.clock = clock or SystemClock()
        self._key = key
        self._max_connections = max_connections
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._greeting: set[asyncio.Task[None]] = set()
        self._connections: set[_ServerConnection] = set()

    @property
    def connections(self) -> int:
        """How many connections there are, those in their handshake included."""
        return len(self._connections) + len(self._greeting)

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen and serve from now on; return the address, with the port chosen for port 0."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except OSError as error:
            raise UnavailableError(
                f"cannot listen: {error.strerror}",
                hint="another process may have this port; choose another, or 0 for any",
                address=f"{host}:{port}",
            ) from error
        listener.setblocking(False)
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener), name="rpc accept")
        bound = listener.getsockname()
        return bound[0], bound[1]

    async def close(self, grace_ms: int = _CLOSE_GRACE_MS) -> None:
        """Stop listening, let requests in progress finish and be answered, close. Idempotent."""
        tasks = [t for t in (self._accepting, *self._greeting) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._accepting = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        closing = [connection.drain(grace_ms) for connection in self._connections]
        await asyncio.gather(*closing)

    def forget(self, connection: _ServerConnection) -> None:
        """Drop a connection that is gone from the count."""
        self._connections.discard(connection)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or the client is gone: neither ends us
                log.warning("rpc_accept_failed", extra={"reason": error.strerror})
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            sock.setblocking(False)
            if self.connections >= self._max_connections:
                refuse(sock, BusyError("too many connections"))
                continue
            task = asyncio.create_task(self._greet(sock, f"{address[0]}:{address[1]}"))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _greet(self, sock: socket.socket, address: str) -> None:
        """Take a stranger through the handshake; serve it if it holds the key."""
        try:
            version = await accept(sock, self._key, HandshakeKind.RPC, timeout_ms=HANDSHAKE_MS_MAX)
        except FFSError as error:
            log.info("rpc_handshake_failed", extra={"peer": address, "reason": error.message})
            return
        connection = _ServerConnection(self, Peer(address, version))
        self._connections.add(connection)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except OSError as error:
            sock.close()
            self.forget(connection)
            log.info("rpc_connection_lost", extra={"peer": address, "reason": error.strerror})
        except BaseException:
            sock.close()
            self.forget(connection)
            raise


class _ServerConnection(asyncio.Protocol):
    """One client's connection: cuts requests, runs handlers, sends replies as they finish."""

    def __init__(self, server: RpcServer, peer: Peer) -> None:
        self._server = server
        self._peer = peer
        self._decoder = FrameDecoder()
        self._running: set[asyncio.Task[None]] = set()
        self._transport: asyncio.Transport | None = None
        self._received_ns = 0
        self._reading = True
        self._writable = True
        self._closing = False
        self._gone = asyncio.get_running_loop().create_future()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Start what has arrived whole."""
        self._received_ns = self._server.clock.monotonic_ns()
        try:
            self._decoder.feed(data)
        except ProtocolError as error:
            self._break(CONNECTION_ERROR_ID, error)
            return
        self._advance()

    def pause_writing(self) -> None:
        """The client does not take replies: start nothing more for it."""
        self._writable = False
        self._advance()

    def resume_writing(self) -> None:
        """The client takes replies again."""
        self._writable = True
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let running handlers end by themselves; their replies go nowhere."""
        self._closing = True
        self._transport = None
        self._server.forget(self)
        if not self._gone.done():
            self._gone.set_result(None)

    # ours

    async def drain(self, grace_ms: int) -> None:
        """Read no more, let running requests finish (cancel them after the grace), close."""
        self._closing = True
        self._advance()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=grace_ms / 1e3)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._transport is not None:
            self._transport.close()
            done, _ = await asyncio.wait([self._gone], timeout=grace_ms / 1e3)
            if not done and self._transport is not None:
                self._transport.abort()
                await self._gone

    def _advance(self) -> None:
        """Start whole requests while there is room; read on only if there still is."""
        while not self._closing and self._room():
            try:
                frame = self._decoder.next_frame()
                if frame is None:
                    break
                request = decode_request(frame)
            except ProtocolError as error:
                self._break(CONNECTION_ERROR_ID, error)
                return
            self._start(request)
        self._read_on(not self._closing and self._room())

    def _room(self) -> bool:
        return self._writable and len(self._running) < RPC_IN_FLIGHT_MAX

    def _read_on(self, wanted: bool) -> None:
        if self._transport is None or self._transport.is_closing() or wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _start(self, frame: RequestFrame) -> None:
        method = self._server.methods.get(frame.method)
        handler = self._server.handlers.get(frame.method)
        if method is None or handler is None:
            error = ProtocolError(
                f"no method {frame.method[:64]!r} here",
                hint="client and server versions may not go together",
            )
            self._send(encode_error(frame.request_id, error))
            return
        waited_ns = self._server.clock.monotonic_ns() - self._received_ns
        if frame.deadline_ms and waited_ns > frame.deadline_ms * 1_000_000:
            late = DeadlineError(f"{frame.method} waited past its deadline; it was not started")
            self._send(encode_error(frame.request_id, late))
            return
        try:
            request = parse_request(method, frame)
        except ProtocolError as error:
            self._break(frame.request_id, error)
            return
        task = asyncio.create_task(self._run(frame.request_id, method, handler, request))
        self._running.add(task)
        task.add_done_callback(self._finished)

    async def _run(
        self, request_id: int, method: Method[Any, Any], handler: Handler, request: Any
    ) -> None:
        try:
            reply = encode_reply(request_id, method, await handler(request, self._peer))
        except FFSError as error:
            reply = encode_error(request_id, error)
        except Exception:  # a bug in a handler must not take the server's other clients with it
            log.exception("rpc_handler_failed", extra={"method": method.name})
            hint = "the server's log has the details"
            reply = encode_error(request_id, FFSError("internal error", hint=hint))
        self._send(reply)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._advance()

    def _send(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def _break(self, request_id: int, error: ProtocolError) -> None:
        """Tell why and close: after broken bytes nothing on this connection means anything."""
        log.info("rpc_protocol_broken", extra={"peer": self._peer.address, "reason": error.message})
        self._closing = True
        self._send(encode_error(request_id, error))
        if self._transport is not None:
            self._transport.close()
            # A client that does not even take this is cut off.
            asyncio.get_running_loop().call_later(_CLOSE_GRACE_MS / 1e3, self._transport.abort)


# --- client ---------------------------------------------------------------------------------------


class AsyncRpcClient:
    """The blocking client's surface for coroutines: any number of calls share one connection.

    Threads: the running loop's alone; Fork: make a new one in the child
    """

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        key: ClusterKey,
        *,
        connect_ms: int = 5_000,
        clock: Clock | None = None,
    ) -> None:
        if not addresses:
            raise InvalidError("an RPC client needs at least one address")
        self._addresses = list(addresses)
        self._key = key
        self._connect_ms = connect_ms
        self._clock = clock or SystemClock()
        self._preferred = 0
        self._connecting = asyncio.Lock()
        self._connection: _ClientConnection | None = None
        self._closed = False

    async def call(self, method: Method[Req, Rep], request: Req, *, deadline_ms: int) -> Rep:
        """Send one request and return its reply; errors as RpcClient.call."""
        try:
            async with asyncio.timeout(deadline_ms / 1e3):
                connection = await self._usable()
                frame = await connection.request(method, request, deadline_ms)
        except DeadlineError:
            raise
        except TimeoutError as error:
            raise DeadlineError(
                f"{method.name} was not answered within {deadline_ms} ms"
            ) from error
        return parse_reply(method, frame)

    async def call_pipelined(
        self, method: Method[Req, Rep], requests: Sequence[Req], *, deadline_ms: int
    ) -> list[Rep]:
        """Send many requests without waiting in between; replies in order, or the first error."""
        results: list[Rep | BaseException] = []
        for first in range(0, len(requests), RPC_IN_FLIGHT_MAX):
            window = requests[first : first + RPC_IN_FLIGHT_MAX]
            calls = [self.call(method, r, deadline_ms=deadline_ms) for r in window]
            results += await asyncio.gather(*calls, return_exceptions=True)
        replies: list[Rep] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            replies.append(result)
        return replies

    async def close(self) -> None:
        """Close the connection; calls in progress get UnavailableError. Idempotent."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _usable(self) -> _ClientConnection:
        async with self._connecting:
            self._check_open()
            if self._connection is None or self._connection.lost:
                connection = await self._connect()
                try:
                    self._check_open()  # it may have been closed while this was being made
                except UnavailableError:
                    await connection.close()
                    raise
                self._connection = connection
            return self._connection

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("the RPC client has been closed")

    async def _connect(self) -> _ClientConnection:
        failure: FFSError | None = None
        for i in range(len(self._addresses)):
            place = (self._preferred + i) % len(self._addresses)
            host, port = self._addresses[place]
            try:
                sock = await connect_async(
                    host, port, self._key, HandshakeKind.RPC, timeout_ms=self._connect_ms
                )
            except (UnavailableError, DeadlineError) as error:
                failure = error
                continue
            self._preferred = place
            return await _ClientConnection(f"{host}:{port}").adopt(sock)
        assert failure is not None
        raise UnavailableError(failure.message, hint=failure.hint, **failure.where) from failure


class _ClientConnection(asyncio.Protocol):
    """One connection with the futures of its outstanding requests."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._ids = itertools.count(1)
        self._outstanding: dict[int, asyncio.Future[ReplyFrame]] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.get_running_loop().create_future()
        self.lost = False

    async def adopt(self, sock: socket.socket) -> _ClientConnection:
        """Take over an authenticated socket."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)
        except BaseException:
            sock.close()
            raise
        return self

    async def request(self, method: Method[Any, Any], request: Any, deadline_ms: int) -> ReplyFrame:
        """Send a request and wait for its reply."""
        await self._writable.wait()
        if self.lost or self._transport is None:
            raise self._lost_error("closed by the server")
        request_id = next(self._ids)
        frame = encode_request(request_id, method, request, deadline_ms)
        future = asyncio.get_running_loop().create_future()
        self._outstanding[request_id] = future
        try:
            self._transport.write(frame)
            reply: ReplyFrame = await future
        finally:
            # A reply that comes after this is of an id nobody waits for, and is dropped.
            self._outstanding.pop(request_id, None)
        return reply

    async def close(self) -> None:
        """Close and wait until the transport has let go of the socket."""
        if self._transport is not None:
            self._transport.abort()
        await self._gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand whole replies to whoever waits for them."""
        try:
            self._decoder.feed(data)
            while (frame := self._decoder.next_frame()) is not None:
                self._deliver(decode_reply(frame))
        except ProtocolError as error:
            self._fail(error)

    def _deliver(self, reply: ReplyFrame) -> None:
        if reply.request_id == CONNECTION_ERROR_ID:
            raise ProtocolError("the server broke the connection off: it could not read a request")
        future = self._outstanding.get(reply.request_id)
        if future is not None and not future.done():
            future.set_result(reply)

    def pause_writing(self) -> None:
        """The server does not read: hold further requests."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The server reads again."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail everything that still waits."""
        reason = str(exc) if exc is not None else "closed by the server"
        self._fail(self._lost_error(reason))
        self._transport = None
        if not self._gone.done():
            self._gone.set_result(None)

    def _fail(self, error: FFSError) -> None:
        self.lost = True
        self._writable.set()
        outstanding, self._outstanding = self._outstanding, {}
        for future in outstanding.values():
            if not future.done():
                future.set_exception(copy.copy(error))
        if self._transport is not None:
            self._transport.abort()

    def _lost_error(self, reason: str) -> UnavailableError:
        return UnavailableError(
            f"the connection to the server was lost: {reason}",
            hint="the request may or may not have been carried out; it is safe to send it again",
            address=self._address,
        )
