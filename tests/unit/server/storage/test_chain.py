"""ChainLogic, one decision at a time; tests/sim/chain_of_one.py runs whole histories of it."""

from __future__ import annotations

import dataclasses

import pytest

from ffs.errors import (
    OK,
    ConnectionLostError,
    NoSpaceError,
    StaleChainError,
    TargetStoppedError,
)
from ffs.server.storage.chain import (
    Ack,
    ChainLogic,
    Persist,
    RefreshRouting,
    SetChainVersion,
    Write,
)
from ffs.types import ChainInfo, NodeInfo, Routing, TableInfo, TargetInfo, TargetState

STALE = StaleChainError.code


def routing(
    version: int = 1,
    chain_version: int = 1,
    targets: tuple[int, ...] = (1,),
    state: int = TargetState.SERVING,
) -> Routing:
    return Routing(
        version=version,
        nodes=[NodeInfo(node=1, host="h", port=1)],
        targets=[TargetInfo(target=t, node=1, state=state) for t in (1, 2)],
        chains=[ChainInfo(chain=7, version=chain_version, targets=list(targets))],
        tables=[TableInfo(table=1, chains=[7])],
    )


def write(write_id: int, **changes: int) -> Write:
    base = Write(
        write_id=write_id,
        connection=100,
        blob=5,
        chunk=0,
        target=1,
        chain=7,
        chain_version=1,
        length=10,
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture
def logic() -> ChainLogic:
    made = ChainLogic([1])
    made.routing_changed(routing())
    return made


def test_write_is_persisted_then_acknowledged(logic: ChainLogic) -> None:
    assert logic.received(write(1)) == [Persist(1)]
    assert logic.writes_pending == 1
    assert logic.persisted(1, OK) == [Ack(1, OK)]
    assert logic.writes_pending == 0


def test_status_of_the_disk_reaches_the_writer(logic: ChainLogic) -> None:
    logic.received(write(1))
    assert logic.persisted(1, NoSpaceError.code) == [Ack(1, NoSpaceError.code)]


def test_without_routing_nothing_is_taken_and_routing_is_asked_for() -> None:
    assert ChainLogic([1]).received(write(1)) == [Ack(1, STALE), RefreshRouting()]


@pytest.mark.parametrize(
    ("change", "behind"),
    [
        ({"chain": 8}, True),
        ({"chain_version": 2}, True),
        ({"chain_version": 0}, False),
        ({"target": 2}, False),
        ({"target": 99}, False),
    ],
)
def test_write_for_another_view_of_the_chain_is_stale(
    logic: ChainLogic, change: dict[str, int], behind: bool
) -> None:
    expected = [Ack(1, STALE), *([RefreshRouting()] if behind else [])]
    assert logic.received(write(1, **change)) == expected
    assert logic.writes_pending == 0


def test_target_that_is_not_serving_takes_no_writes() -> None:
    logic = ChainLogic([1])
    logic.routing_changed(routing(state=TargetState.SYNCING))
    assert logic.received(write(1)) == [Ack(1, STALE)]


def test_target_that_is_not_the_head_takes_no_client_writes() -> None:
    logic = ChainLogic([1])
    logic.routing_changed(routing(targets=(2, 1)))
    assert logic.received(write(1)) == [Ack(1, STALE)]


def test_older_routing_is_ignored(logic: ChainLogic) -> None:
    logic.routing_changed(routing(version=5, chain_version=3))
    logic.routing_changed(routing(version=4, chain_version=2))
    assert logic.routing_version == 5
    assert logic.received(write(1, chain_version=2)) == [Ack(1, STALE)]
    assert logic.received(write(2, chain_version=3)) == [Persist(2)]


def test_stopped_target_takes_no_writes(logic: ChainLogic) -> None:
    logic.target_stopped(1)
    assert logic.received(write(1)) == [Ack(1, TargetStoppedError.code)]


def test_repetition_waits_for_the_first_and_is_answered(logic: ChainLogic) -> None:
    logic.received(write(1))
    assert logic.received(write(2)) == []
    assert logic.received(write(3, connection=101)) == []
    assert logic.writes_pending == 3
    assert logic.persisted(1, OK) == [Ack(1, OK), Persist(2)]
    assert logic.persisted(2, OK) == [Ack(2, OK), Persist(3)]
    assert logic.persisted(3, OK) == [Ack(3, OK)]
    assert logic.writes_pending == 0


def test_other_chunks_do_not_wait(logic: ChainLogic) -> None:
    logic.received(write(1))
    assert logic.received(write(2, chunk=1)) == [Persist(2)]
    assert logic.received(write(3, blob=6)) == [Persist(3)]


def test_waiting_writes_are_judged_again_when_their_turn_comes(logic: ChainLogic) -> None:
    logic.received(write(1))
    logic.received(write(2))
    logic.received(write(3))
    logic.target_stopped(1)
    stopped = TargetStoppedError.code
    assert logic.persisted(1, stopped) == [Ack(1, stopped), Ack(2, stopped), Ack(3, stopped)]
    assert logic.writes_pending == 0
    assert ChainLogic([1]).writes_pending == 0


def test_dead_connection_frees_what_waits_and_lets_the_rest_end(logic: ChainLogic) -> None:
    logic.received(write(1))
    logic.received(write(2))
    logic.received(write(3, connection=101))
    assert logic.connection_closed(100) == [Ack(2, ConnectionLostError.code)]
    assert logic.persisted(1, OK) == [Ack(1, OK), Persist(3)]
    assert logic.connection_closed(101) == []
    assert logic.persisted(3, OK) == [Ack(3, OK)]


def test_chain_that_changed_during_the_persist_is_not_acknowledged(logic: ChainLogic) -> None:
    logic.received(write(1))
    logic.routing_changed(routing(version=2, chain_version=2))
    assert logic.persisted(1, OK) == [Ack(1, STALE)]


def test_listing_follows_the_version_of_the_chain(logic: ChainLogic) -> None:
    assert logic.routing_changed(routing(version=2, chain_version=1)) == []
    assert logic.routing_changed(routing(3, chain_version=2)) == [SetChainVersion(1, 2)]
    assert logic.routing_changed(routing(2, chain_version=1)) == []
    assert logic.routing_changed(routing(4, targets=(2,))) == [SetChainVersion(1, 0)]


def test_created_target_takes_its_place(logic: ChainLogic) -> None:
    logic.routing_changed(routing(2, targets=(2,)))
    assert logic.received(write(1, target=2)) == [Ack(1, STALE)]
    assert logic.add_target(2) == [SetChainVersion(2, 1)]
    assert logic.received(write(2, target=2)) == [Persist(2)]


def test_routing_without_the_chain_forgets_it(logic: ChainLogic) -> None:
    logic.routing_changed(
        Routing(version=2, nodes=[], targets=[], chains=[], tables=[]),
    )
    assert logic.received(write(1)) == [Ack(1, STALE), RefreshRouting()]
