"""Move many files between a local disk and a cluster, several at a time.

Small files travel in batches, one metadata round trip and one native call for hundreds of them;
large ones stream in pieces. The local side is aiofiles, the FFS side its synchronous methods in
threads, so `jobs` workers keep disk and network busy together. Memory: at most BATCH_BYTES for
each worker.

Invariant: a target appears whole or not at all. In FFS a file appears at close; a local file is
written under a temporary name and renamed.
Failure behaviour: the first failure, or Ctrl-C, stops every worker and leaves nothing half-written.
A thread that hangs in a call to a silent server is waited for STOP_S and then left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import aiofiles

from ffs.cli.progress import Progress
from ffs.cli.sides import Found, RemoteSide, Side
from ffs.errors import FFSError

T = TypeVar("T")

SMALL_BYTES = 1 << 20
BATCH_BYTES = 16 << 20
BATCH_FILES = 512
PIECE_BYTES = 8 << 20
STOP_S: Final = 1.0
PART: Final = ".ffs-part"
"""How the names of unfinished local files end."""


@dataclass(frozen=True, slots=True)
class Item:
    """One file to copy, and its size when the copy was planned."""

    source: str
    target: str
    size: int


Batch = Sequence[Item]
"""Small files that travel together, or a single large one."""


def batches(items: Sequence[Item]) -> list[Batch]:
    """Group small files up to BATCH_BYTES and BATCH_FILES; every large file stands alone."""
    made: list[Batch] = [[item] for item in items if item.size > SMALL_BYTES]
    group: list[Item] = []
    held = 0
    for item in items:
        if item.size > SMALL_BYTES:
            continue
        if group and (held + item.size > BATCH_BYTES or len(group) >= BATCH_FILES):
            made.append(group)
            group, held = [], 0
        group.append(item)
        held += item.size
    return [*made, group] if group else made


async def upload(fs: Any, items: Sequence[Item], jobs: int, progress: Progress) -> None:
    """Copy local files into the cluster; the parents of the targets must exist."""

    async def one(batch: Batch) -> None:
        if batch[0].size > SMALL_BYTES:
            await _upload_large(fs, batch[0], progress)
        else:
            contents = [await _read_local(item.source) for item in batch]
            pairs = {item.target: data for item, data in zip(batch, contents, strict=True)}
            await in_thread(fs.pipe, pairs)
            progress.advance(sum(len(data) for data in contents))

    await _run(batches(items), jobs, one)


async def download(fs: Any, items: Sequence[Item], jobs: int, progress: Progress) -> None:
    """Copy files of the cluster to the local disk; the parents of the targets must exist."""

    async def one(batch: Batch) -> None:
        if batch[0].size > SMALL_BYTES:
            await _download_large(fs, batch[0], progress)
        else:
            await _download_small(fs, batch, progress)

    await _run(batches(items), jobs, one)


async def relay(
    source_fs: Any, target_fs: Any, items: Sequence[Item], jobs: int, progress: Progress
) -> None:
    """Copy files from one cluster to another."""

    async def one(batch: Batch) -> None:
        for item in batch:
            await in_thread(_relay_one, source_fs, target_fs, item, progress)

    await _run(batches(items), jobs, one)


async def refer(goal: RemoteSide, items: Sequence[Item], jobs: int, progress: Progress) -> None:
    """Copy files within one cluster: no byte moves."""

    async def one(batch: Batch) -> None:
        await in_thread(goal.refer, [(item.source, item.target) for item in batch])
        progress.advance(sum(item.size for item in batch))

    groups = [items[i : i + BATCH_FILES] for i in range(0, len(items), BATCH_FILES)]
    await _run(groups, jobs, one)


async def keep_attributes(goal: Side, copies: Sequence[tuple[str, Found]], jobs: int) -> None:
    """Give copies the modes and times of their sources."""

    async def one(part: Sequence[tuple[str, Found]]) -> None:
        await in_thread(goal.preserve, part)

    await _run([copies[i : i + BATCH_FILES] for i in range(0, len(copies), BATCH_FILES)], jobs, one)


async def _run(
    work: Sequence[Sequence[T]], jobs: int, one: Callable[[Sequence[T]], Awaitable[None]]
) -> None:
    """Work on batches with `jobs` workers; the first failure stops the rest and is raised."""
    queue = list(reversed(work))

    async def worker() -> None:
        while queue:
            await one(queue.pop())

    workers = [asyncio.ensure_future(worker()) for _ in range(min(jobs, len(work)))]
    try:
        await asyncio.gather(*workers)
    finally:
        queue.clear()
        await asyncio.gather(*workers, return_exceptions=True)


class StuckError(asyncio.CancelledError):
    """A worker was told to stop while its thread hangs in a call: what that uses is left alone."""


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a blocking function in a thread of its own and await its result.

    Why: not asyncio.to_thread, whose threads a program waits for at its end, however long they
    hang. A cancelled call is waited for, since it uses our buffers, but no longer than STOP_S.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def body() -> None:
        try:
            result = function(*args)
        except BaseException as error:  # noqa: BLE001  whoever awaits the call gets it
            settle(outcome.set_exception, error)
        else:
            settle(outcome.set_result, result)

    def settle(how: Callable[[Any], None], what: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(how, what)

    threading.Thread(target=body, daemon=True).start()
    try:
        return await asyncio.shield(outcome)
    except asyncio.CancelledError:
        await asyncio.wait([outcome], timeout=STOP_S)
        if not outcome.done():
            raise StuckError from None
        outcome.exception()  # looked at, so that nobody complains that it was not
        raise


async def _read_local(path: str) -> bytes:
    async with aiofiles.open(path, "rb") as file:
        data: bytes = await file.read()
        return data


async def _upload_large(fs: Any, item: Item, progress: Progress) -> None:
    out = await in_thread(fs.open, item.target, "wb")
    try:
        async with aiofiles.open(item.source, "rb") as file:
            while piece := await file.read(PIECE_BYTES):
                await in_thread(out.write, piece)
                progress.advance(len(piece))
    except StuckError:
        raise
    except BaseException:
        out.discard()
        raise
    await in_thread(out.close)


async def _download_small(fs: Any, batch: Batch, progress: Progress) -> None:
    buffer = memoryview(bytearray(sum(item.size for item in batch)))
    ranges = [(item.source, 0, item.size) for item in batch if item.size > 0]
    if ranges:
        await in_thread(fs.readv_into, ranges, buffer)
    start = 0
    for item in batch:
        async with _replacing(item.target) as file:
            await file.write(buffer[start : start + item.size])
        start += item.size
    progress.advance(start)


async def _download_large(fs: Any, item: Item, progress: Progress) -> None:
    buffer = memoryview(bytearray(PIECE_BYTES))
    source = await in_thread(fs.open, item.source, "rb")
    try:
        async with _replacing(item.target) as file:
            while landed := await in_thread(source.readinto, buffer):
                await file.write(buffer[:landed])
                progress.advance(landed)
    finally:
        source.close()


def _relay_one(source_fs: Any, target_fs: Any, item: Item, progress: Progress) -> None:
    buffer = memoryview(bytearray(min(PIECE_BYTES, max(item.size, 1))))
    with source_fs.open(item.source, "rb") as source:
        out = target_fs.open(item.target, "wb")
        try:
            while landed := source.readinto(buffer):
                out.write(buffer[:landed])
                progress.advance(landed)
        except BaseException:
            out.discard()
            raise
        out.close()


@contextlib.asynccontextmanager
async def _replacing(path: str) -> AsyncIterator[Any]:
    """A local file that takes `path`'s place when the block ends well, and vanishes otherwise."""
    temporary = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex[:8]}{PART}")
    try:
        async with aiofiles.open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, FFSError):
            error.filename = path  # the disk is full, say: of which file it was is not told
        raise
