"""Where the time of a read goes: by every way, from disk, for OpenTelemetry, and in a status."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from ffs import _reader
from ffs.client.traced import PARTS, TracedRead
from ffs.errors import InvalidError
from tests.harness import Cluster
from tests.native.data_loop import evict_below

CHUNK = 1 << 20
DATA = os.urandom(3 * CHUNK + 5_000)
SPANS = """
import sys, fsspec
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
fs = fsspec.filesystem("ffs", **eval(sys.argv[1]))
read = fs.trace_read("/file")
spans = exporter.get_finished_spans()
(whole,) = [s for s in spans if s.name == "ffs.read"]
ranges = [s for s in spans if s.name == "ffs.range"]
assert whole.attributes["ffs.trace_id"] == f"{read.trace_id:016x}"
assert whole.end_time - whole.start_time == read.took_ns
assert len(ranges) == len(read.ranges) == 4
for span in ranges:
    assert span.parent.span_id == whole.context.span_id
    below = [s for s in spans if s.parent and s.parent.span_id == span.context.span_id]
    assert {"ffs.queue", "ffs.network", "ffs.crc"} <= {s.name for s in below}
    assert min(s.start_time for s in below) == span.start_time
    assert max(s.end_time for s in below) == span.end_time
print("seen", len(spans))
"""
SLOW = """
import sys, fsspec
from ffs.client import trace
fs = fsspec.filesystem("ffs", **eval(sys.argv[1]))
size = fs.info("/file")["size"]
with trace.tracing(0x0123456789abcdef):
    fs.readv_into([("/file", 0, size)] * 20, bytearray(20 * size))
(own,) = [one for one in fs.slow_reads() if one.trace_id == 0x0123456789abcdef]
assert own.length == 20 * size and own.took_ns > 0 and own.age_ns < 60e9
"""
"""Slower than all other reads of this module's daemons."""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    config = {"meta.heartbeat_ms": 100, "storage.io": "direct"}
    cluster = Cluster(tmp_path_factory.mktemp("traces"), 2, config).start()
    fs = fsspec.filesystem("ffs", **cluster.storage_options, skip_instance_cache=True)
    fs.pipe_file("/file", DATA, chunk_size_bytes=CHUNK)
    fs.pipe_file("/empty", b"")
    fs.close()
    yield cluster
    cluster.stop()


@pytest.fixture
def over(traced: Cluster) -> Iterator[Callable[..., TracedRead]]:
    """Trace a read of the file by a way."""
    made = []

    def read(
        path: str = "/file", offset: int = 0, length: int | None = None, **way: str
    ) -> TracedRead:
        options = {**traced.storage_options, **way}
        made.append(fsspec.filesystem("ffs", skip_instance_cache=True, **options))
        done: TracedRead = made[-1].trace_read(path, offset, length)
        return done

    yield read
    for fs in made:
        fs.close()


def check(read: TracedRead, transport: str) -> None:
    """Every range is whole, names its way, and its parts are its time."""
    assert read.length == len(DATA) and [one.offset for one in read.ranges] == [
        n * CHUNK for n in range(4)
    ]
    assert {one.node for one in read.ranges} == {1, 2}
    for one in read.ranges:
        assert (one.transport, one.tries) == (transport, 1)
        assert one.address.startswith("127.0.0.1:")
        parts = [getattr(one, f"{part}_ns") for part in PARTS]
        assert all(part >= 0 for part in parts) and one.crc_ns > 0
        assert 0 < sum(parts) == one.took_ns <= read.took_ns


def test_over_tcp_the_daemons_part_is_told(over: Callable[..., TracedRead]) -> None:
    read = over(same_host="off")
    check(read, "tcp")
    for one in read.ranges:
        assert one.connection.startswith("127.0.0.1:") and one.connection != one.address
        assert one.server_ns + one.network_ns > 0


def test_on_the_same_host_files_are_the_disk(over: Callable[..., TracedRead]) -> None:
    read = over()
    check(read, "same host")
    assert all(one.disk_ns > 0 and not one.connection for one in read.ranges)


def test_what_comes_from_the_disk_says_how_long_that_took(
    traced: Cluster, over: Callable[..., TracedRead]
) -> None:
    fs = fsspec.filesystem("ffs", skip_instance_cache=True, **traced.storage_options)
    fs.pipe_file("/cold", DATA, chunk_size_bytes=CHUNK)
    fs.close()
    for superblock in Path(traced.directory).glob("**/superblock"):
        evict_below(superblock.parent)
    read = over("/cold", same_host="off")
    check(read, "tcp")
    assert all(one.disk_ns > 0 for one in read.ranges if one.length == CHUNK)
    warm = over("/file", 5, 100, same_host="off").ranges[0]
    assert (warm.offset, warm.length, warm.chunk) == (5, 100, 0)


def test_nothing_and_too_much(over: Callable[..., TracedRead]) -> None:
    assert over("/empty").ranges == [] == over("/file", len(DATA), 0).ranges
    with pytest.raises(InvalidError, match="not inside"):
        over("/file", 1, len(DATA))


def test_a_read_from_a_daemon_that_died_shows_the_tries(
    new_cluster: Callable[..., Cluster],
) -> None:
    cluster = new_cluster(2, {"meta.replicas": 2, "client.same_host": "off"})
    fs = fsspec.filesystem("ffs", skip_instance_cache=True, **cluster.storage_options)
    fs.pipe_file("/file", DATA, chunk_size_bytes=CHUNK)
    assert fs.cat_file("/file") == DATA
    cluster.kill("storage", 0)
    read = fs.trace_read("/file")
    assert read.length == len(DATA)
    assert {one.node for one in read.ranges} == {2}
    again = [one for one in read.ranges if one.tries > 1]
    assert all(one.queue_ns > 0 for one in again), "what the first try took"
    fs.close()


def test_spans_for_opentelemetry(traced: Cluster) -> None:
    options = {**traced.storage_options, "same_host": "off"}
    done = subprocess.run(
        [sys.executable, "-c", SPANS, repr(options)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("seen "), done.stderr


def test_slow_reads_are_known_on_both_sides(traced: Cluster) -> None:
    from ffs.cli.slowest import slow_reads
    from ffs.wire.status import STATUS, StatusRequest

    options = {**traced.storage_options, "same_host": "off"}
    argv = [sys.executable, "-c", SLOW, repr(options)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fs = fsspec.filesystem("ffs", skip_instance_cache=True, **options)
    give_up = time.monotonic() + 30
    while True:
        reply = fs.core.meta.call(STATUS, StatusRequest())
        slow = slow_reads(reply.nodes, fs.core.meta)
        found = [one for one in slow if one["trace_id"] == "0123456789abcdef"]
        if {one["node"] for one in found} == {1, 2}:
            break
        assert time.monotonic() < give_up, slow
        time.sleep(0.05)
    for one in found:
        assert one["path"] == "/file" and one["bytes"] > 0 and one["connection"] > 0
        assert one["took_us"] + 2 >= one["server_us"] + one["disk_us"], "each is rounded down"
    fs.close()


def test_a_wrong_size_of_timings_is_refused() -> None:
    with pytest.raises(ValueError, match="48 bytes"):
        _reader.read_batch((), bytearray(), bytearray(1), deadline_ms=1, timings=bytearray(1))
