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
