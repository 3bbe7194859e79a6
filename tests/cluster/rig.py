"""The native read path inside the test process: chunk store, data loop, and the client's reader.

Everything is the real thing but the metadata server and the handshake, so a test can open a damaged
store a thousand times in the time that one daemon takes to start.
"""

from __future__ import annotations

import socket
from pathlib import Path

from ffs import _reader
from ffs._storage import ChunkStore, DataLoop
from ffs.client.connections import Connections, NodePool
from ffs.client.layouts import Content, Route
from ffs.client.reader import Reader
from ffs.client.replicas import Replicas
from ffs.client.retry import RetryPolicy
from ffs.client.settle import Settler
from ffs.key import ClusterKey
from ffs.layout import chunk_count, chunk_length
from ffs.seams import SystemClock, SystemRandomness
from ffs.types import (
    Attr,
    ChainInfo,
    FileType,
    Layout,
    NodeInfo,
    Routing,
    Segment,
    TableInfo,
    TargetInfo,
    TargetState,
)
from ffs.wire.messages import OpenFile

CLUSTER = bytes(range(16))
TARGET = 1
CHUNK_BYTES = 64 << 10
LAYOUT = Layout(chunk_size_bytes=CHUNK_BYTES, stripe=1, table=1, seed=0)
ROUTING = Routing(
    version=1,
    nodes=[NodeInfo(node=1, host="rig", port=1)],
    targets=[TargetInfo(target=TARGET, node=1, state=TargetState.SERVING)],
    chains=[ChainInfo(chain=1, version=1, targets=[TARGET])],
    tables=[TableInfo(table=1, chains=[1])],
)


class RigConnections(Connections):
    """Connections that lead into a data loop of this process."""

    def __init__(self, data: DataLoop) -> None:
        super().__init__(
            ClusterKey(bytes(32)), connect_ms=1_000, congestion="", receive_buffer_bytes=0
        )
        self._data = data

    def _connect(self, pool: NodePool, timeout_ms: int) -> _reader.Connection:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        theirs.setblocking(False)
        self._data.adopt(theirs.detach())
        return _reader.Connection(ours.detach())


class Rig:
    """One target and a reader of it. `open` and `close` may alternate."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self._fresh = ChunkStore.read_superblock(str(directory)) is None

    def open(self) -> None:
        """Open the store as a daemon would, and serve it."""
        self.store = ChunkStore(
            str(self.directory), cluster_id=CLUSTER, target_id=TARGET, create=self._fresh
        )
        self._fresh = False
        self.data = DataLoop({TARGET: self.store}, loops=1)
        self._connections = RigConnections(self.data)
        clock, route = SystemClock(), Route(ROUTING)
        settler = Settler(
            self._connections,
            RetryPolicy(1, 2, SystemRandomness()),
            clock,
            Replicas(clock, self._connections.load),
            route=lambda: route,
            refresh=lambda: route,
            connections_per_node=1,
            stall_ms=0,
        )
        self.reader = Reader(settler, deadline_ms=2_000, verify=True)

    def close(self) -> None:
        """Stop serving and close the store."""
        self._connections.close()
        self.data.close()
        self.store.close()

    def write(self, path: str, blob: int, content: bytes) -> Content:
        """Store a file's chunks; return what a reader needs to know of it."""
        for chunk in range(chunk_count(len(content), CHUNK_BYTES)):
            start = chunk * CHUNK_BYTES
            data = content[start : start + chunk_length(len(content), CHUNK_BYTES, chunk)]
            crcs = _reader.block_crcs(data, blob, chunk)
            assert self.store.put(blob, chunk, data, crcs) == 0
        attr = Attr(
            inode=blob,
            type=FileType.FILE,
            mode=0o644,
            uid=0,
            gid=0,
            nlink=1,
            size=len(content),
            version=1,
            atime_ns=0,
            mtime_ns=0,
            ctime_ns=0,
        )
        segments = [Segment(blob=blob, length=len(content), layout=LAYOUT)]
        return Content(path, OpenFile(attr, segments), {1: [1]})

    def read(self, content: Content) -> bytes:
        """Read a whole file through the native path."""
        out = bytearray(content.size)
        self.reader.read_range(content, 0, content.size, memoryview(out))
        self.data.poll()
        return bytes(out)
