"""The data port: accepts connections, lets them prove the cluster key, hands them to the C loops.

Previous hop: a client's ffs.handshake.connect; next hop: ffs._storage.DataLoop, which owns the
descriptor from then on. Strangers are bounded in number and time; a refused one is told why.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Final

from ffs._storage import DataLoop
from ffs.errors import BusyError, FFSError, UnavailableError
from ffs.handshake import HandshakeKind, accept, refuse
from ffs.key import ClusterKey
from ffs.limits import CONNECTIONS_PER_DAEMON_MAX, HANDSHAKE_MS_MAX

log = logging.getLogger("ffs.storage.port")

STRANGERS_MAX: Final = 256
_BACKLOG: Final = 1024
_ACCEPT_PAUSE_S: Final = 0.1


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; port 0: any free one.

    Raises: UnavailableError when the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="another process may have the port; choose another, or 0 for any",
        ) from error
    listener.setblocking(False)
    return listener


class DataPort:
    """Feeds authenticated connections to a data loop.

    Threads: the event loop's alone; Fork: none
    """

    def __init__(self, listener: socket.socket, key: ClusterKey, data: DataLoop) -> None:
        self._listener = listener
        self._key = key
        self._data = data
        self._strangers: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Accept until cancelled; strangers in their handshake are cut off then."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    sock, address = await loop.sock_accept(self._listener)
                except OSError as error:  # out of descriptors, or the peer is gone already
                    log.warning("data_accept_failed", extra={"reason": error.strerror})
                    await asyncio.sleep(_ACCEPT_PAUSE_S)
                    continue
                sock.setblocking(False)
                self._receive(sock, f"{address[0]}:{address[1]}")
        finally:
            for task in self._strangers:
                task.cancel()
            await asyncio.gather(*self._strangers, return_exceptions=True)

    def _receive(self, sock: socket.socket, peer: str) -> None:
        known = self._data.stats()["connections"]
        if (
            len(self._strangers) >= STRANGERS_MAX
            or known + len(self._strangers) >= CONNECTIONS_PER_DAEMON_MAX
        ):
            refuse(sock, BusyError("too many connections"))
            return
        task = asyncio.create_task(self._greet(sock, peer))
        self._strangers.add(task)
        task.add_done_callback(self._strangers.discard)

    async def _greet(self, sock: socket.socket, peer: str) -> None:
        """Take a stranger through the handshake, then give its descriptor away."""
        try:
            await accept(sock, self._key, HandshakeKind.DATA, timeout_ms=HANDSHAKE_MS_MAX)
        except FFSError as error:
            log.info("data_handshake_failed", extra={"peer": peer, "reason": error.message})
            return
        try:
            self._data.adopt(sock.fileno())
        except OSError as error:
            sock.close()
            log.warning("data_connection_refused", extra={"peer": peer, "reason": str(error)})
        else:
            sock.detach()
