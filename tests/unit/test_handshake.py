"""The handshake without sockets: who gets in, who does not, and the exact bytes."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffs.errors import AuthError, BusyError, FFSError, ProtocolError, UnavailableError
from ffs.handshake import (
    MESSAGE,
    ClientHandshake,
    ClusterKey,
    HandshakeKind,
    ServerHandshake,
    refusal,
)

KEY = ClusterKey(bytes(range(32)))
OTHER_KEY = ClusterKey(bytes(32))


class Dice:
    """Tokens of one repeated byte."""

    def __init__(self, byte: int) -> None:
        self._byte = byte

    def token(self, n: int) -> bytes:
        return bytes([self._byte]) * n

    def below(self, n: int) -> int:
        return 0

    def u64(self) -> int:
        return 0


def halves(
    client_key: ClusterKey = KEY, kind: HandshakeKind = HandshakeKind.RPC
) -> tuple[ClientHandshake, ServerHandshake]:
    """A client and an RPC server that holds KEY."""
    return (
        ClientHandshake(client_key, kind, Dice(0xC1)),
        ServerHandshake(KEY, HandshakeKind.RPC, Dice(0x5E)),
    )


def transcript() -> list[bytes]:
    """HELLO, CHALLENGE, PROOF, ACCEPT of a handshake that succeeds."""
    client, server = halves()
    hello = client.start()
    challenge = server.receive(hello)
    proof = client.receive(challenge)
    accept = server.receive(proof)
    assert client.receive(accept) == b""
    assert client.done
    assert server.done
    assert client.version == server.version == 1
    return [hello, challenge, proof, accept]


def test_golden_bytes() -> None:
    """The wire format, spelled out from docs/wire.md and nothing else."""
    key, client_nonce, server_nonce = bytes(range(32)), b"\xc1" * 32, b"\x5e" * 32
    hello = b"FFSH\x01\x00\x01\x01" + client_nonce
    challenge = b"FFSH\x00\x00\x01\x00" + server_nonce
    told = hello + challenge
    proof = hmac.digest(key, b"ffs client proof\0" + told, "sha256")
    accept = hmac.digest(key, b"ffs server proof\0" + told, "sha256")
    head = b"FFSH\x00\x00\x01\x00"
    assert transcript() == [hello, challenge, head + proof, head + accept]
    assert proof.hex().startswith("153bd6ee6cea4cfc")
    assert accept.hex().startswith("bae0bd97b87e93f4")


def test_both_nonces_are_fresh() -> None:
    first, second = (ClientHandshake(KEY, HandshakeKind.RPC).start() for _ in range(2))
    assert first != second
    answers = [ServerHandshake(KEY, HandshakeKind.RPC).receive(first) for _ in range(2)]
    assert answers[0] != answers[1]


def test_wrong_client_key() -> None:
    client, server = halves(client_key=OTHER_KEY)
    proof = client.receive(server.receive(client.start()))
    with pytest.raises(AuthError):
        server.receive(proof)
    assert not server.done


def test_wrong_server_key() -> None:
    client, _ = halves()
    server = ServerHandshake(OTHER_KEY, HandshakeKind.RPC)
    client.receive(server.receive(client.start()))
    with pytest.raises(AuthError):
        client.receive(MESSAGE.pack(b"FFSH", 0, 1, 0, OTHER_KEY.mac(b"anything")))
    assert not client.done


def test_reflected_proof_is_no_server_proof() -> None:
    client, server = halves()
    proof = client.receive(server.receive(client.start()))
    with pytest.raises(AuthError):
        client.receive(proof)


def test_replayed_server_is_found_out() -> None:
    _, challenge, _, accept = transcript()
    client = ClientHandshake(KEY, HandshakeKind.RPC)
    client.start()
    client.receive(challenge)
    with pytest.raises(AuthError):
        client.receive(accept)


def test_replayed_client_is_found_out() -> None:
    hello, _, proof, _ = transcript()
    server = ServerHandshake(KEY, HandshakeKind.RPC)
    server.receive(hello)
    with pytest.raises(AuthError):
        server.receive(proof)


def test_wrong_port() -> None:
    client, server = halves(kind=HandshakeKind.DATA)
    with pytest.raises(ProtocolError, match="other port"):
        server.receive(client.start())


def test_proof_for_one_port_is_none_for_the_other() -> None:
    """A man in the middle rewrites the kind: the MACs then cover different bytes."""
    client, server = halves(kind=HandshakeKind.DATA)
    hello = client.start().replace(b"FFSH\x02", b"FFSH\x01")
    proof = client.receive(server.receive(hello))
    with pytest.raises(AuthError):
        server.receive(proof)


@pytest.mark.parametrize(("low", "high"), [(2, 9), (0, 0), (5, 1)])
def test_no_common_version(low: int, high: int) -> None:
    _, server = halves()
    with pytest.raises(ProtocolError, match="version"):
        server.receive(MESSAGE.pack(b"FFSH", HandshakeKind.RPC, low, high, bytes(32)))


def test_newer_client_is_met_at_our_version() -> None:
    _, server = halves()
    answer = server.receive(MESSAGE.pack(b"FFSH", HandshakeKind.RPC, 1, 200, bytes(32)))
    assert MESSAGE.unpack(answer)[2] == server.version == 1


def test_version_that_was_not_offered() -> None:
    client, _ = halves()
    with pytest.raises(ProtocolError, match="version 9"):
        client.receive(MESSAGE.pack(b"FFSH", 0, 9, 0, bytes(32)))


@pytest.mark.parametrize("error", [AuthError("x"), BusyError("x"), ProtocolError("x")])
def test_refusals_arrive_typed(error: FFSError) -> None:
    for challenged in (False, True):
        client, server = halves()
        hello = client.start()
        if challenged:
            client.receive(server.receive(hello))
        with pytest.raises(type(error)):
            client.receive(refusal(error))
        assert not client.done


def test_unknown_refusal_is_still_an_error() -> None:
    client, _ = halves()
    with pytest.raises(FFSError):
        client.receive(MESSAGE.pack(b"FFSH", 60_000, 1, 0, bytes(32)))
    with pytest.raises(UnavailableError):
        client.receive(refusal(UnavailableError("x")))


@given(st.integers(0, 3), st.integers(0, 39), st.integers(1, 255))
def test_no_changed_byte_gets_through(which: int, place: int, flip: int) -> None:
    """Change any one byte of any message: the side that it is for never gets to `done`."""
    messages = [bytearray(m) for m in transcript()]
    messages[which][place] ^= flip
    hello, challenge, proof, accept = (bytes(m) for m in messages)
    client, server = halves()
    with pytest.raises(FFSError):  # noqa: PT012  # which step refuses depends on the byte
        client.start()
        answer = server.receive(hello)
        assert which == 0 or answer == transcript()[1]
        client.receive(challenge)
        server.receive(proof)
        if which == 1:
            # The server saw the true challenge, the client another: its proof must not fit.
            raise_if_proof_fits(challenge)
        client.receive(accept)


def raise_if_proof_fits(challenge: bytes) -> None:
    """Run the client against a changed challenge and the server against the true one."""
    client, server = halves()
    server.receive(client.start())
    server.receive(client.receive(challenge))
    pytest.fail("a proof of another challenge was taken")


@given(st.binary(max_size=80))
def test_garbage_raises_protocol_error(data: bytes) -> None:
    client, server = halves()
    for half in (client, server):
        if data[:4] != b"FFSH" or len(data) != MESSAGE.size:
            with pytest.raises(ProtocolError):
                half.receive(data)
