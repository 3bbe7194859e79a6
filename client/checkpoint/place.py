"""Where a checkpoint is: a URL, or a path together with the options that lead to its cluster.

Role: what every part of this package begins with. Next hop: client/filesystem.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import fsspec

from ffs.client.filesystem import FFSFileSystem
from ffs.client.options import PROTOCOL, split_url, url_keywords
from ffs.errors import InvalidError


class Placed:
    """What both halves of torch's storage say of the place of a checkpoint."""

    def __init__(
        self, path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None
    ) -> None:
        super().__init__()
        self._options = dict(storage_options or {})
        self._move(path)

    def _move(self, checkpoint_id: str | os.PathLike[str] | None) -> None:
        """Turn to another place, if one is given."""
        if checkpoint_id is not None:
            self.fs, self.path = locate(checkpoint_id, self._options)

    @property
    def checkpoint_id(self) -> str:
        """The checkpoint's URL."""
        return self.fs.unstrip_protocol(self.path)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return whether a checkpoint id is a URL of ours."""
        return os.fspath(checkpoint_id).startswith(f"{PROTOCOL}://")


def locate(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None
) -> tuple[FFSFileSystem, str]:
    """Return the file system and the path that `url` stands for; nothing is connected yet."""
    text, options = os.fspath(url), dict(storage_options or {})
    scheme = text.partition("://")[0] if "://" in text else PROTOCOL
    if scheme != PROTOCOL:
        raise InvalidError(f"{text!r} is no place in FFS", hint="pass an ffs:// URL")
    if split_url(text)[0]:
        options.update(url_keywords(text))
    fs: FFSFileSystem = fsspec.filesystem(PROTOCOL, **options)
    path: str = fs._strip_protocol(text)
    return fs, path
