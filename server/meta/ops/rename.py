"""rename: move a name, over files and empty directories if asked, across directories, atomically.

Previous hop: `service`. Next hop: `release` and `rmdir` for what is replaced. A name that is
replaced keeps its row and changes what stands there, so that others who wait for that name see what
took its place. Links in the last place are names like others, and two names of one file stay as
they are. A directory that moves to another directory does so alone in the whole namespace: two at a
time could each move into the other, and the tree would be cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ffs.errors import (
    DirectoryExpectedError,
    ExistsError,
    FileExpectedError,
    LoopError,
    NotEmptyError,
    NotFoundError,
)
from ffs.server.meta.ops.access import CHANGE_NAMES, Permissions, Want
from ffs.server.meta.ops.charges import charge_move, uncharge_names
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import delete_names, touch_directories
from ffs.server.meta.ops.names import (
    Found,
    Key,
    hold_inodes,
    hold_names,
    lookup,
    refuse_reserved,
    refuse_root,
    visible,
)
from ffs.server.meta.ops.quota import (
    amount_below,
    border_error,
    change_quota,
    quota_of,
    refuse_straddling,
)
from ffs.server.meta.ops.release import doom, release_doomed
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.rmdir import forget_empty, is_empty
from ffs.server.meta.ops.stat import attr_of
from ffs.server.meta.ops.tree import NOTHING, directories_at
from ffs.server.meta.store import ConflictError, Transaction
from ffs.types import FileType
from ffs.wire.messages import RenameRequest
from ffs.wire.method import Empty


@dataclass(frozen=True, slots=True)
class _Paths:
    """Both paths, resolved. `alone`: no directory but ours moves to another one meanwhile.

    `tree`: the directories that come under another quota, if a directory moves over a border.
    """

    source: Walker
    target: Walker
    alone: bool
    tree: frozenset[int] = frozenset()


def rename(tx: Transaction, context: Context, request: RenameRequest) -> Empty:
    """Move `source` to `target`; see `RenameRequest`.

    Raises:  NotFoundError, ExistsError, LoopError, NotEmptyError, FileExpectedError,
             DirectoryExpectedError, AccessError, as POSIX would; InvalidError for the root
    """
    paths = _locate(tx, context, request)
    source, target = paths.source.one(), paths.target.one()
    seen = lookup(tx, {source, target})
    staying, going = _directory(seen.get(source)), _directory(seen.get(target))
    alone = (going - staying) | paths.tree
    standing, alive = hold_names(tx, {source, target}, staying - alone, alone)
    moved = visible(standing.get(source))
    if moved is None:
        raise NotFoundError("no such file or directory", path=request.source)
    if target[0] not in alive:
        raise NotFoundError("no such directory", path=request.target)
    if _directory(moved) != staying:
        raise ConflictError("something else took the place of what was to be moved")
    replaced = standing.get(target)
    refuse_reserved(replaced, request.target)
    if replaced is not None and not request.replace and source != target:
        raise ExistsError("target exists", path=request.target)
    _refuse_places(paths, request, moved, replaced)
    if moved[1] == FileType.DIRECTORY and source[0] != target[0] and not paths.alone:
        raise ConflictError("a directory took the file's place")
    if replaced is not None and replaced[0] == moved[0]:
        return Empty()
    _refuse_caller(paths, request, moved, replaced)
    if replaced is not None:
        _check_replaced(tx, request, moved, replaced, going)
    if tx.shared:
        hold_inodes(tx, {moved[0], moved[0] if replaced is None else replaced[0]})
    _charge(tx, paths, alive, moved, replaced)
    tx.run("UPDATE inodes SET ctime_ns = ? WHERE inode = ?", (context.now_ns, moved[0]))
    if replaced is None:
        _move(tx, source, target)
    else:
        _move_over(tx, source, target, moved)
        _let_go(tx, context.now_ns, replaced, alive)
    _touch(tx, context.now_ns, source, target, moved, replaced)
    return Empty()


def _locate(tx: Transaction, context: Context, request: RenameRequest) -> _Paths:
    """Resolve both paths; if a directory moves to another one, with no other that does so."""

    def walk(path: bytes, what: str, make: Sequence[bytes] = ()) -> Walker:
        walker = Walker(tx, context.caller, [path], make=make, context=context)
        refuse_root(walker.one(), what)
        return walker

    source = walk(request.source, "renamed")
    moved = visible(lookup(tx, source.good()).get(source.one()))
    if moved is None:
        raise NotFoundError("no such file or directory", path=request.source)
    target = walk(request.target, "replaced", [request.target] if request.parents else [])
    same = source.one()[0] == target.one()[0]
    if moved[1] != FileType.DIRECTORY or same or moved[0] in target.trail():
        return _Paths(source, target, alone=False)
    tx.lock("move_directory")
    if tx.shared:
        # Others may have moved what the paths lead through while we waited.
        source, target = walk(request.source, "renamed"), walk(request.target, "replaced")
    borders = quota_of(tx, source.one()[0]) != quota_of(tx, target.one()[0])
    tree = directories_at(tx, moved[0], left_out=NOTHING) if borders else ()
    return _Paths(source, target, alone=True, tree=frozenset(tree))


def _refuse_places(
    paths: _Paths, request: RenameRequest, moved: Found, replaced: Found | None
) -> None:
    """Raise where the paths themselves cannot be, in the order in which Linux decides."""
    if moved[1] != FileType.DIRECTORY and (paths.source.slashed or paths.target.slashed):
        raise DirectoryExpectedError("a slash at the end names a directory", path=request.source)
    if moved[0] in paths.target.trail():
        raise LoopError("a directory cannot be moved into itself", path=request.target)
    if replaced is not None and replaced[0] in paths.source.trail():
        raise NotEmptyError("target holds the source", path=request.target)


def _refuse_caller(
    paths: _Paths,
    request: RenameRequest,
    moved: Found,
    replaced: Found | None,
) -> None:
    """Raise AccessError unless the caller may take the one name and give the other."""
    guard = paths.source.guard
    (source, _), (target, _) = paths.source.one(), paths.target.one()
    refusal = guard.take_refusal(source, moved[0], request.source)
    if refusal is None and replaced is not None:
        refusal = guard.take_refusal(target, replaced[0], request.target)
    elif refusal is None:
        refusal = guard.refusal(target, CHANGE_NAMES, request.target)
    if refusal is None and moved[1] == FileType.DIRECTORY and source != target:
        # Its `..` will be another directory: that is a change of it.
        refusal = guard.refusal(moved[0], Want.WRITE, request.source)
    if refusal is not None:
        raise refusal


def _directory(found: Found | None) -> set[int]:
    """Return the directory that was found, if it is one."""
    return {found[0]} if found is not None and found[1] == FileType.DIRECTORY else set()


def _check_replaced(
    tx: Transaction, request: RenameRequest, moved: Found, replaced: Found, held: set[int]
) -> None:
    """Raise unless POSIX lets `moved` take the place of what stands at the target.

    Args:    held: the directory that stood there and is held alone, if there was one
    """
    inode, type_ = replaced
    if type_ == FileType.DIRECTORY:
        if moved[1] != FileType.DIRECTORY:
            raise FileExpectedError("target is a directory", path=request.target)
        if inode not in held:
            raise ConflictError("another directory was moved to the target")
        if not is_empty(tx, inode):
            raise NotEmptyError("target directory is not empty", path=request.target)
    elif moved[1] == FileType.DIRECTORY:
        raise DirectoryExpectedError("target is not a directory", path=request.target)


def _move(tx: Transaction, source: Key, target: Key) -> None:
    tx.run(
        "UPDATE dentries SET parent = ?, name = ? WHERE parent = ? AND name = ?",
        (*target, *source),
    )


def _move_over(tx: Transaction, source: Key, target: Key, moved: Found) -> None:
    delete_names(tx, [source])
    tx.run(
        "UPDATE dentries SET inode = ?, type = ? WHERE parent = ? AND name = ?", (*moved, *target)
    )


def _charge(
    tx: Transaction,
    paths: _Paths,
    alive: Mapping[int, Permissions],
    moved: Found,
    replaced: Found | None,
) -> None:
    """Charge what moves over a quota's border to the other side, and give back what it replaces.

    Raises:  QuotaExceededError, QuotaBorderError
    """
    source, target = (alive[walker.one()[0]].quota for walker in (paths.source, paths.target))
    if replaced is not None and replaced[1] != FileType.DIRECTORY:
        uncharge_names(tx, [(replaced[0], target)])
    if source == target:
        return
    if moved[1] != FileType.DIRECTORY:
        attr = attr_of(tx, moved[0])
        if attr.nlink > 1:
            raise border_error()
        size = attr.size if attr.type == FileType.FILE else 0
        charge_move(tx, source, target, size, 1)
        return
    tree = directories_at(tx, moved[0], left_out=NOTHING)
    if not tree <= paths.tree or not tree <= alive.keys():
        raise ConflictError("the quotas changed, or directories came in")
    refuse_straddling(tx, tree)
    size, files = amount_below(tx, moved[0])
    charge_move(tx, source, target, size, files + 1)
    change_quota(tx, tree, source, target)


def _let_go(
    tx: Transaction, now_ns: int, replaced: Found, alive: Mapping[int, Permissions]
) -> None:
    """Take one name off what stood at the target."""
    inode, type_ = replaced
    if type_ == FileType.DIRECTORY:
        forget_empty(tx, now_ns, inode, alive[inode].quota)
    else:
        doom(tx, [inode])
        release_doomed(tx, now_ns)


def _touch(
    tx: Transaction, now_ns: int, source: Key, target: Key, moved: Found, replaced: Found | None
) -> None:
    """Renew the times of both directories, and count subdirectories."""
    subdirectories = {source[0]: 0, target[0]: 0}
    if moved[1] == FileType.DIRECTORY:
        subdirectories[source[0]] -= 1
        subdirectories[target[0]] += 1
    if replaced is not None and replaced[1] == FileType.DIRECTORY:
        subdirectories[target[0]] -= 1
    touch_directories(tx, now_ns, subdirectories)
