"""The RPC codec at the batch sizes that decide metadata rates."""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from ffs.rpc import codec
from ffs.types import Attr
from ffs.wire import messages as wire

PATHS = 1_000


def test_stat_many_request(benchmark: BenchmarkFixture) -> None:
    request = wire.StatManyRequest([b"/a/b%d/c/d%d" % (i % 10, i) for i in range(PATHS)])
    assert len(benchmark(codec.encode_request, 1, wire.STAT_MANY, request, 1000)) > 0


def test_stat_many_reply(benchmark: BenchmarkFixture) -> None:
    attr = Attr(2, 1, 0o644, 0, 0, 1, 10, 1, 0, 0, 0)
    reply = wire.StatManyReply([attr] * PATHS)
    assert len(benchmark(codec.encode_reply, 1, wire.STAT_MANY, reply)) > 0
