"""Planted bugs of a simulated cluster: one wrong decision each, put in place for one run.

Nothing of this is in the product: each entry of `BUGS` says which attribute of a class or module is
replaced by what while `planted` lasts, and has a recorded seed, which must find it and must pass
without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from ffs.errors import OK
from ffs.server.meta import service
from ffs.server.meta.cluster import evaluate, states
from ffs.server.meta.cluster.lease import LeaseRow, ManagerLease
from ffs.server.meta.cluster.view import View
from ffs.server.meta.idempotency import MutationKey, Recorded, SqlLedger
from ffs.server.meta.ops import storage as storage_ops
from ffs.server.meta.schema import BlobState
from ffs.server.meta.store import Transaction
from ffs.server.storage.chain import ChainLogic, Forward, Operation, Persist, Write
from ffs.server.storage.resync import Outcome, ResyncPlan, Wanted
from ffs.server.storage.revival import Revival
from ffs.types import Routing
from ffs.wire.messages import WriteSession
from tests.sim.cluster.client import Client
from tests.sim.cluster.disks import Key, Pending, Store
from tests.sim.cluster.storage import StorageNode


class _AckBeforeSync(ChainLogic):
    """Counts the local leg as ended when it begins."""

    def _start(self, write: Write) -> list[Operation]:
        operations = super()._start(write)
        if Persist(write.write_id) in operations:
            operations += super().persisted(write.write_id, OK)
        return operations

    def persisted(self, write_id: int, status: int) -> list[Operation]:
        return []


class _AckBeforeTail(ChainLogic):
    """Counts the forward as ended when it begins."""

    def _start(self, write: Write) -> list[Operation]:
        operations = super()._start(write)
        if any(isinstance(one, Forward) for one in operations):
            operations += super().forwarded(write.write_id, OK)
        return operations

    def forwarded(self, write_id: int, status: int) -> list[Operation]:
        return []


class _StaleVersionTaken(ChainLogic):
    """Takes writes that were planned with another version of the chain."""

    def _is_current(self, write: Write) -> bool:
        place = self._places.get(write.target)
        return place is not None and place.chain == write.chain


class _OldRoutingApplied(ChainLogic):
    """Takes any routing that comes."""

    def routing_changed(self, routing: Routing) -> list[Operation]:
        if self._routing is not None:
            self._routing = replace(self._routing, version=-1)
        return super().routing_changed(routing)


class _Forgetful(SqlLedger):
    """Applies every copy of a mutation."""

    def claim(self, key: MutationKey, now_ns: int) -> Recorded | None:
        return None

    def record(self, key: MutationKey, result: bytes) -> None:
        return None


def _serve_pending(store: Store, key: Key) -> tuple[int, bytes]:
    """Answer with what is not on the disk yet."""
    for one in store.pending.values():
        if one.key == key:
            return OK, one.data
    return _SERVE(store, key)


_SERVE = Store.serve


def _retry_sync(store: Store, group: dict[int, Pending]) -> list[tuple[int, int]]:
    """Sync again: the kernel has forgotten what was dirty and says that all is well."""
    store.disk.fails_next_sync = False
    store.keep_some(group)
    return [(write_id, OK) for write_id in group]


async def _delete_at_source(
    node: StorageNode, plan: ResyncPlan, store: Store, source: int, wanted: Wanted
) -> bool:
    """Make both sides equal the wrong way round."""
    for disk in node.ledger.disks:
        if disk.target == source and wanted.entry.key in disk.chunks:
            disk.forget(wanted.entry.key)
    plan.ended(source, wanted, Outcome.GONE)
    return True


_SCHEDULE_DROPS = storage_ops.schedule_drops


def _drop_sessions_too(tx: Transaction, dead_before_ns: int, limit: int) -> int:
    """Take what is being written for dead."""
    tx.run(
        f"UPDATE blobs SET state = {BlobState.DEAD:d}, changed_ns = 0"
        f" WHERE state = {BlobState.WRITING:d}"
    )
    return _SCHEDULE_DROPS(tx, dead_before_ns, limit)


_SEND_CHUNKS = Client.send_chunks


async def _leave_last_chunk(client: Client, session: WriteSession, count: int) -> None:
    """Go on to close while chunks are still on their way."""
    client.loop.create_task(_SEND_CHUNKS(client, session, count))


def _holds_for_ever(mine: ManagerLease, row: LeaseRow) -> bool:
    """Go on as the manager, whoever has become it since."""
    return mine.term != 0


def _doubts_nothing(view: View, accepted: Set[int]) -> frozenset[int]:
    """Take what is left of a chain for all of it."""
    return frozenset()


def _waits_on(revival: Revival) -> None:
    """Leave a target in service whose disk does not answer."""


async def _awaits_gone(
    node: StorageNode, store: Store, target: int, source: int, version: int
) -> bool:
    """Lack what another one has left of blobs that are gone, until it looks for such."""
    keys = await node._missing_beside(store, source, version)
    for key in keys or ():
        await node._repair(target, key)
    return keys == []


async def _says_no(node: StorageNode, blob: int) -> bool:
    """Bring back what others have, though it is being dropped."""
    return False


_EVERYBODY_IS_LAST: Final = {
    **states.TABLE,
    (states.SERVING, states.Event.DEAD): states.Cell(None, states.LASTSRV, states.LASTSRV),
}
"""Whoever dies is a last server, though others serve on and take writes without him."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """Have `owner.name` be `value`."""

    owner: Any
    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class Bug:
    """A wrong decision, where it is put, and the faults that bring it to light."""

    replacements: Sequence[Replacement]
    seed: int = 0
    """One that finds it."""
    faults: Sequence[str] = ()
    """The kinds to choose from; empty: all."""
    operated: bool = False
    """Whether an operator has to drain nodes meanwhile."""


def _in_logic(wrong: type[ChainLogic]) -> list[Replacement]:
    return [Replacement(StorageNode, "logic_class", wrong)]


BUGS: Final[dict[str, Bug]] = {
    "ack_before_fsync": Bug(_in_logic(_AckBeforeSync)),
    "ack_before_tail": Bug(_in_logic(_AckBeforeTail)),
    "stale_version_taken": Bug(_in_logic(_StaleVersionTaken), faults=("crash_node", "choke")),
    "retry_applied_twice": Bug([Replacement(service, "SqlLedger", _Forgetful)]),
    "pending_chunk_served": Bug([Replacement(Store, "serve", _serve_pending)]),
    "resync_deletes": Bug([Replacement(StorageNode, "_fetch", _delete_at_source)]),
    "two_managers": Bug([Replacement(ManagerLease, "holds", _holds_for_ever)], faults=("usurp",)),
    "two_lastsrv": Bug([Replacement(states, "TABLE", _EVERYBODY_IS_LAST)], faults=("crash_node",)),
    "fsync_retried": Bug([Replacement(Store, "sync_failed", _retry_sync)], faults=("sync_fails",)),
    "gc_of_live_session": Bug([Replacement(storage_ops, "schedule_drops", _drop_sessions_too)]),
    "routing_out_of_order": Bug(_in_logic(_OldRoutingApplied), faults=("stale_news",)),
    "late_write_after_close": Bug([Replacement(Client, "send_chunks", _leave_last_chunk)]),
    "doubt_ignored": Bug(
        [Replacement(evaluate, "doubtful_chains", _doubts_nothing)],
        seed=1,
        faults=("remnant",),
        operated=True,
    ),
    "dropped_chunk_restored": Bug([Replacement(StorageNode, "is_gone", _says_no)], seed=3),
    "gone_chunk_awaited": Bug(
        [Replacement(StorageNode, "_has_all_of", _awaits_gone)],
        seed=261,
        faults=("remnant", "freeze", "clog", "partition"),
    ),
    "hung_disk_serves": Bug(
        [Replacement(Revival, "_give_up", _waits_on)], seed=4, faults=("hang",)
    ),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Have the bug of this name; none for an empty name."""
    replaced: list[Callable[[], None]] = []
    try:
        for one in BUGS[name].replacements if name else ():
            before = one.owner.__dict__[one.name]
            replaced.append(lambda o=one, b=before: setattr(o.owner, o.name, b))  # type: ignore[misc]
            setattr(one.owner, one.name, one.value)
        yield
    finally:
        for undo in replaced:
            undo()
