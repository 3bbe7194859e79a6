"""A mutation happens once, however often its request arrives: pure, over any ledger.

Previous hop: `service`, inside the transaction of the mutation. Next hop: a `Ledger`: the mutations
table (`SqlLedger`), or a dictionary in the simulator. How it works:

1. The key (principal, mutation id) is claimed before anything else in the transaction. In a store
   with several writers a second claim waits there until the first transaction has ended.
2. A claim that succeeds runs the operation and records its encoded reply, in that transaction.
3. A claim that finds the key answers with the recorded reply and changes nothing.
4. An operation that raised for good has changed nothing, and is recorded as refused (`refuse_once`)
   before anybody is told so: a copy of it that is still on its way, or waits in another server,
   would else be applied after its client was told that it had failed, and went on. If a copy was
   applied meanwhile, its reply is the answer.

Invariants: whoever was answered finds a record, whatever the answer; only what may be tried again
(an error that is `retryable`, or a full disk) leaves none. An id that comes back with another
request is refused (`InvalidError`) and never applied. Records are kept `RETENTION_BUDGETS` times as
long as a client keeps retrying, so none goes while a retry can come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgpack

from ffs.errors import FFSError, InvalidError, error_from_wire
from ffs.server.meta.store import Transaction

MUTATION_BYTES: Final = 16
RETENTION_BUDGETS: Final = 10
_REFUSED: Final = b"\xc1"
"""Begins the record of a refusal: no msgpack value, so no recorded reply, begins with this byte."""


@dataclass(frozen=True, slots=True)
class MutationKey:
    """Who asked, which logical operation, and a hash of what was asked."""

    principal: bytes
    mutation: bytes
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the ledger has under a key."""

    request_hash: bytes
    result: bytes


class Ledger(Protocol):
    """Where claims and results are kept; part of the transaction that the mutation runs in."""

    def claim(self, key: MutationKey, now_ns: int) -> Recorded | None:
        """Enter the key, or return what is recorded under (principal, mutation)."""
        ...

    def record(self, key: MutationKey, result: bytes) -> None:
        """Keep the result of a claimed key."""
        ...


def apply_once(
    ledger: Ledger,
    key: MutationKey,
    now_ns: int,
    run: Callable[[], bytes],
) -> bytes:
    """Run the mutation unless it ran before; return its packed reply either way.

    Raises:  InvalidError: the id is malformed, or was used for another request; what `run` raises,
             or is recorded to have raised
    """
    if len(key.mutation) != MUTATION_BYTES:
        raise InvalidError(
            f"mutation id has {len(key.mutation)} bytes, it must have {MUTATION_BYTES}"
        )
    before = ledger.claim(key, now_ns)
    if before is None:
        reply = run()
        ledger.record(key, reply)
        return reply
    if before.request_hash != key.request_hash:
        raise InvalidError(
            "mutation id was used before for another request",
            hint="choose a new random id for every operation",
            mutation=key.mutation.hex(),
        )
    return reply_of(before.result)


def refuse_once(ledger: Ledger, key: MutationKey, now_ns: int, error: FFSError) -> bytes:
    """Record that a mutation failed for good, in a transaction of its own after the one that did.

    Returns: what is recorded now, for `reply_of`: the refusal, or the reply to a copy of the
             request that was applied meanwhile
    Raises:  `error` if it says that the id itself is wrong
    """
    if len(key.mutation) != MUTATION_BYTES:
        raise error
    before = ledger.claim(key, now_ns)
    if before is None:
        facts = {k: v for k, v in error.where.items() if isinstance(v, int | str | bytes)}
        refusal: bytes = msgpack.packb((error.code, error.message, error.hint, facts))
        ledger.record(key, _REFUSED + refusal)
        return _REFUSED + refusal
    if before.request_hash != key.request_hash:
        raise error
    return before.result


def reply_of(recorded: bytes) -> bytes:
    """Return the packed reply that is recorded; raises the error if the mutation was refused."""
    if recorded.startswith(_REFUSED):
        raise error_from_wire(*msgpack.unpackb(recorded[len(_REFUSED) :]))
    return recorded


def retention_ns(retry_budget_ns: int) -> int:
    """Return how long a record must be kept for clients that retry for `retry_budget_ns`."""
    return RETENTION_BUDGETS * retry_budget_ns


class SqlLedger:
    """The mutations table, seen from one transaction."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx

    def claim(self, key: MutationKey, now_ns: int) -> Recorded | None:
        """See `Ledger.claim`."""
        claimed = self._tx.run(
            "INSERT INTO mutations (principal, mutation, request_hash, recorded_ns)"
            " VALUES (?, ?, ?, ?) ON CONFLICT (principal, mutation) DO NOTHING",
            (key.principal, key.mutation, key.request_hash, now_ns),
        )
        if claimed:
            return None
        row = self._tx.row(
            "SELECT request_hash, result FROM mutations WHERE principal = ? AND mutation = ?",
            (key.principal, key.mutation),
        )
        assert row is not None and row[1] is not None, "a committed mutation has a result"
        return Recorded(*row)

    def record(self, key: MutationKey, result: bytes) -> None:
        """See `Ledger.record`."""
        self._tx.run(
            "UPDATE mutations SET result = ? WHERE principal = ? AND mutation = ?",
            (result, key.principal, key.mutation),
        )


def reap_records(tx: Transaction, before_ns: int) -> int:
    """Delete the records of mutations older than `before_ns`; return how many."""
    return tx.run("DELETE FROM mutations WHERE recorded_ns < ?", (before_ns,))
