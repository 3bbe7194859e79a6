"""A metadata server's metrics: its calls, and the cluster as its memory has it.

Previous hop: service.py, whose handlers it times, if `meta.metrics_address` says so; without it
nothing is timed. Next hop: `ffs.metrics`. A scrape asks the event loop and never the database.

Where several servers share a database, nodes and targets are those that talk to this one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import ffs
from ffs import latency
from ffs.errors import FFSError
from ffs.metrics import Endpoint, counter, gauge, histogram
from ffs.rpc.aio import Handler, Peer
from ffs.seams import Clock
from ffs.server.meta.manager import NodeState, disk_bytes
from ffs.types import Routing, TargetState
from ffs.wire.membership import WATCH_ROUTING, TargetReport

SCRAPE_S: Final = 5.0


@dataclass(slots=True)
class _Calls:
    """What is known of one method's calls."""

    total_ns: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * latency.BUCKETS)
    failed: int = 0

    def note(self, took_ns: int) -> None:
        self.total_ns += took_ns
        units = (took_ns >> 14).bit_length()
        self.buckets[min(units, latency.BUCKETS - 1)] += 1


@dataclass(frozen=True, slots=True)
class Facts:
    """What a scrape is told of the cluster."""

    routing: Routing
    nodes: list[NodeState]
    reports: list[TargetReport]
    connections: int


class MetaMetrics:
    """Times handlers, and answers scrapes once `serve` was called.

    Threads: the event loop's; scrapes come from others and wait for it
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: dict[str, _Calls] = {}
        self._endpoint: Endpoint | None = None

    def timed(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """Return the handlers of all methods, timed but for the one that waits."""
        waits = {WATCH_ROUTING.name}
        return {
            name: handler if name in waits else self._timed(name, handler)
            for name, handler in handlers.items()
        }

    def _timed(self, name: str, handler: Handler) -> Handler:
        calls = self._calls[name] = _Calls()
        monotonic_ns = self._clock.monotonic_ns

        async def handle(request: Any, peer: Peer) -> Any:
            began_ns = monotonic_ns()
            try:
                return await handler(request, peer)
            except FFSError:
                calls.failed += 1
                raise
            finally:
                calls.note(monotonic_ns() - began_ns)

        return handle

    def serve(self, address: str, facts: Callable[[], Facts]) -> None:
        """Answer scrapes from now on. Raises ConfigError if the address cannot be had."""
        loop = asyncio.get_running_loop()

        async def families() -> list[Any]:
            return [*self._of_calls(), *_of_cluster(facts())]

        def scrape() -> list[Any]:
            future = asyncio.run_coroutine_threadsafe(families(), loop)
            try:
                return future.result(SCRAPE_S)
            finally:
                future.cancel()

        self._endpoint = Endpoint(address, scrape)

    def close(self) -> None:
        """Take no more scrapes."""
        if self._endpoint is not None:
            self._endpoint.close()

    def _of_calls(self) -> Iterator[Any]:
        seen = {(name,): calls for name, calls in self._calls.items() if any(calls.buckets)}
        failed = {name: calls.failed for name, calls in seen.items()}
        yield counter("ffs_meta_failed_requests", "Calls that ended in an error.", failed, "method")
        durations = {name: (calls.total_ns, *calls.buckets) for name, calls in seen.items()}
        text = "Calls, from their arrival until their answer was made."
        yield histogram("ffs_meta_request_duration_seconds", text, durations, "method")


def _of_cluster(facts: Facts) -> Iterator[Any]:
    routing = facts.routing
    yield gauge("ffs_meta_info", "The server.", {(ffs.__version__,): 1.0}, "version")
    yield gauge("ffs_meta_connections", "RPC connections.", facts.connections)
    yield gauge("ffs_meta_routing_version", "Version of the routing.", routing.version)
    yield gauge("ffs_meta_chains", "Replication chains.", len(routing.chains))
    nodes = Counter(state.value for state in facts.nodes)
    by_node = {(state.value,): nodes[state.value] for state in NodeState}
    yield gauge("ffs_meta_nodes", "Storage daemons by state.", by_node, "state")
    targets = Counter(TargetState(target.state).name.lower() for target in routing.targets)
    by_target = {(state.name.lower(),): targets[state.name.lower()] for state in TargetState}
    yield gauge("ffs_meta_targets", "Targets by state.", by_target, "state")
    capacity, used = disk_bytes(facts.reports)
    yield gauge("ffs_meta_capacity_bytes", "Size of all disks.", capacity)
    yield gauge("ffs_meta_used_bytes", "Used of all disks.", used)
    lost = sum(report.health.unrepairable for report in facts.reports if report.health)
    yield gauge("ffs_meta_unrepairable_chunks", "Chunks that no replica has whole.", lost)
