"""The same tree twice, in a namespace and in a directory of the kernel, and what cases do to both.

The namespace tries every case and takes it back. A child process tries it as well, as root or as
somebody else: on a tree of its own if the namespace changed something, else on one that all such
cases share. Both must come to the same outcome (a builtin class of error, an errno where there is
none, or "done") and to the same tree.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ffs.server.meta.ops.access import ROOT, Caller
from ffs.server.meta.ops.stat import ATTR_COLUMNS
from ffs.types import Attr, FileType
from ffs.wire.messages import CloseEntry, CreateMode
from tests.namespace import Namespace, good

Case = tuple[str, ...]
"""A word of `_DO` and its arguments: paths below the tree's top, or numbers."""
Outcome = str | int
Entry = tuple[int, int, int, int, int, int, str]
"""Type, mode, uid, gid, size, how many names, what a symbolic link holds."""

TOP: Final = "{top}"
"""Stands for the tree's own place in what a symbolic link holds."""
_FILE_BYTES: Final = 100
_READING: Final = frozenset({"read", "stat", "lstat", "readlink", "list", "du"})
"""Words that change nothing."""
_SHARED: Final = "shared"
"""The tree of cases that leave it as it is."""


@dataclass(frozen=True, slots=True)
class Tree:
    """What is there before each case: (path, mode, uid, gid), and (path, target)."""

    directories: Sequence[tuple[str, int, int, int]]
    files: Sequence[tuple[str, int, int, int]]
    links: Sequence[tuple[str, str]] = ()
    names: Sequence[tuple[str, str]] = ()
    """(path, second name) of hard links."""


# --- the kernel's side ----------------------------------------------------------------------------


def build_locally(tree: Tree, base: Path) -> None:
    """Make the tree in a directory."""
    for path, *_ in tree.directories:
        (base / path).mkdir(parents=True)
    for path, *_ in tree.files:
        (base / path).write_bytes(b"x" * _FILE_BYTES)
    for path, target in tree.links:
        os.symlink(target.replace(TOP, str(base)), base / path)
    for path, second in tree.names:
        os.link(base / path, base / second, follow_symlinks=False)
    for path, mode, uid, gid in [*tree.files, *tree.directories]:
        os.chown(base / path, uid, gid)
        (base / path).chmod(mode)


_CHILD: Final = r"""
import json, os, shutil, sys
spec = json.load(sys.stdin)
os.chdir(spec["base"])
os.umask(0)
os.setgroups(spec["groups"]); os.setgid(spec["gid"]); os.setuid(spec["uid"])

def opened(path, flags):
    os.close(os.open(path, flags, 0o640))

def read(path):
    with open(path, "rb"):
        pass

def listed(path):
    for name in os.listdir(path):
        os.lstat(os.path.join(path, name))

def fail(error):
    raise error

def walked(path):
    os.lstat(path)
    for top, directories, files in os.walk(path, onerror=fail):
        for name in directories + files:
            os.lstat(os.path.join(top, name))

def copied(source, target):
    # Nothing is made or cut before both sides have been found open.
    with open(source, "rb") as content:
        mode = os.fstat(content.fileno()).st_mode & 0o777
        with open(os.open(target, os.O_WRONLY | os.O_CREAT, mode), "wb") as into:
            if not os.path.sameopenfile(content.fileno(), into.fileno()):
                into.truncate(0)
                shutil.copyfileobj(content, into)

W = os.O_WRONLY
DO = {
    "read": read,
    "write": lambda p: opened(p, W | os.O_CREAT | os.O_TRUNC),
    "append": lambda p: opened(p, W | os.O_CREAT | os.O_APPEND),
    "exclusive": lambda p: opened(p, W | os.O_CREAT | os.O_EXCL),
    "truncate": lambda p: os.truncate(p, 1),
    "stat": os.stat, "lstat": os.lstat, "unlink": os.unlink, "readlink": os.readlink,
    "chmod": lambda p: os.chmod(p, 0o711),
    "chmod-set-id": lambda p: os.chmod(p, 0o6711),
    "utime": lambda p: os.utime(p, ns=(5, 5)),
    "lutime": lambda p: os.utime(p, ns=(5, 5), follow_symlinks=False),
    "chown": lambda p, uid: os.chown(p, int(uid), -1),
    "lchown": lambda p, uid: os.chown(p, int(uid), -1, follow_symlinks=False),
    "chgrp": lambda p, gid: os.chown(p, -1, int(gid)),
    "mkdir": lambda p: os.mkdir(p, 0o750),
    "makedirs": lambda p: os.makedirs(p, 0o750, exist_ok=True),
    "symlink": lambda p: os.symlink("x", p),
    "list": listed, "rmdir": os.rmdir, "du": walked, "rmtree": shutil.rmtree,
    "rename": os.rename,
    "link": lambda s, t: os.link(s, t, follow_symlinks=False),
    "copy": copied,
}
outcomes = []
for number, (op, *args) in enumerate(spec["cases"]):
    try:
        DO[op](*(a if a.isdigit() else f"{spec['tops'][number]}/{a}" for a in args))
        outcomes.append("done")
    except OSError as error:
        outcomes.append(type(error).__name__ if type(error) is not OSError else error.errno)
json.dump(outcomes, sys.stdout)
"""


def try_locally(
    tree: Tree, cases: Sequence[Case], tops: Sequence[str], base: Path, caller: Caller
) -> list[Outcome]:
    """Try each case on the tree `base`/<its top>, in a child that becomes the caller."""
    for top in sorted(set(tops)):
        build_locally(tree, base / top)
    spec = {
        "tops": tops,
        "base": str(base),
        "groups": sorted(caller.groups),
        "gid": caller.gid,
        "uid": caller.uid,
        "cases": cases,
    }
    child = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _CHILD],
        input=json.dumps(spec),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=90,
    )
    outcomes: list[Outcome] = json.loads(child.stdout)
    return outcomes


def entries_locally(top: Path) -> dict[str, Entry]:
    """Return everything below a directory."""
    found: dict[str, Entry] = {}
    for path, directories, files in os.walk(top):
        for name in directories + files:
            full = os.path.join(path, name)
            attr = os.lstat(full)
            link = os.readlink(full) if stat.S_ISLNK(attr.st_mode) else ""
            kinds = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFLNK: 3}
            kind = kinds[stat.S_IFMT(attr.st_mode)]
            # What directories count as names and bytes is each file system's own affair.
            size, names = (0, 0) if kind == 2 else (attr.st_size, attr.st_nlink)
            if link.startswith(str(top)):
                link = TOP + link.removeprefix(str(top))
            size = len(link) if kind == 3 else size
            mode = stat.S_IMODE(attr.st_mode)
            owner = (attr.st_uid, attr.st_gid)
            found[os.path.relpath(full, top)] = (kind, mode, *owner, size, names, link)
    return found


# --- the namespace's side -------------------------------------------------------------------------


def build_in(ns: Namespace, tree: Tree, top: bytes) -> None:
    """Make the tree in the namespace, as root."""
    ns.mkdir(top)
    for path, *_ in tree.directories:
        ns.mkdir(_below(top, path))
    for path, *_ in tree.files:
        ns.write(_below(top, path), _FILE_BYTES)
    for path, target in tree.links:
        ns.symlink(_below(top, path), os.fsencode(target.replace(TOP, os.fsdecode(top))))
    for path, second in tree.names:
        ns.link(_below(top, path), _below(top, second))
    for path, mode, uid, gid in [*tree.files, *tree.directories]:
        ns.setattr(_below(top, path), mode=mode, uid=uid, gid=gid)


def _below(top: bytes, path: str) -> bytes:
    return top + b"/" + os.fsencode(path)


def _operations(ns: Namespace) -> dict[str, Callable[..., object]]:
    """What each case's word means in the namespace."""

    def written(path: bytes, create_mode: CreateMode) -> object:
        session = ns.open_session(path, create_mode=create_mode, mode=0o640)
        return good(ns.close_sessions(CloseEntry(session.session, 0))[0])

    return {
        "read": lambda p: good(ns.open_many(p)[0]),
        "write": lambda p: written(p, CreateMode.REPLACE),
        "append": lambda p: written(p, CreateMode.APPEND),
        "exclusive": lambda p: written(p, CreateMode.EXCLUSIVE),
        "truncate": lambda p: ns.setattr(p, size=1),
        "stat": ns.stat,
        "lstat": lambda p: ns.stat(p, follow=False),
        "unlink": lambda p: good(ns.remove(p)[0]),
        "readlink": ns.readlink,
        "chmod": lambda p: ns.setattr(p, mode=0o711),
        "chmod-set-id": lambda p: ns.setattr(p, mode=0o6711),
        "utime": lambda p: ns.setattr(p, atime_ns=5, mtime_ns=5),
        "lutime": lambda p: ns.setattr(p, atime_ns=5, mtime_ns=5, follow=False),
        "chown": lambda p, uid: ns.setattr(p, uid=int(uid)),
        "lchown": lambda p, uid: ns.setattr(p, uid=int(uid), follow=False),
        "chgrp": lambda p, gid: ns.setattr(p, gid=int(gid)),
        "mkdir": lambda p: ns.mkdir(p, mode=0o750),
        "makedirs": lambda p: ns.mkdir(p, mode=0o750, parents=True, exist_ok=True),
        "symlink": lambda p: ns.symlink(p, b"x"),
        "list": ns.list,
        "rmdir": ns.rmdir,
        "du": ns.usage,
        "rmtree": lambda p: ns.rmdir(p, recursive=True),
        "rename": ns.rename,
        "link": ns.link,
        "copy": ns.copy,
    }


_EVERYTHING: Final = f"""
SELECT d.parent, d.name, s.target, {ATTR_COLUMNS}
FROM dentries d JOIN inodes i ON i.inode = d.inode LEFT JOIN symlinks s ON s.inode = i.inode
"""


def try_in(ns: Namespace, case: Case, top: bytes, caller: Caller) -> Outcome:
    """Try a case in the namespace; return what the kernel's side would call the outcome."""
    op, *args = case
    full: list[Any] = [a if a.isdigit() else _below(top, a) for a in args]
    ns.caller = caller
    try:
        _operations(ns)[op](*full)
    except OSError as error:
        builtins = [c for c in type(error).__mro__ if c.__module__ == "builtins"]
        return builtins[0].__name__ if builtins[0] is not OSError else error.errno or 0
    finally:
        ns.caller = ROOT
    return "done"


def entries_in(ns: Namespace, top: bytes) -> dict[str, Entry]:
    """Return everything below a directory."""
    names: dict[int, list[tuple[bytes, Attr, bytes]]] = {}
    for parent, name, held, *columns in ns.tx.rows(_EVERYTHING):
        names.setdefault(parent, []).append((name, Attr(*columns), held or b""))
    found: dict[str, Entry] = {}
    pending = [(ns.stat(top).inode, "")]
    while pending:
        parent, path = pending.pop()
        for name, attr, target in names.get(parent, []):
            below = path + os.fsdecode(name)
            link = os.fsdecode(target)
            if link.startswith(os.fsdecode(top)):
                link = TOP + link.removeprefix(os.fsdecode(top))
            size, nlink = attr.size, attr.nlink
            if attr.type == FileType.DIRECTORY:
                pending.append((attr.inode, below + "/"))
                size, nlink = 0, 0
            elif attr.type == FileType.SYMLINK:
                assert size == len(target)
                size = len(link)
            found[below] = (attr.type, attr.mode, attr.uid, attr.gid, size, nlink, link)
    return found


# --- both -----------------------------------------------------------------------------------------


def differences(
    ns: Namespace, tree: Tree, cases: Sequence[Case], caller: Caller = ROOT
) -> list[str]:
    """Try every case on both sides; return what came out differently.

    The engines differ in their SQL alone, so that the slower one tries every fifth case.
    """
    cases = cases[::5] if ns.tx.shared else cases
    top = b"/top"
    build_in(ns, tree, top)
    found = [_try(ns, case, top, caller) for case in cases]
    changed = [after is not None for _, after in found]
    tops = [str(n) if own else _SHARED for n, own in enumerate(changed)]
    with tempfile.TemporaryDirectory(dir=_memory()) as directory:
        base = Path(directory)
        base.chmod(0o755)  # others must get to the trees
        kernels = try_locally(tree, cases, [*tops], base, caller)
        told = [
            f"{case}: {ours}, the kernel says {kernel}"
            for case, (ours, _), kernel in zip(cases, found, kernels, strict=True)
            if ours != kernel
        ]
        for case, (_, after), place in zip(cases, found, tops, strict=True):
            want = entries_locally(base / place) if after is not None else {}
            told += [
                f"{case}: {path} is {after.get(path)}, the kernel has {want.get(path)}"
                for path in sorted((after or {}).keys() | want.keys())
                if after is not None and after.get(path) != want.get(path)
            ]
    return told


def _try(
    ns: Namespace, case: Case, top: bytes, caller: Caller
) -> tuple[Outcome, dict[str, Entry] | None]:
    """Return the outcome of a case, and the tree after it if it may be another one."""
    if case[0] in _READING:
        return try_in(ns, case, top, caller), None

    def attempt() -> tuple[Outcome, dict[str, Entry] | None]:
        outcome = try_in(ns, case, top, caller)
        return outcome, entries_in(ns, top) if outcome == "done" else None

    return ns.undone(attempt)


def _memory() -> str | None:
    """Return where files cost no disk, if there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
