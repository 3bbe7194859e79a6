"""The RPC driver of servers: asyncio protocols on whatever loop runs (uvloop in our processes).

Previous hop: clients by ffs.rpc.blocking or `AsyncRpcClient`; next hop: the handlers, such as the
metadata server's operations.

Server invariants: nothing but the handshake is read from a stranger; a connection has at most
RPC_IN_FLIGHT_MAX requests being worked on and is not read from while it has, or while its client
does not take replies; every request is answered exactly once, in the order in which they finish.
Broken frames end the connection, after the client was told why; wrong or failed requests do not.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from ffs.errors import (
    BusyError,
    DeadlineError,
    FFSError,
    InvalidError,
    ProtocolError,
    UnavailableError,
)
from ffs.handshake import ClusterKey, HandshakeKind, accept, refuse
from ffs.limits import (
    HANDSHAKE_MS_MAX,
    RPC_CONNECTIONS_MAX,
    RPC_IN_FLIGHT_BYTES_MAX,
    RPC_IN_FLIGHT_MAX,
    RPC_SERVER_BYTES_MAX,
)
from ffs.rpc._aio_client import AsyncRpcClient
from ffs.rpc.codec import (
    CONNECTION_ERROR_ID,
    METHODS,
    FrameDecoder,
    RequestFrame,
    decode_request,
    encode_error,
    encode_reply,
    parse_request,
)
from ffs.seams import Clock, SystemClock
from ffs.wire.messages import Method

log = logging.getLogger("ffs.rpc")

__all__ = ["AsyncRpcClient", "Handler", "Peer", "RpcServer"]

_ACCEPT_PAUSE_S: Final = 0.1
_CLOSE_GRACE_MS: Final = 5_000
_BACKLOG: Final = 1_024


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a request: the authenticated connection it came by."""

    address: str
    version: int


Handler = Callable[[Any, Peer], Awaitable[Any]]


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
        self.running_bytes = 0
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
        self._running_bytes = 0
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
            self._break(error)
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
                self._break(error)
                return
            self._start(request, len(frame))
        self._read_on(not self._closing and self._room())

    def _room(self) -> bool:
        return (
            self._writable
            and len(self._running) < RPC_IN_FLIGHT_MAX
            and self._running_bytes < RPC_IN_FLIGHT_BYTES_MAX
        )

    def _read_on(self, wanted: bool) -> None:
        if self._transport is None or self._transport.is_closing() or wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _start(self, frame: RequestFrame, frame_bytes: int) -> None:
        """Begin to work on a request, or answer at once why not."""
        method = self._server.methods.get(frame.method)
        handler = self._server.handlers.get(frame.method)
        if method is None or handler is None:
            unknown = ProtocolError(
                f"no method {frame.method[:64]!r} here",
                hint="client and server versions may not go together",
            )
            self._send(encode_error(frame.request_id, unknown))
            return
        refused = self._refused(frame, frame_bytes)
        if refused is not None:
            self._send(encode_error(frame.request_id, refused))
            return
        try:
            request = parse_request(method, frame)
        except ProtocolError as error:  # the frame was whole: what follows it can still be read
            self._send(encode_error(frame.request_id, error))
            return
        self._account(frame_bytes)
        task = asyncio.create_task(self._run(frame.request_id, method, handler, request))
        self._running.add(task)
        task.add_done_callback(lambda done: self._finished(done, frame_bytes))

    def _refused(self, frame: RequestFrame, frame_bytes: int) -> FFSError | None:
        waited_ns = self._server.clock.monotonic_ns() - self._received_ns
        if frame.deadline_ms and waited_ns > frame.deadline_ms * 1_000_000:
            return DeadlineError(f"{frame.method} waited past its deadline; it was not started")
        if self._server.running_bytes + frame_bytes > RPC_SERVER_BYTES_MAX:
            return BusyError("the server has too many request bytes in work")
        return None

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

    def _finished(self, task: asyncio.Task[None], frame_bytes: int) -> None:
        self._running.discard(task)
        self._account(-frame_bytes)
        self._advance()

    def _account(self, frame_bytes: int) -> None:
        self._running_bytes += frame_bytes
        self._server.running_bytes += frame_bytes

    def _send(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def _break(self, error: ProtocolError) -> None:
        """Tell why and close: after broken bytes nothing on this connection means anything."""
        log.info("rpc_protocol_broken", extra={"peer": self._peer.address, "reason": error.message})
        self._closing = True
        self._send(encode_error(CONNECTION_ERROR_ID, error))
        if self._transport is not None:
            self._transport.close()
            # A client that does not even take this is cut off.
            asyncio.get_running_loop().call_later(_CLOSE_GRACE_MS / 1e3, self._transport.abort)
