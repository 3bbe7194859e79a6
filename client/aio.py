"""The asynchronous twins of the file system's methods, for zarr and other asyncio programs.

Role: part of the file system object. The C engine drives its sockets in the thread that calls it,
so a coroutine hands the synchronous method to a small pool of threads and awaits it there; any
loop, of any thread, may do so.

Fork: the child forgets the parent's pool and makes its own when it needs one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from ffs.client import _fork
from ffs.client.transfer import Transfer

T = TypeVar("T")

POOL_THREADS: Final = 16
"""Calls that one process's coroutines can have under way; more wait their turn."""


class _Pool:
    """The process's threads for asynchronous calls, made at the first one."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Forget the parent's threads."""
        self._executor = None

    def get(self) -> ThreadPoolExecutor:
        """Return the pool."""
        if self._executor is None:
            # No thread starts before the first task, so the loser of a race costs nothing.
            self._executor = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="ffs-aio")
        return self._executor


_POOL: Final = _Pool()


async def in_pool(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run a blocking call in the pool and await its result."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_POOL.get(), partial(function, *args, **kwargs))


def _twin(name: str) -> Callable[..., Any]:
    """Return a coroutine method that runs the synchronous method `name` in the pool."""

    async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await in_pool(getattr(self, name), *args, **kwargs)

    method.__name__ = method.__qualname__ = f"_{name}"
    method.__doc__ = f"Do what `{name}` does, without blocking the event loop."
    return method


class AsyncTwins(Transfer):
    """The asynchronous forms; each does exactly what the method without the underscore does."""

    _info = _twin("info")
    _ls = _twin("ls")
    _exists = _twin("exists")
    _isfile = _twin("isfile")
    _isdir = _twin("isdir")
    _find = _twin("find")
    _cat_file = _twin("cat_file")
    _cat_ranges = _twin("cat_ranges")
    _cat = _twin("cat")
    _pipe_file = _twin("pipe_file")
    _pipe = _twin("pipe")
    _cp_file = _twin("cp_file")
    _rm_file = _twin("rm_file")
    _rm = _twin("rm")
    _mv = _twin("mv")
    _replace = _twin("replace")
    _get = _twin("get")
    _put = _twin("put")
    _copy = _twin("copy")
    _mkdir = _twin("mkdir")
    _makedirs = _twin("makedirs")
    _touch = _twin("touch")
    _get_file = _twin("get_file")
    _put_file = _twin("put_file")
    _readv_into = _twin("readv_into")
    _read_buffer = _twin("read_buffer")
    _rmdir = _twin("rmdir")
    _lexists = _twin("lexists")
    _islink = _twin("islink")
    _symlink = _twin("symlink")
    _readlink = _twin("readlink")
    _link = _twin("link")
    _realpath = _twin("realpath")
    _chmod = _twin("chmod")
    _chown = _twin("chown")
    _utime = _twin("utime")
    _truncate = _twin("truncate")
    _du = _twin("du")
    _usage = _twin("usage")
    _statfs = _twin("statfs")
    _get_layout = _twin("get_layout")
    _set_layout = _twin("set_layout")
    _quotas = _twin("quotas")
    _set_quota = _twin("set_quota")
    _pin = _twin("pin")
    _unpin = _twin("unpin")
    _pins = _twin("pins")
    _snapshot = _twin("snapshot")
    _snapshots = _twin("snapshots")
    _remove_snapshot = _twin("remove_snapshot")
    _clone = _twin("clone")
    _trash = _twin("trash")
    _trashed = _twin("trashed")
    _restore = _twin("restore")
    _empty_trash = _twin("empty_trash")
