"""What only the blocking client has: threads, forks, Ctrl-C, and a stack of idle connections."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from ffs.errors import AuthError, DeadlineError, UnavailableError
from ffs.handshake import ClusterKey
from ffs.limits import RPC_IDLE_CONNECTIONS_MAX
from ffs.rpc.blocking import RpcClient
from tests.promptly import promptly
from tests.unit.rpc.support import ECHO, Address, Echo, Service, serving_in_thread


@pytest.fixture
def address(key: ClusterKey) -> Iterator[Address]:
    """A server in a thread."""
    with serving_in_thread(key) as bound:
        yield bound


def echo(client: RpcClient, data: bytes, sleep_ms: int = 0, deadline_ms: int = 10_000) -> None:
    """Call, and check that the reply is this call's."""
    request = Echo(data, sleep_ms)
    assert client.call(ECHO, request, deadline_ms=deadline_ms) == Echo(data)


def sockets_of(client: RpcClient) -> int:
    """How many connections the client has open."""
    return sum(connection._sock.fileno() != -1 for connection in client._open)


def test_threads_get_their_own_replies(address: Address, key: ClusterKey) -> None:
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for i in range(40):
                echo(client, b"%d:%d" % (name, i))
        except BaseException as error:
            failures.append(error)

    with closing(RpcClient([address], key)) as client:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert sockets_of(client) <= 8


def test_idle_connections_are_few_and_the_last_used_is_taken(
    address: Address, key: ClusterKey
) -> None:
    with closing(RpcClient([address], key)) as client:
        together = RPC_IDLE_CONNECTIONS_MAX + 4
        threads = [threading.Thread(target=echo, args=(client, b"x", 300)) for _ in range(together)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sockets_of(client) == RPC_IDLE_CONNECTIONS_MAX
        last = client._idle[-1]
        echo(client, b"y")
        assert client._idle[-1] is last


def interrupted_echo(client: RpcClient) -> None:
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        echo(client, b"slow", sleep_ms=30_000, deadline_ms=60_000)
    finally:
        timer.join()


def test_ctrl_c_closes_the_connection_in_use(address: Address, key: ClusterKey) -> None:
    with closing(RpcClient([address], key)) as client:
        for watch in promptly(0.5):
            echo(client, b"x")
            with watch, pytest.raises(KeyboardInterrupt):
                interrupted_echo(client)
            assert sockets_of(client) == 0
        echo(client, b"afterwards")


def test_signals_that_raise_nothing_do_not_end_a_call(address: Address, key: ClusterKey) -> None:
    seen: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        with closing(RpcClient([address], key)) as client:
            echo(client, b"x", sleep_ms=200)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert len(seen) > 3


@pytest.mark.parametrize("told", [True, False], ids=["abandon", "unprepared"])
def test_fork_shares_nothing(address: Address, key: ClusterKey, told: bool) -> None:
    with closing(RpcClient([address], key)) as client:
        echo(client, b"before")
        inherited = next(iter(client._open))
        with client._lock:  # as if another thread held it at the fork
            child = os.fork()
            if child == 0:
                try:
                    if told:
                        client.abandon()
                    for i in range(10):
                        echo(client, b"child %d" % i)
                    fresh = inherited not in client._open and inherited._sock.fileno() == -1
                    os._exit(0 if fresh else 3)
                except BaseException:
                    os._exit(4)
        for i in range(10):
            echo(client, b"parent %d" % i)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        echo(client, b"after")
        assert set(client._open) == {inherited}, "the child's end must not have closed the parent's"


def test_restart_is_noticed_before_sending(key: ClusterKey) -> None:
    with serving_in_thread(key) as address:
        client = RpcClient([address], key)
        echo(client, b"1")
    with serving_in_thread(key, port=address[1]):
        echo(client, b"2")
        assert sockets_of(client) == 1
        client.close()


def test_a_connection_that_dies_unanswered_is_unavailable(key: ClusterKey) -> None:
    """The server takes the request and vanishes: retryable, and nothing stays in the stack."""
    service = Service()
    with serving_in_thread(key, service) as address:
        client = RpcClient([address], key)
        echo(client, b"1")
        connection = client._idle[-1]
        breaker = threading.Timer(0.1, connection._sock.shutdown, (socket.SHUT_RDWR,))
        breaker.start()
        with pytest.raises(UnavailableError) as caught:
            echo(client, b"2", sleep_ms=1_000)
        breaker.join()
        assert caught.value.retryable
        assert caught.value.where["address"] == f"127.0.0.1:{address[1]}"
        assert sockets_of(client) == 0
        echo(client, b"3")
        client.close()


def test_deadline_covers_connecting(key: ClusterKey) -> None:
    """A listener that never answers: the call's deadline ends it, or connect_ms before that."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        silent = listener.getsockname()
        with closing(RpcClient([silent], key)) as client:
            for watch in promptly(1):
                with watch, pytest.raises(DeadlineError):
                    echo(client, b"x", deadline_ms=150)
        with closing(RpcClient([silent], key, connect_ms=100)) as client:
            for watch in promptly(1):
                with watch, pytest.raises(UnavailableError):
                    echo(client, b"x", deadline_ms=10_000)


def test_silent_server_does_not_hide_the_next(address: Address, key: ClusterKey) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        addresses = [listener.getsockname(), address]
        with closing(RpcClient(addresses, key, connect_ms=100)) as client:
            echo(client, b"1")
            for watch in promptly(0.1):
                with watch:
                    echo(client, b"2")


def test_wrong_key_is_final(address: Address) -> None:
    with closing(RpcClient([address], ClusterKey(bytes(32)))) as client:
        with pytest.raises(AuthError) as caught:
            echo(client, b"x")
        assert not caught.value.retryable


@pytest.mark.parametrize("wanted", [True, False])
def test_collections_are_as_the_caller_has_them(
    address: Address, key: ClusterKey, wanted: bool
) -> None:
    was = gc.isenabled()
    with closing(RpcClient([address], key)) as client:
        try:
            (gc.enable if wanted else gc.disable)()
            echo(client, b"x")
            assert gc.isenabled() is wanted
        finally:
            (gc.enable if was else gc.disable)()
