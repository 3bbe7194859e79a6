"""S12: nobody listens in, and nobody in between is believed: TLS 1.3 of the RPC port."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ffs.auth.credential import Credential
from ffs.auth.token import Claims, TokenKeys
from ffs.auth.verifier import TokenVerifier
from ffs.config import TlsConfig
from ffs.errors import AuthError, ConfigError, FFSError, ProtocolError, TlsError
from ffs.handshake import MESSAGE, ClientHandshake, HandshakeKind
from ffs.key import ClusterKey
from ffs.limits import TLS_GREETING_BYTES_MAX
from ffs.rpc.aio import AsyncRpcClient
from ffs.rpc.blocking import RpcClient
from ffs.rpc.dial import dial
from ffs.seams import SystemClock
from ffs.tls import Role, Tls
from ffs.wire.auth import Revocation, Revocations
from tests.security.certificates import Authority
from tests.unit.rpc.support import ECHO, Address, Echo, Service, serving_in_thread

DEADLINE_MS = 20_000
Call = Callable[[Address, Credential, Tls | None, list[Echo]], list[Echo]]
"""Calls `echo` with each request over one connection."""


def _blocking(
    address: Address, key: Credential, tls: Tls | None, requests: list[Echo]
) -> list[Echo]:
    with closing(RpcClient([address], key, tls=tls)) as client:
        return client.call_pipelined(ECHO, requests, deadline_ms=DEADLINE_MS)


def _asyncio(
    address: Address, key: Credential, tls: Tls | None, requests: list[Echo]
) -> list[Echo]:
    async def main() -> list[Echo]:
        client = AsyncRpcClient([address], key, tls=tls)
        try:
            return await client.call_pipelined(ECHO, requests, deadline_ms=DEADLINE_MS)
        finally:
            await client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


@pytest.fixture(params=[_blocking, _asyncio], ids=["blocking", "asyncio"])
def call(request: pytest.FixtureRequest) -> Call:
    """Both clients in turn."""
    driver: Call = request.param
    return driver


@pytest.fixture(scope="module")
def meta(authority: Authority) -> Tls:
    """What a metadata server has."""
    return authority.tls("meta", Role.META)


@pytest.fixture(scope="module")
def client(authority: Authority) -> Tls:
    """What a client has."""
    return authority.tls("client", Role.CLIENT)


HELLO = [Echo(b"hello")]


def refused(call: Call, address: Address, key: Credential, tls: Tls | None) -> FFSError:
    """How a connection that must not come about fails."""
    with pytest.raises(FFSError) as caught:
        call(address, key, tls, HELLO)
    return caught.value


# --- who is let in --------------------------------------------------------------------------------


def test_requests_and_replies_of_all_sizes(
    call: Call, key: ClusterKey, meta: Tls, client: Tls
) -> None:
    requests = [Echo(bytes([n % 251]) * n, padding_bytes=n // 2) for n in (0, 1, 70_000, 5 << 20)]
    requests += [Echo(b"%d" % n) for n in range(200)]
    with serving_in_thread(key, tls=meta) as address:
        replies = call(address, key, client, requests)
    assert replies == [Echo(r.data + bytes(r.padding_bytes)) for r in requests]


@pytest.mark.parametrize("role", Role)
def test_every_role_may_ask_a_metadata_server(
    call: Call, key: ClusterKey, authority: Authority, meta: Tls, role: Role
) -> None:
    with serving_in_thread(key, tls=meta) as address:
        assert call(address, key, authority.tls(f"some-{role}", role), HELLO) == HELLO


def test_the_cluster_key_is_wanted_all_the_same(
    call: Call, key: ClusterKey, meta: Tls, client: Tls
) -> None:
    with serving_in_thread(key, tls=meta) as address:
        error = refused(call, address, ClusterKey(bytes(32)), client)
    assert type(error) is AuthError
    assert "key" in str(error)


def test_a_token_goes_through_the_channel(
    call: Call, key: ClusterKey, meta: Tls, client: Tls
) -> None:
    now_ms = SystemClock().wall_ns() // 1_000_000
    claims = Claims(b"t" * 16, "ann", 1001, (100,), "train", now_ms, now_ms + 60_000)
    tokens = TokenVerifier(key, SystemClock())
    tokens.take(Revocations(1, []))
    token = TokenKeys(key).issue(claims)
    service = Service()
    with serving_in_thread(key, service, tls=meta, tokens=tokens) as address:
        assert call(address, token, client, HELLO) == HELLO
        assert {peer.claims for peer in service.peers} == {claims}
        assert isinstance(refused(call, address, token, None), TlsError)
        tokens.take(Revocations(2, [Revocation(claims.token_id, "", 0, 2 * now_ms)]))
        assert type(refused(call, address, token, client)) is AuthError


def test_a_client_of_another_authority(
    call: Call, key: ClusterKey, authority: Authority, foreign: Authority, meta: Tls
) -> None:
    stranger = foreign.config("client", Role.CLIENT)
    believing = Tls(
        TlsConfig(
            ca_file=str(authority.ca_file),
            cert_file=stranger.cert_file,
            key_file=stranger.key_file,
        )
    )
    with serving_in_thread(key, tls=meta) as address:
        error = refused(call, address, key, believing)
        assert isinstance(error, TlsError)
        assert "refused this side's certificate" in error.message
        assert "tls.cert_file" in error.hint


def test_a_server_of_another_authority(
    call: Call, key: ClusterKey, foreign: Authority, client: Tls
) -> None:
    with serving_in_thread(key, tls=foreign.tls("meta", Role.META)) as address:
        error = refused(call, address, key, client)
        assert isinstance(error, TlsError)
        assert "the peer's certificate was refused" in error.message


def test_a_client_without_certificate(key: ClusterKey, authority: Authority, meta: Tls) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cafile=str(authority.ca_file))
    with (
        serving_in_thread(key, tls=meta) as address,
        socket.create_connection(address, timeout=20) as sock,
        context.wrap_socket(sock) as sealed,
        pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
    ):
        sealed.recv(1)


def test_older_versions_of_tls(key: ClusterKey, authority: Authority, meta: Tls) -> None:
    mine = authority.config("older", Role.CLIENT)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cafile=mine.ca_file)
    context.load_cert_chain(mine.cert_file, mine.key_file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        serving_in_thread(key, tls=meta) as address,
        socket.create_connection(address, timeout=20) as sock,
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
    ):
        context.wrap_socket(sock)


def test_an_expired_client(call: Call, key: ClusterKey, authority: Authority, meta: Tls) -> None:
    expired = authority.tls("expired", Role.CLIENT, ttl_s=-60)
    with serving_in_thread(key, tls=meta) as address:
        error = refused(call, address, key, expired)
        assert isinstance(error, TlsError)
        assert "expired" in error.message


def test_an_expired_server(call: Call, key: ClusterKey, authority: Authority, client: Tls) -> None:
    with serving_in_thread(key, tls=authority.tls("late", Role.META, ttl_s=-60)) as address:
        error = refused(call, address, key, client)
        assert isinstance(error, TlsError)
        assert "expired" in error.message


@pytest.mark.parametrize("uris", [[], ["ffs:role:client", "ffs:role:storage", "ffs:role:metadata"]])
def test_a_server_without_the_role(
    call: Call, key: ClusterKey, authority: Authority, client: Tls, uris: list[str]
) -> None:
    with serving_in_thread(key, tls=authority.without_role("no-server", uris)) as address:
        error = refused(call, address, key, client)
        assert isinstance(error, TlsError)
        assert "none of the roles ffs:role:meta" in error.message


def test_a_client_certificate_is_no_server_s(
    call: Call, key: ClusterKey, authority: Authority, client: Tls
) -> None:
    with serving_in_thread(key, tls=authority.tls("stolen", Role.CLIENT, Role.STORAGE)) as address:
        assert isinstance(refused(call, address, key, client), TlsError)


def test_a_client_without_any_role(
    call: Call, key: ClusterKey, authority: Authority, meta: Tls
) -> None:
    with serving_in_thread(key, tls=meta) as address:
        error = refused(call, address, key, authority.without_role("nobody", ["https://meta"]))
        assert isinstance(error, TlsError)
        assert "role" in error.message


# --- no downgrade ---------------------------------------------------------------------------------


def test_a_client_without_tls_is_told_so(call: Call, key: ClusterKey, meta: Tls) -> None:
    with serving_in_thread(key, tls=meta) as address:
        error = refused(call, address, key, None)
        assert isinstance(error, TlsError)
        assert "without TLS" in error.message
        assert "tls.ca_file" in error.hint


def test_a_server_without_tls_gets_nothing(call: Call, key: ClusterKey, client: Tls) -> None:
    with serving_in_thread(key) as address:
        error = refused(call, address, key, client)
        assert isinstance(error, TlsError)
        assert "does not speak TLS" in error.message
        assert "[tls]" in error.hint


@contextmanager
def _relay(target: Address) -> Iterator[tuple[Address, list[bytes]]]:
    """Stand between a client and a server, and write down what both say."""
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                heard.append(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def main() -> None:
        sock, _ = listener.accept()
        with sock, socket.create_connection(target) as onward:
            back = threading.Thread(target=pump, args=(onward, sock))
            back.start()
            pump(sock, onward)
            back.join()

    thread = threading.Thread(target=main)
    thread.start()
    with listener:
        yield listener.getsockname()[:2], heard
        thread.join()


def test_nothing_is_said_in_clear(call: Call, key: ClusterKey, meta: Tls, client: Tls) -> None:
    secret = b"a name that nobody else should read"
    with serving_in_thread(key, tls=meta) as address, _relay(address) as (between, heard):
        assert call(between, key, client, [Echo(secret)]) == [Echo(secret)]
    everything = b"".join(heard)
    assert len(everything) > 1_000, "the relay heard nothing: this test shows nothing"
    assert b"FFSH" not in everything
    assert b"echo" not in everything
    assert secret not in everything


def test_who_sits_in_between_with_stolen_certificates(
    key: ClusterKey, meta: Tls, client: Tls
) -> None:
    """It opens both channels, and passes on the proof of the key, which names another channel."""
    listener = socket.create_server(("127.0.0.1", 0))

    def intruder(target: Address) -> None:
        sock, _ = listener.accept()
        with sock, socket.create_connection(target, timeout=20) as onward:
            sock.settimeout(20)
            inner, outer = meta.server(), client.client()
            onward.sendall(outer.greet())
            while not outer.established:
                onward.sendall(outer.greet(onward.recv(65_536)))
            while not inner.established:
                sock.sendall(inner.greet(sock.recv(65_536)))
            said = inner.open(b"")
            while True:
                while len(said) < 40:
                    said += inner.open(_received(sock))
                onward.sendall(outer.seal(said))
                said, answer = b"", b""
                while len(answer) < 40:
                    answer += outer.open(_received(onward))
                sock.sendall(inner.seal(answer))

    def quietly(target: Address) -> None:
        with contextlib.suppress(OSError):
            intruder(target)

    with listener, serving_in_thread(key, tls=meta) as address:
        thread = threading.Thread(target=quietly, args=(address,))
        thread.start()
        between: Address = listener.getsockname()[:2]
        with pytest.raises(AuthError) as caught:
            dial(*between, key, client, timeout_ms=DEADLINE_MS).sock.close()
        thread.join()
    assert type(caught.value) is AuthError
    assert "refused the cluster key" in caught.value.message


def _received(sock: socket.socket) -> bytes:
    data = sock.recv(65_536)
    if not data:
        raise ConnectionResetError
    return data


def test_a_changed_byte_ends_the_connection(key: ClusterKey, meta: Tls, client: Tls) -> None:
    with serving_in_thread(key, tls=meta) as address:
        line = dial(*address, key, client, timeout_ms=DEADLINE_MS)
        assert line.channel is not None
        with line.sock:
            line.sock.settimeout(20)
            sealed = bytearray(line.channel.seal(b"\x04\0\0\0quiet"))
            sealed[-1] ^= 1
            line.sock.sendall(sealed)
            with contextlib.suppress(ConnectionResetError):
                while line.sock.recv(65_536):
                    pass


# --- strangers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bytes_", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x16", b"\0" * 100]
)
def test_strangers_who_speak_something_else(
    key: ClusterKey, meta: Tls, client: Tls, bytes_: bytes
) -> None:
    with (
        serving_in_thread(key, tls=meta) as address,
        socket.create_connection(address, timeout=20) as stranger,
    ):
        stranger.sendall(bytes_)
        assert _blocking(address, key, client, HELLO) == HELLO
        with contextlib.suppress(ConnectionResetError):
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(65_536):
                pass


def test_tls_greeting_bytes_max(
    key: ClusterKey, meta: Tls, authority: Authority, tmp_path: Path
) -> None:
    """Certificates of so many bytes are refused before they are looked at; fewer are let in."""
    config = authority.config("long", Role.CLIENT)
    chain = Path(config.cert_file).read_bytes()
    one = len(ssl.PEM_cert_to_DER_cert(authority.ca_file.read_text()))
    for count, fits in ((TLS_GREETING_BYTES_MAX // one // 2, True), (90_000 // one, False)):
        long = tmp_path / f"{count}.crt"
        long.write_bytes(chain + authority.ca_file.read_bytes() * count)
        mine = Tls(TlsConfig(ca_file=config.ca_file, cert_file=str(long), key_file=config.key_file))
        with serving_in_thread(key, tls=meta) as address:
            if fits:
                assert _blocking(address, key, mine, HELLO) == HELLO
            else:
                refused(_blocking, address, key, mine)


def test_who_does_not_wait_to_be_let_in(key: ClusterKey, meta: Tls, client: Tls) -> None:
    with (
        serving_in_thread(key, tls=meta) as address,
        socket.create_connection(address, timeout=20) as sock,
    ):
        channel = client.client()
        sock.sendall(channel.greet())
        while not channel.established:
            sock.sendall(channel.greet(sock.recv(65_536)))
        half = ClientHandshake(key, HandshakeKind.RPC, binding=channel.binding)
        sock.sendall(channel.seal(half.start()))
        challenge = b""
        while len(challenge) < MESSAGE.size:
            challenge += channel.open(_received(sock))
        sock.sendall(channel.seal(half.receive(challenge) + b"early"))
        answer = b""
        while len(answer) < MESSAGE.size:
            answer += channel.open(_received(sock))
        with pytest.raises(ProtocolError):
            half.receive(answer)


# --- rotation -------------------------------------------------------------------------------------


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of certificates."""
    return [record.message for record in caplog.records if record.name == "ffs.tls"]


def _server_serial(address: Address, config: TlsConfig) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cafile=config.ca_file)
    context.load_cert_chain(config.cert_file, config.key_file)
    with (
        socket.create_connection(address, timeout=20) as sock,
        context.wrap_socket(sock) as sealed,
    ):
        certificate = sealed.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


def test_certificates_are_replaced_while_all_go_on(
    key: ClusterKey, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    config = authority.config("rotated", Role.META)
    mine = authority.config("rotating", Role.CLIENT)
    with (
        serving_in_thread(key, tls=Tls(config)) as address,
        closing(RpcClient([address], key, tls=Tls(mine))) as old,
    ):
        before = _server_serial(address, mine)
        assert old.call(ECHO, HELLO[0], deadline_ms=DEADLINE_MS) == HELLO[0]

        cert = Path(config.cert_file).read_bytes()
        authority.config("rotated", Role.META)
        fresh = Path(config.cert_file).read_bytes()
        Path(config.cert_file).write_bytes(cert)  # as if only the key had been replaced yet
        with caplog.at_level(logging.WARNING, "ffs.tls"):
            assert _server_serial(address, mine) == before, "the old pair stays until both fit"
        assert told(caplog) == ["tls_files_not_usable"]

        Path(config.cert_file).write_bytes(fresh)
        assert _server_serial(address, mine) != before
        assert old.call(ECHO, HELLO[0], deadline_ms=DEADLINE_MS) == HELLO[0]
        authority.config("rotating", Role.CLIENT)
        assert _blocking(address, key, Tls(mine), HELLO) == HELLO


def test_a_new_authority_comes_in_beside_the_old_one(
    key: ClusterKey, authority: Authority, foreign: Authority, tmp_path: Path
) -> None:
    both = tmp_path / "both.crt"
    both.write_bytes(authority.ca_file.read_bytes())
    mine, theirs = authority.config("meta-2", Role.META), foreign.config("client-2", Role.CLIENT)
    server = Tls(TlsConfig(ca_file=str(both), cert_file=mine.cert_file, key_file=mine.key_file))
    believing = Tls(
        TlsConfig(
            ca_file=str(authority.ca_file), cert_file=theirs.cert_file, key_file=theirs.key_file
        )
    )
    with serving_in_thread(key, tls=server) as address:
        refused(_blocking, address, key, believing)
        both.write_bytes(authority.ca_file.read_bytes() + foreign.ca_file.read_bytes())
        assert _blocking(address, key, believing, HELLO) == HELLO


# --- files ----------------------------------------------------------------------------------------


def test_files_that_cannot_be_used(authority: Authority, tmp_path: Path) -> None:
    good = authority.config("good", Role.CLIENT)
    other = authority.config("other", Role.CLIENT)
    nothing = tmp_path / "nothing"
    nothing.write_text("no certificate")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"cert_file": str(tmp_path / "gone")}, "No such file"),
        ({"ca_file": str(nothing)}, "authority"),
        ({"cert_file": str(nothing)}, "certificate and its key"),
        ({"key_file": other.key_file}, "certificate and its key"),
    ]
    for changes, words in wrong:
        with pytest.raises(ConfigError, match=words):
            Tls(dataclasses.replace(good, **changes))


def test_all_files_or_none() -> None:
    assert Tls.configured(TlsConfig()) is None
    with pytest.raises(ConfigError, match=r"tls\.cert_file and tls\.key_file"):
        TlsConfig(ca_file="ca.crt")


def test_a_key_that_others_can_read_is_told_of(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    config = authority.config("open", Role.CLIENT)
    Path(config.key_file).chmod(0o644)
    with caplog.at_level(logging.WARNING, "ffs.tls"):
        Tls(config)
    assert told(caplog) == ["tls_key_file_open_to_others"]
