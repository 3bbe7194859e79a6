"""What a path on the wire may be, and its names.

Previous hop: `resolve`. Next hop: nothing; these functions are pure. Bounds (name and path length,
no NUL, no `.` or `..`, which only symbolic links may hold) are checked here and nowhere else.
Repeated slashes count as one; one at the end says that the path must stand for a directory. The
root is the entry (ROOT_PARENT, b"").
"""

from __future__ import annotations

from ffs.errors import BadNameError, NameTooLongError
from ffs.limits import NAME_BYTES_MAX, PATH_BYTES_MAX


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
