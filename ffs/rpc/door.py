"""The door of a port: accepts connections and lets those in that prove the cluster key.

Previous hop: a client's ffs.handshake.connect; next hop: the RPC server (ffs.rpc.aio) or the data
port (server/storage/data_port.py), which own a connection once it is proven.

Invariants: strangers have HANDSHAKES_MAX places of their own (fewer where descriptors are few:
stores need them too) and never take one from those who hold the key. When all are taken the oldest
stranger goes, since to refuse the newcomer would let as many silent strangers keep everybody out; a
holder of the key needs its place for two round trips. In such a crowd the door opens less than a
thousand times a second, so that those inside keep their processor.
Failure behaviour: a refused stranger is told why; running out of descriptors costs the oldest
stranger its connection and is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from ffs.errors import FFSError, UnavailableError
from ffs.handshake import ClusterKey, HandshakeKind, accept
from ffs.limits import HANDSHAKE_MS_MAX, HANDSHAKES_MAX

log = logging.getLogger("ffs.rpc.door")

_BACKLOG: Final = 1_024
_ACCEPT_PAUSE_S: Final = 0.1
_CROWD_PAUSE_S: Final = 0.001

Admit = Callable[[int], None]
"""Makes a place for one more proven peer beside those on their way in; BusyError if it cannot."""

Welcome = Callable[[socket.socket, str, int], Awaitable[None]]
"""Takes over a proven peer's socket and, first, the place: (socket, its address, the version)."""


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; port 0: any free one.

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
    return listener


class Door:
    """Accepts on a listening socket, whose owner closes it.

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
    ) -> None:
        self._listener = listener
        self._key = key
        self._kind = kind
        self._admit = admit
        self._welcome = welcome
        self._strangers: dict[asyncio.Task[None], None] = {}
        self._arriving = 0
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        few = HANDSHAKES_MAX if soft == resource.RLIM_INFINITY else soft // 4
        self._strangers_max = min(HANDSHAKES_MAX, few)

    @property
    def strangers(self) -> int:
        """How many connections have not proven themselves yet."""
        return len(self._strangers)

    async def serve(self) -> None:
        """Accept until cancelled; who has not proven itself by then is cut off."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    sock, address = await loop.sock_accept(self._listener)
                except OSError as error:  # out of descriptors, or the peer is gone already
                    log.warning("accept_failed", extra={"reason": error.strerror})
                    dropped = self._drop_oldest()
                    await asyncio.sleep(_CROWD_PAUSE_S if dropped else _ACCEPT_PAUSE_S)
                    continue
                self._receive(sock, f"{address[0]}:{address[1]}")
                if len(self._strangers) > self._strangers_max:
                    self._drop_oldest()
                    await asyncio.sleep(_CROWD_PAUSE_S)
        finally:
            strangers = list(self._strangers)
            for task in strangers:
                task.cancel()
            await asyncio.gather(*strangers, return_exceptions=True)

    def _receive(self, sock: socket.socket, peer: str) -> None:
        sock.setblocking(False)
        task = asyncio.create_task(self._greet(sock, peer))
        self._strangers[task] = None
        task.add_done_callback(lambda done: self._strangers.pop(done, None))

    def _drop_oldest(self) -> bool:
        oldest = next(iter(self._strangers), None)
        if oldest is None:
            return False
        del self._strangers[oldest]
        oldest.cancel()
        return True

    async def _greet(self, sock: socket.socket, peer: str) -> None:
        """Take a stranger through the handshake, then hand it on; its place is kept meanwhile."""

        def admit() -> None:
            self._admit(self._arriving)
            arriving.append(peer)
            self._arriving += 1

        arriving: list[str] = []
        try:
            version = await accept(
                sock, self._key, self._kind, timeout_ms=HANDSHAKE_MS_MAX, admit=admit
            )
        except FFSError as error:
            log.info("handshake_failed", extra={"peer": peer, "reason": error.message})
            return
        finally:
            self._arriving -= len(arriving)
        await self._welcome(sock, peer, version)  # which takes the place before it waits
