"""What operators ask for, as the manager decides it: drains, rebalances, nodes that come."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffs.server.meta.cluster import planned
from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.placement import form_chains
from ffs.server.meta.cluster.rebalance import SLACK, shifts
from ffs.server.meta.cluster.room import Room
from ffs.server.meta.cluster.states import Chain, Member
from ffs.server.meta.cluster.view import DiskKey, Target, Task, View, free_targets
from ffs.wire.operators import TaskKind
from tests.unit.server.meta.cluster.test_replace import OFFLINE, SERVING, SYNCING, World

GIB = 1 << 30
TIB = 1 << 40


class Grown(World):
    """A cluster of disks, in which chains hold bytes and operators ask for things."""

    def __init__(
        self, nodes: int, disks: int, targets: int, replicas: int, *, bytes_each: int = 100 * GIB
    ) -> None:
        super().__init__(0, 0, replicas)
        self.tasks: list[Task] = []
        self.bytes: dict[int, int] = {}
        for node in range(1, nodes + 1):
            self.add_node(node, disks, targets)
        free = {n: [t.target for t in self.targets.values() if t.node == n] for n in self.lives}
        disks_of = {target.target: target.disk_key for target in self.targets.values()}
        for chain, members in enumerate(form_chains(free, replicas, [], disks_of), start=1):
            places = tuple(Member(t, SERVING, 1, i) for i, t in enumerate(members))
            self.chains[chain] = Chain(chain, 1, places)
            self.bytes[chain] = bytes_each
        self.fill()

    def add_node(self, node: int, disks: int, targets: int, capacity_bytes: int = TIB) -> None:
        """A node comes up with so many targets on each of its disks."""
        self.lives[node] = Life.ALIVE
        for disk, _ in itertools.product(range(disks), range(targets)):
            target = self.add(node, disk=f"disk {disk}")
            self.targets[target] = replace(self.targets[target], capacity_bytes=capacity_bytes)

    def fill(self) -> None:
        """Let targets hold what their chains do, unless they still copy it."""
        stored = {
            m.target: self.bytes[c.chain]
            for c in self.chains.values()
            for m in c.members
            if m.state == SERVING
        }
        used: Counter[DiskKey] = Counter()
        for name, target in self.targets.items():
            used[target.disk_key] += stored.get(name, 0)
        rooms = {t.disk_key: t.capacity_bytes for t in self.targets.values() if t.capacity_bytes}
        for name, target in self.targets.items():
            self.targets[name] = replace(
                target,
                stored_bytes=stored.get(name, 0),
                used_bytes=used[target.disk_key],
                capacity_bytes=rooms.get(target.disk_key, 0),
                drained=self.is_drained(target),
            )

    def is_drained(self, target: Target) -> bool:
        return any(
            (task.kind, task.subject)
            in {(TaskKind.DRAIN_NODE, target.node), (TaskKind.DRAIN_TARGET, target.target)}
            for task in self.tasks
        )

    @property
    def view(self) -> View:
        return replace(super().view, tasks=self.tasks)

    def ask(self, kind: TaskKind, subject: int = 0) -> None:
        self.tasks.append(Task(kind, subject))
        self.fill()

    def cancel(self, kind: TaskKind) -> None:
        """As `ops.tasks.end` writes it down."""
        self.tasks = [task for task in self.tasks if task.kind is not kind]
        if kind is TaskKind.REBALANCE:
            for name, chain in self.chains.items():
                members = tuple(replace(member, moving=False) for member in chain.members)
                self.chains[name] = replace(chain, members=members)
        self.fill()

    def go_on(self) -> bool:
        """One turn, with all that daemons do between two; return whether there was something."""
        for name, target in list(self.targets.items()):
            if target.beside and self.lives[target.node] is Life.ALIVE:
                _, disk = self.targets[target.beside].disk_key
                self.targets[name] = Target(name, target.node, disk=disk)
            elif name in self.retired and self.lives[target.node] is Life.ALIVE:
                self.targets[name] = replace(target, idle=True)
        before = {name: self.served(chain) for name, chain in self.chains.items()}
        decision = self.turn()
        self.tasks = [t for t in self.tasks if t not in decision.ended] + decision.begun
        for name, chain in self.chains.items():
            if all(self.lives[self.targets[m.target].node] is Life.ALIVE for m in chain.members):
                assert self.served(chain) >= before[name], "fewer replicas than before"
            assert len(chain.members) <= self.replicas + 1
            nodes = self.nodes_of(chain)
            assert len(set(nodes)) >= self.replicas
        self.fill()
        return not decision.nothing

    def served(self, chain: Chain) -> int:
        return len({m.home for m in chain.members if m.state == SERVING})

    def finish(self, turns: int = 2_000) -> int:
        """Go on until nothing is left to do; return how many bytes were copied."""
        copied = 0
        for _ in range(turns):
            copied += sum(
                self.bytes[c.chain]
                for c in self.chains.values()
                for m in c.members
                if m.state == SYNCING
            )
            self.sync()
            if not self.go_on():
                return copied
        raise AssertionError("it never comes to an end")

    def fills(self) -> dict[DiskKey, float]:
        """How full each disk is by what members hold."""
        stored: Counter[DiskKey] = Counter()
        capacity: dict[DiskKey, int] = {}
        members = {m.target: c.chain for c in self.chains.values() for m in c.members}
        for name, target in self.targets.items():
            if target.beside:
                continue
            capacity[target.disk_key] = target.capacity_bytes
            stored[target.disk_key] += self.bytes[members[name]] if name in members else 0
        return {key: stored[key] / capacity[key] for key in capacity}


# --- drain ----------------------------------------------------------------------------------------


def test_a_drained_node_serves_until_its_successors_do() -> None:
    world = Grown(5, 1, 3, 3)
    on_it = [c.chain for c in world.chains.values() if 5 in world.nodes_of(c)]
    world.ask(TaskKind.DRAIN_NODE, 5)
    while any(len(world.chains[chain].members) == 3 for chain in on_it):
        assert world.go_on()
    for chain in on_it:
        assert [m.state for m in world.chains[chain].members] == [SERVING] * 3 + [SYNCING]
        assert 5 in world.nodes_of(world.chains[chain])
    assert world.go_on() is False, "nobody leaves before the others have synced"
    world.finish()
    world.check_whole()
    assert all(5 not in world.nodes_of(chain) for chain in world.chains.values())
    assert len(world.tasks) == 1, "nothing comes to it any more"
    assert not free_targets(world.view).get(5)


def test_a_drain_that_is_cancelled_leaves_all_as_it_was() -> None:
    world = Grown(5, 1, 3, 3)
    before = {chain.chain: {m.target for m in chain.members} for chain in world.chains.values()}
    world.ask(TaskKind.DRAIN_NODE, 5)
    while all(len(chain.members) == 3 for chain in world.chains.values()):
        world.go_on()
    world.cancel(TaskKind.DRAIN_NODE)
    for _ in range(3):
        world.go_on()
    after = {chain.chain: {m.target for m in chain.members} for chain in world.chains.values()}
    assert after == before
    world.check_whole()


def test_a_drained_node_that_is_gone_is_replaced_without_waiting() -> None:
    world = Grown(5, 1, 3, 3)
    world.lives[5] = Life.DEAD
    world.go_on()
    assert world.go_on() is False, "the grace time has not passed"
    world.ask(TaskKind.DRAIN_NODE, 5)
    world.finish()
    world.check_whole()


def test_a_drained_target_goes_to_another_disk() -> None:
    world = Grown(3, 2, 2, 3, bytes_each=GIB)
    lost = world.chains[1].members[0]
    disk = world.targets[lost.target].disk_key
    world.ask(TaskKind.DRAIN_TARGET, lost.target)
    world.finish()
    world.check_whole()
    (successor,) = [m for m in world.chains[1].members if m.home == lost.home]
    key = world.targets[successor.target].disk_key
    assert key[0] == disk[0] and key != disk, "two other nodes have the other members"


def test_a_successor_that_dies_is_replaced_and_the_drained_one_serves_on() -> None:
    world = Grown(6, 1, 2, 3)
    world.ask(TaskKind.DRAIN_NODE, 6)
    while not (joined := [m for c in world.chains.values() for m in c.members[3:]]):
        world.go_on()
    dead = world.targets[joined[0].target].node
    world.lives[dead] = Life.DEAD
    for _ in range(3):
        world.go_on()
    world.now_ns += 100
    world.finish()
    world.check_whole()
    assert all(6 not in world.nodes_of(chain) for chain in world.chains.values())


def test_what_has_no_place_or_no_room_is_told() -> None:
    world = Grown(3, 1, 3, 3)
    found = planned.plan(world.view, TaskKind.DRAIN_NODE, 3)
    assert not found.moves and len(found.stuck) == 3
    assert found.stuck[0].startswith("chain 1 would be left with 2 of 3 replicas: no other node")
    full = Grown(4, 1, 3, 3, bytes_each=300 * GIB)
    found = planned.plan(full.view, TaskKind.DRAIN_NODE, 4)
    assert found.stuck[0] == f"chain 1: no disk of node 1 has room for {300 * GIB} bytes more"
    lone = Grown(5, 1, 3, 3)
    for chain in lone.chains.values():
        members = tuple(replace(m, state=OFFLINE) for m in chain.members)
        lone.chains[chain.chain] = replace(chain, members=members)
    assert "no member that serves" in planned.plan(lone.view, TaskKind.DRAIN_NODE, 5).stuck[0]


def test_a_plan_is_what_happens() -> None:
    world = Grown(6, 2, 4, 3)
    found = planned.plan(world.view, TaskKind.DRAIN_NODE, 2)
    assert not found.stuck
    world.ask(TaskKind.DRAIN_NODE, 2)
    (task,) = world.tasks
    told = planned.report(world.view, task)
    assert (told.moves_left, told.left_bytes) == (len(found.moves), 800 * GIB)
    assert world.finish() == sum(move.total_bytes for move in found.moves) == 800 * GIB
    told = planned.report(world.view, task)
    assert (told.moves_left, told.left_bytes, told.waits_for) == (0, 0, "")
    for move in found.moves:
        assert move.node in world.nodes_of(world.chains[move.chain])


# --- rebalance ------------------------------------------------------------------------------------


def test_new_disks_are_filled_with_as_little_as_that_takes() -> None:
    world = Grown(6, 2, 6, 3)
    world.add_node(7, 2, 1)
    world.add_node(8, 1, 1, capacity_bytes=2 * TIB)
    before = world.fills()
    mean = 72 * 100 * GIB / (16 * TIB)
    excess = sum(max(0, fill - mean) * TIB for fill in before.values())
    world.ask(TaskKind.REBALANCE)
    copied = world.finish()
    assert not world.tasks, "it is done"
    world.check_whole()
    member = 100 * GIB / TIB
    assert all(abs(fill - mean) <= member for fill in world.fills().values())
    assert copied <= excess + len(before) * 100 * GIB / 2
    world.ask(TaskKind.REBALANCE)
    assert world.finish() == 0 and not world.tasks, "nothing is left to move"


def test_chains_that_are_empty_yet_are_spread_by_their_number() -> None:
    world = Grown(4, 1, 9, 3, bytes_each=0)
    world.add_node(5, 1, 1)
    world.ask(TaskKind.REBALANCE)
    world.finish()
    counts = Counter(node for chain in world.chains.values() for node in world.nodes_of(chain))
    assert set(counts.values()) <= {7, 8} and len(counts) == 5


def test_one_member_at_a_time_leaves_a_disk_or_comes_to_one() -> None:
    world = Grown(6, 2, 6, 3)
    world.add_node(7, 2, 1)
    world.ask(TaskKind.REBALANCE)
    most = 0
    while world.tasks:
        disks: Counter[DiskKey] = Counter()
        for chain in world.chains.values():
            for member in chain.members:
                if member.moving or member.state == SYNCING:
                    disks[world.targets[member.target].disk_key] += 1
        assert not disks or max(disks.values()) == 1
        most = max(most, len(disks))
        world.sync()
        world.go_on()
    assert most == 4, "both disks of the new node are filled at once"


def test_a_rebalance_that_is_cancelled_undoes_what_is_under_way() -> None:
    world = Grown(6, 2, 6, 3)
    world.add_node(7, 2, 1)
    world.ask(TaskKind.REBALANCE)
    while all(len(chain.members) == 3 for chain in world.chains.values()):
        world.go_on()
    world.cancel(TaskKind.REBALANCE)
    for _ in range(3):
        world.go_on()
    world.check_whole()
    assert all(7 not in world.nodes_of(chain) for chain in world.chains.values())


def test_it_does_not_end_while_a_chain_is_not_whole() -> None:
    world = Grown(4, 1, 3, 3)
    world.lives[4] = Life.DEAD
    world.ask(TaskKind.REBALANCE)
    for _ in range(5):
        world.go_on()
    assert "is gone" in planned.report(world.view, world.tasks[0]).waits_for
    world.lives[4] = Life.ALIVE
    world.finish()
    assert not world.tasks
    world.check_whole()


def test_a_node_that_was_awaited_is_filled() -> None:
    world = Grown(4, 1, 6, 3)
    world.ask(TaskKind.ADD_NODE, 4)
    assert world.finish() == 0 and world.tasks
    assert planned.report(world.view, world.tasks[0]).waits_for == "a node to come up"
    world.add_node(5, 1, 1)
    assert world.finish() > 0 and not world.tasks
    assert any(5 in world.nodes_of(chain) for chain in world.chains.values())


def test_targets_that_members_left_make_no_new_chains() -> None:
    world = Grown(6, 1, 6, 3)
    chains = len(world.chains)
    world.add_node(7, 1, 1)
    world.ask(TaskKind.REBALANCE)
    world.finish()
    decision = world.decide()
    assert decision.nothing and len(world.chains) == chains


def test_what_comes_to_a_target_after_it_was_emptied_is_emptied_too() -> None:
    """A copy that was under way when it left its chain."""
    world = Grown(5, 1, 3, 3)
    world.ask(TaskKind.DRAIN_NODE, 5)
    world.finish()
    world.cancel(TaskKind.DRAIN_NODE)
    world.turn()
    left = world.retired[0]
    world.targets[left] = replace(world.targets[left], idle=True, stored_bytes=1)
    assert left not in free_targets(world.view).get(5, [])
    assert world.decide().retired == [left]
    world.targets[left] = replace(world.targets[left], stored_bytes=0)
    assert world.decide().nothing and left in free_targets(world.view)[5]


@settings(max_examples=40)
@given(
    st.integers(4, 7),
    st.integers(1, 2),
    st.lists(st.integers(0, 40), min_size=40, max_size=40),
    st.integers(0, 2),
    st.lists(st.sampled_from(["turn", "sync", "die", "return", "cancel"]), max_size=20),
)
def test_whatever_happens_replicas_stay_and_it_ends(
    nodes: int, disks: int, gibs: list[int], new: int, events: list[str]
) -> None:
    world = Grown(nodes, disks, 3, 3)
    for chain, gib in zip(world.chains, itertools.cycle(gibs), strict=False):
        world.bytes[chain] = gib * GIB
    world.fill()
    for node in range(nodes + 1, nodes + 1 + new):
        world.add_node(node, disks, 1)
    if nodes + new > 4:
        world.ask(TaskKind.DRAIN_NODE, 1)
    world.ask(TaskKind.REBALANCE)
    for event in events:
        if event == "die" and list(world.lives.values()).count(Life.DEAD) == 0:
            world.lives[nodes] = Life.DEAD
        elif event == "return":
            world.lives[nodes] = Life.ALIVE
        elif event == "cancel":
            world.cancel(TaskKind.REBALANCE)
        elif event == "sync":
            world.sync()
        world.go_on()
    world.lives[nodes] = Life.ALIVE
    world.finish()
    world.check_whole()
    if nodes + new > 4:
        assert all(1 not in world.nodes_of(chain) for chain in world.chains.values())


@pytest.mark.parametrize(("nodes", "disks", "targets"), [(1, 4, 3), (100, 12, 3), (500, 4, 3)])
def test_large_clusters_are_planned_in_seconds(nodes: int, disks: int, targets: int) -> None:
    dice = random.Random(7)
    replicas = min(3, nodes)
    world = Grown(nodes, disks, targets, replicas)
    for chain in world.chains:
        world.bytes[chain] = dice.randrange(200 * GIB)
    for node in range(nodes + 1, nodes + 1 + max(1, nodes // 10)):
        world.add_node(node, disks, 1)
    world.fill()
    before_s = time.thread_time()
    room = Room(world.view, free_targets(world.view))
    moves = list(shifts(world.view, room))
    took_s = time.thread_time() - before_s
    print(f"{nodes} nodes, {len(world.chains)} chains: {len(moves)} moves, {took_s:.2f} s of CPU")
    fills = [disk.fill for disk in room.disks.values()]
    mean = sum(disk.load for disk in room.disks.values()) / sum(
        disk.room_bytes for disk in room.disks.values()
    )
    assert max(fills) <= (1 + SLACK) * mean + 200 * GIB / TIB
    assert took_s < 20
