"""The door of a port: accepts connections and lets those in that prove the cluster key.

Previous hop: a client's ffs.handshake.connect; next hop: the RPC server (ffs.rpc.aio) or the data
port (server/storage/data_port.py), which own a connection once it is proven.

Invariants: strangers have HANDSHAKES_MAX places of their own (fewer where descriptors are few:
stores need them too) and never take one from those who hold the key. When all are taken the oldest
stranger goes, since to refuse the newcomer would let as many silent strangers keep everybody out; a
holder of the key needs its place for two round trips.

Strangers are heard without a task, a transport or a timer of their own: a server that works for
others finds none of that in its caches, and a hundred of them a second would cost a tenth of it.
While strangers keep failing (_FAILURES_PER_S) the door opens only once in _PAUSE_S, for all that
stand before it: they share what a look at the door costs, at most _REFUSALS_AT_ONCE of them have
their turn, and those inside keep their processor. A holder of the key is in after two such looks,
unless more strangers come than have their turn: then the kernel's queue is full, of them.

Where there is TLS, the first steps cost some ten times as much, so the door takes fewer of them at
a look: _TLS_AT_ONCE.

Failure behaviour: a refused stranger is told why; running out of descriptors costs the oldest
stranger its connection and is tried again. A proven client for which no place is free waits for one
a while, since idle connections may be making it.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import select
import socket
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Final

from ffs.auth.verifier import TokenVerifier
from ffs.errors import (
    AuthError,
    BusyError,
    DeadlineError,
    FFSError,
    ProtocolError,
    UnavailableError,
)
from ffs.handshake import ClusterKey, HandshakeKind, set_congestion
from ffs.limits import HANDSHAKE_MS_MAX, HANDSHAKES_MAX, IDLE_MS_MIN
from ffs.log import Flood
from ffs.rpc.greeting import Greeting
from ffs.tls import Tls

log = logging.getLogger("ffs.rpc.door")

_BACKLOG: Final = 1_024
_PAUSE_S: Final = 0.1
_FAILURES_PER_S: Final = 20
_FAILURES_AT_ONCE: Final = 64
"""How many may fail before the door stops standing open."""
_REFUSALS_AT_ONCE: Final = 256
_TLS_AT_ONCE: Final = 16
_ACCEPTS_AT_ONCE: Final = 256
_PLACE_WAIT_S: Final = 2 * IDLE_MS_MIN / 1e3
_TOLD: Final = (AuthError, ProtocolError, BusyError)

Admit = Callable[[Greeting], bool]
"""Says whether there is a place for one more; False: not yet. Raises BusyError: not soon."""

Welcome = Callable[[Greeting], None]
"""Takes over who has proven itself, its socket and the place."""


def listen(host: str, port: int, *, congestion: str = "") -> socket.socket:
    """Open the listening socket; port 0: any free one.

    Args:    congestion: a TCP congestion control that its connections begin with, used if the
             kernel allows it; "": the system's default
    Raises:  UnavailableError when the address is taken or not ours
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        listener = socket.create_server((address[0], port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen: {error.strerror or error}",
            hint="another process may have this port; choose another, or 0 for any",
            address=f"{host}:{port}",
        ) from error
    listener.setblocking(False)
    if congestion:
        set_congestion(listener, congestion)
    return listener


class Door:
    """Accepts on a listening socket, whose owner closes it.

    Args:    tokens: says which tokens count; None: only the cluster key does

    Threads: the running loop's alone; Fork: none
    """

    def __init__(
        self,
        listener: socket.socket,
        key: ClusterKey,
        kind: HandshakeKind,
        *,
        admit: Admit,
        welcome: Welcome,
        tls: Tls | None = None,
        tokens: TokenVerifier | None = None,
    ) -> None:
        self._listener = listener
        self._key = key
        self._kind = kind
        self._tokens = tokens
        self._admit = admit
        self._welcome = welcome
        self._tls = tls
        self._strangers: dict[int, Greeting] = {}
        """By descriptor, the oldest first."""
        self._proven: deque[Greeting] = deque()
        """Those who wait for a place, the longest waiting first."""
        self._patience = float(_FAILURES_AT_ONCE)
        self._failures = 0
        self._looked_s = 0.0
        self._open = False
        self._timer: asyncio.TimerHandle | None = None
        self._flood = Flood()
        self._loop: asyncio.AbstractEventLoop
        self._heard: select.epoll
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        few = HANDSHAKES_MAX if soft == resource.RLIM_INFINITY else soft // 4
        self._strangers_max = min(HANDSHAKES_MAX, few)

    @property
    def strangers(self) -> int:
        """How many connections have no place inside yet."""
        return len(self._strangers) + len(self._proven)

    async def serve(self) -> None:
        """Accept until cancelled; who is not inside by then is cut off."""
        self._loop = asyncio.get_running_loop()
        self._looked_s = self._loop.time()
        with select.epoll() as self._heard:
            self._stand_open(True)
            try:
                await self._loop.create_future()
            finally:
                self._stand_open(False)
                if self._timer is not None:
                    self._timer.cancel()
                for greeting in (*self._strangers.values(), *self._proven):
                    greeting.sock.close()
                self._strangers.clear()
                self._proven.clear()

    # when to look

    def _look(self) -> None:
        """See to all who stand before the door, then say when to do so again."""
        now_s = self._loop.time()
        earned = (now_s - self._looked_s) * _FAILURES_PER_S
        self._patience = min(self._patience + earned, _FAILURES_AT_ONCE)
        self._looked_s = now_s
        self._failures = 0
        try:
            self._cut_off_late(now_s)
            self._hear()
            self._accept(now_s)
            self._give_places(now_s)
        finally:
            self._patience = max(self._patience - self._failures, 0.0)
            if self._patience in (0.0, _FAILURES_AT_ONCE):
                self._stand_open(self._patience > 0.0)
            self._look_again(now_s)

    def _stand_open(self, wanted: bool) -> None:
        """Look whenever somebody comes or speaks, or (not wanted) by the clock alone."""
        if wanted == self._open:
            return
        self._open = wanted
        for fd in (self._listener.fileno(), self._heard.fileno()):
            if wanted:
                self._loop.add_reader(fd, self._look)
            else:
                self._loop.remove_reader(fd)

    def _look_again(self, now_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._proven or not self._open:
            self._timer = self._loop.call_later(_PAUSE_S, self._look)
        elif self._strangers:
            oldest = next(iter(self._strangers.values()))
            late_s = oldest.since + HANDSHAKE_MS_MAX / 1e3
            self._timer = self._loop.call_later(max(late_s - now_s, _PAUSE_S), self._look)

    # strangers

    def _hear(self) -> None:
        at_once = self._strangers_max if self._tls is None else _TLS_AT_ONCE
        for fd, _ in self._heard.poll(0, at_once):
            self._greet(self._strangers[fd])

    def _accept(self, now_s: float) -> None:
        # Who comes in now shall still be there at the next look, for its proof.
        at_once = _REFUSALS_AT_ONCE if self._tls is None else _TLS_AT_ONCE
        failures_max = min(at_once, max(1, self._strangers_max // 2))
        for _ in range(at_once if self._tls is not None else _ACCEPTS_AT_ONCE):
            if self._failures >= failures_max:
                self._patience = 0.0
                return
            try:
                sock, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # out of descriptors, or the peer is gone already
                log.warning("accept_failed", extra={"reason": error.strerror})
                self._patience = 0.0
                if not self._drop_oldest():
                    return
                continue
            greeting = Greeting(sock, peer, now_s, self._tls)
            if self._greet(greeting):
                self._strangers[sock.fileno()] = greeting
                self._heard.register(sock.fileno(), select.EPOLLIN)
                if len(self._strangers) > self._strangers_max:
                    self._drop_oldest()

    def _greet(self, greeting: Greeting) -> bool:
        """Take a stranger as far as its bytes have come; False if it is none any more."""
        try:
            if not greeting.hear(self._key, self._kind, self._tokens):
                return True
        except FFSError as error:
            self._refuse(greeting, error)
            return False
        self._forget(greeting)
        greeting.since = self._looked_s
        if len(self._proven) < self._strangers_max:
            self._proven.append(greeting)
        else:
            self._refuse(greeting, BusyError("too many wait for a place"))
        return False

    def _drop_oldest(self) -> bool:
        oldest = next(iter(self._strangers.values()), None)
        if oldest is None:
            return False
        self._forget(oldest)
        oldest.sock.close()
        self._failures += 1
        return True

    def _forget(self, greeting: Greeting) -> None:
        """Hear no more of a stranger, even if a forked child still has its socket."""
        fd = greeting.sock.fileno()
        if self._strangers.pop(fd, None) is not None:
            self._heard.unregister(fd)

    def _cut_off_late(self, now_s: float) -> None:
        came_s = now_s - HANDSHAKE_MS_MAX / 1e3
        oldest = self._strangers.values()
        for greeting in list(takewhile(lambda each: each.since <= came_s, oldest)):
            error = DeadlineError(f"the handshake took more than {HANDSHAKE_MS_MAX} ms")
            self._refuse(greeting, error)

    def _refuse(self, greeting: Greeting, error: FFSError) -> None:
        """Close on a stranger, with a word if that may help somebody."""
        self._failures += 1
        self._forget(greeting)
        if isinstance(error, _TOLD):
            greeting.refuse(error)
        greeting.sock.close()
        if self._flood.passes(int(self._looked_s)):
            facts = {"peer": greeting.address, "reason": error.message, **self._flood.left_out()}
            log.info("handshake_failed", extra=facts)

    # the proven

    def _give_places(self, now_s: float) -> None:
        """Let in who has proven itself, first come, first served, as far as there are places."""
        while self._proven:
            greeting = self._proven[0]
            try:
                if not self._admit(greeting):
                    if now_s < greeting.since + _PLACE_WAIT_S:
                        return
                    raise BusyError("too many connections")
                greeting.let_in()
            except FFSError as error:
                self._refuse(self._proven.popleft(), error)
            else:
                self._proven.popleft()
                self._welcome(greeting)
