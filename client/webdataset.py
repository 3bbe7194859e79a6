"""WebDataset shards in FFS: `register` teaches the library `webdataset` to open ffs:// URLs.

Role: webdataset's `gopen` -> THIS -> the file system's `open`. One handler a process; registering
again replaces it.
Fork: children have what was registered; a spawned worker has nothing and registers again.
Failure: the file system's errors, which WebDataset's `handler` gets to see.
"""

from __future__ import annotations

import io
from functools import partial
from typing import Any, Final

from webdataset.gopen import gopen_schemes

from ffs.client.filesystem import FFSFileSystem
from ffs.client.options import PROTOCOL, url_keywords

_READ_BYTES: Final = 4 << 20
"""Read at a time: tarfile asks for 10 KiB, one request each would spend its time on the way."""


def register(**storage_options: Any) -> None:
    """Let WebDataset and its writers open `ffs://` URLs.

    Args:    storage_options: the cluster and its key, as for the file system; else the environment
    Raises:  TypeError for an unknown keyword, ConfigError for a bad value
    """
    FFSFileSystem(**storage_options)
    gopen_schemes[PROTOCOL] = partial(_open, storage_options)


def _open(
    storage_options: dict[str, Any], url: str, mode: str, bufsize: int, **_: Any
) -> io.BufferedReader | Any:
    """Open a shard as `gopen` does; its own buffer size is for pipes."""
    fs = FFSFileSystem(**(url_keywords(url) | storage_options))
    file = fs.open(fs._strip_protocol(url), mode)
    return io.BufferedReader(file, _READ_BYTES) if mode == "rb" else file
