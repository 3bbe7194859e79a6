"""The routing table: nodes, targets, chains, and the immutable tables of chains.

Previous hop: `storage` and `chains` (changes) and `service` (what clients ask for). Next hop: SQL.
The version is the `routing` counter and grows in the transaction of every change. New chains come
with a new table; a table that exists never changes, since layouts refer to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from ffs.errors import InvalidError
from ffs.limits import CHAINS_PER_TABLE_MAX
from ffs.server.meta.store import Transaction
from ffs.types import ChainInfo, NodeInfo, Routing, TableInfo, TargetInfo, TargetState

_MIN_REPLICAS: Final = "min_replicas"
_HOLD_TARGETS: Final = """
WITH keys(target) AS (VALUES {keys})
SELECT t.target FROM keys CROSS JOIN targets t WHERE t.target = keys.target
ORDER BY t.target FOR UPDATE OF t
"""
_JOIN: Final = f"""
WITH keys(target) AS (VALUES {{keys}})
UPDATE targets SET state = {TargetState.SERVING:d}, since = 1
WHERE target IN (SELECT target FROM keys)
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
            for t in tx.rows("SELECT target, node, state, since FROM targets ORDER BY target")
        ],
        chains=_load_chains(tx),
        tables=_load_tables(tx),
        min_replicas=_min_replicas(tx),
    )


def _min_replicas(tx: Transaction) -> int:
    row = tx.row("SELECT value FROM settings WHERE name = ?", (_MIN_REPLICAS,))
    return 1 if row is None else int(bytes(row[0]))


def set_min_replicas(tx: Transaction, wanted: int) -> None:
    """Let all servers and daemons know how many members of a chain must serve for writes."""
    hold_routing(tx)
    if _min_replicas(tx) != wanted:
        tx.insert(
            "settings",
            ("name", "value"),
            [(_MIN_REPLICAS, str(wanted).encode("ascii"))],
            conflict="(name) DO UPDATE SET value = excluded.value",
        )
        grow_version(tx)


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


def hold_targets(tx: Transaction, targets: Iterable[int]) -> None:
    """Hold rows of targets in order: daemons' reports and the manager's changes meet there."""
    if tx.shared:
        tx.rows_for(_HOLD_TARGETS, sorted((target,) for target in targets))


def grow_version(tx: Transaction) -> None:
    """Note that the routing changed."""
    tx.allocate("routing", 1)


def add_chains(tx: Transaction, chains: Sequence[Sequence[int]]) -> None:
    """Make chains of targets that belong to none, all of which serve, and a table with them.

    Args:    chains: the members of each, in order
    Raises:  InvalidError beyond the chains that a table may have
    """
    ids = tx.allocate("chain", len(chains))
    tx.insert("chains", ("chain", "version"), [(chain, 1) for chain in ids])
    tx.insert(
        "chain_targets",
        ("chain", "place", "target", "home"),
        [
            (chain, place, target, place)
            for chain, targets in zip(ids, chains, strict=True)
            for place, target in enumerate(targets)
        ],
    )
    members = sorted(target for chain in chains for target in chain)
    hold_targets(tx, members)
    tx.run_for(_JOIN, [(target,) for target in members])
    add_table(tx)


def add_table(tx: Transaction) -> None:
    """Let new files lie on all chains that are not crowded, by a new table if it takes one."""
    every = [chain for (chain,) in tx.rows("SELECT chain FROM chains ORDER BY chain")]
    if len(every) > CHAINS_PER_TABLE_MAX:
        raise InvalidError(
            f"{len(every)} chains, a table has at most {CHAINS_PER_TABLE_MAX}",
            hint="give fewer targets to this cluster",
        )
    free = [
        chain for (chain,) in tx.rows("SELECT chain FROM chains WHERE crowded = 0 ORDER BY chain")
    ] or every  # new files are refused, see `create`
    newest = tx.rows(
        "SELECT chain FROM table_chains WHERE chain_table ="
        " (SELECT max(chain_table) FROM table_chains) ORDER BY place"
    )
    if free == [chain for (chain,) in newest]:
        return
    (table,) = tx.allocate("chain_table", 1)
    tx.insert(
        "table_chains",
        ("chain_table", "place", "chain"),
        [(table, place, chain) for place, chain in enumerate(free)],
    )
