"""Chunk stores behind real data ports, for tests of those who copy chunks from each other."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ffs import _storage
from ffs._reader import block_crcs
from ffs._storage import ChunkStore, DataLoop
from ffs.errors import OK
from ffs.key import ClusterKey
from ffs.rpc.door import listen
from ffs.server.storage.data_port import DataPort
from ffs.server.storage.neighbours import View
from ffs.server.storage.recovery import Pulling
from ffs.types import ChainInfo, NodeInfo, Routing, TargetInfo, TargetState

KEY = ClusterKey(bytes(range(32)))
CHAIN, SINCE = 7, 5
POOL = random.Random(6).randbytes(2 << 20)


def content(blob: int, chunk: int, length: int) -> tuple[bytes, bytes]:
    """The bytes of a chunk and their checksums."""
    start = (blob * 7919 + chunk * 104_729) % (1 << 20)
    data = POOL[start : start + length]
    return data, block_crcs(data, blob, chunk)


class Node:
    """A store of one target, and a data port that serves it from a thread of its own."""

    def __init__(self, root: Path, target: int) -> None:
        self.target = target
        self.path = root / f"target-{target}"
        self.store = ChunkStore(
            str(self.path), cluster_id=bytes(16), target_id=target, create=True, drop_delay_ms=0
        )
        self.data = DataLoop({target: self.store}, loops=1)
        self.data.set_chain_version(target, SINCE)
        self._listener = listen("127.0.0.1", 0)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(DataPort(self._listener, KEY, self.data).serve())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.close()

    def fill(self, keys: Iterable[tuple[int, int]], length: int = 9000) -> None:
        """Store chunks."""
        for blob, chunk in keys:
            assert self.store.put(blob, chunk, *content(blob, chunk, length)) == OK

    def keys(self) -> bytes:
        """All that is listed."""
        return self.store.keys(0, 0, 1 << 20)

    def flip(self, blob: int, chunk: int) -> None:
        """Damage a chunk on the disk, wherever it lies."""
        wanted, _ = content(blob, chunk, (self.store.lookup(blob, chunk) or (0, 0))[0])
        for file in self.path.glob("*.data"):
            at = file.read_bytes().find(wanted)
            if at >= 0:
                with file.open("r+b") as opened:
                    opened.seek(at + len(wanted) // 2)
                    opened.write(bytes([wanted[len(wanted) // 2] ^ 1]))
                return
        raise AssertionError(f"chunk {blob}:{chunk} is not on the disk")

    def suspects(self) -> list[tuple[int, ...]]:
        """What others told of this node's chunks, since the last call."""
        return [e[1:] for e in self.data.poll() if e[0] == _storage.EVENT_SUSPECT]

    def stop_serving(self) -> None:
        """End like a daemon that died; the store stays."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self.data.close()

    def close(self) -> None:
        """End all of it."""
        self.stop_serving()
        self.store.close()


class Neighbourhood:
    """Nodes 1 .. n, each with one target of one chain, and a routing that a test changes."""

    def __init__(self, root: Path, count: int) -> None:
        self.nodes = {number: Node(root, number) for number in range(1, count + 1)}
        self.view = View()
        self.pulling = Pulling(KEY, "", 1.0, view=lambda: self.view)
        self.remembered: list[tuple[int, int, int]] = []
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def say(self, *states: TargetState, since: int = SINCE, version: int = SINCE) -> None:
        """Make this the routing: the state of each target."""
        self.view = View(
            Routing(
                version=version,
                nodes=[NodeInfo(n, "127.0.0.1", node.port) for n, node in self.nodes.items()],
                targets=[TargetInfo(t, t, s, since=since) for t, s in enumerate(states, 1)],
                chains=[ChainInfo(CHAIN, version, list(self.nodes))],
                tables=[],
            )
        )

    def wait_for(self, condition: Callable[[], object], seconds: float = 30) -> None:
        """Do what was asked to be called, as an event loop would, until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            with contextlib.suppress(queue.Empty):
                self.calls.get(timeout=0.02)()

    def close(self) -> None:
        """End all nodes."""
        for node in self.nodes.values():
            node.close()


@contextlib.contextmanager
def neighbourhood(root: Path, count: int) -> Iterator[Neighbourhood]:
    """Run nodes for a test."""
    made = Neighbourhood(root, count)
    try:
        yield made
    finally:
        made.close()
