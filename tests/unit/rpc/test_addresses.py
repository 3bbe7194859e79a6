"""One logical server at several addresses: which one is tried, and when the next one is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from ffs.errors import AuthError, DeadlineError, InvalidError, UnavailableError
from ffs.handshake import ClusterKey
from ffs.rpc.addresses import LEARNT_MAX, Addresses, parse_address, show_address
from ffs.rpc.aio import AsyncRpcClient, Peer
from ffs.rpc.blocking import RpcClient
from tests.unit.conftest import RunAsync
from tests.unit.rpc.support import ECHO, Address, Echo, Service, serving

A, B, C = ("a", 1), ("b", 2), ("c", 3)


def test_the_one_that_worked_is_first_and_the_one_that_failed_last() -> None:
    addresses = Addresses([A, B, C, A])
    assert addresses.order == (A, B, C)
    addresses.failed(A)
    assert addresses.order == (B, C, A)
    addresses.worked(C)
    assert addresses.order == (C, B, A)
    addresses.failed(("unknown", 1))
    assert addresses.order == (C, B, A)


def test_what_is_told_replaces_what_was_told_and_never_what_was_given() -> None:
    addresses = Addresses([A])
    assert not addresses.several
    addresses.learn(["b:2", "c:3"])
    assert addresses.order == (A, B, C)
    addresses.failed(A)
    addresses.learn(["c:3", "nonsense", "d:0", "[::1]:4"])
    assert addresses.order == (C, A, ("::1", 4))
    addresses.learn([])
    assert list(addresses.order) == [A]


def test_a_long_answer_is_cut() -> None:
    addresses = Addresses([A])
    addresses.learn([f"host:{port}" for port in range(1, 1_000)])
    assert len(addresses.order) == 1 + LEARNT_MAX


def test_no_address_is_refused() -> None:
    with pytest.raises(InvalidError):
        Addresses([])


@pytest.mark.parametrize("text", ["host:1", "127.0.0.1:7000", "[::1]:7000"])
def test_addresses_are_written_as_they_are_read(text: str) -> None:
    assert show_address(*parse_address(text)) == text


class Tired(Service):
    """Answers that it cannot work now."""

    async def echo(self, request: Echo, peer: Peer) -> Echo:
        """Refuse."""
        self.started += 1
        raise UnavailableError("the database cannot be reached")


class Blocking:
    """The blocking client, called from threads."""

    def __init__(self, addresses: Sequence[Address], key: ClusterKey) -> None:
        self.client = RpcClient(addresses, key)

    async def call(self, method: Any, request: Any, *, deadline_ms: int) -> Any:
        """Call in a thread."""
        return await asyncio.to_thread(self.client.call, method, request, deadline_ms=deadline_ms)

    async def close(self) -> None:
        """Close."""
        self.client.close()


both = pytest.mark.parametrize("kind", [Blocking, AsyncRpcClient])


@both
def test_a_server_that_cannot_work_is_left(run_async: RunAsync, key: ClusterKey, kind: Any) -> None:
    async def main() -> None:
        tired, fit = Tired(), Service()
        async with serving(key, tired) as (_, first), serving(key, fit) as (_, second):
            client = kind([first, second], key)
            with pytest.raises(UnavailableError):
                await client.call(ECHO, Echo(b"1"), deadline_ms=5_000)
            for _ in range(3):
                assert await client.call(ECHO, Echo(b"2"), deadline_ms=5_000) == Echo(b"2")
            assert tired.started == 1
            await client.close()

    run_async(main)


@both
def test_a_server_that_hangs_is_left(run_async: RunAsync, key: ClusterKey, kind: Any) -> None:
    async def main() -> None:
        slow, quick = Service(), Service()
        async with serving(key, slow) as (server, first), serving(key, quick) as (_, second):
            client = kind([first, second], key)
            await client.call(ECHO, Echo(b"0"), deadline_ms=5_000)
            with pytest.raises(DeadlineError):
                await client.call(ECHO, Echo(b"1", sleep_ms=60_000), deadline_ms=1_000)
            for _ in range(3):
                await client.call(ECHO, Echo(b"2"), deadline_ms=5_000)
            assert (slow.started, quick.started) == (2, 3)
            await client.close()
            await server.close(grace_ms=0)

    run_async(main)


@both
def test_the_only_server_is_kept(run_async: RunAsync, key: ClusterKey, kind: Any) -> None:
    async def main() -> None:
        tired = Tired()
        async with serving(key, tired) as (server, address):
            client = kind([address], key)
            for _ in range(3):
                with pytest.raises(UnavailableError, match="database"):
                    await client.call(ECHO, Echo(b"1"), deadline_ms=5_000)
            assert server.connections == 1, "asking again needs no new connection"
            await client.close()

    run_async(main)


@both
def test_a_dead_server_is_tried_once(run_async: RunAsync, key: ClusterKey, kind: Any) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            dead: Address = listener.getsockname()
            async with serving(key) as (_, address):
                client = kind([dead, address], key)
                getattr(client, "client", client)._connect_ms = 200
                for _ in range(3):
                    await client.call(ECHO, Echo(b"1"), deadline_ms=10_000)
                await client.close()
            listener.setblocking(False)
            listener.accept()[0].close()
            with pytest.raises(BlockingIOError):
                listener.accept()

    run_async(main)


@both
def test_another_cluster_s_server_is_passed_over(
    run_async: RunAsync, key: ClusterKey, kind: Any
) -> None:
    async def main() -> None:
        async with serving(ClusterKey(bytes(32))) as (_, foreign), serving(key) as (_, ours):
            client = kind([foreign, ours], key)
            assert await client.call(ECHO, Echo(b"1"), deadline_ms=5_000) == Echo(b"1")
            await client.close()
            client = kind([foreign, ("127.0.0.1", 1)], key)
            with pytest.raises(AuthError):
                await client.call(ECHO, Echo(b"1"), deadline_ms=5_000)
            await client.close()

    run_async(main)


@both
def test_a_full_server_is_passed_over(run_async: RunAsync, key: ClusterKey, kind: Any) -> None:
    async def main() -> None:
        async with (
            serving(key, max_connections=0) as (_, full),
            serving(key) as (_, other),
        ):
            client = kind([full, other], key)
            assert await client.call(ECHO, Echo(b"1"), deadline_ms=5_000) == Echo(b"1")
            await client.close()

    run_async(main)
