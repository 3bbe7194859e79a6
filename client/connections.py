"""Data connections to the storage daemons: one stack of idle ones per node.

Role: client/reader.py and client/writer.py check connections out for one call and in again after
it. A connection is made by ffs.handshake (which proves the cluster key on both sides) and handed,
as a descriptor, to the C engine.

Invariants: a connection is used by one call at a time; one that the engine closed is never handed
out again; nothing is opened before the first call.

Threads: stacks are lists whose append and pop are atomic, so no lock is held at any time, least of
         all at a fork.
Fork:    the child closes its copies of the descriptors, idle or in use, and starts with none.
Failure: a node that cannot be reached raises UnavailableError naming it; the caller decides.
"""

from __future__ import annotations

from typing import Final

from ffs import _reader
from ffs.client import _fork
from ffs.errors import ClosedError
from ffs.handshake import ClusterKey, HandshakeKind, connect

IDLE_PER_NODE_MAX: Final = 32
"""Idle connections kept for one node; more than this many threads at once reconnect now and
then."""

Address = tuple[str, int]


class NodePool:
    """The connections to one node's address."""

    __slots__ = ("address", "busy", "idle")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.idle: list[_reader.Connection] = []
        self.busy: set[_reader.Connection] = set()

    def bytes_in_flight(self) -> int:
        """Return what the engine still waits for from this node, over all calls."""
        return sum(c.bytes_in_flight for c in tuple(self.busy))


class Connections:
    """All data connections of one file system object in one process.

    Args:    key: proves us to the daemons and them to us; congestion: the kernel's algorithm for
             data sockets; receive_buffer_bytes: 0 leaves the kernel's default
    """

    def __init__(
        self,
        key: ClusterKey,
        *,
        connect_ms: int,
        congestion: str,
        receive_buffer_bytes: int,
    ) -> None:
        self._key = key
        self._connect_ms = connect_ms
        self._congestion = congestion or None
        self._receive_buffer_bytes = receive_buffer_bytes
        self._pools: dict[Address, NodePool] = {}
        self._closed = False
        _fork.register(self)

    def pool(self, address: Address) -> NodePool:
        """Return the pool of a node's address; a restarted daemon may have a new one."""
        found = self._pools.get(address)
        if found is None:
            found = self._pools.setdefault(address, NodePool(address))
        return found

    def checkout(
        self, address: Address, *, timeout_ms: int, fresh: bool = False
    ) -> _reader.Connection:
        """Take a connection to `address`, an idle one unless `fresh`.

        Raises:  UnavailableError or DeadlineError when it cannot be made; AuthError
        """
        if self._closed:
            raise ClosedError("the file system has been closed", hint="make a new one")
        pool = self._pools.get(address) or self.pool(address)
        connection = None if fresh else self._idle(pool)
        if connection is None:
            connection = self._connect(address, min(timeout_ms, self._connect_ms))
        pool.busy.add(connection)
        return connection

    def idle(self, address: Address) -> _reader.Connection | None:
        """Take an idle connection if there is one, without opening any: the one-read fast path."""
        pool = self._pools.get(address)
        connection = self._idle(pool) if pool is not None and not self._closed else None
        if connection is not None and pool is not None:
            pool.busy.add(connection)
        return connection

    def checkin(self, address: Address, connection: _reader.Connection) -> None:
        """Give a connection back; a broken one is closed, and with it the idle ones of its age."""
        pool = self.pool(address)
        pool.busy.discard(connection)
        if self._closed or not connection.alive:
            connection.close()
            self._drop_idle(pool)
        elif len(pool.idle) < IDLE_PER_NODE_MAX:
            pool.idle.append(connection)
        else:
            connection.close()

    def load(self, address: Address) -> int:
        """Return the bytes in flight to a node: what replica choice goes by."""
        found = self._pools.get(address)
        return found.bytes_in_flight() if found else 0

    def close(self) -> None:
        """Close everything; calls in other threads end with ConnectionLostError."""
        self._closed = True
        for pool in list(self._pools.values()):
            self._drop_idle(pool)

    def after_fork_in_child(self) -> None:
        """Close inherited descriptors without a word and forget them."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            for connection in (*pool.idle, *pool.busy):
                connection.close()

    def _idle(self, pool: NodePool) -> _reader.Connection | None:
        while True:
            try:
                connection = pool.idle.pop()
            except IndexError:
                return None
            if connection.alive:
                return connection
            connection.close()

    def _drop_idle(self, pool: NodePool) -> None:
        while True:
            try:
                pool.idle.pop().close()
            except IndexError:
                return

    def _connect(self, address: Address, timeout_ms: int) -> _reader.Connection:
        host, port = address
        sock = connect(
            host,
            port,
            self._key,
            HandshakeKind.DATA,
            timeout_ms=max(1, timeout_ms),
            congestion=self._congestion,
            receive_buffer_bytes=self._receive_buffer_bytes,
        )
        return _reader.Connection(sock.detach())
