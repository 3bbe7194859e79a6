"""Waits until a cluster that has just come up can take files: all of its chains serve.

Used by server/up.py, once all processes serve. Next hop: the metadata server, by the same calls as
any client. Failure behaviour: a chain that does not come up is no reason to keep the others from
their users, so the wait has an end, which is logged.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from ffs.chains import serving, target_states
from ffs.errors import FFSError
from ffs.key import ClusterKey
from ffs.rpc.addresses import Address
from ffs.rpc.aio import AsyncRpcClient
from ffs.tls import Tls
from ffs.types import Routing
from ffs.wire.membership import WATCH_ROUTING, WatchRoutingRequest

log = logging.getLogger("ffs.up")

WAIT_S_MAX: Final = 30.0
_WATCH_MS: Final = 1_000


async def until_chains_serve(meta: Address, key: ClusterKey, tls: Tls | None = None) -> None:
    """Return when there are chains and each has as many members in service as writes need.

    After `WAIT_S_MAX` it returns too. Raises: FFSError that waiting will not cure.
    """
    rpc = AsyncRpcClient([meta], key, tls=tls)
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            await _watch(rpc)
    except TimeoutError:
        log.warning("chains_do_not_serve", extra={"hint": "`ffs status` shows which, and why"})
    finally:
        await rpc.close()


async def _watch(rpc: AsyncRpcClient) -> None:
    version = -1
    while True:
        request = WatchRoutingRequest(version, _WATCH_MS)
        try:
            reply = await rpc.call(WATCH_ROUTING, request, deadline_ms=10 * _WATCH_MS)
        except FFSError as error:
            if not (error.retryable or isinstance(error, TimeoutError)):
                raise
            await asyncio.sleep(_WATCH_MS / 10 / 1e3)
            continue
        if reply.routing is not None:
            version = reply.routing.version
            if all_serve(reply.routing):
                return


def all_serve(routing: Routing) -> bool:
    """Tell whether files can be written: each chain has enough members in service."""
    states = target_states(routing)
    return bool(routing.tables) and all(
        len(serving(chain, states)) >= routing.min_replicas for chain in routing.chains
    )
