"""All that can be seen of a tree, to be compared with another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ffs.types import Attr, FileType
from tests.namespace import Namespace


@dataclass(frozen=True)
class Seen:
    """What can be seen of one name of a tree; `same` are the names of the same inode in it.

    How many links an inode has in all is left out: there may be some elsewhere.
    """

    type: int
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    content: Any
    same: tuple[bytes, ...]


def tree_of(ns: Namespace, top: bytes) -> dict[bytes, Seen]:
    """Return all that can be seen of a tree, by names below its top."""
    found: dict[bytes, tuple[Attr, Any]] = {}

    def look(path: bytes, attr: Attr, link: bytes) -> None:
        content: Any = link
        if attr.type == FileType.FILE:
            content = ns.segments(path)
        elif attr.type == FileType.DIRECTORY:
            content = (ns.layout(path).chunk_size_bytes,)
            for entry in ns.list(path, limit=4_096).entries:
                look(path + b"/" + entry.name, entry.attr, entry.link)
        found[path.removeprefix(top)] = (attr, content)

    look(top, ns.stat(top, follow=False), b"")
    names: dict[int, list[bytes]] = {}
    for name, (attr, _) in sorted(found.items()):
        names.setdefault(attr.inode, []).append(name)
    return {
        name: Seen(
            *(attr.type, attr.mode, (attr.uid, attr.gid)),
            *(attr.mtime_ns, content, tuple(names[attr.inode])),
        )
        for name, (attr, content) in found.items()
    }
