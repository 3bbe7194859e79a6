"""ChainLogic of a member among several: who forwards, who refuses, what is acknowledged when.

`Cluster` joins real ChainLogics by queues in which messages wait for as long as a test likes.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque

import pytest

from ffs.errors import (
    OK,
    ConnectionLostError,
    NoSpaceError,
    StaleChainError,
    TargetStoppedError,
    TooFewReplicasError,
    UnavailableError,
)
from ffs.server.storage.chain import (
    Ack,
    ChainLogic,
    Forward,
    Operation,
    Persist,
    RefreshRouting,
    Write,
)
from ffs.types import ChainInfo, NodeInfo, Routing, TargetInfo, TargetState

STALE = StaleChainError.code
S, Y, W, O = (  # noqa: E741
    TargetState.SERVING,
    TargetState.SYNCING,
    TargetState.WAITING,
    TargetState.OFFLINE,
)
CHAIN = 7


def routing(version: int, *states: TargetState, order: str = "", least: int = 1) -> Routing:
    """Targets 1, 2, ... on nodes 11, 12, ... in one chain, in this order, of this version."""
    ids = range(1, len(states) + 1)
    return Routing(
        version=version,
        nodes=[NodeInfo(10 + i, "h", i) for i in ids],
        targets=[TargetInfo(i, 10 + i, state) for i, state in zip(ids, states, strict=True)],
        chains=[ChainInfo(CHAIN, version, [int(i) for i in order] or list(ids))],
        tables=[],
        min_replicas=least,
    )


def member(target: int, table: Routing) -> ChainLogic:
    logic = ChainLogic([target])
    logic.routing_changed(table)
    return logic


def write(write_id: int, target: int, hop: int, version: int = 1, chunk: int = 0) -> Write:
    return Write(write_id, 100 + hop, 5, chunk, target, CHAIN, version, 10, hop)


# --- one member ---------------------------------------------------------------------------------


def test_each_member_forwards_to_the_next_and_the_last_does_not() -> None:
    table = routing(1, S, S, Y, O)
    legs = [member(t, table).received(write(1, t, t - 1)) for t in (1, 2, 3)]
    assert legs[0] == [Forward(1, 12, 2, 1), Persist(1)]
    assert legs[1] == [Forward(1, 13, 3, 2), Persist(1)]
    assert legs[2] == [Persist(1)]
    successors = [member(t, table).successors for t in (1, 2, 3, 4)]
    assert successors == [{(12, 1)}, {(13, 2)}, set(), set()]


def test_members_that_do_not_write_are_passed_over() -> None:
    table = routing(1, S, O, S, W, order="1324")
    assert member(1, table).received(write(1, 1, 0)) == [Forward(1, 13, 3, 1), Persist(1)]
    assert member(3, table).received(write(1, 3, 1)) == [Persist(1)]


@pytest.mark.parametrize(("target", "hop"), [(1, 1), (2, 0), (2, 2), (3, 1), (4, 3)])
def test_write_at_the_wrong_place_is_refused(target: int, hop: int) -> None:
    logic = member(target, routing(1, S, S, Y, O))
    assert logic.received(write(1, target, hop)) == [Ack(1, STALE)]


def test_syncing_member_heads_no_chain() -> None:
    logic = member(1, routing(1, Y, O))
    assert logic.received(write(1, 1, 0)) == [Ack(1, STALE)]


@pytest.mark.parametrize("persist_first", [True, False])
def test_acknowledged_after_both_legs(persist_first: bool) -> None:
    logic = member(1, routing(1, S, S))
    logic.received(write(1, 1, 0))
    first, second = logic.persisted, logic.forwarded
    if not persist_first:
        first, second = second, first
    assert first(1, OK) == []
    assert second(1, OK) == [Ack(1, OK)]
    assert logic.writes_pending == 0


def test_first_bad_leg_is_what_the_writer_hears() -> None:
    logic = member(1, routing(1, S, S))
    logic.received(write(1, 1, 0))
    assert logic.forwarded(1, NoSpaceError.code) == []
    assert logic.persisted(1, OK) == [Ack(1, NoSpaceError.code)]


def test_lost_peer_is_an_unavailable_member_to_the_writer() -> None:
    logic = member(1, routing(1, S, S))
    logic.received(write(1, 1, 0))
    logic.persisted(1, OK)
    assert logic.forwarded(1, ConnectionLostError.code) == [Ack(1, UnavailableError.code)]


def test_member_that_knows_a_newer_chain_makes_us_ask() -> None:
    logic = member(1, routing(1, S, S))
    logic.received(write(1, 1, 0))
    logic.persisted(1, OK)
    assert logic.forwarded(1, STALE) == [Ack(1, STALE), RefreshRouting()]


def test_whatever_happened_in_a_chain_that_changed_is_stale() -> None:
    logic = member(1, routing(1, S, S))
    logic.received(write(1, 1, 0))
    logic.routing_changed(routing(2, S, O))
    assert logic.forwarded(1, ConnectionLostError.code) == []
    assert logic.persisted(1, OK) == [Ack(1, STALE)]
    assert logic.received(write(2, 1, 0, version=2)) == [Persist(2)]


def test_answers_that_are_out_when_the_chain_changes_are_known() -> None:
    logic = member(1, routing(1, S, S, S))
    for number in range(3):
        logic.received(write(number, 1, 0, chunk=number))
    logic.persisted(0, OK)
    logic.forwarded(1, OK)
    assert logic.outdated_forwards == {}
    logic.routing_changed(routing(2, S, S, O))
    assert logic.outdated_forwards == {0: (12, 1), 2: (12, 1)}
    assert logic.forwarded(0, STALE) == [Ack(0, STALE), RefreshRouting()]
    assert logic.outdated_forwards == {2: (12, 1)}


def test_a_chain_goes_on_without_any_but_its_last_server() -> None:
    def alone(target: int, *states: TargetState) -> bool:
        return not member(target, routing(1, *states)).goes_on_without(target)

    assert not alone(1, S, S, Y)
    assert not alone(2, S, S, Y)
    assert not alone(2, S, Y)
    assert not alone(2, S, O)
    assert not alone(3, S, S)  # it is in no chain
    assert alone(1, S, Y, O)
    assert alone(1, S)


def test_a_target_that_works_again_takes_writes() -> None:
    logic = member(1, routing(1, S, S))
    logic.target_stopped(1)
    assert logic.received(write(1, 1, 0)) == [Ack(1, TargetStoppedError.code)]
    logic.target_revived(1)
    assert logic.received(write(2, 1, 0)) == [Forward(2, 12, 2, 1), Persist(2)]


def test_head_refuses_while_too_few_serve() -> None:
    few = TooFewReplicasError.code
    assert member(1, routing(1, S, O, O, least=2)).received(write(1, 1, 0)) == [Ack(1, few)]
    assert member(1, routing(1, S, Y, O, least=2)).received(write(1, 1, 0)) == [Ack(1, few)]
    enough = member(1, routing(1, S, S, O, least=2))
    assert enough.received(write(1, 1, 0)) == [Forward(1, 12, 2, 1), Persist(1)]


def test_only_the_head_counts_replicas() -> None:
    assert member(2, routing(1, S, S, least=3)).received(write(1, 2, 1)) == [Persist(1)]


def test_repetition_is_forwarded_again() -> None:
    """The first attempt may have ended before the next member had it."""
    logic = member(1, routing(1, S, S))
    logic.received(write(1, 1, 0))
    assert logic.received(write(2, 1, 0)) == []
    logic.persisted(1, OK)
    again = logic.forwarded(1, ConnectionLostError.code)
    assert again == [Ack(1, UnavailableError.code), Forward(2, 12, 2, 1), Persist(2)]


def test_stale_repetition_does_not_wait() -> None:
    logic = member(2, routing(1, S, S))
    logic.received(write(1, 2, 1))
    assert logic.received(write(2, 2, 0)) == [Ack(2, STALE)]
    assert logic.received(write(3, 2, 1)) == []
    assert Ack(3, STALE) in logic.routing_changed(routing(2, S, S, order="21"))
    assert logic.writes_pending == 1


# --- all members --------------------------------------------------------------------------------


@dataclasses.dataclass
class Sent:
    """A write on its way to a member, and whose write it came from: None, a client's."""

    target: int
    write: Write
    source: tuple[int, int] | None


class Cluster:
    """Members 1 .. 3 and what is under way between them; a disk keeps what was persisted."""

    def __init__(self, table: Routing) -> None:
        self.members = {t: member(t, table) for t in (1, 2, 3)}
        self.disks: dict[int, set[int]] = {t: set() for t in self.members}
        self.under_way: deque[Sent | tuple[str, int, int, int]] = deque()
        self.sources: dict[tuple[int, int], tuple[int, int] | None] = {}
        self.writes: dict[tuple[int, int], Write] = {}
        self.answers: dict[int, int] = {}
        self._next_id = 0

    def send(self, target: int, chunk: int, version: int) -> int:
        """A client writes; returns the number under which `answers` has what came of it."""
        self._next_id += 1
        one = write(self._next_id, target, 0, version, chunk)
        self.under_way.append(Sent(target, one, None))
        return self._next_id

    def step(self, index: int = 0) -> None:
        """Let the index-th thing that is under way arrive."""
        event = self.under_way[index]
        del self.under_way[index]
        if isinstance(event, Sent):
            key = (event.target, event.write.write_id)
            self.sources[key], self.writes[key] = event.source, event.write
            self.run(event.target, self.members[event.target].received(event.write))
            return
        kind, target, write_id, status = event
        if kind == "persisted":
            self.disks[target].add(self.writes[target, write_id].chunk)
        self.run(target, getattr(self.members[target], kind)(write_id, status))

    def drain(self) -> None:
        while self.under_way:
            self.step()

    def run(self, target: int, operations: list[Operation]) -> None:
        for operation in operations:
            match operation:
                case Persist(write_id):
                    self.under_way.append(("persisted", target, write_id, OK))
                case Forward(write_id, _, successor, _):
                    self._forward((target, write_id), successor)
                case Ack(write_id, status):
                    self._answer((target, write_id), status)

    def _forward(self, source: tuple[int, int], successor: int) -> None:
        self._next_id += 1
        one, before = self.writes[source], source[0]
        changes = {"write_id": self._next_id, "target": successor, "connection": before}
        sent = dataclasses.replace(one, **changes, hop=one.hop + 1)
        self.under_way.append(Sent(successor, sent, source))

    def _answer(self, key: tuple[int, int], status: int) -> None:
        source = self.sources[key]
        if source is None:
            self.answers[key[1]] = status
        else:
            self.under_way.append(("forwarded", *source, status))

    def route(self, target: int, table: Routing) -> None:
        self.run(target, self.members[target].routing_changed(table))


def test_acknowledged_chunk_is_on_every_member() -> None:
    cluster = Cluster(routing(1, S, S, Y))
    number = cluster.send(1, chunk=4, version=1)
    cluster.drain()
    assert cluster.answers == {number: OK}
    assert all(disk == {4} for disk in cluster.disks.values())


def test_members_whose_order_was_turned_do_not_wait_for_each_other() -> None:
    """The head's write waits at 2 behind the new head's, whose write waits at 1 behind the old."""
    cluster = Cluster(routing(1, S, S, O))
    turned = routing(2, S, S, O, order="213")
    old = cluster.send(1, chunk=0, version=1)
    cluster.step()  # at 1; its forward is under way
    cluster.route(2, turned)
    new = cluster.send(2, chunk=0, version=2)
    cluster.step(len(cluster.under_way) - 1)  # at 2, before the forward
    cluster.drain()
    assert cluster.answers[old] == STALE
    assert cluster.answers[new] == STALE  # 1 has not heard of version 2
    cluster.route(1, turned)
    again = cluster.send(2, chunk=0, version=2)
    cluster.drain()
    assert cluster.answers[again] == OK


@pytest.mark.parametrize("seed", range(200))
def test_every_write_is_answered_however_messages_cross(seed: int) -> None:
    """Members hear of new orders and states at any time; nothing hangs, what is acknowledged is on
    every member that the version names."""
    chance = random.Random(seed)
    tables = [routing(1, S, S, S)]
    for version in range(2, 6):
        order = "".join(chance.sample("123", 3))
        states = chance.choice([(S, S, S), (S, S, Y), (Y, S, S), (S, O, S), (S, S, O)])
        tables.append(routing(version, *states, order=order))
    cluster = Cluster(tables[0])
    sent: dict[int, tuple[int, Routing]] = {}
    for _ in range(60):
        table = chance.choice(tables)
        serving = [t.target for t in table.targets if t.state == S]
        head = next(t for t in table.chains[0].targets if t in serving)
        chunk = chance.randrange(2)
        sent[cluster.send(head, chunk, table.version)] = (chunk, table)
        cluster.route(chance.randint(1, 3), chance.choice(tables))
        for _ in range(chance.randrange(6)):
            if cluster.under_way:
                cluster.step(chance.randrange(len(cluster.under_way)))
        for number in sent.keys() & cluster.answers.keys():
            _check(cluster, number, *sent.pop(number))
    cluster.drain()
    assert sent.keys() <= cluster.answers.keys()
    assert all(logic.writes_pending == 0 for logic in cluster.members.values())


def _check(cluster: Cluster, number: int, chunk: int, table: Routing) -> None:
    assert cluster.answers[number] in (OK, STALE)
    if cluster.answers[number] == OK:
        members = [t.target for t in table.targets if t.state in (S, Y)]
        assert all(chunk in cluster.disks[t] for t in members)
