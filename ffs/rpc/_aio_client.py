"""The asyncio client: what ffs.rpc.aio offers to coroutines, such as a storage daemon's heartbeat.

Any number of calls share one connection; replies find their calls by request id. A call that was
cancelled or timed out leaves the connection usable: its late reply is dropped.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from ffs.errors import (
    ClosedError,
    DeadlineError,
    FFSError,
    ProtocolError,
    UnavailableError,
)
from ffs.handshake import Credential
from ffs.limits import RPC_IN_FLIGHT_MAX
from ffs.rpc._aio_tls import over
from ffs.rpc.addresses import CONNECT_ERRORS, Address, Addresses, graver, show_address
from ffs.rpc.codec import (
    CONNECTION_ERROR_ID,
    FrameDecoder,
    ReplyFrame,
    decode_reply,
    encode_request,
    parse_error,
    parse_outcome,
)
from ffs.rpc.dial import Line, dial_async
from ffs.tls import Tls
from ffs.wire.method import Method

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class AsyncRpcClient:
    """The blocking client's surface for coroutines: any number of calls share one connection.
    `addresses` are those of one logical server.

    Threads: the running loop's alone; Fork: make a new one in the child
    """

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        key: Credential,
        *,
        connect_ms: int = 5_000,
        tls: Tls | None = None,
    ) -> None:
        self.addresses = Addresses(addresses)
        self._key = key
        self._tls = tls
        self._connect_ms = connect_ms
        self._connecting = asyncio.Lock()
        self._connection: _ClientConnection | None = None
        self._closed = False

    async def call(self, method: Method[Req, Rep], request: Req, *, deadline_ms: int) -> Rep:
        """Send one request and return its reply; errors as RpcClient.call."""
        connection: _ClientConnection | None = None
        try:
            async with asyncio.timeout(deadline_ms / 1e3):
                connection = await self._usable()
                frame = await connection.request(method, request, deadline_ms)
        except DeadlineError:
            raise
        except TimeoutError as error:
            late = DeadlineError(f"{method.name} was not answered within {deadline_ms} ms")
            self._leave(connection, late)
            raise late from error
        try:
            outcome = parse_outcome(method, frame)
        except ProtocolError as error:
            connection.fail(error)
            raise
        if isinstance(outcome, FFSError):
            if isinstance(outcome, UnavailableError):
                self._leave(connection, outcome)
            raise outcome
        return outcome

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
                if self._connection is not None:
                    self.addresses.failed(self._connection.server)
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
            raise ClosedError("the RPC client has been closed")

    def _leave(self, connection: _ClientConnection | None, reason: FFSError) -> None:
        """Go to another server with the next call, if there is one: this one hangs, or cannot
        reach its database. Calls that wait on the connection are told, and made again."""
        if connection is not None and self.addresses.several:
            connection.fail(
                UnavailableError(f"the server was given up: {reason.message}", hint=reason.hint)
            )

    async def _connect(self) -> _ClientConnection:
        failure: FFSError | None = None
        for host, port in self.addresses.order:
            try:
                line = await dial_async(
                    host, port, self._key, self._tls, timeout_ms=self._connect_ms
                )
            except CONNECT_ERRORS as error:
                failure = graver(failure, error)
                self.addresses.failed((host, port))
                continue
            self.addresses.worked((host, port))
            return await _ClientConnection((host, port)).adopt(line)
        assert failure is not None
        if isinstance(failure, DeadlineError):  # of this attempt to connect, not of the call
            raise UnavailableError(failure.message, hint=failure.hint, **failure.where) from failure
        raise failure


class _ClientConnection(asyncio.Protocol):
    """One connection with the futures of its outstanding requests."""

    def __init__(self, server: Address) -> None:
        self.server = server
        self._address = show_address(*server)
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._ids = itertools.count(1)
        self._outstanding: dict[int, asyncio.Future[ReplyFrame]] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.get_running_loop().create_future()
        self.lost = False

    async def adopt(self, line: Line) -> _ClientConnection:
        """Take over an authenticated connection."""
        protocol = over(line.channel, self)
        try:
            await asyncio.get_running_loop().create_connection(lambda: protocol, sock=line.sock)
        except BaseException:
            line.sock.close()
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
            self.fail(error)

    def _deliver(self, reply: ReplyFrame) -> None:
        if reply.request_id == CONNECTION_ERROR_ID:
            self.fail(parse_error(reply))
            return
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
        self.fail(self._lost_error(reason))
        self._transport = None
        if not self._gone.done():
            self._gone.set_result(None)

    def fail(self, error: FFSError) -> None:
        """Use this connection no more; tell everybody who waits on it."""
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
