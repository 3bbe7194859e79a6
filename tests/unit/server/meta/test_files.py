"""Write sessions and what close makes of them: create_many, close_many, abort_many, leases."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from ffs.errors import (
    AccessError,
    DirectoryExpectedError,
    ExistsError,
    FileExpectedError,
    InvalidError,
    LeaseExpiredError,
    NotFoundError,
    UnavailableError,
)
from ffs.server.meta.ops import sessions as lease_ops
from ffs.server.meta.schema import BlobState
from ffs.types import Attr, FileType
from ffs.wire.messages import CloseEntry, CreateEntry, CreateMode, WriteSession
from tests.namespace import LEASE_NS, ME, OTHER, SECOND_NS, SESSION_TTL_NS, Namespace, good, kind

XB = CreateMode.EXCLUSIVE


def test_a_file_appears_at_close(ns: Namespace) -> None:
    session = ns.open_session(b"/f", mode=0o640)
    assert not ns.exists(b"/f")
    assert ns.names(b"/") == []
    assert ns.blob_state(session.blob) is BlobState.WRITING
    attr = ns.publish(session, 5)
    assert attr == ns.stat(b"/f")
    assert (attr.type, attr.mode, attr.nlink, attr.size) == (FileType.FILE, 0o640, 1, 5)
    assert attr.mtime_ns == ns.now_ns
    assert ns.segments(b"/f") == [(session.blob, 5)]
    assert good(ns.open_many(b"/f")[0]).segments[0].layout == session.layout
    assert ns.blob_state(session.blob) is BlobState.LIVE


def test_an_empty_file_has_no_segment_and_its_blob_dies(ns: Namespace) -> None:
    session = ns.open_session(b"/empty")
    assert ns.publish(session, 0).size == 0
    assert ns.segments(b"/empty") == []
    assert ns.blob_state(session.blob) is BlobState.DEAD


def test_replacing_keeps_the_inode_and_drops_the_old_content(ns: Namespace) -> None:
    first = ns.write(b"/f", 10, mode=0o600)
    ((old, _),) = ns.segments(b"/f")
    ns.now_ns += SECOND_NS
    session = ns.open_session(b"/f", mode=0o777)
    assert ns.segments(b"/f") == [(old, 10)], "readers see the old content until close"
    second = ns.publish(session, 20)
    assert second.inode == first.inode
    assert second.version == first.version + 1
    assert (second.mode, second.size, second.mtime_ns) == (0o600, 20, ns.now_ns)
    assert ns.segments(b"/f") == [(session.blob, 20)]
    assert ns.blob_state(old) is BlobState.DEAD


def test_mtime_can_be_given(ns: Namespace) -> None:
    session = ns.open_session(b"/f")
    attr = good(ns.close_sessions(CloseEntry(session.session, 1, mtime_ns=77))[0])
    assert (attr.mtime_ns, attr.ctime_ns) == (77, ns.now_ns)


def test_closing_notes_it_in_the_directory(ns: Namespace) -> None:
    ns.mkdir(b"/d")
    ns.now_ns += SECOND_NS
    ns.write(b"/d/f")
    assert ns.stat(b"/d").mtime_ns == ns.now_ns
    before = ns.stat(b"/d")
    ns.now_ns += SECOND_NS
    ns.write(b"/d/f")
    assert ns.stat(b"/d") == before, "replacing content does not touch the directory"


def test_create_refuses_what_cannot_be_written_entry_by_entry(ns: Namespace) -> None:
    ns.mkdir(b"/dir")
    ns.write(b"/file")
    sessions = ns.create(
        CreateEntry(b"/ok"),
        CreateEntry(b"/dir"),
        CreateEntry(b"/"),
        CreateEntry(b"/none/x"),
        CreateEntry(b"/file/x"),
        CreateEntry(b"/file/x/y", parents=True),
        CreateEntry(b"/file", create_mode=XB),
        CreateEntry(b"/ok", chunk_size_bytes=100_000),
        CreateEntry(b"/ok", chunk_size_bytes=1 << 27),
        CreateEntry(b"/ok", stripe=-2),
        CreateEntry(b"/ok", create_mode=9),
        CreateEntry(b"/made/deep/x", parents=True),
    )
    assert [kind(session) for session in sessions] == [
        None,
        FileExpectedError,
        FileExpectedError,
        NotFoundError,
        DirectoryExpectedError,
        DirectoryExpectedError,
        ExistsError,
        InvalidError,
        InvalidError,
        InvalidError,
        InvalidError,
        None,
    ]
    assert ns.names(b"/") == [b"dir", b"file", b"made"]


def test_an_entry_that_is_wrong_by_itself_makes_no_parents(ns: Namespace) -> None:
    entry = CreateEntry(b"/p/x", parents=True, stripe=-9)
    assert kind(ns.create(entry)[0]) is InvalidError
    assert not ns.exists(b"/p")


def test_layouts_follow_the_entry_and_the_table(new_ns: Callable[[int], Namespace]) -> None:
    ns = new_ns(3)
    ns.stripe = 2
    asked = [(0, -1), (0, 0), (0, 1), (0, 99), (65_536, -1)]
    sessions = [good(s) for s in ns.create(*(CreateEntry(b"/f", 1, 0, False, *a) for a in asked))]
    layouts = [(s.layout.chunk_size_bytes, s.layout.stripe) for s in sessions]
    assert layouts == [(1 << 20, 2), (1 << 20, 3), (1 << 20, 1), (1 << 20, 3), (65_536, 2)]
    assert len({s.layout.seed for s in sessions}) == len(sessions)
    assert all(0 <= s.layout.seed < 1 << 63 for s in sessions)
    ns.register("more", pid=2)
    assert ns.open_session(b"/g").layout.table == sessions[0].layout.table + 1


def test_creating_needs_a_target(new_ns: Callable[[int], Namespace]) -> None:
    ns = new_ns(0)
    with pytest.raises(UnavailableError, match="no storage target"):
        ns.create(b"/f")
    assert ns.tx.rows("SELECT * FROM leases") == []


def test_blob_ids_are_never_used_twice(ns: Namespace) -> None:
    seen: set[int] = set()
    for _ in range(5):
        for session in ns.create(b"/a", b"/b"):
            blob = good(session).blob
            assert blob not in seen and blob > 0
            seen.add(blob)
            ns.abort(good(session).session)
        ns.tx.run("DELETE FROM blobs")


def test_exclusive_create_reserves_the_name(ns: Namespace) -> None:
    ns.mkdir(b"/sub")
    ns.write(b"/other")
    holder = ns.open_session(b"/x", create_mode=XB)
    assert not ns.exists(b"/x")
    for mode in (CreateMode.REPLACE, XB):
        assert kind(ns.create(CreateEntry(b"/x", mode), client=OTHER)[0]) is ExistsError
    for change in (
        lambda: ns.mkdir(b"/x"),
        lambda: ns.mkdir(b"/x/y", parents=True),
        lambda: ns.rename(b"/other", b"/x"),
        lambda: ns.rename(b"/sub", b"/x"),
        lambda: ns.copy(b"/other", b"/x"),
    ):
        with pytest.raises(ExistsError):
            change()
    ns.check()
    assert ns.publish(holder, 3).size == 3
    ns.write(b"/x", 4)


def test_abort_gives_a_reserved_name_back(ns: Namespace) -> None:
    holder = ns.open_session(b"/x", create_mode=XB)
    ns.abort(holder.session)
    assert ns.blob_state(holder.blob) is BlobState.DEAD
    ns.mkdir(b"/x")


def test_the_second_exclusive_entry_of_a_batch_fails(ns: Namespace) -> None:
    entry = CreateEntry(b"/x", XB)
    assert [kind(s) for s in ns.create(entry, entry, b"/x")] == [None, ExistsError, ExistsError]


def test_a_session_older_than_a_reservation_waits_for_it(ns: Namespace) -> None:
    early = ns.open_session(b"/x", client=OTHER)
    holder = ns.open_session(b"/x", create_mode=XB)
    closed = ns.close_sessions(CloseEntry(early.session, 1), client=OTHER)
    assert kind(closed[0]) is ExistsError
    ns.publish(holder, 2)
    ns.publish(early, 1, client=OTHER)
    assert ns.stat(b"/x").size == 1


def test_close_answers_entry_by_entry(ns: Namespace) -> None:
    ok, twice, negative, huge = (good(s) for s in ns.create(b"/ok", b"/2", b"/n", b"/h"))
    foreign = ns.open_session(b"/foreign", client=OTHER)
    ns.mkdir(b"/gone")
    orphan = ns.open_session(b"/gone/f")
    ns.rmdir(b"/gone")
    blocked = ns.open_session(b"/blocked")
    ns.mkdir(b"/blocked")
    closed = ns.close_sessions(
        CloseEntry(ok.session, 1),
        CloseEntry(twice.session, 1),
        CloseEntry(twice.session, 1),
        CloseEntry(negative.session, -1),
        CloseEntry(huge.session, (1 << 20) * (1 << 32) + 1),
        CloseEntry(foreign.session, 1),
        CloseEntry(orphan.session, 1),
        CloseEntry(blocked.session, 1),
        CloseEntry(999, 1),
    )
    assert [kind(entry) for entry in closed] == [
        None,
        None,
        LeaseExpiredError,
        InvalidError,
        InvalidError,
        AccessError,
        NotFoundError,
        FileExpectedError,
        LeaseExpiredError,
    ]
    assert ns.names(b"/") == [b"2", b"blocked", b"ok"]
    ns.publish(negative, 1)


def test_two_sessions_of_one_name_in_one_batch_the_last_wins(ns: Namespace) -> None:
    first, second, third = (good(s) for s in ns.create(b"/f", b"/f", b"/f"))
    closed = ns.close_sessions(
        *(CloseEntry(s.session, n) for n, s in enumerate((first, second, third), start=1))
    )
    attrs = [good(entry) for entry in closed]
    assert [a.size for a in attrs] == [1, 2, 3]
    assert [a.version for a in attrs] == [1, 2, 3]
    assert len({a.inode for a in attrs}) == 1
    assert ns.segments(b"/f") == [(third.blob, 3)]
    assert ns.blob_state(first.blob) is BlobState.DEAD


def test_a_file_follows_its_directory(ns: Namespace) -> None:
    ns.mkdir(b"/old")
    session = ns.open_session(b"/old/f")
    ns.rename(b"/old", b"/new")
    ns.publish(session, 1)
    assert ns.exists(b"/new/f")


def test_abort_leaves_other_clients_and_unknown_sessions_alone(ns: Namespace) -> None:
    mine = ns.open_session(b"/m")
    theirs = ns.open_session(b"/t", client=OTHER)
    ns.abort(mine.session, theirs.session, 12_345, mine.session)
    assert ns.blob_state(mine.blob) is BlobState.DEAD
    assert kind(ns.close_sessions(CloseEntry(mine.session, 1))[0]) is LeaseExpiredError
    ns.publish(theirs, 1, client=OTHER)


def test_sessions_of_a_silent_client_are_reaped(ns: Namespace) -> None:
    session = ns.open_session(b"/x", create_mode=XB)
    ns.now_ns += LEASE_NS
    assert ns.reap() == 0, "not before the lease is over"
    ns.now_ns += 1
    assert ns.reap() == 1
    assert ns.blob_state(session.blob) is BlobState.DEAD
    assert kind(ns.close_sessions(CloseEntry(session.session, 1))[0]) is LeaseExpiredError
    ns.write(b"/x")


@pytest.mark.parametrize("how", ["renew", "create", "close", "abort"])
def test_every_request_of_a_client_renews(ns: Namespace, how: str) -> None:
    session = ns.open_session(b"/f")
    spare = ns.open_session(b"/g")
    for _ in range(3):
        ns.now_ns += SESSION_TTL_NS - 1
        if how == "renew":
            assert ns.renew() == 2
        elif how == "create":
            ns.abort(ns.open_session(b"/h").session)
        elif how == "close":
            ns.close_sessions(CloseEntry(999, 1))
        else:
            ns.abort()
        ns.now_ns += 1
        assert ns.reap() == 0
    ns.publish(session, 1)
    ns.publish(spare, 1)


def test_one_clients_renewal_does_not_keep_another(ns: Namespace) -> None:
    ns.open_session(b"/a", client=ME)
    ns.open_session(b"/b", client=OTHER)
    ns.now_ns += LEASE_NS
    ns.renew(OTHER)
    ns.now_ns += 1
    assert ns.reap() == 1
    assert (ns.renew(ME), ns.renew(OTHER)) == (0, 1)


def test_every_request_leaves_a_full_term_and_few_write(ns: Namespace) -> None:
    ns.open_session(b"/a")
    expires = "SELECT expires_ns FROM leases"
    ends: set[int] = set()
    for _ in range(40):
        ns.now_ns += SESSION_TTL_NS // 40
        ns.renew()
        (end,) = ns.tx.rows(expires)[0]
        assert end >= ns.now_ns + SESSION_TTL_NS
        ends.add(end)
    assert len(ends) <= 9


def test_leases_get_a_full_term_after_a_restart(ns: Namespace) -> None:
    session = ns.open_session(b"/f")
    ns.now_ns += 10 * SESSION_TTL_NS
    ns.transact(lambda tx: lease_ops.extend_leases(tx, ns.now_ns + SESSION_TTL_NS))
    ns.now_ns += SESSION_TTL_NS
    assert ns.reap() == 0
    ns.publish(session, 1)


def test_a_client_must_have_an_id(ns: Namespace) -> None:
    for client in (b"", b"x" * 65):
        with pytest.raises(InvalidError):
            ns.create(b"/f", client=client)


def test_a_thousand_files_in_one_batch(ns: Namespace) -> None:
    paths = [b"/set/shard-%d/s%d" % (i % 10, i) for i in range(1_000)]
    sessions = ns.create(*(CreateEntry(path, parents=True) for path in paths))
    entries = [CloseEntry(good(s).session, 10) for s in sessions]
    with ns.statements() as statements:
        attrs = ns.close_sessions(*entries)
    assert all(isinstance(attr, Attr) for attr in attrs)
    assert 0 < len(statements) <= 12
    assert ns.stat_many(*paths) == attrs
    assert all(isinstance(s, WriteSession) for s in sessions)


@pytest.mark.parametrize("seed", range(2))
def test_sessions_of_clients_in_turns_are_ended_by_their_own_alone(
    ns: Namespace, seed: int
) -> None:
    """Neighbouring ids are found and deleted by their ends: between them may be another's."""
    rng = random.Random(seed)
    owners: dict[int, bytes] = {}
    blobs: dict[int, int] = {}

    def there() -> set[int]:
        return {row[0] for row in ns.tx.rows("SELECT session FROM sessions")}

    for turn in range(15):
        client, other = rng.sample((ME, OTHER), 2)
        for owner in (client, other, client):
            paths = [b"/%d-%d-%d" % (turn, n, len(owners)) for n in range(rng.randrange(1, 4))]
            for session in map(good, ns.create(*paths, client=owner)):
                owners[session.session], blobs[session.session] = owner, session.blob
        alive = sorted(there())
        start = rng.randrange(len(alive))
        wanted = alive[start : start + rng.randrange(1, 8)]
        rng.shuffle(wanted)
        before, mine = there(), {s for s in wanted if owners[s] == client}
        if rng.random() < 0.5:
            answers = ns.close_sessions(*(CloseEntry(s, 1) for s in wanted), client=client)
            told = [kind(answer) for answer in answers]
            assert told == [None if s in mine else AccessError for s in wanted]
            state = BlobState.LIVE
        else:
            ns.abort(*wanted, client=client)
            state = BlobState.DEAD
        assert there() == before - mine
        for number in wanted:
            expected = state if number in mine else BlobState.WRITING
            assert ns.blob_state(blobs[number]) is expected


def test_names_taken_meanwhile_are_closed_over_and_the_others_made(ns: Namespace) -> None:
    """A batch that finds some of its names taken leaves nothing of what it tried at first."""
    paths = [b"/f%d" % n for n in range(40)]
    opened = [good(one) for one in ns.create(*map(CreateEntry, paths))]
    there = {path: ns.write(path, 7) for path in paths[5::10]}
    closed = ns.close_sessions(*(CloseEntry(one.session, n) for n, one in enumerate(opened)))
    attrs = dict(zip(paths, map(good, closed), strict=True))
    assert {path: attrs[path].inode for path in there} == {p: a.inode for p, a in there.items()}
    assert len({attr.inode for attr in attrs.values()}) == len(paths)
    assert [attr.size for attr in attrs.values()] == list(range(40))
    assert dict(zip(paths, map(good, ns.stat_many(*paths)), strict=True)) == attrs
    assert ns.names(b"/") == sorted(path[1:] for path in paths)
    ns.check()


def test_blobs_of_a_batch_of_one_length_are_fixed_and_no_others(ns: Namespace) -> None:
    for lengths, state in (([0] * 20, BlobState.DEAD), ([9] * 20, BlobState.LIVE)):
        opened = [good(one) for one in ns.create(*(CreateEntry(b"/g%d" % n) for n in range(20)))]
        between = ns.open_session(b"/between")
        ns.close_sessions(*(CloseEntry(s.session, n) for s, n in zip(opened, lengths, strict=True)))
        assert {ns.blob_state(one.blob) for one in opened} == {state}
        assert ns.blob_state(between.blob) is BlobState.WRITING
        assert ns.segments(b"/g7") == ([(opened[7].blob, 9)] if state is BlobState.LIVE else [])
    ns.abort(between.session)


def test_new_names_beside_those_that_are_there(ns: Namespace) -> None:
    """Between the first and the last of a batch something may stand, and count."""
    ns.mkdir(b"/d")
    ns.mkdir(b"/d/m")
    found = ns.create(*(CreateEntry(b"/d/" + name) for name in (b"z", b"a", b"m", b"mm")))
    assert [kind(one) for one in found] == [None, None, FileExpectedError, None]
    found = ns.create(*(CreateEntry(b"/d/" + name) for name in (b"n", b"z")))
    assert [kind(one) for one in found] == [None, None]
