"""The routing table: nodes, targets, chains, and the immutable tables of chains.

Previous hop: `storage` (changes) and `service` (what clients ask for). Next hop: SQL. The version
is the `routing` counter and grows in the transaction of every change. A new target makes a chain
of its own and a new table that holds all chains; a table that exists never changes, since layouts
refer to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ffs.errors import InvalidError
from ffs.limits import CHAINS_PER_TABLE_MAX
from ffs.server.meta.store import Transaction
from ffs.types import ChainInfo, NodeInfo, Routing, TableInfo, TargetInfo, TargetState

_SET_STATES: Final = """
WITH keys(target, state) AS (VALUES {keys})
UPDATE targets SET state = keys.state FROM keys WHERE targets.target = keys.target
"""


def routing_version(tx: Transaction) -> int:
    """Return the version of the routing as of now."""
    row = tx.row("SELECT value FROM counters WHERE name = 'routing'")
    assert row is not None
    return int(row[0])


def load_routing(tx: Transaction) -> Routing:
    """Return the whole routing table as of now.

    In a transaction that others overtake it may be newer than its version says, never older: the
    version is read first, and whoever has this version asks again.
    """
    return Routing(
        version=routing_version(tx),
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


def hold_routing(tx: Transaction) -> None:
    """Be the only one who changes the routing; called before it is read for that."""
    tx.lock("routing")


def grow_version(tx: Transaction) -> None:
    """Note that the routing changed."""
    tx.allocate("routing", 1)


def add_chains(tx: Transaction, targets: Iterable[int]) -> None:
    """Give each new target a chain of its own, and the cluster a table with all chains.

    Raises:  InvalidError beyond the chains that a table may have
    """
    targets = list(targets)
    chains = tx.allocate("chain", len(targets))
    tx.insert("chains", ("chain", "version"), [(chain, 1) for chain in chains])
    tx.insert(
        "chain_targets",
        ("chain", "place", "target"),
        [(chain, 0, target) for chain, target in zip(chains, targets, strict=True)],
    )
    (table,) = tx.allocate("chain_table", 1)
    every = tx.rows("SELECT chain FROM chains ORDER BY chain")
    if len(every) > CHAINS_PER_TABLE_MAX:
        raise InvalidError(
            f"{len(every)} chains, a table has at most {CHAINS_PER_TABLE_MAX}",
            hint="give fewer targets to this cluster",
        )
    tx.insert(
        "table_chains",
        ("chain_table", "place", "chain"),
        [(table, place, chain) for place, (chain,) in enumerate(every)],
    )


def set_target_states(tx: Transaction, node: int, stopped: dict[int, bool]) -> bool:
    """Set the states of a node's own targets; return whether one changed."""
    hold_routing(tx)
    changed = []
    for target, state in tx.rows("SELECT target, state FROM targets WHERE node = ?", (node,)):
        if target in stopped:
            wanted = TargetState.OFFLINE if stopped[target] else TargetState.SERVING
            if wanted != state:
                changed.append((target, int(wanted)))
    tx.run_for(_SET_STATES, sorted(changed))
    if changed:
        grow_version(tx)
    return bool(changed)
