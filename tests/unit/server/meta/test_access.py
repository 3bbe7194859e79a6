"""Permissions: every operation by a caller who is not root, as the kernel would decide."""

from __future__ import annotations

import os

import pytest

from ffs.errors import AccessError
from ffs.server.meta.ops.access import (
    ROOT,
    Caller,
    Permissions,
    Want,
    allowed,
    may_take_name,
    mode_without_privileges,
)
from tests.kernel import Case, Tree, differences
from tests.namespace import Namespace

ME, OTHER, TEAM = 1001, 1002, 2000
CALLER = Caller(ME, ME, frozenset({TEAM}))

DIRECTORIES = [
    ("open", 0o777, 0, 0),
    ("open/dir", 0o755, OTHER, OTHER),
    ("open/mydir", 0o755, ME, ME),
    ("open/full", 0o777, OTHER, OTHER),
    ("open/mine-locked", 0o555, ME, ME),
    ("mine", 0o755, ME, ME),
    ("mine/tree", 0o755, ME, ME),
    ("mine/tree/locked", 0o755, OTHER, OTHER),
    ("mine/good", 0o755, ME, ME),
    ("mine/good/below", 0o755, ME, ME),
    ("mine/hidden", 0o755, ME, ME),
    ("mine/hidden/dark", 0o700, OTHER, OTHER),
    ("theirs", 0o755, OTHER, OTHER),
    ("theirs/empty", 0o777, OTHER, OTHER),
    ("team", 0o770, OTHER, TEAM),
    ("shut-out", 0o707, OTHER, TEAM),
    ("sealed", 0o700, OTHER, OTHER),
    ("listed", 0o744, OTHER, OTHER),
    ("searched", 0o711, OTHER, OTHER),
    ("written", 0o733, OTHER, OTHER),
    ("sticky", 0o1777, 0, 0),
    ("sticky/dir", 0o777, OTHER, OTHER),
    ("my-sticky", 0o1777, ME, ME),
    ("set-gid", 0o2777, 0, TEAM),
]
FILES = [
    ("mine/f", 0o644, ME, ME),
    ("mine/none", 0o000, ME, ME),
    ("mine/set-id", 0o6755, ME, ME),
    ("mine/team-file", 0o664, ME, TEAM),
    ("mine/good/below/f", 0o600, OTHER, OTHER),
    ("mine/tree/locked/f", 0o644, ME, ME),
    ("open/f", 0o644, OTHER, OTHER),
    ("open/full/f", 0o644, OTHER, OTHER),
    ("theirs/f", 0o644, OTHER, OTHER),
    ("theirs/secret", 0o600, OTHER, OTHER),
    ("theirs/drop", 0o622, OTHER, OTHER),
    ("theirs/worse-for-me", 0o077, ME, ME),
    ("theirs/team", 0o660, OTHER, TEAM),
    ("theirs/not-for-team", 0o606, OTHER, TEAM),
    ("theirs/set-id", 0o6777, OTHER, OTHER),
    ("team/f", 0o660, OTHER, OTHER),
    ("sealed/f", 0o666, OTHER, OTHER),
    ("listed/f", 0o666, OTHER, OTHER),
    ("searched/f", 0o666, OTHER, OTHER),
    ("written/f", 0o600, OTHER, OTHER),
    ("sticky/mine", 0o600, ME, ME),
    ("sticky/theirs", 0o666, OTHER, OTHER),
    ("my-sticky/theirs", 0o666, OTHER, OTHER),
]
LINKS = [
    ("open/to-secret", "../theirs/secret"),
    ("open/to-f", "../theirs/f"),
    ("open/through-sealed", "../sealed/f"),
    ("open/to-new-in-mine", "../mine/new"),
    ("open/to-new-in-theirs", "../theirs/new"),
    ("sealed/link", "../open/f"),
]

EVERYWHERE = [path for path, *_ in FILES] + [path for path, _ in LINKS]
CASES: list[Case] = [
    *(("read", path) for path in EVERYWHERE),
    *(("write", path) for path in EVERYWHERE),
    *(("append", path) for path in EVERYWHERE),
    *(("truncate", path) for path in EVERYWHERE),
    *(("stat", path) for path in EVERYWHERE),
    *(("lstat", path) for path in EVERYWHERE),
    *(("unlink", path) for path in EVERYWHERE),
    *(("readlink", path) for path, _ in LINKS),
    *(("chmod", path) for path in ("mine/f", "theirs/f", "mine", "theirs", "open/to-f")),
    *(("chmod-set-id", path) for path in ("mine/f", "mine/team-file", "open/mydir")),
    *(("utime", path) for path in ("mine/f", "theirs/drop", "mine/none", "theirs")),
    *(("lutime", path) for path in ("open/to-f", "mine/f")),
    *(("chown", path, "0") for path in ("mine/f", "theirs/f")),
    *(("chown", path, str(ME)) for path in ("mine/f", "mine/set-id", "theirs/f", "theirs/set-id")),
    *(("chgrp", path, str(gid)) for path in ("mine/f", "theirs/team") for gid in (ME, TEAM, OTHER)),
    *(("chgrp", "mine/set-id", str(gid)) for gid in (TEAM, 0)),
    *(
        (op, f"{path}/new")
        for op in ("write", "exclusive", "append", "mkdir", "symlink")
        for path, *_ in DIRECTORIES
    ),
    *(("exclusive", path) for path in ("theirs/f", "sealed/f", "mine/f", "open/to-f")),
    *(("mkdir", path) for path in ("theirs/f", "sealed/f", "theirs", "mine")),
    *(("symlink", path) for path in ("theirs/f", "sealed/f")),
    *((op, path) for op in ("list", "rmdir", "du") for path, *_ in DIRECTORIES),
    *(
        ("rmtree", path)
        for path in ("mine/tree", "mine/good", "mine/hidden", "open/full", "open/dir", "sticky/dir")
    ),
    *(("rename", path, "open/new") for path in EVERYWHERE),
    *(("rename", "mine/f", f"{path}/new") for path, *_ in DIRECTORIES),
    *(("rename", "mine/f", path) for path in EVERYWHERE),
    *(("rename", path, "mine/new") for path, *_ in DIRECTORIES if not path.startswith("mine")),
    *(("rename", path, f"{path}-2") for path, *_ in DIRECTORIES),
    *(("link", "mine/f", f"{path}/new") for path, *_ in DIRECTORIES),
    # Whether one may link what one may not write is a setting of the kernel.
    *(("link", path, "mine/new") for path in ("sealed/f", "searched/f", "mine/none")),
    *(("copy", path, "mine/new") for path in EVERYWHERE),
    *(("copy", "mine/f", path) for path in EVERYWHERE),
    *(("copy", "mine/f", f"{path}/new") for path, *_ in DIRECTORIES),
]


def test_every_operation_decides_as_the_kernel_does(ns: Namespace) -> None:
    assert os.geteuid() == 0, "only root can become somebody else"
    tree = Tree(DIRECTORIES, FILES, LINKS)
    assert differences(ns, tree, CASES, CALLER) == []


# --- the rules by themselves ----------------------------------------------------------------------

OWNER, MEMBER, STRANGER = Caller(1, 9), Caller(2, 5), Caller(3, 9, frozenset({8}))


@pytest.mark.parametrize(
    ("mode", "owner", "member", "stranger"),
    [(0o400, True, False, False), (0o040, False, True, False), (0o004, False, False, True)],
)
def test_exactly_one_set_of_bits_counts(
    mode: int, owner: bool, member: bool, stranger: bool
) -> None:
    inode = Permissions(mode, 1, 5)
    found = [allowed(inode, caller, Want.READ) for caller in (OWNER, MEMBER, STRANGER)]
    assert found == [owner, member, stranger]
    assert allowed(inode, Caller(3, 9, frozenset({5})), Want.READ) is member
    assert allowed(inode, ROOT, Want.READ | Want.WRITE | Want.SEARCH)


def test_all_that_is_wanted_must_be_granted() -> None:
    inode = Permissions(0o500, 1, 1)
    assert allowed(inode, OWNER, Want.READ | Want.SEARCH)
    assert not allowed(inode, OWNER, Want.READ | Want.WRITE)


def test_sticky_directories_guard_names() -> None:
    sticky, plain = Permissions(0o1777, 7, 7), Permissions(0o777, 7, 7)
    mine, theirs = Permissions(0, 1, 1), Permissions(0, 2, 2)
    assert may_take_name(plain, theirs, OWNER)
    assert may_take_name(sticky, mine, OWNER)
    assert not may_take_name(sticky, theirs, OWNER)
    assert may_take_name(Permissions(0o1777, 1, 1), theirs, OWNER)
    assert may_take_name(sticky, theirs, ROOT)


def test_set_id_bits_go_when_the_owner_changes() -> None:
    assert mode_without_privileges(0o6755) == 0o755
    assert mode_without_privileges(0o6745) == 0o2745
    assert mode_without_privileges(0o1644) == 0o1644


def test_root_costs_no_statement(ns: Namespace) -> None:
    ns.write(b"/a/b/f", parents=True)
    with ns.statements() as by_root:
        ns.stat(b"/a/b/f")
    ns.caller = CALLER
    with ns.statements() as by_another:
        ns.stat(b"/a/b/f")
    assert len(by_another) > len(by_root)


def test_pins_are_for_root(ns: Namespace) -> None:
    ns.write(b"/f", mode=0o666)
    pin = ns.pin(b"/f")
    ns.caller = CALLER
    with pytest.raises(AccessError):
        ns.pin(b"/f")
    with pytest.raises(AccessError):
        ns.unpin(pin.pin)


def test_layouts_are_for_owners(ns: Namespace) -> None:
    ns.mkdir(b"/d", mode=0o777)
    ns.mkdir(b"/mine")
    ns.setattr(b"/mine", uid=ME)
    ns.caller = CALLER
    with pytest.raises(AccessError):
        ns.set_layout(b"/d", stripe=1)
    assert ns.set_layout(b"/mine", stripe=1).stripe == 1
    assert ns.layout(b"/d").origin == b""
