"""What a path on the wire may be, and its names.

Previous hop: `resolve`. Next hop: nothing; these functions are pure. Bounds (name and path length,
no NUL, no `.` or `..`, which only symbolic links may hold) are checked here and nowhere else.
Repeated slashes count as one; one at the end says that the path must stand for a directory. The
root is the entry (ROOT_PARENT, b"").
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Final

from ffs.errors import BadNameError, FFSError, NameTooLongError
from ffs.limits import NAME_BYTES_MAX, PATH_BYTES_MAX

_NO_NAMES: Final = frozenset((b"", b".", b".."))
_SLASH: Final = b"/"[0]


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


def split_lasts(paths: Sequence[bytes]) -> tuple[list[bytes], list[bytes | FFSError]]:
    """Return the parents and the last names of a batch, as `split_last` does path by path.

    Why: a thousand ordinary paths are checked together, which takes a quarter of the time.
    Returns: an error in place of a name where there is one; its parent is empty then
    """
    parts = [path.rpartition(b"/") for path in paths]
    if parts and _all_plain(paths, *zip(*parts, strict=True)):
        return [parent or b"/" for parent, _, _ in parts], [name for _, _, name in parts]
    parents: list[bytes] = []
    names: list[bytes | FFSError] = []
    for path in paths:
        try:
            parent, name = split_last(path)
        except FFSError as error:
            parents.append(b"")
            names.append(error)
        else:
            parents.append(parent)
            names.append(name)
    return parents, names


def _all_plain(
    paths: Sequence[bytes],
    parents: Sequence[bytes],
    slashes: Sequence[bytes],
    names: Sequence[bytes],
) -> bool:
    """Whether all paths are absolute, within their bounds, and end in a name as it may be."""
    return (
        all(slashes)
        and {*map(itemgetter(0), paths)} == {_SLASH}
        and max(map(len, paths)) <= PATH_BYTES_MAX
        and max(map(len, names)) <= NAME_BYTES_MAX
        and _NO_NAMES.isdisjoint(names)
        and b"\0" not in b"".join(names)
    )
