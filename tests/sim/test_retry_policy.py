"""The real RetryPolicy under virtual time: replicas that die, stop, lie and come back.

A read drives the policy the way client/settle.py does. Checked over many seeds: a read ends with
the right bytes whenever a good copy could be reached before its deadline, it never ends late, it
never asks a replica that does not serve, damage is reported as damage, and it is never retried
into a flood: the number of attempts is bounded by the back-off.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from ffs import errors
from ffs.client.retry import Action, History, RetryPolicy
from tests.sim.world import MS, SECOND, World

DEADLINE_NS = 30 * SECOND
BACKOFF_MS, BACKOFF_MAX_MS = 20, 1_000
STALL_NS = 80 * MS

LOST = errors.ConnectionLostError.code
STALLED = errors.StalledError.code
GONE = errors.UnavailableError.code
DAMAGED = errors.ChecksumError.code
MISSING = errors.ChunkMissingError.code
STOPPED = errors.TargetStoppedError.code
BUSY = errors.BusyError.code
INVALID = errors.InvalidError.code
OK = errors.OK


@dataclass
class Replica:
    """A target's behaviour: (from when on, status it answers with, how long that takes)."""

    phases: list[tuple[int, int, int]] = field(default_factory=lambda: [(0, OK, 1 * MS)])

    def answer(self, now_ns: int) -> tuple[int, int]:
        """Return (status, how long it takes) of a request sent now."""
        status, cost = OK, MS
        for since, new_status, new_cost in self.phases:
            if now_ns >= since:
                status, cost = new_status, new_cost
        return status, cost


@dataclass
class Outcome:
    """How a read ended."""

    status: int
    ended_ns: int
    attempts: list[tuple[int, int]]
    refreshes: int = 0


def read(world: World, replicas: dict[int, Replica], *, members: int = 0) -> Outcome:
    """Read one range as the settle loop does, in virtual time."""
    policy = RetryPolicy(BACKOFF_MS, BACKOFF_MAX_MS, world.randomness)
    history, serving = History(), list(replicas)
    target, attempts, refreshes = serving[0], [], 0
    while True:
        attempts.append((world.now_ns, target))
        status, cost = replicas[target].answer(world.now_ns)
        world.run(min(world.now_ns + cost, DEADLINE_NS))
        if status == OK and world.now_ns < DEADLINE_NS:
            return Outcome(OK, world.now_ns, attempts, refreshes)
        if world.now_ns >= DEADLINE_NS:
            status = errors.DeadlineError.code
        decision = policy.decide(
            history,
            status,
            target,
            serving,
            members=members or len(serving),
            remaining_ns=DEADLINE_NS - world.now_ns,
        )
        if decision.action is Action.FAIL:
            return Outcome(decision.status, world.now_ns, attempts, refreshes)
        if decision.action is Action.RETRY:
            target = decision.target
            assert target in serving
            continue
        assert BACKOFF_MS * MS // 2 <= decision.delay_ns <= BACKOFF_MAX_MS * MS
        refreshes += decision.refresh
        world.run(world.now_ns + decision.delay_ns)
        target = serving[0]


def constant(status: int, cost: int = MS) -> Replica:
    return Replica([(0, status, cost)])


def test_a_dead_replica_costs_no_wait() -> None:
    outcome = read(World(1), {1: constant(GONE), 2: Replica()})
    assert outcome.status == OK and outcome.ended_ns == 2 * MS
    assert [t for _, t in outcome.attempts] == [1, 2]


def test_a_stalled_replica_costs_the_stall_time() -> None:
    outcome = read(World(1), {1: constant(STALLED, STALL_NS), 2: Replica()})
    assert outcome.status == OK and outcome.ended_ns == STALL_NS + MS


def test_damage_is_asked_of_every_replica_once_and_one_again_then_reported() -> None:
    outcome = read(World(1), {t: constant(DAMAGED) for t in (1, 2, 3)})
    assert outcome.status == DAMAGED
    assert [t for _, t in outcome.attempts] == [1, 2, 3, 1]
    assert outcome.ended_ns == 4 * MS, "damage does not heal by waiting"


def test_what_is_missing_is_asked_for_once_more_with_another_routing_then_reported() -> None:
    outcome = read(World(1), {t: constant(MISSING) for t in (1, 2, 3)})
    assert outcome.status == MISSING
    assert [t for _, t in outcome.attempts] == [1, 2, 3, 1, 2, 3]
    assert outcome.refreshes == 1
    assert outcome.ended_ns <= (6 + BACKOFF_MS) * MS


def test_a_chunk_that_has_moved_to_other_targets_is_read_there() -> None:
    policy = RetryPolicy(BACKOFF_MS, BACKOFF_MAX_MS, World(1).randomness)
    history = History()
    left = policy.decide(history, MISSING, 1, [1], members=1, remaining_ns=SECOND)
    assert left.action is Action.WAIT and left.refresh
    there = policy.decide(history, MISSING, 1, [2], members=1, remaining_ns=SECOND)
    assert there.action is Action.RETRY and there.target == 2


def test_damage_on_the_only_replica_is_read_once_more_over_a_fresh_connection() -> None:
    policy = RetryPolicy(BACKOFF_MS, BACKOFF_MAX_MS, World(1).randomness)
    history = History()
    first = policy.decide(history, DAMAGED, 1, [1], members=1, remaining_ns=SECOND)
    assert first.action is Action.RETRY and first.target == 1 and first.fresh_connection
    second = policy.decide(history, DAMAGED, 1, [1], members=1, remaining_ns=SECOND)
    assert second.action is Action.FAIL and second.status == DAMAGED


def test_wrong_bytes_say_more_than_absent_ones() -> None:
    outcome = read(World(1), {1: constant(DAMAGED), 2: constant(MISSING)})
    assert outcome.status == DAMAGED


def test_damage_waits_for_a_replica_that_may_come_back() -> None:
    back = Replica([(0, GONE, MS), (3 * SECOND, OK, MS)])
    outcome = read(World(1), {1: constant(DAMAGED), 2: back})
    assert outcome.status == OK
    assert 3 * SECOND <= outcome.ended_ns <= 5 * SECOND


def test_damage_is_reported_when_the_other_replica_never_comes_back() -> None:
    outcome = read(World(1), {1: constant(DAMAGED), 2: constant(GONE)})
    assert outcome.status == DAMAGED and outcome.ended_ns <= DEADLINE_NS


def test_a_server_that_restarts_is_waited_for() -> None:
    outcome = read(World(1), {1: Replica([(0, LOST, MS), (2 * SECOND, OK, MS)])})
    assert outcome.status == OK
    assert 2 * SECOND <= outcome.ended_ns <= 3 * SECOND + BACKOFF_MAX_MS * MS
    assert outcome.refreshes >= 1, "its address may have changed"


def test_a_server_that_stays_away_is_named_before_the_deadline() -> None:
    outcome = read(World(1), {1: constant(GONE)})
    assert outcome.status == GONE, "the cause, not the deadline"
    assert DEADLINE_NS - 2 * SECOND <= outcome.ended_ns <= DEADLINE_NS
    assert len(outcome.attempts) <= 80


def test_an_idle_connection_closed_long_ago_costs_no_wait() -> None:
    outcome = read(World(1), {1: Replica([(0, LOST, MS), (MS, OK, MS)])})
    assert outcome.status == OK and outcome.ended_ns == 2 * MS


def test_a_stopped_target_is_final_alone_and_waited_for_in_a_chain() -> None:
    alone = read(World(1), {1: constant(STOPPED)})
    assert alone.status == STOPPED and len(alone.attempts) == 1
    healed = Replica([(0, STOPPED, MS), (SECOND, OK, MS)])
    chained = read(World(1), {1: healed}, members=3)
    assert chained.status == OK and chained.refreshes >= 1


@pytest.mark.parametrize(
    "cls",
    [
        errors.InvalidError,
        errors.NoSpaceError,
        errors.ChunkConflictError,
        errors.AuthError,
        errors.DeadlineError,
        errors.LeaseExpiredError,
    ],
)
def test_what_retrying_cannot_change_is_final(cls: type[errors.FFSError]) -> None:
    outcome = read(World(1), {1: constant(cls.code), 2: Replica()})
    assert outcome.status == cls.code and len(outcome.attempts) == 1


def test_calls_are_retried_only_when_their_error_says_so() -> None:
    policy = RetryPolicy(BACKOFF_MS, BACKOFF_MAX_MS, World(1).randomness)
    for code, cls in errors.all_error_classes().items():
        action = policy.decide_call(code, 0, DEADLINE_NS).action
        assert action is (Action.WAIT if cls.retryable else Action.FAIL)
        assert policy.decide_call(code, 0, 0).action is Action.FAIL


def test_the_wait_is_jittered_and_doubles_to_its_maximum() -> None:
    policy = RetryPolicy(BACKOFF_MS, BACKOFF_MAX_MS, World(7).randomness)
    for rounds in range(70):
        bound = min(BACKOFF_MS << rounds, BACKOFF_MAX_MS) * MS
        waits = {policy.backoff_ns(rounds) for _ in range(50)}
        assert len(waits) > 25
        assert all(bound // 2 <= w <= bound for w in waits)


def random_replica(world: World) -> Replica:
    """A replica with a life: phases of good and bad behaviour, perhaps for ever."""
    dice, phases, now = world.random, [], 0
    for _ in range(dice.randrange(1, 6)):
        status = dice.choice([OK, OK, LOST, STALLED, GONE, DAMAGED, MISSING, BUSY, STOPPED])
        cost = STALL_NS if status == STALLED else dice.randrange(1, 20 * MS)
        phases.append((now, status, cost))
        now += dice.randrange(1, 12 * SECOND)
    return Replica(phases)


@pytest.mark.parametrize("block", range(8))
def test_random_lives(block: int) -> None:
    """A read fails only if, at its end, no replica it could still ask was good."""
    for seed in range(block * 150, (block + 1) * 150):
        world = World(seed)
        replicas = {t: random_replica(world) for t in range(1, world.random.randrange(2, 5))}
        outcome = read(world, replicas)
        assert outcome.ended_ns <= DEADLINE_NS
        assert len(outcome.attempts) <= 140 * len(replicas)
        if outcome.status == OK:
            continue
        last = {t: r.answer(outcome.ended_ns)[0] for t, r in replicas.items()}
        asked = {t for at, t in outcome.attempts if at >= outcome.ended_ns - 3 * SECOND}
        reached_end = outcome.ended_ns > DEADLINE_NS - 2 * SECOND
        assert reached_end or asked == set(replicas), (seed, outcome, last)


def test_the_same_seed_makes_the_same_decisions() -> None:
    def run() -> list[tuple[int, int]]:
        world = World(11)
        return read(world, {t: random_replica(world) for t in (1, 2)}).attempts

    assert run() == run()
