"""S12 on the data port: `[tls] data = true`. First the relay by itself, then a cluster of it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ffs.client.filesystem import FFSFileSystem
from ffs.config import TlsConfig
from ffs.errors import ConfigError, TlsError
from ffs.tls import Role, Tls
from ffs.tls_channel import TlsChannel
from ffs.tls_relay import TlsRelay
from tests.harness import Process
from tests.security.certificates import Authority
from tests.security.test_s12_cluster import ffs_up, issue

Change = Callable[[bytes], bytes]
SECRET = b"what nobody else shall read"
WAIT_S = 60


@pytest.fixture(scope="module")
def daemon(authority: Authority) -> Tls:
    """What a storage daemon has."""
    return authority.tls("daemon", Role.STORAGE)


@pytest.fixture(scope="module")
def client(authority: Authority) -> Tls:
    """What a client has."""
    return authority.tls("data-client", Role.CLIENT)


def greet(near: TlsChannel, far: TlsChannel) -> None:
    """Have two ends agree, without a network."""
    said = near.greet()
    while said:
        answer = far.greet(said) if not far.established else b""
        said = near.greet(answer) if not near.established else b""


class Line(NamedTuple):
    """Both plain ends of a connection, and what went over the network between."""

    near: socket.socket
    far: socket.socket
    heard: list[bytes]


@pytest.fixture
def relays(client: Tls, daemon: Tls) -> Iterator[tuple[TlsRelay, TlsRelay]]:
    """Those of two processes."""
    made = TlsRelay(client, 1), TlsRelay(daemon, 1)
    yield made
    for relay in made:
        relay.close()


@pytest.fixture
def connect(relays: tuple[TlsRelay, TlsRelay]) -> Iterator[Callable[..., Line]]:
    """Make connections through a network that hears, and may change, what is said."""
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, sink: socket.socket, heard: list[bytes], on: Change) -> None:
        try:
            while data := source.recv(65_536):
                heard.append(data)
                sink.sendall(on(data))
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            sink.close()

    def make(change: Change = lambda data: data) -> Line:
        near, far = (relay.tls for relay in relays)
        channels = near.client(Role.STORAGE), far.server()
        greet(*channels)
        heard: list[bytes] = []
        (ours, left), (right, theirs) = socket.socketpair(), socket.socketpair()
        for source, sink, on in ((left, right, change), (right, left, bytes)):
            threads.append(threading.Thread(target=pump, args=(source, sink, heard, on)))
            threads[-1].start()
        plain = relays[0].carry(ours, channels[0]), relays[1].carry(theirs, channels[1])
        for end in plain:
            end.settimeout(WAIT_S)
        sockets.extend((left, right, *plain))
        return Line(*plain, heard)

    yield make
    for relay in relays:
        relay.close()
    for thread in threads:
        thread.join()
    for sock in sockets:
        sock.close()


def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly so many bytes, fewer if the other side ends before."""
    got = bytearray()
    while len(got) < count and (data := sock.recv(count - len(got))):
        got += data
    return bytes(got)


# --- the relay ------------------------------------------------------------------------------------


def test_bytes_go_both_ways(connect: Callable[..., Line]) -> None:
    line = connect()
    for size in (1, 16 << 10, 5 << 20):
        data = os.urandom(size)
        for source, sink in ((line.near, line.far), (line.far, line.near)):
            sender = threading.Thread(target=source.sendall, args=(data,))
            sender.start()
            assert receive(sink, size) == data
            sender.join()


def test_nothing_is_said_in_clear(connect: Callable[..., Line]) -> None:
    line = connect()
    line.near.sendall(SECRET * 100)
    assert receive(line.far, len(SECRET) * 100) == SECRET * 100
    line.far.sendall(SECRET)
    assert receive(line.near, len(SECRET)) == SECRET
    everything = b"".join(line.heard)
    assert len(everything) > 101 * len(SECRET), "nothing was heard: this test shows nothing"
    assert SECRET not in everything


def test_a_changed_byte_ends_the_connection(connect: Callable[..., Line]) -> None:
    line = connect(lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    line.near.sendall(SECRET)
    assert receive(line.far, 1) == b""
    assert receive(line.near, 1) == b""


def test_an_end_comes_behind_what_was_said_before(connect: Callable[..., Line]) -> None:
    line = connect()
    data = os.urandom(1 << 20)

    def send() -> None:
        line.near.sendall(data)
        line.near.close()

    sender = threading.Thread(target=send)
    sender.start()
    assert receive(line.far, len(data) + 1) == data
    sender.join()


def test_who_takes_nothing_is_not_read_ahead_for_ever(connect: Callable[..., Line]) -> None:
    line = connect()
    line.near.settimeout(1)
    with pytest.raises(TimeoutError):
        line.near.sendall(bytes(64 << 20))
    other = connect()  # which the same thread carries
    other.near.sendall(SECRET)
    assert receive(other.far, len(SECRET)) == SECRET


def test_a_forked_child_keeps_nothing_open(
    connect: Callable[..., Line], relays: tuple[TlsRelay, TlsRelay]
) -> None:
    line = connect()
    line.near.sendall(SECRET)
    assert receive(line.far, len(SECRET)) == SECRET
    pid = os.fork()
    if pid == 0:
        try:
            for relay in relays:
                relay.after_fork_in_child()
            signal.pause()
        finally:
            os._exit(1)
    try:
        line.near.sendall(SECRET)
        assert receive(line.far, len(SECRET)) == SECRET
        line.near.shutdown(socket.SHUT_RDWR)
        assert receive(line.far, 1) == b""
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_metadata_servers_certificate_is_no_daemons(authority: Authority, client: Tls) -> None:
    with pytest.raises(TlsError, match="none of the roles ffs:role:storage"):
        greet(client.client(Role.STORAGE), authority.tls("meta-alone", Role.META).server())


def test_data_alone_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match="needs certificates"):
        TlsConfig(data=True)


# --- a cluster ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with certificates for one machine and one client."""
    made = tmp_path_factory.mktemp("ca")
    issue(made)
    return made


@pytest.fixture(scope="module")
def up(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Two daemons that have two copies of all, and encrypt everything."""
    more = ["--storage", "2", "--replicas", "2", "--set", "tls.data=true"]
    process = ffs_up(directory, tmp_path_factory.mktemp("up"), *more)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def options(up: Process, directory: Path) -> dict[str, Any]:
    """What a client needs."""
    url, key = up.ready.split()
    return {
        "url": url,
        "key_file": key.removeprefix("key="),
        "tls_ca_file": str(directory / "ca.crt"),
        "tls_cert_file": str(directory / "me.crt"),
        "tls_key_file": str(directory / "me.key"),
        "tls_data": True,
        "same_host": "off",
        "skip_instance_cache": True,
    }


def test_files_go_in_and_out(options: dict[str, Any]) -> None:
    data = os.urandom(20 << 20)
    fs = FFSFileSystem(**options)
    fs.pipe_file("/f", data)
    assert fs.cat_file("/f") == data
    assert fs.cat_file("/f", 5_000_000, 5_000_100) == data[5_000_000:5_000_100]
    assert {one["transport"] for one in fs.core.connections.transports().values()} == {"tcp"}
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if fs.cat_file("/f", 0, 100_000) == data[:100_000] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert fs.cat_file("/f", 0, 100_000) == data[:100_000]
    fs.close()


def test_a_client_that_says_it_in_clear(options: dict[str, Any]) -> None:
    fs = FFSFileSystem(**{**options, "tls_data": False})
    with pytest.raises(TlsError, match="without TLS"):
        fs.pipe_file("/clear", b"x")
    fs.close()


def test_rdma_is_not_encrypted(options: dict[str, Any]) -> None:
    fs = FFSFileSystem(**{**options, "transport": "rdma"})
    with pytest.raises(ConfigError, match="not encrypted"):
        fs.ls("/")
