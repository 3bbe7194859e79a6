"""The RPC driver of ordinary code: blocking sockets, driven in the calling thread.

Previous hop: ffs.client.meta (retries, plans); next hop: ffs.rpc.codec, then the server's aio.py.

A call takes an idle connection (the one used last, so that the others may go cold) or opens one,
sends, waits, and puts it back. A connection is put back only after every reply of the call was
read: on any error, deadline or KeyboardInterrupt it is closed, so no late reply is ever taken for
another call's. One call is one attempt; retrying is the caller's business.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Collection, Sequence
from typing import Any, Final, TypeVar

from ffs.errors import (
    ClosedError,
    DeadlineError,
    FFSError,
    ProtocolError,
    UnavailableError,
)
from ffs.handshake import ClusterKey, HandshakeKind, connect
from ffs.limits import RPC_IDLE_CONNECTIONS_MAX, RPC_IN_FLIGHT_MAX
from ffs.rpc.addresses import CONNECT_ERRORS, Address, Addresses, graver, show_address
from ffs.rpc.codec import (
    CONNECTION_ERROR_ID,
    FrameDecoder,
    ReplyFrame,
    decode_reply,
    encode_request,
    parse_outcome,
    parse_reply,
)
from ffs.seams import Clock, SystemClock
from ffs.wire.messages import Method

Req = TypeVar("Req")
Rep = TypeVar("Rep")

_RECEIVE_BYTES: Final = 256 << 10
_CONNECT_MS_DEFAULT: Final = 5_000


class RpcClient:
    """Calls methods of one logical server that may answer at several `addresses`.

    Threads: any number at once; each call has a connection for itself.
    Fork: `abandon` in the child; a call made there without it does the same first.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        key: ClusterKey,
        *,
        connect_ms: int = _CONNECT_MS_DEFAULT,
        clock: Clock | None = None,
    ) -> None:
        self.addresses = Addresses(addresses)
        self._key = key
        self._connect_ms = connect_ms
        self._clock = clock or SystemClock()
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._pid = os.getpid()

    def call(self, method: Method[Req, Rep], request: Req, *, deadline_ms: int) -> Rep:
        """Send one request and return its reply.

        Raises:  the server's typed error; UnavailableError if no connection could be made or it was
                 lost (whether a mutation was applied is then not known); DeadlineError; AuthError;
                 ProtocolError
        """
        return self.call_pipelined(method, [request], deadline_ms=deadline_ms)[0]

    def call_pipelined(
        self, method: Method[Req, Rep], requests: Sequence[Req], *, deadline_ms: int
    ) -> list[Rep]:
        """Send many requests down one connection without waiting in between; replies in order.

        At most RPC_IN_FLIGHT_MAX are outstanding. The first request that the server answers with
        an error raises it, after all replies have been read.
        """
        deadline_ns = self._clock.monotonic_ns() + deadline_ms * 1_000_000
        connection = self._checkout(deadline_ns, deadline_ms)
        try:
            outcomes = connection.exchange(method, requests, deadline_ns, deadline_ms)
        except BaseException as error:
            self._discard(connection)
            if isinstance(error, (UnavailableError, DeadlineError)):
                self._leave(connection.server)
            raise
        self._give_back(connection)
        replies: list[Rep] = []
        for outcome in outcomes:
            if isinstance(outcome, FFSError):
                if isinstance(outcome, UnavailableError):
                    self._leave(connection.server)
                raise outcome
            replies.append(outcome)
        return replies

    def close(self) -> None:
        """Close idle connections, and those in use when their calls end. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            self._discard(connection)

    def abandon(self) -> None:
        """In a forked child: close the parent's connections without using them, start afresh.

        The locks are replaced, since a thread that does not exist here may have held them.
        """
        inherited = self._open
        self._reset()
        for connection in inherited:
            connection.close()

    def _checkout(self, deadline_ns: int, deadline_ms: int) -> _Connection:
        if os.getpid() != self._pid:
            self.abandon()
        while True:
            with self._lock:
                if self._closed:
                    raise ClosedError("the file system has been closed", hint="make a new one")
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connect(deadline_ns, deadline_ms)
            if connection.usable():
                return connection
            self._discard(connection)

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            keep = not self._closed and len(self._idle) < RPC_IDLE_CONNECTIONS_MAX
            if keep:
                self._idle.append(connection)
        if not keep:
            self._discard(connection)

    def _discard(self, connection: _Connection) -> None:
        connection.close()
        with self._lock:
            self._open.discard(connection)

    def _leave(self, server: Address) -> None:
        """Go to another server with the next call, if there is one: this one is gone, hangs, or
        cannot reach its database."""
        if not self.addresses.several:
            return
        self.addresses.failed(server)
        with self._lock:
            left = [c for c in self._idle if c.server == server]
            self._idle = [c for c in self._idle if c.server != server]
        for connection in left:
            self._discard(connection)

    def _connect(self, deadline_ns: int, deadline_ms: int) -> _Connection:
        """Try every address once, the one that worked last first."""
        failure: FFSError | None = None
        for host, port in self.addresses.order:
            left_ms = -((self._clock.monotonic_ns() - deadline_ns) // 1_000_000)
            if left_ms <= 0:
                break
            try:
                sock = connect(
                    host,
                    port,
                    self._key,
                    HandshakeKind.RPC,
                    timeout_ms=min(left_ms, self._connect_ms),
                    clock=self._clock,
                )
            except CONNECT_ERRORS as error:
                failure = graver(failure, error)
                self.addresses.failed((host, port))
                continue
            self.addresses.worked((host, port))
            connection = _Connection(sock, (host, port), self._clock)
            with self._lock:
                self._open.add(connection)
            return connection
        if isinstance(failure, DeadlineError) and self._clock.monotonic_ns() < deadline_ns:
            # Only connect_ms was over: nothing was sent, and another attempt may help.
            raise UnavailableError(failure.message, hint=failure.hint, **failure.where) from failure
        raise failure or DeadlineError(f"no connection within {deadline_ms} ms")


class _Connection:
    """One authenticated connection, used by one call at a time."""

    def __init__(self, sock: socket.socket, server: Address, clock: Clock) -> None:
        sock.setblocking(False)
        self.server = server
        self._sock = sock
        self._address = show_address(*server)
        self._clock = clock
        self._decoder = FrameDecoder()
        self._next_id = 1
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def usable(self) -> bool:
        """Say whether an idle connection may be used: it has to be silent.

        A server that was restarted closed its side: end-of-file waits there, and is noticed here.
        """
        return not self._poll.poll(0)

    def close(self) -> None:
        """Close the descriptor; the peer sees it unless another process has it too."""
        self._sock.close()

    def exchange(
        self,
        method: Method[Req, Rep],
        requests: Sequence[Req],
        deadline_ns: int,
        deadline_ms: int,
    ) -> list[Rep | FFSError]:
        """Send all requests and return all outcomes in order, sending and receiving at once.

        Both directions must move: a server that waits for us to take replies reads nothing more.
        Each reply is made objects as it comes, while the server works on the next.
        """
        first_id = self._next_id
        self._next_id += len(requests)
        replies: dict[int, Rep | FFSError] = {}
        to_send = memoryview(b"")
        sent = 0
        while len(replies) < len(requests):
            while not to_send and sent < len(requests) and sent - len(replies) < RPC_IN_FLIGHT_MAX:
                left_ms = self._left_ms(method, deadline_ns, deadline_ms)
                frame = encode_request(first_id + sent, method, requests[sent], left_ms)
                sent += 1
                to_send = self._send(memoryview(frame))
            self._wait(bool(to_send), method, deadline_ns, deadline_ms)
            to_send = self._send(to_send)
            for reply in self._receive():
                self._check_reply(reply, method, range(first_id, first_id + sent), replies)
                outcome: Rep | FFSError = parse_outcome(method, reply)
                replies[reply.request_id] = outcome
        return [replies[i] for i in range(first_id, first_id + len(requests))]

    def _check_reply(
        self,
        reply: ReplyFrame,
        method: Method[Any, Any],
        outstanding: range,
        replies: Collection[int],
    ) -> None:
        if reply.request_id == CONNECTION_ERROR_ID:
            parse_reply(method, reply)
        if reply.request_id not in outstanding or reply.request_id in replies:
            raise ProtocolError("a reply to no outstanding request", address=self._address)

    def _wait(
        self, sending: bool, method: Method[Any, Any], deadline_ns: int, deadline_ms: int
    ) -> None:
        """Sleep until the socket can move; signals are handled in between (KeyboardInterrupt)."""
        self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if sending else 0))
        self._poll.poll(self._left_ms(method, deadline_ns, deadline_ms))

    def _left_ms(self, method: Method[Any, Any], deadline_ns: int, deadline_ms: int) -> int:
        left_ns = deadline_ns - self._clock.monotonic_ns()
        if left_ns <= 0:
            raise DeadlineError(
                f"{method.name} was not answered within {deadline_ms} ms",
                hint="the server is overloaded or the network is slow; raise meta_deadline_ms",
                address=self._address,
            )
        return -(-left_ns // 1_000_000)

    def _send(self, data: memoryview) -> memoryview:
        if not data:
            return data
        try:
            return data[self._sock.send(data, socket.MSG_NOSIGNAL) :]
        except (BlockingIOError, InterruptedError):
            return data
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from error

    def _receive(self) -> list[ReplyFrame]:
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from error
        if not data:
            raise self._lost("closed by the server")
        self._decoder.feed(data)
        frames = []
        while (frame := self._decoder.next_frame()) is not None:
            frames.append(decode_reply(frame))
        return frames

    def _lost(self, reason: str) -> UnavailableError:
        return UnavailableError(
            f"the connection to the server was lost: {reason}",
            hint="the request may or may not have been carried out; it is safe to send it again",
            address=self._address,
        )
