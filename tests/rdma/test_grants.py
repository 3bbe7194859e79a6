"""What tokens' holders get by RDMA: blobs that were granted to them, and nothing else (S4, S13)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffs import _reader
from ffs.auth.grant import GrantKeys, May, ranges_of
from ffs.auth.token import Claims
from ffs.client.planner import OP_DTYPE, PENDING
from ffs.errors import OK, ConnectionLostError, GrantError
from ffs.key import ClusterKey
from ffs.seams import SystemClock
from ffs.wire.frame import RdmaFault
from tests.harness import Cluster
from tests.native.data_loop import KIB, fill
from tests.rdma.test_daemon import Wire, read, wired, write, write_all
from tests.security.tenants import Admit, Tenant
from tests.security.tenants import admit as admit  # a fixture
from tests.security.tenants import home as home  # another one
from tests.security.tenants import users as users  # and one more

KEYS = GrantKeys(ClusterKey(bytes(range(32))), SystemClock())
FOREVER_MS = 4_000_000_000_000
ANN, BOB = (
    Claims(bytes([n]) * 16, name, 1_000 + n, (1_000,), "test", 0, FOREVER_MS)
    for n, name in enumerate(("ann", "bob"), 1)
)
BLOBS = range(1, 25)
REFUSED = GrantError.code


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    """A daemon that knows the keys, and has a chunk of every blob."""
    with wired(tmp_path) as made:
        made.server.loop.set_grant_keys(*KEYS.live())
        yield made
    assert _reader.rdma_usage() == {"regions": 0, "bytes_asked": 0}


def show(connection: _reader.Connection, claims: Claims, blobs: Any, may: int = May.READ) -> None:
    """Show grants for blobs."""
    for grant in KEYS.grant(claims, blobs, may):
        assert _reader.present(connection, grant, len(ranges_of(grant))) == OK


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "domain"])
def test_s04_two_tenants_sweep_all_blobs(wire: Wire, windows: bool) -> None:
    data = {blob: fill(wire.server, blob, 0, 8 * KIB) for blob in BLOBS}
    ann = wire.rdma(windows=windows, token_id=ANN.token_id)
    bob = wire.rdma(windows=windows, token_id=BOB.token_id)
    nothing = ([REFUSED], [bytes(5_000)])
    for connection in (ann, bob):
        assert all(_sweep(connection, blob) == nothing for blob in BLOBS)
    show(ann, ANN, BLOBS[::2])
    show(bob, BOB, BLOBS[1::2])
    for blob in BLOBS:
        got = ([OK], [data[blob][100:5_100]])
        assert _sweep(ann, blob) == (got if blob % 2 else nothing)
        assert _sweep(bob, blob) == (nothing if blob % 2 else got)
    assert wire.server.loop.stats()["rdma_connections_total"] == 2


def _sweep(connection: _reader.Connection, blob: int) -> tuple[list[int], list[bytes]]:
    """What a read of one range comes to; where nothing came, the memory is as it was."""
    out = np.zeros(5_000, np.uint8)
    ops = np.zeros(1, dtype=OP_DTYPE)
    ops["blob"], ops["target"], ops["offset"], ops["length"] = blob, 3, 100, len(out)
    ops["status"] = PENDING
    _reader.read_batch([connection], ops, out, deadline_ms=20_000)
    return ops["status"].tolist(), [out.tobytes()]


def test_one_that_was_not_granted_refuses_the_request(wire: Wire) -> None:
    """However long the request: most of its descriptors are fetched by the daemon."""
    data = fill(wire.server, 7, 0, 64 * KIB)
    connection = wire.rdma(token_id=ANN.token_id)
    show(connection, ANN, [7])
    ranges = [(7, 0, i * 200, 100) for i in range(250)]
    wanted = [data[i * 200 :][:100] for i in range(250)]
    assert read(connection, ranges, verify=False) == ([OK] * 250, wanted)
    assert set(read(connection, [*ranges, (8, 0, 0, 1)], verify=False)[0]) == {REFUSED}
    assert connection.alive


def test_writes_take_a_grant_of_their_own(wire: Wire) -> None:
    connection, chunks = wire.rdma(windows=False, token_id=ANN.token_id), [b"x" * 100_000] * 3
    assert write(connection, chunks, 11) == [REFUSED] * 3
    show(connection, ANN, [11])
    assert write(connection, chunks, 11) == [REFUSED] * 3
    assert wire.server.loop.stats()["write_bytes_total"] == 0
    show(connection, ANN, [11], May.WRITE)
    assert write_all(wire.server, connection, chunks, 11) == [OK] * 3
    assert read(connection, [(11, 2, 0, 100)]) == ([OK], [b"x" * 100])


def test_what_was_shown_before_it_went_over_counts(wire: Wire) -> None:
    data = fill(wire.server, 7, 0, 8 * KIB)
    connection = wire.tcp(token_id=ANN.token_id)
    show(connection, ANN, [7])
    assert _reader.connect_qp(connection, deadline_ms=20_000) == (OK, RdmaFault.FINE, "")
    assert read(connection, [(7, 0, 0, 8 * KIB)]) == ([OK], [data])


def test_the_longest_grant_and_many_of_them(wire: Wire) -> None:
    """16 KiB, of which a SEND has room for a quarter; each gives back its credit."""
    data = fill(wire.server, 7, 0, KIB)
    connection = wire.rdma(token_id=ANN.token_id)
    show(connection, ANN, range(9, 9 + 2 * 20 * 1_024, 2))
    assert read(connection, [(7, 0, 0, KIB)])[0] == [REFUSED]
    show(connection, ANN, [7])
    assert read(connection, [(7, 0, 0, KIB)]) == ([OK], [data])


def test_a_forged_or_another_tokens_grant_ends_the_connection(wire: Wire) -> None:
    fill(wire.server, 7, 0, KIB)
    (mine,) = KEYS.grant(ANN, [7], May.READ)
    (theirs,) = KEYS.grant(BOB, [7], May.READ)
    forged = [bytes(b ^ (i == at) for i, b in enumerate(mine)) for at in (8, 16, 40, len(mine) - 1)]
    for grant in (theirs, *forged):
        connection = wire.rdma(token_id=ANN.token_id)
        assert _reader.present(connection, grant, 1) == ConnectionLostError.code
        assert not connection.alive
    whoever = wire.rdma()  # by the cluster's key: it has no grants, and may show none
    assert _reader.present(whoever, mine, 1) == ConnectionLostError.code


def test_two_tenants_of_a_cluster(
    admit: Admit, home: Callable[[Tenant], str], fs: Any, cluster: Cluster
) -> None:
    ann, bob = admit("ann"), admit("bob")
    data = bytes(range(256)) * 2_000
    mine, theirs = f"{home(ann)}/f", f"{home(bob)}/f"
    ann.fs.pipe_file(mine, data)
    bob.fs.pipe_file(theirs, data[::-1])
    assert bob.fs.cat_file(theirs) == data[::-1]
    with pytest.raises(PermissionError):
        bob.fs.cat_file(mine)
    (address,) = bob.fs.core.meta.refresh_route().address_of_node.values()
    (told,) = bob.fs.transports().values()
    assert told["transport"].startswith("rdma")
    connection = bob.fs.core.connections.checkout(address, timeout_ms=20_000, fresh=True)
    assert connection.rdma
    highest = max(_blob_of(fs, path) for path in (mine, theirs))
    target = bob.fs.core.meta.refresh_route().sole_target
    ops = np.zeros(highest, dtype=OP_DTYPE)
    ops["blob"], ops["target"], ops["length"] = np.arange(1, highest + 1), target, 4_096
    ops["dest_offset"] = np.arange(highest) * 4_096
    out = np.zeros(highest * 4_096, np.uint8)
    for start in range(highest):
        ops["status"] = OK
        ops["status"][start] = PENDING
        _reader.read_batch([connection], ops, out, deadline_ms=20_000)
        assert ops["status"][start] == REFUSED
    assert not out.any()
    connection.close()


def _blob_of(fs: Any, path: str) -> int:
    (segment,) = fs.core.meta.open_many((path,))[0].segments
    return int(segment.blob)
