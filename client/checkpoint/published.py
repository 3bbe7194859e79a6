"""How a checkpoint becomes visible, and which one is the newest.

Role: client/checkpoint/storage_writer.py publishes through THIS; training scripts ask `latest`.

A checkpoint is a directory whose file `.metadata` names all other files of it. In steps:
1. the coordinator empties `.NAME.saving` beside the checkpoint's place, left by a save that died;
2. every rank writes its files there, under names that no other save uses;
3. the coordinator writes `.metadata` there, and renames the directory to NAME: one step, after
   which the checkpoint is there, whole and durable.
If NAME is a directory already, the files move into it first, then `.metadata` replaces the old one,
which is the one step; what the new one does not name is removed last.

Failure behaviour: a save that dies before the one step leaves what was there before as it was, and
`.NAME.saving`, which nobody takes for a checkpoint and the next save of NAME removes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, Final

from ffs.client.checkpoint.place import locate
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import FFSError, NotFoundError

METADATA: Final = ".metadata"
SUFFIX: Final = ".tensors"


def staging_of(path: str) -> str:
    """Return where the files of a checkpoint are until it is published."""
    parent, _, name = path.rpartition("/")
    return f"{parent}/.{name}.saving"


def clear(fs: FFSFileSystem, path: str) -> None:
    """Make an empty staging directory for a checkpoint."""
    staging = staging_of(path)
    if fs.exists(staging):
        with contextlib.suppress(NotFoundError):  # whoever wrote it has published it meanwhile
            fs.rm(staging, recursive=True)
    fs.makedirs(staging)


def publish(fs: FFSFileSystem, path: str, metadata: bytes, names: set[str]) -> None:
    """Make a checkpoint whose files `names` are all written appear, whole, at `path`."""
    staging = staging_of(path)
    if not fs.isdir(path):
        fs.pipe_file(f"{staging}/{METADATA}", metadata)
        fs.replace(staging, path)
        return
    for name in sorted(names):
        fs.replace(f"{staging}/{name}", f"{path}/{name}")
    fs.pipe_file(f"{path}/{METADATA}", metadata)
    for one in fs.ls(path, detail=False):
        if one.endswith(SUFFIX) and one.rpartition("/")[2] not in names:
            fs.rm_file(one)
    fs.rm(staging, recursive=True)


def latest(
    url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
) -> str | None:
    """Return the URL of the checkpoint in directory `url` that was published last, if any.

    Directories that are no checkpoint, or not yet one, are passed over; `url` need not exist.
    """
    fs, path = locate(url, storage_options)
    try:
        entries = fs.ls(path)
    except NotFoundError:
        return None  # a job that starts for the first time
    places = [
        entry["name"]
        for entry in entries
        if entry["type"] == "directory" and not entry["name"].rpartition("/")[2].startswith(".")
    ]
    # Asked for, not remembered: another process publishes.
    found = fs.core.meta.stat_many([f"{place}/{METADATA}" for place in places])
    whole = [
        (attr.mtime_ns, place)
        for place, attr in zip(places, found, strict=True)
        if not isinstance(attr, FFSError)
    ]
    return fs.unstrip_protocol(max(whole)[1]) if whole else None
