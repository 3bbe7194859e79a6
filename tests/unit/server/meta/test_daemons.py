"""Storage daemons: registration, routing, liveness, drops, unknown blobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ffs.errors import FormatError, InvalidError, NotFoundError
from ffs.layout import stripe_places
from ffs.server.meta.manager import Chore, Manager, NodeState, disk_bytes
from ffs.server.meta.ops import orders, status, storage
from ffs.server.meta.ops.routing import load_routing
from ffs.server.meta.schema import BlobState
from ffs.types import Routing, TargetState
from ffs.wire.membership import (
    DataLoopCounters,
    HeartbeatRequest,
    NewTarget,
    RegisterReply,
    RegisterRequest,
    TargetHealth,
    TargetReport,
    UnknownBlobsRequest,
)
from tests.namespace import CLUSTER_ID, SECOND_NS, Namespace

HOUR_NS = 3_600 * SECOND_NS


def report(target: int, label: str = "", *, stopped: bool = False) -> TargetReport:
    """What a daemon says of one target."""
    return TargetReport(label or f"disk-{target}", target, 1 << 40, 5, 1, stopped)


def register(
    ns: Namespace,
    *targets: TargetReport,
    node: int = 0,
    cluster: bytes = CLUSTER_ID,
    pid: int = 1,
    port: int = 7000,
) -> RegisterReply:
    """Register a daemon."""
    request = RegisterRequest(node, cluster, pid, "host", port, list(targets))
    return ns.transact(
        lambda tx: storage.register(
            tx, request, cluster_id=CLUSTER_ID, heartbeat_ms=500, now_ns=ns.now_ns
        )
    )


@pytest.fixture
def empty(new_ns: Callable[[int], Namespace]) -> Namespace:
    """A cluster without a daemon."""
    return new_ns(0)


def routing(ns: Namespace) -> Routing:
    """The routing as stored."""
    return load_routing(ns.tx)


# --- registration ---------------------------------------------------------------------------------


def test_a_new_daemon_gets_ids_chains_and_a_table(empty: Namespace) -> None:
    reply = register(empty, report(0, "a"), report(0, "b"), cluster=b"")
    assert (reply.node, reply.targets, reply.cluster_id) == (1, [1, 2], CLUSTER_ID)
    assert reply.heartbeat_ms == 500
    found = reply.routing
    assert found == routing(empty)
    assert [(n.node, n.host, n.port) for n in found.nodes] == [(1, "host", 7000)]
    assert [(t.target, t.node, t.state) for t in found.targets] == [
        (1, 1, TargetState.SERVING),
        (2, 1, TargetState.SERVING),
    ]
    assert [(c.chain, c.version, c.targets) for c in found.chains] == [(1, 1, [1]), (2, 1, [2])]
    assert [(t.table, t.chains) for t in found.tables] == [(1, [1, 2])]


def test_tables_never_change(empty: Namespace) -> None:
    register(empty, report(0, "a"), cluster=b"")
    before = routing(empty)
    register(empty, report(0, "b"), cluster=b"", pid=2, port=7001)
    after = routing(empty)
    assert after.version > before.version
    assert after.tables[: len(before.tables)] == before.tables
    assert after.tables[-1].chains == [1, 2]


def test_the_answer_may_be_lost_and_asked_for_again(empty: Namespace) -> None:
    first = register(empty, report(0, "a"), report(0, "b"), cluster=b"")
    again = register(empty, report(0, "a"), report(0, "b"), cluster=b"")
    assert (again.node, again.targets) == (first.node, first.targets)
    assert again.routing == first.routing


def test_a_daemon_that_died_before_it_wrote_its_id_down_gets_it_again(empty: Namespace) -> None:
    first = register(empty, report(0, "/disk#a1b2"), cluster=b"")
    again = register(empty, report(0, "/disk#a1b2"), cluster=b"", pid=2, port=7001)
    assert again.targets == first.targets
    assert again.routing.chains == first.routing.chains
    assert [n.port for n in again.routing.nodes] == [7001]


def test_a_restarted_daemon_is_known_by_its_targets(empty: Namespace) -> None:
    register(empty, report(0, "a"), report(0, "b"), cluster=b"")
    back = register(empty, report(1, "a"), report(2, "b"), pid=99, port=8000)
    assert (back.node, back.targets) == (1, [1, 2])
    assert [(n.node, n.port) for n in back.routing.nodes] == [(1, 8000)]
    assert len(back.routing.tables) == 1


def test_one_whose_disks_have_not_all_answered_yet_is_known_by_the_others(empty: Namespace) -> None:
    register(empty, report(0, "/a"), report(0, "/b#claim"), report(0, "/c"), cluster=b"")
    request = RegisterRequest(0, CLUSTER_ID, 9, "host", 8000, [report(1, "/a")])

    def returning(*unanswered: str) -> int:
        told = replace(request, unanswered=list(unanswered), pid=request.pid + len(unanswered))
        found = empty.transact(
            lambda tx: storage.register(
                tx, told, cluster_id=CLUSTER_ID, heartbeat_ms=500, now_ns=empty.now_ns
            )
        )
        assert found.targets == [1]
        return found.node

    assert returning("/c", "/b", "/d") == 1
    assert returning("/b") == 2  # somebody took /a to another machine


def test_registering_unchanged_keeps_the_version(empty: Namespace) -> None:
    register(empty, report(0, "a"), cluster=b"")
    before = routing(empty).version
    register(empty, report(1, "a"), node=1, pid=5)
    assert routing(empty).version == before
    register(empty, report(1, "a"), node=1, port=7777)
    assert routing(empty).version > before


def test_a_target_moves_to_another_node(empty: Namespace) -> None:
    register(empty, report(0, "a"), report(0, "b"), cluster=b"")
    moved = register(empty, report(2, "elsewhere"), pid=2, port=7001)
    assert moved.node == 2
    assert {(t.target, t.node) for t in moved.routing.targets} == {(1, 1), (2, 2)}
    assert len(moved.routing.tables) == 1, "no new target, no new table"


def test_a_node_without_targets_is_forgotten(empty: Namespace) -> None:
    register(empty, report(0, "a"), cluster=b"")
    register(empty, report(0, "b"), cluster=b"", pid=2, port=7001)
    register(empty, report(1, "a"), report(2, "b"), node=2, pid=2, port=7001)
    assert [n.node for n in routing(empty).nodes] == [2]


def test_daemons_of_other_clusters_are_refused(empty: Namespace) -> None:
    with pytest.raises(FormatError, match="another cluster"):
        register(empty, report(0), cluster=b"x" * 16)
    with pytest.raises(InvalidError):
        register(empty, report(7), cluster=b"")
    with pytest.raises(InvalidError):
        register(empty, report(0), node=7, cluster=b"")
    with pytest.raises(InvalidError):
        register(empty, report(7), report(7))
    with pytest.raises(InvalidError):
        register(empty, report(0, "same"), report(0, "same"))
    assert routing(empty).version == 0


def test_ids_unknown_to_us_are_taken_and_not_given_out_again(empty: Namespace) -> None:
    register(empty, report(5, "restored"), node=3)
    new = register(empty, report(0, "new"), cluster=b"", pid=2, port=7001)
    assert (new.node, new.targets) == (4, [6])
    assert [c.targets for c in routing(empty).chains] == [[5], [6]]


# --- orders ---------------------------------------------------------------------------------------


def orders_of(ns: Namespace, *reports: TargetReport) -> orders.Orders:
    """What is left to order of the first node, after it has reported."""
    given = orders.orders(ns.tx, 1)
    done = orders.done(given, reports)
    ns.transact(lambda tx: orders.note_done(tx, done, reports))
    return orders.orders(ns.tx, 1)


def test_a_target_is_ordered_until_it_is_reported(ns: Namespace) -> None:
    target = ns.transact(lambda tx: orders.order_target(tx, 1, beside=1))
    assert target == 2
    assert [t.state for t in routing(ns).targets] == [TargetState.SERVING, TargetState.WAITING]
    for _ in range(2):
        assert orders_of(ns, report(1)) == orders.Orders([NewTarget(2, 1)], [], [])
    assert orders_of(ns, report(1), report(2, "beside")) == orders.Orders([], [], [])
    assert [r.label for r in status.target_reports(ns.tx)] == ["disk-0", "beside"]


def test_an_ordered_target_does_not_make_its_daemon_a_stranger(empty: Namespace) -> None:
    """It came up anew before it had made the target, then after."""
    register(empty, report(0, "a"), cluster=b"")
    empty.transact(lambda tx: orders.order_target(tx, 1, beside=1))
    assert register(empty, report(1, "a"), pid=2, port=7001).node == 1
    assert orders.orders(empty.tx, 1).create == [NewTarget(2, 1)]
    assert register(empty, report(1, "a"), report(2, "a/targets/2"), pid=3).targets == [1, 2]
    assert orders.orders(empty.tx, 1).create == []


def test_a_target_is_retired_until_it_is_empty(ns: Namespace) -> None:
    ns.transact(lambda tx: orders.order_retirement(tx, [1]))
    for held in (report(1), replace(report(1, stopped=True), chunks=0)):
        assert orders_of(ns, held) == orders.Orders([], [1], [])
    assert orders_of(ns, replace(report(1), chunks=0)) == orders.Orders([], [], [])


def test_a_target_that_its_daemon_does_not_name_has_stopped(empty: Namespace) -> None:
    register(empty, report(0, "a"), report(0, "b"), cluster=b"")
    register(empty, report(1, "a"), node=1, pid=2)
    assert [r.stopped for r in status.target_reports(empty.tx)] == [False, True]


# --- drops ----------------------------------------------------------------------------------------


def schedule(ns: Namespace, delay_ns: int = 0, limit: int = 100) -> int:
    """Run the chore that hands dead blobs to their targets."""
    return ns.transact(lambda tx: storage.schedule_drops(tx, ns.now_ns - delay_ns, limit))


def pending(ns: Namespace, *targets: int) -> list[tuple[int, int]]:
    """What waits for these targets."""
    return storage.pending_drops(ns.tx, targets, 1_000)


def test_dead_blobs_are_dropped_after_the_delay(ns: Namespace) -> None:
    ns.write(b"/f", 10)
    ((blob, _),) = ns.segments(b"/f")
    ns.remove(b"/f")
    ns.now_ns += SECOND_NS - 1
    assert schedule(ns, SECOND_NS) == 0
    ns.now_ns += 1
    assert schedule(ns, SECOND_NS) == 1
    assert ns.blob_state(blob) is BlobState.DROPPING
    assert pending(ns, 1) == [(1, blob)]
    assert schedule(ns, SECOND_NS) == 0
    ns.transact(lambda tx: storage.confirm_drops(tx, [1], [blob]))
    assert ns.blob_state(blob) is None
    assert pending(ns, 1) == []


def test_what_died_while_the_clock_was_ahead_is_not_kept_for_so_long(ns: Namespace) -> None:
    for name in (b"/f", b"/g", b"/h"):
        ns.write(name, 10)
        ns.remove(name)
        ns.now_ns += HOUR_NS
    ns.now_ns -= 2 * HOUR_NS  # of /g's death
    assert [ns.transact(lambda tx: storage.die_now(tx, ns.now_ns, 1)) for _ in range(2)] == [1, 0]
    assert schedule(ns, SECOND_NS) == 1
    ns.now_ns += SECOND_NS
    assert schedule(ns, SECOND_NS) == 2


@pytest.mark.parametrize("state", [TargetState.OFFLINE, TargetState.SYNCING])
def test_nothing_is_dropped_that_would_be_copied_back(ns: Namespace, state: TargetState) -> None:
    session = ns.open_session(b"/f")
    ns.abort(session.session)
    schedule(ns)
    ns.transact(lambda tx: tx.run("UPDATE targets SET state = ?", (state,)))
    assert pending(ns, 1) == []
    ns.transact(lambda tx: tx.run("UPDATE targets SET state = ?", (TargetState.SERVING,)))
    assert pending(ns, 1) == [(1, session.blob)]


def test_a_blob_goes_when_the_last_target_confirmed(new_ns: Callable[[int], Namespace]) -> None:
    ns = new_ns(3)
    session = ns.open_session(b"/f")
    ns.abort(session.session)
    schedule(ns)
    waiting = pending(ns, 1, 2, 3)
    assert waiting == [(1, session.blob), (2, session.blob), (3, session.blob)]
    for target in (1, 2):
        ns.transact(lambda tx, target=target: storage.confirm_drops(tx, [target], [session.blob]))
        assert ns.blob_state(session.blob) is BlobState.DROPPING
    ns.transact(lambda tx: storage.confirm_drops(tx, [3], [session.blob, 99]))
    assert ns.blob_state(session.blob) is None
    ns.check()


def test_who_syncs_drops_what_it_may_copy_once_it_serves(
    new_ns: Callable[[int], Namespace],
) -> None:
    """Target 3 has dropped it, or was no member; the others have not, and it copies from them."""
    ns = new_ns(3)
    session = ns.open_session(b"/f")
    ns.abort(session.session)
    schedule(ns)
    ns.transact(lambda tx: storage.confirm_drops(tx, [3], [session.blob]))
    assert pending(ns, 3) == []
    ns.transact(lambda tx: storage.drop_once_synced(tx, 3, [1, 2, 3]))
    ns.transact(lambda tx: storage.drop_once_synced(tx, 3, [1, 2, 3]))
    assert pending(ns, 3) == [(3, session.blob)]
    ns.transact(lambda tx: storage.confirm_drops(tx, [1, 2], [session.blob]))
    assert ns.blob_state(session.blob) is BlobState.DROPPING
    ns.transact(lambda tx: storage.confirm_drops(tx, [3], [session.blob]))
    assert ns.blob_state(session.blob) is None
    ns.transact(lambda tx: storage.drop_once_synced(tx, 3, [3]))
    ns.transact(lambda tx: storage.drop_once_synced(tx, 3, [1, 2, 3]))
    assert pending(ns, 1, 2, 3) == []
    ns.check()


def test_drops_go_only_where_chunks_can_be(new_ns: Callable[[int], Namespace]) -> None:
    ns = new_ns(5)
    session = ns.open_session(b"/f", chunk_size_bytes=65_536)
    ns.publish(session, 2 * 65_536)
    ns.register("later", pid=2)
    ns.remove(b"/f")
    schedule(ns)
    places = stripe_places(5, 5, session.layout.seed)[:2]
    assert pending(ns, 1, 2, 3, 4, 5, 6) == [(p + 1, session.blob) for p in sorted(places)]


def test_scheduling_and_handing_out_are_bounded(ns: Namespace) -> None:
    sessions = [ns.open_session(b"/f") for _ in range(7)]
    ns.abort(*(s.session for s in sessions))
    assert [schedule(ns, limit=3) for _ in range(4)] == [3, 3, 1, 0]
    assert len(storage.pending_drops(ns.tx, [1], 4)) == 4


def test_unknown_blobs_are_those_in_no_row(ns: Namespace) -> None:
    live = ns.open_session(b"/live")
    ns.publish(live, 1)
    writing = ns.open_session(b"/writing")
    dead = ns.open_session(b"/dead")
    dropping = ns.open_session(b"/dropping")
    gone = ns.open_session(b"/gone")
    for session in (gone, dropping, dead):
        ns.abort(session.session)
        if session is not dead:
            schedule(ns)
        if session is gone:
            ns.transact(lambda tx: storage.confirm_drops(tx, [1], [gone.blob]))
    never = (1 << 64) - 1  # a client may store chunks under any id
    asked = [s.blob for s in (live, writing, dead, dropping, gone)] + [never, 0, -1, gone.blob]
    answer = storage.unknown_blobs(ns.tx, UnknownBlobsRequest(1, asked))
    assert answer.unknown == [gone.blob, gone.blob]
    answer = storage.unknown_blobs(ns.tx, UnknownBlobsRequest(1, asked, dropping=True))
    assert answer.unknown == [dropping.blob, gone.blob, gone.blob]


# --- the manager ----------------------------------------------------------------------------------


def manager() -> Manager:
    """A manager at time 0 with a lease of 5 s."""
    return Manager(node_lease_ns=5 * SECOND_NS, session_ttl_ns=60 * SECOND_NS, now_ns=0)


def beat(node: int, *targets: TargetReport, dropped: list[int] | None = None) -> HeartbeatRequest:
    """A heartbeat."""
    return HeartbeatRequest(node, list(targets), dropped or [], 0)


def test_liveness_follows_heartbeats() -> None:
    one = manager()
    one.expect(1)
    assert one.state(1, 0) is NodeState.UNKNOWN
    one.heard(beat(1), 1 * SECOND_NS)
    assert one.state(1, 6 * SECOND_NS) is NodeState.UP
    assert one.state(1, 6 * SECOND_NS + 1) is NodeState.DOWN
    one.registered(1, [], 7 * SECOND_NS)
    assert one.state(1, 8 * SECOND_NS) is NodeState.UP
    with pytest.raises(NotFoundError, match="no such storage node"):
        one.heard(beat(2), 0)


def test_news_is_a_first_word_or_a_change() -> None:
    one = manager()
    one.expect(1)
    assert one.heard_ns() == {1: 0}
    assert one.heard(beat(1, report(1)), 1).news
    assert not one.heard(beat(1, report(1)), 2).news
    changed = one.heard(beat(1, report(1, stopped=True)), 3)
    assert changed.news and changed.working == []
    assert [r.target for r in one.reports()] == [1]
    synced = replace(report(1), synced=3)
    for told in (synced, replace(synced, damaged=True)):
        assert one.heard(beat(1, told), 4).news
        assert not one.heard(beat(1, told), 4).news
        assert not one.heard(beat(1, replace(told, health=TargetHealth(scrubbed_chunks=7))), 4).news
    assert one.heard(beat(1, told), 60 * SECOND_NS).news, "it was dead"
    assert one.heard_ns() == {1: 60 * SECOND_NS}


def test_the_last_counters_of_each_node_are_kept() -> None:
    one = manager()
    one.expect(1)
    one.expect(2)
    for age_ns in (5, 9):
        told = replace(beat(1), counters=DataLoopCounters(age_ns, ranges_total=2 * age_ns))
        one.heard(told, age_ns)
    assert one.counters(1) == DataLoopCounters(9, ranges_total=18)
    assert one.counters(2) is None and one.counters(3) is None
    one.heard(beat(1), 10)
    assert one.counters(1) is None, "now an older daemon, which tells none"
    one.heard(told, 11)
    one.registered(1, [], 12)
    assert one.counters(1) is None, "another process may have it now"


def test_a_node_that_comes_back_again_and_again_is_known_to() -> None:
    one = manager()
    one.expect(1)
    assert one.returns(1, 0) == one.returns(2, 0) == 0
    one.heard(beat(1), 0)
    assert one.returns(1, 0) == 0, "it was there, and this server has come up"
    one.registered(1, [], SECOND_NS)
    assert one.returns(1, SECOND_NS) == 0, "it is the same process, and was never gone"
    one.registered(1, [], SECOND_NS, 7)
    one.heard(replace(beat(1), pid=7), 2 * SECOND_NS)
    assert one.returns(1, 2 * SECOND_NS) == 1
    one.heard(replace(beat(1), pid=7), 100 * SECOND_NS)
    assert one.returns(1, 100 * SECOND_NS) == 2, "it was silent"
    assert one.returns(1, 650 * SECOND_NS) == 1, "the first is long ago"
    for pid in range(200):
        one.registered(1, [], 100 * SECOND_NS, pid)
    assert one.returns(1, 100 * SECOND_NS) == 64, "no more are kept"


def test_a_shared_database_keeps_the_last_counters(ns: Namespace) -> None:
    def hear(counters: DataLoopCounters | None) -> DataLoopCounters | None:
        request = replace(beat(1, report(1)), counters=counters)
        ns.transact(lambda tx: storage.hear(tx, request, now_ns=ns.now_ns))
        (row,) = status.nodes(ns.tx)
        return row.counters

    for age_ns in (1, 2):
        told = DataLoopCounters(age_ns, read_bytes_total=(1 << 64) - 1)
        assert hear(told) == (told if ns.tx.shared else None)
    assert hear(None) is None
    hear(told)
    register(ns, report(1), node=1, pid=2)
    assert status.nodes(ns.tx)[0].counters is None, "of the process before"


def test_a_disk_counts_once_however_many_targets_it_has() -> None:
    shared = [replace(report(n), used_bytes=used, disk="boot:1") for n, used in ((1, 5), (2, 7))]
    assert disk_bytes([*shared, report(3), report(4)]) == (3 << 40, 7 + 5 + 5)


def test_what_a_beat_confirms_is_dropped_from_its_working_targets(
    new_ns: Callable[[int], Namespace],
) -> None:
    ns = new_ns(3)
    session = ns.open_session(b"/f")
    ns.abort(session.session)
    schedule(ns)

    def hear(*targets: TargetReport) -> None:
        request = beat(1, *targets, dropped=[session.blob, 99])
        ns.transact(lambda tx: storage.hear(tx, request, now_ns=ns.now_ns))

    hear(report(1), report(2, stopped=True))
    assert pending(ns, 1, 2, 3) == [(2, session.blob), (3, session.blob)]
    hear(report(2, stopped=True))
    assert pending(ns, 1, 2, 3) == [(2, session.blob), (3, session.blob)]
    hear(report(2), report(3))
    assert pending(ns, 1, 2, 3) == []
    assert ns.blob_state(session.blob) is None
    ns.check()


def test_no_lease_ends_after_a_gap_that_clients_could_not_fill() -> None:
    one = manager()  # reaping is due each 5 s, sessions live for 60 s

    def turn(wall_s: int, *, done: bool = True) -> bool:
        may_end = one.leases_may_end(wall_s * SECOND_NS)
        if done:
            one.leases_seen(wall_s * SECOND_NS)
        return may_end

    assert turn(1_000)
    assert turn(1_005)
    assert turn(1_040)
    assert not turn(1_076), "the clock was set, or we were stopped"
    assert turn(1_081)
    assert turn(500), "set back: leases last longer"
    assert turn(505, done=False) and turn(530, done=False), "the database is away"
    assert not turn(540), "nobody could renew while it was"
    assert turn(545)


def test_chores_come_due_by_time_alone() -> None:
    one = manager()
    assert one.due(0) == []
    assert one.wait_ns(0) == SECOND_NS
    assert one.due(SECOND_NS) == [Chore.SCHEDULE_DROPS, Chore.REAP_PINS]
    assert set(one.due(61 * SECOND_NS)) == set(Chore)
    assert one.due(61 * SECOND_NS) == []
    one.again(Chore.SCHEDULE_DROPS, 61 * SECOND_NS)
    assert one.due(61 * SECOND_NS) == [Chore.SCHEDULE_DROPS]
