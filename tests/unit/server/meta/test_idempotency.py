"""Mutations happen once: the ledger in SQL, and the service in front of real operations."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ffs.config import MetaConfig
from ffs.errors import ExistsError, InvalidError, NotFoundError
from ffs.rpc.codec import LENGTH, decode_reply, encode_reply, pack_reply, parse_reply
from ffs.seams import SystemClock, SystemRandomness
from ffs.server.meta.idempotency import (
    MutationKey,
    SqlLedger,
    apply_once,
    reap_records,
    refuse_once,
    reply_of,
)
from ffs.server.meta.manager import Chore
from ffs.server.meta.ops import sessions, storage
from ffs.server.meta.service import MetaService, request_hash
from ffs.server.meta.sqlite import SqliteStore
from ffs.wire import messages as wire
from ffs.wire.membership import (
    HEARTBEAT,
    REGISTER,
    DataLoopCounters,
    HeartbeatRequest,
    RegisterRequest,
    TargetReport,
)
from ffs.wire.method import Empty, Method
from ffs.wire.status import STATUS, StatusRequest
from tests.namespace import ME, Namespace, call, good

T = TypeVar("T")

ID = b"m" * 16


def key(mutation: bytes = ID, request: bytes = b"r" * 16, principal: bytes = b"p") -> MutationKey:
    """A key that differs where it is told to."""
    return MutationKey(principal, mutation, request)


def once(ns: Namespace, at: MutationKey, run: Callable[[], bytes], now_ns: int = 5) -> bytes:
    """Apply a mutation whose reply is bytes."""
    return ns.transact(lambda tx: apply_once(SqlLedger(tx), at, now_ns, run))


def test_a_duplicate_gets_the_recorded_reply(ns: Namespace) -> None:
    ran: list[int] = []

    def run() -> bytes:
        ran.append(1)
        return b"reply-%d" % len(ran)

    assert once(ns, key(), run) == once(ns, key(), run) == b"reply-1"
    assert len(ran) == 1
    assert once(ns, key(mutation=b"n" * 16), run) == b"reply-2"
    assert once(ns, key(principal=b"q"), run) == b"reply-3"


def test_an_id_with_another_request_is_refused(ns: Namespace) -> None:
    once(ns, key(), lambda: b"done")
    with pytest.raises(InvalidError, match="another request"):
        once(ns, key(request=b"s" * 16), lambda: pytest.fail("must not run"))


def test_a_failed_mutation_leaves_no_record(ns: Namespace) -> None:
    def fail() -> bytes:
        raise NotFoundError("not there")

    with pytest.raises(NotFoundError):
        once(ns, key(), fail)
    assert ns.tx.rows("SELECT * FROM mutations") == []
    assert once(ns, key(), lambda: b"now it works") == b"now it works"


def refuse(ns: Namespace, at: MutationKey) -> bytes:
    """Record that a mutation failed."""
    error = NotFoundError("not there", hint="look elsewhere", path=b"/x", odd=object())
    return ns.transact(lambda tx: refuse_once(SqlLedger(tx), at, 5, error))


def test_a_copy_of_a_refused_mutation_is_refused_too(ns: Namespace) -> None:
    with pytest.raises(NotFoundError) as first:
        reply_of(refuse(ns, key()))
    with pytest.raises(NotFoundError) as second:
        once(ns, key(), lambda: pytest.fail("must not run"))
    assert str(first.value) == str(second.value)
    assert first.value.where == {"path": b"/x"}


def test_what_was_applied_meanwhile_is_not_refused(ns: Namespace) -> None:
    once(ns, key(), lambda: b"done")
    assert reply_of(refuse(ns, key())) == b"done"


def test_a_wrong_id_is_not_recorded(ns: Namespace) -> None:
    once(ns, key(), lambda: b"done")
    for wrong in (key(mutation=b"short"), key(request=b"s" * 16)):
        with pytest.raises(NotFoundError):
            refuse(ns, wrong)
    assert len(ns.tx.rows("SELECT * FROM mutations")) == 1


@pytest.mark.parametrize("mutation", [b"", b"short", b"x" * 17])
def test_ids_have_sixteen_bytes(ns: Namespace, mutation: bytes) -> None:
    with pytest.raises(InvalidError):
        once(ns, key(mutation=mutation), lambda: b"")


def test_old_records_are_reaped(ns: Namespace) -> None:
    once(ns, key(), lambda: b"old", now_ns=10)
    once(ns, key(mutation=b"n" * 16), lambda: b"new", now_ns=20)
    assert ns.transact(lambda tx: reap_records(tx, 20)) == 1
    assert ns.tx.rows("SELECT recorded_ns FROM mutations") == [(20,)]


def test_requests_hash_by_what_they_say() -> None:
    request = wire.MkdirRequest(ID, b"/d")
    assert request_hash(wire.MKDIR, request) == request_hash(
        wire.MKDIR, wire.MkdirRequest(ID, b"/d")
    )
    assert request_hash(wire.MKDIR, request) != request_hash(
        wire.MKDIR, wire.MkdirRequest(ID, b"/d", mode=0o700)
    )


def test_recorded_replies_come_back_equal(ns: Namespace) -> None:
    ns.write(b"/f")
    reply = wire.CreateManyReply(ns.create(b"/x", b"/none/y"))
    removed = wire.RemoveManyReply(ns.remove(b"/f", b"/none"))
    for method, sent in (
        (wire.CREATE_MANY, reply),
        (wire.RENAME, Empty()),
        (wire.REMOVE_MANY, removed),
    ):
        packed = pack_reply(method, sent)
        frame = decode_reply(encode_reply(7, method, packed)[LENGTH.size :])
        assert (frame.request_id, parse_reply(method, frame)) == (7, sent)
        assert encode_reply(7, method, packed) == encode_reply(7, method, sent)


# --- through the service --------------------------------------------------------------------------


def serve(tmp_path: Path, scenario: Callable[[MetaService, SqliteStore], Awaitable[T]]) -> T:
    """Run a scenario against a service over a real store, in this process."""

    async def run() -> T:
        store = SqliteStore(tmp_path)
        service = MetaService(
            store,
            MetaConfig(),
            clock=SystemClock(),
            randomness=SystemRandomness(),
            retry_budget_ns=1,
        )
        await service.start()
        report = TargetReport("disk", 0, 1, 0, 0, False)
        register = RegisterRequest(0, b"", 1, "h", 1, [report])
        await call(service, REGISTER, register)
        try:
            return await scenario(service, store)
        finally:
            await service.stop()
            await store.close()

    return asyncio.run(run())


def test_a_broken_chore_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reaped = threading.Event()

    def broken(*_: object) -> int:
        raise KeyError("no such table")

    def reap(*_: object) -> int:
        reaped.set()
        return 0

    monkeypatch.setattr(storage, "schedule_drops", broken)

    async def scenario(service: MetaService, store: SqliteStore) -> None:
        now_ns = SystemClock().monotonic_ns()
        service._manager.again(Chore.SCHEDULE_DROPS, now_ns)
        await asyncio.sleep(1.2)
        monkeypatch.setattr(sessions, "reap", reap)
        service._manager.again(Chore.REAP_SESSIONS, now_ns)
        assert await asyncio.to_thread(reaped.wait, 5)

    serve(tmp_path, scenario)


def test_a_retried_create_gives_the_same_sessions(tmp_path: Path) -> None:
    async def scenario(service: MetaService, store: SqliteStore) -> None:
        request = wire.CreateManyRequest(ID, ME, [wire.CreateEntry(b"/f")])
        first = await call(service, wire.CREATE_MANY, request)
        assert await call(service, wire.CREATE_MANY, request) == first
        entries = [wire.CloseEntry(good(first.sessions[0]).session, 3)]
        close = wire.CloseManyRequest(b"c" * 16, ME, entries)
        closed = await call(service, wire.CLOSE_MANY, close)
        assert await call(service, wire.CLOSE_MANY, close) == closed
        with pytest.raises(InvalidError):
            await call(service, wire.RMDIR, wire.RmdirRequest(ID, b"/f"))

    serve(tmp_path, scenario)


def test_a_late_copy_of_a_failed_mutation_changes_nothing(tmp_path: Path) -> None:
    async def scenario(service: MetaService, store: SqliteStore) -> None:
        rename = wire.RenameRequest(ID, b"/a", b"/b")
        with pytest.raises(NotFoundError):
            await call(service, wire.RENAME, rename)
        await call(service, wire.MKDIR, wire.MkdirRequest(b"n" * 16, b"/a"))
        with pytest.raises(NotFoundError):
            await call(service, wire.RENAME, rename)
        await call(service, wire.RENAME, wire.RenameRequest(b"o" * 16, b"/a", b"/b"))

    serve(tmp_path, scenario)


def test_duplicates_in_flight_together_run_once(tmp_path: Path) -> None:
    async def scenario(service: MetaService, store: SqliteStore) -> None:
        request = wire.MkdirRequest(ID, b"/d")
        replies = await asyncio.gather(*(call(service, wire.MKDIR, request) for _ in range(20)))
        assert all(reply == replies[0] for reply in replies)
        with pytest.raises(ExistsError):
            await call(service, wire.MKDIR, wire.MkdirRequest(b"n" * 16, b"/d"))

    serve(tmp_path, scenario)


def test_a_retry_after_a_restart_gets_the_recorded_reply(tmp_path: Path) -> None:
    request = wire.CreateManyRequest(ID, ME, [wire.CreateEntry(b"/f"), wire.CreateEntry(b"/n/x")])
    first = serve(tmp_path, lambda service, _: call(service, wire.CREATE_MANY, request))
    assert serve(tmp_path, lambda service, _: call(service, wire.CREATE_MANY, request)) == first


MUTATIONS: list[tuple[Method[Any, Any], Callable[[bytes], object]]] = [
    (wire.MKDIR, lambda id_: wire.MkdirRequest(id_, b"/d/e", parents=True)),
    (wire.CREATE_MANY, lambda id_: wire.CreateManyRequest(id_, ME, [wire.CreateEntry(b"/d/f")])),
    (wire.CLOSE_MANY, lambda id_: wire.CloseManyRequest(id_, ME, [wire.CloseEntry(1, 10)])),
    (wire.COPY, lambda id_: wire.CopyRequest(id_, b"/d/f", b"/copy")),
    (wire.LINK, lambda id_: wire.LinkRequest(id_, b"/d/f", b"/link")),
    (wire.SYMLINK, lambda id_: wire.SymlinkRequest(id_, b"/symlink", b"d/f")),
    (wire.SETATTR, lambda id_: wire.SetattrRequest(id_, b"/symlink", size=20)),
    (wire.SET_LAYOUT, lambda id_: wire.SetLayoutRequest(id_, b"/d", stripe=1)),
    (wire.SET_QUOTA, lambda id_: wire.SetQuotaRequest(id_, b"/", 1 << 30)),
    (wire.PIN, lambda id_: wire.PinRequest(id_, b"/d", "job")),
    (
        wire.CREATE_MANY,
        lambda id_: wire.CreateManyRequest(
            id_, ME, [wire.CreateEntry(b"/link", wire.CreateMode.APPEND)] * 2
        ),
    ),
    (wire.CLOSE_MANY, lambda id_: wire.CloseManyRequest(id_, ME, [wire.CloseEntry(2, 5)])),
    (wire.ABORT_MANY, lambda id_: wire.AbortManyRequest(id_, ME, [3])),
    (wire.RENAME, lambda id_: wire.RenameRequest(id_, b"/copy", b"/moved")),
    (wire.REMOVE_MANY, lambda id_: wire.RemoveManyRequest(id_, [b"/link", b"/none"])),
    (wire.RMDIR, lambda id_: wire.RmdirRequest(id_, b"/d", recursive=True)),
    (wire.UNPIN, lambda id_: wire.UnpinRequest(id_, 1)),
]
"""Every mutation, in an order in which each succeeds and could not be applied twice unseen."""
STATE = (
    *("inodes", "dentries", "blobs", "segments", "symlinks", "layouts", "pins", "pin_blobs"),
    *("sessions", "counters", "quotas"),
)


def test_every_mutation_is_applied_once(tmp_path: Path) -> None:
    declared = [m for m in vars(wire).values() if isinstance(m, Method) and m.mutation]
    assert {method.name for method in declared} == {method.name for method, _ in MUTATIONS}

    async def state(store: SqliteStore) -> list[Any]:
        return await store.read(
            lambda tx: [sorted(tx.rows(f"SELECT * FROM {table}")) for table in STATE]
        )

    async def scenario(service: MetaService, store: SqliteStore) -> None:
        for number, (method, make) in enumerate(MUTATIONS):
            request = make(b"%016d" % number)
            before = await state(store)
            first = await call(service, method, request)
            after = await state(store)
            assert after != before, method.name
            assert await call(service, method, request) == first
            assert await state(store) == after, method.name

    serve(tmp_path, scenario)


def test_batches_beyond_the_bound_are_refused(tmp_path: Path) -> None:
    async def scenario(service: MetaService, store: SqliteStore) -> None:
        for method, request in (
            (wire.STAT_MANY, wire.StatManyRequest([b"/"] * 16_385)),
            (wire.REMOVE_MANY, wire.RemoveManyRequest(ID, [b"/x"] * 16_385)),
        ):
            with pytest.raises(InvalidError, match="limit"):
                await call(service, method, request)

    serve(tmp_path, scenario)


def test_status_and_routing_agree(tmp_path: Path) -> None:
    async def scenario(service: MetaService, store: SqliteStore) -> None:
        await service.serves_at("host", 5)
        status = await call(service, STATUS, StatusRequest())
        cluster = await call(service, wire.ROUTING, wire.RoutingRequest())
        assert status.cluster_id == cluster.cluster_id
        assert status.routing == cluster.routing
        assert [(n.role, n.state, n.address) for n in status.nodes] == [
            ("meta", "up", "host:5"),
            ("storage", "up", "h:1"),
        ]
        assert (status.inodes, status.blobs, status.sessions) == (1, 0, 0)
        assert cluster.default_layout.table == 1
        assert cluster.default_layout.stripe == 1

    serve(tmp_path, scenario)


def test_status_tells_what_the_last_heartbeat_counted(tmp_path: Path) -> None:
    async def scenario(service: MetaService, store: SqliteStore) -> None:
        reports = [TargetReport("disk", 1, 1, 0, 0, False)]
        for ranges in (0, 7):
            counters = DataLoopCounters(1 + ranges, ranges_total=ranges)
            beat = HeartbeatRequest(1, reports, [], 0, counters=counters)
            await call(service, HEARTBEAT, beat)
            status = await call(service, STATUS, StatusRequest())
            assert [node.counters for node in status.nodes] == [None, counters]

    serve(tmp_path, scenario)


def test_heartbeats_carry_drops_until_confirmed(tmp_path: Path) -> None:
    async def scenario(service: MetaService, store: SqliteStore) -> None:
        create = wire.CreateManyRequest(ID, ME, [wire.CreateEntry(b"/f")])
        session = good((await call(service, wire.CREATE_MANY, create)).sessions[0])
        await call(
            service, wire.ABORT_MANY, wire.AbortManyRequest(b"a" * 16, ME, [session.session])
        )
        await store.write(lambda tx: tx.run("UPDATE blobs SET changed_ns = 1"))
        beat = HeartbeatRequest(1, [TargetReport("disk", 1, 1, 0, 0, False)], [], 0)
        reply = await call(service, HEARTBEAT, beat)
        assert reply.routing is not None
        version = reply.routing.version
        while not reply.drops:
            await asyncio.sleep(0.1)
            reply = await call(service, HEARTBEAT, beat)
        assert reply.drops == [session.blob]
        done = HeartbeatRequest(1, beat.targets, [session.blob], version)
        reply = await call(service, HEARTBEAT, done)
        assert (reply.drops, reply.routing) == ([], None)
        status = await call(service, STATUS, StatusRequest())
        assert (status.blobs, status.dead_blobs) == (0, 0)

    serve(tmp_path, scenario)
