"""The routing table: nodes, targets, chains, and the immutable tables of chains.

Previous hop: `storage` (changes) and `service` (what clients ask for). Next hop: SQL. The version
is the `routing` counter and grows in the transaction of every change. A new target makes a chain
of its own and a new table that holds all chains; a table that exists never changes, since layouts
refer to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ffs.server.meta.ops.context import allocate
from ffs.server.meta.store import Transaction
from ffs.types import ChainInfo, NodeInfo, Routing, TableInfo, TargetInfo, TargetState


def load_routing(tx: Transaction) -> Routing:
    """Return the whole routing table as of now."""
    row = tx.row("SELECT value FROM counters WHERE name = 'routing'")
    assert row is not None
    return Routing(
        version=row[0],
        nodes=[NodeInfo(*n) for n in tx.rows("SELECT node, host, port FROM nodes ORDER BY node")],
        targets=[
            TargetInfo(*t)
            for t in tx.rows("SELECT target, node, state FROM targets ORDER BY target")
        ],
        chains=_load_chains(tx),
        tables=_load_tables(tx),
    )


def _load_chains(tx: Transaction) -> list[ChainInfo]:
    members: dict[int, list[int]] = {}
    for chain, target in tx.rows("SELECT chain, target FROM chain_targets ORDER BY chain, place"):
        members.setdefault(chain, []).append(target)
    return [
        ChainInfo(chain, version, members.get(chain, []))
        for chain, version in tx.rows("SELECT chain, version FROM chains ORDER BY chain")
    ]


def _load_tables(tx: Transaction) -> list[TableInfo]:
    chains: dict[int, list[int]] = {}
    for table, chain in tx.rows(
        "SELECT chain_table, chain FROM table_chains ORDER BY chain_table, place"
    ):
        chains.setdefault(table, []).append(chain)
    return [TableInfo(table, members) for table, members in sorted(chains.items())]


def grow_version(tx: Transaction) -> None:
    """Note that the routing changed."""
    allocate(tx, "routing", 1)


def add_chains(tx: Transaction, targets: Iterable[int]) -> None:
    """Give each new target a chain of its own, and the cluster a table with all chains."""
    targets = list(targets)
    chains = allocate(tx, "chain", len(targets))
    tx.run_each("INSERT INTO chains (chain, version) VALUES (?, 1)", [(c,) for c in chains])
    tx.run_each(
        "INSERT INTO chain_targets (chain, place, target) VALUES (?, 0, ?)",
        list(zip(chains, targets, strict=True)),
    )
    (table,) = allocate(tx, "chain_table", 1)
    every = tx.rows("SELECT chain FROM chains ORDER BY chain")
    tx.run_each(
        "INSERT INTO table_chains (chain_table, place, chain) VALUES (?, ?, ?)",
        [(table, place, chain) for place, (chain,) in enumerate(every)],
    )


def set_target_states(tx: Transaction, node: int, stopped: dict[int, bool]) -> bool:
    """Set the states of a node's own targets; return whether one changed."""
    changed = []
    for target, state in tx.rows("SELECT target, state FROM targets WHERE node = ?", (node,)):
        if target in stopped:
            wanted = TargetState.OFFLINE if stopped[target] else TargetState.SERVING
            if wanted != state:
                changed.append((int(wanted), target))
    tx.run_each("UPDATE targets SET state = ? WHERE target = ?", changed)
    if changed:
        grow_version(tx)
    return bool(changed)
