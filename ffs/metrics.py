"""One process's metrics for Prometheus: an HTTP endpoint, and how numbers become samples.

Role: server/meta/metrics.py, server/storage/metrics.py and client/metrics.py say what there is to
tell; THIS serves it at `metrics_address`. prometheus_client is imported when an endpoint is wanted.

Invariants: nothing is kept between two scrapes, and labels name only what is few (targets, methods,
states), so a scrape costs what the collector costs, whatever the load is. Several processes of one
machine may be given one address: each takes the next free port behind it, PORTS_TRIED at most.

Failure behaviour: an address that cannot be had raises ConfigError; a collector that fails answers
one scrape with status 500 and is asked again by the next.

Threads: one for the endpoint, and one for each scrape. Fork: the child has the socket and none of
the threads; whoever forks closes it there (`Endpoint.forget`).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from ffs.errors import ConfigError
from ffs.latency import BOUNDS_NS

log = logging.getLogger("ffs.metrics")

PORTS_TRIED: Final = 64
_HINT: Final = "for example 127.0.0.1:9411; empty: no endpoint"

Values = Mapping[Any, float] | float
"""One value, or one by the values of labels."""
Collect = Callable[[], Iterable[Any]]
"""Makes the metric families of one scrape."""


def counter(name: str, text: str, values: Values, *labels: str) -> Any:
    """Return a counter family; `name` without its `_total`. `values`: one, or one by labels."""
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily(name, text, labels=labels), values)


def gauge(name: str, text: str, values: Values, *labels: str) -> Any:
    """Return a gauge family; see `counter`."""
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily(name, text, labels=labels), values)


def histogram(name: str, text: str, values: Mapping[Any, Sequence[int]], *labels: str) -> Any:
    """Return a histogram family in seconds. `values`: by labels, the sum in ns and the buckets of
    `ffs.latency`."""
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=labels)
    for which, (total_ns, *buckets) in values.items():
        bounds = [*(f"{bound_ns / 1e9:.9g}" for bound_ns in BOUNDS_NS), "+Inf"]
        counted = list(zip(bounds, accumulate(buckets), strict=True))
        family.add_metric(list(which), counted, total_ns / 1e9)
    return family


def _filled(family: Any, values: Values) -> Any:
    if isinstance(values, Mapping):
        for labels, value in values.items():
            family.add_metric(list(labels), value)
    else:
        family.add_metric([], values)
    return family


class _Collector:
    """What prometheus_client wants a collector to be."""

    def __init__(self, collect: Collect) -> None:
        self.collect = collect

    def describe(self) -> list[Any]:
        """Name nothing beforehand: it would take a scrape."""
        return []


class Endpoint:
    """An HTTP server of one process that answers scrapes.

    Args:    address: HOST:PORT; port 0: any free one; collect: called for each scrape
    Raises:  ConfigError if it cannot listen there
    """

    def __init__(self, address: str, collect: Collect) -> None:
        self._host, port = _parsed(address)
        try:
            from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
        except ImportError as error:
            raise ConfigError(
                "metrics_address needs prometheus-client", hint="pip install 'ffs[metrics]'"
            ) from error
        registry = CollectorRegistry()
        PlatformCollector(registry=registry)
        ProcessCollector(registry=registry)
        registry.register(_Collector(collect))
        self._server = self._listen(port, registry)
        log.info("metrics_served", extra={"address": self.address})

    @property
    def address(self) -> str:
        """Where it listens."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._server.server_port}"

    def _listen(self, first: int, registry: Any) -> Any:
        from prometheus_client import start_http_server

        ports = range(first, min(first + PORTS_TRIED, 65_536)) if first else (0,)
        for port in ports:
            try:
                server, _thread = start_http_server(port, self._host, registry)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise ConfigError(
                    f"cannot serve metrics at {self._host}:{port}: {error.strerror or error}",
                    hint=_HINT,
                ) from error
            return server
        raise ConfigError(
            f"no port from {first} to {ports[-1]} of {self._host} is free for metrics", hint=_HINT
        )

    def close(self) -> None:
        """Take no more scrapes."""
        self._server.shutdown()
        self._server.server_close()

    def forget(self) -> None:
        """In a forked child: close the socket, which is the parent's."""
        self._server.socket.close()


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ConfigError(f"metrics_address {address!r} is not HOST:PORT", hint=_HINT)
    return host.removeprefix("[").removesuffix("]"), int(port)
