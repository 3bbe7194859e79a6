"""One logical call over several metadata servers: who is asked, for how long, and who is learnt."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from ffs.client.calls import REQUESTS_AHEAD, MetaCalls
from ffs.client.retry import RetryPolicy
from ffs.errors import BusyError, DeadlineError, ExistsError, FFSError, UnavailableError
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
        self.fails_at: bytes | None = None
        """The path whose first request fails; None: any, each time."""
        self.running = self.running_max = self.done = 0
        self.address: Address = ("", 0)

    async def routing(self, request: wire.RoutingRequest, peer: Peer) -> wire.ClusterReply:
        """Say who is there."""
        self.asked += 1
        routing = Routing(1, [], [], [], [])
        return wire.ClusterReply(b"c", routing, 1, 1, Layout(65_536, 1, 1, 0), self.told)

    async def mkdir(self, request: wire.MkdirRequest, peer: Peer) -> wire.AttrReply:
        """Do it, or not."""
        self.mutations.append(request.mutation)
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        await asyncio.sleep(60 if self.hangs else 0.002)
        self.running -= 1
        if self.fails is not None and self.fails_at in (None, request.path):
            failure, self.fails = self.fails, self.fails if self.fails_at is None else None
            raise failure
        self.done += 1
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
        assert ready.wait(60)
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
    with closing(calls(first.address, second.address, deadline_ms=6_000)) as client:
        mutation = mkdir(client)
    assert first.mutations == second.mutations == [mutation]


def test_the_only_server_has_all_the_time_there_is(servers: list[Server]) -> None:
    first, _ = servers
    first.hangs, first.told = True, []
    with closing(calls(first.address, deadline_ms=1_500)) as client:
        with pytest.raises(DeadlineError):
            mkdir(client)
        assert len(first.mutations) == 1


def test_what_no_server_can_do_is_said_in_time(servers: list[Server]) -> None:
    for server in servers:
        server.fails = UnavailableError("the database cannot be reached")
    addresses = [server.address for server in servers]
    with (
        closing(calls(*addresses, deadline_ms=2_500)) as client,
        pytest.raises(UnavailableError, match="database"),
    ):
        mkdir(client)
    assert servers[0].mutations and servers[1].mutations
    assert len({*servers[0].mutations, *servers[1].mutations}) == 1


# --- one request after the other --------------------------------------------------------------


def requests(
    client: MetaCalls, count: int, made: list[bytes] | None = None
) -> Iterator[wire.MkdirRequest]:
    """Different mutations, each noted when it is asked for."""
    for number in range(count):
        request = wire.MkdirRequest(client.mutation(), b"/%d" % number)
        if made is not None:
            made.append(request.mutation)
        yield request


@pytest.fixture
def alone(servers: list[Server]) -> Server:
    """A server that knows of no other."""
    servers[0].told = []
    return servers[0]


def test_requests_are_made_a_few_ahead_of_the_replies(alone: Server) -> None:
    made: list[bytes] = []
    with closing(calls(alone.address)) as client:
        replies = client.call_each(wire.MKDIR, requests(client, 20, made))
        assert not made, "nothing starts before the first reply is wanted"
        next(replies)
        assert len(made) == REQUESTS_AHEAD
        assert len(list(replies)) == 19
        assert list(client.call_each(wire.MKDIR, [])) == []
    assert alone.mutations == made
    assert 1 < alone.running_max <= REQUESTS_AHEAD


def test_one_phase_follows_the_other_batch_by_batch(alone: Server) -> None:
    with closing(calls(alone.address)) as client:
        seen: list[int] = []

        def second() -> Iterator[wire.MkdirRequest]:
            for reply in client.call_each(wire.MKDIR, requests(client, 12)):
                seen.append(alone.done)
                yield wire.MkdirRequest(client.mutation(), b"/%d" % reply.attr.inode)

        assert len(list(client.call_each(wire.MKDIR, second()))) == 12
    assert alone.done == 24
    assert seen[-1] > 12, "the second phase began before the first was over"


@pytest.mark.parametrize("error", [UnavailableError, BusyError])
def test_only_what_failed_is_sent_again(alone: Server, error: type[FFSError]) -> None:
    alone.fails, alone.fails_at = error("not now"), b"/5"
    made: list[bytes] = []
    with closing(calls(alone.address)) as client:
        assert len(list(client.call_each(wire.MKDIR, requests(client, 10, made)))) == 10
    assert sorted(alone.mutations) == sorted([*made, made[5]])


def test_another_server_goes_on_with_what_was_not_answered(servers: list[Server]) -> None:
    first, second = servers
    first.fails, first.fails_at = UnavailableError("the database is gone"), b"/5"
    made: list[bytes] = []
    with closing(calls(first.address)) as client:
        client.route()
        assert len(list(client.call_each(wire.MKDIR, requests(client, 10, made)))) == 10
    assert first.mutations[:6] == made[:6]
    assert second.mutations == made[5:]


def test_a_final_error_comes_when_nothing_is_under_way(alone: Server) -> None:
    alone.fails, alone.fails_at = ExistsError("name exists"), b"/5"
    with closing(calls(alone.address)) as client:
        replies = client.call_each(wire.MKDIR, requests(client, 10))
        assert len([next(replies) for _ in range(5)]) == 5
        with pytest.raises(ExistsError):
            next(replies)
        assert alone.running == 0
        assert alone.done == len(alone.mutations) - 1
        mkdir(client)
        assert len(client._rpc._open) == 1, "the connection is used on"


def test_a_caller_that_takes_its_time_spends_no_deadline(alone: Server) -> None:
    with closing(calls(alone.address, deadline_ms=1_500)) as client:
        for count, _ in enumerate(client.call_each(wire.MKDIR, requests(client, 8))):
            if count == 2:
                time.sleep(1.6)
    assert alone.done == 8
