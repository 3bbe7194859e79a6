"""Who is taken for dead, and that neither a restart nor a clock nor a pause kills who beats."""

from __future__ import annotations

from ffs.server.meta.cluster.liveness import Life, Liveness

LEASE = 100
TURN = 10


def listening(start: int, until: int) -> Liveness:
    """One that has had its turns from `start` to `until`, on two clocks that agree."""
    liveness = Liveness(LEASE, TURN)
    for now in range(start, until + 1, TURN):
        liveness.turn(now, now)
    return liveness


def test_silence_longer_than_the_lease_is_death() -> None:
    liveness = listening(0, 500)
    assert liveness.judge(400) is Life.ALIVE
    assert liveness.judge(399) is Life.DEAD
    assert liveness.next_ns(400) == 500
    assert liveness.next_ns(399) is None


def test_nobody_is_dead_before_a_whole_lease_of_listening() -> None:
    liveness = listening(1_000, 1_100)
    assert liveness.judge(0) is Life.UNKNOWN
    assert liveness.next_ns(0) == 1_100
    liveness.turn(1_101, 1_101)
    assert liveness.judge(0) is Life.DEAD


def test_a_new_term_listens_anew() -> None:
    liveness = listening(0, 500)
    liveness.begin()
    liveness.turn(510, 510)
    assert liveness.judge(300) is Life.UNKNOWN


def test_a_process_that_stood_still_listens_anew() -> None:
    liveness = listening(0, 500)
    liveness.turn(1_500, 1_500)
    assert liveness.judge(495) is Life.UNKNOWN
    liveness.turn(1_510, 1_510)
    assert liveness.judge(1_505) is Life.ALIVE


def test_a_clock_that_is_set_kills_nobody() -> None:
    for jump in (10_000, -10_000):
        liveness = listening(20_000, 20_500)
        heard = 20_495
        liveness.turn(20_510, 20_510 + jump)
        assert liveness.judge(heard) is Life.UNKNOWN
        for now in range(20_520, 20_600, TURN):
            liveness.turn(now, now + jump)
            assert liveness.judge(heard) is Life.UNKNOWN
        liveness.turn(20_620, 20_620 + jump)
        assert liveness.judge(heard) is Life.DEAD
        assert liveness.judge(20_615 + jump) is Life.ALIVE
