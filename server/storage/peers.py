"""Connections to the daemons that we forward writes to: opened on demand, handed to the data loop.

Write path: server/storage/pump.py (a write has a next member) -> THIS -> ffs._storage.DataLoop,
which owns the descriptor and sends the chunk. The handshake is that of any client.

There is one connection for each (node, hop), since a daemon that has no room for writes of one hop
stops reading a connection that brings one: writes of a later hop, for which others wait, must not
stand behind it.

Invariants: a write that was given to `forward` ends once, by an EVENT_FORWARDED of the data loop or
by `on_failed`, which is never called from inside of `forward`. No connection outlives the routing
that made its node our successor: one to a node that was taken for dead is closed, and all that
waited for its answer ends.

Failure behaviour: a node that cannot be reached costs the writes that waited for the attempt; for a
pause, which doubles, others fail at once. Their writers try again, or a new routing goes round it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from ffs._storage import DataLoop
from ffs.errors import FFSError
from ffs.handshake import HandshakeKind
from ffs.key import ClusterKey
from ffs.rpc.dial import dial_async
from ffs.seams import Clock, SystemClock
from ffs.tls_relay import TlsRelay
from ffs.types import Routing

log = logging.getLogger("ffs.storage.peers")

CONNECT_MS: Final = 3_000
"""One attempt, handshake included: less than it takes until a dead node is replaced."""
PAUSE_MS_MIN: Final = 20
PAUSE_MS_MAX: Final = 1_000

Hop = tuple[int, int]
"""A node, and the place in the chain that writes to it have there."""
_Address = tuple[str, int]


@dataclass(slots=True)
class _Peer:
    """One connection: there, under way, or lost until the next write wants it."""

    address: _Address
    peer_id: int | None = None
    connecting: asyncio.Task[None] | None = None
    waiting: list[tuple[int, int]] = field(default_factory=list)
    """Writes and their targets, until the connection is there."""
    failures: int = 0
    pause_until_ns: int = 0


class Peers:
    """Our connections to successors, by node and hop.

    Args:    congestion: a TCP congestion control that they begin with; "": the system's default;
             relay: encrypts what they carry, None: it goes in clear
    Threads: the event loop's alone; Fork: none
    """

    def __init__(
        self,
        data: DataLoop,
        key: ClusterKey,
        *,
        congestion: str = "",
        relay: TlsRelay | None = None,
        connect_ms: int = CONNECT_MS,
        clock: Clock | None = None,
    ) -> None:
        self._data = data
        self._key = key
        self._congestion = congestion
        self._relay = relay
        self._connect_ms = connect_ms
        self._clock = clock or SystemClock()
        self._addresses: dict[int, _Address] = {}
        self._peers: dict[Hop, _Peer] = {}
        self._hops: dict[int, Hop] = {}
        """Whose connection the data loop knows by which id."""
        self._on_failed: Callable[[list[int]], None] = lambda write_ids: None
        self._on_broken: Callable[[Exception], None] = lambda error: None

    def start(
        self, on_failed: Callable[[list[int]], None], on_broken: Callable[[Exception], None]
    ) -> None:
        """Tell from now on which writes could not be sent, and what must end the daemon."""
        self._on_failed = on_failed
        self._on_broken = on_broken

    def routing_changed(self, routing: Routing, successors: Iterable[Hop]) -> None:
        """Close what leads to no successor of ours any more, or not to where it is now."""
        self._addresses = {node.node: (node.host, node.port) for node in routing.nodes}
        wanted = set(successors)
        for hop, peer in list(self._peers.items()):
            if hop not in wanted or self._addresses.get(hop[0]) != peer.address:
                del self._peers[hop]
                self._drop(peer)

    def forward(self, write_ids: list[int], hop: Hop, target: int) -> None:
        """Have chunks sent to `target` on the node of `hop`, over a connection that is opened if
        there is none."""
        peer = self._peer(hop)
        if peer is None:
            self._fail(write_ids)
        elif peer.peer_id is not None:
            self._data.forward(write_ids, peer.peer_id, target)
        elif peer.connecting is not None or self._clock.monotonic_ns() >= peer.pause_until_ns:
            peer.waiting += [(write_id, target) for write_id in write_ids]
            if peer.connecting is None:
                peer.connecting = asyncio.create_task(self._connect(hop, peer))
        else:
            self._fail(write_ids)

    def disconnect(self, hop: Hop) -> None:
        """Close a connection whose node owes answers that nobody needs; the next write opens it."""
        peer = self._peers.pop(hop, None)
        if peer is not None:
            log.warning("peer_owes_answers", extra={"node": hop[0]})
            self._drop(peer)

    def closed(self, peer_id: int) -> None:
        """The data loop has ended a connection, and the forwards on it before."""
        hop = self._hops.pop(peer_id, None)
        if hop is not None:
            self._peers[hop].peer_id = None
            log.info("peer_lost", extra={"node": hop[0]})

    async def close(self) -> None:
        """Give up attempts under way; the data loop closes what it owns by itself."""
        tasks = [peer.connecting for peer in self._peers.values() if peer.connecting is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one connection ---------------------------------------------------------------------------

    def _peer(self, hop: Hop) -> _Peer | None:
        peer = self._peers.get(hop)
        if peer is None and (address := self._addresses.get(hop[0])) is not None:
            peer = self._peers[hop] = _Peer(address)
        return peer

    async def _connect(self, hop: Hop, peer: _Peer) -> None:
        """Open the connection, then send what has waited for it."""
        try:
            line = await dial_async(
                *peer.address,
                self._key,
                self._relay.tls if self._relay is not None else None,
                HandshakeKind.DATA,
                timeout_ms=self._connect_ms,
                congestion=self._congestion,
            )
            with line.plain(self._relay) as sock:
                peer.peer_id = self._data.add_peer(sock.fileno())
                sock.detach()
        except (FFSError, OSError) as error:
            peer.failures += 1
            pause_ms = min(PAUSE_MS_MIN << min(peer.failures - 1, 10), PAUSE_MS_MAX)
            peer.pause_until_ns = self._clock.monotonic_ns() + pause_ms * 1_000_000
            facts = {"node": hop[0], "address": f"{peer.address[0]}:{peer.address[1]}"}
            log.warning("peer_unreachable", extra=facts | {"reason": str(error)})
        else:
            self._hops[peer.peer_id] = hop
            peer.failures = 0
        finally:
            peer.connecting = None
        try:
            self._send_waiting(peer)
        except Exception as error:  # noqa: BLE001  it is handed on and ends the daemon
            self._on_broken(error)

    def _send_waiting(self, peer: _Peer) -> None:
        """Pass on what waited for a connection that is there now, or is not to be had."""
        waiting, peer.waiting = peer.waiting, []
        if peer.peer_id is None:
            self._fail([write_id for write_id, _ in waiting])
            return
        for target in sorted({target for _, target in waiting}):
            write_ids = [write_id for write_id, other in waiting if other == target]
            self._data.forward(write_ids, peer.peer_id, target)

    def _drop(self, peer: _Peer) -> None:
        if peer.connecting is not None:
            peer.connecting.cancel()
        self._fail([write_id for write_id, _ in peer.waiting])
        peer.waiting = []
        if peer.peer_id is not None:
            del self._hops[peer.peer_id]
            self._data.close_peer(peer.peer_id)

    def _fail(self, write_ids: list[int]) -> None:
        if write_ids:
            asyncio.get_running_loop().call_soon(self._on_failed, write_ids)
