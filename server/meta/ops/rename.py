"""rename: move a name, over files and empty directories if asked, across directories, atomically.

Previous hop: `service`. Next hop: `release` and `rmdir` for what is replaced. A name that is
replaced keeps its row and changes what stands there, so that others who wait for that name see what
took its place. A directory that moves to another directory does so alone in the whole namespace:
two at a time could each move into the other, and the tree would be cut off.
"""

from __future__ import annotations

from ffs.errors import (
    DirectoryExpectedError,
    ExistsError,
    FileExpectedError,
    LoopError,
    NotEmptyError,
    NotFoundError,
)
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import delete_names, touch_directories
from ffs.server.meta.ops.names import (
    Found,
    Key,
    hold_names,
    lookup,
    refuse_reserved,
    refuse_root,
    visible,
)
from ffs.server.meta.ops.release import doom, release_doomed
from ffs.server.meta.ops.resolve import Trail, locate
from ffs.server.meta.ops.rmdir import forget_empty, is_empty
from ffs.server.meta.store import ConflictError, Transaction
from ffs.types import FileType
from ffs.wire.messages import Empty, RenameRequest


def rename(tx: Transaction, context: Context, request: RenameRequest) -> Empty:
    """Move `source` to `target`; see `RenameRequest`.

    Raises:  NotFoundError, ExistsError, LoopError, NotEmptyError, FileExpectedError,
             DirectoryExpectedError, as POSIX would; InvalidError for the root
    """
    source, target, trail, alone = _locate(tx, context, request)
    seen = lookup(tx, {source, target})
    staying, going = _directory(seen.get(source)), _directory(seen.get(target))
    standing, alive = hold_names(tx, {source, target}, staying, going - staying)
    moved = visible(standing.get(source))
    if moved is None:
        raise NotFoundError("no such file or directory", path=request.source)
    if target[0] not in alive:
        raise NotFoundError("no such directory", path=request.target)
    if _directory(moved) != staying:
        raise ConflictError("something else took the place of what was to be moved")
    if moved[0] in trail:
        raise LoopError("a directory cannot be moved into itself", path=request.target)
    if moved[1] == FileType.DIRECTORY and source[0] != target[0] and not alone:
        raise ConflictError("a directory took the file's place")
    replaced = standing.get(target)
    refuse_reserved(replaced, request.target)
    if replaced is not None and replaced[0] == moved[0]:
        return Empty()
    if replaced is not None:
        _check_replaced(tx, request, moved, replaced, going)
    tx.run("UPDATE inodes SET ctime_ns = ? WHERE inode = ?", (context.now_ns, moved[0]))
    if replaced is None:
        _move(tx, source, target)
    else:
        _move_over(tx, source, target, moved)
        _let_go(tx, context.now_ns, replaced)
    _touch(tx, context.now_ns, source, target, moved, replaced)
    return Empty()


def _locate(
    tx: Transaction, context: Context, request: RenameRequest
) -> tuple[Key, Key, Trail, bool]:
    """Return source, target, the trail to the target, and whether no directory moves but ours."""
    source, _ = locate(tx, request.source)
    refuse_root(source, "renamed")
    moved = visible(lookup(tx, [source]).get(source))
    if moved is None:
        raise NotFoundError("no such file or directory", path=request.source)
    target, trail = locate(tx, request.target, parents=request.parents, context=context)
    refuse_root(target, "replaced")
    if moved[1] != FileType.DIRECTORY or source[0] == target[0] or moved[0] in trail:
        return source, target, trail, False
    tx.lock("move_directory")
    if tx.shared:
        # Others may have moved what the paths lead through while we waited.
        source, _ = locate(tx, request.source)
        target, trail = locate(tx, request.target)
    return source, target, trail, True


def _directory(found: Found | None) -> set[int]:
    """Return the directory that was found, if it is one."""
    return {found[0]} if found is not None and found[1] == FileType.DIRECTORY else set()


def _check_replaced(
    tx: Transaction, request: RenameRequest, moved: Found, replaced: Found, held: set[int]
) -> None:
    """Raise unless POSIX lets `moved` take the place of what stands at the target.

    Args:    held: the directory that stood there and is held alone, if there was one
    """
    if not request.replace:
        raise ExistsError("target exists", path=request.target)
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


def _let_go(tx: Transaction, now_ns: int, replaced: Found) -> None:
    """Take one name off what stood at the target."""
    inode, type_ = replaced
    if type_ == FileType.DIRECTORY:
        forget_empty(tx, now_ns, inode)
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
