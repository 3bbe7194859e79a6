"""Two or more daemons that hold the same chunks, before the daemons replicate writes themselves.

Used by bench/cases/replicas.py and by tests. A file is written as always, each chunk to the one
target of its chain; `copy_chunks` then writes it to all other targets too, through their own data
ports, and `share_chains` has the metadata say that every target serves every chain. From then on
the cluster is for reading: a daemon takes no write for a chain with several targets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ffs.client.filesystem import FFSFileSystem
from ffs.client.layouts import Piece
from ffs.client.planner import PENDING
from ffs.client.writer import WRITE_OP_DTYPE
from ffs.server.meta.ops.routing import grow_version, hold_routing
from ffs.server.meta.sqlite import SqliteStore
from ffs.server.meta.store import Transaction


def copy_chunks(fs: FFSFileSystem, paths: Sequence[str]) -> None:
    """Write every chunk of these files to the targets that do not have it yet.

    Needs:   every chain has one target still, and every target is that of a chain
    """
    core = fs.core
    for path in paths:
        content = core.meta.open(path)
        data = memoryview(bytearray(content.size))
        core.reader.read_range(content, 0, content.size, data)
        for piece in content.pieces:
            if piece.blob:
                rows = list(_copies(piece, core.meta.route().chains))
                ops = np.array(rows, dtype=WRITE_OP_DTYPE)
                core.writing.send(ops, data, {piece.blob: path})


def _copies(piece: Piece, chains: Sequence[int] | dict[int, Any]) -> Iterator[tuple[int, ...]]:
    """Yield a write operation for each chunk of a piece and each chain that it is not in."""
    for chunk, start in enumerate(range(piece.start, piece.end, piece.mask + 1)):
        length = min(piece.mask + 1, piece.end - start)
        for chain in chains:
            if chain != piece.chain(chunk):
                yield piece.blob, start, chunk, 0, chain, length, 0, 0, PENDING


def share_chains(meta_dir: Path) -> None:
    """Let every target serve every chain. The metadata server must not be running."""
    asyncio.run(_share_chains(meta_dir))


async def _share_chains(meta_dir: Path) -> None:
    store = SqliteStore(meta_dir)
    try:
        await store.write(_add_members)
    finally:
        await store.close()


def _add_members(tx: Transaction) -> None:
    hold_routing(tx)
    targets = [int(target) for (target,) in tx.rows("SELECT target FROM targets ORDER BY target")]
    for chain, head in tx.rows("SELECT chain, target FROM chain_targets WHERE place = 0"):
        others = [target for target in targets if target != head]
        rows = [(chain, place, target) for place, target in enumerate(others, start=1)]
        tx.insert("chain_targets", ("chain", "place", "target"), rows)
    tx.run("UPDATE chains SET version = version + 1")
    grow_version(tx)
