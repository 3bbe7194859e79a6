"""What storage daemons ask: register, confirm drops, and which blobs are unknown.

Previous hop: `service`, with what `manager` decided. Next hop: `routing` and the blobs. Invariants:
a daemon of another cluster is refused before anything changes; a registration that is sent twice
by one process gives the same ids; a blob's row outlives the last target that may hold a chunk of
it. A daemon that restarts without its node id is known again by its targets; a node whose targets
have all moved to others is forgotten; the targets of one that an operator had removed are emptied
when they come back. Here it is only noted what daemons say of their targets; what
that means for chains is the cluster manager's to decide (`cluster/`), but for new targets of a
cluster without replicas, each of which becomes a chain of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ffs.errors import FormatError, InvalidError, NotFoundError
from ffs.layout import chunk_count, stripe_places
from ffs.rpc.schema import codec_of
from ffs.server.meta.ops.routing import (
    add_chains,
    grow_version,
    hold_routing,
    hold_targets,
    load_routing,
)
from ffs.server.meta.schema import BlobState
from ffs.server.meta.store import Row, Transaction
from ffs.types import TargetState
from ffs.wire.membership import (
    DataLoopCounters,
    HeartbeatRequest,
    RegisterReply,
    RegisterRequest,
    TargetHealth,
    TargetReport,
    UnknownBlobsReply,
    UnknownBlobsRequest,
)

Drop = tuple[int, int]
"""(target, blob)."""

_BLOBS: Final = """
WITH keys(blob) AS (VALUES {keys})
SELECT b.blob, b.state, b.length, b.chunk_size_bytes
FROM keys CROSS JOIN blobs b WHERE b.blob = keys.blob
"""

_TARGETS_OF: Final = "SELECT target FROM targets WHERE node = ?"
_NOTE_TARGETS: Final = """
WITH keys(target, capacity, used, chunks, disk, stopped, synced, damaged, health, stored, holds,
        lacking, compared)
    AS (VALUES {keys})
UPDATE targets SET capacity_bytes = keys.capacity, used_bytes = keys.used, chunks = keys.chunks,
    disk = keys.disk, stopped = keys.stopped, synced = keys.synced, damaged = keys.damaged,
    health = keys.health, stored_bytes = keys.stored, holds = keys.holds, lacking = keys.lacking,
    compared = keys.compared
FROM keys WHERE targets.target = keys.target AND targets.node = ?
"""
_STATES_IN_CHAINS: Final = """
WITH keys(target) AS (VALUES {keys})
SELECT t.state FROM keys CROSS JOIN targets t JOIN chain_targets c ON c.target = t.target
WHERE t.target = keys.target
"""
_AWAITING_DROP: Final = """
WITH keys(target) AS (VALUES {keys})
SELECT d.blob FROM drops d WHERE d.target IN (SELECT target FROM keys) LIMIT ?
"""
COPIED_DROPS_MAX: Final = 16_384
_SET_DROPPING: Final = f"""
WITH keys(blob) AS (VALUES {{keys}})
UPDATE blobs SET state = {BlobState.DROPPING:d} WHERE blob IN (SELECT blob FROM keys)
"""
_SET_CHANGED: Final = """
WITH keys(blob, changed_ns) AS (VALUES {keys})
UPDATE blobs SET changed_ns = keys.changed_ns FROM keys WHERE blobs.blob = keys.blob
"""
_HOLD_BLOBS: Final = """
WITH keys(blob) AS (VALUES {keys})
SELECT b.blob FROM blobs b WHERE b.blob IN (SELECT blob FROM keys)
ORDER BY b.blob FOR UPDATE OF b
"""
_DELETE_DROPS: Final = """
WITH keys(blob) AS (VALUES {keys})
DELETE FROM drops WHERE blob IN (SELECT blob FROM keys) AND target + 0 = ?
"""
"""By the blobs, of which each has a few rows; a target may have millions, and no index of it is
used for a sum."""
_STILL_DROPPING: Final = """
WITH keys(blob) AS (VALUES {keys})
SELECT blob FROM drops WHERE blob IN (SELECT blob FROM keys) ORDER BY blob FOR KEY SHARE OF drops
"""
"""Held, though their blobs are: for a mere look an index that has all columns may be read whole."""
_DELETE_DROPPED: Final = f"""
WITH keys(blob) AS (VALUES {{keys}})
DELETE FROM blobs WHERE blob IN (SELECT blob FROM keys) AND state = {BlobState.DROPPING:d}
"""


def register(
    tx: Transaction,
    request: RegisterRequest,
    *,
    cluster_id: bytes,
    heartbeat_ms: int,
    now_ns: int,
    replicas: int = 1,
) -> RegisterReply:
    """Take a daemon in, or back, and tell it its ids. See `RegisterRequest`.

    Args:    replicas: of new files; with one, each new target is a chain
    """
    _check_identity(request, cluster_id)
    hold_routing(tx)
    node, changed = _enter_node(tx, request)
    targets, moved, new = _enter_targets(tx, node, request.targets)
    if new and replicas == 1:
        add_chains(tx, [[target] for target in new])
    emptied = tx.run(
        "DELETE FROM nodes WHERE node <> ? AND NOT EXISTS"
        " (SELECT 1 FROM targets WHERE targets.node = nodes.node)",
        (node,),
    )
    if changed or moved or new or emptied:
        grow_version(tx)
    named = [
        replace(report, target=target)
        for target, report in zip(targets, request.targets, strict=True)
    ]
    # What the daemon does not name any more is not there.
    hold_targets(tx, (target for (target,) in tx.rows(_TARGETS_OF, (node,))))
    tx.run("UPDATE targets SET stopped = 1 WHERE node = ? AND beside = 0", (node,))
    _note_targets(tx, node, named)
    if tx.shared:
        _note_node(tx, node, None, now_ns)
    return RegisterReply(node, cluster_id, targets, load_routing(tx), heartbeat_ms)


def hear(tx: Transaction, request: HeartbeatRequest, *, now_ns: int) -> None:
    """Write down what a heartbeat says, in a shared database; confirm drops in any.

    What it confirms is dropped from every target that it reports as working: a daemon confirms what
    all targets have done that worked then, and those that stopped never work again while it runs.
    So it does not matter which server handed a drop out, or when.

    A registration or a heartbeat may be written late, by a server that stood still meanwhile; the
    next one corrects it.

    Raises:  NotFoundError: the daemon must register, first or again
    """
    if tx.shared:
        _check_registered(tx, request)
        _note_node(tx, request.node, request.counters, now_ns)
        _note_targets(tx, request.node, request.targets)
    working = [report.target for report in request.targets if not report.stopped]
    if request.dropped and working and _all_serve(tx, working):
        confirm_drops(tx, working, request.dropped)


def _check_registered(tx: Transaction, request: HeartbeatRequest) -> None:
    row = tx.row("SELECT pid, port FROM nodes WHERE node = ?", (request.node,))
    if row is None or (request.pid and row != (request.pid, request.port)):
        raise NotFoundError(
            "no such storage node", hint="the daemon must register again", node=request.node
        )


def _note_node(tx: Transaction, node: int, counters: DataLoopCounters | None, now_ns: int) -> None:
    """Let all servers of a shared database know when a node was heard, and what it counted."""
    tx.run(
        "UPDATE nodes SET heard_ns = ?, counters = ? WHERE node = ?",
        (now_ns, _text_of(counters), node),
    )


def _note_targets(tx: Transaction, node: int, reports: Sequence[TargetReport]) -> None:
    """Write down what a daemon says of its targets."""
    hold_targets(tx, (report.target for report in reports))
    tx.run_for(
        _NOTE_TARGETS,
        sorted(
            (r.target, r.capacity_bytes, r.used_bytes, r.chunks, r.disk)
            + (int(r.stopped), r.synced, int(r.damaged), _text_of(r.health), r.stored_bytes)
            + (r.holds, int(lacks(r)), r.compared)
            for r in reports
        ),
        (node,),
    )


def lacks(report: TargetReport) -> bool:
    """Tell whether a target has chunks that no member which serves could give it whole."""
    return report.health is not None and report.health.unrepairable > 0


def _text_of(told: DataLoopCounters | TargetHealth | None) -> str:
    """Return the values in the order in which they travel; see `counters_of`, `health_of`."""
    return "" if told is None else json.dumps(codec_of(type(told)).encode(told))


def counters_of(text: str) -> DataLoopCounters | None:
    """Return what was written down of a node's counters, by this version or the one beside it."""
    return codec_of(DataLoopCounters).decode(json.loads(text)) if text else None


def health_of(text: str) -> TargetHealth | None:
    """Return what was written down of a target's health, by this version or the one beside it."""
    return codec_of(TargetHealth).decode(json.loads(text)) if text else None


def _check_identity(request: RegisterRequest, cluster_id: bytes) -> None:
    known = [report.target for report in request.targets if report.target]
    if request.cluster_id and request.cluster_id != cluster_id:
        raise FormatError(
            "storage daemon belongs to another cluster",
            hint="connect it to its own metadata server, or give it an empty target directory",
            cluster=request.cluster_id.hex(),
            expected=cluster_id.hex(),
        )
    if not request.cluster_id and (known or request.node):
        raise InvalidError("storage daemon has ids and names no cluster that gave them")
    if len(set(known)) != len(known) or any(target < 0 for target in known) or request.node < 0:
        raise InvalidError("storage daemon reports a target id twice, or a negative id")
    if len({report.label for report in request.targets}) != len(request.targets):
        raise InvalidError("storage daemon gives two targets the same label")


def _enter_node(tx: Transaction, request: RegisterRequest) -> tuple[int, bool]:
    """Return the daemon's node id, and whether routing changed."""
    address = (request.host, request.port)
    node = request.node or _same_node(tx, request) or tx.allocate("node", 1)[0]
    known = tx.row("SELECT host, port FROM nodes WHERE node = ?", (node,))
    tx.run(
        "INSERT INTO nodes (node, host, port, pid) VALUES (?, ?, ?, ?) ON CONFLICT (node)"
        " DO UPDATE SET host = excluded.host, port = excluded.port, pid = excluded.pid",
        (node, *address, request.pid),
    )
    tx.pass_id("node", node)
    return node, known != address


def _same_node(tx: Transaction, request: RegisterRequest) -> int:
    """Return which node a daemon that names none has been before, or 0."""
    # The answer to a first registration may have been lost: the same process asks again.
    again = tx.row(
        "SELECT node FROM nodes WHERE host = ? AND port = ? AND pid = ?",
        (request.host, request.port, request.pid),
    )
    if again:
        return int(again[0])
    # A restarted daemon brings every target that its node had, or may do so yet.
    reported = {report.target for report in request.targets if report.target}
    known = tx.rows("SELECT target, node, label FROM targets WHERE beside = 0")
    homes = {target: node for target, node, _ in known}
    missing = {
        node
        for target, node, label in known
        if target not in reported and not _lies_in(label, request.unanswered)
    }
    found = (homes[target] for target in sorted(reported & homes.keys()))
    return next((node for node in found if node not in missing), 0)


def _lies_in(label: str, directories: Sequence[str]) -> bool:
    """Tell whether a target's label says that it is in one of these directories, or below it."""
    return any(label == one or label.startswith((f"{one}/", f"{one}#")) for one in directories)


def _enter_targets(
    tx: Transaction, node: int, reports: Sequence[TargetReport]
) -> tuple[list[int], bool, list[int]]:
    """Return the ids of a daemon's targets in order, whether one moved here, and the new ones."""
    # A new target's label is its own for good (see `TargetReport`): it was given an id before, if
    # its daemon died before it had written the id down.
    labels: dict[str, int] = dict(tx.rows("SELECT label, target FROM targets"))
    homes: dict[int, int] = dict(tx.rows("SELECT target, node FROM targets"))
    removed = {target for (target,) in tx.rows("SELECT target FROM removed_targets")}
    back: list[int] = []
    ids: list[int] = []
    new: list[int] = []
    moved = False
    for report in reports:
        target = report.target or labels.get(report.label, 0) or tx.allocate("target", 1)[0]
        if target in ids:
            raise InvalidError(f"label {report.label!r} belongs to another of these targets")
        ids.append(target)
        if target not in homes:
            (back if target in removed else new).append(target)
        moved = moved or homes.get(target, node) != node
        tx.run(
            "INSERT INTO targets (target, node, state, label) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (target) DO UPDATE SET node = excluded.node, label = excluded.label,"
            " beside = 0",
            (target, node, int(TargetState.WAITING), report.label),
        )
        tx.pass_id("target", target)
    for target in back:
        tx.run("DELETE FROM removed_targets WHERE target = ?", (target,))
        tx.run("UPDATE targets SET retiring = 1, spare = 1 WHERE target = ?", (target,))
    return ids, moved or bool(back), new


# --- drops ------------------------------------------------------------------------------------


def schedule_drops(tx: Transaction, dead_before_ns: int, limit: int) -> int:
    """Write down which targets must drop blobs that have been dead since before a time.

    One server at a time. The blobs are held, so that none comes to life again meanwhile (`pin`);
    those that somebody else holds wait for the next time.
    Returns: how many blobs; `limit` of them means that more may wait
    """
    if not tx.try_lock("schedule_drops"):
        return 0
    blobs = tx.rows(
        "SELECT blob, chain_table, stripe, seed, length, chunk_size_bytes FROM blobs"
        f" WHERE state = {BlobState.DEAD:d} AND changed_ns <= ? ORDER BY changed_ns LIMIT ?"
        " FOR UPDATE SKIP LOCKED",
        (dead_before_ns, limit),
    )
    if not blobs:
        return 0
    holders = _Holders(tx)
    drops: set[Drop] = set()
    for blob, table, stripe, seed, length, chunk_size_bytes in blobs:
        chunks = chunk_count(length, chunk_size_bytes)
        drops.update((target, blob) for target in holders.of(table, stripe, seed, chunks))
    tx.run_for(_SET_DROPPING, sorted((row[0],) for row in blobs))
    tx.insert("drops", ("target", "blob"), sorted(drops))
    return len(blobs)


def die_now(tx: Transaction, now_ns: int, limit: int) -> int:
    """Let blobs that died later than now have died now: the clock was set back since.

    Why: they would be kept for as long as it was ahead. Returns: how many blobs
    """
    blobs = tx.rows(
        f"SELECT blob FROM blobs WHERE state = {BlobState.DEAD:d} AND changed_ns > ?"
        " ORDER BY changed_ns LIMIT ? FOR UPDATE SKIP LOCKED",
        (now_ns, limit),
    )
    tx.run_for(_SET_CHANGED, sorted((blob, now_ns) for (blob,) in blobs))
    return len(blobs)


class _Holders:
    """Which targets may hold chunks of a blob, from its layout and the chains' members."""

    def __init__(self, tx: Transaction) -> None:
        routing = load_routing(tx)
        self._tables = {table.table: table.chains for table in routing.tables}
        self._members = {chain.chain: chain.targets for chain in routing.chains}

    def of(self, table: int, stripe: int, seed: int, chunks: int) -> set[int]:
        """Return the targets. `chunks` 0: a write that was given up, of unknown length."""
        chains = self._tables[table]
        places = stripe_places(len(chains), stripe, seed)
        return {
            target
            for place in (places[:chunks] if chunks else places)
            for target in self._members[chains[place]]
        }


def pending_drops(tx: Transaction, targets: Sequence[int], limit: int) -> list[Drop]:
    """Return drops that wait for confirmation by one of these targets, all of one node.

    None while one of them does not serve its chain: it would drop what it then copies back from a
    member that has not dropped it yet. And a node confirms for all of its targets together.
    """
    if not _all_serve(tx, targets):
        return []
    drops: list[Drop] = []
    for target in targets:
        drops += tx.rows(
            "SELECT target, blob FROM drops WHERE target = ? ORDER BY blob LIMIT ?",
            (target, limit - len(drops)),
        )
    return drops


def _all_serve(tx: Transaction, targets: Sequence[int]) -> bool:
    """Tell whether those of the targets that belong to a chain serve there.

    Why: what one drops that syncs it may copy back from a member that has not dropped it yet.
    """
    rows = tx.rows_for(_STATES_IN_CHAINS, [(target,) for target in targets])
    return all(state == TargetState.SERVING for (state,) in rows)


def drop_once_synced(tx: Transaction, target: int, members: Sequence[int]) -> None:
    """Have a target that begins to sync drop what other members have still to drop: it may copy it
    from them, and was perhaps not asked to drop it, or has done so already.

    Of very many blobs some are left; the daemons' look for unknown blobs finds those.
    """
    sources = [(member,) for member in members if member != target]
    found = tx.rows_for(_AWAITING_DROP, sources, (COPIED_DROPS_MAX,)) if sources else []
    blobs = tx.rows_for(_HOLD_BLOBS, sorted(set(found))) if found else []
    rows = [(target, blob) for (blob,) in blobs]
    if rows:
        tx.insert("drops", ("target", "blob"), rows, conflict="DO NOTHING")


def confirm_drops(tx: Transaction, targets: Sequence[int], blobs: Sequence[int]) -> None:
    """Note that targets have dropped blobs; forget the blobs that no target holds any more."""
    keys = [(blob,) for blob in sorted(set(blobs))]
    # Held: of two targets that confirm at a time, the second must see what the first did.
    tx.rows_for(_HOLD_BLOBS, keys)
    for target in sorted(set(targets)):
        tx.run_for(_DELETE_DROPS, keys, (target,))
    waited = set(tx.rows_for(_STILL_DROPPING, keys))
    tx.run_for(_DELETE_DROPPED, [key for key in keys if key not in waited])


def unknown_blobs(tx: Transaction, request: UnknownBlobsRequest) -> UnknownBlobsReply:
    """Return which blobs are in no row: neither live, nor being written, nor awaiting their drop;
    and those that are being dropped, if that is asked.

    Blobs of which that cannot be said are kept; see `rows_of_blobs`.
    """
    rows, unjudged = rows_of_blobs(tx, request.blobs)
    kept = {
        blob
        for blob, (state, *_) in rows.items()
        if not (request.dropping and state == BlobState.DROPPING)
    }
    return UnknownBlobsReply([blob for blob in request.blobs if blob not in kept | unjudged])


def rows_of_blobs(tx: Transaction, blobs: Sequence[int]) -> tuple[dict[int, Row], set[int]]:
    """Return (state, length, chunk size) of blobs that are known, and the blobs not to be judged.

    Those are in no row, and yet nobody can say that they belong to nothing: their ids were given
    out after the backup that this database was restored from, or never by this database.
    """
    highest = tx.highest("blob")
    given_out = {blob for blob in blobs if 0 < blob <= highest}
    rows = tx.rows_for(_BLOBS, [(blob,) for blob in given_out])
    known = {blob: tuple(facts) for blob, *facts in rows}
    gaps = tx.rows("SELECT first, last FROM blob_gaps")
    restored = {blob for blob in given_out - known.keys() if any(a <= blob <= z for a, z in gaps)}
    return known, restored | (set(blobs) - given_out)
