"""Waiting for a newer routing: woken at once, bounded in number and time, on real connections."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from ffs.errors import BusyError, UnavailableError
from ffs.key import ClusterKey
from ffs.limits import WATCH_MS_MAX, WATCHERS_MAX
from ffs.rpc.aio import AsyncRpcClient, Peer, RpcServer
from ffs.server.meta.cluster.watch import RoutingWatch
from ffs.types import Routing
from ffs.wire.membership import WATCH_ROUTING, WatchRoutingReply, WatchRoutingRequest


async def until_waiting(watch: RoutingWatch, count: int) -> None:
    while len(watch._waiting) != count:  # noqa: ASYNC110  it is what is tested
        await asyncio.sleep(0)


def test_watchers_max() -> None:
    async def scenario() -> None:
        watch = RoutingWatch()
        waiting = [asyncio.ensure_future(watch.wait(WATCH_MS_MAX)) for _ in range(WATCHERS_MAX)]
        await until_waiting(watch, WATCHERS_MAX)
        with pytest.raises(BusyError):
            await watch.wait(WATCH_MS_MAX)
        waiting.pop().cancel()
        await until_waiting(watch, WATCHERS_MAX - 1)
        waiting.append(asyncio.ensure_future(watch.wait(WATCH_MS_MAX)))
        await until_waiting(watch, WATCHERS_MAX)
        watch.wake()
        await asyncio.gather(*waiting[1:], return_exceptions=True)

    asyncio.run(scenario())


def test_watch_ms_max(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float | None] = []
    real = asyncio.timeout

    def noted(delay: float | None) -> asyncio.Timeout:
        timeouts.append(delay)
        return real(0)

    async def scenario() -> None:
        monkeypatch.setattr(asyncio, "timeout", noted)
        for wait_ms in (WATCH_MS_MAX, WATCH_MS_MAX + 1, -1):
            await RoutingWatch().wait(wait_ms)

    asyncio.run(scenario())
    assert timeouts == [WATCH_MS_MAX / 1e3, WATCH_MS_MAX / 1e3, 0]


def test_a_watch_ends_with_its_client_and_with_its_server(tmp_path: Path) -> None:
    """It holds no room for its reply, and nothing waits for it to end by itself."""
    key = ClusterKey(os.urandom(32))
    watch = RoutingWatch()
    answers: list[Routing] = []

    async def handle(request: WatchRoutingRequest, peer: Peer) -> WatchRoutingReply:
        await watch.wait(request.wait_ms)
        return WatchRoutingReply(answers[-1] if answers else None)

    async def scenario() -> None:
        server = RpcServer({WATCH_ROUTING.name: handle}, key)
        address = await server.start("127.0.0.1", 0)
        clients = [AsyncRpcClient([address], key) for _ in range(3)]
        request = WatchRoutingRequest(0, WATCH_MS_MAX)
        calls = [
            asyncio.ensure_future(client.call(WATCH_ROUTING, request, deadline_ms=60_000))
            for client in clients
        ]
        await until_waiting(watch, 3)
        assert server.replies.used == 0
        await clients[0].close()
        await until_waiting(watch, 2)
        answers.append(Routing(7, [], [], [], [], 2))
        watch.wake()
        assert [(await call).routing for call in calls[1:]] == [answers[0]] * 2
        last = asyncio.ensure_future(clients[1].call(WATCH_ROUTING, request, deadline_ms=60_000))
        await until_waiting(watch, 1)
        await server.close(grace_ms=60_000)
        for lost in (calls[0], last):
            with pytest.raises(UnavailableError):
                await lost
        for client in clients[1:]:
            await client.close()

    asyncio.run(scenario())
