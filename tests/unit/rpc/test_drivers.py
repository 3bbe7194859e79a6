"""Both clients against the server, on asyncio in debug mode and on uvloop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import pytest

from ffs.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    FFSError,
    InvalidError,
    NotFoundError,
    ProtocolError,
    UnavailableError,
)
from ffs.handshake import ClusterKey
from ffs.limits import RPC_IN_FLIGHT_MAX
from ffs.rpc import aio
from ffs.rpc.aio import AsyncRpcClient, RpcServer
from ffs.rpc.blocking import RpcClient
from ffs.wire.method import Method
from tests.promptly import promptly
from tests.unit.conftest import RunAsync
from tests.unit.rpc.support import (
    CRASH,
    ECHO,
    FAIL,
    GONE,
    METHODS,
    Address,
    Echo,
    Held,
    Service,
    dial,
    framed,
    serving,
    until,
)


class Client(Protocol):
    """What both drivers offer, awaited."""

    async def call(self, method: Method[Any, Any], request: Any, *, deadline_ms: int) -> Any: ...

    async def call_pipelined(
        self, method: Method[Any, Any], requests: Sequence[Any], *, deadline_ms: int
    ) -> list[Any]: ...

    async def close(self) -> None: ...


class Threaded:
    """The blocking client, called from threads."""

    def __init__(self, addresses: Sequence[Address], key: ClusterKey, **options: Any) -> None:
        self.client = RpcClient(addresses, key, **options)

    async def call(self, method: Any, request: Any, *, deadline_ms: int) -> Any:
        return await asyncio.to_thread(self.client.call, method, request, deadline_ms=deadline_ms)

    async def call_pipelined(self, method: Any, requests: Any, *, deadline_ms: int) -> list[Any]:
        return await asyncio.to_thread(
            self.client.call_pipelined, method, requests, deadline_ms=deadline_ms
        )

    async def close(self) -> None:
        self.client.close()


MakeClient = Callable[..., Client]
Scenario = Callable[[RpcServer, Address, Service, Client], Awaitable[None]]


@pytest.fixture(params=[Threaded, AsyncRpcClient], ids=["blocking", "async"])
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    """Each driver's client in turn."""
    made: MakeClient = request.param
    return made


@pytest.fixture
def play(
    run_async: RunAsync, make_client: MakeClient, key: ClusterKey
) -> Callable[[Scenario], None]:
    """Run a scenario with a server and one client."""

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            service = Service()
            async with serving(key, service) as (server, address):
                client = make_client([address], key)
                try:
                    await scenario(server, address, service, client)
                finally:
                    await client.close()

        run_async(main)

    return run


def test_a_call_and_its_reply(play: Callable[[Scenario], None]) -> None:
    async def scenario(
        server: RpcServer, address: Address, service: Service, client: Client
    ) -> None:
        for i in range(20):
            data = b"%d" % i
            assert await client.call(ECHO, Echo(data), deadline_ms=5_000) == Echo(data)
        assert server.connections == 1, "one connection is enough for one caller"
        (peer,) = service.peers
        assert peer.version == 1
        assert peer.address.startswith("127.0.0.1:")

    play(scenario)


def test_typed_errors_arrive_typed(play: Callable[[Scenario], None]) -> None:
    async def scenario(
        server: RpcServer, address: Address, service: Service, client: Client
    ) -> None:
        with pytest.raises(NotFoundError) as caught:
            await client.call(FAIL, Echo(b"/a\xff"), deadline_ms=5_000)
        assert caught.value.message == "no such thing"
        assert caught.value.hint == "look elsewhere"
        assert caught.value.where == {"path": b"/a\xff"}
        assert await client.call(ECHO, Echo(b"x"), deadline_ms=5_000) == Echo(b"x")
        assert server.connections == 1, "a failed request does not cost the connection"

    play(scenario)


def test_bugs_are_logged_and_not_told(
    play: Callable[[Scenario], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(
        server: RpcServer, address: Address, service: Service, client: Client
    ) -> None:
        with pytest.raises(FFSError) as caught:
            await client.call(CRASH, Echo(b""), deadline_ms=5_000)
        assert caught.value.code == 1
        assert "secret" not in str(caught.value)
        assert await client.call(ECHO, Echo(b"x"), deadline_ms=5_000) == Echo(b"x")

    with caplog.at_level(logging.ERROR, "ffs.rpc"):
        play(scenario)
    assert "rpc_handler_failed" in caplog.messages
    assert "secret details" in caplog.text


def test_method_of_another_version(play: Callable[[Scenario], None]) -> None:
    async def scenario(
        server: RpcServer, address: Address, service: Service, client: Client
    ) -> None:
        with pytest.raises(ProtocolError, match="gone"):
            await client.call(GONE, Echo(b""), deadline_ms=5_000)
        assert await client.call(ECHO, Echo(b"x"), deadline_ms=5_000) == Echo(b"x")
        assert server.connections == 1

    play(scenario)


def test_pipelined_replies_are_in_order(play: Callable[[Scenario], None]) -> None:
    async def scenario(
        server: RpcServer, address: Address, service: Service, client: Client
    ) -> None:
        requests = [Echo(b"%d" % i, sleep_ms=(7 * i) % 11) for i in range(300)]
        found = await client.call_pipelined(ECHO, requests, deadline_ms=20_000)
        assert [r.data for r in found] == [r.data for r in requests]
        assert 1 < service.running_max <= RPC_IN_FLIGHT_MAX
        assert server.connections == 1
        assert await client.call_pipelined(ECHO, [], deadline_ms=5_000) == []

    play(scenario)


def test_pipelined_failure_leaves_the_rest_done(play: Callable[[Scenario], None]) -> None:
    async def scenario(
        server: RpcServer, address: Address, service: Service, client: Client
    ) -> None:
        with pytest.raises(NotFoundError):
            await client.call_pipelined(FAIL, [Echo(b"1"), Echo(b"2")], deadline_ms=5_000)
        assert await client.call(ECHO, Echo(b"x"), deadline_ms=5_000) == Echo(b"x")

    play(scenario)


def test_both_directions_full(play: Callable[[Scenario], None]) -> None:
    """More bytes each way than all socket buffers hold: neither side may wait for the other."""

    async def scenario(
        server: RpcServer, address: Address, service: Service, client: Client
    ) -> None:
        requests = [Echo(bytes([i]) * 700_000, padding_bytes=100_000) for i in range(30)]
        found = await client.call_pipelined(ECHO, requests, deadline_ms=30_000)
        assert all(r.data == q.data + bytes(100_000) for r, q in zip(found, requests, strict=True))

    play(scenario)


def test_deadline(play: Callable[[Scenario], None]) -> None:
    async def scenario(
        server: RpcServer, address: Address, service: Service, client: Client
    ) -> None:
        for watch in promptly(0.35):
            with watch, pytest.raises(DeadlineError, match="echo"):
                await client.call(ECHO, Echo(b"late", sleep_ms=400), deadline_ms=100)
        for i in range(10):  # the late reply is nobody's
            data = b"%d" % i
            reply = await client.call(ECHO, Echo(data, sleep_ms=60), deadline_ms=5_000)
            assert reply == Echo(data)

    play(scenario)


def test_many_callers_at_once(play: Callable[[Scenario], None]) -> None:
    async def scenario(
        server: RpcServer, address: Address, service: Service, client: Client
    ) -> None:
        async def caller(name: int) -> None:
            for i in range(20):
                data = b"%d/%d" % (name, i)
                assert await client.call(ECHO, Echo(data), deadline_ms=10_000) == Echo(data)

        await asyncio.gather(*(caller(n) for n in range(8)))

    play(scenario)


def test_wrongly_typed_request_is_not_sent(play: Callable[[Scenario], None]) -> None:
    async def scenario(
        server: RpcServer, address: Address, service: Service, client: Client
    ) -> None:
        with pytest.raises(InvalidError):
            await client.call(ECHO, b"no message", deadline_ms=5_000)
        with pytest.raises(ProtocolError, match=r"Echo\.sleep_ms"):
            await client.call(ECHO, Echo(b"", "x"), deadline_ms=5_000)  # type: ignore[arg-type]
        assert await client.call(ECHO, Echo(b"x"), deadline_ms=5_000) == Echo(b"x")
        assert service.started == 1

    play(scenario)


def test_closed_client(play: Callable[[Scenario], None]) -> None:
    async def scenario(
        server: RpcServer, address: Address, service: Service, client: Client
    ) -> None:
        await client.call(ECHO, Echo(b"x"), deadline_ms=5_000)
        await client.close()
        await client.close()
        with pytest.raises(ClosedError, match="closed"):
            await client.call(ECHO, Echo(b"x"), deadline_ms=5_000)

    play(scenario)


def test_restarted_server_is_found_again(
    run_async: RunAsync, make_client: MakeClient, key: ClusterKey
) -> None:
    async def main() -> None:
        async with serving(key) as (_, address):
            client = make_client([address], key)
            assert await client.call(ECHO, Echo(b"1"), deadline_ms=5_000) == Echo(b"1")
        with pytest.raises(UnavailableError):
            await client.call(ECHO, Echo(b"2"), deadline_ms=5_000)
        again = RpcServer(Service().handlers(), key, methods=METHODS)
        await again.start(*address)
        assert await client.call(ECHO, Echo(b"3"), deadline_ms=5_000) == Echo(b"3")
        await client.close()
        await again.close()

    run_async(main)


def test_next_address_is_tried(
    run_async: RunAsync, make_client: MakeClient, key: ClusterKey
) -> None:
    async def main() -> None:
        async with serving(key) as (_, dead):
            pass
        async with serving(key) as (server, address):
            client = make_client([dead, address], key)
            for _ in range(3):
                assert await client.call(ECHO, Echo(b"1"), deadline_ms=5_000) == Echo(b"1")
            assert server.connections == 1
            await client.close()

    run_async(main)


def test_no_address() -> None:
    for cls in (RpcClient, AsyncRpcClient):
        with pytest.raises(InvalidError):
            cls([], ClusterKey(bytes(32)))


# --- the server's own bounds ----------------------------------------------------------------------


def test_connection_limit(
    run_async: RunAsync, key: ClusterKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Busy connections keep their places; the longest idle one makes place for a newcomer."""
    monkeypatch.setattr(aio, "IDLE_MS_MIN", 100)

    async def main() -> None:
        service = Service()
        async with serving(key, service, max_connections=2) as (_, address):
            clients = [AsyncRpcClient([address], key) for _ in range(3)]
            work = [
                asyncio.create_task(c.call(ECHO, Echo(b"x", sleep_ms=ms), deadline_ms=60_000))
                for c, ms in zip(clients, (100, 30_000), strict=False)
            ]
            await until(lambda: service.running == 2)
            with pytest.raises((BusyError, UnavailableError)) as caught:
                await clients[2].call(ECHO, Echo(b"x"), deadline_ms=5_000)
            assert caught.value.retryable
            await work[0]
            assert await clients[2].call(ECHO, Echo(b"y"), deadline_ms=5_000) == Echo(b"y")
            assert await clients[0].call(ECHO, Echo(b"x"), deadline_ms=5_000) == Echo(b"x")
            work[1].cancel()
            for client in clients:
                await client.close()

    run_async(main)


def test_closing_lets_requests_finish(run_async: RunAsync, key: ClusterKey) -> None:
    async def main() -> None:
        service = Service()
        async with serving(key, service) as (server, address):
            client = AsyncRpcClient([address], key)
            call = asyncio.create_task(
                client.call(ECHO, Echo(b"x", sleep_ms=200), deadline_ms=5_000)
            )
            await until(lambda: service.started)
            await server.close()
            assert await call == Echo(b"x")
            assert server.connections == 0
            await server.close()
            await client.close()

    run_async(main)


def test_closing_gives_up_on_what_takes_too_long(run_async: RunAsync, key: ClusterKey) -> None:
    async def main() -> None:
        service = Service()
        async with serving(key, service) as (server, address):
            client = AsyncRpcClient([address], key)
            call = asyncio.create_task(
                client.call(ECHO, Echo(b"x", sleep_ms=60_000), deadline_ms=90_000)
            )
            await until(lambda: service.started)
            await server.close(grace_ms=50)
            with pytest.raises(UnavailableError):
                await call
            assert service.running == 0
            await client.close()

    run_async(main)


def test_closing_gives_up_on_what_nobody_waits_for(run_async: RunAsync, key: ClusterKey) -> None:
    async def main() -> None:
        service = Service()
        async with serving(key, service) as (server, address):
            sock = await asyncio.to_thread(dial, address, key)
            sock.sendall(framed([1, "echo", [b"x", 60_000]]))
            await until(lambda: service.started)
            sock.close()
            await until(lambda: not server.connections)
            assert service.running == 1
            await server.close(grace_ms=50)
            assert service.running == 0

    run_async(main)


def test_bytes_in_work_are_bounded(
    run_async: RunAsync, key: ClusterKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio, "RPC_SERVER_BYTES_MAX", 1_000)

    async def main() -> None:
        service = Held()
        async with serving(key, service) as (server, address):
            client = AsyncRpcClient([address], key)
            held = asyncio.create_task(
                client.call(ECHO, Echo(bytes(800), sleep_ms=1), deadline_ms=60_000)
            )
            await until(lambda: server.request_bytes)
            with pytest.raises(BusyError):
                await client.call(ECHO, Echo(bytes(800)), deadline_ms=60_000)
            service.end.set()
            await held
            await until(lambda: not server.request_bytes)
            await client.call(ECHO, Echo(bytes(800)), deadline_ms=5_000)
            await client.close()

    run_async(main)


def test_handlers_need_methods(key: ClusterKey) -> None:
    with pytest.raises(InvalidError, match="echo"):
        RpcServer(Service().handlers(), key)


def test_a_taken_port_is_told(run_async: RunAsync, key: ClusterKey) -> None:
    async def main() -> None:
        async with serving(key) as (_, address):
            second = RpcServer({}, key)
            with pytest.raises(UnavailableError, match=f"127.0.0.1:{address[1]}"):
                await second.start(*address)
            await second.close()

    run_async(main)
