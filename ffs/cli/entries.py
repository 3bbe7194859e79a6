"""What is said of one name in the file system: as JSON, as a line of a long listing."""

from __future__ import annotations

import datetime
import stat as stat_bits
from collections.abc import Mapping
from typing import Any, Final

from ffs.cli import output

KEYS: Final = (
    *("name", "type", "size", "mode", "uid", "gid", "nlink", "ino", "version"),
    *("mtime", "created"),
)
"""The keys of an entry in JSON, in this order; a symbolic link has `destination` too."""

_BITS: Final = {"directory": stat_bits.S_IFDIR, "link": stat_bits.S_IFLNK}
_MARKS: Final = {"directory": "/", "link": "@"}


def kind(info: Mapping[str, Any]) -> str:
    """`file`, `directory` or `link`: a link is one, whatever it leads to."""
    return "link" if info.get("islink") else str(info["type"])


def own(fs: Any, path: str) -> dict[str, Any]:
    """What is known of a name itself: a symbolic link is not followed."""
    from ffs.client.namespace import info_of

    info = info_of(path, fs.core.meta.lstat(path))
    if kind(info) == "link":
        info["destination"] = fs.readlink(path)
    return info


def as_json(info: Mapping[str, Any]) -> dict[str, Any]:
    """An fsspec info dictionary as the documented entry."""
    found = {key: info[key] for key in KEYS}
    found["type"] = kind(info)
    if found["type"] == "link":
        found["destination"] = text(info["destination"])
    return found


def text(name: str | bytes) -> str:
    """A name as text; bytes that are no UTF-8 survive."""
    return name.decode(errors="surrogateescape") if isinstance(name, bytes) else name


def last_name(path: str) -> str:
    """The last component of a path; the root is `/`."""
    return path.rstrip("/").rpartition("/")[2] or "/"


def short(info: Mapping[str, Any]) -> str:
    """A name with the mark of its kind."""
    name = last_name(str(info["name"]))
    return output.shown(name) + (_MARKS.get(kind(info), "") if name != "/" else "")


def mode_text(info: Mapping[str, Any]) -> str:
    """`drwxr-xr-x`."""
    return stat_bits.filemode(_BITS.get(kind(info), stat_bits.S_IFREG) | int(info["mode"]) & 0o7777)


def long(info: Mapping[str, Any], *, human: bool) -> str:
    """One line with mode, size and time; a link says where it leads."""
    size = output.size_text(int(info["size"] or 0), human=human)
    line = f"{mode_text(info)} {size:>{10 if human else 14}} {when(info)} {short(info)}"
    if kind(info) == "link":
        return f"{line} -> {output.shown(text(info['destination']))}"
    return line


def when(info: Mapping[str, Any]) -> str:
    """The modification time of an info dictionary as `YYYY-MM-DD HH:MM:SS`, local time."""
    return time_text(float(info["mtime"]))


def time_text(seconds: float) -> str:
    """Seconds since the epoch as `YYYY-MM-DD HH:MM:SS`, local time."""
    local = datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S")
