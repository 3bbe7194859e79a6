"""The data port: hands connections that have proven the cluster key to the C loops.

Previous hop: ffs.rpc.door lets a client in; next hop: ffs._storage.DataLoop, which owns the
descriptor from then on. When places become short, connections that do nothing are closed, the
longest idle first; their clients open new ones when they need them. When there are none left, the
address with most connections gives some up to others (ffs.rpc.shares), the oldest first.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import Final

from ffs._storage import DataLoop
from ffs.auth.audit import note_grant
from ffs.auth.token import Claims
from ffs.auth.verifier import TokenVerifier
from ffs.handshake import HandshakeKind
from ffs.key import ClusterKey
from ffs.limits import CONNECTIONS_PER_DAEMON_MAX
from ffs.rpc.dial import Line
from ffs.rpc.door import Door
from ffs.rpc.greeting import Greeting
from ffs.rpc.shares import Shares
from ffs.tls_relay import TlsRelay
from ffs.wire.frame import Op

log = logging.getLogger("ffs.storage.port")

_LOOK_S: Final = 0.5
SPARE_PLACES: Final = 64
"""Places that are cleared of idle connections before they are needed: loops do so in their turn."""


class DataPort:
    """Feeds authenticated connections to a data loop.

    Args:    local: listens to clients on this host (ffs/same_host.py), who may read the extent
             files; closing both listeners is the caller's part; tokens: says which tokens count,
             None: none do. On `local` only those do that say so: a descriptor shows more than
             was granted; relay: encrypts what goes over the network, None: it goes in clear
    Threads: the event loop's alone; Fork: none
    """

    def __init__(
        self,
        listener: socket.socket,
        key: ClusterKey,
        data: DataLoop,
        local: socket.socket | None = None,
        *,
        tokens: TokenVerifier | None = None,
        relay: TlsRelay | None = None,
    ) -> None:
        self._data = data
        self._relay = relay
        self._hosts: dict[int, str] = {}
        """Of each connection, by its id, the oldest first."""
        self._shares = Shares()
        self._tokens = tokens
        self._by_token: dict[int, Claims] = {}
        self._doors = [
            Door(
                listener,
                key,
                HandshakeKind.DATA,
                admit=self._admit,
                welcome=self._welcome,
                tls=relay.tls if relay is not None else None,
                tokens=tokens,
            )
        ]
        if local is not None:
            welcome = partial(self._welcome, local=True)
            self._doors.append(
                Door(
                    local,
                    key,
                    HandshakeKind.LOCAL,
                    admit=self._admit,
                    welcome=welcome,
                    tokens=tokens,
                )
            )

    async def serve(self) -> None:
        """Accept until cancelled; strangers in their handshake are cut off then."""
        await asyncio.gather(*(door.serve() for door in self._doors), self._watch_tokens())

    def _admit(self, guest: Greeting) -> bool:
        taken: int = self._data.stats()["connections"]
        short = taken + 1 - (CONNECTIONS_PER_DAEMON_MAX - SPARE_PLACES)
        if short > 0:
            self._data.close_idle(short)
        if taken < CONNECTIONS_PER_DAEMON_MAX:
            return True
        greedy = self._shares.greedier_than(guest.host)
        if greedy is not None:
            oldest = next(number for number, host in self._hosts.items() if host == greedy)
            self._data.close_connection(oldest)
            self.closed(oldest)  # the next one that is needed is another
        return False

    def closed(self, connection: int) -> None:
        """Forget a connection that has ended."""
        self._by_token.pop(connection, None)
        host = self._hosts.pop(connection, None)
        if host is not None:
            self._shares.remove(host)

    def refused(self, connection: int, request_id: int, op: int, blob: int, left_out: int) -> None:
        """Write down that a request was refused for want of a grant, and to whom."""
        claims = self._by_token.get(connection)
        if claims is not None:
            note_grant(claims, self._hosts[connection], Op(op), request_id, blob, left_out)

    def _welcome(self, guest: Greeting, *, local: bool = False) -> None:
        try:
            claims = guest.claims
            token_id = None if claims is None else claims.token_id
            plain = Line(guest.sock, guest.channel).plain(self._relay)
            with plain:
                connection = self._data.adopt(plain.fileno(), local=local, token_id=token_id)
                plain.detach()
        except OSError as error:
            facts = {"peer": guest.address, "reason": str(error)}
            log.warning("data_connection_refused", extra=facts)
        else:
            self._hosts[connection] = guest.host
            self._shares.add(guest.host)
            if claims is not None:
                self._by_token[connection] = claims

    async def _watch_tokens(self) -> None:
        """Twice a second: close connections whose tokens count no more, and change keys at the
        turn of their day."""
        keys = None
        while self._tokens is not None:
            if keys != (live := self._tokens.grants.live()):
                self._data.set_grant_keys(*live)
                keys = live
            for connection, claims in list(self._by_token.items()):
                if not self._tokens.counts(claims):
                    self.closed(connection)
                    self._data.close_connection(connection)
            await asyncio.sleep(_LOOK_S)
