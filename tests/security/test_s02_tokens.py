"""S2, S3: tokens that are forged, altered, over, revoked, of another cluster, or only seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ffs.auth.token import LIFE_MS_MAX, SKEW_MS_MAX, Claims, Token, TokenKeys
from ffs.auth.verifier import TokenVerifier
from ffs.errors import AuthError, BusyError, FFSError, InvalidError, ProtocolError
from ffs.handshake import ClientHandshake, ClusterKey, HandshakeKind, ServerHandshake
from ffs.wire.auth import Revocation, Revocations

KEY, OTHER_KEY = ClusterKey(bytes(range(32))), ClusterKey(bytes(32))
NOW_MS = 1_000_000_000
CLAIMS = Claims(b"t" * 16, "ann", 1001, (100, 7), "train", NOW_MS, NOW_MS + 60_000)


class Now:
    """A wall clock that stands."""

    def __init__(self, ms: int = NOW_MS) -> None:
        self.ms = ms

    def wall_ns(self) -> int:
        return self.ms * 1_000_000

    def monotonic_ns(self) -> int:
        return self.wall_ns()


def verifier(now: Now | None = None, *revoked: Revocation) -> TokenVerifier:
    made = TokenVerifier(KEY, now or Now())
    made.take(Revocations(1, list(revoked)))
    return made


def run(
    token: Token, tokens: TokenVerifier | None, kind: HandshakeKind = HandshakeKind.RPC
) -> Claims | None:
    """A whole handshake; what the server makes of the client."""
    client = ClientHandshake(token, kind)
    server = ServerHandshake(KEY, HandshakeKind.RPC, tokens=tokens)
    to_server = client.start()
    while to_server:
        answer = b""
        while to_server:
            wanted = server.wanted_bytes
            answer = server.receive(to_server[:wanted])
            to_server = to_server[wanted:]
        to_server = client.receive(answer)
    assert client.done and server.done
    return server.claims


def test_who_holds_a_token_is_its_user() -> None:
    assert run(TokenKeys(KEY).issue(CLAIMS), verifier()) == CLAIMS


def test_the_file_holds_all_of_it(tmp_path: object) -> None:
    token = TokenKeys(KEY).issue(CLAIMS)
    path = f"{tmp_path}/token"
    with open(path, "w") as file:
        file.write(token.export())
    assert run(Token.load(path), verifier()) == CLAIMS


def test_every_bit_counts() -> None:
    """Neither by its signature nor by its secret does an altered token get in."""
    keys = TokenKeys(KEY)
    token = keys.issue(CLAIMS)
    accepted = 0
    for bit in range(8 * len(token.shown)):
        altered = bytearray(token.shown)
        altered[bit // 8] ^= 1 << bit % 8
        for held in (Token(bytes(altered), token._secret), keys.credential(bytes(altered))):
            try:
                run(held, verifier())
            except FFSError:
                continue
            accepted += 1
    assert accepted == 0


def test_every_bit_of_the_secret_counts() -> None:
    token = TokenKeys(KEY).issue(CLAIMS)
    for bit in range(8 * 32):
        secret = bytearray(token._secret)
        secret[bit // 8] ^= 1 << bit % 8
        with pytest.raises(AuthError):
            run(Token(token.shown, bytes(secret)), verifier())


@pytest.mark.parametrize("ms", [NOW_MS - SKEW_MS_MAX - 1, CLAIMS.expires_ms, CLAIMS.expires_ms + 1])
def test_out_of_its_time(ms: int) -> None:
    token = TokenKeys(KEY).issue(CLAIMS)
    with pytest.raises(AuthError):
        run(token, verifier(Now(ms)))


@pytest.mark.parametrize("ms", [NOW_MS - SKEW_MS_MAX, NOW_MS, CLAIMS.expires_ms - 1])
def test_within_its_time(ms: int) -> None:
    assert run(TokenKeys(KEY).issue(CLAIMS), verifier(Now(ms))) == CLAIMS


@pytest.mark.parametrize(
    "revoked",
    [
        Revocation(CLAIMS.token_id, "", 0, NOW_MS * 2),
        Revocation(b"", "ann", NOW_MS, NOW_MS * 2),
        Revocation(b"", "ann", NOW_MS + 1, NOW_MS * 2),
    ],
)
def test_revoked(revoked: Revocation) -> None:
    with pytest.raises(AuthError):
        run(TokenKeys(KEY).issue(CLAIMS), verifier(None, revoked))


@pytest.mark.parametrize(
    "revoked",
    [
        Revocation(b"u" * 16, "", 0, NOW_MS * 2),
        Revocation(b"", "ann", NOW_MS - 1, NOW_MS * 2),
        Revocation(b"", "bob", NOW_MS + 1, NOW_MS * 2),
    ],
)
def test_what_is_revoked_of_others_is_nothing_to_it(revoked: Revocation) -> None:
    assert run(TokenKeys(KEY).issue(CLAIMS), verifier(None, revoked)) == CLAIMS


def test_no_token_counts_before_it_is_known_what_is_revoked() -> None:
    with pytest.raises(BusyError):
        run(TokenKeys(KEY).issue(CLAIMS), TokenVerifier(KEY, Now()))


def test_another_clusters_token() -> None:
    with pytest.raises(AuthError):
        run(TokenKeys(OTHER_KEY).issue(CLAIMS), verifier())


def test_where_no_token_counts() -> None:
    with pytest.raises(ProtocolError):
        run(TokenKeys(KEY).issue(CLAIMS), None)


def test_a_token_for_another_port() -> None:
    with pytest.raises(ProtocolError):
        run(TokenKeys(KEY).issue(CLAIMS), verifier(), HandshakeKind.DATA)


# --- S3: seen on the wire, and sent again ---------------------------------------------------------


def sent(token: Token) -> list[bytes]:
    """What a client sends in a handshake that succeeds: HELLO, PROOF, token."""
    client = ClientHandshake(token, HandshakeKind.RPC)
    server = ServerHandshake(KEY, HandshakeKind.RPC, tokens=verifier())
    hello = client.start()
    proof = client.receive(server.receive(hello))
    return [hello, proof[:40], proof[40:]]


def test_s03_replay() -> None:
    hello, proof, shown = sent(TokenKeys(KEY).issue(CLAIMS))
    server = ServerHandshake(KEY, HandshakeKind.RPC, tokens=verifier())
    server.receive(hello)
    assert server.receive(proof) == b""
    with pytest.raises(AuthError):
        server.receive(shown)
    assert not server.done and server.claims is None


def test_s03_who_has_only_seen_a_token_has_nothing() -> None:
    _, _, shown = sent(TokenKeys(KEY).issue(CLAIMS))
    with pytest.raises(AuthError):
        run(Token(shown, bytes(32)), verifier())


def test_s03_a_server_without_the_key_is_found_out() -> None:
    token = TokenKeys(KEY).issue(CLAIMS)
    client = ClientHandshake(token, HandshakeKind.RPC)
    impostor = ServerHandshake(OTHER_KEY, HandshakeKind.RPC)
    hello = client.start().replace(b"FFSH\x01\x01", b"FFSH\x01\x00")
    client.receive(impostor.receive(hello))
    with pytest.raises(AuthError):
        client.receive(b"FFSH\x00\x00\x01\x00" + OTHER_KEY.mac(b"anything"))


def test_token_bytes_max() -> None:
    client = ClientHandshake(Token(b"x" * 1_024, bytes(32)), HandshakeKind.RPC)
    server = ServerHandshake(KEY, HandshakeKind.RPC, tokens=verifier())
    proof = client.receive(server.receive(client.start()))
    assert server.receive(proof[:40]) == b"" and server.wanted_bytes == 1_024
    with pytest.raises(AuthError):
        server.receive(proof[40:])
    longer = ClientHandshake(Token(b"x" * 1_025, bytes(32)), HandshakeKind.RPC)
    server = ServerHandshake(KEY, HandshakeKind.RPC, tokens=verifier())
    proof = longer.receive(server.receive(longer.start()))
    with pytest.raises(ProtocolError, match="1025"):
        server.receive(proof[:40])


# --- what can be issued ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claims",
    [
        replace(CLAIMS, uid=0),
        replace(CLAIMS, uid=(1 << 32) - 1),
        replace(CLAIMS, gids=()),
        replace(CLAIMS, gids=(-1,)),
        replace(CLAIMS, gids=tuple(range(65))),
        replace(CLAIMS, user="Ann!"),
        replace(CLAIMS, job="x" * 65),
        replace(CLAIMS, job="a\nb"),
        replace(CLAIMS, expires_ms=NOW_MS),
        replace(CLAIMS, expires_ms=NOW_MS + LIFE_MS_MAX + 1),
    ],
)
def test_what_is_not_issued(claims: Claims) -> None:
    with pytest.raises(InvalidError):
        TokenKeys(KEY).issue(claims)


def test_groups_max() -> None:
    longest = replace(
        CLAIMS, gids=tuple(range((1 << 32) - 66, (1 << 32) - 2)), job="j" * 64, user="u" * 32
    )
    assert run(TokenKeys(KEY).issue(longest), verifier()) == longest
