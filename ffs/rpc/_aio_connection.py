"""One client's connection to an RPC server: cuts requests, runs handlers, sends replies.

Previous hop: ffs.rpc.aio, which let the client in; next hop: the handlers. A request passes from
the decoder, once there is room for its reply, into work, and its reply from there to the transport,
as soon as that has sent what went before.

Invariants: what is held for the client is counted at the server at every moment: request bytes from
their arrival to the end of their work, reply bytes from before the work (a reserve) until the
socket has taken them. Every request is answered exactly once, in the order in which they finish.
Failure behaviour: broken frames end the connection, after the client was told why; wrong or failed
requests do not.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from ffs.auth import audit
from ffs.auth.token import Claims
from ffs.errors import BusyError, DeadlineError, FFSError, ProtocolError
from ffs.limits import (
    RPC_FRAME_BYTES_MAX,
    RPC_IN_FLIGHT_BYTES_MAX,
    RPC_IN_FLIGHT_MAX,
    RPC_REPLY_BYTES_MAX,
    RPC_REPLY_RESERVE_BYTES,
    RPC_REPLY_RESERVE_FACTOR,
)
from ffs.rpc.codec import (
    CONNECTION_ERROR_ID,
    FrameDecoder,
    RequestFrame,
    decode_request,
    encode_error,
    encode_reply,
    parse_request,
)
from ffs.rpc.room import too_slow
from ffs.wire.method import Method

if TYPE_CHECKING:
    from ffs.rpc.aio import RpcServer

log = logging.getLogger("ffs.rpc")

CLOSE_GRACE_MS: Final = 5_000
_TRANSPORT_BYTES_MAX: Final = 16 << 10
"""What a transport may hold unsent before it is full, besides the frame that filled it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a request: the authenticated connection it came by."""

    address: str
    version: int
    claims: Claims | None = None
    """Whom its token speaks for; None: it holds the cluster key."""


Handler = Callable[[Any, Peer], Awaitable[Any]]


def reserve_bytes(frame_bytes: int) -> int:
    """Return the room that the reply to a request of so many bytes may need."""
    wanted = RPC_REPLY_RESERVE_BYTES + RPC_REPLY_RESERVE_FACTOR * frame_bytes
    return min(wanted, RPC_FRAME_BYTES_MAX)


async def end_of(tasks: Collection[asyncio.Task[None]], grace_ms: int) -> None:
    """Wait until tasks have ended; after the grace they are cancelled."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=grace_ms / 1e3)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)


class ServerConnection(asyncio.Protocol):
    """The protocol object of one client. Threads: the running loop's alone."""

    def __init__(self, server: RpcServer, peer: Peer) -> None:
        self._server = server
        self._peer = peer
        self._decoder = FrameDecoder()
        self._buffered_bytes = 0
        self._received_ns = 0
        self._begun_ns = 0  # when the frame in the decoder began, or reading was resumed
        self._running: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None]] = set()  # those of them whose methods wait
        self._running_bytes = 0
        self._unsent: deque[bytes] = deque()
        self._reply_bytes = 0  # reserved, in `_unsent`, and filling the transport
        self._filling_bytes = 0
        self._full_since_ns = 0
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._writable = True
        self._closing = False
        self._idle = False
        self.waits = False
        """Whether a whole request is here that has not been started."""
        self._gone = asyncio.get_running_loop().create_future()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_TRANSPORT_BYTES_MAX)
        if self._closing:  # its place was taken before it was here
            self._transport.abort()
        self._account()

    def data_received(self, data: bytes) -> None:
        """Start what has arrived whole."""
        self._received_ns = self._server.clock.monotonic_ns()
        try:
            self._decoder.feed(data)
        except ProtocolError as error:
            self._break(error)
            return
        self._count_buffered()
        if self._server.crowded:
            self._server.shed_requests()
        self.advance()

    def pause_writing(self) -> None:
        """The transport is full: keep further replies until the client has taken these."""
        self._writable = False
        self._full_since_ns = self._server.clock.monotonic_ns()
        self._server.owing[self] = None

    def resume_writing(self) -> None:
        """The client has taken all but a few bytes: hand the next replies over."""
        self._writable = True
        self._server.owing.pop(self, None)
        self._owe(-self._filling_bytes)
        self._filling_bytes = 0
        while self._unsent and self._writable:
            frame = self._unsent.popleft()
            self._owe(-len(frame))
            self._send(frame)
        self.advance()
        self._server.serve_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let handlers that work end by themselves; their replies go nowhere."""
        self._closing = True
        self._transport = None
        self._cancel_waiting()
        self._server.go_on_with(self._running)
        self._let_go()
        self._server.forget(self)
        if not self._gone.done():
            self._gone.set_result(None)

    # what the server asks

    @property
    def gone(self) -> bool:
        """Whether it is closed or about to be."""
        return self._closing

    def dawdles(self, now_ns: int) -> bool:
        """Whether the client sends the frame that it began too slowly."""
        if not self._reading or self.waits:
            return False  # it is us who keep it waiting
        return too_slow(self._buffered_bytes, now_ns - self._begun_ns, crowded=False)

    def stalls(self, now_ns: int) -> bool:
        """Whether the client takes its replies too slowly for others to wait for their memory."""
        if self._transport is None or self._writable:
            return False
        left = self._transport.get_write_buffer_size()
        taken = max(0, self._filling_bytes - left)
        return too_slow(taken, now_ns - self._full_since_ns, crowded=True)

    def cut(self, error: FFSError) -> None:
        """Tell why, as far as that fits, and close at once; what it holds is free on return."""
        log.info("rpc_connection_cut", extra={"peer": self._peer.address, "reason": error.message})
        self._closing = True
        if self._transport is not None:
            if self._writable:
                self._send(encode_error(CONNECTION_ERROR_ID, error))
                self._finish()
            else:
                self._transport.abort()
        self._let_go()

    def leave(self) -> None:
        """Close an idle connection: the client opens another one when it needs it."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    async def drain(self, grace_ms: int) -> None:
        """Read no more, let running requests finish (cancel them after the grace), close."""
        self._closing = True
        self._server.replies.leave(self)
        self._cancel_waiting()
        self.advance()
        await end_of(self._running, grace_ms)
        if self._transport is not None:
            self._finish()
            done, _ = await asyncio.wait([self._gone], timeout=grace_ms / 1e3)
            if not done and self._transport is not None:
                self._transport.abort()
                await self._gone

    def advance(self) -> None:
        """Start whole requests while there is room; read on only if there still is."""
        size = None
        try:
            while not self._closing:
                size = self._decoder.whole_frame_bytes
                if size is None:
                    break
                reserve = 0 if self._server.crowded else reserve_bytes(size)
                if not self._take_room(reserve):
                    break
                self._start(reserve)
        except ProtocolError as error:
            self._break(error)
            return
        self.waits = size is not None
        self._read_on(not self._closing and not self.waits and self._works_less_than_allowed())
        self._account()

    # ours

    def _works_less_than_allowed(self) -> bool:
        return (
            len(self._running) < RPC_IN_FLIGHT_MAX and self._running_bytes < RPC_IN_FLIGHT_BYTES_MAX
        )

    def _take_room(self, reserve: int) -> bool:
        """Set room aside for the reply to the next request; False if the request has to wait."""
        too_many = self._reply_bytes > 0 and self._reply_bytes + reserve > RPC_REPLY_BYTES_MAX
        if too_many or not self._works_less_than_allowed():
            self._server.replies.leave(self)  # others may have the turn: we wait for ourselves
            return False
        if reserve and not self._server.take_reply_room(self, reserve):
            return False
        self._reply_bytes += reserve
        return True

    def _read_on(self, wanted: bool) -> None:
        if self._transport is None or self._transport.is_closing() or wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._begun_ns = 0  # the time that we did not read does not count
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _account(self) -> None:
        """Tell the server what is held here now."""
        self._count_buffered()
        if self._buffered_bytes and not self._begun_ns:
            self._begun_ns = self._server.clock.monotonic_ns()
            self._server.receiving.pop(self, None)  # behind those that began before
            self._server.receiving[self] = None
        elif not self._buffered_bytes and self._begun_ns:
            self._frame_is_here()
        idle = not (self._running or self._buffered_bytes or self._reply_bytes or self._closing)
        if idle != self._idle:
            self._idle = idle
            if idle:
                self._server.idle[self] = self._server.clock.monotonic_ns()
            else:
                self._server.idle.pop(self, None)

    def _frame_is_here(self) -> None:
        """The frame that had begun is whole, or gone; the next one has its own time."""
        self._begun_ns = 0
        self._server.receiving.pop(self, None)

    def _count_buffered(self) -> None:
        buffered = self._decoder.buffered_bytes
        self._server.request_bytes += buffered - self._buffered_bytes
        self._buffered_bytes = buffered

    def _start(self, reserve: int) -> None:
        """Begin to work on the next request, or answer at once why not."""
        data = self._decoder.next_frame()
        assert data is not None
        if self._begun_ns:
            self._frame_is_here()
        self._count_buffered()
        frame_bytes = len(data)
        try:
            frame = decode_request(data)
        except ProtocolError:
            self._owe(-reserve)
            raise
        try:
            method, handler = self._find(frame)
            self._admit(frame, reserve)
            request = parse_request(method, frame)
        except FFSError as error:  # the frame was whole: what follows it can still be read
            self._reply(encode_error(frame.request_id, error), reserve)
            return
        self._work(frame_bytes)
        if method.waits:
            self._owe(-reserve)
            reserve = 0
        task = asyncio.create_task(self._run(frame.request_id, method, handler, request, reserve))
        self._running.add(task)
        if method.waits:
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
        task.add_done_callback(lambda done: self._finished(done, frame_bytes))

    def _cancel_waiting(self) -> None:
        """End what only waits for something to tell a client that is not there to hear it."""
        for task in self._waiting:
            task.cancel()

    def _work(self, change: int) -> None:
        self._running_bytes += change
        self._server.request_bytes += change

    def _find(self, frame: RequestFrame) -> tuple[Method[Any, Any], Handler]:
        method = self._server.methods.get(frame.method)
        handler = self._server.handlers.get(frame.method)
        if method is None or handler is None:
            raise ProtocolError(
                f"no method {frame.method[:64]!r} here",
                hint="client and server versions may not go together",
            )
        return method, handler

    def _admit(self, frame: RequestFrame, reserve: int) -> None:
        waited_ns = self._server.clock.monotonic_ns() - self._received_ns
        if frame.deadline_ms and waited_ns > frame.deadline_ms * 1_000_000:
            raise DeadlineError(f"{frame.method} waited past its deadline; it was not started")
        if not reserve:
            raise BusyError("the server has too many request bytes in work")

    async def _run(
        self,
        request_id: int,
        method: Method[Any, Any],
        handler: Handler,
        request: Any,
        reserve: int,
    ) -> None:
        peer = self._peer
        try:
            reply = encode_reply(request_id, method, await handler(request, peer))
            if peer.claims is not None:
                audit.note_reply(peer.claims, peer.address, method.name, request_id, reply)
        except FFSError as error:
            reply = encode_error(request_id, error)
            if peer.claims is not None:
                audit.note_error(peer.claims, peer.address, method.name, request_id, error)
        except Exception:  # a bug in a handler must not take the server's other clients with it
            log.exception("rpc_handler_failed", extra={"method": method.name})
            hint = "the server's log has the details"
            reply = encode_error(request_id, FFSError("internal error", hint=hint))
        except BaseException:
            self._owe(-reserve)
            raise
        self._reply(reply, reserve)

    def _finished(self, task: asyncio.Task[None], frame_bytes: int) -> None:
        self._running.discard(task)
        self._work(-frame_bytes)
        if self.waits or not self._reading:
            self.advance()
        else:
            self._account()
        self._server.serve_waiting()

    def _reply(self, reply: bytes, reserve: int) -> None:
        """Send a reply; its own bytes take the place of the reserve for it."""
        self._owe(-reserve)
        self._send(reply)

    def _send(self, frame: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._writable:
            self._transport.write(frame)
            self._filled_by(frame)
        else:
            self._unsent.append(frame)
            self._owe(len(frame))

    def _filled_by(self, frame: bytes) -> None:
        """Count a frame that the transport holds after it said that it is full."""
        if not self._writable:
            self._filling_bytes += len(frame)
            self._owe(len(frame))

    def _owe(self, change: int) -> None:
        self._reply_bytes += change
        self._server.replies.add(change)

    def _let_go(self) -> None:
        """Give back what is held for a client that is gone, but for what is in work."""
        unsent = sum(map(len, self._unsent)) + self._filling_bytes
        self._unsent.clear()
        self._filling_bytes = 0
        self._owe(-unsent)
        self._decoder.clear()
        self._account()
        self._server.owing.pop(self, None)
        self._server.replies.leave(self)

    def _finish(self) -> None:
        """Hand all replies to the transport and close once they are taken, or after a while."""
        assert self._transport is not None
        while self._unsent:
            frame = self._unsent.popleft()
            self._transport.write(frame)
            self._filling_bytes += len(frame)
        self._transport.close()
        # A client that does not take them is cut off.
        asyncio.get_running_loop().call_later(CLOSE_GRACE_MS / 1e3, self._transport.abort)

    def _break(self, error: ProtocolError) -> None:
        """Tell why and close: after broken bytes nothing on this connection means anything."""
        log.info("rpc_protocol_broken", extra={"peer": self._peer.address, "reason": error.message})
        self._closing = True
        self._decoder.clear()
        self._account()
        self._send(encode_error(CONNECTION_ERROR_ID, error))
        if self._transport is not None:
            self._finish()
