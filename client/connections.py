"""Data connections to the storage daemons: stacks of idle ones per node: same host, RDMA, TCP.

Role: client/reader.py and client/writer.py check connections out for one call and in again after
it. A connection is made by ffs.handshake (which proves the cluster key on both sides) and handed,
as a descriptor, to the C engine.

Invariants: a connection is used by one call at a time; one that the engine closed is never handed
out again; nothing is opened before the first call.

Threads: stacks are lists whose append and pop are atomic, so no lock is held at any time, least of
         all at a fork (but where data is encrypted: ffs.tls_relay).
Fork:    the child closes its copies of the descriptors, idle or in use, and starts with none.
Failure: a node that cannot be reached raises UnavailableError naming it; the caller decides. A node
         that is on this host but cannot be read from here (another network namespace, an older
         daemon, no descriptors left) is read over TCP without a word, and tried again when a
         connection to it has broken.
"""

from __future__ import annotations

import logging
import socket
import weakref
from typing import Final

from ffs import _reader
from ffs.client import _fork, metrics
from ffs.client.grants import Grants
from ffs.client.rdma import LOOK_AGAIN_NS, Rdma, RdmaOptions
from ffs.errors import ClosedError, DeadlineError, FFSError, UnavailableError
from ffs.handshake import Credential, HandshakeKind
from ffs.rpc.dial import dial
from ffs.same_host import connect_local
from ffs.seams import Clock, SystemClock
from ffs.tls_relay import TlsRelay
from ffs.wire.frame import Priority

log = logging.getLogger("ffs.client.connections")

IDLE_PER_NODE_MAX: Final = 32
"""Idle connections kept for one node; more than this many threads at once reconnect now and
then."""
LOCAL_FAILURES_MAX: Final = 3
"""So many connections on the same host that broke, and none that served: TCP from then on."""

_ONLY_TCP: Final = 'the configuration says transport = "tcp"'

Address = tuple[str, int]


class NodePool:
    """The connections to one node's address."""

    __slots__ = (
        *("_opened", "address", "device", "elsewhere", "failures", "idle", "local", "no_rdma"),
        *("look_again_ns", "rdma", "rdma_own"),
    )

    def __init__(self, address: Address) -> None:
        self.address = address
        self.idle: list[_reader.Connection] = []
        self.local: list[_reader.Connection] = []
        """Idle ones over the daemon's Unix socket."""
        self.elsewhere = False
        """The node was not found on this host."""
        self.rdma: list[_reader.Connection] = []
        """Idle ones that have gone over to RDMA, for reads."""
        self.rdma_own: list[_reader.Connection] = []
        """Idle ones that have done so with a domain of their own: for writes, and for reads into
        memory of devices."""
        self.device = ""
        """That of the last one."""
        self.no_rdma = ""
        """Why they do not, until a connection to the node breaks, or `look_again_ns`."""
        self.look_again_ns = 0
        self.failures = 0
        self._opened: set[weakref.ref[_reader.Connection]] = set()
        """All of them, idle or in use: what a call that was broken off has lost closes itself."""

    def opened(self, connection: _reader.Connection) -> _reader.Connection:
        """Know a new connection, which is the caller's, until it is gone."""
        self._opened.add(weakref.ref(connection, self._opened.discard))
        return connection

    def connections(self) -> list[_reader.Connection]:
        """Return all that there are, idle or in use."""
        return [c for known in tuple(self._opened) if (c := known()) is not None]

    def bytes_in_flight(self) -> int:
        """Return what the engine still waits for from this node, over all calls."""
        return sum(c.bytes_in_flight for c in self.connections())


class Connections:
    """All data connections of one file system object in one process.

    Args:    key: proves us to the daemons and them to us; congestion: the kernel's algorithm for
             data sockets; receive_buffer_bytes: 0 leaves the kernel's default; same_host: whether
             daemons on this host are read from by their files; rdma: how to go by RDMA, None never;
             clock: by which that is tried again; grants: what a token's connections are shown;
             priority: of their requests; relay: encrypts them, None: they go in clear
    """

    def __init__(
        self,
        key: Credential,
        *,
        connect_ms: int,
        congestion: str,
        receive_buffer_bytes: int,
        same_host: bool = False,
        rdma: RdmaOptions | None = None,
        clock: Clock | None = None,
        grants: Grants | None = None,
        priority: Priority = Priority.TRAINING,
        relay: TlsRelay | None = None,
    ) -> None:
        self._key = key
        self._connect_ms = connect_ms
        self._congestion = congestion or None
        self._receive_buffer_bytes = receive_buffer_bytes
        self._same_host = same_host and bool(key.same_host)
        self._grants = grants
        self._priority = priority
        self._relay = relay
        self._by_token = bool(key.shown)
        self._proven: weakref.WeakKeyDictionary[_reader.Connection, Credential]
        self._proven = weakref.WeakKeyDictionary()
        """By which token connections were opened: those of one that was replaced are closed."""
        self._rdma = None if rdma is None else Rdma(rdma)
        self._clock = clock or SystemClock()
        self._pools: dict[Address, NodePool] = {}
        self._closed = False
        _fork.register(self)

    def pool(self, address: Address) -> NodePool:
        """Return the pool of a node's address; a restarted daemon may have a new one."""
        found = self._pools.get(address)
        if found is None:
            found = self._pools.setdefault(address, NodePool(address))
            metrics.serve_again()  # the first I/O in a forked child comes here
        return found

    def checkout(
        self,
        address: Address,
        *,
        timeout_ms: int,
        fresh: bool = False,
        reads: bool = False,
        own_domain: bool = False,
        plain: bool = False,
    ) -> _reader.Connection:
        """Take a connection to `address`, an idle one unless `fresh`.

        Args:    reads: one that only reads, and so may be a local one; own_domain: by RDMA one that
                 may write, and read into memory of devices; plain: one by TCP, whatever there is

        Raises:  UnavailableError or DeadlineError when it cannot be made; AuthError; TransportError
        """
        if self._closed:
            raise ClosedError("the file system has been closed", hint="make a new one")
        pool = self._pools.get(address) or self.pool(address)
        timeout_ms = max(1, min(timeout_ms, self._connect_ms))
        connection = None
        if reads and not fresh and self._same_host and not pool.elsewhere:
            connection = self._idle(pool.local) or self._connect_local(pool, timeout_ms // 2)
        by_rdma = not plain and self._by_rdma(pool)
        if connection is None and not fresh:
            by_rdma_idle = pool.rdma_own if own_domain else pool.rdma
            connection = self._idle(by_rdma_idle if by_rdma else pool.idle)
        if connection is None:
            connection = self._connect(pool, timeout_ms)
            if by_rdma:
                connection = self._go_over(pool, connection, timeout_ms, own_domain=own_domain)
                spare = None if fresh or connection.rdma else self._idle(pool.idle)
                if spare is not None:  # each time that it is tried again would leave one more
                    connection.close()
                    return spare
        return connection

    def open_mapped(self, address: Address, *, timeout_ms: int) -> _reader.Connection | None:
        """Open a connection for the caller alone, whose chunks may be mapped; None if the node is
        not on this host."""
        if self._closed:
            raise ClosedError("the file system has been closed", hint="make a new one")
        pool = self.pool(address)
        if not self._same_host or pool.elsewhere:
            return None
        return self._connect_local(pool, min(timeout_ms, self._connect_ms), mapped=True)

    def idle(self, address: Address) -> _reader.Connection | None:
        """Take an idle connection for a read if there is one, without opening any: the one-read
        fast path."""
        pool = self._pools.get(address)
        if pool is None or self._closed:
            return None
        if self._grants is not None:
            return next(iter(self.idle_alike(address, 1)), None)
        if self._same_host and not pool.elsewhere:
            return self._idle(pool.local)
        return self._idle(pool.rdma if self._by_rdma(pool) else pool.idle)

    def idle_alike(self, address: Address, wanted: int) -> list[_reader.Connection]:
        """Take so many idle connections for a read, all of one kind, or one that is local; none if
        there are fewer.

        Why alike: what a local connection fails to do is done over TCP, and by the first of them it
        is known what they are. Another thread may learn meanwhile that the node is elsewhere.
        """
        pool = self._pools.get(address)
        if pool is None or self._closed:
            return []
        if self._same_host and not pool.elsewhere:
            stack, wanted = pool.local, 1  # the calling thread reads: a second one is of no use
        else:
            stack = pool.rdma if self._by_rdma(pool) else pool.idle
        taken: list[_reader.Connection] = []
        while len(taken) < wanted:
            connection = self._idle(stack)
            if connection is not None:
                taken.append(connection)
            if connection is None or not self._may_read(connection):
                for other in taken:
                    self.checkin(address, other)
                return []
        return taken

    def _may_read(self, connection: _reader.Connection) -> bool:
        """Return whether nothing has to be shown before a read, as far as is known."""
        return self._grants is None or self._grants.is_up_to_date(connection)

    def checkin(self, address: Address, connection: _reader.Connection) -> None:
        """Give a connection back; a broken one is closed, and with it the idle ones of its age."""
        pool = self.pool(address)
        idle = pool.local if connection.local else pool.idle
        if connection.rdma is not None:
            idle = pool.rdma_own if connection.own_domain else pool.rdma
        if self._closed or not connection.alive:
            connection.close()
            self._drop_idle(pool)
            self._broken(pool, connection)
        elif len(idle) < IDLE_PER_NODE_MAX:
            idle.append(connection)
            if connection.local:
                pool.failures = 0
        else:
            connection.close()

    def tell_suspects(self, address: Address, descriptors: bytes, timeout_ms: int) -> None:
        """Tell a node of chunks that it did not give as it should: READ descriptors.

        Raises:  UnavailableError or DeadlineError when it cannot be reached; AuthError
        """
        connection = self.checkout(address, timeout_ms=timeout_ms, plain=True)
        try:
            _reader.suspect(connection, descriptors, deadline_ms=timeout_ms)
        finally:
            self.checkin(address, connection)

    def falls_back(self, connection: _reader.Connection) -> bool:
        """Return whether TCP may do what cannot be done over this connection."""
        return connection.rdma is not None and not (self._rdma and self._rdma.options.required)

    def transports(self) -> dict[str, dict[str, str]]:
        """Return for each node that was asked for something how its bytes travel now, and why not
        in a better way: {"host:port": {"transport": ..., "why": ...}}."""
        return {"{}:{}".format(*p.address): self._transport(p) for p in list(self._pools.values())}

    def reach(self, address: Address, *, timeout_ms: int) -> dict[str, str]:
        """Connect to a node as a read would, and return what `transports` has to say of it.

        Raises:  as `checkout`
        """
        self.checkin(address, self.checkout(address, timeout_ms=timeout_ms, reads=True))
        return self._transport(self.pool(address))

    def _transport(self, pool: NodePool) -> dict[str, str]:
        if self._same_host and not pool.elsewhere:
            return {"transport": "same host", "why": ""}
        if self._rdma is None:
            return {"transport": "tcp", "why": _ONLY_TCP}
        if pool.device and self._by_rdma(pool):
            return {"transport": f"rdma {pool.device}", "why": ""}
        return {"transport": "tcp", "why": pool.no_rdma or self._rdma.absent}

    def why_no_device(self) -> str:
        """Return why memory of a device cannot be read into, as far as a connection has told."""
        if self._rdma is None:
            return _ONLY_TCP
        for pool in list(self._pools.values()):
            told = [connection.rdma_fault[1] for connection in pool.rdma_own]
            if why := next(filter(None, told), pool.no_rdma):
                return why
        return self._rdma.absent

    def load(self, address: Address) -> int:
        """Return the bytes in flight to a node: what replica choice goes by."""
        found = self._pools.get(address)
        return found.bytes_in_flight() if found else 0

    def close(self) -> None:
        """Close everything; calls in other threads end with ConnectionLostError."""
        self._closed = True
        for pool in list(self._pools.values()):
            self._drop_idle(pool)
        if self._relay is not None:
            self._relay.close()

    def after_fork_in_child(self) -> None:
        """Close inherited descriptors without a word and forget them."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            for connection in pool.connections():
                connection.close()
        if self._relay is not None:
            self._relay.after_fork_in_child()

    def _idle(self, idle: list[_reader.Connection]) -> _reader.Connection | None:
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            if connection.alive and not (self._by_token and self._outdated(connection)):
                return connection
            connection.close()

    def _outdated(self, connection: _reader.Connection) -> bool:
        return self._proven.get(connection) is not self._key.current()

    def _drop_idle(self, pool: NodePool) -> None:
        for idle in (pool.idle, pool.local, pool.rdma, pool.rdma_own):
            while True:
                try:
                    idle.pop().close()
                except IndexError:
                    break

    def _broken(self, pool: NodePool, connection: _reader.Connection) -> None:
        """The daemon may be another one now, or what it offers may be of no use here."""
        if connection.local:
            pool.failures += 1
        pool.elsewhere = connection.local and pool.failures >= LOCAL_FAILURES_MAX
        fault, why = connection.rdma_fault
        self._stay(pool, why if fault else "")

    def _by_rdma(self, pool: NodePool) -> bool:
        """Return whether connections to the node go by RDMA, or may yet."""
        if self._rdma is None:
            return False
        if self._rdma.options.required:
            return True
        if self._rdma.absent:
            return False
        return not pool.no_rdma or self._clock.monotonic_ns() >= pool.look_again_ns

    def _stay(self, pool: NodePool, why: str) -> None:
        """Have connections to the node stay TCP for a while, if there is a reason."""
        pool.no_rdma = why
        pool.look_again_ns = self._clock.monotonic_ns() + LOOK_AGAIN_NS

    def _go_over(
        self, pool: NodePool, connection: _reader.Connection, timeout_ms: int, *, own_domain: bool
    ) -> _reader.Connection:
        """Have a fresh connection go over to RDMA; return it, or one by TCP where that failed."""
        assert self._rdma is not None
        node = "{}:{}".format(*pool.address)
        why = pool.no_rdma if self._clock.monotonic_ns() < pool.look_again_ns else ""
        pool.no_rdma = ""
        try:
            stays = self._rdma.go_over(connection, node, timeout_ms, why, own_domain=own_domain)
        except UnavailableError as error:
            if self._rdma.options.required:
                raise
            self._stay(pool, str(error))
            return self._connect(pool, timeout_ms)
        except BaseException:
            connection.close()
            raise
        pool.device = connection.rdma or ""
        if stays:
            self._stay(pool, stays)
        return connection

    def _connect_local(
        self, pool: NodePool, timeout_ms: int, *, mapped: bool = False
    ) -> _reader.Connection | None:
        key = self._key.current()
        try:
            sock = connect_local(key, pool.address, timeout_ms=max(1, timeout_ms))
            connection = self._connection(sock, local=True, mapped=mapped)
            if self._by_token:
                self._proven[connection] = key
        except DeadlineError:
            return None  # it is there and busy; the other half of the time is for TCP
        except (OSError, FFSError) as error:
            pool.elsewhere = True
            facts = {"address": "{}:{}".format(*pool.address), "reason": str(error)}
            log.debug("not_on_this_host", extra=facts)
            return None
        return connection if mapped else pool.opened(connection)

    def _connect(self, pool: NodePool, timeout_ms: int) -> _reader.Connection:
        host, port = pool.address
        key = self._key.current()
        line = dial(
            host,
            port,
            key,
            self._relay.tls if self._relay is not None else None,
            HandshakeKind.DATA,
            timeout_ms=timeout_ms,
            congestion=self._congestion,
            receive_buffer_bytes=self._receive_buffer_bytes,
        )
        try:
            connection = pool.opened(self._connection(line.plain(self._relay)))
            if self._by_token:
                self._proven[connection] = key
            return connection
        except OSError as error:
            raise UnavailableError(
                f"no connection can be made of a socket: {error.strerror}",
                hint="see the limits of this process: `ulimit -n`",
                address=f"{host}:{port}",
            ) from error

    def _connection(self, sock: socket.socket, **kind: bool) -> _reader.Connection:
        """Make a connection of a socket, which is closed.

        Why by a copy of its descriptor: either object closes its own, wherever Ctrl-C breaks this
        off.
        """
        with sock:
            return _reader.Connection(sock.fileno(), copy=True, priority=self._priority, **kind)
