"""The server's half of the handshake over real sockets, and the door: who gets in, and when."""

from __future__ import annotations

import asyncio
import errno
import logging
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest

from ffs.errors import AuthError, BusyError, FFSError, ProtocolError, UnavailableError
from ffs.handshake import MESSAGE, ClientHandshake, ClusterKey, HandshakeKind, connect
from ffs.rpc import door
from ffs.rpc.door import Door, listen
from ffs.rpc.greeting import Greeting
from tests.unit.conftest import RunAsync
from tests.unit.rpc.support import until

RPC = HandshakeKind.RPC
Peer = Callable[[socket.socket], None]
WRONG_KEY = ClusterKey(bytes(32))


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Read `count` bytes or what there is before end-of-file."""
    data = b""
    while len(data) < count and (part := sock.recv(count - len(data))):
        data += part
    return data


# --- one stranger -------------------------------------------------------------------------------


def greet(key: ClusterKey, client: Peer) -> tuple[int | FFSError, bytes]:
    """Run `client` in a thread; return the version or error and what is left to read."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)
    with closing(ours), closing(theirs):
        thread = threading.Thread(target=client, args=(theirs,))
        thread.start()
        greeting = Greeting(ours, ("test", 1), 0.0)
        try:
            while not greeting.hear(key, RPC):
                assert select.select([ours], [], [], 20)[0]
            greeting.let_in()
            thread.join()
            return greeting.version, ours.recv(100)
        except FFSError as error:
            greeting.refuse(error)
            assert ours.fileno() == -1, "a failed handshake must close its socket"
            thread.join()
            return error, b""


def test_nothing_beyond_the_handshake_is_read(key: ClusterKey) -> None:
    def client(sock: socket.socket) -> None:
        half = ClientHandshake(key, RPC)
        sock.sendall(half.start())
        sock.sendall(half.receive(receive_exactly(sock, MESSAGE.size)) + b"a request")
        half.receive(receive_exactly(sock, MESSAGE.size))
        assert half.done

    assert greet(key, client) == (1, b"a request")


def test_one_byte_at_a_time(key: ClusterKey) -> None:
    def client(sock: socket.socket) -> None:
        half = ClientHandshake(key, RPC)
        for message in (half.start(), None):
            for byte in message or half.receive(receive_exactly(sock, MESSAGE.size)):
                sock.sendall(bytes([byte]))
                time.sleep(0.0005)
        half.receive(receive_exactly(sock, MESSAGE.size))
        sock.sendall(b"!")

    assert greet(key, client) == (1, b"!")


def told(sock: socket.socket) -> type[FFSError]:
    """The error that a refused client gets to see."""
    half = ClientHandshake(WRONG_KEY, RPC)
    half.start()
    with pytest.raises(FFSError) as caught:
        half.receive(receive_exactly(sock, MESSAGE.size))
    return type(caught.value)


def test_garbage_is_refused_at_its_first_bytes(key: ClusterKey) -> None:
    def client(sock: socket.socket) -> None:
        sock.sendall(b"GET / HTTP/1.1\r\n")  # shorter than HELLO: waiting would be in vain
        assert told(sock) is ProtocolError

    assert isinstance(greet(key, client)[0], ProtocolError)


@pytest.mark.parametrize("sent", [0, 1, 39])
def test_truncated_hello(key: ClusterKey, sent: int) -> None:
    def client(sock: socket.socket) -> None:
        sock.sendall(ClientHandshake(key, RPC).start()[:sent])
        sock.shutdown(socket.SHUT_WR)

    assert isinstance(greet(key, client)[0], UnavailableError)


def test_wrong_client_key(key: ClusterKey) -> None:
    def client(sock: socket.socket) -> None:
        half = ClientHandshake(WRONG_KEY, RPC)
        sock.sendall(half.start())
        sock.sendall(half.receive(receive_exactly(sock, MESSAGE.size)))
        assert told(sock) is AuthError
        assert sock.recv(1) == b""

    assert isinstance(greet(key, client)[0], AuthError)


# --- the door -----------------------------------------------------------------------------------


class House:
    """What is behind the door: so many places, and those who came in."""

    def __init__(self, key: ClusterKey, listener: socket.socket) -> None:
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self.places = 1_000
        self.soon = True
        self.inside: list[socket.socket] = []
        self.door = Door(listener, key, RPC, admit=self.admit, welcome=self.welcome)
        self.key = key

    def admit(self, guest: Greeting) -> bool:
        if len(self.inside) < self.places:
            return True
        if not self.soon:
            raise BusyError("never")
        return False

    def welcome(self, guest: Greeting) -> None:
        assert guest.claims is None
        assert guest.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert guest.address.startswith("127.0.0.1:")
        self.inside.append(guest.sock)

    async def visit(self, key: ClusterKey | None = None) -> None:
        """Dial with a key, and hang up again."""
        sock = await asyncio.to_thread(
            connect, *self.address, key or self.key, RPC, timeout_ms=20_000
        )
        sock.close()


@asynccontextmanager
async def house(key: ClusterKey, at: socket.socket | None = None) -> AsyncIterator[House]:
    with closing(at or listen("127.0.0.1", 0)) as listener:
        made = House(key, listener)
        serving = asyncio.create_task(made.door.serve())
        try:
            yield made
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            for sock in made.inside:
                sock.close()


def test_holders_of_the_key_come_in(run_async: RunAsync, key: ClusterKey) -> None:
    async def main() -> None:
        async with house(key) as here:
            await asyncio.gather(*(here.visit() for _ in range(20)))
            await until(lambda: len(here.inside) == 20)
            assert here.door.strangers == 0
            with pytest.raises(AuthError):
                await here.visit(WRONG_KEY)
            assert len(here.inside) == 20

    run_async(main)


@pytest.mark.parametrize("sent", [0, 20, 40])
def test_a_silent_client_is_given_up(
    run_async: RunAsync, key: ClusterKey, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_MS_MAX", 150)

    async def main() -> None:
        async with house(key) as here:
            with closing(socket.create_connection(here.address, timeout=20)) as sock:
                sock.sendall(ClientHandshake(key, RPC).start()[:sent])
                while await asyncio.to_thread(sock.recv, 100):  # until it is closed
                    pass
            assert here.door.strangers == 0

    run_async(main)


def test_strangers_are_cut_off_when_the_door_closes(run_async: RunAsync, key: ClusterKey) -> None:
    async def main() -> None:
        async with house(key) as here:
            silent = socket.create_connection(here.address, timeout=20)
            await until(lambda: here.door.strangers == 1)
        assert await asyncio.to_thread(silent.recv, 1) == b""
        silent.close()

    run_async(main)


def test_the_proven_wait_for_a_place(run_async: RunAsync, key: ClusterKey) -> None:
    """Until one is free, if it may become so; and not for ever."""

    async def main() -> None:
        async with house(key) as here:
            here.places = 0
            waiting = asyncio.create_task(here.visit())
            await until(lambda: here.door.strangers == 1)
            here.places = 1
            await waiting
            with pytest.raises(BusyError):
                await here.visit()
            here.soon = False
            with pytest.raises(BusyError):
                await here.visit()
            assert len(here.inside) == 1

    run_async(main)


async def pester(address: tuple[str, int], count: int) -> None:
    """Have as many strangers refused."""

    def dial() -> None:
        for _ in range(count):
            with socket.create_connection(address, timeout=20) as sock, suppress(OSError):
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")

    await asyncio.to_thread(dial)


def test_pestered_a_door_opens_now_and_then(
    run_async: RunAsync, key: ClusterKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While strangers keep failing there are few looks; holders of the key come in all the same."""
    looks = 0
    look = Door._look

    def counted(self: Door) -> None:
        nonlocal looks
        looks += 1
        look(self)

    monkeypatch.setattr(Door, "_look", counted)

    async def main() -> None:
        async with house(key) as here:
            await pester(here.address, 200)
            await until(lambda: here.door.strangers == 0)
            assert not here.door._open
            start, before = time.monotonic(), looks
            await asyncio.gather(pester(here.address, 200), *(here.visit() for _ in range(10)))
            passed_s = time.monotonic() - start
            assert looks - before <= passed_s / door._PAUSE_S + 2
            assert len(here.inside) == 10
            monkeypatch.setattr(door, "_FAILURES_PER_S", 1_000)  # time goes by
            await until(lambda: here.door._open)
            await here.visit()

    run_async(main)


def test_a_queue_of_strangers_is_seen_off_in_a_few_looks(
    run_async: RunAsync, key: ClusterKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever dials 2,000 times a second must not fill the kernel's queue: others stand in it."""
    looks = refused = 0
    look, refuse = Door._look, Door._refuse

    def counted(self: Door) -> None:
        nonlocal looks
        looks += refused < 600
        look(self)

    def noted(self: Door, greeting: Greeting, error: FFSError) -> None:
        nonlocal refused
        refused += 1
        refuse(self, greeting, error)

    monkeypatch.setattr(Door, "_look", counted)
    monkeypatch.setattr(Door, "_refuse", noted)

    async def main() -> None:
        nonlocal looks
        with closing(listen("127.0.0.1", 0)) as listener:
            await pester(listener.getsockname()[:2], 600)
            async with house(key, listener) as here:
                await until(lambda: refused == 600)
                assert looks == 3
                await here.visit()

    run_async(main)


def test_few_of_many_refusals_are_logged(run_async: RunAsync, key: ClusterKey) -> None:
    lines: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record)

    keep = Keep()

    async def main() -> None:
        async with house(key) as here:
            await pester(here.address, 100)
            while len(lines) + sum(vars(one).get("left_out", 0) for one in lines) < 100:
                await asyncio.sleep(1)
                await pester(here.address, 1)

    logger = logging.getLogger("ffs.rpc.door")
    level = logger.level
    logger.addHandler(keep)
    logger.setLevel(logging.INFO)
    try:
        run_async(main)
    finally:
        logger.removeHandler(keep)
        logger.setLevel(level)
    assert len(lines) < 60
    assert vars(lines[0])["reason"] == "the peer does not speak the FFS handshake"


def test_out_of_descriptors_the_oldest_stranger_goes(run_async: RunAsync, key: ClusterKey) -> None:
    class Full(socket.socket):
        """Accepts as a process does that has three descriptors for connections."""

        def accept(self) -> tuple[socket.socket, tuple[str, int]]:
            if here.door.strangers + len(here.inside) == 3:
                raise OSError(errno.EMFILE, "too many open files")
            return super().accept()

    async def main() -> None:
        nonlocal here
        with closing(listen("127.0.0.1", 0)) as made:
            listener = Full(fileno=made.detach())
        listener.setblocking(False)
        async with house(key, listener) as here:
            silent = [socket.create_connection(here.address, timeout=20) for _ in range(2)]
            await until(lambda: here.door.strangers == 2)
            await here.visit()
            assert await asyncio.to_thread(silent[0].recv, 1) == b""
            await until(lambda: len(here.inside) == 1)
            for sock in silent:
                sock.close()

    here: House
    run_async(main)


def test_connections_begin_with_the_congestion_control_asked_for() -> None:
    def of_the_next(listener: socket.socket) -> bytes:
        listener.setblocking(True)
        with (
            socket.create_connection(listener.getsockname(), timeout=20),
            closing(listener.accept()[0]) as accepted,
        ):
            found = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            return found.rstrip(b"\0")

    with closing(listen("127.0.0.1", 0, congestion="reno")) as listener:
        assert of_the_next(listener) == b"reno"
    default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_bytes().strip()
    with closing(listen("127.0.0.1", 0, congestion="no-such")) as listener:
        assert of_the_next(listener) == default
