"""S4: what storage daemons serve to a token: blobs that were granted to it, and nothing else."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ffs import _reader
from ffs.auth.grant import HEAD, GrantKeys, May, ranges_of
from ffs.auth.token import Token
from ffs.client.planner import OP_DTYPE, PENDING
from ffs.client.users import Users
from ffs.errors import (
    AuthError,
    ConnectionLostError,
    FFSError,
    GrantError,
    InvalidError,
)
from ffs.handshake import HandshakeKind, connect, prove
from ffs.key import ClusterKey
from ffs.same_host import connect_local, socket_name
from ffs.seams import SystemClock
from tests.harness import Cluster
from tests.security.tenants import Admit, Tenant

Home = Callable[[Tenant], str]
DATA = os.urandom(300_000)


class Raw:
    """One data connection by a tenant's token, to the only daemon."""

    def __init__(self, tenant: Tenant, *, local: bool = False) -> None:
        self._route = tenant.fs.core.meta.refresh_route()
        (address,) = self._route.address_of_node.values()
        token = Token.load(tenant.token_file)
        if local:
            sock = connect_local(token, address, timeout_ms=20_000)
        else:
            host, port = address
            sock = connect(host, port, token, HandshakeKind.DATA, timeout_ms=20_000)
        self.connection = _reader.Connection(sock.detach(), local=local)

    def read(self, *blobs: int) -> list[tuple[int, bytes]]:
        """Status and bytes of the first 4 KiB of each blob's first chunk."""
        ops = np.zeros(len(blobs), dtype=OP_DTYPE)
        ops["blob"], ops["target"], ops["length"] = blobs, self._route.sole_target, 4_096
        ops["dest_offset"], ops["status"] = np.arange(len(blobs)) * 4_096, PENDING
        out = memoryview(bytearray(4_096 * len(blobs)))
        _reader.read_batch((self.connection,), ops, out, deadline_ms=20_000)
        parts = [bytes(out[i * 4_096 : (i + 1) * 4_096]) for i in range(len(blobs))]
        return list(zip(ops["status"].tolist(), parts, strict=True))

    def show(self, grant: bytes, count: int = 1) -> None:
        """Show a grant; nothing answers."""
        _reader.present(self.connection, grant, count)


def blob_of(fs: Any, path: str) -> int:
    """The only blob of a file."""
    (segment,) = fs.core.meta.open_many((path,))[0].segments
    return int(segment.blob)


@pytest.fixture
def keys(cluster: Cluster) -> GrantKeys:
    """What makes the cluster's grants."""
    return GrantKeys(ClusterKey.load(cluster.key_file), SystemClock())


def test_a_tenant_writes_and_reads(admit: Admit, home: Home, fs: Any) -> None:
    ann = admit("ann")
    place = home(ann)
    ann.fs.pipe_file(f"{place}/f", DATA)
    assert ann.fs.cat_file(f"{place}/f") == DATA
    assert fs.cat_file(f"{place}/f") == DATA
    ann.fs.pipe_file(f"{place}/f", b"anew")
    again = admit("ann")  # another token: nothing was granted to it yet
    assert again.fs.cat_file(f"{place}/f") == b"anew"
    fs.pipe_file(f"{place}/roots", DATA)
    assert ann.fs.cat_file(f"{place}/roots", 1_000, 2_000) == DATA[1_000:2_000]


@pytest.mark.parametrize("local", [False, True], ids=["tcp", "same-host"])
def test_s04_a_full_sweep_of_blobs_gives_nothing(
    admit: Admit, home: Home, fs: Any, local: bool
) -> None:
    ann, bob = admit("ann"), admit("bob", same_host=local)
    mine, theirs = f"{home(ann)}/f", f"{home(bob)}/f"
    ann.fs.pipe_file(mine, DATA)
    bob.fs.pipe_file(theirs, DATA[::-1])
    highest = max(blob_of(fs, mine), blob_of(fs, theirs))
    raw = Raw(bob, local=local)
    for start in range(1, highest + 1, 1_000):
        blobs = range(start, min(start + 1_000, highest + 1))
        for status, got in raw.read(*blobs):
            assert (status, got) == (GrantError.code, bytes(4_096))
    with pytest.raises(PermissionError):
        bob.fs.cat_file(mine)


def test_one_that_was_not_granted_refuses_the_request(
    admit: Admit, home: Home, keys: GrantKeys, fs: Any
) -> None:
    ann = admit("ann")
    path = f"{home(ann)}/f"
    fs.pipe_file(path, DATA)
    blob = blob_of(fs, path)
    raw = Raw(ann)
    (grant,) = keys.grant(ann.claims, [blob], May.READ)
    raw.show(grant)
    assert raw.read(blob) == [(0, DATA[:4_096])]
    assert [status for status, _ in raw.read(blob, blob + 1)] == [GrantError.code] * 2
    assert raw.read(blob) == [(0, DATA[:4_096])]


def test_another_tokens_grant_ends_the_connection(
    admit: Admit, home: Home, keys: GrantKeys, fs: Any
) -> None:
    ann, bob = admit("ann"), admit("bob")
    path = f"{home(ann)}/f"
    ann.fs.pipe_file(path, DATA)
    raw = Raw(bob)
    (grant,) = keys.grant(ann.claims, [blob_of(fs, path)], May.READ)
    raw.show(grant)
    assert raw.read(blob_of(fs, path))[0] == (ConnectionLostError.code, bytes(4_096))


def test_s02_every_bit_of_a_grant_counts(
    admit: Admit, home: Home, keys: GrantKeys, fs: Any
) -> None:
    ann = admit("ann")
    path = f"{home(ann)}/f"
    fs.pipe_file(path, DATA)
    blob = blob_of(fs, path)
    (grant,) = keys.grant(ann.claims, [blob], May.READ)
    raw, accepted = Raw(ann), 0
    for bit in range(8 * len(grant)):
        altered = bytearray(grant)
        altered[bit // 8] ^= 1 << bit % 8
        raw.show(bytes(altered))
        status, got = raw.read(blob)[0]
        accepted += status == 0 or got != bytes(4_096)
        if not raw.connection.alive:
            raw = Raw(ann)
    assert accepted == 0
    raw.show(grant)
    assert raw.read(blob) == [(0, DATA[:4_096])]


def test_a_grant_to_read_is_none_to_write(admit: Admit, home: Home, fs: Any) -> None:
    """A file that another one writes cannot be written by who may read it."""
    ann = admit("ann")
    path = f"{home(ann)}/f"
    fs.pipe_file(path, DATA)
    assert ann.fs.cat_file(path) == DATA
    grants = ann.fs.core.meta.grants
    blob = blob_of(fs, path)
    assert grants._needed([blob], writes=False) and not grants._needed([blob], writes=True)


def test_grants_are_renewed(
    admit: Admit, home: Home, fs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = admit("ann")
    path = f"{home(ann)}/f"
    fs.pipe_file(path, DATA)
    handle = ann.fs.open(path, "rb")
    assert handle.read(1_000) == DATA[:1_000]
    asked: list[int] = []
    grants = ann.fs.core.meta.grants
    renew = grants._renew

    def counting(old: list[bytes], before: bytes) -> list[bytes]:
        asked.append(len(old))
        renewed: list[bytes] = renew(old, before)
        return renewed

    monkeypatch.setattr(grants, "_renew", counting)
    monkeypatch.setattr("ffs.client.grants.MARGIN_S", 10_000)
    assert handle.read(1_000) == DATA[1_000:2_000]
    assert asked == [1]
    handle.close()


def test_what_cannot_be_granted_is_a_typed_error(admit: Admit, home: Home, fs: Any) -> None:
    ann = admit("ann")
    path = f"{home(ann)}/f"
    fs.pipe_file(path, DATA)
    with ann.fs.open(path, "rb") as file:
        ann.fs.core.meta.grants._by_blob[1].clear()
        with pytest.raises(FFSError) as caught:
            file.read()
        assert isinstance(caught.value, GrantError) and isinstance(caught.value, PermissionError)


@pytest.mark.parametrize("what", ["token", "user"])
def test_revoking_ends_data_connections(admit: Admit, home: Home, users: Users, what: str) -> None:
    ann = admit("ann")
    raw = Raw(ann)
    assert raw.read(1)[0][0] == GrantError.code
    if what == "token":
        users.revoke_token(ann.claims.token_id)
    else:
        users.revoke_user(ann.claims.user)
    give_up = time.monotonic() + 60
    while raw.read(1)[0][0] == GrantError.code:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    with pytest.raises(AuthError):
        Raw(ann)


def test_s04_a_token_gets_no_descriptors(
    cluster: Cluster, admit: Admit, home: Home, fs: Any
) -> None:
    """On the same host a descriptor shows a whole extent file: not every token's holder gets one,
    even if it knows where to ask."""
    ann = admit("ann")
    path = f"{home(ann)}/f"
    fs.pipe_file(path, DATA)
    before = _reader.counters()["local_bytes"]
    assert ann.fs.cat_file(path) == DATA
    assert ann.fs.read_buffer(path, map=True) == DATA
    assert _reader.counters()["local_bytes"] == before
    (address,) = ann.fs.core.meta.refresh_route().address_of_node.values()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(socket_name(ClusterKey.load(cluster.key_file), address))
        with pytest.raises(AuthError):
            prove(sock, address, Token.load(ann.token_file), HandshakeKind.LOCAL, timeout_ms=20_000)


def test_a_token_that_says_so_reads_on_the_same_host(admit: Admit, home: Home, fs: Any) -> None:
    ann = admit("ann", same_host=True)
    place = home(ann)
    ann.fs.pipe_file(f"{place}/f", DATA)
    fs.pipe_file(f"{place}/roots", DATA[::-1])
    for _ in range(2):
        before = _reader.counters()["local_bytes"]
        assert ann.fs.cat_file(f"{place}/f") == DATA
        assert ann.fs.cat_file(f"{place}/roots") == DATA[::-1]
        assert bytes(ann.fs.read_buffer(f"{place}/roots", map=True)) == DATA[::-1]
        assert _reader.counters()["local_bytes"] - before >= 3 * len(DATA)


def test_on_the_same_host_blobs_are_granted_too(
    admit: Admit, home: Home, keys: GrantKeys, fs: Any
) -> None:
    ann = admit("ann", same_host=True)
    path = f"{home(ann)}/f"
    fs.pipe_file(path, DATA)
    blob = blob_of(fs, path)
    raw = Raw(ann, local=True)
    assert raw.read(blob) == [(GrantError.code, bytes(4_096))]
    (grant,) = keys.grant(ann.claims, [blob], May.READ)
    raw.show(grant)
    assert raw.read(blob) == [(0, DATA[:4_096])]
    assert [status for status, _ in raw.read(blob, blob + 1)][1] == GrantError.code


def test_a_read_without_a_look_at_its_grants(
    admit: Admit, home: Home, fs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that has been shown something is read by at once; who was wrong is refused, and
    shows what it takes. Refused or not, the caller gets the bytes, and asks the server nothing."""
    ann = admit("ann")
    place = home(ann)
    for name in ("a", "b"):
        fs.pipe_file(f"{place}/{name}", name.encode() * 10_000)
    (first,), (second,) = (ann.fs.open_many([f"{place}/{name}"]) for name in ("a", "b"))
    out = memoryview(bytearray(10_000))
    renewed: list[int] = []
    monkeypatch.setattr(
        ann.fs.core.meta.grants, "_renew", lambda old, before: renewed.append(len(old))
    )
    for handle, letter, answers in ((first, b"a", 1), (second, b"b", 2), (first, b"a", 1)):
        frames = _reader.counters()["frames"]
        assert ann.fs.readv_into([(handle, 0, 10_000)], out) == 10_000
        assert bytes(out) == letter * 10_000
        assert _reader.counters()["frames"] == frames + answers
    both = [(handle, 0, 5_000) for handle in (first, second)]
    assert ann.fs.readv_into(both, out) == 10_000
    assert bytes(out) == b"a" * 5_000 + b"b" * 5_000
    assert renewed == []


# --- what is refused is written down --------------------------------------------------------------


def _audited(cluster: Cluster, tenant: Tenant) -> list[dict[str, Any]]:
    """What the daemon has written down of a tenant's token."""
    lines = (cluster.directory / "log" / "storage-0.err").read_text().splitlines()
    audit = [json.loads(line) for line in lines if '"ffs.audit"' in line]
    return [one for one in audit if one["token"] == tenant.claims.name]


def test_what_a_daemon_refuses_is_audited(
    cluster: Cluster, admit: Admit, home: Home, keys: GrantKeys, fs: Any
) -> None:
    ann, bob = admit("ann"), admit("bob")
    path = f"{home(ann)}/f"
    ann.fs.pipe_file(path, DATA)
    blob, give_up = blob_of(fs, path), time.monotonic() + 60
    (stolen,) = keys.grant(ann.claims, [blob], May.READ)
    wanted = {("read", blob), ("grant", 0)}
    mine: list[dict[str, Any]] = []
    while not wanted <= {(one["method"], one["blob"]) for one in mine}:
        assert time.monotonic() < give_up, mine
        raw = Raw(bob)  # of a flood, which other tests may have made, some are left out
        assert raw.read(blob)[0][0] == GrantError.code
        raw.show(stolen)
        time.sleep(0.3)
        mine = _audited(cluster, bob)
    for one in mine:
        assert (one["event"], one["uid"], one["peer"]) == (
            "data_refused",
            bob.claims.uid,
            "127.0.0.1",
        )
    assert any(one["request_id"] > 0 for one in mine)


def test_a_flood_of_refusals_is_few_lines(cluster: Cluster, admit: Admit) -> None:
    bob = admit("bob")
    raw = Raw(bob)
    for _ in range(2_000):
        assert raw.read(1)[0][0] == GrantError.code
    lines = _audited(cluster, bob)
    span = len({one["time"][:19] for one in lines}) + 1
    assert len(lines) <= 10 * span


# --- bounds ---------------------------------------------------------------------------------------


def _answers(raw: Raw) -> bool:
    """Whether the daemon has not closed the connection."""
    return raw.read(1)[0][0] == GrantError.code


def test_grant_ranges_max(admit: Admit, keys: GrantKeys) -> None:
    ann = admit("ann")
    longest, rest = keys.grant(ann.claims, range(10, 10 + 2 * 1_025, 2), May.READ)
    raw = Raw(ann)
    raw.show(longest, 1_024)
    raw.show(rest, 1)
    assert _answers(raw)
    raw.show(longest + bytes(16), 1_025)
    assert not _answers(raw)


def test_grants_renewed_max(admit: Admit, keys: GrantKeys) -> None:
    ann = admit("ann")
    grants = keys.grant(ann.claims, [7], May.READ) * 256
    (renewed,) = ann.fs.core.meta.renew_grants(grants)
    assert ranges_of(renewed) == [(7, 7)]
    with pytest.raises(InvalidError):
        ann.fs.core.meta.renew_grants(grants + grants[:1])


def test_only_what_is_genuine_is_renewed(admit: Admit, keys: GrantKeys) -> None:
    ann, bob = admit("ann"), admit("bob")
    (mine,), (theirs,) = (keys.grant(t.claims, [7, 8, 10], May.READ) for t in (ann, bob))
    forged = mine[:-1] + bytes([mine[-1] ^ 1])
    assert ann.fs.core.meta.renew_grants([theirs, forged, b"", b"x" * 80]) == []
    (again,) = ann.fs.core.meta.renew_grants([mine, mine])
    assert ranges_of(again) == [(7, 8), (10, 10)]


def test_granted_max(admit: Admit, home: Home, keys: GrantKeys, fs: Any) -> None:
    """At the bound a connection begins anew, and what was granted must be shown again."""
    ann = admit("ann")
    path = f"{home(ann)}/f"
    fs.pipe_file(path, DATA)
    blob = blob_of(fs, path)
    raw = Raw(ann)
    (grant,) = keys.grant(ann.claims, [blob], May.READ)
    raw.show(grant)
    far = 1 << 40
    for part in keys.grant(ann.claims, range(far, far + 2 * 63 * 1_024, 2), May.READ):
        raw.show(part, 1_024)
    assert raw.read(blob)[0][0] == 0
    for part in keys.grant(ann.claims, range(2 * far, 2 * far + 2 * 2 * 1_024, 2), May.READ):
        raw.show(part, 1_024)
    assert raw.read(blob)[0][0] == GrantError.code
    raw.show(grant)
    assert raw.read(blob)[0][0] == 0


def test_what_overlaps(admit: Admit, home: Home, keys: GrantKeys, fs: Any) -> None:
    """However grants cut each other, what was granted is, and what lies between is not."""
    ann = admit("ann")
    place = home(ann)
    paths = [f"{place}/f{i}" for i in range(12)]
    for path in paths:
        fs.pipe_file(path, DATA[:5_000])
    blobs = [blob_of(fs, path) for path in paths]
    for seed in range(20):
        dice, raw, granted = random.Random(seed), Raw(ann), set()
        for _ in range(6):
            some = dice.sample(blobs, dice.randrange(1, 8))
            granted |= set(some)
            for grant in keys.grant(ann.claims, some, May.READ):
                raw.show(grant, HEAD.unpack_from(grant)[2])
            for blob in blobs:
                wanted = 0 if blob in granted else GrantError.code
                assert raw.read(blob)[0][0] == wanted, (seed, blob)
