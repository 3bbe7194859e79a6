"""The RPC driver of ordinary code: blocking sockets, driven in the calling thread.

Previous hop: ffs.client.meta (retries, plans); next hop: ffs.rpc.codec, then the server's aio.py.

A call takes an idle connection (the one used last, so that the others may go cold) or opens one,
sends, waits, and puts it back. A connection is put back only after every reply of the call was
read: on any error, deadline or KeyboardInterrupt it is closed, so no late reply is ever taken for
another call's. One call is one attempt; retrying is the caller's business. A `Pipeline` keeps a
connection for longer: requests go down it as they are made and replies become objects as they come,
while the server works on the next.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Self, TypeVar

from ffs.errors import (
    OK,
    AuthError,
    ClosedError,
    DeadlineError,
    FFSError,
    ProtocolError,
    UnavailableError,
)
from ffs.handshake import Credential
from ffs.limits import RPC_IDLE_CONNECTIONS_MAX, RPC_IN_FLIGHT_MAX
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
from ffs.rpc.dial import Line, dial
from ffs.seams import Clock, SystemClock
from ffs.tls import Tls
from ffs.wire.method import Method

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
        key: Credential,
        *,
        connect_ms: int = _CONNECT_MS_DEFAULT,
        clock: Clock | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.addresses = Addresses(addresses)
        self._key = key
        self._tls = tls
        self._connect_ms = connect_ms
        self._clock = clock or SystemClock()
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._pid = os.getpid()

    def call(self, method: Method[Req, Rep], request: Req, *, deadline_ms: int) -> Rep:
        """Send one request and return its reply.

        Raises:  the server's typed error; UnavailableError if no connection could be made or it was
                 lost (whether a mutation was applied is then not known); DeadlineError; AuthError;
                 ProtocolError
        """
        return self.call_pipelined(method, (request,), deadline_ms=deadline_ms)[0]

    def call_pipelined(
        self, method: Method[Req, Rep], requests: Sequence[Req], *, deadline_ms: int
    ) -> list[Rep]:
        """Send many requests down one connection without waiting in between; replies in order.

        At most RPC_IN_FLIGHT_MAX are outstanding. The first request that the server answers with
        an error raises it, after all replies have been read.
        """
        outcomes: list[Rep | FFSError] = []
        with self.pipeline(method) as line:
            line.connect(deadline_ms)
            for request in requests:
                if len(line) >= RPC_IN_FLIGHT_MAX:
                    outcomes.append(line.outcome())
                line.send(request)
            while len(line):
                outcomes.append(line.outcome())
        replies: list[Rep] = []
        for outcome in outcomes:
            if isinstance(outcome, FFSError):
                raise outcome
            replies.append(outcome)
        return replies

    def pipeline(self, method: Method[Req, Rep]) -> Pipeline[Req, Rep]:
        """Return a line for requests of one method; it has no connection yet."""
        return Pipeline(self, method)

    def close(self) -> None:
        """Close idle connections, and those in use when their calls end. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            self.discard(connection)

    def abandon(self) -> None:
        """In a forked child: close the parent's connections without using them, start afresh.

        The locks are replaced, since a thread that does not exist here may have held them.
        """
        inherited = self._open
        self._reset()
        for connection in inherited:
            connection.close()

    def credential(self, *, look: bool = False) -> Credential:
        """Return what new connections are proven by; `look`: it was refused."""
        return self._key.current(look=look)

    # what lines ask

    def deadline(self, deadline_ms: int) -> Deadline:
        """Return the end of a time that begins now."""
        return Deadline(
            self._clock, self._clock.monotonic_ns() + deadline_ms * 1_000_000, deadline_ms
        )

    def checkout(self, deadline: Deadline) -> Connection:
        """Return a connection that nobody else uses until it is given back or discarded."""
        if os.getpid() != self._pid:
            self.abandon()
        while True:
            with self._lock:
                if self._closed:
                    raise ClosedError("the file system has been closed", hint="make a new one")
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connect(deadline)
            if connection.key is self._key.current() and connection.usable():
                return connection
            self.discard(connection)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection of which every reply was read."""
        with self._lock:
            keep = not self._closed and len(self._idle) < RPC_IDLE_CONNECTIONS_MAX
            if keep:
                self._idle.append(connection)
        if not keep:
            self.discard(connection)

    def discard(self, connection: Connection) -> None:
        """Close a connection for good."""
        connection.close()

    def leave(self, server: Address) -> None:
        """Go to another server with the next call, if there is one: this one is gone, hangs, or
        cannot reach its database."""
        if not self.addresses.several:
            return
        self.addresses.failed(server)
        with self._lock:
            left = [c for c in self._idle if c.server == server]
            self._idle = [c for c in self._idle if c.server != server]
        for connection in left:
            self.discard(connection)

    def _connect(self, deadline: Deadline) -> Connection:
        """Try every address once, the one that worked last first."""
        failure: FFSError | None = None
        key = self._key.current()
        for host, port in self.addresses.order:
            left_ms = deadline.left_ms()
            if left_ms <= 0:
                break
            try:
                line = dial(
                    host,
                    port,
                    key,
                    self._tls,
                    timeout_ms=min(left_ms, self._connect_ms),
                    clock=self._clock,
                )
            except CONNECT_ERRORS as error:
                failure = graver(failure, error)
                self.addresses.failed((host, port))
                continue
            self.addresses.worked((host, port))
            connection = Connection(line, (host, port), key)
            with self._lock:
                self._open.add(connection)
            return connection
        if isinstance(failure, DeadlineError) and deadline.left_ms() > 0:
            # Only connect_ms was over: nothing was sent, and another attempt may help.
            raise UnavailableError(failure.message, hint=failure.hint, **failure.where) from failure
        raise failure or DeadlineError(
            f"no connection within {deadline.whole_ms} ms",
            address=show_address(*self.addresses.order[0]),
        )


@dataclass(frozen=True, slots=True)
class Deadline:
    """When the time for something is over, and how long it was."""

    clock: Clock
    end_ns: int
    whole_ms: int

    def left_ms(self) -> int:
        """Return the time that is left, rounded up; 0 or less: none."""
        return -((self.clock.monotonic_ns() - self.end_ns) // 1_000_000)


class _Entry(Generic[Req]):
    """A request on a line. `number`: its id on the line's connection, 0 while it is not sent."""

    __slots__ = ("number", "request")

    def __init__(self, request: Req) -> None:
        self.request = request
        self.number = 0


class Pipeline(Generic[Req, Rep]):
    """Requests of one method on their way, down one connection at a time; a `with` block.

    What a lost connection leaves without a reply is sent again down the next one, so requests that
    change something need an identity. Replies are taken in the order of the requests. At the end a
    connection with replies to come is closed.
    Threads: one; Fork: not across
    """

    def __init__(self, client: RpcClient, method: Method[Req, Rep]) -> None:
        self._client = client
        self._method = method
        self._connection: Connection | None = None
        self._deadline = client.deadline(0)
        self._waiting: deque[_Entry[Req]] = deque()
        self._refused = False
        """Whether the server said that it cannot work."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.quiet:
            self._client.give_back(connection)
        else:
            self._client.discard(connection)
        if self._refused:
            self._client.leave(connection.server)

    def __len__(self) -> int:
        """How many requests wait for their reply."""
        return len(self._waiting)

    def connect(self, deadline_ms: int) -> None:
        """Have a connection, and on it what is not sent yet; all that follows may take so long."""
        self._deadline = self._client.deadline(deadline_ms)
        if self._connection is None:
            self._connection = self._client.checkout(self._deadline)
        for entry in self._waiting:
            if not entry.number:
                self._send(entry)

    def send(self, request: Req) -> None:
        """Put a request behind the others, and send it if there is a connection."""
        entry = _Entry(request)
        self._waiting.append(entry)
        if self._connection is not None:
            self._send(entry)

    def outcome(self) -> Rep | FFSError:
        """Take the oldest request off the line: its reply, or the error that the server sent."""
        assert self._connection is not None
        try:
            outcome: Rep | FFSError = self._connection.outcome(
                self._waiting[0].number, self._method, self._deadline
            )
        except BaseException as error:
            self._lose(error)
            raise
        self._waiting.popleft()
        self._refused = self._refused or isinstance(outcome, UnavailableError)
        return outcome

    def reply(self, deadline_ms: int) -> Rep:
        """Take the oldest request off the line and return its reply: one attempt.

        After an error it is still on the line, and is sent again by the next attempt.
        """
        self.connect(deadline_ms)
        oldest = self._waiting[0]
        outcome = self.outcome()
        if isinstance(outcome, FFSError):
            oldest.number = 0
            self._waiting.appendleft(oldest)
            of_token = isinstance(outcome, AuthError)  # the next connection may have another one
            if of_token or (self._refused and self._client.addresses.several):
                self._lose(outcome)
            raise outcome
        return outcome

    def settle(self) -> None:
        """Wait for all replies that are to come, as long as the time that was set lasts."""
        if self._connection is not None:
            with contextlib.suppress(UnavailableError, DeadlineError):
                self._connection.settle(self._method, self._deadline)

    def _send(self, entry: _Entry[Req]) -> None:
        assert self._connection is not None
        try:
            entry.number = self._connection.send(self._method, entry.request, self._deadline)
        except BaseException as error:
            self._lose(error)
            raise

    def _lose(self, error: BaseException) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        self._refused = False
        self._client.discard(connection)
        if isinstance(error, (UnavailableError, DeadlineError)):
            self._client.leave(connection.server)
        for entry in self._waiting:
            entry.number = 0


class Connection:
    """One authenticated connection, used by one call or line at a time.

    It closes itself when a call that Ctrl-C has broken off has lost it.
    """

    def __init__(self, line: Line, server: Address, key: Credential) -> None:
        self._sock, self._channel = line
        self.key = key
        self._sock.setblocking(False)
        self.server = server
        self._address = show_address(*server)
        self._decoder = FrameDecoder()
        self._next_id = 1
        self._unsent = memoryview(b"")
        self._outstanding: set[int] = set()
        self._outcomes: dict[int, Any] = {}
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)

    def __del__(self) -> None:
        self._sock.close()

    def usable(self) -> bool:
        """Say whether an idle connection may be used: it has to be silent.

        A server that was restarted closed its side: end-of-file waits there, and is noticed here.
        """
        return not self._poll.poll(0)

    @property
    def quiet(self) -> bool:
        """Whether no reply is to come, and none is left."""
        return not (self._outstanding or self._outcomes)

    def close(self) -> None:
        """Close the descriptor; the peer sees it unless another process has it too."""
        self._sock.close()

    def send(self, method: Method[Req, Rep], request: Req, deadline: Deadline) -> int:
        """Send a request, once those before it are under way, and return its id here.

        What the socket does not take now goes while a reply is waited for.
        """
        while self._unsent:
            self._move(method, deadline)
        number = self._next_id
        frame = encode_request(number, method, request, self._left_ms(method, deadline))
        self._next_id += 1
        if self._channel is not None:
            frame = self._channel.seal(frame)
        self._outstanding.add(number)
        self._unsent = self._sent(memoryview(frame))
        return number

    def outcome(self, number: int, method: Method[Req, Rep], deadline: Deadline) -> Rep | FFSError:
        """Wait for the reply to a request and return it, or the error that the server sent."""
        while number not in self._outcomes:
            self._move(method, deadline)
        found: Rep | FFSError = self._outcomes.pop(number)
        return found

    def settle(self, method: Method[Any, Any], deadline: Deadline) -> None:
        """Wait for every reply that is to come, and forget them."""
        while self._outstanding:
            self._move(method, deadline)
        self._outcomes.clear()

    def _move(self, method: Method[Any, Any], deadline: Deadline) -> None:
        """Sleep until the socket can move, then send and receive what it allows.

        Both directions must move: a server that waits for us to take replies reads nothing more.
        Signals are handled in between (KeyboardInterrupt).
        """
        self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        self._poll.poll(self._left_ms(method, deadline))
        if self._unsent:
            self._unsent = self._sent(self._unsent)
        self._receive(method)

    def _left_ms(self, method: Method[Any, Any], deadline: Deadline) -> int:
        left_ms = deadline.left_ms()
        if left_ms <= 0:
            raise DeadlineError(
                f"{method.name} was not answered within {deadline.whole_ms} ms",
                hint="the server is overloaded or the network is slow; raise meta_deadline_ms",
                address=self._address,
            )
        return left_ms

    def _sent(self, data: memoryview) -> memoryview:
        """Send what the socket takes, and return the rest."""
        try:
            return data[self._sock.send(data, socket.MSG_NOSIGNAL) :]
        except (BlockingIOError, InterruptedError):
            return data
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from error

    def _receive(self, method: Method[Any, Any]) -> None:
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from error
        if not data:
            raise self._lost("closed by the server")
        if self._channel is not None:
            data = self._channel.open(data)
        self._decoder.feed(data)
        while (frame := self._decoder.next_frame()) is not None:
            with _uncollected():
                self._take(decode_reply(frame), method)

    def _take(self, reply: ReplyFrame, method: Method[Any, Any]) -> None:
        if reply.request_id == CONNECTION_ERROR_ID and reply.code != OK:
            raise parse_error(reply)
        if reply.request_id not in self._outstanding:
            raise ProtocolError("a reply to no outstanding request", address=self._address)
        self._outstanding.remove(reply.request_id)
        self._outcomes[reply.request_id] = parse_outcome(method, reply)

    def _lost(self, reason: str) -> UnavailableError:
        return UnavailableError(
            f"the connection to the server was lost: {reason}",
            hint="the request may or may not have been carried out; it is safe to send it again",
            address=self._address,
        )


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage while one reply becomes objects.

    Why: thousands of new objects in a row set off collections, of all that the process has at last,
    and find nothing: they took half of the client's time for a list. What was put off comes after.
    """
    if not gc.isenabled():
        yield
        return
    try:
        gc.disable()
        yield
    finally:
        gc.enable()
