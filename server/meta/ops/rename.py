"""rename: move a name, over files and empty directories if asked, across directories, atomically.

Previous hop: `service`. Next hop: `resolve`, `remove` and `rmdir` for what is replaced.
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
from ffs.server.meta.ops.remove import unlink
from ffs.server.meta.ops.resolve import (
    Found,
    Key,
    locate,
    lookup,
    refuse_reserved,
    refuse_root,
    touch_directories,
)
from ffs.server.meta.ops.rmdir import is_empty, remove_empty
from ffs.server.meta.store import Transaction
from ffs.types import FileType
from ffs.wire.messages import Empty, RenameRequest


def rename(tx: Transaction, context: Context, request: RenameRequest) -> Empty:
    """Move `source` to `target`; see `RenameRequest`.

    Raises:  NotFoundError, ExistsError, LoopError, NotEmptyError, FileExpectedError,
             DirectoryExpectedError, as POSIX would; InvalidError for the root
    """
    source, _ = locate(tx, request.source)
    refuse_root(source, "renamed")
    moved = lookup(tx, [source]).get(source)
    if moved is None:
        raise NotFoundError("no such file or directory", path=request.source)
    target, trail = locate(tx, request.target, parents=request.parents, context=context)
    refuse_root(target, "replaced")
    if moved[0] in trail:
        raise LoopError("a directory cannot be moved into itself", path=request.target)
    replaced = lookup(tx, [target]).get(target)
    if replaced is not None:
        if replaced[0] == moved[0]:
            return Empty()
        _replace(tx, context, request, target, moved, replaced)
    else:
        refuse_reserved(tx, target)
    _move(tx, context.now_ns, source, target, moved)
    return Empty()


def _replace(
    tx: Transaction,
    context: Context,
    request: RenameRequest,
    target: Key,
    moved: Found,
    replaced: Found,
) -> None:
    """Remove what stands at the target, if POSIX lets `moved` take its place."""
    if not request.replace:
        raise ExistsError("target exists", path=request.target)
    inode, type_ = replaced
    if type_ == FileType.DIRECTORY:
        if moved[1] != FileType.DIRECTORY:
            raise FileExpectedError("target is a directory", path=request.target)
        if not is_empty(tx, inode):
            raise NotEmptyError("target directory is not empty", path=request.target)
        remove_empty(tx, context.now_ns, target, inode)
        return
    if moved[1] == FileType.DIRECTORY:
        raise DirectoryExpectedError("target is not a directory", path=request.target)
    unlink(tx, context.now_ns, {target: inode})


def _move(tx: Transaction, now_ns: int, source: Key, target: Key, moved: Found) -> None:
    inode, type_ = moved
    tx.run(
        "UPDATE dentries SET parent = ?, name = ? WHERE parent = ? AND name = ?",
        (*target, *source),
    )
    tx.run("UPDATE inodes SET ctime_ns = ? WHERE inode = ?", (now_ns, inode))
    subdirectories = {source[0]: 0, target[0]: 0}
    if type_ == FileType.DIRECTORY:
        subdirectories[source[0]] -= 1
        subdirectories[target[0]] += 1
    touch_directories(tx, now_ns, subdirectories)
