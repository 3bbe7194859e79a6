"""From paths to (parent inode, name): level by level, one statement a level for a whole batch.

Previous hop: every operation that takes a path. Next hop: the dentries table. A batch's parent
directories are resolved once each, however many entries they have. Bounds (name and path length,
no NUL, no `.` or `..`) are checked here and nowhere else. Repeated and trailing slashes count as
one and none. The root is the entry (ROOT_PARENT, b"").
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from ffs.errors import (
    BadNameError,
    DirectoryExpectedError,
    FFSError,
    NameTooLongError,
    NotFoundError,
)
from ffs.limits import NAME_BYTES_MAX, PATH_BYTES_MAX
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import make_directories
from ffs.server.meta.ops.names import ROOT_KEY, Key, lookup, reserved_error
from ffs.server.meta.schema import RESERVED
from ffs.server.meta.store import Transaction
from ffs.types import ROOT_INODE, FileType

Trail = tuple[int, ...]
"""The inodes from the root down to a directory, that one included."""

ROOT_TRAIL: Final[Trail] = (ROOT_INODE,)
PARENTS_MODE: Final = 0o755


def split_path(path: bytes) -> list[bytes]:
    """Return the names of an absolute path. Raises BadNameError."""
    if len(path) > PATH_BYTES_MAX:
        raise NameTooLongError(f"path has {len(path)} bytes, the limit is {PATH_BYTES_MAX}")
    if path[:1] != b"/":
        raise BadNameError("path is not absolute", path=path)
    names = [name for name in path.split(b"/") if name]
    for name in names:
        check_name(name)
    return names


def check_name(name: bytes) -> None:
    """Raise BadNameError unless `name` may stand in a directory."""
    if len(name) > NAME_BYTES_MAX:
        raise NameTooLongError(f"name has {len(name)} bytes, the limit is {NAME_BYTES_MAX}")
    if name in (b".", b"..") or b"\0" in name or not name:
        raise BadNameError("name is empty, `.` or `..`, or holds NUL", path=name)


def split_last(path: bytes) -> tuple[bytes, bytes]:
    """Return (parent path, last name); the root gives (b"", b""). Raises BadNameError.

    The parent's own names are checked when it is resolved, once for all its entries.
    """
    parent, _, name = path.rpartition(b"/")
    if not name:
        parent, _, name = path.rstrip(b"/").rpartition(b"/")
        if not name:
            if path[:1] != b"/":
                raise BadNameError("path is empty")
            return b"", b""
    if len(path) > PATH_BYTES_MAX or len(name) > NAME_BYTES_MAX or name in (b".", b".."):
        split_path(path)
    if path[:1] != b"/" or b"\0" in name:
        split_path(path)
    return parent or b"/", name


def resolve_directories(
    tx: Transaction,
    paths: Iterable[bytes],
    *,
    make: Collection[bytes] = (),
    context: Context | None = None,
) -> dict[bytes, Trail | FFSError]:
    """Resolve directory paths, all of them one level at a time.

    Args:    make: those of `paths` whose missing directories are to be made, with `context`
    Returns: for each path the trail from the root to it, or why there is none
    """
    done: dict[bytes, Trail | FFSError] = {}
    walking: dict[bytes, tuple[list[bytes], Trail]] = {}
    for path in paths:
        try:
            names = split_path(path)
        except FFSError as error:
            done[path] = error
            continue
        walking[path] = (names, ROOT_TRAIL)
    depth = 0
    while walking:
        finished = [path for path, (names, _) in walking.items() if len(names) == depth]
        for path in finished:
            done[path] = walking.pop(path)[1]
        _descend(tx, depth, walking, done, make, context)
        depth += 1
    return done


def _descend(
    tx: Transaction,
    depth: int,
    walking: dict[bytes, tuple[list[bytes], Trail]],
    done: dict[bytes, Trail | FFSError],
    make: Collection[bytes],
    context: Context | None,
) -> None:
    """Take every walking path one name further, or move it to `done` with its error."""
    keys = {path: (trail[-1], names[depth]) for path, (names, trail) in walking.items()}
    found = lookup(tx, set(keys.values()))
    if make and context is not None:
        missing = {key for path, key in keys.items() if key not in found and path in make}
        made = make_directories(tx, context, missing, PARENTS_MODE)
    else:
        made = {}
    for path, key in keys.items():
        step = found.get(key) or made.get(key)
        if isinstance(step, tuple) and step[1] == FileType.DIRECTORY:
            names, trail = walking[path]
            walking[path] = (names, (*trail, step[0]))
            continue
        del walking[path]
        if isinstance(step, FFSError):
            done[path] = step
        elif step is not None and step[1] != RESERVED:
            done[path] = DirectoryExpectedError("a path component is not a directory", path=path)
        elif step is not None and path in make:
            done[path] = reserved_error(key[1])
        else:
            done[path] = NotFoundError("no such directory", path=path)


def locate_many(
    tx: Transaction,
    paths: Sequence[bytes],
    *,
    make: Collection[bytes] = (),
    context: Context | None = None,
) -> list[Key | FFSError]:
    """Resolve the parents of many paths; the last names are not looked up.

    Args:    make: those of `paths` whose missing parents are to be made, with `context`
    Returns: one per path, in order: its key, or why its parent cannot hold it
    """
    parents: dict[bytes, Trail | FFSError] = {}
    split: list[tuple[bytes, bytes] | FFSError] = []
    growing: set[bytes] = set()
    make = frozenset(make)
    for path in paths:
        try:
            pair = split_last(path)
        except FFSError as error:
            split.append(error)
            continue
        split.append(pair)
        parents[pair[0]] = ROOT_TRAIL
        if path in make:
            growing.add(pair[0])
    parents.pop(b"", None)
    resolved = resolve_directories(tx, list(parents), make=growing, context=context)
    keys: list[Key | FFSError] = []
    for entry in split:
        if isinstance(entry, FFSError):
            keys.append(entry)
        elif not entry[0]:
            keys.append(ROOT_KEY)
        else:
            trail = resolved[entry[0]]
            keys.append(trail if isinstance(trail, FFSError) else (trail[-1], entry[1]))
    return keys


def locate(
    tx: Transaction, path: bytes, *, parents: bool = False, context: Context | None = None
) -> tuple[Key, Trail]:
    """Resolve one path to its key and the trail to its parent. Raises what went wrong."""
    directory, name = split_last(path)
    if not directory:
        return ROOT_KEY, ()
    make = (directory,) if parents else ()
    trail = resolve_directories(tx, [directory], make=make, context=context)[directory]
    if isinstance(trail, FFSError):
        raise trail
    return (trail[-1], name), trail
