"""Turns at sources and bytes a second, counted over simulated hours."""

from __future__ import annotations

import random

import pytest

from ffs.server.storage.pace import SECOND, ByteRate, Turns


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("pullers", [1, 2, 7])
def test_all_who_pull_take_no_more_than_their_share_of_a_source(share: float, pullers: int) -> None:
    """However long the requests last: what is left is the readers'."""
    rng = random.Random(1)
    shares = 0.0
    for _ in range(pullers):
        turns, now_ns, busy_ns = Turns(share), 0, 0
        for _ in range(500):
            now_ns += turns.wait_ns(now_ns)
            took_ns = rng.choice((1_000, 10**6, 10**9))
            turns.ended(now_ns, now_ns + took_ns, pullers)
            busy_ns += took_ns
            now_ns += took_ns + rng.randrange(1_000)
        shares += busy_ns / (now_ns + turns.wait_ns(now_ns))
    assert shares <= share * 1.001


def test_time_between_turns_counts_as_rest() -> None:
    turns = Turns(0.5)
    turns.ended(0, SECOND, 1)
    assert turns.wait_ns(SECOND) == SECOND
    assert turns.wait_ns(5 * SECOND) == 0


def test_bytes_come_at_their_rate_and_never_in_bursts() -> None:
    rate, now_ns, read = ByteRate(1000), 0, 0
    while now_ns < 100 * SECOND:
        now_ns += rate.wait_ns(now_ns)
        rate.used(250, now_ns)
        read += 250
    assert read == pytest.approx(100_000, rel=0.01)
    later_ns = now_ns + 3600 * SECOND
    assert rate.wait_ns(later_ns) == 0
    rate.used(1000, later_ns)
    assert rate.wait_ns(later_ns) == SECOND
