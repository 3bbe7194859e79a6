"""One logical call over several metadata servers: who is asked, for how long, and who is learnt."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from ffs.client.calls import MetaCalls
from ffs.client.retry import RetryPolicy
from ffs.errors import DeadlineError, FFSError, UnavailableError
from ffs.key import ClusterKey
from ffs.rpc.addresses import Address, show_address
from ffs.rpc.aio import Peer, RpcServer
from ffs.rpc.blocking import RpcClient
from ffs.seams import SystemClock, SystemRandomness
from ffs.types import Attr, Layout, Routing
from ffs.wire import messages as wire

KEY = ClusterKey(b"k" * 32)


class Server:
    """A metadata server that answers two methods, in a thread."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.asked = 0
        self.mutations: list[bytes] = []
        self.hangs = False
        self.fails: FFSError | None = None
        self.address: Address = ("", 0)

    async def routing(self, request: wire.RoutingRequest, peer: Peer) -> wire.ClusterReply:
        """Say who is there."""
        self.asked += 1
        routing = Routing(1, [], [], [], [])
        return wire.ClusterReply(b"c", routing, 1, 1, Layout(65_536, 1, 1, 0), self.told)

    async def mkdir(self, request: wire.MkdirRequest, peer: Peer) -> wire.AttrReply:
        """Do it, or not."""
        self.mutations.append(request.mutation)
        if self.hangs:
            await asyncio.sleep(60)
        if self.fails is not None:
            raise self.fails
        return wire.AttrReply(Attr(2, 2, 0o755, 0, 0, 2, 0, 1, 0, 0, 0))

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve meanwhile."""
        loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

        async def main() -> None:
            server = RpcServer({"routing": self.routing, "mkdir": self.mkdir}, KEY)
            self.address = await server.start("127.0.0.1", 0)
            ready.set()
            await stop.wait()
            await server.close(grace_ms=0)

        thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
        thread.start()
        assert ready.wait(10)
        try:
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Two that know of each other."""
    made = [Server(), Server()]
    with ExitStack() as stack:
        for server in made:
            stack.enter_context(server.serving())
        for server in made:
            server.told = [show_address(*one.address) for one in made]
        yield made


def calls(*addresses: Address, deadline_ms: int = 30_000) -> MetaCalls:
    """A client that was told of some servers."""
    randomness = SystemRandomness()
    return MetaCalls(
        RpcClient(addresses, KEY),
        RetryPolicy(1, 10, randomness),
        SystemClock(),
        randomness,
        deadline_ms=deadline_ms,
        attr_ttl_ms=0,
    )


def mkdir(client: MetaCalls) -> bytes:
    """One mutation; its id."""
    request = wire.MkdirRequest(client.mutation(), b"/d")
    client.call(wire.MKDIR, request)
    return request.mutation


def test_each_new_server_is_asked_once_for_the_others(servers: list[Server]) -> None:
    first, second = servers
    with closing(calls(first.address)) as client:
        for _ in range(5):
            mkdir(client)
        client.route()
        assert (first.asked, second.asked) == (1, 0)
        first.fails = UnavailableError("the database cannot be reached")
        mutation = mkdir(client)
        assert first.mutations[-1] == second.mutations[-1] == mutation
        for _ in range(5):
            mkdir(client)
        assert (first.asked, second.asked) == (1, 1)
        assert len(first.mutations) == 6, "it is not tried again while the other one answers"


def test_a_server_that_hangs_costs_a_part_of_the_deadline(servers: list[Server]) -> None:
    first, second = servers
    first.hangs = True
    with closing(calls(first.address, second.address, deadline_ms=1_500)) as client:
        mutation = mkdir(client)
    assert first.mutations == second.mutations == [mutation]


def test_the_only_server_has_all_the_time_there_is(servers: list[Server]) -> None:
    first, _ = servers
    first.hangs, first.told = True, []
    with closing(calls(first.address, deadline_ms=300)) as client:
        with pytest.raises(DeadlineError):
            mkdir(client)
        assert len(first.mutations) == 1


def test_what_no_server_can_do_is_said_in_time(servers: list[Server]) -> None:
    for server in servers:
        server.fails = UnavailableError("the database cannot be reached")
    addresses = [server.address for server in servers]
    with (
        closing(calls(*addresses, deadline_ms=800)) as client,
        pytest.raises(UnavailableError, match="database"),
    ):
        mkdir(client)
    assert servers[0].mutations and servers[1].mutations
    assert len({*servers[0].mutations, *servers[1].mutations}) == 1
