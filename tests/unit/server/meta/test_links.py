"""Symbolic and hard links: what every operation makes of them, compared with the kernel."""

from __future__ import annotations

import pytest

from ffs.errors import (
    BadNameError,
    ExistsError,
    LinksError,
    NameTooLongError,
    NotFoundError,
    NotPermittedError,
    SymlinkLoopError,
)
from ffs.limits import LINKS_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, SYMLINKS_MAX
from ffs.server.meta.schema import BlobState
from ffs.types import FileType
from ffs.wire.messages import CloseEntry, CreateMode
from tests.kernel import TOP, Case, Tree, differences
from tests.namespace import SECOND_NS, Namespace, good, kind

CHAIN = [(f"chain-{i}", f"chain-{i - 1}" if i else "d/f") for i in range(SYMLINKS_MAX + 1)]
"""chain-39 goes through 40 links, chain-40 through one too many."""
TREE = Tree(
    directories=[("d", 0o755, 0, 0), ("d/sub", 0o755, 0, 0), ("empty", 0o755, 0, 0)],
    files=[("d/f", 0o644, 0, 0), ("d/sub/g", 0o600, 0, 0), ("plain", 0o644, 0, 0)],
    links=[
        ("to-file", "d/f"),
        ("to-directory", "d"),
        ("to-empty", "empty"),
        ("to-here", "."),
        ("up-and-down", "d/sub/.."),
        ("up-to-file", "d/sub/../../plain"),
        ("absolute", f"{TOP}/d"),
        ("absolute-file", f"{TOP}/d/f"),
        ("dangling", "d/none"),
        ("deeply-dangling", "none/none"),
        ("loop", "loop"),
        ("ping", "pong"),
        ("pong", "d/../ping"),
        ("slashed-file", "d/f/"),
        ("slashed-directory", "d//"),
        ("dotted-directory", "d/."),
        ("through-file", "plain/.."),
        ("to-link", "to-file"),
        ("to-dangling", "dangling"),
        ("d/out", "../plain"),
        ("d/sub/to-parent", ".."),
        *CHAIN,
    ],
    names=[("plain", "second"), ("to-file", "second-link")],
)
LINKS = [path for path, _ in TREE.links if not path.startswith("chain")]
LAST_LINKS = [path.split("/")[-1] for path, _ in [*TREE.links, ("second-link", "")]]
PATHS = [
    "d",
    "plain",
    "second",
    "second-link",
    "new",
    "new/x",
    "chain-39",
    "chain-40",
    "to-directory/out",
    "to-directory/sub/to-parent/f",
    "absolute/sub/to-parent/out",
    *LINKS,
]
SLASHED = [f"{path}/" for path in ("d", "plain", "new", "empty", "to-file", "to-empty", "dangling")]
BELOW = [f"{path}/new" for path in LINKS]

UNARY: list[Case] = [
    (op, path)
    for op in (
        *("stat", "lstat", "read", "write", "append", "exclusive", "truncate", "list", "readlink"),
        *("unlink", "rmdir", "mkdir", "makedirs", "symlink", "chmod", "utime", "lutime", "rmtree"),
    )
    for path in PATHS + SLASHED
    # For rmtree Python looks itself whether it is given a link; its parents have another mode.
    if not (op == "rmtree" and path.rstrip("/").split("/")[-1] in LAST_LINKS)
    and not (op == "makedirs" and "/" in path.rstrip("/"))
]
NEW_BELOW: list[Case] = [
    (op, path)
    for op in ("stat", "write", "exclusive", "mkdir", "symlink", "unlink")
    for path in BELOW
]
PAIRS: list[Case] = [
    *(("rename", path, "new") for path in PATHS + SLASHED),
    *(("rename", "plain", path) for path in PATHS + SLASHED),
    *(("rename", "to-file", path) for path in PATHS + SLASHED),
    *(("rename", "empty", path) for path in PATHS + SLASHED),
    *(("rename", "d", f"{path}/x") for path in ("d", "to-directory", "d/sub/to-parent", "to-here")),
    *(("link", path, "new") for path in PATHS + SLASHED),
    *(("link", "d/f", path) for path in PATHS + SLASHED),
    *(("copy", path, "new") for path in PATHS + SLASHED),
    *(("copy", "d/sub/g", path) for path in PATHS + SLASHED),
]
OWNERS: list[Case] = [
    (op, path, "7") for op in ("chown", "lchown", "chgrp") for path in ("plain", "to-file", "d")
]


@pytest.mark.parametrize("cases", [UNARY, NEW_BELOW, PAIRS, OWNERS])
def test_links_mean_what_they_mean_to_the_kernel(ns: Namespace, cases: list[Case]) -> None:
    assert differences(ns, TREE, cases) == []


def test_a_link_to_the_root_and_above_it(ns: Namespace) -> None:
    ns.mkdir(b"/d")
    ns.symlink(b"/d/root", b"/")
    ns.symlink(b"/d/above", b"../../../d")
    assert ns.stat(b"/d/root") == ns.stat(b"/")
    assert ns.stat(b"/d/root/d/root/d") == ns.stat(b"/d/above")
    assert ns.names(b"/d/root") == [b"d"]
    with pytest.raises(ExistsError):
        ns.mkdir(b"/d/root")
    assert ns.mkdir(b"/d/root", exist_ok=True) == ns.stat(b"/")


def test_what_a_link_may_hold(ns: Namespace) -> None:
    longest = b"n/" * (PATH_BYTES_MAX // 2 - 1) + b"n"
    attr = ns.symlink(b"/longest", longest)
    assert (attr.type, attr.mode, attr.size, attr.nlink) == (FileType.SYMLINK, 0o777, 4095, 1)
    assert ns.readlink(b"/longest") == longest
    with pytest.raises(NameTooLongError):
        ns.symlink(b"/longer", longest + b"n")
    for target in (b"", b"a\0b"):
        with pytest.raises(BadNameError):
            ns.symlink(b"/bad", target)
    ns.symlink(b"/long-name", b"x" * (NAME_BYTES_MAX + 1))
    assert kind(ns.stat_many(b"/long-name")[0]) is NameTooLongError
    assert kind(ns.stat_many(b"/long-name", follow=False)[0]) is None


def test_parents_are_made_of_a_path_and_not_of_what_its_links_hold(ns: Namespace) -> None:
    ns.mkdir(b"/real")
    ns.symlink(b"/to-real", b"real")
    ns.symlink(b"/to-none", b"none/none")
    ns.write(b"/to-real/a/b/f", parents=True)
    assert ns.stat(b"/real/a/b/f").size == 100
    with pytest.raises(NotFoundError):
        ns.write(b"/to-none/a/f", parents=True)
    with pytest.raises(NotFoundError):
        ns.mkdir(b"/to-none/a", parents=True)
    assert ns.symlink(b"/x/y/link", b"z", parents=True).size == 1
    assert ns.link(b"/x/y/link", b"/v/w/link", parents=True).nlink == 2
    assert ns.names(b"/") == [b"real", b"to-none", b"to-real", b"v", b"x"]


def test_a_batch_follows_its_links_together(ns: Namespace) -> None:
    paths = [b"/links/%d" % i for i in range(50)]
    ns.mkdir(b"/links")
    for i, path in enumerate(paths):
        ns.mkdir(b"/d/%d" % i, parents=True)
        ns.symlink(path, b"../d/%d/f" % i)
    with ns.statements() as made:
        sessions = ns.create(*paths)
    ns.close_sessions(*(CloseEntry(good(s).session, 3) for s in sessions))
    with ns.statements() as seen:
        attrs = ns.stat_many(*paths)
    assert [good(attr).size for attr in attrs] == [3] * 50
    assert len(seen) < 10 and len(made) < 25
    assert ns.stat(b"/d/7/f").inode == good(attrs[7]).inode
    links = {entry.name: entry.link for entry in ns.list(b"/links").entries}
    assert links == {b"%d" % i: b"../d/%d/f" % i for i in range(50)}


def test_a_batch_without_links_costs_no_statement_more(ns: Namespace) -> None:
    ns.write(b"/a/b/f", parents=True)
    with ns.statements() as seen:
        ns.stat_many(*[b"/a/b/f"] * 100)
    # Two levels of directories, the names with their attributes.
    assert len([text for text in seen if "directory_changes" not in text]) == 3


def test_a_page_of_long_links_ends_early(ns: Namespace) -> None:
    for i in range(200):
        ns.symlink(b"/%03d" % i, b"x" * 4_000)
    seen: list[bytes] = []
    page = ns.list(b"/", limit=4_096)
    while page.more:
        assert 0 < len(page.entries) < 200
        seen += [entry.name for entry in page.entries]
        page = ns.list(b"/", after=seen[-1], limit=4_096)
    seen += [entry.name for entry in page.entries]
    assert seen == [b"%03d" % i for i in range(200)]


def test_a_link_that_takes_a_name_gives_it_up_at_close(ns: Namespace) -> None:
    ns.write(b"/other")
    sessions = [ns.open_session(path) for path in (b"/f", b"/g")]
    ns.symlink(b"/f", b"other")
    ns.link(b"/f", b"/g")
    for session in sessions:
        ns.publish(session, 5)
    assert [ns.stat(path, follow=False).type for path in (b"/f", b"/g")] == [FileType.FILE] * 2
    assert ns.stat(b"/other").size == 100
    assert ns.tx.rows("SELECT * FROM symlinks") == []


# --- hard links -----------------------------------------------------------------------------------


def test_names_of_one_file_share_everything(ns: Namespace) -> None:
    ns.write(b"/f")
    ns.now_ns += SECOND_NS
    attr = ns.link(b"/f", b"/g")
    assert (attr.nlink, attr.ctime_ns, attr.mtime_ns) == (2, ns.now_ns, ns.now_ns - SECOND_NS)
    assert ns.stat(b"/f") == ns.stat(b"/g") == attr
    ns.write(b"/g", 7)
    assert ns.stat(b"/f").size == 7
    ((blob, _),) = ns.segments(b"/f")
    ns.rename(b"/f", b"/g")
    assert ns.names(b"/") == [b"f", b"g"], "two names of one file stay as they are"
    with pytest.raises(ExistsError):
        ns.rename(b"/f", b"/g", replace=False)
    assert ns.remove(b"/f") == [None]
    assert (ns.stat(b"/g").nlink, ns.blob_state(blob)) == (1, BlobState.LIVE)
    ns.remove(b"/g")
    assert ns.blob_state(blob) is BlobState.DEAD


def test_two_names_of_one_file_close_in_one_batch(ns: Namespace) -> None:
    ns.write(b"/f")
    ns.link(b"/f", b"/g")
    sessions = [ns.open_session(path) for path in (b"/f", b"/g", b"/f")]
    lengths = (1, 2, 3)
    closed = ns.close_sessions(
        *(CloseEntry(s.session, n) for s, n in zip(sessions, lengths, strict=True))
    )
    assert [good(attr).size for attr in closed] == [1, 2, 3]
    assert ns.segments(b"/g") == [(sessions[2].blob, 3)]
    ns.remove(b"/f", b"/g")


def test_what_cannot_be_linked(ns: Namespace) -> None:
    ns.mkdir(b"/d")
    ns.write(b"/f")
    ns.open_session(b"/reserved", create_mode=CreateMode.EXCLUSIVE)
    with pytest.raises(NotPermittedError):
        ns.link(b"/d", b"/e")
    for target in (b"/d", b"/f", b"/", b"/reserved"):
        with pytest.raises(ExistsError):
            ns.link(b"/f", target)
        with pytest.raises(ExistsError):
            ns.symlink(target, b"x")


def test_links_max(ns: Namespace) -> None:
    ns.write(b"/f")
    set_names = "UPDATE inodes SET nlink = ? WHERE type = 1"
    ns.transact(lambda tx: tx.run(set_names, (LINKS_MAX - 1,)))
    assert ns.link(b"/f", b"/g").nlink == LINKS_MAX
    with pytest.raises(LinksError):
        ns.link(b"/f", b"/h")
    ns.transact(lambda tx: tx.run(set_names, (2,)))


def test_symlinks_max(ns: Namespace) -> None:
    ns.write(b"/0")
    for i in range(SYMLINKS_MAX + 1):
        ns.symlink(b"/%d" % (i + 1), b"%d" % i)
    assert ns.stat(b"/%d" % SYMLINKS_MAX).size == 100
    assert kind(ns.stat_many(b"/%d" % (SYMLINKS_MAX + 1))[0]) is SymlinkLoopError


def test_an_exclusive_create_does_not_follow(ns: Namespace) -> None:
    ns.symlink(b"/dangling", b"none")
    with pytest.raises(ExistsError):
        ns.open_session(b"/dangling", create_mode=CreateMode.EXCLUSIVE)
    ns.write(b"/dangling")
    assert ns.names(b"/") == [b"dangling", b"none"]
    with pytest.raises(ExistsError):
        ns.copy(b"/none", b"/dangling", replace=False)
