"""check and repair: each kind of damage is found, told with its path, and mended where promised.

On both engines. Damage is done by SQL; after the repair every check is clean, but for what cannot
be mended, and what was readable is readable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from ffs.errors import InvalidError
from ffs.server.meta.ops import repair as repairs
from ffs.server.meta.ops.check import CHECKS, check
from ffs.server.meta.ops.repair import REPAIRS, repair
from ffs.server.meta.store import Transaction
from ffs.types import FileType
from ffs.wire.maintenance import CheckReply, CheckRequest, RepairRequest
from ffs.wire.messages import CreateMode
from tests.namespace import ME, NO_MUTATION, Namespace

Damage = Callable[[Namespace], object]


def run(*statements: str) -> Damage:
    """Damage by SQL; {name} stands for the id of an inode or blob of the tree below."""

    def do(ns: Namespace) -> None:
        ids = {
            "a": ns.stat(b"/a").inode,
            "b": ns.stat(b"/a/b").inode,
            "file": ns.stat(b"/a/b/file").inode,
            "copy": ns.stat(b"/copy").inode,
            "blob": ns.segments(b"/a/b/file")[0][0],
            "shared": ns.segments(b"/copy")[0][0],
        }

        def all_of_them(tx: Transaction) -> None:
            for statement in statements:
                tx.run(statement.format(**ids))

        ns.transact(all_of_them)

    return do


@dataclass(frozen=True)
class Case:
    """Damage, the kinds that must be found, and a path that must be told with the first."""

    damage: Damage
    kinds: tuple[str, ...]
    path: bytes = b""
    mended: bool = True
    there: tuple[bytes, ...] = field(default=(b"/a/b/file", b"/copy", b"/original"))
    """What is readable afterwards."""


def _copy(ns: Namespace) -> tuple[int]:
    return (ns.stat(b"/copy").inode,)


CASES = {
    "root": Case(run("DELETE FROM dentries WHERE parent = 0"), ("root",)),
    "counter": Case(
        lambda ns: ns.transact(
            lambda tx: tx.run("UPDATE targets SET target = 900 WHERE target = 1")
        ),
        ("counter",),
    ),
    "name_without_inode": Case(
        run("DELETE FROM inodes WHERE inode = {copy}", "DELETE FROM segments WHERE inode = {copy}"),
        ("name_without_inode", "blob_references"),
        b"/copy",
        there=(b"/a/b/file", b"/original"),
    ),
    "name_type": Case(
        run("UPDATE dentries SET type = 3 WHERE inode = {file}"), ("name_type",), b"/a/b/file"
    ),
    "reserved_name": Case(run("DELETE FROM sessions"), ("reserved_name", "blob_state"), b"/a/held"),
    "name_without_directory": Case(
        run("UPDATE dentries SET parent = 700 WHERE inode = {b}"),
        ("name_without_directory", "unreachable_directory", "subdirectory_count"),
        b"?/b",
        there=(b"/lost+found/inode-{b}/file", b"/copy"),
    ),
    "directory_with_names": Case(
        lambda ns: ns.transact(
            lambda tx: tx.insert(
                "dentries",
                ("parent", "name", "inode", "type"),
                [(1, b"twice", ns.stat(b"/a/b").inode, int(FileType.DIRECTORY))],
            )
        ),
        ("directory_with_names", "subdirectory_count"),
        b"/twice",
        there=(b"/twice/file", b"/copy"),
    ),
    "inode_without_name": Case(
        run("DELETE FROM dentries WHERE inode = {file}"),
        ("inode_without_name",),
        b"?",
        there=(b"/lost+found/inode-{file}", b"/copy"),
    ),
    "unreachable_directory": Case(
        run("UPDATE dentries SET parent = {b} WHERE inode = {a}"),
        ("unreachable_directory", "subdirectory_count"),
        b"?/b/a",
        there=(b"/lost+found/inode-{a}/b/file", b"/copy"),
    ),
    "link_count": Case(
        run("UPDATE inodes SET nlink = 5 WHERE inode = {file}"), ("link_count",), b"/a/b/file"
    ),
    "subdirectory_count": Case(
        run("UPDATE inodes SET nlink = 9 WHERE inode = {a}"), ("subdirectory_count",), b"/a"
    ),
    "symlink_without_target": Case(
        run(
            "UPDATE inodes SET type = 3, size = 0 WHERE inode = {copy}",
            "UPDATE dentries SET type = 3 WHERE inode = {copy}",
            "DELETE FROM segments WHERE inode = {copy}",
        ),
        ("symlink_without_target", "blob_references"),
        b"/copy",
        mended=False,
        there=(b"/a/b/file", b"/original"),
    ),
    "attribute_without_inode": Case(
        run("INSERT INTO layouts (inode, chunk_size_bytes, stripe) VALUES (800, 0, 1)"),
        ("attribute_without_inode",),
    ),
    "segment_without_file": Case(
        run("DELETE FROM inodes WHERE inode = {file}", "DELETE FROM dentries WHERE inode = {file}"),
        ("segment_without_file",),
        b"?",
        there=(b"/lost+found/inode-{file}", b"/copy"),
    ),
    "segment_without_file_but_a_directory": Case(
        run("UPDATE segments SET inode = {b} WHERE inode = {file}"),
        ("segment_without_file", "file_size"),
        b"/a/b",
    ),
    "segment_without_blob": Case(
        run("DELETE FROM blobs WHERE blob = {blob}"),
        ("segment_without_blob",),
        b"/a/b/file",
        mended=False,
    ),
    "file_size": Case(
        run("UPDATE inodes SET size = 3 WHERE inode = {file}"), ("file_size",), b"/a/b/file"
    ),
    "session_without_blob": Case(
        run("UPDATE sessions SET blob = 600"), ("session_without_blob", "blob_state")
    ),
    "session_without_lease": Case(run("DELETE FROM leases"), ("session_without_lease",)),
    "pin_blob": Case(
        run("INSERT INTO pin_blobs (pin, blob) VALUES (5, {blob})"), ("pin_blob", "blob_references")
    ),
    "blob_references": Case(
        run("UPDATE blobs SET refs = 1 WHERE blob = {shared}"), ("blob_references",), b"/original"
    ),
    "blob_state": Case(
        run(
            "UPDATE blobs SET state = 4 WHERE blob = {blob}",
            "INSERT INTO drops (target, blob) VALUES (1, {blob})",
        ),
        ("blob_state",),
        b"/a/b/file",
    ),
    "blob_length": Case(
        run("UPDATE blobs SET length = 1 WHERE blob = {blob}"), ("blob_length",), b"/a/b/file"
    ),
    "blob_without_table": Case(
        run("UPDATE blobs SET chain_table = 77 WHERE blob = {blob}"),
        ("blob_without_table",),
        b"/a/b/file",
        mended=False,
        there=(b"/copy",),
    ),
    "drop": Case(run("INSERT INTO drops (target, blob) VALUES (1, {blob})"), ("drop",)),
    "dropping_without_drop": Case(
        run("UPDATE blobs SET state = 4 WHERE state = 3"), ("dropping_without_drop",)
    ),
    "quota_without_directory": Case(
        run("UPDATE quotas SET inode = {file} WHERE inode = {a}"),
        ("quota_without_directory", "quota_of_directory"),
    ),
    "quota_of_directory": Case(
        run("UPDATE inodes SET quota = 0 WHERE inode = {b}"),
        ("quota_of_directory", "quota_usage"),
        b"/a/b",
    ),
    "quota_above": Case(
        run("UPDATE quotas SET above = 0 WHERE above <> 0"), ("quota_above", "quota_usage"), b"/a/b"
    ),
    "quota_border": Case(
        lambda ns: ns.transact(
            lambda tx: (
                tx.run("UPDATE inodes SET nlink = 2 WHERE size = 50 AND inode = ?", _copy(ns)),
                tx.run(
                    "INSERT INTO dentries (parent, name, inode, type)"
                    " SELECT d.inode, n.name, n.inode, n.type FROM dentries d CROSS JOIN dentries n"
                    " WHERE d.parent = 1 AND d.type = 2 AND n.inode = ?",
                    _copy(ns),
                ),
            )
        ),
        ("quota_border", "quota_usage"),
        b"/copy",
        mended=False,
    ),
    "quota_usage": Case(
        run("UPDATE quotas SET bytes = 7, files = -1 WHERE inode = {a}"), ("quota_usage",), b"/a"
    ),
}


@pytest.fixture
def tree(ns: Namespace) -> Namespace:
    """A small tree with a bit of everything."""
    ns.mkdir(b"/a")
    ns.mkdir(b"/a/b")
    ns.write(b"/a/b/file", 100)
    ns.write(b"/original", 50)
    ns.copy(b"/original", b"/copy")
    ns.write(b"/gone", 10)
    ns.remove(b"/gone")
    ns.open_session(b"/a/held", create_mode=CreateMode.EXCLUSIVE, client=ME)
    ns.set_quota(b"/a", bytes_max=1 << 30)
    ns.set_quota(b"/a/b", files_max=100)
    return ns


def findings(ns: Namespace) -> dict[str, CheckReply]:
    """What the checks find, by kind."""
    replies = [
        ns.transact(lambda tx, step=step: check(tx, CheckRequest(step)))  # type: ignore[misc]
        for step in range(len(CHECKS))
    ]
    assert {reply.steps for reply in replies} == {len(CHECKS)}
    assert all(reply.repairable == (reply.kind in REPAIRS) for reply in replies)
    return {reply.kind: reply for reply in replies if reply.count}


def test_every_kind_has_a_case() -> None:
    assert {one.kind for one in CHECKS} <= CASES.keys()


def test_a_whole_namespace_has_no_findings(tree: Namespace) -> None:
    assert findings(tree) == {}


@pytest.mark.parametrize("name", CASES)
def test_damage_is_found_and_mended(tree: Namespace, name: str) -> None:
    ns, case = tree, CASES[name]
    ids = {b"{%s}" % n.encode(): ns.stat(p).inode for n, p in NAMED.items()}
    case.damage(ns)
    found = findings(ns)
    assert set(case.kinds) <= set(found), f"found {set(found)}"
    first = found[case.kinds[0]]
    assert first.count == len(first.examples) >= 1
    assert first.examples[0].path == case.path
    assert first.examples[0].detail
    for step, one in enumerate(CHECKS):
        if one.kind in REPAIRS and one.count(ns.tx):
            reply = ns.mutate(repair, RepairRequest(NO_MUTATION, step))
            assert reply.repaired >= 1
            assert reply.action
            assert not reply.more
    left = findings(ns)
    if case.mended:
        assert left == {}
        ns.check()
    else:
        assert set(left) == {case.kinds[0]}
    for path in case.there:
        for mark, inode in ids.items():
            path = path.replace(mark, b"%d" % inode)
        assert ns.exists(path), path
    if not case.mended:
        ns.transact(lambda tx: tx.run("DELETE FROM segments"))
        ns.transact(lambda tx: tx.run("DELETE FROM blobs"))
        ns.transact(lambda tx: tx.run("DELETE FROM sessions"))
        ns.transact(lambda tx: tx.run("DELETE FROM dentries WHERE parent <> 0"))
        ns.transact(lambda tx: tx.run("DELETE FROM inodes WHERE inode <> 1"))
        ns.transact(lambda tx: tx.run("DELETE FROM directory_changes"))
        ns.transact(lambda tx: tx.run("DELETE FROM quotas"))
        ns.transact(lambda tx: tx.run("DELETE FROM quota_changes"))
        ns.transact(lambda tx: tx.run("UPDATE inodes SET nlink = 2"))


NAMED = {"a": b"/a", "b": b"/a/b", "file": b"/a/b/file", "copy": b"/copy"}


def test_many_findings_are_counted_and_few_told(ns: Namespace) -> None:
    for number in range(40):
        ns.write(b"/file-%02d" % number)
    ns.transact(lambda tx: tx.run("UPDATE inodes SET size = 7 WHERE type = 1"))
    step = next(i for i, one in enumerate(CHECKS) if one.kind == "file_size")
    reply = ns.transact(lambda tx: check(tx, CheckRequest(step, examples=5)))
    assert reply.count == 40
    assert len(reply.examples) == 5
    assert ns.mutate(repair, RepairRequest(NO_MUTATION, step)).repaired == 40


def test_many_findings_are_mended_by_parts(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairs, "REPAIRS_MAX", 8)
    for number in range(20):
        ns.write(b"/file-%02d" % number)
    for name in (b"/a", b"/a/b", b"/a/b/c", *(b"/a/b/c/%d" % i for i in range(20))):
        ns.mkdir(name)
    deepest = ns.stat(b"/a/b/c").inode
    ns.transact(lambda tx: tx.run("UPDATE inodes SET size = 7 WHERE type = 1"))
    ns.transact(lambda tx: tx.run("UPDATE dentries SET parent = ? WHERE name = ?", (deepest, b"a")))
    expected = {"file_size": [8, 8, 4], "unreachable_directory": [23]}
    for step, one in enumerate(CHECKS):
        counts, more = [], one.kind in REPAIRS
        while more:
            reply = ns.mutate(repair, RepairRequest(NO_MUTATION, step))
            counts.append(reply.repaired)
            more = reply.more
        assert counts == expected.get(one.kind, counts)
        assert len(counts) <= 3
    assert findings(ns) == {}


def test_what_stands_in_the_way_of_lost_and_found_is_left_alone(ns: Namespace) -> None:
    ns.mkdir(b"/lost+found")
    for _ in range(2):
        inode = ns.write(b"/file").inode
        ns.transact(lambda tx: tx.run("DELETE FROM dentries WHERE name = ?", (b"file",)))
        ns.write(b"/lost+found/inode-%d" % inode)
        step = next(i for i, one in enumerate(CHECKS) if one.kind == "inode_without_name")
        ns.mutate(repair, RepairRequest(NO_MUTATION, step))
        assert ns.stat(b"/lost+found/inode-%d-2" % inode).inode == inode
    assert findings(ns) == {}


def test_steps_that_are_none_are_refused(ns: Namespace) -> None:
    for step in (-1, len(CHECKS)):
        with pytest.raises(InvalidError):
            check(ns.tx, CheckRequest(step))
    step = next(i for i, one in enumerate(CHECKS) if one.kind not in REPAIRS)
    with pytest.raises(InvalidError, match="cannot be mended"):
        ns.mutate(repair, RepairRequest(NO_MUTATION, step))
