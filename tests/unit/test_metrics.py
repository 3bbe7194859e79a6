"""The metrics endpoint by itself: ports, what a scrape gives, and what goes wrong."""

from __future__ import annotations

import contextlib
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ffs.config import load
from ffs.errors import ConfigError
from ffs.latency import BUCKETS
from ffs.metrics import Endpoint, counter, gauge, histogram


def families() -> list[Any]:
    return [
        counter("things", "Things.", 3),
        gauge("level", "Level.", {("a",): 1.5, ("b",): 2}, "which"),
        histogram("took_seconds", "Took.", {(): (2_000_000, 1, *[0] * (BUCKETS - 2), 2)}),
    ]


def scrape(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


@contextlib.contextmanager
def served(address: str, collect: Any = families) -> Iterator[Endpoint]:
    endpoint = Endpoint(address, collect)
    try:
        yield endpoint
    finally:
        endpoint.close()


def test_a_scrape_has_what_was_collected_and_the_process() -> None:
    with served("127.0.0.1:0") as endpoint:
        found = scrape(endpoint.address)
    assert found["things"].samples[0].value == 3
    assert {s.labels["which"]: s.value for s in found["level"].samples} == {"a": 1.5, "b": 2}
    took = {(s.name, s.labels.get("le")): s.value for s in found["took_seconds"].samples}
    assert took["took_seconds_bucket", "1.6384e-05"] == 1
    assert took["took_seconds_bucket", "17.1798692"] == 1
    assert took["took_seconds_bucket", "+Inf"] == took["took_seconds_count", None] == 3
    assert took["took_seconds_sum", None] == 0.002
    assert found["process_cpu_seconds"].samples[0].value > 0


def test_a_port_that_is_taken_is_passed_over() -> None:
    with served("127.0.0.1:0") as first, served(first.address) as second:
        host, port = first.address.rsplit(":", 1)
        assert second.address.startswith(f"{host}:")
        assert int(port) < int(second.address.rsplit(":", 1)[1]) < int(port) + 64
        assert scrape(second.address)["things"].samples[0].value == 3


def test_an_address_that_cannot_be_had_says_so() -> None:
    for address in ("nonsense", "127.0.0.1:", ":1", "127.0.0.1:99999", "192.0.2.1:9411"):
        with pytest.raises(ConfigError) as raised:
            Endpoint(address, families)
        assert "127.0.0.1:9411" in raised.value.hint
    with pytest.raises(ConfigError, match=r"client\.metrics_address.*HOST:PORT"):
        load(env={"FFS_METRICS_ADDRESS": "nonsense"})
    assert load(env={"FFS_METRICS_ADDRESS": "[::1]:9"}).client.metrics_address == "[::1]:9"


def test_ipv6_where_there_is_one() -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        with served("[::1]:0") as endpoint:
            assert scrape(endpoint.address)["things"].samples[0].value == 3


def test_a_collector_that_fails_spoils_one_scrape() -> None:
    broken = [True]

    def collect() -> list[Any]:
        if broken:
            broken.clear()
            raise RuntimeError("not now")
        return families()

    with served("127.0.0.1:0", collect) as endpoint:
        with pytest.raises(urllib.error.HTTPError) as raised:
            scrape(endpoint.address)
        raised.value.close()
        assert raised.value.code == 500
        assert scrape(endpoint.address)["things"].samples[0].value == 3
