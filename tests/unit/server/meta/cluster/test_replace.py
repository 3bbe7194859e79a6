"""Who takes the place of members that are gone: one chain at a time, then many, then any."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ffs.server.meta.cluster.evaluate import Decision, decide
from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.placement import form_chains
from ffs.server.meta.cluster.replace import Absence, Absences, vacant
from ffs.server.meta.cluster.states import Chain, Member
from ffs.server.meta.cluster.view import Target, Task, View
from ffs.types import TargetState
from ffs.wire.membership import EMPTIED
from ffs.wire.operators import TaskKind

SERVING, SYNCING = TargetState.SERVING, TargetState.SYNCING
OFFLINE = TargetState.OFFLINE
GRACE = 100
MS = 1_000_000


class World:
    """A cluster in a few values: decisions are carried out at once, or when a test says so."""

    def __init__(self, nodes: int, targets: int, replicas: int, *, spare: int = 0) -> None:
        self.replicas = replicas
        self.lives = dict.fromkeys(range(1, nodes + 1), Life.ALIVE)
        self.targets: dict[int, Target] = {}
        self.absences = Absences(GRACE)
        self.now_ns = 0
        self.retired: list[int] = []
        self.crowded: frozenset[int] = frozenset()
        self.doubtful: frozenset[int] = frozenset()
        self.tasks: list[Task] = []
        for node in self.lives:
            for _ in range(targets):
                self.add(node)
        free = {n: [t.target for t in self.targets.values() if t.node == n] for n in self.lives}
        disks = {target.target: target.disk_key for target in self.targets.values()}
        formed = form_chains(free, replicas, [], disks)
        self.chains = {
            chain: Chain(chain, 1, tuple(Member(t, SERVING, 1, i) for i, t in enumerate(members)))
            for chain, members in enumerate(formed, start=1)
        }
        for node in self.lives:
            for _ in range(spare):
                self.add(node)

    def add(self, node: int, *, beside: int = 0, disk: str = "") -> int:
        target = len(self.targets) + 1
        self.targets[target] = Target(
            target, node, stopped=bool(beside), idle=not beside, beside=beside, disk=disk
        )
        return target

    @property
    def view(self) -> View:
        return View(
            dict(self.lives),
            dict(self.targets),
            list(self.chains.values()),
            self.crowded,
            self.tasks,
            doubtful=self.doubtful,
        )

    def decide(self, overdue: frozenset[Absence] | None = None) -> Decision:
        if overdue is None:
            overdue = self.absences.turn(list(self.chains.values()), {}, self.now_ns)
        return decide(self.view, replicas=self.replicas, form=False, overdue=overdue)

    def turn(self) -> Decision:
        """Decide, and carry it out; orders are known to have been given."""
        decision = self.decide()
        for chain in decision.chains:
            assert chain.version > self.chains[chain.chain].version
            self.chains[chain.chain] = chain
            for member in chain.members:
                target = self.targets[member.target]
                self.targets[member.target] = replace(target, since=member.since)
        if decision.crowded is not None:
            self.crowded = decision.crowded
        if decision.doubtful is not None:
            self.doubtful = decision.doubtful
        self.tasks = [task for task in self.tasks if task not in decision.ended]
        for left in decision.retired:
            self.targets[left] = replace(self.targets[left], idle=False, spare=True)
            self.retired.append(left)
        for node, beside in decision.orders:
            assert self.targets[beside].node == node
            self.add(node, beside=beside)
        return decision

    def settle(self) -> None:
        """Let all that lives do what it has to, until nothing changes."""
        for _ in range(50):
            for target in list(self.targets.values()):
                if target.beside and self.lives[target.node] is Life.ALIVE:
                    self.targets[target.target] = Target(
                        target.target, target.node, disk=target.disk_key[1]
                    )
            self.sync()
            if self.turn().nothing:
                return
        raise AssertionError("it never comes to an end")

    def sync(self) -> None:
        for chain in self.chains.values():
            for member in chain.members:
                if member.state == SYNCING:
                    target = self.targets[member.target]
                    self.targets[member.target] = replace(target, synced=member.since)

    def die(self, node: int) -> None:
        """A node is gone, and its grace time over."""
        self.lives[node] = Life.DEAD
        while not self.turn().nothing:
            pass
        self.now_ns += GRACE

    def nodes_of(self, chain: Chain) -> list[int]:
        return [self.targets[member.target].node for member in chain.members]

    def check_whole(self) -> None:
        for chain in self.chains.values():
            assert [m.state for m in chain.members] == [SERVING] * self.replicas
            assert sorted(m.home for m in chain.members) == list(range(self.replicas))
            nodes = self.nodes_of(chain)
            assert len(set(nodes)) == len(nodes)
            assert all(self.lives[node] is Life.ALIVE for node in nodes)


def test_nothing_happens_within_the_grace_time() -> None:
    world = World(4, 3, 3, spare=1)
    world.die(4)
    world.now_ns -= 1
    assert world.turn().nothing
    world.now_ns += 1
    assert not world.turn().nothing


def test_a_free_target_joins_and_the_lost_one_leaves_when_it_serves() -> None:
    world = World(4, 3, 3, spare=1)
    world.die(4)
    lost = {m.target for c in world.chains.values() for m in c.members if m.state == OFFLINE}
    decision = world.turn()
    assert len(decision.chains) == 3 and not decision.orders and not decision.retired
    for chain in decision.chains:
        assert [m.state for m in chain.members] == [SERVING, SERVING, SYNCING, OFFLINE]
        assert chain.members[2].home == chain.members[3].home
        assert chain.members[2].since == chain.version
    assert Counter(world.nodes_of(c)[2] for c in decision.chains) == {1: 1, 2: 1, 3: 1}
    assert world.turn().nothing, "they are not complete yet"
    world.sync()
    assert not world.turn().retired, "now they serve"
    assert set(world.turn().retired) == lost
    assert world.turn().nothing
    world.check_whole()


def test_targets_are_ordered_once_where_none_is_free() -> None:
    world = World(4, 3, 3)
    world.die(4)
    assert sorted(node for node, _ in world.turn().orders) == [1, 2, 3]
    assert world.turn().nothing, "they were ordered already"
    world.lives[2] = Life.UNKNOWN
    assert world.turn().nothing
    world.settle()
    world.lives[2] = Life.ALIVE
    world.settle()
    world.check_whole()
    assert len(world.targets) == 15, "three were made, once each"


def test_many_nodes_share_what_one_of_them_had() -> None:
    world = World(20, 6, 3)
    before = Counter(node for c in world.chains.values() for node in world.nodes_of(c))
    world.die(7)
    world.settle()
    world.check_whole()
    after = Counter(node for c in world.chains.values() for node in world.nodes_of(c))
    assert set(before.values()) == {6} and set(after.values()) <= {6, 7}


def test_one_that_comes_back_in_time_keeps_its_place() -> None:
    world = World(4, 3, 3, spare=1)
    world.die(4)
    joined = {m.target for c in world.turn().chains for m in c.members if m.state == SYNCING}
    world.lives[4] = Life.ALIVE
    world.turn()
    for chain in world.chains.values():
        for member in chain.members:
            if member.state == SYNCING and member.target not in joined:
                target = world.targets[member.target]
                world.targets[member.target] = replace(target, synced=member.since)
    world.turn()
    assert set(world.turn().retired) == joined
    assert world.turn().nothing
    world.check_whole()


def test_both_that_come_to_serve_at_once_leave_one() -> None:
    world = World(4, 3, 3, spare=1)
    world.die(4)
    world.turn()
    world.lives[4] = Life.ALIVE
    world.turn()
    world.sync()
    world.turn()
    assert {len(chain.members) for chain in world.chains.values()} == {3, 4}
    assert all(m.state == SERVING for c in world.chains.values() for m in c.members)
    assert len(world.turn().retired) == 3
    assert world.turn().nothing
    world.check_whole()


def test_nobody_leaves_for_one_that_was_not_heard_yet() -> None:
    world = World(nodes=4, targets=1, replicas=3)
    first, second, third = world.chains[1].members
    lost = replace(third, state=SERVING)
    (spare,) = world.targets.keys() - {first.target, second.target, third.target}
    joined = Member(spare, SERVING, 9, lost.home)
    world.chains[1] = Chain(1, 9, (first, second, lost, joined))
    world.lives[world.targets[spare].node] = Life.UNKNOWN
    assert world.decide().retired == []
    world.lives[world.targets[spare].node] = Life.ALIVE
    assert world.decide().retired == [lost.target]


def test_a_replacement_that_dies_too_is_replaced() -> None:
    world = World(5, 3, 3, spare=1)
    world.die(5)
    world.turn()
    world.die(1)
    world.settle()
    world.check_whole()


def test_a_stopped_disk_is_replaced_even_on_its_own_node() -> None:
    world = World(3, 1, 3)
    failed = world.chains[1].members[1].target
    world.targets[failed] = replace(world.targets[failed], stopped=True)
    other = world.add(world.targets[failed].node)
    world.turn()
    world.now_ns += GRACE
    world.turn()
    world.now_ns += GRACE
    world.settle()
    world.check_whole()
    assert world.retired == [failed]
    assert other in {member.target for member in world.chains[1].members}


def test_without_a_server_or_room_members_wait() -> None:
    world = World(3, 1, 3)
    world.die(3)
    assert world.turn().nothing, "both others have a member already"
    full = World(4, 3, 3)
    for target in range(1, 13):
        full.targets[target] = replace(full.targets[target], capacity_bytes=100, used_bytes=91)
    full.die(4)
    assert not full.turn().orders
    gone = World(4, 3, 3, spare=1)
    for node in (1, 2, 3):
        gone.die(node)
    for chain in gone.decide().chains:
        assert any(member.state == SERVING for member in gone.chains[chain.chain].members)


def test_a_target_never_serves_by_what_it_synced_for_in_another_chain() -> None:
    world = World(4, 3, 3, spare=1)
    for target in range(13, 17):
        world.targets[target] = replace(world.targets[target], synced=3, since=2)
    world.die(4)
    world.turn()
    assert {c.version for c in world.chains.values() if len(c.members) == 4} == {4}
    assert world.turn().nothing


def test_absences_last_over_managers() -> None:
    grace_ns = 16_000 * MS
    absences = Absences(grace_ns)
    chains = [Chain(1, 4, (Member(1, SERVING, 1), Member(2, OFFLINE, 3, 1)))]
    assert absences.turn(chains, {}, 7) == frozenset()
    assert absences.news({}, 7 + 1_000 * MS) == [], "now and then is enough"
    assert absences.news({}, 7 + 1_001 * MS) == [(2, 3, 1_001)]
    assert absences.news({2: 1_001}, 7 + 1_500 * MS) == []
    assert absences.turn(chains, {}, 7 + grace_ns) == {(2, 3)}
    assert absences.turn([], {}, 8 + grace_ns) == frozenset()
    assert absences.turn(chains, {}, 9 + grace_ns) == frozenset(), "it was back meanwhile"
    absences.begin()
    assert absences.turn(chains, {2: 15_000}, 9 + grace_ns) == frozenset()
    assert absences.turn(chains, {2: 15_000}, 9 + grace_ns + 999 * MS) == frozenset()
    assert absences.turn(chains, {2: 15_000}, 9 + grace_ns + 1_000 * MS) == {(2, 3)}
    assert absences.news({2: 15_000}, 9 + 2 * grace_ns) == []


@settings(max_examples=60)
@given(
    st.integers(4, 9),
    st.integers(1, 4),
    st.integers(2, 3),
    st.lists(st.tuples(st.sampled_from(["die", "return", "turn", "sync"]), st.integers(1, 9))),
)
def test_all_chains_become_whole_whatever_happened(
    nodes: int, targets: int, replicas: int, events: list[tuple[str, int]]
) -> None:
    world = World(nodes, targets, replicas)
    for event, node in events:
        if event == "die" and node in world.lives and len(world.lives) - 1 > replicas:
            if list(world.lives.values()).count(Life.ALIVE) > replicas:
                world.die(node)
        elif event == "return" and node in world.lives:
            world.lives[node] = Life.ALIVE
        elif event == "turn":
            world.turn()
        else:
            world.sync()
        for chain in world.chains.values():
            assert len(chain.members) <= replicas + 1
    for node in world.lives:
        world.lives[node] = Life.ALIVE
    world.settle()
    world.check_whole()
    members = [m.target for c in world.chains.values() for m in c.members]
    assert len(set(members)) == len(members) and not set(members) & set(world.retired)


# --- doubt ----------------------------------------------------------------------------------------


def torn() -> tuple[World, Chain, int, int]:
    """One that was gone is about to be replaced, and the only one that serves has lost chunks."""
    world = World(4, 1, 3)
    world.add(4)
    (chain,) = world.chains.values()
    nodes = world.nodes_of(chain)
    world.die(nodes[2])
    lost = next(m.target for m in world.chains[chain.chain].members if m.state == OFFLINE)
    world.turn()  # a successor joins
    world.lives[nodes[1]] = Life.DEAD
    world.turn()
    keeper = next(m.target for m in world.chains[chain.chain].members if m.state == SERVING)
    return world, world.chains[chain.chain], keeper, lost


def damage(world: World, target: int, damaged: bool = True) -> None:
    world.targets[target] = replace(world.targets[target], damaged=damaged)


def test_who_may_have_what_the_others_lost_is_not_emptied() -> None:
    world, chain, keeper, lost = torn()
    damage(world, keeper)
    decision = world.turn()
    assert decision.doubtful == frozenset({chain.chain}) == world.doubtful
    # The successor has all that is left, the damaged one syncs from it: both are as whole as it is.
    world.settle()
    damage(world, keeper, damaged=False)
    world.settle()
    members = {m.target: m for m in world.chains[chain.chain].members}
    assert members[keeper].state == SERVING and members[lost].state == OFFLINE
    assert lost not in world.retired and world.doubtful == {chain.chain}
    # Back it has to sync, as everybody; then the others get from it what they lack.
    world.lives = dict.fromkeys(world.lives, Life.ALIVE)
    world.settle()
    assert world.doubtful == {chain.chain} and not world.retired
    assert {m.state for m in world.chains[chain.chain].members} == {SERVING}
    for number, member in enumerate(world.chains[chain.chain].members, start=1):
        assert world.doubtful, number
        found = world.targets[member.target]
        version = world.chains[chain.chain].version
        world.targets[member.target] = replace(found, compared=version)
        world.settle()
    assert world.doubtful == frozenset() and len(world.retired) == 1
    world.check_whole()


def test_an_accepted_loss_ends_the_waiting() -> None:
    world, chain, keeper, lost = torn()
    damage(world, keeper)
    world.settle()
    damage(world, keeper, damaged=False)
    world.settle()
    world.tasks = [Task(TaskKind.ACCEPT_LOSS, chain.chain)]
    world.settle()
    assert lost in world.retired and world.doubtful == frozenset() and not world.tasks
    assert lost not in {m.target for m in world.chains[chain.chain].members}


def test_one_that_cannot_be_made_whole_is_reason_for_doubt() -> None:
    world = World(4, 3, 3, spare=1)
    lacking = world.chains[1].members[0].target
    world.targets[lacking] = replace(world.targets[lacking], lacking=True)
    assert world.turn().doubtful == frozenset({1})
    world.targets[lacking] = replace(world.targets[lacking], lacking=False)
    assert world.turn().nothing
    for member in world.chains[1].members:
        world.targets[member.target] = replace(world.targets[member.target], compared=1)
    assert world.turn().doubtful == frozenset()


def test_a_damaged_one_beside_one_that_is_whole_is_none() -> None:
    world = World(4, 3, 3, spare=1)
    damage(world, world.chains[1].members[0].target)
    world.turn()
    assert world.doubtful == frozenset()


def test_doubt_does_not_keep_another_place_from_being_replaced() -> None:
    serving = [Member(t, SERVING, 1, home) for home, t in enumerate((1, 2, 3))]
    lost = Member(4, OFFLINE, 1, 2)
    assert vacant(Chain(1, 5, (*serving, lost)), {4}, ()) is None
    gone = Member(2, OFFLINE, 1, 1)
    found = vacant(Chain(1, 5, (serving[0], serving[2], gone, lost)), {2, 4}, ())
    assert found is gone


def test_who_was_emptied_leaves_the_service_of_an_older_database() -> None:
    world = World(4, 3, 3, spare=1)
    first, second, _ = (m.target for m in world.chains[1].members)
    world.targets[first] = replace(world.targets[first], holds=EMPTIED)
    world.targets[second] = replace(world.targets[second], holds=1)
    world.turn()
    states = {m.target: m.state for m in world.chains[1].members}
    assert states[first] == SYNCING and states[second] == SERVING
