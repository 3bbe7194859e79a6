"""Rates from two tellings of a daemon's counters, and the line that shows them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from ffs.cli.counters import WAYS, add_rates, print_counters, rates
from ffs.wire.membership import DataLoopCounters
from ffs.wire.status import NodeStatus

SECOND_NS = 1_000_000_000
EARLIER = DataLoopCounters(
    7 * SECOND_NS,
    connections=3,
    ranges_total=100,
    read_bytes_total=1 << 20,
    mapped_bytes_total=3 << 20,
    direct_bytes_total=1 << 20,
)
LATER = DataLoopCounters(
    9 * SECOND_NS,
    connections=1,
    ranges_total=150,
    read_bytes_total=5 << 20,
    queued_ns_max=8,
)


def node(pid: int, counters: DataLoopCounters | None) -> NodeStatus:
    return NodeStatus(1, "storage", pid, "up", "h:1", counters)


def test_rates_are_by_the_daemons_own_time() -> None:
    found = rates(EARLIER, LATER)
    assert found is not None
    assert (found["seconds"], found["ranges"], found["read_bytes"]) == (2, 25, 2 << 20)
    assert "connections" not in found and "queued_ns_max" not in found


@pytest.mark.parametrize(
    ("earlier", "later"), [(None, LATER), (EARLIER, None), (EARLIER, EARLIER), (LATER, EARLIER)]
)
def test_there_are_none_without_two_of_one_daemon(
    earlier: DataLoopCounters | None, later: DataLoopCounters | None
) -> None:
    assert rates(earlier, later) is None


def test_a_daemon_that_was_started_again_has_none() -> None:
    report: list[dict[str, Any]] = [{}]
    add_rates(report, [node(1, EARLIER)], [node(2, LATER)])
    assert report == [{"rates": None}]
    add_rates(report, [node(2, EARLIER)], [node(2, LATER)])
    assert report[0]["rates"]["ranges"] == 25


def test_the_line_of_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    meta = {"id": 0, "role": "meta", "counters": None, "rates": None}
    busy = {"id": 1, "role": "storage", "counters": asdict(EARLIER), "rates": rates(EARLIER, LATER)}
    silent = {"id": 2, "role": "storage", "counters": None, "rates": None}
    print_counters([meta, busy, silent])
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split()[4:-5] == list(WAYS)
    expected = "1 3 100 1.0 MiB 75% 0% 0% 0% 25% 0 0 B 25 2.0 MiB 0 B"
    assert first.split() == expected.split()
    assert second.split() == ["2", *["-"] * (len(heading.split()) - 1)]
