"""What stands in the way of RDMA: for good or for a while, and for which connections."""

from __future__ import annotations

import socket

import pytest

from ffs import _reader
from ffs.client.connections import Connections
from ffs.client.rdma import LOOK_AGAIN_NS, Rdma, RdmaOptions
from ffs.errors import OK, TransportError
from ffs.key import KEY_BYTES, ClusterKey
from ffs.wire.frame import RdmaFault
from tests.unit.client.test_suspects import Clock

FOR_GOOD = {"NOT_BUILT", "NO_LIBRARY", "NO_DEVICE", "NO_COPY_ON_FORK"}


@pytest.mark.parametrize("fault", [f for f in RdmaFault if f is not RdmaFault.FINE])
def test_only_what_does_not_pass_is_remembered_for_good(
    fault: RdmaFault, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = socket.socketpair()
    connection = _reader.Connection(near.detach())
    monkeypatch.setattr(_reader, "connect_qp", lambda *_, **__: (OK, fault, "it is so"))
    rdma = Rdma(RdmaOptions())
    assert rdma.go_over(connection, "node", 1000) == "it is so"
    assert rdma.absent == ("it is so" if fault.name in FOR_GOOD else "")
    with pytest.raises(TransportError, match="it is so"):
        Rdma(RdmaOptions(required=True)).go_over(connection, "node", 1000)
    connection.close()
    far.close()


def test_what_a_node_refuses_is_asked_for_again_after_a_while() -> None:
    clock = Clock()
    connections = Connections(
        ClusterKey(bytes(KEY_BYTES)),
        connect_ms=1000,
        congestion="",
        receive_buffer_bytes=0,
        rdma=RdmaOptions(),
        clock=clock,
    )
    pool = connections.pool(("node", 1))
    assert connections._by_rdma(pool)
    connections._stay(pool, "no room")
    assert not connections._by_rdma(pool)
    assert connections.transports() == {"node:1": {"transport": "tcp", "why": "no room"}}
    clock.now_ns += LOOK_AGAIN_NS - 1
    assert not connections._by_rdma(pool)
    clock.now_ns += 1
    assert connections._by_rdma(pool)
