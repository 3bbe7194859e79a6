"""Chains as the cluster manager reads and writes them, and the lease that makes one the manager.

Previous hop: `cluster.role`. Next hop: SQL. Invariant: chains change only in a transaction that
holds the routing and, after it, the manager's lease with the writer's own term (`held_lease`); so
two managers never both change them, whatever each believes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Final

from ffs.server.meta.cluster.evaluate import Decision
from ffs.server.meta.cluster.lease import NOBODY, LeaseRow
from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.states import Chain, Member
from ffs.server.meta.cluster.view import Target, View
from ffs.server.meta.ops import tasks
from ffs.server.meta.ops.orders import order_retirement, order_target
from ffs.server.meta.ops.routing import add_chains, add_table, grow_version, hold_targets
from ffs.server.meta.ops.storage import drop_once_synced, lacks
from ffs.server.meta.store import Transaction
from ffs.types import TargetState
from ffs.wire.membership import TargetReport
from ffs.wire.operators import TaskKind

_ROLE: Final = "cluster manager"
_LEASE: Final = "SELECT term, holder, expires_ns FROM manager_leases WHERE role = ?"

_SET_VERSIONS: Final = """
WITH keys(chain, version) AS (VALUES {keys})
UPDATE chains SET version = keys.version FROM keys WHERE chains.chain = keys.chain
"""
_SET_STATES: Final = """
WITH keys(target, state, since) AS (VALUES {keys})
UPDATE targets SET state = keys.state, since = keys.since,
    away_ms = CASE WHEN targets.since = keys.since THEN away_ms ELSE 0 END
FROM keys WHERE targets.target = keys.target
"""
_NOTE_ABSENCES: Final = """
WITH keys(target, since, away_ms) AS (VALUES {keys})
UPDATE targets SET away_ms = keys.away_ms
FROM keys WHERE targets.target = keys.target AND targets.since = keys.since
"""
_DELETE_MEMBERS: Final = """
WITH keys(chain) AS (VALUES {keys})
DELETE FROM chain_targets WHERE chain IN (SELECT chain FROM keys)
"""
_SET_CROWDED: Final = """
WITH keys(chain) AS (VALUES {keys})
UPDATE chains SET crowded = 1 WHERE chain IN (SELECT chain FROM keys)
"""
_SET_DOUBTFUL: Final = """
WITH keys(chain) AS (VALUES {keys})
UPDATE chains SET doubtful = 1 WHERE chain IN (SELECT chain FROM keys)
"""
_CHAIN_MEMBERS: Final = (
    "SELECT c.chain, c.target, t.state, t.since, c.home, c.moving"
    " FROM chain_targets c JOIN targets t ON t.target = c.target ORDER BY c.chain, c.place"
)
_TARGETS: Final = (
    "SELECT target, node, stopped, damaged, synced, capacity_bytes, used_bytes, retiring, beside,"
    " since, disk, stored_bytes, spare, away_ms, holds, lacking, compared"
    " FROM targets ORDER BY target"
)


# --- the lease --------------------------------------------------------------------------------


def lease(tx: Transaction) -> LeaseRow:
    """Return who is the manager, as of now."""
    row = tx.row(_LEASE, (_ROLE,))
    return NOBODY if row is None else LeaseRow(*row)


def held_lease(tx: Transaction) -> LeaseRow:
    """Return who is the manager until the end of this transaction."""
    tx.insert(
        "manager_leases",
        ("role", "term", "holder", "expires_ns"),
        [(_ROLE, NOBODY.term, NOBODY.holder, NOBODY.expires_ns)],
        conflict="DO NOTHING",
    )
    row = tx.row(f"{_LEASE} FOR UPDATE", (_ROLE,))
    assert row is not None
    return LeaseRow(*row)


def set_lease(tx: Transaction, row: LeaseRow) -> None:
    """Write down who is the manager; the row must be held."""
    tx.run(
        "UPDATE manager_leases SET term = ?, holder = ?, expires_ns = ? WHERE role = ?",
        (row.term, row.holder, row.expires_ns, _ROLE),
    )


# --- what is known ----------------------------------------------------------------------------


def load_view(
    tx: Transaction,
    judge: Callable[[int], Life],
    heard: Mapping[int, int] | None,
    reports: Sequence[TargetReport],
) -> View:
    """Return all that the manager decides by.

    Args:    judge: a time at which a node was heard -> whether it lives; heard: these times by
             node, where the database is not the place for them; reports: what nodes told, which
             holds against the database
    """
    if heard is None:
        heard = dict(tx.rows("SELECT node, heard_ns FROM nodes"))
    told = {report.target: report for report in reports}
    asked = tasks.load(tx)
    drained = {(task.kind, task.subject) for task in asked}
    return View(
        {node: judge(heard_ns) for node, heard_ns in heard.items()},
        {row[0]: _target(row, told.get(row[0]), drained) for row in tx.rows(_TARGETS)},
        load_chains(tx),
        frozenset(c for (c,) in tx.rows("SELECT chain FROM chains WHERE crowded <> 0")),
        asked,
        dict(tx.rows("SELECT node, host FROM nodes")),
        frozenset(c for (c,) in tx.rows("SELECT chain FROM chains WHERE doubtful <> 0")),
    )


def _target(
    row: tuple[Any, ...], told: TargetReport | None, drained: Set[tuple[TaskKind, int]]
) -> Target:
    name, node, stopped, damaged, synced, capacity, used, retiring, beside, since, *rest = row
    disk, stored, spare, away_ms, holds, lacking, compared = rest
    target = Target(
        target=name,
        node=node,
        stopped=bool(stopped),
        damaged=bool(damaged),
        synced=synced,
        capacity_bytes=capacity,
        used_bytes=used,
        idle=not beside and not retiring,
        beside=beside,
        since=since,
        disk=disk,
        stored_bytes=stored,
        spare=bool(spare),
        away_ms=away_ms,
        holds=holds,
        lacking=bool(lacking),
        compared=compared,
        drained=bool(drained & {(TaskKind.DRAIN_TARGET, name), (TaskKind.DRAIN_NODE, node)}),
    )
    if told is None:
        return target
    return replace(
        target,
        stopped=told.stopped,
        damaged=told.damaged,
        synced=told.synced,
        capacity_bytes=told.capacity_bytes,
        used_bytes=told.used_bytes,
        disk=told.disk,
        stored_bytes=told.stored_bytes,
        holds=told.holds,
        lacking=lacks(told),
        compared=told.compared,
    )


def load_chains(tx: Transaction) -> list[Chain]:
    """Return every chain with its members, in order."""
    members: dict[int, list[Member]] = {}
    for chain, target, state, since, home, moving in tx.rows(_CHAIN_MEMBERS):
        member = Member(target, TargetState(state), since, home, bool(moving))
        members.setdefault(chain, []).append(member)
    return [
        Chain(chain, version, tuple(members.get(chain, ())))
        for chain, version in tx.rows("SELECT chain, version FROM chains ORDER BY chain")
    ]


# --- what changes -----------------------------------------------------------------------------


def apply(tx: Transaction, decision: Decision) -> None:
    """Write a decision down. The routing and the lease must be held."""
    members = [member.target for chain in decision.chains for member in chain.members]
    hold_targets(tx, [*members, *decision.retired])
    if decision.chains:
        set_chains(tx, decision.chains)
        _withdraw_copies(tx, decision.chains)
    if decision.retired:
        order_retirement(tx, decision.retired)
    for node, beside in decision.orders:
        order_target(tx, node, beside)
    for task in decision.begun:
        tasks.begin(tx, task)
    for task in decision.ended:
        tasks.end(tx, task.kind, task.subject)
    if decision.crowded is not None:
        tx.run("UPDATE chains SET crowded = 0 WHERE crowded <> 0")
        tx.run_for(_SET_CROWDED, sorted((chain,) for chain in decision.crowded))
    if decision.doubtful is not None:
        tx.run("UPDATE chains SET doubtful = 0 WHERE doubtful <> 0")
        tx.run_for(_SET_DOUBTFUL, sorted((chain,) for chain in decision.doubtful))
    if decision.formed:
        add_chains(tx, decision.formed)
    elif decision.crowded is not None:
        add_table(tx)
    if not decision.nothing:
        grow_version(tx)


def _withdraw_copies(tx: Transaction, chains: Sequence[Chain]) -> None:
    """Have those that begin to sync drop later what they may copy and others are dropping."""
    for chain in chains:
        members = [member.target for member in chain.members]
        for member in chain.members:
            if (member.state, member.since) == (TargetState.SYNCING, chain.version):
                drop_once_synced(tx, member.target, members)


def note_absences(tx: Transaction, news: Sequence[tuple[int, int, int]]) -> None:
    """Write down for how long targets have been OFFLINE, in ms, since a version of their chains.

    The lease must be held.
    """
    hold_targets(tx, [target for target, _, _ in news])
    tx.run_for(_NOTE_ABSENCES, sorted(news))


def set_chains(tx: Transaction, chains: Sequence[Chain]) -> None:
    """Write down chains that changed: versions, members, their order and their states.

    The targets must be held.
    """
    tx.run_for(_SET_VERSIONS, sorted((chain.chain, chain.version) for chain in chains))
    tx.run_for(_DELETE_MEMBERS, sorted((chain.chain,) for chain in chains))
    tx.insert(
        "chain_targets",
        ("chain", "place", "target", "home", "moving"),
        [
            (chain.chain, place, member.target, member.home, int(member.moving))
            for chain in sorted(chains, key=lambda c: c.chain)
            for place, member in enumerate(chain.members)
        ],
    )
    tx.run_for(
        _SET_STATES,
        sorted((m.target, int(m.state), m.since) for chain in chains for m in chain.members),
    )
