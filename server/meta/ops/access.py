"""Who may do what: POSIX permission bits, owners, groups, sticky directories.

Previous hop: every operation. Next hop: nothing; the rules are pure, and `Guard` reads the rows
that they need where an operation has not done so.
Invariants: root may do everything and is never looked up for it, so that checks cost it nothing;
of the three sets of bits exactly one counts, the first that fits (owner, group, others), as POSIX
says. Failure: `AccessError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag
from typing import Final, Protocol

from ffs.auth.token import Claims
from ffs.errors import AccessError
from ffs.server.meta.store import Transaction
from ffs.types import Attr

ROOT_UID: Final = 0
SET_UID: Final = 0o4000
SET_GID: Final = 0o2000
STICKY: Final = 0o1000
_GROUP_EXECUTE: Final = 0o010

_PERMISSIONS: Final = """
WITH keys(inode) AS (VALUES {keys})
SELECT i.inode, i.mode, i.uid, i.gid FROM keys CROSS JOIN inodes i WHERE i.inode = keys.inode
"""
_SET_MODES: Final = """
WITH keys(inode, mode) AS (VALUES {keys})
UPDATE inodes SET mode = keys.mode FROM keys WHERE inodes.inode = keys.inode
"""


class Want(IntFlag):
    """What a caller wants of an inode, as the bits of a mode."""

    SEARCH = 1
    """To go through a directory to a name in it."""
    WRITE = 2
    READ = 4


CHANGE_NAMES: Final = Want.WRITE | Want.SEARCH
"""What making, removing and renaming take of the directory."""
LIST_NAMES: Final = Want.READ | Want.SEARCH
"""What a listing takes of the directory: it shows attributes too."""


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf an operation runs. `gid` is the group that new files get."""

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    claims: Claims | None = None
    """Of its token; None: it needs no grants."""

    @property
    def is_root(self) -> bool:
        """Whether no permission bit counts."""
        return self.uid == ROOT_UID

    def is_in(self, gid: int) -> bool:
        """Whether the caller belongs to a group."""
        return gid == self.gid or gid in self.groups


ROOT: Final = Caller(ROOT_UID, 0)
"""The holder of the cluster key."""


class Owned(Protocol):
    """What permissions are decided by; `Attr` is one."""

    @property
    def mode(self) -> int:
        """Permission bits, set-id bits and the sticky bit."""
        ...

    @property
    def uid(self) -> int:
        """The owner."""
        ...

    @property
    def gid(self) -> int:
        """The group."""
        ...


@dataclass(frozen=True, slots=True)
class Permissions:
    """What of an inode permissions are decided by, and a directory's quota."""

    mode: int
    uid: int
    gid: int
    quota: int = 0
    """The nearest directory with a quota, itself or above; 0: there is none, or it was not read."""


def allowed(attr: Owned, caller: Caller, want: int) -> bool:
    """Return whether the caller may do all that is wanted of an inode."""
    if caller.is_root:
        return True
    if caller.uid == attr.uid:
        granted = attr.mode >> 6
    elif caller.is_in(attr.gid):
        granted = attr.mode >> 3
    else:
        granted = attr.mode
    return granted & want == want


def owns(attr: Owned, caller: Caller) -> bool:
    """Return whether the caller may change mode and times of an inode."""
    return caller.is_root or caller.uid == attr.uid


def may_take_name(directory: Owned, named: Owned, caller: Caller) -> bool:
    """Return whether the caller may remove or rename a name in a directory that it may change.

    In a sticky directory only the owners of what is named, and of the directory, may.
    """
    return not directory.mode & STICKY or owns(named, caller) or owns(directory, caller)


def mode_set(mode: int, attr: Owned, caller: Caller) -> int:
    """Return the mode that a caller who owns an inode gets by asking for `mode`."""
    mode &= 0o7777
    if not caller.is_root and not caller.is_in(attr.gid):
        mode &= ~SET_GID
    return mode


def mode_without_privileges(mode: int) -> int:
    """Return what is left of a file's mode when its owner changes or a stranger writes to it.

    Source:  chown(2): set-group-ID without group execution is mandatory locking, and stays
    """
    return mode & ~(SET_UID | (SET_GID if mode & _GROUP_EXECUTE else 0))


def group_of_new(directory: Owned, caller: Caller) -> int:
    """Return the group that a new inode in a directory gets."""
    return directory.gid if directory.mode & SET_GID else caller.gid


def mode_of_new_directory(mode: int, directory: Owned) -> int:
    """Return the mode of a new directory: below a set-group-ID directory it is one as well."""
    return (mode & 0o7777) | (directory.mode & SET_GID)


class Guard:
    """What one caller may do to inodes of which only the ids are known yet.

    Why: permissions of a batch's directories are read by one statement, and for root by none.
    """

    def __init__(self, tx: Transaction, caller: Caller) -> None:
        self._tx = tx
        self._known: dict[int, Permissions] = {}
        self.caller = caller

    def load(self, inodes: Iterable[int]) -> None:
        """Read the permissions of those inodes that are not known yet, for callers that need it."""
        if self.caller.is_root:
            return
        wanted = sorted(set(inodes) - self._known.keys())
        for inode, mode, uid, gid in self._tx.rows_for(_PERMISSIONS, [(i,) for i in wanted]):
            self._known[inode] = Permissions(mode, uid, gid)

    def refusal(self, inode: int, want: int, path: bytes) -> AccessError | None:
        """Return why the caller may not, None if he may. An inode that is gone refuses nothing."""
        if self.caller.is_root:
            return None
        self.load([inode])
        known = self._known.get(inode)
        if known is None or allowed(known, self.caller, want):
            return None
        return denied(path)

    def take_refusal(self, directory: int, named: int, path: bytes) -> AccessError | None:
        """Return why the caller may not take away a name that stands for an inode."""
        if self.caller.is_root:
            return None
        self.load([directory, named])
        above, inode = self._known.get(directory), self._known.get(named)
        if above is None or inode is None:
            return None
        if allowed(above, self.caller, CHANGE_NAMES) and may_take_name(above, inode, self.caller):
            return None
        return denied(path)


def denied(path: bytes) -> AccessError:
    """Return the error for what a caller may not do at a path."""
    return AccessError("permission denied", path=path)


def drop_privileges(tx: Transaction, caller: Caller, attrs: Iterable[Attr]) -> None:
    """Take the set-id bits off files that a caller who is not root wrote to."""
    if caller.is_root:
        return
    privileged = [a for a in attrs if mode_without_privileges(a.mode) != a.mode]
    tx.run_for(_SET_MODES, sorted((a.inode, mode_without_privileges(a.mode)) for a in privileged))
