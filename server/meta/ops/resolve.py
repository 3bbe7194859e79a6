"""From paths to (parent inode, name): level by level, through symbolic links, a batch at a time.

Previous hop: every operation that takes a path. Next hop: `resolve` (names and the dentries table).
A batch's parent directories are resolved once each, however many entries they have, by one
statement a level for all of them; only levels at which a symbolic link was met cost a second one.
How it works: a `_Walk` holds the names that are left of one directory path, the next one last. A
directory is entered; a symbolic link puts the names that it holds before those that are left, and
takes the walk back to the root if it is absolute. The last name of a path is not looked up: what
stands there, and whether a link there is followed (`Walker.follow`), is the operation's business.

Invariants: a walk's inodes are real ancestors, each the parent of the next, whatever links led
there, so `..` is the one before. At most `SYMLINKS_MAX` links are on the way to one file. Whoever
is not root needs the right to search each directory on the way. No key is at or below a name
`.snapshots` if something is to be changed there. Failure: each path has its own error; the others
go on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from ffs.errors import (
    DirectoryExpectedError,
    FFSError,
    NameTooLongError,
    NotFoundError,
    ReadOnlyError,
    SymlinkLoopError,
)
from ffs.limits import NAME_BYTES_MAX, SYMLINKS_MAX
from ffs.server.meta.ops.access import Caller, Guard, Want
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import make_directories
from ffs.server.meta.ops.names import ROOT_KEY, SNAPSHOTS, Found, Key, lookup, reserved_error
from ffs.server.meta.ops.paths import split_lasts, split_path
from ffs.server.meta.schema import RESERVED, ROOT_PARENT
from ffs.server.meta.store import ConflictError, Transaction
from ffs.types import ROOT_INODE, FileType

PARENTS_MODE: Final = 0o755
_DOTS: Final = (b".", b"..")

_TARGETS: Final = """
WITH keys(inode) AS (VALUES {keys})
SELECT s.inode, s.target FROM keys CROSS JOIN symlinks s WHERE s.inode = keys.inode
"""


def link_targets(tx: Transaction, inodes: Iterable[int]) -> dict[int, bytes]:
    """Return what symbolic links hold."""
    wanted = sorted(set(inodes))
    targets: dict[int, bytes] = dict(tx.rows_for(_TARGETS, [(inode,) for inode in wanted]))
    if tx.shared and len(targets) < len(wanted):
        raise ConflictError("a symbolic link was removed since its name was read")
    return targets


class _Walk:
    """One directory path on its way."""

    __slots__ = ("_own", "hops", "inodes", "left", "makes", "names", "path", "problem")

    def __init__(self, path: bytes, left: list[bytes], *, makes: bool) -> None:
        self.path = path
        self.left = left
        self.makes = makes
        self._own = len(left)
        self.hops = 0
        self.inodes: list[int] = [ROOT_INODE]
        self.names: list[bytes] = [b""]
        self.problem: FFSError | None = None

    def onward(self) -> _Walk:
        """Return a walk that begins where this one ended, with the links it has met."""
        walk = _Walk(self.path, [], makes=False)
        walk.inodes, walk.names, walk.hops = self.inodes.copy(), self.names.copy(), self.hops
        return walk

    def may_make(self) -> bool:
        """Whether the next name may be made: it is the path's own, not what a link holds."""
        return self.makes and len(self.left) <= self._own and not self.meets_snapshots()

    def meets_snapshots(self) -> bool:
        """Whether the walk is in a snapshot, or the next name leads to some."""
        return SNAPSHOTS in self.names or self.left[-1:] == [SNAPSHOTS]

    def step_over_dots(self) -> None:
        """Stay for `.`, go up for `..`; the root's parent is the root."""
        if self.left.pop() == b".." and len(self.inodes) > 1:
            self.inodes.pop()
            self.names.pop()

    def turn(self, target: bytes) -> None:
        """Go on along what the link that the next name stands for holds."""
        self.left.pop()
        self._own = min(self._own, len(self.left))
        self.follow(target)

    def follow(self, target: bytes) -> None:
        """Put the names of a link's target before those that are left."""
        self.hops += 1
        names = [name for name in target.split(b"/") if name]
        if self.hops > SYMLINKS_MAX:
            self.problem = SymlinkLoopError(
                f"more than {SYMLINKS_MAX} symbolic links on the way", path=self.path
            )
        elif any(len(name) > NAME_BYTES_MAX for name in names):
            self.problem = NameTooLongError(
                f"a symbolic link holds a name of more than {NAME_BYTES_MAX} bytes", path=self.path
            )
        if target[:1] == b"/":
            del self.inodes[1:], self.names[1:]
        self.left += reversed(names)

    def key(self) -> Key:
        """Return the directory's own name."""
        return (self.inodes[-2], self.names[-1]) if len(self.inodes) > 1 else ROOT_KEY


class Walker:
    """The paths of one batch, resolved for one caller.

    Args:    context: of an operation that changes what the paths name: those in snapshots get a
             ReadOnlyError; make: those of `paths` whose missing parents are to be made
    Attributes: keys: one per path, in order: its key, or why its parent cannot hold it; slashed:
             the places of paths that end in a slash, which may stand for directories only
    """

    def __init__(
        self,
        tx: Transaction,
        caller: Caller,
        paths: Sequence[bytes],
        *,
        make: Collection[bytes] = (),
        context: Context | None = None,
    ) -> None:
        self._tx = tx
        self._context = context
        self.guard = Guard(tx, caller)
        self.paths = paths
        self.slashed: set[int] = set()
        self.keys: list[Key | FFSError] = []
        self._walks: dict[bytes, _Walk] = {}
        self._turned: dict[int, _Walk] = {}
        self._parents: list[bytes] = []
        names = self._split(make)
        self._advance(self._walks.values())
        self._name_keys(names)

    # --- what operations ask --------------------------------------------------------------------

    def one(self) -> Key:
        """Return the key of the only path. Raises what went wrong."""
        (key,) = self.keys
        if isinstance(key, FFSError):
            raise key
        return key

    def good(self) -> list[Key]:
        """Return the keys of the paths that have one, each once."""
        return [key for key in dict.fromkeys(self.keys) if not isinstance(key, FFSError)]

    def trail(self, place: int = 0) -> Sequence[int]:
        """Return the inodes from the root down to the parent of a path that has a key."""
        walk = self._walk(place)
        # A path that led to a directory itself (`/`, or a link to `..`) has walked into it.
        return walk.inodes[:-1] if self.keys[place] == walk.key() else walk.inodes

    def lineage(self) -> list[tuple[int, bytes]]:
        """Return (inode, real path) of the directories above the only path, from the root down."""
        walk, above = self._walk(0), self.trail()
        return [
            (inode, b"/".join(walk.names[: depth + 1]) or b"/") for depth, inode in enumerate(above)
        ]

    def real_path(self) -> bytes:
        """Return the only path without the links that led to it."""
        key, walk = self.one(), self._walk(0)
        names = walk.names if key == walk.key() else [*walk.names, key[1]]
        return b"/".join(names) or b"/"

    def end_of_link(self, found: Found) -> Found | None:
        """Return what the only path stands for if `found` is at its name and links are followed."""
        if found[1] != FileType.SYMLINK:
            return found
        there = self.follow({0: found[0]})
        key = self.keys[0]
        return None if isinstance(key, FFSError) else there.get(key)

    def follow(self, links: Mapping[int, int]) -> dict[Key, Found]:
        """Replace the keys of paths that stand for symbolic links by those that the links lead to.

        Args:    links: place in the batch -> inode of the link there
        Returns: what stands at the new keys, and at those of links on the way
        """
        there: dict[Key, Found] = {}
        while links:
            targets = link_targets(self._tx, links.values())
            lasts: dict[int, bytes] = {}
            for place, inode in links.items():
                walk = self._turned[place] = self._walk(place).onward()
                lasts[place] = _follow_last(walk, targets[inode])
                if targets[inode][-1:] == b"/":
                    self.slashed.add(place)
            self._advance([self._turned[place] for place in links])
            for place, last in lasts.items():
                walk = self._turned[place]
                self.keys[place] = walk.problem or ((walk.inodes[-1], last) if last else walk.key())
            self._refuse_unsearchable(links)
            if self._context is not None:
                self._refuse_snapshots(links)
            keys = self._good_keys(links)
            found = lookup(self._tx, set(keys.values()))
            there.update(found)
            links = {
                place: found[key][0]
                for place, key in keys.items()
                if key in found and found[key][1] == FileType.SYMLINK
            }
        return there

    # --- how ------------------------------------------------------------------------------------

    def _split(self, make: Collection[bytes]) -> list[bytes | FFSError]:
        """Begin a walk for each parent; return the last name of each path (root: empty)."""
        make = frozenset(make)
        self._parents, names = split_lasts(self.paths)
        self._walks = {parent: _begin(parent) for parent in dict.fromkeys(self._parents)}
        if make:
            for path, parent in zip(self.paths, self._parents, strict=True):
                self._walks[parent].makes |= path in make
        self.slashed = {
            place for place, path in enumerate(self.paths) if path[-1:] == b"/" and names[place]
        }
        return names

    def _name_keys(self, names: Sequence[bytes | FFSError]) -> None:
        ends = {parent: walk.inodes[-1] for parent, walk in self._walks.items()}
        # The walk of no parent, the root's own, ends above the root.
        ends[b""] = ROOT_PARENT
        keys: list[Any] = list(zip(map(ends.__getitem__, self._parents), names, strict=True))
        problems = {parent: walk.problem for parent, walk in self._walks.items() if walk.problem}
        if problems or {*map(type, names)} != {bytes}:
            for place, (parent, name) in enumerate(zip(self._parents, names, strict=True)):
                if isinstance(name, FFSError):
                    keys[place] = name
                elif parent in problems:
                    keys[place] = problems[parent]
        self.keys = keys
        self._refuse_unsearchable(range(len(names)))
        if self._context is not None and (
            SNAPSHOTS in names or any(SNAPSHOTS in walk.names for walk in self._walks.values())
        ):
            self._refuse_snapshots(range(len(names)))

    def _walk(self, place: int) -> _Walk:
        return self._turned.get(place) or self._walks[self._parents[place]]

    def _good_keys(self, places: Iterable[int]) -> dict[int, Key]:
        return {place: key for place in places if not isinstance(key := self.keys[place], FFSError)}

    def _refuse_unsearchable(self, places: Iterable[int]) -> None:
        """Replace keys by errors where the caller may not search the parent."""
        if self.guard.caller.is_root:
            return
        keys = self._good_keys(places)
        self.guard.load(parent for parent, _ in keys.values())
        for place, (parent, _) in keys.items():
            if refusal := self.guard.refusal(parent, Want.SEARCH, self.paths[place]):
                self.keys[place] = refusal

    def _refuse_snapshots(self, places: Iterable[int]) -> None:
        """Replace keys by errors where something is to be changed that belongs to snapshots."""
        for place, key in self._good_keys(places).items():
            if key[1] == SNAPSHOTS or SNAPSHOTS in self._walk(place).names:
                self.keys[place] = ReadOnlyError(
                    "snapshots are read-only",
                    hint="`ffs snapshot` makes and removes them; clone one to work in it",
                    path=self.paths[place],
                )

    def _advance(self, walks: Iterable[_Walk]) -> None:
        """Take walks to their ends, all of them one name at a time."""
        walking = [walk for walk in walks if walk.left and walk.problem is None]
        while walking:
            self._refuse_walks(walking)
            stepping: list[tuple[_Walk, Key]] = []
            for walk in walking:
                if walk.problem is None:
                    if walk.hops and walk.left[-1] in _DOTS:
                        walk.step_over_dots()
                    else:
                        stepping.append((walk, (walk.inodes[-1], walk.left[-1])))
            self._step(stepping)
            walking = [walk for walk in walking if walk.left and walk.problem is None]

    def _refuse_walks(self, walking: Sequence[_Walk]) -> None:
        if self.guard.caller.is_root:
            return
        self.guard.load(walk.inodes[-1] for walk in walking)
        for walk in walking:
            walk.problem = self.guard.refusal(walk.inodes[-1], Want.SEARCH, walk.path)

    def _step(self, stepping: Sequence[tuple[_Walk, Key]]) -> None:
        """Take each walk into what its next name stands for, or give it its problem."""
        found: dict[Key, Found] = lookup(self._tx, {key for _, key in stepping})
        made = self._make([(w, key) for w, key in stepping if w.makes and key not in found])
        links: list[tuple[_Walk, int]] = []
        for walk, key in stepping:
            step = found.get(key) or made.get(key)
            if isinstance(step, FFSError):
                walk.problem = step
            elif step is None or (step[1] == RESERVED and not walk.may_make()):
                walk.problem = NotFoundError("no such directory", path=walk.path)
            elif step[1] == FileType.DIRECTORY:
                walk.names.append(walk.left.pop())
                walk.inodes.append(step[0])
            elif step[1] == FileType.SYMLINK:
                links.append((walk, step[0]))
            elif step[1] == RESERVED:
                walk.problem = reserved_error(key[1])
            else:
                walk.problem = DirectoryExpectedError(
                    "a path component is not a directory", path=walk.path
                )
        if links:
            targets = link_targets(self._tx, (inode for _, inode in links))
            for walk, inode in links:
                walk.turn(targets[inode])

    def _make(self, missing: Sequence[tuple[_Walk, Key]]) -> dict[Key, Found | FFSError]:
        """Make the missing directories that may be made."""
        making = sorted({key for walk, key in missing if walk.may_make()})
        if not making or self._context is None:
            return {}
        return make_directories(self._tx, self._context, making, PARENTS_MODE)


def _begin(parent: bytes) -> _Walk:
    """Return the walk of a parent path (empty: the root's own, which is nothing)."""
    try:
        names = split_path(parent) if parent else []
    except FFSError as error:
        walk = _Walk(parent, [], makes=False)
        walk.problem = error
        return walk
    names.reverse()
    return _Walk(parent, names, makes=False)


def _follow_last(walk: _Walk, target: bytes) -> bytes:
    """Begin to follow the link in the last place; return the new last name.

    Returns: empty if the target ends in no name (`/`, `..`): the walk then enters it itself
    """
    walk.follow(target)
    if not walk.left or walk.left[0] in _DOTS:
        return b""
    return walk.left.pop(0)
