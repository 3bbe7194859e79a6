"""What the file system object is before it does anything: identity, options, life.

Role: base of client/filesystem.py. fsspec's own base constructor would start an IO thread; this
one starts nothing, and the `loop` that fsspec's asynchronous helpers may ask for is found per
process when they do.

Fork: the core (client/core.py) re-makes its parts in the child; the object itself is plain data.
Pickling: the constructor's arguments, nothing else.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, ClassVar

from fsspec.asyn import AsyncFileSystem, get_loop
from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from ffs.client.core import Core
from ffs.client.options import (
    CLIENT_KEYS,
    PROTOCOL,
    TLS_KEYS,
    clean_path,
    client_config,
    split_url,
    tls_config,
    url_keywords,
)
from ffs.errors import ChunkMissingError, ClosedError, FFSError, NotFoundError, StaleFileError


class FFSBase(AsyncFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """Identity, URLs, options and the lazily made core.

    Threads: one object may be used from any number of threads.
    """

    protocol: ClassVar[str] = PROTOCOL
    root_marker = "/"
    async_impl = True
    mirror_sync_methods = False
    """The synchronous forms are written by hand: through fsspec's loop a call costs 223 us more."""
    cachable = True
    blocksize = 4 << 20
    _strip_tokenize_options = ()

    def __init__(
        self,
        *args: Any,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        if args:
            raise TypeError("FFSFileSystem takes keyword arguments only")
        if self._cached:
            return
        self.config = client_config(options)
        self.tls = tls_config(options)
        self.asynchronous = asynchronous
        self.batch_size = batch_size
        self._loop = loop
        self._loop_pid = os.getpid()
        self._shut = False
        ours = {*CLIENT_KEYS, *TLS_KEYS}
        fsspec_options = {k: v for k, v in options.items() if k not in ours}
        # Not AsyncFileSystem.__init__, which starts fsspec's IO thread (see the module).
        AbstractFileSystem.__init__(self, **fsspec_options)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """fsspec's loop of this process, started when asked for and never by FFS itself."""
        if self._loop_pid != os.getpid():
            self._loop, self._loop_pid = None, os.getpid()
        if self._loop is None and not self.asynchronous:
            self._loop = get_loop()
        return self._loop

    @property
    def core(self) -> Core:
        """The client's parts, made at the first use."""
        core: Core | None = self.__dict__.get("_core")
        if core is not None:
            return core
        if self._shut:
            raise ClosedError("the file system has been closed", hint="make a new one")
        # Two threads may both make one; the first is kept, and the other has no socket open yet.
        kept: Core = self.__dict__.setdefault("_core", Core(self.config, tls=self.tls))
        return kept

    def close(self) -> None:
        """Close all connections; the object is of no more use, and fsspec will make a new one."""
        self._shut = True
        core: Core | None = self.__dict__.pop("_core", None)
        cached = type(self)._cache
        if cached.get(self._fs_token) is self:
            cached.pop(self._fs_token, None)
        if core is not None:
            core.close()

    # --- names ----------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, str):
            # The usual case, twice as fast as the general one: already clean.
            if path[:1] == "/" and path[-1] != "/" and "//" not in path:
                return path
            return clean_path(split_url(path)[1])
        if isinstance(path, (list, tuple)):
            return [cls._strip_protocol(p) for p in path]
        text = stringify_path(path)
        if not isinstance(text, str):
            raise TypeError(f"a path is a str or os.PathLike[str], not {type(text).__name__}")
        return cls._strip_protocol(text)

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path, with the cluster's address in it."""
        path: str = self._strip_protocol(name)
        authority, _ = split_url(self.config.url)
        return f"{PROTOCOL}://{authority}{path}"

    @staticmethod
    def _get_kwargs_from_urls(path: Any) -> dict[str, str]:
        return url_keywords(path)

    @property
    def fsid(self) -> str:
        """The cluster this object talks to."""
        return f"ffs_{split_url(self.config.url)[0]}"

    # --- files whose blobs are gone -------------------------------------------------------------

    def explain_missing(self, content: Any, error: ChunkMissingError) -> None:
        """Raise StaleFileError if a chunk is missing since the path has other content by now."""
        path = content.path
        try:
            changed = not self.core.meta.open(path).same_bytes(content)
        except NotFoundError:
            changed = True
        except FFSError:
            return
        if changed:
            raise StaleFileError(
                "the content behind an open file was dropped",
                hint="open the path again; `ffs pin` keeps a dataset for a job",
                path=path,
            ) from error
